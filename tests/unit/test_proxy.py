from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from faults.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class Upper:
    """A server that answers each chunk in capitals and remembers what it heard."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[bytes]()
        self.connections: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.current_task())
        try:
            while chunk := await reader.read(100):
                self.heard.put_nowait(chunk)
                writer.write(chunk.upper())
        finally:
            writer.close()
            self.connections.discard(asyncio.current_task())


@pytest.fixture
async def upper() -> Upper:
    return Upper()


@pytest.fixture
async def proxy(upper: Upper) -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(upper.serve, "127.0.0.1", 0)
    async with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    await asyncio.gather(*(task for task in upper.connections if task is not None))
    await server.wait_closed()


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, text: bytes) -> bytes:
        self.writer.write(text)
        return await self.reader.read(100)

    async def hears_nothing(self) -> bool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.reader.read(1)
        return True


@pytest.fixture
async def caller(proxy: TcpProxy) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield Caller(reader, writer)
    writer.close()


async def test_blackhole_holds_what_was_sent_until_the_mode_changes(
    caller: Caller, proxy: TcpProxy, upper: Upper
) -> None:
    await proxy.set("blackhole")
    caller.writer.write(b"late")
    assert await caller.hears_nothing()
    assert upper.heard.empty()
    await proxy.set("pass")
    assert await caller.reader.read(100) == b"LATE"


async def test_drop_reply_lets_the_server_hear_but_not_the_caller(
    caller: Caller, proxy: TcpProxy, upper: Upper
) -> None:
    await proxy.set("drop_reply")
    caller.writer.write(b"lost")
    assert await upper.heard.get() == b"lost"
    assert await caller.hears_nothing()
    await proxy.set("pass")
    caller.writer.write(b"next")
    assert await upper.heard.get() == b"next"
    # TCP loses nothing between two replies: the second one would be taken for the first.
    assert await caller.hears_nothing()


@pytest.mark.parametrize(("cut_after", "expected"), [(0, b""), (2, b"GO")])
async def test_cut_closes_within_the_reply_after_the_server_heard(
    caller: Caller, proxy: TcpProxy, upper: Upper, cut_after: int, expected: bytes
) -> None:
    await proxy.set("cut", cut_after=cut_after)
    caller.writer.write(b"gone")
    assert await caller.reader.read() == expected
    assert upper.heard.get_nowait() == b"gone"
