"""How a kit begins, changes and ends: without a lifespan, with new plans, and on trio."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.app import HEADERS, SentMessages, hello, http_scope, ignore, no_more
from drivers.delivery import NOW, RunningClock, kit_for, until
from drivers.llm_apps import listening
from faults.refusals import Client, eventually, kit_at, loop_clock, metered
from meterkit import MeterKit, MeterkitError, MeterMiddleware, PlansError, identify
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


def wrapped(kit: MeterKit, app: ASGIApp = hello) -> MeterMiddleware:
    return MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))


def started(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("no lifespan has started meterkit")


@asynccontextmanager
async def selling(store_url: str, **settings: Any) -> AsyncGenerator[tuple[MeterKit, StripeEmulator]]:
    """A kit that nobody starts, which would deliver at once; the customer is linked."""
    clock = RunningClock()
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    async with emulator.serve() as url:
        given: dict[str, Any] = {"flush": None, "flush_interval": 0.05} | settings
        kit = kit_for(store_url, url, clock=clock, **given)
        # A kit of its own, in another loop: what links customers is seldom the app.
        await asyncio.to_thread(lambda: asyncio.run(link(kit_for(store_url, url, clock=clock))))
        try:
            yield kit, emulator
        finally:
            await kit.stop()


async def link(kit: MeterKit) -> None:
    async with kit:
        await kit.customers.link("acme", "cus_acme")


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_the_first_request_starts_the_flusher_too(
    lifespan: Any, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-4: usage was counted, and never delivered, and nothing said so."""
    async with selling(store_url) as (kit, emulator):
        # The lifespan of an app does not reach what is mounted in it.
        app = Starlette(routes=[Mount("/app", wrapped(kit))]) if lifespan == "on" else wrapped(kit)
        async with (
            listening(app, lifespan=lifespan) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
        ):
            for _ in range(3):
                assert (await client.get("/app/x")).status_code == 200
            await until(lambda: emulator.accepted("cus_acme", "api_requests") == 3)
    assert started(caplog) == 1
    assert "delivers to Stripe" in caplog.text


async def test_first_requests_at_once_start_it_once(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-4: the store of this loop may be connected although nothing has started the kit."""
    before = asyncio.all_tasks()
    async with selling(store_url) as (kit, emulator):
        assert (await kit.consume("acme", "requests")).allowed
        assert kit.store.lanes
        app = wrapped(kit)
        await asyncio.gather(*(app(http_scope(), no_more, ignore) for _ in range(50)))
        flushers = [task for task in asyncio.all_tasks() - before if task.get_name() == "meterkit flush"]
        assert len(flushers) == 1
        await until(lambda: emulator.accepted("cus_acme", "api_requests") == 51)
    assert started(caplog) == 1


async def test_later_starts_and_stops_balance(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-4: whoever starts the kit later stops only what is theirs."""
    async with selling(store_url, flush=False) as (kit, _):
        app = wrapped(kit)
        async with kit:
            await app(http_scope(), no_more, ignore)
        assert started(caplog) == 0
        await app(http_scope(), no_more, ignore)
        lane = kit.store.lanes[asyncio.get_running_loop()]
        for _ in range(2):
            async with kit:
                await app(http_scope(), no_more, ignore)
            async with listening(wrapped(kit, Starlette(routes=[Mount("/", hello)])), lifespan="on"):
                await app(http_scope(), no_more, ignore)
            assert kit.store.lanes == {asyncio.get_running_loop(): lane}
        await eventually(lambda: lane.unsettled == 0)
        assert (await kit.usage("acme"))["meters"]["requests"]["recorded"] == 6
    assert started(caplog) == 1
    assert not kit.store.lanes


async def test_each_loop_starts_and_takes_it_along(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with selling(store_url) as (kit, emulator):
        barrier = threading.Barrier(3)

        async def serve() -> None:
            await wrapped(kit)(http_scope(), no_more, ignore)
            barrier.wait()  # All three loops serve at once.

        threads = [threading.Thread(target=lambda: asyncio.run(serve())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert not kit.store.lanes
        assert started(caplog) == 1
        # What their ends left is delivered by whoever is next.
        await wrapped(kit)(http_scope(), no_more, ignore)
        await until(lambda: emulator.accepted("cus_acme", "api_requests") == 4)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_i3_i9_only_first_requests_wait_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F-310: until its first reply a process waits for the start timeout, once; then the breaker is open."""
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.01)
    kit = kit_for(
        *("redis://127.0.0.1:1/0", "http://127.0.0.1:1"),
        clock=time.time,
        store_timeout=0.05,
        start_timeout=0.5,
    )

    async def ask() -> float:
        """The time that a request takes, in timers of the loop."""
        async with loop_clock() as passed_s:
            await wrapped(kit)(http_scope(), no_more, ignore)
            return passed_s()

    async def serve() -> float:
        took_s = await ask()
        await kit.stop()
        return took_s

    began_s = time.monotonic()
    assert max(await asyncio.gather(*(ask() for _ in range(5)))) < 4
    assert time.monotonic() - began_s > 0.45
    # Later requests do not wait, nor do those of another event loop while this one finds the store down.
    assert await ask() < 0.4
    assert await asyncio.to_thread(lambda: asyncio.run(serve())) < 0.4
    await kit.stop()
    assert await asyncio.to_thread(lambda: asyncio.run(serve())) < 0.4


async def test_a_stop_before_the_first_reply_ends_all_requests() -> None:
    kit = kit_for("redis://127.0.0.1:1/0", "http://127.0.0.1:1", clock=time.time, start_timeout=300.0)
    before = asyncio.all_tasks()
    asked = [asyncio.create_task(wrapped(kit)(http_scope(), no_more, ignore)) for _ in range(3)]
    await until(lambda: bool(kit.store.lanes))
    await kit.stop()
    await asyncio.gather(*asked)
    assert asyncio.all_tasks() == before


# Plans are read again without a restart: by a call, or when the file has changed.
PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 2, overage: deny}}}
"""
MORE = PLANS.replace("included: 2", "included: 4")


def put(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    path = tmp_path / "plans.yaml"
    path.write_text(PLANS)
    return path


def kit_of(plans: Path, store_url: str = "memory://") -> MeterKit:
    return MeterKit(plans, redis_url=store_url, clock=Clock(NOW), shards=4, flush=False)


async def test_i4_new_limits_bind_the_next_decision(plans: Path, store_url: str) -> None:
    async with kit_of(plans, store_url) as kit:
        client = Client(wrapped(kit))
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]
        put(plans, MORE)
        assert await kit.reload()
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]
        assert (await kit.usage("acme"))["meters"]["requests"]["included"] == 4


async def test_a_bad_file_is_refused_and_the_old_one_stays(plans: Path) -> None:
    async with kit_of(plans) as kit:
        put(plans, MORE.replace("overage: deny", "overage: dany"))
        with pytest.raises(PlansError, match="did you mean 'deny'"):
            await kit.reload()
        await asyncio.to_thread(plans.unlink)
        with pytest.raises(MeterkitError, match=r"plans\.yaml"):
            await kit.reload()
        client = Client(wrapped(kit))
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]


async def test_a_file_that_means_the_same_changes_nothing(plans: Path) -> None:
    async with kit_of(plans) as kit:
        before = kit.catalog
        put(plans, "# A comment.\n" + PLANS)
        assert not await kit.reload()
        assert kit.catalog is before


async def test_a_hold_is_captured_though_its_meter_is_gone(plans: Path, store_url: str) -> None:
    async with kit_of(plans, store_url) as kit:
        async with kit.reserve("acme", {"requests": 2}) as reservation:
            put(plans, PLANS.replace("requests", "calls"))
            assert await kit.reload()
            await reservation.capture({"requests": 1})
        put(plans, PLANS)
        assert await kit.reload()
        found = (await kit.usage("acme"))["meters"]["requests"]
        assert (found["recorded"], found["held"]) == (1, 0)


async def test_a_change_of_the_file_is_noticed(
    plans: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.catalog.plans_file_watcher._CHECK_EVERY_S", 0.005)
    with caplog.at_level(logging.INFO, "meterkit"):
        async with kit_of(plans) as kit:
            put(plans, "schema: 2")
            await eventually(lambda: "has changed and is refused" in caplog.text)
            assert kit.catalog.plans["free"].entitlements["requests"].included == 2
            put(plans, MORE)
            await eventually(lambda: kit.catalog.plans["free"].entitlements["requests"].included == 4)
            await eventually(lambda: "plans.yaml has changed and is active" in caplog.text)


# On trio, which meterkit does not run on, the app is refused at its start, in words that say so. F-5.
WORDS = "asyncio and uvloop.*trio is not supported.*hypercorn: -k asyncio"


def run(app: Any, scope: Scope, receive: Receive) -> list[Message]:
    """Call an app once; what it has sent, also where it fails."""
    sent = SentMessages()

    async def call() -> None:
        with pytest.raises(MeterkitError, match=WORDS):
            await app(scope, receive, sent)

    trio.run(call)
    return sent


async def waits_for_startup(_: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def startup() -> Message:
    return {"type": "lifespan.startup"}


def test_on_trio_the_lifespan_fails_with_words() -> None:
    # Each request was a 500, "no running event loop".
    (message,) = run(metered(kit_at("memory://"), waits_for_startup), {"type": "lifespan"}, startup)
    assert message["type"] == "lifespan.startup.failed"
    assert "trio is not supported" in message["message"]


def test_on_trio_every_request_and_the_kit_say_so() -> None:
    kit = kit_at("memory://")
    for _ in range(2):
        assert run(metered(kit), http_scope("/deny"), no_more) == []

    async def use() -> None:
        calls = (kit.check("acme", "requests"), kit.record("acme", "requests", 1), kit.usage("acme"))
        for coroutine in (kit.start(), kit.stop(), kit.begin(), *calls):
            with pytest.raises(MeterkitError, match=WORDS):
                await coroutine

    trio.run(use)
