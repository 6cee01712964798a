"""What a gauge may do that a change of plan has left above its limit, and since when it is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  storage: {unit: byte, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {storage: {included: 1000, overage: {percent: 5, grace: 7d}}}
  pro:
    price: {amount_cents: 100, interval: month}
    rank: 1
    meters: {storage: {included: 5000, overage: {percent: 10, grace: 1d}}}
  open:
    price: {amount_cents: 200, interval: month}
    rank: 2
dunning: {grace: 7d, restrict_to: free, suspend_after: 14d}
"""
ALLOWING = f"{PLANS}billing: {{changes: {{over_limit: allow}}}}\n"
DAY = timedelta(days=1)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def blocking(store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with MeterKit(loads(PLANS), clock=clock, redis_url=store_url, flush=False, shards=4) as kit:
        yield kit


@pytest.fixture
async def allowing(store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with MeterKit(loads(ALLOWING), clock=clock, redis_url=store_url, flush=False, shards=4) as kit:
        yield kit


async def room(kit: MeterKit) -> int:
    """By how much more the gauge may grow, as it is shown; a decision says the same."""
    left = (await kit.usage("acme"))["meters"]["storage"]["remaining"]
    assert left != "unlimited"
    assert left == 0 or (await kit.check("acme", "storage", left)).allowed
    assert not (await kit.check("acme", "storage", left + 1)).allowed
    return left


async def filled(kit: MeterKit, level: int, plan: str = "pro") -> None:
    await kit.customers.set_plan("acme", plan)
    await kit.gauges.set("acme", "storage", level)


async def test_growth_is_blocked_until_the_level_fits(blocking: MeterKit) -> None:
    await filled(blocking, 4000)
    await blocking.customers.set_plan("acme", "free")
    assert await room(blocking) == 0
    await blocking.gauges.adjust("acme", "storage", -3000)
    assert await room(blocking) == 50


async def test_allowed_it_grows_as_far_as_was_included_before(allowing: MeterKit) -> None:
    await filled(allowing, 4000)
    await allowing.customers.set_plan("acme", "free")
    assert await room(allowing) == 1000
    decision = await allowing.check("acme", "storage", 1001)
    assert decision.gauge is not None
    assert (decision.gauge.limit, decision.gauge.used) == (5000, 4000)
    await allowing.gauges.set("acme", "storage", 1001)
    assert await room(allowing) == 3999


@pytest.mark.parametrize("meanwhile", ["open", "pro"])
async def test_a_grace_begins_anew_where_the_level_fitted_meanwhile(
    blocking: MeterKit, clock: Clock, meanwhile: str
) -> None:
    """Also where nobody has looked at the gauge: neither a decision nor the app."""
    await blocking.gauges.set("acme", "storage", 1010)
    clock.advance(3 * DAY)
    await blocking.customers.set_plan("acme", meanwhile)
    clock.advance(30 * DAY)
    await blocking.customers.set_plan("acme", "free")
    assert await room(blocking) == 40
    clock.advance(7 * DAY - timedelta(milliseconds=1))
    assert await room(blocking) == 40
    clock.advance(timedelta(milliseconds=1))
    assert await room(blocking) == 0
