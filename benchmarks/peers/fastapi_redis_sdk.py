"""fastapi-redis-sdk: its lifespan and its app-wide limiter, on the FastAPI app that it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis_fastapi import FastAPIRedis, get_settings

from peers.bare import CUSTOMER_HEADER, LIMIT_PER_HOUR, fastapi_app

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp


def customer(request: Request) -> str:
    return request.headers[CUSTOMER_HEADER.decode()]


def build(redis_url: str) -> ASGIApp:
    get_settings().url = redis_url
    app = fastapi_app()
    FastAPIRedis(app).lifespan().rate_limiting(global_rate=f"{LIMIT_PER_HOUR}/hour", identifier=customer)
    return app
