"""Clients that leave a response that then ends as if they had not: over real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from drivers.app import http_scope
from drivers.llm_apps import (
    PLANS,
    PROMPT,
    PROMPT_TOKENS,
    listening,
    metered,
    openai_stream,
    text_tokens,
    tokens,
)
from faults.refusals import eventually
from meterkit import current
from tokens.recordings import chat, chat_usage, sse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

TEXTS = ("Hello, ", "wörld. ", "All is well.")
USAGE = sse(chat(None, usage=chat_usage(50, 60)))
OUTCOMES = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "/gone", consume: {requests: 1}, usage: auto, charge_on: [client_gone]}\n'
    '  - {match: "/failed", consume: {requests: 1}, charge_on: [server_error]}\n',
)


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


async def gone(request: Request) -> None:
    """Until the client is."""
    while not await request.is_disconnected():  # noqa: ASYNC110 - it is what apps do
        await asyncio.sleep(0.002)


async def polling(request: Request) -> Response:
    """Streams a text, and its usage only while somebody is there."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        await gone(request)

    return Unheard(body(), media_type="text/event-stream")


class Unheard(StreamingResponse):
    """Leaves it to its body to look whether the client is there, as servers of ASGI 2.4 have it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self.stream_response(send)


async def waiting(request: Request) -> Response:
    """Streams a text, and its usage too late."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        await asyncio.Event().wait()

    return StreamingResponse(body(), media_type="text/event-stream")


async def figures_first(request: Request) -> Response:
    """Streams a text and its usage, and goes on."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        yield USAGE
        await gone(request)

    return Unheard(body(), media_type="text/event-stream")


def app_of(endpoint: Any, *inside: Any) -> Starlette:
    return Starlette(
        routes=[Route("/{path:path}", endpoint, methods=["POST"])],
        middleware=[Middleware(each) for each in inside],
    )


async def hang_up(port: int, path: str, *, after: bytes = b"", until: asyncio.Event | None = None) -> None:
    """Ask, and leave as soon as some bytes have come, at an event, or at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\ncontent-length: {len(PROMPT)}\r\n\r\n"
    writer.write(head.encode() + PROMPT)
    if after:
        await reader.readuntil(after)
    if until is not None:
        await until.wait()
    writer.close()
    await writer.wait_closed()


class Watched:
    """Tells when the app is done with a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.over = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            self.over.set()


async def left(
    at: Served,
    path: str,
    protocol: str,
    *,
    after: bytes,
    outside: Any = None,
    until: asyncio.Event | None = None,
) -> None:
    """A client asks and leaves; until what it came to is settled."""
    watched = Watched(at.app if outside is None else outside(at.app))
    async with listening(watched, http=protocol) as port:
        await hang_up(port, path, after=after, until=until)
        await watched.over.wait()
    lane = at.kit.store.lanes[asyncio.get_running_loop()]
    await eventually(lambda: lane.unsettled == 0)


@pytest.mark.parametrize(
    ("how", "path", "protocol"),
    [
        ("polling", "/auto", "h11"),
        ("base inside", "/attempt", "httptools"),
        ("base outside", "/gone", "h11"),
        ("gzip outside", "/auto", "httptools"),
        ("figures first", "/auto", "h11"),
    ],
)
async def test_leaving_before_the_usage_pays_for_the_text(
    how: str, path: str, protocol: str, store_url: str
) -> None:
    """F-7: the response ends as it should, but nobody was there to get it."""
    # Behind BaseHTTPMiddleware is_disconnected() never says so: there the response listens.
    endpoint = figures_first if how == "figures first" else waiting if "base" in how else polling
    app = app_of(endpoint, *([PassingOn] if how == "base inside" else []))
    outside = {"base outside": PassingOn, "gzip outside": GZipMiddleware}.get(how)
    after = b'"total_tokens":110' if how == "figures first" else TEXTS[-1].encode()
    async with metered(app, store_url, plans=OUTCOMES) as at:
        await left(at, path, protocol, after=after, outside=outside)
        found = (50, 60) if how == "figures first" else (PROMPT_TOKENS, text_tokens(*TEXTS))
        assert found == await tokens(at.kit)
        assert await at.counted() == (1, 0)


@pytest.mark.each_loop
@pytest.mark.parametrize(
    ("path", "requests", "protocol"), [("/none", 1, "h11"), ("/gone", 0, "httptools"), ("/failed", 0, "h11")]
)
async def test_leaving_before_the_first_byte_pays_if_answered(
    path: str, requests: int, protocol: str, store_url: str
) -> None:
    """F-20e: the work was done, whether the app has looked or not; uvicorn drops what is sent then."""

    asked = asyncio.Event()

    async def answers(request: Request) -> Response:
        assert await request.body() == PROMPT
        asked.set()
        await gone(request)
        assert current().customer == "acme"
        return JSONResponse({"choices": [{"message": {"content": "x" * 300}}], "usage": chat_usage(5, 6)})

    async with metered(app_of(answers), store_url, plans=OUTCOMES) as at:
        await left(at, path, protocol, after=b"", until=asked)
        assert await at.counted() == (requests, 0)


async def test_leaving_with_everything_is_not_leaving(store_url: str) -> None:
    """F-7: servers say http.disconnect after the last message too, to whoever still listens."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in (*openai_stream(*TEXTS), USAGE):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        listener = asyncio.create_task(listen(receive))
        await send({"type": "http.response.body", "body": b""})
        await listener

    async def listen(receive: Receive) -> None:
        assert (await receive())["type"] == "http.disconnect"

    over, said = asyncio.Event(), [{"type": "http.request", "body": PROMPT}]

    async def receive() -> Message:
        if said:
            return said.pop()
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        # As BaseHTTPMiddleware outside: it says so while the last message is still on its way.
        if message["type"] == "http.response.body" and "more_body" not in message:
            over.set()
            for _ in range(5):
                await asyncio.sleep(0)

    async with metered(app, store_url, plans=OUTCOMES) as at:
        await at.app(http_scope("/auto", method="POST"), receive, send)
        assert over.is_set()
        assert await at.counted() == (1, 0)
        assert await tokens(at.kit) == (50, 60)
