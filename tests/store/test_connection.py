"""One connection: many requests in flight, each with its own reply, whatever is lost or cancelled."""

# Internals: whose reply is whose on one connection, and when it is made again, which kits hide.

# pyright: reportPrivateUsage=false
# A test ends the connection of a reconnector.

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import looptime
import pytest

from faults.proxy import TcpProxy
from faults.refusals import Echo, FakeRedis, eventually, kit_at, loop_clock, stopped
from meterkit.errors import StoreError
from meterkit.redis import scripts
from meterkit.redis.connection import Connection, OnEnd, Unsent, pack_each
from meterkit.redis.handshake import connect
from meterkit.redis.reconnector import AnyConnection, Reconnector
from meterkit.redis.url import Address
from servers.stores import Server, free_port

pytestmark = pytest.mark.anyio


class Increment(Echo):
    """Adds one to a key; the clock is added as the last word."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        words = ("EVAL", "return redis.call('INCR', KEYS[1])", 1, key)
        self.packed = (b"*%d\r\n%b" % (len(words) + 1, pack_each(words)),)


class Opener:
    """Opens a connection to a port, and notes how it ends."""

    def __init__(self, port: int | None, host: str = "127.0.0.1") -> None:
        self.address = Address(kind="tcp", host=host, port=port or 0)
        self.ended: list[Connection] = []
        self.unsent: Unsent = []

    async def __call__(self, *, timeout_s: float = 5.0) -> Connection:
        loaded = [scripts.load("fence_producer")]
        return await connect(self.address, loaded, timeout_s=timeout_s, on_end=self._on_end, clock=time.time)

    def _on_end(self, connection: Connection, why: str, unsent: Unsent) -> None:
        assert why
        self.ended.append(connection)
        self.unsent += unsent


@pytest.mark.each_loop
async def test_i9_all_requests_wait_one_timeout_of_the_oldest(valkey: Server) -> None:
    opener = Opener(valkey.port)
    connection = await opener(timeout_s=0.5)
    began = time.monotonic()
    with stopped(valkey):
        async with loop_clock() as passed_s:
            calls = [Echo(f"call-{n}") for n in range(20)]
            futures = [connection.call(call) for call in calls]
            results = await asyncio.gather(*futures, return_exceptions=True)
            assert passed_s() < 1.0
        assert time.monotonic() - began > 0.49
    assert {"the store did not answer within 0.5 s"} == {str(result) for result in results}
    assert {None} == {result.executed for result in results if isinstance(result, StoreError)}
    assert opener.ended == [connection]
    # What was sent is answered once the server goes on; each reply is matched with the call it names.
    await eventually(lambda: all(call.orphans for call in calls))
    assert [call.orphans for call in calls] == [[[0, b"call-%d" % n]] for n in range(20)]
    await connection.close()


@pytest.mark.each_loop
async def test_what_was_not_sent_was_certainly_not_executed(valkey: Server) -> None:
    opener = Opener(valkey.port)
    connection = await opener()
    sent = connection.call(Increment("mk:sent"))
    await asyncio.sleep(0)
    unsent = connection.call(Increment("mk:unsent"))
    connection.end("a test")
    with pytest.raises(StoreError, match="a test") as caught:
        await sent
    assert caught.value.executed is None
    # It is left to whoever has another connection.
    assert [future for future, _ in opener.unsent] == [unsent]
    assert not unsent.done()
    await eventually(lambda: valkey.command("GET", "mk:sent") == "1")
    assert valkey.command("GET", "mk:unsent") is None
    valkey.command("DEL", "mk:sent")
    await connection.close()


async def test_more_replies_than_requests_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def answer(words: list[bytes]) -> bytes:
        return b"*2\r\n:0\r\n$1\r\na\r\n+unasked\r\n" if words[0] == b"EVAL" else b"+OK\r\n"

    async with FakeRedis(answer) as fake:
        connection = await Opener(fake.port)()
        assert (await connection.call(Echo("one")))[1] == b"a"
        await eventually(lambda: not connection.open)
        assert "not RESP" in caplog.text
        await connection.close()


async def test_late_replies_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # F-11
    monkeypatch.setattr("meterkit.redis.connection._LATE_REPLIES_BYTES", 100_000)

    def answer(words: list[bytes]) -> bytes:
        return b"$900000\r\n" + b"x" * 200_000 if words[0] == b"EVAL" else b"+OK\r\n"

    async with FakeRedis(answer) as fake:
        connection = await Opener(fake.port)()
        asked = connection.call(Echo("endless"))
        await asyncio.sleep(0)
        connection.end("a test")
        with pytest.raises(StoreError):
            await asked
        await eventually(lambda: connection.is_closed)


@pytest.mark.parametrize("mode", ["refuse", "blackhole", "drop_reply"])
async def test_i9_connecting_ends_within_one_timeout(valkey: Server, mode: Any) -> None:
    async with TcpProxy(valkey.port) as proxy:
        opener = Opener(proxy.port)
        await proxy.set(mode)
        async with loop_clock() as passed_s:
            with pytest.raises(StoreError):
                await opener(timeout_s=1.0)
            assert passed_s() < 2.0
        await proxy.set("pass")
        connection = await opener()
        assert (await connection.call(Echo("again")))[1] == b"again"
        await connection.close()


# Names of the store's host: a resolver that hangs costs the app nothing, and is asked once at a time.


NAME = "localhost"


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The system's, but for one name: of that nothing is heard until it is let go."""
    ask = socket.getaddrinfo
    made = SimpleNamespace(addresses=["127.0.0.1"], answers=threading.Event(), asked=0)

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        if host != NAME:
            return ask(host, *arguments, **named)
        made.asked += 1
        made.answers.wait(30)
        return [found for address in made.addresses for found in ask(address, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield made
    made.answers.set()


@pytest.mark.each_loop
async def test_i9_a_hung_resolver_takes_no_thread(store_url: str, resolver: SimpleNamespace) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    url = f"redis://{NAME}:{urlsplit(store_url).port}/0"
    async with kit_at(url, store_timeout=0.25, start_timeout=1) as kit:
        admin = await kit.store.admin()
        with pytest.raises(StoreError, match="cannot be reached: no answer within"):
            await kit.consume("acme", "requests", 1)
        with pytest.raises(StoreError, match="Timeout connecting"):
            await admin.ask(admin.client.ping())
        async with asyncio.timeout(240):
            assert await asyncio.to_thread(lambda: "free") == "free"
        assert resolver.asked == 1
        # Nor does it keep the process from ending.
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "meterkit-names")
        resolver.answers.set()
        await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
        assert (await kit.consume("acme", "requests", 1)).allowed
        assert await admin.client.ping()


@pytest.mark.each_loop
async def test_the_addresses_of_a_name_are_tried_in_turn(store_url: str, resolver: SimpleNamespace) -> None:
    resolver.addresses = ["127.0.0.77", "127.0.0.1"]
    resolver.answers.set()
    connection = await Opener(urlsplit(store_url).port, NAME)()
    assert b"PONG" == await connection.ask("PING")
    await connection.close()
    with pytest.raises(StoreError, match=f"{NAME}:.* cannot be reached: Connection refused$"):
        await Opener(free_port(), NAME)()


@contextmanager
def silent_at(address: str, port: int) -> Generator[None]:
    """A host that answers nothing: no connection fits into its backlog any more."""
    with ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind((address, port))
        listening.listen(0)
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


async def test_i9_a_silent_address_hides_no_other(store_url: str, resolver: SimpleNamespace) -> None:
    """Each attempt began with it, and it took all the time: the store was never reached."""
    port = urlsplit(store_url).port or 0
    resolver.addresses = ["127.0.0.78", "127.0.0.79", "127.0.0.1"]
    resolver.answers.set()
    with silent_at("127.0.0.78", port), silent_at("127.0.0.79", port):
        async with kit_at(f"redis://{NAME}:{port}/0", store_timeout=0.25) as kit:
            await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
            admin = await kit.store.admin()
            assert await admin.ask(admin.client.ping())


# The reconnector by itself, in virtual time: how often it tries, what a start waits for, and what it logs.


class Line:
    """A connection that the test ends; its server owes an answer for so long."""

    open, is_unfit, is_closed, silent_s = True, False, True, 0.25

    async def close(self) -> None:
        """There is nothing to close."""


class Link:
    """A reconnector whose server is there, or not."""

    def __init__(self) -> None:
        self.is_there, self.tried = asyncio.Event(), list[float]()
        self.reconnector = Reconnector(self.connect, timeout_s=0.25, on_change=lambda _: None)

    async def connect(self, _: OnEnd, /) -> AnyConnection:
        self.tried.append(asyncio.get_running_loop().time())
        await self.is_there.wait()
        return cast("AnyConnection", Line())

    def end(self) -> None:
        assert self.reconnector.connection is not None
        self.is_there.clear()
        self.reconnector._on_end(self.reconnector.connection, "it is silent", [])

    async def back(self) -> None:
        self.is_there.set()
        await self.reconnector.connected()

    async def blip(self, after_s: float) -> None:
        """Go away after so many seconds, for 0.35; it is known after 0.25 more."""
        await asyncio.sleep(after_s)
        self.end()
        await asyncio.sleep(0.35)
        await self.back()


def run(story: Callable[[Link], Awaitable[None]], kind: type[Link] = Link) -> None:
    async def told() -> None:
        at = kind()
        await story(at)
        await at.reconnector.stop()

    with asyncio.Runner(loop_factory=partial(looptime.new_event_loop, noop_cycles=0)) as runner:
        runner.run(told())


class Away(Link):
    """Its server is never there."""

    async def connect(self, _: OnEnd) -> AnyConnection:
        self.tried.append(asyncio.get_running_loop().time())
        raise StoreError("it is away")


class Unfit(Link):
    """Its server takes connections, and no writes."""

    async def connect(self, on_end: OnEnd) -> AnyConnection:
        if len(self.tried) == 8:
            self.is_there.clear()  # Enough is seen.
        line = await super().connect(on_end)
        line.is_unfit = True
        asyncio.get_running_loop().call_soon(partial(on_end, line, "it is unfit", []))
        return line


@pytest.mark.parametrize("kind", [Away, Unfit])
def test_i9_pauses_between_attempts_grow_to_half_a_second(kind: type[Link]) -> None:
    async def story(at: Link) -> None:
        at.is_there.set()
        at.reconnector.begin()
        await asyncio.sleep(2)
        pauses = [round(after - before, 3) for before, after in pairwise(at.tried)]
        assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]

    run(story, kind)


def test_i9_attempts_go_on_after_all_tasks_were_cancelled() -> None:
    async def story(at: Link) -> None:
        at.reconnector.begin()
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait_for(at.back(), 60)

    run(story)


def test_a_start_waits_for_a_connection_that_lasts() -> None:
    """F-233: the start returned without a store, although it had time left."""

    class Ending(Link):
        async def connect(self, on_end: OnEnd) -> AnyConnection:
            line = await super().connect(on_end)
            if len(self.tried) == 1:  # It ends once it is used, before those who wait have their turn.
                line.open = False
                asyncio.get_running_loop().call_soon(partial(on_end, line, "it has ended", []))
            return line

    async def story(at: Link) -> None:
        at.is_there.set()
        await at.reconnector.reach(3600)  # In this task: what is seen next is what the start left.
        assert (at.reconnector.connection is not None, len(at.tried)) == (True, 2)

    run(story, Ending)


# Log lines: a store that comes and goes has one a minute; an outage that lasts always has one.


AWAY = "it is silent; trying again until it can"


def test_a_store_that_comes_and_goes_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def story(at: Link) -> None:
        at.reconnector.begin()
        await at.back()
        for _ in range(12):
            await at.blip(9)
        await asyncio.sleep(600)
        await at.blip(1)
        assert at.reconnector.opened == 13

    run(story)
    assert caplog.messages == [
        AWAY,
        "the store is back after 0.6 s",
        "the store was down again, 6 times within 60 s; it is up now",
        "the store was down again, 5 times within 60 s; it is up now",
        AWAY,
        "the store is back after 0.6 s",
    ]


def test_an_outage_that_begins_soon_after_a_blip_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def story(at: Link) -> None:
        at.reconnector.begin()
        await at.back()
        for _ in range(2):
            await at.blip(5)
        await asyncio.sleep(5)
        at.end()
        await asyncio.sleep(45)
        assert caplog.messages[2:] == []
        await asyncio.sleep(60)
        assert caplog.messages[2:] == [f"{AWAY} (it was down once more since the last such line)"]
        await at.back()

    run(story)
    assert caplog.messages[3:] == ["the store is back after 105.2 s"]
