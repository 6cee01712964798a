"""A world in one event loop with virtual time: kits, their store and Stripe go by the loop's clock.

Nothing in it waits: the emulated Stripe answers within the process, the store is ``memory://``, and the loop
jumps to the next timer. A year takes seconds. Processes are contexts: one that is killed reaches neither the
store nor Stripe any more, whatever its tasks still try.

Sockets and other processes cannot follow a virtual clock: the loop would jump over their answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

import fakeredis
import looptime
import pytest
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.delivery import STRIPE_KEY
from drivers.emulated_account import unpaced
from drivers.near_stripe import answer_of, ask_app, stripe_scope
from meterkit import MeterKit
from meterkit.catalog import Catalog
from meterkit.delivery.period_closer import PeriodCloser
from meterkit.starlette import stripe_webhook
from meterkit.stripe.api import StripeApi
from meterkit.stripe.request import HttpResponse, RequestResult
from meterkit.subscriptions.webhooks.periodic_sync import EventSweeper
from meterkit.subscriptions.webhooks.sync_queue import SyncQueue
from meterkit.testing import StripeEmulator

_T = TypeVar("_T")

SECRET: Final = "whsec_test_4eC39HqLyjWDarjtT1zdp7dc"
HOOK: Final = "http://app/webhooks/stripe"
_CANCEL_AGAIN_S: Final = 0.1
STRIPE: Final = "http://stripe.emulated"
_LOADED: Final = (
    *("delivery.flusher", "delivery.sender", "delivery.flusher_setup", "stripe.http", "stripe.sdk"),
    *("subscriptions.webhooks.sync_worker", "delivery.summaries", "delivery.stripe_v1"),
)


class Killed(Exception):  # noqa: N818 - not an error: what the story asked for
    """The process that was asked is dead."""


class Refused(Exception):  # noqa: N818 - not an error: a person meets it, too
    """Stripe refuses what a person asks of it."""


class Process:
    """A process: a kit, and all that it does in a context of its own.

    It dies at the step ``dies_at``: before or after a call to Stripe, or before a command to the store.
    """

    def __init__(self, kit: MeterKit) -> None:
        self.kit = kit
        self.steps = self.dies_at = 0
        self.trace: list[str] = []
        self.is_alive = True
        self.tasks = WeakSet[asyncio.Task[Any]]()
        self._context = copy_context()
        self._context.run(_process.set, self)
        self._dead = asyncio.get_running_loop().create_future()
        self._app = stripe_webhook(kit)
        self._api = StripeApi(kit.settings)
        self._closer = PeriodCloser(kit.store, lambda: self._api)
        self._sweeper = EventSweeper(kit.store, lambda: self._api, SyncQueue(kit.store))

    def step(self, name: str) -> bool:
        """Make a step; whether the process has survived until here. A dead one is not answered."""
        if self.is_alive:
            self.steps += 1
            self.trace.append(name)
            if self.steps == self.dies_at:
                self.kill()
        return self.is_alive

    def kill(self) -> None:
        self.is_alive = False
        if not self._dead.done():
            self._dead.set_result(None)

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Have it do something. Raises :class:`Killed` where it dies meanwhile, or is dead."""
        if not self.is_alive:
            work.close()
            raise Killed
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        await asyncio.wait({task, self._dead}, return_when=asyncio.FIRST_COMPLETED)
        if not self.is_alive:
            await self._bury()
            await asyncio.gather(task, return_exceptions=True)
            raise Killed
        return task.result()

    async def _bury(self) -> None:
        """End its tasks, which can have no effect any more."""
        # Again and again: what they try as they end is not answered, either.
        while tasks := [task for task in self.tasks if not task.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_S)

    async def stop(self) -> None:
        """End it in peace, or what is left of one that was killed, maybe as it stops."""
        with suppress(Killed):
            await self.run(self.kit.store.stop())
        self.kill()
        await self._bury()

    async def turn(self) -> None:
        """Do once what its background tasks do again and again."""
        await self.run(self._turn())

    async def _turn(self) -> None:
        await self.kit.webhooks.work_off()
        await self.kit.flush()
        await self._closer.run_once()
        await self._sweeper.run_once()

    async def take(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.is_alive:
            raise Killed
        await self.run(_awaited(self._app(scope, receive, send)))


_process: ContextVar[Process | None] = ContextVar("_process", default=None)


class World:
    """Processes of one service, its store, Stripe, and a clock for all.

    ``process`` is alive now, and ``elder`` one more that still has the plans file of before. Lost webhooks
    are answered with 200 and forgotten; those that are away Stripe delivers later.
    """

    def __init__(self, catalog: Catalog, start: datetime, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        start_s = start.timestamp() - loop.time()
        self._catalog, self._settings = catalog, settings
        self.clock: Callable[[], float] = lambda: start_s + loop.time()
        self.stripe_is_away = self.hooks_are_away = self.hooks_are_lost = False
        self.emulator = StripeEmulator(clock=self.clock, automatic_webhooks=False)
        self.emulator.add_endpoint(HOOK, secret=SECRET, app=self._take)
        self.process: Process
        self.elder: Process | None = None

    @property
    def kit(self) -> MeterKit:
        return self.process.kit

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    async def begin(self) -> Process:
        given: dict[str, Any] = {
            "flush": False,
            "shards": 1,
            "store_timeout": 10.0,
            "stripe_api_key": STRIPE_KEY,
            "stripe_webhook_secret": SECRET,
            "stripe_api_base": STRIPE,
            **self._settings,
        }
        kit = MeterKit(self._catalog, clock=self.clock, redis_url="memory://", **given)
        self.process = Process(kit)
        await self.process.run(kit.store.start())
        return self.process

    async def deploy(self, catalog: Catalog, *, beside: bool = False) -> None:
        """Start a process with another plans file; the one of before stops, unless it goes on beside it."""
        before, self._catalog = self.process, catalog
        await self.end_elder()
        await self.begin()
        self.elder = before
        if not beside:
            await self.end_elder()

    async def end_elder(self) -> None:
        """Stop the process that has the plans file of before."""
        if self.process.kit.catalog is not self._catalog:
            self.alternate()
        if self.elder is not None:
            elder, self.elder = self.elder, None
            await elder.stop()

    def alternate(self) -> None:
        """Have the other process take what comes next, as behind a load balancer."""
        if self.elder is not None:
            self.process, self.elder = self.elder, self.process

    async def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return await self.process.run(work)

    async def sleep(self, **span: float) -> None:
        """Let time pass, as much as is given like to a timedelta."""
        await asyncio.sleep(timedelta(**span).total_seconds())

    async def until(self, instant: datetime) -> None:
        await asyncio.sleep(max(0.0, instant.timestamp() - self.clock()))

    async def tell(self, *, twice: bool = False) -> None:
        """Have Stripe deliver its webhooks, where they get through."""
        self.emulator.advance()
        if not self.hooks_are_away:
            due = await self.emulator.deliver()
            if twice and due:
                await self.emulator.deliver(*(delivery.event for delivery in reversed(due)))

    async def turn(self) -> None:
        """Have Stripe do what is due and tell of it, and the process do what its background tasks do."""
        await self.tell()
        await self.process.turn()

    async def ask(self, method: str, path: str, **params: str) -> dict[str, Any]:
        """Ask Stripe as a person does in its Dashboard, past the kit. Raises :class:`Refused`."""
        form = "&".join(f"{name}={value}" for name, value in params.items()).encode()
        query = "" if method == "POST" else f"?{form.decode()}"
        headers = {"Authorization": f"Bearer {STRIPE_KEY}"}
        answer = await _http(
            self.emulator.app, method, path + query, headers, form if method == "POST" else None
        )
        found: dict[str, Any] = json.loads(answer.body)
        if answer.status != 200:
            raise Refused(f"{method} {path} {params}: {found['error']['message']}")
        return found

    async def list(self, path: str, **params: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = await self.ask("GET", path, limit="100", **params, **more)
            found += page["data"]
            if not page["has_more"]:
                return found
            more = {"starting_after": found[-1]["id"]}

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _answer_of(200)
        if not self.hooks_are_lost:
            answer = []

            async def keep(message: Message) -> None:
                answer.append(message)

            try:
                await self.process.take(scope, receive, keep)
            except Killed:  # What a dead process says is not heard.
                answer = _answer_of(503)
        for message in answer:
            await send(message)


_worlds: ContextVar[World] = ContextVar("_worlds")


class _InProcess:
    """Stands in for :class:`meterkit.stripe.http.HttpClient`: the emulator answers within the process."""

    def __init__(self, base: str, *, timeout_s: float) -> None:
        del base, timeout_s
        self._world = _worlds.get()

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> HttpResponse | RequestResult:
        process, what = _process.get(), f"{method} {path.partition('?')[0]}"
        await _survive(process, f"before {what}")
        if self._world.stripe_is_away:
            return RequestResult(failure="not_sent", message="ConnectionRefusedError")
        answer = await _http(self._world.emulator.app, method, path, headers, body)
        await _survive(process, f"after {what}")
        return answer

    async def close(self) -> None:
        """There is nothing to close."""


async def _http(
    app: ASGIApp, method: str, target: str, headers: Mapping[str, str], body: bytes | None
) -> HttpResponse:
    scope = stripe_scope("stripe.emulated", method, target, headers)
    return answer_of(await ask_app(app, scope, body, asyncio.Event()))


class _DirectConnection:
    """A connection to a server of fakeredis, without requests and replies in bytes."""

    def __init__(self, server: Any) -> None:
        client: Any = fakeredis.FakeRedis(server=server, version=(7, 0))
        self._connection = client.connection_pool.get_connection()
        self._socket: Any = self._connection._sock

    def execute_command(self, *parts: Any) -> Any:
        self._socket._process_command([_encoded(part) for part in parts])
        reply = self._socket.responses.get_nowait()
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def close(self) -> None:
        """There is nothing to close."""


class _Client(fakeredis.FakeAsyncRedis):
    """A client of ``memory://`` whose commands are executed at once; they are steps of the process."""

    def __init__(self, *, server: Any) -> None:
        inherited: Any = super()
        inherited.__init__(server=server, version=(7, 0))
        self._direct = _DirectConnection(server)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await _survive(_process.get(), str(args[0]))
        return self._execute(args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        inherited: Any = super()
        pipeline = inherited.pipeline(*args, **options)

        async def execute(*, raise_on_error: bool = True) -> list[Any]:
            await _survive(_process.get(), "pipeline")
            stack, pipeline.command_stack = pipeline.command_stack, []
            replies = [self._reply(*command) for command in stack]
            if raise_on_error and (errors := [reply for reply in replies if isinstance(reply, RedisError)]):
                raise errors[0]
            return replies

        pipeline.execute = execute
        return pipeline

    def _reply(self, parts: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return self._execute(parts, options)
        except RedisError as error:
            return error

    def _execute(self, parts: tuple[Any, ...], options: dict[str, Any]) -> Any:
        name = parts[0]
        reply = self._direct.execute_command(*name.split(), *parts[1:])
        options.pop("keys", None)
        callback: Any = self.response_callbacks.get(name)
        return reply if callback is None else callback(reply, **options)


def _encoded(part: Any) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


async def _survive(process: Process | None, name: str) -> None:
    """Make a step; one that is the last is never over."""
    if process is not None and not process.step(name):
        await asyncio.get_running_loop().create_future()


def _answer_of(status: int) -> list[Message]:
    return [
        {"type": "http.response.start", "status": status, "headers": []},
        {"type": "http.response.body", "body": b""},
    ]


async def _awaited(work: Awaitable[_T]) -> _T:
    return await work


def _middle(least: float, most: float) -> float:
    return (least + most) / 2


def _patch(patched: pytest.MonkeyPatch, world: World) -> None:
    """Have all go by the loop's clock, and reach Stripe within the process."""
    memory, loop = import_module("meterkit.redis.memory"), asyncio.get_running_loop()
    for name in _LOADED:
        import_module(f"meterkit.{name}")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "meterkit":
            if getattr(module, "monotonic", None) is time.monotonic:
                patched.setattr(module, "monotonic", loop.time)
            if hasattr(module, "_jitter"):
                # What draws a pause at random draws its middle here: a story goes the same way each time.
                patched.setattr(module, "_jitter", _middle)
    patched.setattr("meterkit.stripe.http.HttpClient", _InProcess)
    unpaced(patched)
    import_module("meterkit.stripe.api")._sdk()  # Threads know no virtual time.
    imported = import_module("meterkit.redis.daemon_thread")._imported
    imported |= {name: import_module(name) for name in ("meterkit.redis.admin", "meterkit.redis.memory")}
    # Nothing is held in these stories: what renews holds need not look every five seconds of a year.
    patched.setattr("meterkit.redis.lane._IDLE_MS", 86_400_000)

    def now(*_: object) -> float:
        return world.clock()

    def client(_: object) -> _Client:
        return _Client(server=memory._server)

    def begin(connection: Any, now: Callable[[], float]) -> None:
        made(connection, now)
        connection._client = _DirectConnection(memory._server)

    def flush(connection: Any) -> None:
        process = _process.get()
        if process is None or process.step("store"):
            execute(connection)

    # Keys end by the world's clock.
    patched.setattr(memory._ExpiryClock, "__call__", now)
    patched.setattr(memory, "admin_client", client)
    made, execute = memory.MemoryConnection.__init__, memory.MemoryConnection._flush
    patched.setattr(memory.MemoryConnection, "__init__", begin)
    patched.setattr(memory.MemoryConnection, "_flush", flush)


@asynccontextmanager
async def _world(
    patched: pytest.MonkeyPatch, catalog: Catalog, start: datetime, settings: Mapping[str, Any]
) -> AsyncGenerator[World]:
    world = World(catalog, start, **settings)
    _worlds.set(world)
    _patch(patched, world)
    await world.begin()
    try:
        yield world
    finally:
        await world.end_elder()
        await world.process.stop()


def run(
    patched: pytest.MonkeyPatch,
    story: Callable[[World], Awaitable[_T]],
    *,
    catalog: Catalog,
    start: datetime,
    **settings: Any,
) -> _T:
    """Live a story in a world of its own; what comes of it."""

    async def lived() -> _T:
        async with _world(patched, catalog, start, settings) as world:
            return await story(world)

    import_module("meterkit.redis.memory").empty()
    with patched.context() as within, asyncio.Runner(loop_factory=_loop) as runner:
        del within
        return runner.run(lived())


def _loop() -> asyncio.AbstractEventLoop:
    loop = looptime.new_event_loop(noop_cycles=0)
    # A nanosecond vanishes in a float of many days: a timer would never be due.
    cast("Any", loop)._clock_resolution = 1e-6
    loop.set_task_factory(_task)
    return loop


def _task(
    loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None, **options: Any
) -> asyncio.Task[Any]:
    """A task, which its process knows."""
    task = asyncio.Task(work, loop=loop, context=context, **options)
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.tasks.add(task)
    return task
