"""One connection: many requests in flight, each with its own reply, whatever is lost or cancelled."""

# Internals: whose reply is whose on one connection, which kits hide.

# pyright: reportPrivateUsage=false
# What leaves in one write shows nowhere else.

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from faults.proxy import TcpProxy
from faults.refusals import Echo, FakeRedis, eventually, loop_clock, stopped
from meterkit.errors import StoreError
from meterkit.redis import scripts
from meterkit.redis.connection import pack_each
from meterkit.redis.handshake import connect
from meterkit.redis.url import Address

if TYPE_CHECKING:
    from meterkit.redis.connection import Connection, Unsent
    from servers.stores import Server

pytestmark = pytest.mark.anyio


class Increment(Echo):
    """Adds one to a key; the clock is added as the last word."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        words = ("EVAL", "return redis.call('INCR', KEYS[1])", 1, key)
        self.packed = (b"*%d\r\n%b" % (len(words) + 1, pack_each(words)),)


class Ear:
    """Takes the replies of what is posted."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def received(self, reply: Any) -> None:
        self.heard.append(reply)


class Opener:
    """Opens a connection to a port, and notes how it ends."""

    def __init__(self, port: int) -> None:
        self.address = Address(kind="tcp", host="127.0.0.1", port=port)
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
async def test_i1_requests_of_one_tick_share_one_write(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await Opener(valkey.port)()
    transport: Any = connection._transport
    written: list[bytes] = []

    class Seen:
        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            transport.write(data)

    monkeypatch.setattr(connection, "_transport", Seen())
    ear = Ear()

    async def ask(n: int) -> Any:
        if n % 5 == 0:
            connection.post(Echo(f"post-{n}").packed, ear)
        return await connection.call(Echo(f"call-{n}"))

    replies = await asyncio.gather(*(ask(n) for n in range(50)))
    assert len(written) == 1
    assert [reply[1] for reply in replies] == [b"call-%d" % n for n in range(50)]
    assert [reply[1] for reply in ear.heard] == [b"post-%d" % n for n in range(0, 50, 5)]
    await connection.close()


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
