"""CORS preflights: the app's CORS layer answers them, or no handler of a line that decides runs. F-20a."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Host, Mount, Route, Router

from drivers.app import hello, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example"
ASKS = {
    "x-customer-id": "",
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "x-one, x-two",
}


class PassingOn(CORSMiddleware):
    """A CORS layer that leaves some preflights to the app."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer none of them."""
        await self.app(scope, receive, send)


def cors(kind: type[CORSMiddleware] = CORSMiddleware) -> Middleware:
    return Middleware(kind, allow_origins=[ORIGIN], allow_methods=["POST"], allow_headers=["x-one", "x-two"])


def app_with(*middleware: Middleware, path: str = "/v1/{path:path}") -> Starlette:
    return Starlette(routes=[Route(path, Raw())], middleware=middleware)


class Raw:
    """An app in a route, which takes every method."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200."""
        await hello(scope, receive, send)


def fast() -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.mount("/v1", Raw())
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["POST"], allow_headers=["*"])
    return app


ANSWERING: dict[str, Callable[[], ASGIApp]] = {
    "of the app, behind another middleware": lambda: app_with(Middleware(GZipMiddleware), cors()),
    "around the app": lambda: CORSMiddleware(
        Raw(), allow_origins=[ORIGIN], allow_methods=["POST"], allow_headers=["x-one", "x-two"]
    ),
    "of FastAPI": fast,
    "of a mounted app": lambda: Starlette(routes=[Mount("/v1", app_with(cors(), path="/{path:path}"))]),
    "of a host": lambda: Starlette(routes=[Host("app", app=app_with(cors()))]),
    "of a route": lambda: Starlette(routes=[Route("/v1/{path:path}", Raw(), middleware=[cors()])]),
    "of a router": lambda: Router([Mount("/v1", Raw())], middleware=[cors()]),
}
OPEN: dict[str, Callable[[], ASGIApp]] = {
    "none": Raw,
    "none, in a route": app_with,
    "of another mount": lambda: Starlette(routes=[Mount("/v2", app_with(cors())), Mount("/v1", Raw())]),
    "of another host": lambda: Starlette(
        routes=[Host("other", app=app_with(cors())), Host("app", app=app_with())]
    ),
    "that passes them on": lambda: app_with(cors(PassingOn)),
    "of a mount behind the route": lambda: Starlette(
        routes=[Route("/v1/x", Raw()), Mount("/v1", Raw(), middleware=[cors()])]
    ),
}


@pytest.mark.parametrize("name", ANSWERING)
async def test_a_cors_layer_within_the_app_answers(name: str) -> None:
    async with served(ANSWERING[name]()) as at:
        answer = await at.client.options("/v1/x", headers=ASKS)
        assert (answer.status_code, answer.text) == (200, "OK")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert await at.counted() == (0, 0)


@pytest.mark.parametrize("name", OPEN)
async def test_where_no_layer_answers_no_handler_runs(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(OPEN[name]()) as at:
        for _ in range(2):
            answer = await at.client.options("/v1/x", headers=ASKS)
            assert (answer.status_code, answer.content) == (204, b"")
            assert "access-control-allow-origin" not in answer.headers
        # Browsers take it for a no.
        (told,) = [line for line in caplog.messages if "preflight" in line]
        assert "OPTIONS '/v1/x'" in told
        assert "`cors=`" in told
        # A line that exempts them leaves them to the app, and a line in shadow refuses nothing.
        assert (await at.client.options("/shadow", headers=ASKS)).status_code != 204


async def test_the_origins_of_the_middleware_may_send_the_request() -> None:
    async with served(hello, cors=[ORIGIN]) as at:
        answer = await at.client.options("/v1/x", headers=ASKS)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-methods"] == "POST"
        assert answer.headers["access-control-allow-headers"] == "x-one, x-two"
        other = await at.client.options("/v1/x", headers={**ASKS, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
