"""A server on a real socket that answers what a test has it answer, byte for byte."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

REASONS: Final = {200: "OK", 302: "Found", 400: "Bad Request"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came over the wire; names of headers in lower case."""

    line: str
    headers: Mapping[str, str]
    body: str


@dataclass(slots=True)
class Answering:
    """What was asked, and what is answered: raw bytes, after which the connection may be closed."""

    url: str = ""
    answer: Callable[[Asked], bytes] = lambda _: b""
    closes: bool = False
    asked: list[Asked] = field(default_factory=list[Asked])
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *lines = head.strip().split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(line, headers, body.decode())
                self.asked.append(asked)
                writer.write(self.answer(asked))
                await writer.drain()
                if self.closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def answer(status: int, body: object = "", **headers: str) -> bytes:
    """An HTTP answer; a body that is no text is sent as JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    content = text.encode()
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


@asynccontextmanager
async def answering(
    reply: bytes | Callable[[Asked], bytes],
    *,
    closes: bool = False,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Answering]:
    """Serve on 127.0.0.1; with TLS the URL names localhost."""
    stand_in = Answering(answer=reply if callable(reply) else lambda _: reply, closes=closes)
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", port, ssl=tls)
    origin = "http://127.0.0.1" if tls is None else "https://localhost"
    stand_in.url = f"{origin}:{server.sockets[0].getsockname()[1]}"
    try:
        yield stand_in
    finally:
        server.close()
