"""throttled-py: its default algorithm in a minimal middleware, and its own FastAPI integration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from throttled.asyncio import RateLimiterType, Throttled, store
from throttled.asyncio.contrib.fastapi import (
    Limiter,
    RateLimitExceededError,
    RateLimitMiddleware,
    rate_limit_exceeded_handler,
)

from peers.bare import CUSTOMER_HEADER, LIMIT_PER_HOUR, answer, fastapi_app, starlette_app
from peers.gate import Gate

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

QUOTA = f"{LIMIT_PER_HOUR}/h"


def gated(redis_url: str, algorithm: RateLimiterType) -> ASGIApp:
    throttle = Throttled(using=algorithm.value, quota=QUOTA, store=store.RedisStore(server=redis_url))

    async def admit(customer: str) -> bool:
        return not (await throttle.limit(customer)).limited

    return Gate(starlette_app(), admit)


def build_token_bucket(redis_url: str) -> ASGIApp:
    return gated(redis_url, RateLimiterType.TOKEN_BUCKET)


def build_fixed(redis_url: str) -> ASGIApp:
    return gated(redis_url, RateLimiterType.FIXED_WINDOW)


def customer(request: Request) -> str:
    return request.headers[CUSTOMER_HEADER.decode()]


def build_fastapi(redis_url: str) -> ASGIApp:
    limiter = Limiter(QUOTA, store=store.RedisStore(server=redis_url), key_func=customer)
    app = fastapi_app(limiter.limit()(answer))
    app.add_middleware(RateLimitMiddleware)
    app.add_exception_handler(RateLimitExceededError, rate_limit_exceeded_handler)
    return app
