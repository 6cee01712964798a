"""What a user assembles for the same job, at its cheapest: a rate, a monthly quota and a usage counter.

One pipeline, so one round trip, sends the script of limits' sliding window and a counter that is both quota
and usage. It sends no RateLimit fields, which would take one more script.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from limits.util import get_package_data
from valkey.asyncio import Valkey

from peers.bare import LIMIT_PER_HOUR, LIMIT_PER_MONTH, starlette_app
from peers.gate import customer_of, refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SLIDING_WINDOW = get_package_data("resources/redis/lua_scripts/acquire_sliding_window.lua")


class Assembled:
    def __init__(self, app: ASGIApp, redis_url: str) -> None:
        self.app = app
        self.redis = Valkey.from_url(redis_url, max_connections=1000)
        self.sha = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        customer = customer_of(scope)
        self.sha = self.sha or await self.redis.script_load(SLIDING_WINDOW)
        usage = f"usage:{customer}:{datetime.now(UTC):%Y-%m}"
        pipe = self.redis.pipeline(transaction=False)
        pipe.evalsha(self.sha, 2, f"{{{customer}}}/-1", f"{{{customer}}}", LIMIT_PER_HOUR, 3600, 1)
        pipe.hincrby(usage, "requests", 1)
        is_below_rate, used = await pipe.execute()
        if not is_below_rate or used > LIMIT_PER_MONTH:
            await self.redis.hincrby(usage, "requests", -1)
            await refuse(send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self.app(scope, receive, watch)
        if status >= 400:
            await self.redis.hincrby(usage, "requests", -1)


def build(redis_url: str) -> ASGIApp:
    return Assembled(starlette_app(), redis_url)
