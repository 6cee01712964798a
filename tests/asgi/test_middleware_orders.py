"""The middleware among others, outside and inside of them, and more than once around one app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from inspect import signature
from typing import Any

import httpx
import pytest
from brotli_asgi import BrotliMiddleware
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Host, Mount, Route, Router
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import HEADERS, PLANS, Served, hello, http_scope, ignore, no_more, served
from drivers.llm_apps import answering, metered, tokens
from drivers.plans import routed
from drivers.sampled import pairs
from llm_payloads.recordings import DONE, JSON_TYPE, SSE_TYPE, chat, chat_usage, compact, sse
from meterkit import MeterKit, MeterMiddleware, identify

pytestmark = pytest.mark.anyio

# The oldest Starlette that is supported never compresses streams.
GZIP_ALL: Any = {name: () for name in signature(GZipMiddleware).parameters if name == "exclude_content_types"}
USED = (1234, 567)
TEXTS = [f"word {n} of a long answer, " for n in range(60)]
STREAM = [*(sse(chat({"content": text})) for text in TEXTS), sse(chat(None, usage=chat_usage(*USED))), DONE]
CHOICES = [{"message": {"content": "".join(TEXTS)}}]
DOCUMENT = compact({"object": "chat.completion", "choices": CHOICES, "usage": chat_usage(*USED)})
ANSWERS = {JSON_TYPE: [DOCUMENT], SSE_TYPE: STREAM}


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-passed-on"] = "yes"
        return response


def reusing(app: ASGIApp) -> ASGIApp:
    """Empties each message once it has been sent, as one that keeps a single dict for all of them may."""

    async def reuse(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_clear(message: Any) -> None:
            await send(dict(message))
            message.clear()

        await app(scope, receive, send_and_clear)

    return reuse


WRAPPINGS: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "gzip": partial(GZipMiddleware, minimum_size=1, **GZIP_ALL),
    "brotli": partial(BrotliMiddleware, minimum_size=1),
    "base": PassingOn,
    "reusing": reusing,
}


async def ask(app: ASGIApp) -> httpx.Response:
    # httpx asks for br too, where it can read it.
    headers = {**HEADERS, "accept-encoding": "gzip, br"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        return await client.post("/auto")


@pytest.mark.parametrize(("kind", "name"), pairs([*ANSWERS], [*WRAPPINGS]))
async def test_inside_and_outside_of_another_usage_is_counted(name: str, kind: str) -> None:
    """F-6: what stands outside may change a message once it has it."""
    app, wrap = answering(ANSWERS[kind], kind), WRAPPINGS[name]
    async with metered(app, "memory://") as inside, metered(wrap(app), "memory://") as outside:
        for at, called in ((inside, wrap(inside.app)), (outside, outside.app)):
            response = await ask(called)
            coded = {"gzip": "gzip" if GZIP_ALL or kind == JSON_TYPE else None, "brotli": "br"}.get(name)
            assert response.headers.get("content-encoding") == coded
            assert response.content == b"".join(ANSWERS[kind])
            assert "ratelimit" in response.headers
            assert await tokens(at.kit) == USED
            assert await at.counted() == (1, 0)


async def test_headers_read_only_once_reach_the_client() -> None:
    """F-6: they are Iterable by ASGI's word; reading the content type must not use them up."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = iter([(b"content-type", JSON_TYPE.encode()), (b"x-own", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": DOCUMENT})

    async with metered(app, "memory://") as at:
        response = await ask(at.app)
        assert (response.headers["x-own"], response.headers["content-type"]) == ("1", JSON_TYPE)
        assert await tokens(at.kit) == USED


# Several middlewares around one app: one kit counts a request once, two kits count it twice.


def copying(app: ASGIApp) -> ASGIApp:

    async def copy(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": scope["path"]}, receive, send)

    return copy


def below_fastapi(inner: ASGIApp) -> FastAPI:
    app = FastAPI()
    app.mount("/v1", inner)
    return app


BETWEEN: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "nothing": lambda app: app,
    "mounts": lambda app: Starlette(routes=[Mount("/v1", routes=[Mount("/deep", app)])]),
    "a copied scope": copying,
    "BaseHTTPMiddleware": PassingOn,
    "a mount in FastAPI": below_fastapi,
}


@asynccontextmanager
async def wrapped(between: Callable[[ASGIApp], ASGIApp]) -> AsyncGenerator[Served]:
    """An app wrapped by a kit, something around that, and the kit's middleware once more."""
    kits: list[MeterKit] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        app = MeterMiddleware(hello, kit=kits[0], identify=identify.header("x-customer-id"))
        await app(scope, receive, send)

    async with served(between(inner), plans=PLANS.replace("/v1/{path:path}", "/{path:path}")) as at:
        kits.append(at.kit)
        yield at


@pytest.mark.parametrize("between", BETWEEN)
async def test_one_kit_counts_a_wrapped_request_once(between: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-8: by mistake, or an app and one that is mounted in it."""
    async with wrapped(BETWEEN[between]) as at:
        for n in range(1, 4):
            response = await at.client.get("/v1/deep/x")
            assert response.status_code == 200
            assert response.headers.get_list("ratelimit") == [f'"requests-period";r={5 - n};t=1771170']
            assert await at.counted() == (n, 0)
    assert "wraps this app more than once" in caplog.text


async def test_two_kits_both_count_and_log_it_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello) as inner, served(inner.app) as at:
        assert await at.statuses("/v1/x", "/v1/x") == [200, 200]
        assert await at.counted() == await inner.counted() == (2, 0)
    assert caplog.text.count("MeterMiddleware wraps this app for two kits") == 1


def test_two_kits_are_logged_as_the_app_starts(caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette()
    for _ in range(2):
        kit = MeterKit(routed("*"), redis_url="memory://", flush=False)
        app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    with TestClient(app):
        pass
    assert caplog.text.count("MeterMiddleware wraps this app for two kits") == 1


async def test_a_request_that_the_app_makes_of_its_own_counts() -> None:
    """F-8: it has a scope of its own, but runs in the context of the first."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/outer":
            assert await at.statuses("/v1/inner") == [200]
            await at.app(http_scope("/v1/inner"), no_more, ignore)
        await hello(scope, receive, send)

    async with served(app) as at:
        assert (await at.statuses("/v1/outer"), await at.counted()) == ([200], (3, 0))


async def test_a_scope_that_is_served_again_is_another_request() -> None:
    """F-8: nothing of the first stays in it, also where a server hands the same state to all."""
    state: dict[str, Any] = {}
    async with served(hello) as at:
        scope = http_scope(state=state)
        before = dict(scope)
        for _ in range(2):
            await at.app(scope, no_more, ignore)
            assert scope == before
        await asyncio.gather(*(at.app(http_scope(state=state), no_more, ignore) for _ in range(2)))
        assert (await at.counted(), state) == ((4, 0), {})


# CORS preflights: the app's CORS layer answers them, or no handler of a line that decides runs. F-20a.
ORIGIN = "https://app.example"
ASKS = {
    "x-customer-id": "",
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "x-one, x-two",
}
ALLOWED: Any = {"allow_origins": [ORIGIN], "allow_methods": ["POST"], "allow_headers": ["x-one", "x-two"]}


class LeavingOut(CORSMiddleware):
    """A CORS layer that leaves some preflights to the app."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Raw:
    """An app in a route, which takes every method."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)


def cors(kind: Any = CORSMiddleware) -> Middleware:
    return Middleware(kind, **ALLOWED)


def app_with(*middleware: Middleware, path: str = "/v1/{path:path}") -> Starlette:
    return Starlette(routes=[Route(path, Raw())], middleware=middleware)


def fast() -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.mount("/v1", Raw())
    app.add_middleware(CORSMiddleware, **ALLOWED)
    return app


LAYERS: dict[str, Callable[[], ASGIApp]] = {
    "of the app, behind another middleware": lambda: app_with(Middleware(GZipMiddleware), cors()),
    "around the app": lambda: CORSMiddleware(Raw(), **ALLOWED),
    "of FastAPI": fast,
    "of a host": lambda: Starlette(routes=[Host("app", app=app_with(cors()))]),
    "of a router": lambda: Router([Mount("/v1", Raw())], middleware=[cors()]),
}
NO_LAYERS: dict[str, Callable[[], ASGIApp]] = {
    "none": Raw,
    "none, in a route": app_with,
    "of a mounted app": lambda: Starlette(routes=[Mount("/v1", app_with(cors(), path="/{path:path}"))]),
    "of a route": lambda: Starlette(routes=[Route("/v1/{path:path}", Raw(), middleware=[cors()])]),
    "of another mount": lambda: Starlette(routes=[Mount("/v2", app_with(cors())), Mount("/v1", Raw())]),
    "of another host": lambda: Starlette(
        routes=[Host("other", app=app_with(cors())), Host("app", app=app_with())]
    ),
    "that passes them on": lambda: app_with(cors(LeavingOut)),
    "of a mount behind the route": lambda: Starlette(
        routes=[Route("/v1/x", Raw()), Mount("/v1", Raw(), middleware=[cors()])]
    ),
}


@pytest.mark.parametrize("name", LAYERS)
async def test_a_cors_layer_within_the_app_answers(name: str) -> None:
    async with served(LAYERS[name]()) as at:
        answer = await at.client.options("/v1/x", headers=ASKS)
        assert (answer.status_code, answer.text) == (200, "OK")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert await at.counted() == (0, 0)


@pytest.mark.parametrize("name", NO_LAYERS)
async def test_where_no_layer_answers_no_handler_runs(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(NO_LAYERS[name]()) as at:
        for _ in range(2):
            answer = await at.client.options("/v1/x", headers=ASKS)
            assert (answer.status_code, answer.content) == (204, b"")
            assert "access-control-allow-origin" not in answer.headers
        # Browsers take it for a no.
        (told,) = [line for line in caplog.messages if "preflight" in line]
        assert "OPTIONS '/v1/x'" in told
        assert "`cors=`" in told
        # A line that exempts them leaves them to the app, and a line in shadow refuses nothing.
        assert await at.statuses("/shadow", method="OPTIONS", headers=ASKS) != [204]


async def test_the_origins_of_the_middleware_may_send_the_request() -> None:
    async with served(hello, cors=[ORIGIN]) as at:
        answer = await at.client.options("/v1/x", headers=ASKS)
        assert answer.status_code == 204
        allowed = [
            answer.headers[f"access-control-allow-{name}"] for name in ("origin", "methods", "headers")
        ]
        assert allowed == [ORIGIN, "POST", "x-one, x-two"]
        assert answer.headers["access-control-allow-credentials"] == "true"
        other = await at.client.options("/v1/x", headers={**ASKS, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with served(hello, cors=["*"]) as at:  # As for refusals: with any origin go no cookies.
        answer = await at.client.options("/v1/x", headers=ASKS)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
