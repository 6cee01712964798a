"""I1: on uvloop, which most deployments run on, requests are decided and counted as they are on asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from metering import hello, served

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_i1_a_customer_is_refused_where_the_plan_says_so(store_url: str) -> None:
    # F-1: uvloop's transports are not asyncio's, so no connection was made and all passed uncounted.
    async with served(hello, redis_url=store_url) as app:
        statuses = [(await app.client.get("/v1/x")).status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert await app.counted() == (5, 0)
