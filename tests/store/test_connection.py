"""One connection, many callers: whose reply is whose, when something is slow, lost or cancelled."""

# Internals: whose reply is whose on one connection, which kits hide.

# pyright: reportPrivateUsage=false
# A few tests look at what must not be left behind.

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from faults.proxy import TcpProxy
from faults.refusals import Echo, FakeRedis, eventually, loop_clock, stopped
from meterkit.errors import StoreError
from meterkit.redis import scripts
from meterkit.redis.connection import Connection, pack_each
from meterkit.redis.handshake import connect
from meterkit.redis.tls import Tls
from meterkit.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit.redis.connection import Unsent
    from servers.certificates import Authority
    from servers.stores import Server

pytestmark = pytest.mark.anyio

LOADED = [scripts.load("fence")]


class Command(Echo):
    """Any command; the clock is added as its last word."""

    def __init__(self, *words: str | int) -> None:
        super().__init__(str(words[-1]))
        self.packed = (b"*%d\r\n%b" % (len(words) + 1, pack_each(words)),)


def nobody(connection: Connection, why: str, unsent: Unsent) -> None:
    """Let a connection end."""
    del connection, why, unsent


class Ear:
    """Takes the replies of what is posted."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def received(self, reply: Any) -> None:
        self.heard.append(reply)


class Opener:
    """Opens connections to a port, and sees to it that they are closed."""

    def __init__(self, port: int, tls: Tls | None = None) -> None:
        self.address = Address(kind="tcp", host="127.0.0.1", port=port, tls=tls)
        self.ended: list[Connection] = []
        self.unsent: Unsent = []
        self.opened: list[Connection] = []

    async def __call__(self, *, timeout_s: float = 5.0, clock: Any = time.time) -> Connection:
        found = await connect(self.address, LOADED, timeout_s=timeout_s, on_end=self._on_end, clock=clock)
        self.opened.append(found)
        return found

    async def close(self) -> None:
        for connection in self.opened:
            await connection.close()

    def _on_end(self, connection: Connection, why: str, unsent: Unsent) -> None:
        assert why
        self.ended.append(connection)
        self.unsent += unsent


@pytest.fixture(params=["tcp", "tls"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    """What holds over TCP is to hold over TLS."""
    if request.param == "tcp":
        return None
    authority: Authority = request.getfixturevalue("authority")
    return Tls(ca_certs=authority.file)


@pytest.fixture
async def proxy(valkey: Server, authority: Authority, tls: Tls | None) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port, tls=authority.serving() if tls else None) as proxy:
        yield proxy


@pytest.fixture
async def to_proxy(proxy: TcpProxy, tls: Tls | None) -> AsyncIterator[Opener]:
    opener = Opener(proxy.port, tls)
    yield opener
    await opener.close()


@pytest.fixture
async def to_server(valkey: Server, authority: Authority, tls: Tls | None) -> AsyncIterator[Opener]:
    async with contextlib.AsyncExitStack() as stack:
        port = valkey.port
        if tls is not None:
            port = (await stack.enter_async_context(TcpProxy(port, tls=authority.serving()))).port
        opener = Opener(port, tls)
        yield opener
        await opener.close()


def writes_of(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What leaves in one write each."""
    transport: Any = connection._transport
    written: list[bytes] = []

    class Seen:
        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            transport.write(data)

    monkeypatch.setattr(connection, "_transport", Seen())
    return written


@pytest.mark.each_loop
async def test_i1_requests_of_one_tick_share_one_write(
    to_server: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await to_server()
    written = writes_of(connection, monkeypatch)
    ear = Ear()

    async def ask(n: int) -> Any:
        if n % 5 == 0:
            connection.post(Echo(f"post-{n}").packed, ear)
        return await connection.call(Echo(f"call-{n}"))

    replies = await asyncio.gather(*(ask(n) for n in range(50)))

    assert len(written) == 1
    assert [reply[1] for reply in replies] == [b"call-%d" % n for n in range(50)]
    assert [reply[1] for reply in ear.heard] == [b"post-%d" % n for n in range(0, 50, 5)]


# Trap 1: the reply of a cancelled caller is dropped, not handed to the next.


# Traps 2 and 3: a timeout ends the connection, it never shifts the replies that follow; one watchdog for all.


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
        waited = time.monotonic() - began
    assert {"the store did not answer within 0.5 s"} == {str(result) for result in results}
    assert {None} == {result.executed for result in results if isinstance(result, StoreError)}
    assert waited > 0.49
    assert opener.ended == [connection]
    # What was sent is answered once the server goes on; each reply is matched with the call it names.
    await eventually(lambda: all(call.orphans for call in calls))
    assert [call.orphans for call in calls] == [[[0, b"call-%d" % n]] for n in range(20)]
    await opener.close()


# Trap 4: sent is unknown, unsent is not executed; nothing is sent again.


@pytest.mark.each_loop
async def test_what_was_not_sent_was_certainly_not_executed(to_server: Opener, valkey: Server) -> None:
    connection = await to_server()
    sent = connection.call(Command("EVAL", "return redis.call('INCR', KEYS[1])", 1, "mk:sent"))
    await asyncio.sleep(0)
    unsent = connection.call(Command("EVAL", "return redis.call('INCR', KEYS[1])", 1, "mk:unsent"))
    connection.end("a test")
    with pytest.raises(StoreError, match="a test") as caught:
        await sent
    assert caught.value.executed is None
    # It is left to whoever has another connection.
    assert [future for future, _ in to_server.unsent] == [unsent]
    assert not unsent.done()
    await eventually(lambda: valkey.command("GET", "mk:sent") == "1")
    assert valkey.command("GET", "mk:unsent") is None
    valkey.command("DEL", "mk:sent")


# Trap 5: ending and writing at once.


# Trap 6: an error reply belongs to one caller.


# Trap 7: futures belong to one loop. See test_store_life. Trap 8 is about clusters.


async def test_more_replies_than_requests_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def answer(words: list[bytes]) -> bytes:
        return b"*2\r\n:0\r\n$1\r\na\r\n+unasked\r\n" if words[0] == b"EVAL" else b"+OK\r\n"

    async with FakeRedis(answer) as fake:
        opener = Opener(fake.port)
        connection = await opener()
        assert (await connection.call(Echo("one")))[1] == b"a"
        await eventually(lambda: not connection.open)
        assert "not RESP" in caplog.text
        await opener.close()


# Connecting.


@pytest.mark.parametrize("mode", ["refuse", "blackhole", "reset", "cut", "drop_reply"])
async def test_i9_connecting_ends_within_one_timeout(proxy: TcpProxy, to_proxy: Opener, mode: Any) -> None:
    await proxy.set(mode)
    async with loop_clock() as passed_s:
        with pytest.raises(StoreError):
            await to_proxy(timeout_s=2.0)
        assert passed_s() < 4.0
    assert to_proxy.opened == []
    await proxy.set("pass")
    connection = await to_proxy()
    assert (await connection.call(Echo("again")))[1] == b"again"
