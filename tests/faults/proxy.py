"""A TCP proxy that loses, holds and cuts what passes through it, for tests of what happens then."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from typing import Final, Literal, Self
from weakref import WeakSet

Mode = Literal["pass", "refuse", "blackhole", "drop_reply", "reset", "delay", "cut"]

_CHUNK: Final = 65_536
_TIME: Final = re.compile(rb"(?<=\*2\r\n\$10\r\n)\d{10}(?=\r\n\$\d\r\n)")
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TcpProxy:
    """Listens on :attr:`port` of 127.0.0.1 and forwards to a port there: ``async with TcpProxy(port) as p``.

    Modes, changed by :meth:`set` at any time:

    - ``refuse``: nobody listens; open connections are closed.
    - ``blackhole``: connections open, nothing moves. What was sent arrives when the mode changes.
    - ``drop_reply``: requests go through and are executed; replies are lost. So are all later ones of that
      connection, whatever the mode: TCP loses no bytes between others.
    - ``reset``: open and new connections are reset.
    - ``delay``: each chunk of replies waits ``delay_s``.
    - ``cut``: requests go through; of the next reply ``cut_after`` bytes come back, then it closes.

    ``requests`` counts the bytes that were forwarded. With ``tls``, its own clients come with TLS.
    ``time_ahead_s`` is added to the server's ``TIME``; ``times`` counts these replies.
    """

    def __init__(self, target_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self._tls = tls
        self.accepted = 0
        self.requests = self.time_ahead_s = self.times = 0
        self._target_port = target_port
        self._mode: Mode = "pass"
        self._delay_s = 0.0
        self._cut_after = 0
        self._moving = asyncio.Event()
        self._moving.set()
        self.replies = asyncio.Event()  # Cleared: replies are kept until it is set.
        self.replies.set()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._mute = WeakSet[asyncio.StreamWriter]()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._refuse()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def set(self, mode: Mode, *, delay_s: float = 0.05, cut_after: int = 0) -> None:
        """Change the mode; it holds for open connections too, from the next chunk on."""
        self._mode, self._delay_s, self._cut_after = mode, delay_s, cut_after
        if mode == "blackhole":
            self._moving.clear()
        else:
            self._moving.set()
        if mode == "refuse":
            await self._refuse()
            return
        if mode == "reset":
            await self._close_connections(reset=True)
        if self._server is None:
            await self._listen()

    def drop_open(self) -> None:
        """Let no reply of an open connection pass any more, as a network does that has forgotten it."""
        self._mute.update(self._connections.values())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        self._mode = "refuse"
        server, self._server = self._server, None
        if server is not None:
            server.close()
            # What it accepted just now takes some rounds of the loop to reach its handler, which ends there.
            for _ in range(5):
                await asyncio.sleep(0)
        await self._close_connections(reset=False)
        if server is not None:
            await server.wait_closed()

    async def _close_connections(self, *, reset: bool) -> None:
        connections = list(self._connections.items())
        for task, writer in connections:
            if reset:
                _reset(writer)
            task.cancel()
        await asyncio.gather(*(task for task, _ in connections), return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        # Also of a task that is cancelled before its first step.
        task.add_done_callback(lambda ended: self._connections.pop(ended).close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if self._mode == "reset":
                _reset(writer)
            # It may have been on its way when the last were closed.
            if self._mode not in {"reset", "refuse"}:
                with contextlib.suppress(OSError):
                    await self._connect(reader, writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        pumps = [
            asyncio.create_task(self._pump(reader, to_server, is_reply=False)),
            asyncio.create_task(self._pump(upstream, writer, is_reply=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            # Before the wait, which may be cancelled itself.
            to_server.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._moving.wait()
            if is_reply:
                await self.replies.wait()
            if not is_reply:
                self.requests += len(chunk)
            elif self._mode == "drop_reply" or writer in self._mute:
                self._mute.add(writer)
                continue
            elif self._mode == "cut":
                writer.write(chunk[: self._cut_after])
                return
            elif self._mode == "delay":
                await asyncio.sleep(self._delay_s)
            if is_reply and self.time_ahead_s:
                chunk, found = _TIME.subn(lambda time: b"%d" % (int(time[0]) + self.time_ahead_s), chunk)
                self.times += found
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = None
    with contextlib.suppress(AttributeError):  # So CPython 3.11 says that a TLS connection has ended already.
        sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
    writer.transport.abort()
