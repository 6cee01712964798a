"""What tests of faults share: a kit, requests without a server, and a server that refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from starlette.types import ASGIApp, Message, Scope

from drivers.counters import flat_of
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import Catalog, loads
from meterkit.decisions.keys import FORMAT
from meterkit.redis.connection import pack_each
from meterkit.redis.lane import Lane
from meterkit.redis.scripts import Script
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import UsedQuantities
from servers.stores import Server

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens: {unit: token}
routes:
  - {match: "GET /deny", consume: {requests: 1}, on_store_failure: deny}
  - {match: "GET /many", consume: {requests: 1, tokens: 10}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 9_000_000/day, concurrency: 5_000, included: 9_000_000, overage: deny}
      tokens: {included: 900_000_000_000, overage: deny}
  other:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 8_000_000/day, concurrency: 4_000, included: 8_000_000, overage: deny}
  narrow:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: [100/minute, 3/hour], concurrency: 2, included: 50, overage: deny}
      tokens: {included: 25, overage: deny}
"""

_DEADLINE_S: Final = 120.0
_TICK_S: Final = 0.01


def catalog(text: str = PLANS) -> Catalog:
    return loads(text)


def kit_at(url: str, **settings: Any) -> MeterKit:
    """A kit of :data:`PLANS`, with few shards so that customers share streams."""
    plans: Catalog = settings.pop("plans", None) or catalog()
    settings.setdefault("shards", 4)
    return MeterKit(plans, redis_url=url, **settings)


async def eventually(what: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait until something holds; fail where it does not within a generous time."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        holds = what()
        if not isinstance(holds, bool):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, "it did not come to hold"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def loop_clock() -> AsyncGenerator[Callable[[], float]]:
    """A clock for upper bounds: it counts timers of this event loop, of 10 ms each.

    A busy machine delays these timers as it delays what is measured, so that the bound holds there too.
    """
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(_TICK_S)
            ticks += 1

    ticking = asyncio.create_task(tick())
    try:
        yield lambda: ticks * _TICK_S
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


def lane_of(kit: MeterKit) -> Lane:
    return kit.store.lanes[asyncio.get_running_loop()]


async def settled(kit: MeterKit) -> None:
    """Wait until the store has acknowledged every settlement of this loop."""
    lane = lane_of(kit)
    await eventually(lambda: lane.connected and lane.unsettled == 0)


def settle(kit: MeterKit, customer: str, *, times: int = 1, **quantities: int) -> None:
    """Record without waiting, as the end of a request does; or as the ends of many do."""
    view = kit.store.cache.get(customer)
    for _ in range(times):
        kit.store.settle(lane_of(kit), Settlement(view, used=UsedQuantities(recorded=quantities)))


async def renew_holds(lane: Lane) -> None:
    """Renew at once all holds of a slot that is over; the lane does so a few at a time."""
    for holder in tuple(lane.live):
        while holder.is_due() and holder in lane.live:
            await holder.renew()


async def before_script(kit: MeterKit, name: str, do: Callable[[], Awaitable[object]]) -> None:
    """Have something done between what a kit's administration has read and the script that goes by it."""
    admin, late = await kit.store.admin(), kit.store.scripts[name]
    run = admin.run

    async def run_late(script: Script, keys: list[str], *arguments: str | int) -> Any:
        if script is late:
            await do()
        return await run(script, keys, *arguments)

    admin.run = run_late  # type: ignore[method-assign] # the moment is hit by no other means


async def before_asking(kit: MeterKit, do: Callable[[], Awaitable[object]]) -> Callable[[], None]:
    """Have something done before each decision that a kit asks for; what ends that."""
    lane = await kit.store.lane()
    ask = lane.ask

    async def ask_late(call: Any) -> Any:
        await do()
        return await ask(call)

    def end() -> None:
        lane.ask = ask  # type: ignore[method-assign] # as it was

    lane.ask = ask_late  # type: ignore[method-assign] # the moment is hit by no other means
    return end


async def used(kit: MeterKit, customer: str, meter: str = "requests") -> tuple[int, int]:
    found = (await kit.usage(customer))["meters"][meter]
    return found["recorded"], found["held"]


def counters(server: Server, customer: str) -> dict[str, str]:
    """The numbers of a customer's counters as the store has them."""
    client: Any = server.client()
    found: dict[bytes, bytes] = {}
    with client:
        for key in client.keys(f"*:c:{customer}"):
            found = client.hgetall(key)
    return flat_of({name.decode(): packed for name, packed in found.items()})


def in_flight(server: Server, customer: str) -> int:
    fields = counters(server, customer).items()
    return sum(int(value) for name, value in fields if re.fullmatch(r".{4}[nN]", name))


def open_sockets() -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def evalsha_calls(server: Server) -> int:
    return sum(stats(server, name)["calls"] for name in ("evalsha", "eval"))


def stats(server: Server, command: str) -> dict[str, int]:
    """How often the server was asked for a command, and how often it refused."""
    found = server.command("INFO", "commandstats").get(f"cmdstat_{command}", {})
    return {name: int(found.get(name, 0)) for name in ("calls", "failed_calls")}


async def answer_ok(scope: Scope, receive: Any, send: Any) -> None:
    del receive
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def metered(kit: MeterKit, app: ASGIApp = answer_ok) -> MeterMiddleware:
    return MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))


@dataclass
class Client:
    """One client of an app that is called without a server."""

    app: ASGIApp
    messages: list[Message] = field(default_factory=list["Message"])

    async def get(self, customer: str, path: str = "/") -> int:
        self.messages = []
        return await self.ask(http_scope(customer, path))

    async def ask(self, scope: Scope) -> int:
        await self.app(scope, _hang, self._take)
        return self.status

    @property
    def status(self) -> int:
        return int(next(m["status"] for m in self.messages if m["type"] == "http.response.start"))

    async def _take(self, message: Message) -> None:
        self.messages.append(message)


async def ask(kit: MeterKit, customer: str, path: str = "/") -> int:
    return await Client(metered(kit)).get(customer, path)


def http_scope(customer: str, path: str = "/") -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"x-customer-id", customer.encode("utf-8", "surrogateescape"))],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def _hang() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


class Echo:
    def __init__(self, name: str) -> None:
        self.name = name
        self.view: Any = None
        self.orphans: list[Any] = []
        # The clock is added as the last argument.
        self.packed: tuple[bytes, ...] = (b"*5\r\n", pack_each(["EVAL", "return {0, ARGV[1]}", 0, name]))

    def on_unclaimed_reply(self, reply: Any) -> None:
        self.orphans.append(reply)


@dataclass
class FakeRedis:
    """Listens like Redis and answers each request with what ``answer`` makes of its words."""

    answer: Callable[[list[bytes]], bytes]
    asked: list[str] = field(default_factory=list[str])
    port: int = 0

    async def __aenter__(self) -> Self:
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while head := await reader.readline():
                words: list[bytes] = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                self.asked.append(words[0].decode().upper())
                writer.write(self.answer(words))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client went away.
        finally:
            writer.close()
            del self._connections[task]


def like_redis(*, evalsha: Callable[[list[bytes]], bytes]) -> Callable[[list[bytes]], bytes]:
    """Answers of a server that can be connected to; ``evalsha`` answers the scripts."""

    def answer(words: list[bytes]) -> bytes:
        match words[0].upper():
            case b"EVALSHA" | b"EVAL":
                return evalsha(words)
            case b"HMGET":
                return b"*2\r\n$1\r\n%d\r\n$1\r\n4\r\n" % FORMAT
            case b"HSETNX":
                return b":0\r\n"
            case b"SCRIPT":
                return b"$40\r\n" + b"0" * 40 + b"\r\n"
            case _:
                return b"+OK\r\n"

    return answer


@contextlib.contextmanager
def stopped(server: Server) -> Generator[None]:
    server.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)  # A busy machine may let it run on for a while.
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@contextlib.contextmanager
def killing(server: Server) -> Generator[None]:
    """A server that ends all connections in one go with what the block sends it.

    Of that it applies the first part, and the replies go down with the connections; the rest it never reads.
    The block must give the event loop a turn to send it.
    """
    with socket.create_connection(("127.0.0.1", server.port)) as killer:
        killer.sendall(b"PING\r\n")
        assert killer.recv(7) == b"+PONG\r\n"
        # It wrote that, and may not have turned from the killer yet: then it would read of it first.
        server.command("PING")
        with stopped(server):
            yield
            killer.sendall(b"CLIENT KILL TYPE normal\r\n")


def left_in_doubt(server: Server, producers: Iterable[Any]) -> tuple[int, int]:
    """What producers whose connection was killed had sent: applied without an answer, and not applied."""
    unanswered = unapplied = 0
    for producer in producers:
        # One that was fenced before it applied anything is kept as c-1.
        applied = max(0, int((server.command("GET", producer.key) or "0").removeprefix("c")))
        unanswered += applied - producer.acknowledged
        unapplied += producer.sequence - applied
    return unanswered, unapplied
