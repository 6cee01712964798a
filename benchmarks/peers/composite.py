"""What a user assembles for the same job: a rate, a monthly quota and a usage counter, from stock parts.

It sends no RateLimit fields (limits would need one or two more round trips for them) and takes back
nothing where the request fails: it is the cheap form of the assembly, not the complete one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from limits import RateLimitItemPerHour, RateLimitItemPerMonth
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from peers.bare import LIMIT_PER_HOUR, LIMIT_PER_MONTH, starlette_app
from peers.gate import customer_of, refuse
from peers.limits_aio import storage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Assembled:
    def __init__(self, app: ASGIApp, redis_url: str) -> None:
        self.app = app
        self.rate = RateLimitItemPerHour(LIMIT_PER_HOUR)
        self.quota = RateLimitItemPerMonth(LIMIT_PER_MONTH)
        store = storage(redis_url)
        self.rates = SlidingWindowCounterRateLimiter(store)
        self.quotas = FixedWindowRateLimiter(store)
        # Usage is counted after the response, while the client already sends the next request: the
        # default of 100 connections is not enough for 50 clients, and usage would be lost.
        self.redis = Redis.from_url(redis_url, max_connections=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        customer = customer_of(scope)
        if not await self.rates.hit(self.rate, customer) or not await self.quotas.hit(self.quota, customer):
            await refuse(send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self.app(scope, receive, watch)
        if status < 400:
            await self.redis.hincrby(f"usage:{customer}:{datetime.now(UTC):%Y-%m}", "requests", 1)


def build(redis_url: str) -> ASGIApp:
    return Assembled(starlette_app(), redis_url)
