"""I7: a cancellation is never lost, though a foreign client takes it for its own failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final, NoReturn

import aiohttp
import anyio.lowlevel
import httpx
import looptime
import pytest
import uvloop
from redis.asyncio.client import Pipeline, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from drivers.app import HEADERS, hello
from drivers.delivery import PLANS, STRIPE_KEY
from drivers.messages import SECRET
from meterkit import Contact, MeterKit, MeterMiddleware, identify
from meterkit.catalog import Catalog, loads
from servers.stores import free_port

PATIENCE_S: Final = 120.0  # What hangs, hangs for ever.
WARNS: Final = loads(
    PLANS.replace("requests: {included: 1_000,", "requests: {included: 1_000, warn_at: [100],")
)
SENDS: Final = """
notify:
  webhook: {url: "https://127.0.0.1:1/hook", events: [usage.threshold, usage.spike, period.summary]}
  email: {from: "billing@example.com", events: [usage.threshold, usage.spike, period.summary]}
"""
LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
each_loop = pytest.mark.parametrize("loop", LOOPS)
Story = Callable[[], Coroutine[Any, Any, None]]


async def hang_until_cancelled() -> NoReturn:
    """Wait as a client does that connects, and take a cancellation for a failure to."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    raise RedisConnectionError("the connection could not be made")


class SwallowingRedis:
    """redis-py, whose every call swallows a cancellation.

    Attributes:
        callers: names of the tasks that have called it.
        called: set at each call.
    """

    def __init__(self) -> None:
        self.callers: set[str] = set()
        self.called = asyncio.Event()

    async def call(self, *_: object, **__: object) -> NoReturn:
        task = asyncio.current_task()
        assert task is not None
        self.callers.add(task.get_name())
        self.called.set()
        await hang_until_cancelled()


@contextmanager
def swallowing_redis() -> Generator[SwallowingRedis]:
    client = SwallowingRedis()
    with pytest.MonkeyPatch.context() as patched:
        for of, name in ((Redis, "execute_command"), (Pipeline, "execute")):
            patched.setattr(of, name, client.call)
        yield client


def kit_in_memory(plans: Catalog = WARNS, **settings: Any) -> MeterKit:
    return MeterKit(plans, redis_url="memory://", shards=4, **settings)


async def serve_once(kit: MeterKit) -> None:
    app = MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as user:
        assert (await user.get("/x", headers=HEADERS)).status_code == 200


async def begin_handling(kit: MeterKit, handle: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a kit, and wait until its handler has begun."""
    has_begun = asyncio.Event()

    @kit.on("usage.threshold")
    async def note(_: object) -> None:
        has_begun.set()
        await handle()

    await kit.start()
    await kit.record("acme", "requests", 10_000)
    await has_begun.wait()


async def assert_is_cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def ignore(_: object) -> None:
    """Take an event of which the test wants nothing."""


def run(loop: str, story: Story) -> None:
    """Run a story in a loop of its own, in a thread, and close the loop as asyncio.run() does."""
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(story())
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
            failed.append(error)

    thread = Thread(target=serve, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the event loop does not close"
    for error in failed:
        raise error


def test_i7_each_background_task_ends_after_one_cancellation(tmp_path: Path) -> None:
    """F-209: `meterkit degraded` and others slept on, in the state "cancelling"."""
    reached = {"audit", "audit bound", "changes", "closes", "degraded", "events", "notify email"}
    reached |= {"notify spikes", "notify summaries", "notify webhook", "overview", "revenue"}
    reached |= {"scheduled transitions", "webhooks"}

    def contact(customer: str) -> Contact:
        return Contact(f"{customer}@example.com")

    async def story() -> None:
        kit = kit_in_memory(
            loads(PLANS + SENDS),
            contact=contact,
            stripe_api_key=STRIPE_KEY,
            stripe_api_base=f"http://127.0.0.1:{free_port()}",
            audit_url=f"sqlite:///{tmp_path}/audit.db",
            notify_secret=SECRET,
            smtp_url=f"smtp://127.0.0.1:{free_port()}",
        )
        kit.on("usage.threshold")(ignore)
        async with kit:
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("meterkit ")]
            kit.store.degraded.note()
            with swallowing_redis() as client:
                while not reached <= {name.removeprefix("meterkit ") for name in client.callers}:
                    client.called.clear()
                    await client.called.wait()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=PATIENCE_S)
                left = {task.get_name() for task in tasks if not task.done()}
            assert left == set()
            assert reached <= {name.removeprefix("meterkit ") for name in client.callers}

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(story())


def close_many_loops(loop: str, times: int) -> None:
    """Serve a request without a lifespan in each of many loops, whose client of the store swallows."""
    kit = kit_in_memory()
    kit.on("usage.threshold")(ignore)  # Its task asks the store at once.

    async def serve_one() -> None:
        client = patched.enter_context(swallowing_redis())  # Also while the loop closes.
        await serve_once(kit)
        while "meterkit events" not in client.callers:
            client.called.clear()
            await client.called.wait()

    with ExitStack() as patched:
        for _ in range(times):
            run(loop, serve_one)
            patched.close()
    assert kit.store.lanes == {}


@each_loop
def test_i7_a_loop_closes_if_a_client_swallows_cancellation(loop: str) -> None:
    """F-209: as under a TestClient without a lifespan, whose loops live for one request."""
    close_many_loops(loop, 3)


@pytest.mark.whole
@each_loop
def test_i7_2000_loops_close_if_a_client_swallows_cancellation(loop: str) -> None:
    """F-209."""
    close_many_loops(loop, 2_000)


@pytest.mark.whole
@each_loop
def test_i7_2000_loops_close_with_a_short_store_timeout(loop: str) -> None:
    """F-209: every few of them did not, with redis-py as it is, on a machine with work."""
    kit = kit_in_memory(store_timeout=0.02)

    async def serve_one() -> None:
        kit.store.degraded.note()
        await serve_once(kit)

    for _ in range(2_000):
        run(loop, serve_one)
    assert kit.store.lanes == {}


@each_loop
def test_i7_a_loop_closes_if_a_handler_swallows_cancellation(loop: str) -> None:
    """F-209: the loop waited for the next hour of the handler."""

    async def swallow() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    run(loop, lambda: begin_handling(kit_in_memory(), swallow))


# What a caller awaits itself.


async def the_usage(kit: MeterKit) -> None:
    await kit.usage("acme")


async def a_link(kit: MeterKit) -> None:
    await kit.customers.link("acme", "cus_acme")


async def a_commands_pass(kit: MeterKit) -> None:
    async with kit.flusher() as flusher:
        await flusher.flush()


CALLS: Final = (the_usage, a_link, a_commands_pass)
each_call = pytest.mark.parametrize("call", CALLS)


@each_loop
@each_call
def test_i7_a_call_cancelled_while_connecting_is_cancelled(
    call: Callable[[MeterKit], Coroutine[Any, Any, None]], loop: str
) -> None:
    """F-209: it raised StoreError, and its task went on."""

    async def story() -> None:
        async with kit_in_memory(stripe_api_key=STRIPE_KEY, flush=False) as kit:
            with swallowing_redis() as client:
                calling = asyncio.ensure_future(call(kit))
                await client.called.wait()
                await assert_is_cancelled(calling)
                client.called.clear()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call(kit), 0.01)
                with anyio.move_on_after(0.01) as scope:
                    await call(kit)
                assert scope.cancelled_caught

    run(loop, story)


@each_loop
def test_i7_a_call_of_stripe_that_is_cancelled_raises_that(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-209."""
    is_asked = asyncio.Event()

    async def fail(*_: object, **__: object) -> NoReturn:
        is_asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise aiohttp.ClientConnectionError("no connection")

    async def story() -> None:
        async with kit_in_memory(stripe_api_key=STRIPE_KEY, flush=False) as kit:
            monkeypatch.setattr(aiohttp.ClientSession, "_request", fail)
            asking = asyncio.ensure_future(kit.subscriptions.create("acme", "pro"))
            await is_asked.wait()
            await assert_is_cancelled(asking)

    run(loop, story)


@each_loop
def test_i7_a_start_that_is_cancelled_leaves_nothing(loop: str) -> None:
    async def story() -> None:
        kit = kit_in_memory()
        before = asyncio.all_tasks()
        with swallowing_redis() as client:
            starting = asyncio.ensure_future(kit.start())
            await client.called.wait()
            await assert_is_cancelled(starting)
        assert (asyncio.all_tasks(), kit.store.lanes) == (before, {})

    run(loop, story)


@each_loop
@pytest.mark.parametrize("by", ["a task", "a scope of anyio"])
def test_i7_a_stop_that_is_cancelled_closes_all_and_raises_that(by: str, loop: str) -> None:
    async def story() -> None:
        kit, before, may_end = kit_in_memory(), asyncio.all_tasks(), asyncio.Event()

        async def wait() -> None:
            await may_end.wait()

        await begin_handling(kit, wait)
        stopping = asyncio.ensure_future(stop(kit, by))
        await asyncio.sleep(0.01)
        if by == "a task":
            stopping.cancel()
        await asyncio.sleep(0.01)
        assert not stopping.done()
        may_end.set()
        if by == "a task":
            with pytest.raises(asyncio.CancelledError):
                await stopping
        else:
            await stopping
        assert (asyncio.all_tasks(), kit.store.lanes) == (before, {})

    run(loop, story)


async def stop(kit: MeterKit, by: str) -> None:
    if by == "a task":
        await kit.stop()
        return
    with anyio.CancelScope() as scope:
        scope.cancel()
        await kit.stop()
        await anyio.lowlevel.checkpoint()  # A scope delivers at the next wait.
    assert scope.cancelled_caught


@each_loop
def test_i7_a_handler_may_stop_its_kit(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping waits for handlers, and this one for the stop."""
    monkeypatch.setattr("meterkit.assembly._HANDLERS_S", 0.05)
    monkeypatch.setattr("meterkit.notify.event_dispatcher._LATE_S", 0.05)

    async def story() -> None:
        kit, has_stopped = kit_in_memory(), asyncio.Event()

        async def end() -> None:
            try:
                await kit.stop()
            finally:
                has_stopped.set()

        await begin_handling(kit, end)
        await has_stopped.wait()
        assert kit.store.lanes == {}

    run(loop, story)
