"""``kit.gauges``: levels are the app's facts, of no period, and stay until they are changed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import CustomerError, MeterkitError, QuantityError, UnknownMeterError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  storage:  {unit: byte, kind: gauge}
  seats:    {unit: seat, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      storage: {included: 1000, overage: {percent: 5, grace: 7d}}
      seats:   {included: 2}
  pro:
    price: {amount_cents: 100, interval: month}
    meters:
      seats: {included: unlimited}
"""
MOST = 10**15 - 1


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture(params=["memory", "server"])
async def kit(request: pytest.FixtureRequest, clock: Clock, valkey: Server) -> AsyncIterator[MeterKit]:
    url = "memory://" if request.param == "memory" else valkey.url
    prefix = f"gauge{id(request)}"
    settings: dict[str, Any] = {"redis_url": url, "flush": False, "shards": 4, "key_prefix": prefix}
    async with MeterKit(loads(PLANS), clock=clock, **settings) as kit:
        yield kit


async def test_a_level_is_what_was_set_and_adjusted(kit: MeterKit) -> None:
    gauges = kit.gauges
    assert await gauges.get("acme", "storage") == 0
    assert await gauges.set("acme", "storage", 900) == 900
    assert await gauges.adjust("acme", "storage", 50) == 950
    assert await gauges.adjust("acme", "storage", -900) == 50
    assert await gauges.adjust("acme", "storage", 0) == 50
    assert await gauges.set("acme", "seats", MOST) == MOST
    assert (await gauges.get("acme", "storage"), await gauges.get("acme", "seats")) == (50, MOST)
    assert await gauges.get("ida", "storage") == 0


async def test_a_level_does_not_go_below_0_or_beyond_what_is_counted(kit: MeterKit) -> None:
    await kit.gauges.set("acme", "storage", 500)
    with pytest.raises(QuantityError, match=r"the level is 500; 501 less would be below 0"):
        await kit.gauges.adjust("acme", "storage", -501, event_id="deleted")
    assert await kit.gauges.get("acme", "storage") == 500
    with pytest.raises(QuantityError, match=r"the level is 500; .* more would pass"):
        await kit.gauges.adjust("acme", "storage", MOST - 499)
    # What was refused has not counted: once there is enough, it does.
    assert await kit.gauges.set("acme", "storage", 501) == 501
    assert await kit.gauges.adjust("acme", "storage", -501, event_id="deleted") == 0
    assert await kit.gauges.adjust("acme", "storage", MOST) == MOST


@pytest.mark.parametrize("quantity", [-1, MOST + 1, 1.0, True, "1", None])
async def test_what_is_no_quantity_is_refused(kit: MeterKit, quantity: Any) -> None:
    with pytest.raises(QuantityError):
        await kit.gauges.set("acme", "storage", quantity)
    if quantity != -1:
        with pytest.raises(QuantityError):
            await kit.gauges.adjust("acme", "storage", quantity)


async def test_counters_have_no_level_and_gauges_are_not_counted(kit: MeterKit) -> None:
    with pytest.raises(UnknownMeterError, match="found 'requests'; allowed are the gauges seats, storage"):
        await kit.gauges.set("acme", "requests", 1)
    with pytest.raises(UnknownMeterError, match="did you mean 'seats'"):
        await kit.gauges.get("acme", "seat")
    with pytest.raises(CustomerError):
        await kit.gauges.get("", "seats")
    with pytest.raises(MeterkitError, match="event_id"):
        await kit.gauges.set("acme", "seats", 1, event_id="")
    for counting in (kit.record("acme", "seats", 1), kit.consume("acme", "seats", 1)):
        with pytest.raises(UnknownMeterError, match=r"kit\.gauges\.set and kit\.gauges\.adjust"):
            await counting


async def test_a_level_outlives_periods_and_is_shown_as_used(kit: MeterKit, clock: Clock) -> None:
    await kit.gauges.set("acme", "storage", 900)
    await kit.consume("acme", "requests")
    clock.advance(timedelta(days=400))
    await kit.consume("acme", "requests")
    assert await kit.gauges.get("acme", "storage") == 900
    shown = (await kit.usage("acme"))["meters"]
    assert shown["requests"]["used"] == 1
    storage = shown["storage"]
    assert (storage["used"], storage["recorded"], storage["held"]) == (900, 900, 0)
    assert (storage["included"], storage["remaining"], storage["overage"]) == (1000, 150, 0)
    assert (storage["pending"], storage["delivered"]) == (0, 0)
    await kit.customers.set_plan("acme", "pro")
    assert (await kit.usage("acme"))["meters"]["storage"]["remaining"] == "unlimited"


async def test_where_enforcement_is_off_nothing_is_kept(clock: Clock) -> None:
    settings: dict[str, Any] = {"redis_url": "redis://127.0.0.1:1", "flush": False, "enforcement": "off"}
    async with MeterKit(loads(PLANS), clock=clock, **settings) as kit:
        assert await kit.gauges.set("acme", "storage", 5) == 0
        assert await kit.gauges.get("acme", "storage") == 0
        assert (await kit.check("acme", "storage", 10**9)).allowed
