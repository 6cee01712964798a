"""Several middlewares around one app: one kit counts a request once, two kits count it twice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from drivers.app import PLANS, hello, http_scope, no_more, served
from meterkit import MeterKit, MeterMiddleware, identify

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

WARNING = "wraps this app more than once"
DEEP = PLANS.replace("/v1/{path:path}", "/{path:path}")


def who(scope: Scope) -> str | None:
    return identify.header("x-customer-id")(scope)


class Copying:
    """Hands on a scope of its own, as routers and middlewares do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "path": scope["path"]}, receive, send)


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


def mounted(inner: ASGIApp) -> Starlette:
    return Starlette(routes=[Mount("/v1", inner)])


def fast(inner: ASGIApp) -> FastAPI:
    app = FastAPI()
    app.mount("/v1", inner)
    return app


BETWEEN: dict[str, Callable[[ASGIApp], ASGIApp]] = {
    "nothing": lambda app: app,
    "mounts": lambda app: Starlette(routes=[Mount("/v1", routes=[Mount("/deep", app)])]),
    "a copied scope": Copying,
    "BaseHTTPMiddleware": PassingOn,
    "a mount in FastAPI": fast,
}


@asynccontextmanager
async def wrapped(between: Callable[[ASGIApp], ASGIApp]) -> AsyncGenerator[Served]:
    """An app wrapped by a kit, something around that, and the kit's middleware once more."""
    kits: list[MeterKit] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await MeterMiddleware(hello, kit=kits[0], identify=who)(scope, receive, send)

    async with served(between(inner), plans=DEEP) as at:
        kits.append(at.kit)
        yield at


@pytest.mark.parametrize("between", BETWEEN)
async def test_one_kit_counts_a_request_once_however_wrapped(
    between: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-8: by mistake, or an app and one that is mounted in it."""
    async with wrapped(BETWEEN[between]) as at:
        for n in range(1, 4):
            response = await at.client.get("/v1/deep/x")
            assert response.status_code == 200
            assert response.headers.get_list("ratelimit") == [f'"requests-period";r={5 - n};t=1771170']
            assert await at.counted() == (n, 0)
    assert WARNING in caplog.text


async def test_two_kits_both_count() -> None:
    async with served(hello) as inner, served(inner.app) as at:
        assert (await at.client.get("/v1/x")).status_code == 200
        assert await at.counted() == (1, 0)
        assert await inner.counted() == (1, 0)


async def test_a_request_that_the_app_makes_of_its_own_counts() -> None:
    """F-8: it has a scope of its own, but runs in the context of the first."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/outer":
            assert (await at.client.get("/v1/inner")).status_code == 200
            await at.app(http_scope("/v1/inner"), no_more, ignore)
        await hello(scope, receive, send)

    async with served(app) as at:
        assert (await at.client.get("/v1/outer")).status_code == 200
        assert await at.counted() == (3, 0)


async def ignore(message: Message) -> None:
    del message


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
        assert await at.counted() == (4, 0)
        assert state == {}
