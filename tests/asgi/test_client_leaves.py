"""Clients that leave a response that then ends as if they had not: over real sockets, on both loops."""

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
from drivers.sampled import pairs
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
    'routes:\n  - {match: "/gone", consume: {requests: 1}, charge_on: [client_gone]}\n'
    '  - {match: "/failed", consume: {requests: 1}, charge_on: [server_error]}\n',
)


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


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
    pairs(
        ["polling", "base inside", "base outside", "gzip outside"],
        ["/auto", "/attempt"],
        ["h11", "httptools"],
    ),
)
async def test_leaving_before_the_usage_pays_for_the_text(
    how: str, path: str, protocol: str, store_url: str
) -> None:
    """F-7: the response ends as it should, but nobody was there to get it."""
    # Behind BaseHTTPMiddleware is_disconnected() never says so: there the response listens.
    app = app_of(waiting if "base" in how else polling, *([PassingOn] if how == "base inside" else []))
    outside = {"base outside": PassingOn, "gzip outside": GZipMiddleware}.get(how)
    async with metered(app, store_url) as at:
        await left(at, path, protocol, after=TEXTS[-1].encode(), outside=outside)
        assert await tokens(at.kit) == (PROMPT_TOKENS, text_tokens(*TEXTS))
        assert await at.counted() == (1, 0)


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
async def test_who_leaves_after_the_usage_pays_what_it_says(protocol: str, store_url: str) -> None:
    async with metered(app_of(figures_first), store_url) as at:
        await left(at, "/auto", protocol, after=b'"total_tokens":110')
        assert await tokens(at.kit) == (50, 60)
        assert await at.counted() == (1, 0)


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize(("path", "requests"), [("/none", 1), ("/gone", 1), ("/failed", 0)])
async def test_a_client_that_has_left_counts_as_gone(
    path: str, requests: int, protocol: str, store_url: str
) -> None:
    """F-7, without usage: the outcome is what happened, not how the app took it."""
    async with metered(app_of(waiting, PassingOn), store_url, plans=OUTCOMES) as at:
        await left(at, path, protocol, after=TEXTS[-1].encode())
        assert await at.counted() == (requests, 0)


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize(("path", "requests"), [("/none", 1), ("/gone", 0), ("/failed", 0)])
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


@pytest.mark.parametrize("error", [RuntimeError("the client is gone"), None], ids=["raises", "returns"])
async def test_an_app_that_gives_up_is_billed_as_cancelled(error: Exception | None, store_url: str) -> None:
    """F-7: whatever an app does when it hears that the client is gone, the work was done."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        await send({"type": "http.response.body", "body": openai_stream(TEXTS[0])[0], "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        if error is not None:
            raise error

    async with metered(app, store_url) as at:
        await asyncio.gather(
            at.app(http_scope("/auto", method="POST"), saying(PROMPT), taken), return_exceptions=True
        )
        assert await tokens(at.kit) == (PROMPT_TOKENS, text_tokens(TEXTS[0]))
        assert await at.counted() == (1, 0)


async def test_leaving_with_everything_is_not_leaving(store_url: str) -> None:
    """F-7: servers say http.disconnect after the last message too, to whoever still listens."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        for chunk in (*openai_stream(*TEXTS), USAGE):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        listener = asyncio.create_task(_hear(receive))
        await send({"type": "http.response.body", "body": b""})
        await listener

    async def _hear(receive: Receive) -> None:
        assert (await receive())["type"] == "http.disconnect"

    for path, requests in (("/auto", 1), ("/gone", 0)):
        sending, over = asyncio.Event(), asyncio.Event()

        async def receive(said: Any = iter([PROMPT]), over: asyncio.Event = over) -> Message:  # noqa: B008
            for body in said:
                return {"type": "http.request", "body": body}
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message, sending: Any = sending, over: asyncio.Event = over) -> None:
            # As BaseHTTPMiddleware outside: it says so while the last message is still on its way.
            if message.get("more_body") is None and message["type"] == "http.response.body":
                over.set()
                for _ in range(5):
                    await asyncio.sleep(0)
                sending.set()

        async with metered(app, store_url, plans=OUTCOMES) as at:
            await at.app(http_scope(path, method="POST"), receive, send)
            assert sending.is_set()
            assert await at.counted() == (requests, 0)
            assert await tokens(at.kit) == ((50, 60) if path == "/auto" else (0, 0))


SSE = [(b"content-type", b"text/event-stream")]


def saying(body: bytes) -> Receive:
    """A client that sends a body and leaves."""
    said: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": body}]

    async def receive() -> Message:
        return said.pop()

    return receive


async def taken(message: Message) -> None:
    """A server that drops what it is sent."""
    del message
