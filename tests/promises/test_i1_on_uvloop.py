"""I1: on uvloop, which most deployments run on, requests are decided and counted as they are on asyncio."""

from __future__ import annotations

import pytest

from drivers.app import hello, served

pytestmark = [pytest.mark.anyio, pytest.mark.each_loop]


async def test_i1_a_customer_is_refused_where_the_plan_says_so(store_url: str) -> None:
    # F-1: uvloop's transports are not asyncio's, so no connection was made and all passed uncounted.
    async with served(hello, redis_url=store_url) as app:
        statuses = [(await app.client.get("/v1/x")).status_code for _ in range(7)]
        assert (statuses, await app.counted()) == ([200] * 5 + [429] * 2, (5, 0))
