"""``kit.gauges``: levels are the app's facts, of no period, and stay until they are changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from drivers.subscribed_customer import kit_of
from meterkit import MeterKit
from meterkit.errors import CustomerError, MeterkitError, QuantityError, UnknownMeterError
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS = """
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
    rank: 1
    meters:
      storage: {included: 5000, overage: {percent: 10, grace: 1d}}
      seats:   {included: unlimited}
"""
MOST = 10**15 - 1


@pytest.fixture
async def kit(any_store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with kit_of(any_store_url, clock, PLANS) as kit:
        yield kit


async def test_a_level_is_what_was_set_and_adjusted(kit: MeterKit) -> None:
    gauges = kit.gauges
    assert await gauges.get("acme", "storage") == 0
    assert await gauges.set("acme", "storage", 900) == 900
    assert [await gauges.adjust("acme", "storage", change) for change in (50, -900, 0)] == [950, 50, 50]
    assert await gauges.set("acme", "seats", MOST) == MOST
    asked = (("acme", "storage"), ("acme", "seats"), ("ida", "storage"))
    assert [await gauges.get(*one) for one in asked] == [50, MOST, 0]


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


@pytest.mark.parametrize("quantity", [-1, MOST + 1, 1.0, True])
async def test_what_is_no_quantity_is_refused(kit: MeterKit, quantity: Any) -> None:
    for change in (kit.gauges.set,) if quantity == -1 else (kit.gauges.set, kit.gauges.adjust):
        with pytest.raises(QuantityError):
            await change("acme", "storage", quantity)


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
    expected = {"used": 900, "recorded": 900, "held": 0, "included": 1000, "remaining": 150, "overage": 0}
    assert shown["storage"].items() >= (expected | {"pending": 0, "delivered": 0}).items()
    await kit.customers.set_plan("acme", "pro")
    assert (await kit.usage("acme"))["meters"]["seats"]["remaining"] == "unlimited"


async def test_where_enforcement_is_off_nothing_is_kept(clock: Clock) -> None:
    async with kit_of("redis://127.0.0.1:1", clock, PLANS, enforcement="off") as kit:
        assert await kit.gauges.set("acme", "storage", 5) == 0
        assert await kit.gauges.get("acme", "storage") == 0
        assert (await kit.check("acme", "storage", 10**9)).allowed


# After a change of plan that leaves a gauge above its limit.


async def room(kit: MeterKit) -> int:
    """By how much more the gauge may grow, as it is shown; a decision says the same."""
    left = (await kit.usage("acme"))["meters"]["storage"]["remaining"]
    assert left != "unlimited"
    assert left == 0 or (await kit.check("acme", "storage", left)).allowed
    assert not (await kit.check("acme", "storage", left + 1)).allowed
    return left


@pytest.mark.parametrize(
    ("over_limit", "more", "limit", "level", "left"),
    [
        ("block_growth", 0, 1050, 1000, 50),  # Until it fits.
        ("allow", 1000, 5000, 1001, 3999),  # As far as was included before.
    ],
)
async def test_growth_goes_on_as_the_plans_file_says(
    store_url: str, clock: Clock, over_limit: str, more: int, limit: int, level: int, left: int
) -> None:
    plans = f"{PLANS}billing: {{changes: {{over_limit: {over_limit}}}}}"
    async with kit_of(store_url, clock, plans) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.gauges.set("acme", "storage", 4000)
        await kit.customers.set_plan("acme", "free")
        assert await room(kit) == more
        decision = await kit.check("acme", "storage", 1001)
        assert decision.gauge is not None
        assert (decision.gauge.limit, decision.gauge.used) == (limit, 4000)
        await kit.gauges.set("acme", "storage", level)
        assert await room(kit) == left


async def test_a_grace_begins_anew_where_the_level_fitted_meanwhile(kit: MeterKit, clock: Clock) -> None:
    """Also where neither a decision nor the app has looked at the gauge."""
    await kit.gauges.set("acme", "storage", 1010)
    clock.advance(timedelta(days=3))
    await kit.customers.set_plan("acme", "pro")
    clock.advance(timedelta(days=30))
    await kit.customers.set_plan("acme", "free")
    clock.advance(timedelta(days=7, milliseconds=-1))
    assert await room(kit) == 40
    clock.advance(timedelta(milliseconds=1))
    assert await room(kit) == 0
