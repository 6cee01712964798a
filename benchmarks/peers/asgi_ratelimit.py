"""asgi-ratelimit: its middleware and its asynchronous Redis backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimit import RateLimitMiddleware, Rule
from ratelimit.backends.redis import RedisBackend
from redis.asyncio import Redis

from peers.bare import LIMIT_PER_HOUR, starlette_app
from peers.gate import customer_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope


async def authenticate(scope: Scope) -> tuple[str, str]:
    return customer_of(scope), "default"


def build(redis_url: str) -> ASGIApp:
    backend = RedisBackend(Redis.from_url(redis_url))
    return RateLimitMiddleware(
        starlette_app(), authenticate, backend, {r"^/v1/": [Rule(hour=LIMIT_PER_HOUR, zone="v1")]}
    )
