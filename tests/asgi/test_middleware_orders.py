"""The middleware among others, outside and inside of them: usage is counted the same, bytes pass the same."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from brotli_asgi import BrotliMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response, StreamingResponse

from drivers.app import HEADERS
from drivers.llm_apps import metered, stream_of, tokens
from drivers.sampled import pairs
from tokens.recordings import JSON_TYPE, SSE_TYPE, chat, chat_usage, compact, sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

GZIP_OPTIONS = signature(GZipMiddleware).parameters
USED = (1234, 567)
TEXTS = [f"word {n} of a long answer, " for n in range(60)]
STREAM = [
    *(sse(chat({"content": text})) for text in TEXTS),
    sse(chat(None, usage=chat_usage(*USED))),
    b"data: [DONE]\n\n",
]
DOCUMENT = compact(
    {
        "object": "chat.completion",
        "choices": [{"message": {"content": "".join(TEXTS)}}],
        "usage": chat_usage(*USED),
    }
)


class PassingOn(BaseHTTPMiddleware):
    """The commonest middleware of all."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-passed-on"] = "yes"
        return response


class Reusing:
    """Empties each message once it has been sent, as one that keeps a single dict for all of them may."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_clear(message: Any) -> None:
            await send(dict(message))
            message.clear()

        await self.app(scope, receive, send_and_clear)


def compressing(app: ASGIApp, **options: Any) -> ASGIApp:
    """GZip over everything that it can be told to take."""
    younger: dict[str, Any] = {"exclude_content_types": (), **options}
    return GZipMiddleware(
        app, minimum_size=1, **{name: value for name, value in younger.items() if name in GZIP_OPTIONS}
    )


WRAPPINGS: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "gzip": compressing,
    "brotli": lambda app: BrotliMiddleware(app, minimum_size=1),
    "base": PassingOn,
    "reusing": Reusing,
}


def answering(kind: str) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if kind == JSON_TYPE:
            response = Response(DOCUMENT, media_type=kind)
        else:
            response = StreamingResponse(stream_of(STREAM), media_type=kind)
        await response(scope, receive, send)

    return app


async def ask(app: ASGIApp) -> httpx.Response:
    # httpx asks for br too, where it can read it.
    headers = {**HEADERS, "accept-encoding": "gzip, br"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        return await client.post("/auto")


@pytest.mark.parametrize(("kind", "name"), pairs([JSON_TYPE, SSE_TYPE], [*WRAPPINGS]))
async def test_inside_of_another_middleware_the_usage_is_counted(name: str, kind: str) -> None:
    """F-6: what stands outside may change a message once it has it."""
    async with metered(answering(kind), "memory://") as at:
        response = await ask(WRAPPINGS[name](at.app))
        coded = {"gzip": "gzip", "brotli": "br"}.get(name)
        if coded == "gzip" and kind == SSE_TYPE and "exclude_content_types" not in GZIP_OPTIONS:
            coded = None  # The oldest Starlette that is supported always leaves it out.
        assert response.headers.get("content-encoding") == coded
        assert response.content == (DOCUMENT if kind == JSON_TYPE else b"".join(STREAM))
        assert "ratelimit" in response.headers
        assert await tokens(at.kit) == USED
        assert await at.counted() == (1, 0)


@pytest.mark.parametrize(("kind", "name"), pairs([JSON_TYPE, SSE_TYPE], [*WRAPPINGS]))
async def test_outside_of_another_middleware_the_usage_is_counted(name: str, kind: str) -> None:
    async with metered(WRAPPINGS[name](answering(kind)), "memory://") as at:
        response = await ask(at.app)
        assert response.content == (DOCUMENT if kind == JSON_TYPE else b"".join(STREAM))
        assert await tokens(at.kit) == USED
        assert await at.counted() == (1, 0)


async def test_headers_read_only_once_reach_the_client() -> None:
    """F-6: they are Iterable by ASGI's word; reading the content type must not use them up."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        headers = iter([(b"content-type", JSON_TYPE.encode()), (b"x-own", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": DOCUMENT})

    async with metered(app, "memory://") as at:
        response = await ask(at.app)
        assert (response.headers["x-own"], response.headers["content-type"]) == ("1", JSON_TYPE)
        assert await tokens(at.kit) == USED
