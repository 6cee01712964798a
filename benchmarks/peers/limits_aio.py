"""limits, asynchronous: one rate per request, by each of its strategies.

It can use three clients; valkey-py with libvalkey costs it least of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)

from peers.bare import LIMIT_PER_HOUR, LIMIT_PER_MINUTE, starlette_app
from peers.gate import Gate

if TYPE_CHECKING:
    from limits.aio.strategies import RateLimiter
    from starlette.types import ASGIApp


def storage(redis_url: str) -> RedisStorage:
    return RedisStorage(f"async+{redis_url}", implementation="valkey")


def gated(limiter: RateLimiter) -> ASGIApp:
    item = RateLimitItemPerHour(LIMIT_PER_HOUR)

    async def admit(customer: str) -> bool:
        return await limiter.hit(item, customer)

    return Gate(starlette_app(), admit)


def build_fixed(redis_url: str) -> ASGIApp:
    return gated(FixedWindowRateLimiter(storage(redis_url)))


def build_moving(redis_url: str) -> ASGIApp:
    return gated(MovingWindowRateLimiter(storage(redis_url)))


def build_sliding(redis_url: str) -> ASGIApp:
    return gated(SlidingWindowCounterRateLimiter(storage(redis_url)))


def build_three(redis_url: str) -> ASGIApp:
    """Three sliding windows per customer, one after the other: for the memory that they take."""
    limiter = SlidingWindowCounterRateLimiter(storage(redis_url))
    items = [RateLimitItemPerMinute(LIMIT_PER_MINUTE, namespace=name) for name in ("R", "I", "O")]

    async def admit(customer: str) -> bool:
        return all([await limiter.hit(item, customer) for item in items])

    return Gate(starlette_app(), admit)
