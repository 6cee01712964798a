"""The application that every variant wraps, without any limiter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import PlainTextResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp

CUSTOMER_HEADER = b"x-customer-id"
LIMIT_PER_HOUR = 100_000_000
LIMIT_PER_MINUTE = 10_000_000
LIMIT_PER_MONTH = 1_000_000_000


PATHS = ("/v1/x", "/v1/items/{item}")


async def answer(request: Request) -> PlainTextResponse:  # noqa: ARG001 - some decorators look for it
    return PlainTextResponse("ok")


def starlette_app() -> Starlette:
    return Starlette(routes=[Route(path, answer) for path in PATHS])


def fastapi_app(endpoint: Callable[[Request], Awaitable[PlainTextResponse]] = answer) -> FastAPI:
    app = FastAPI(openapi_url=None)
    for path in PATHS:
        app.get(path, response_model=None)(endpoint)
    return app


def build(_redis_url: str) -> ASGIApp:
    return starlette_app()


def build_fastapi(_redis_url: str) -> ASGIApp:
    return fastapi_app()
