"""``rate:`` on a line of the plans file: what each customer may ask of it, whatever the plan."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.app import HEADERS, hello, served

if TYPE_CHECKING:
    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens: {unit: token}
routes:
  - {match: "POST /export", rate: 2/hour, consume: {requests: 5}}
  - {match: "/login", rate: [3/minute, {limit: 10/hour, algorithm: fixed-window}]}
  - {match: "/pay", always: true, rate: 1/hour}
  - {match: "POST /chat", rate: 2/hour, reserve: {tokens: {default: 10}}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 100/hour}
  big:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: unlimited}
"""


async def statuses(at: Served, method: str, path: str, times: int, customer: str = "acme") -> list[int]:
    headers = HEADERS | {"x-customer-id": customer}
    return [(await at.client.request(method, path, headers=headers)).status_code for _ in range(times)]


async def test_it_holds_beside_the_plans_and_for_each_customer_apart() -> None:
    async with served(hello, plans=PLANS) as at:
        await at.kit.customers.set_plan("globex", "big")
        for customer in ("acme", "globex"):
            assert await statuses(at, "POST", "/export", 3, customer) == [200, 200, 429]
            assert await statuses(at, "GET", "/export", 3, customer) == [200, 200, 200]
        at.clock.advance(timedelta(hours=2))
        assert await statuses(at, "POST", "/export", 3) == [200, 200, 429]


async def test_it_counts_requests_and_not_what_they_consume() -> None:
    async with served(hello, plans=PLANS) as at:
        assert await statuses(at, "POST", "/export", 2) == [200, 200]
        assert await at.counted() == (10, 0)


async def test_i2_what_it_refuses_counts_nowhere() -> None:
    async with served(hello, plans=PLANS) as at:
        await statuses(at, "POST", "/export", 9)
        assert await at.counted() == (10, 0)
        assert '"requests-1h";r=89' in await at.left("/other")


async def test_its_policies_are_named_route_and_the_window() -> None:
    async with served(hello, plans=PLANS) as at:
        allowed = await at.client.get("/login")
        assert '"route-1m";q=3;w=60, "route-1h";q=10;w=3600' == allowed.headers["ratelimit-policy"]
        assert '"route-1m";r=2;t=90' == allowed.headers["ratelimit"]
        await statuses(at, "GET", "/login", 2)
        refused = await at.client.get("/login")
        assert refused.json()["violated-policies"] == ["route-1m"]
        assert refused.json()["detail"].startswith('Policy "route-1m" allows 3 requests per minute.')


async def test_lines_that_are_always_served_go_by_it() -> None:
    async with served(hello, plans=PLANS) as at:
        await at.kit.customers.set_status("acme", "unpaid")
        assert await statuses(at, "GET", "/pay", 2) == [200, 429]
