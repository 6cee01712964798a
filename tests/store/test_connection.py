"""One connection: many requests in flight, each with its own reply, whatever is lost or cancelled."""

# Internals: whose reply is whose on one connection, which kits hide.

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest

from faults.proxy import TcpProxy
from faults.refusals import Echo, FakeRedis, eventually, kit_at, loop_clock, stopped
from meterkit.errors import StoreError
from meterkit.redis import scripts
from meterkit.redis.connection import pack_each
from meterkit.redis.handshake import connect
from meterkit.redis.url import Address
from servers.stores import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.redis.connection import Connection, Unsent
    from servers.stores import Server

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
        loaded = [scripts.load("fence")]
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
ASK: Final = socket.getaddrinfo


class Resolver:
    """The system's, but for one name: of that nothing is heard until it is let go.

    Attributes:
        addresses: what the name leads to.
        answers: whether it is let go.
        asked: how often that was asked.
    """

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]
        self.answers = threading.Event()
        self.asked = 0

    def getaddrinfo(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if host != NAME:
            return ASK(host, *arguments, **named)
        self.asked += 1
        self.answers.wait(30)
        return [found for address in self.addresses for found in ASK(address, *arguments, **named)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answers.set()


@pytest.mark.each_loop
async def test_i9_a_hung_resolver_takes_no_thread_from_the_app(store_url: str, resolver: Resolver) -> None:
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
        resolver.answers.set()
        await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
        assert (await kit.consume("acme", "requests", 1)).allowed
        assert await admin.client.ping()


@pytest.mark.each_loop
async def test_the_addresses_of_a_name_are_tried_in_turn(store_url: str, resolver: Resolver) -> None:
    resolver.addresses = ["127.0.0.77", "127.0.0.1"]
    resolver.answers.set()
    connection = await Opener(urlsplit(store_url).port, NAME)()
    assert b"PONG" == await connection.ask("PING")
    await connection.close()
    with pytest.raises(StoreError, match=f"{NAME}:.* cannot be reached: Connection refused$"):
        await Opener(free_port(), NAME)()
