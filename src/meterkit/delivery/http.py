"""The way to Stripe: POST requests over kept connections, and what came of each.

Stripe's SDK on httpx costs some milliseconds of CPU for a meter event, which a flusher sends hundreds of in a
second; see docs/design/decisions/0037-meter-events-over-a-client-of-our-own.md.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h11

from meterkit.delivery.transport import Answer, Unanswered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

__all__ = ["HttpClient"]

Header = tuple[bytes, bytes]

_IDLE_S_MAX: Final = 20.0  # Sooner than a server or a firewall between would close it.
_READ_BYTES: Final = 65_536
_ANSWER_BYTES_MAX: Final = 1_000_000
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: h11.Connection
    used_at: float

    @property
    def is_open(self) -> bool:
        """As far as can be told without writing to it."""
        fresh = monotonic() - self.used_at < _IDLE_S_MAX
        return fresh and not self.reader.at_eof() and not self.writer.is_closing()

    def close(self) -> None:
        self.writer.close()


class HttpClient:
    """Requests to one address, each sent once. Belongs to the event loop that it is used in.

    The proxies of the environment (``HTTPS_PROXY``, ``NO_PROXY``) are used for an ``https://`` address, and
    certificates are verified by the system's store and certifi's.

    Args:
        base: ``https://host`` or, for emulators, ``http://host:port``.
        timeout_s: for a whole request, from the connection to the last byte of the answer.
    """

    def __init__(self, base: str, *, timeout_s: float) -> None:
        self._base = urlsplit(base.rstrip("/"))
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._closed = False
        host = self._base.hostname or ""
        self._address = host, self._base.port or _PORTS[self._base.scheme]
        self._tls = _tls() if self._base.scheme == "https" else None
        self._proxy = _proxy(host) if self._tls is not None else None

    async def post(self, path: str, headers: Sequence[Header], body: bytes) -> Answer | Unanswered:
        """Send one request. Raises nothing but cancellation."""
        sent = False
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                sent = True
                answer = await self._exchange(connection, path, headers, body)
        except (OSError, EOFError, ssl.SSLError, h11.ProtocolError, TimeoutError) as error:
            if connection is not None:
                connection.close()
            return Unanswered(failure="no_reply" if sent else "not_sent", why=type(error).__name__)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._keep(connection)
        return answer

    async def close(self) -> None:
        """Close all connections; what is sent afterwards is not sent."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in idle:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await connection.writer.wait_closed()

    def _keep(self, connection: _Connection) -> None:
        try:
            connection.protocol.start_next_cycle()
        except h11.ProtocolError:  # It wants to be closed.
            connection.close()
            return
        connection.used_at = monotonic()
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.close()
        if self._closed:
            raise ConnectionError("closed")
        host, port = self._address
        if self._proxy is not None:
            reader, writer = await self._tunnel(self._proxy)
        else:
            reader, writer = await asyncio.open_connection(host, port, ssl=self._tls)
        return _Connection(reader, writer, h11.Connection(h11.CLIENT), monotonic())

    async def _tunnel(self, proxy: SplitResult) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect through an HTTP proxy. A refusal of the proxy's is a request that was not sent."""
        host, port = self._address
        reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or _PORTS["http"])
        refused = False
        try:
            lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
            if proxy.username is not None:
                user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
                lines.append(f"Proxy-Authorization: Basic {b64encode(user.encode()).decode()}")
            writer.write("\r\n".join([*lines, "", ""]).encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            refused = answer.partition(b"\r\n")[0].split(b" ")[1:2] != [b"200"]
            if self._tls is not None and not refused:
                await writer.start_tls(self._tls, server_hostname=host)
        except BaseException:
            writer.close()
            raise
        if refused:
            writer.close()
            raise ConnectionRefusedError("the proxy refused")
        return reader, writer

    async def _exchange(
        self, connection: _Connection, path: str, headers: Sequence[Header], body: bytes
    ) -> Answer:
        protocol, reader = connection.protocol, connection.reader
        host = self._base.netloc.rpartition("@")[2].encode()
        request = h11.Request(
            method=b"POST",
            target=f"{self._base.path}{path}".encode(),
            headers=[(b"Host", host), *headers, (b"Content-Length", str(len(body)).encode())],
        )
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        connection.writer.write(b"".join(protocol.send(part) or b"" for part in parts))
        status, found, chunks, size = 0, {}, list[bytes](), 0
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
                found = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                chunks.append(bytes(event.data))
                size += len(event.data)
                if size > _ANSWER_BYTES_MAX:
                    raise EOFError("the answer is too long")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, found, b"".join(chunks))
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError("closed")


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # Where the system has no certificates of its own.
        context.load_verify_locations(import_module("certifi").where())
    return context


def _proxy(host: str) -> SplitResult | None:
    proxies = getproxies()
    found = proxies.get("https") or proxies.get("all")
    if found is None or proxy_bypass(host):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")
