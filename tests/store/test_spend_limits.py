"""Budgets of plans and spend limits of customers: what they count, refuse, and tell."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from drivers.delivery import NOW, until
from drivers.subscribed_customer import kit_of
from meterkit import MeterKit, MeterkitError, PlansError, UsageThreshold
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS = """
default_plan: pro
meters:
  words:  {unit: word, stripe: {event_name: words}}
  images: {unit: image, stripe: {event_name: images}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: BUDGET
    meters:
      words:  {included: 1000, overage: {bill: {per: 1000, amount_cents: 7}}}
      images: {included: 1, overage: {bill: {per: 1, amount_cents: 30}}}
"""


def kit_on(url: str, clock: Clock, budget: str = "{amount_cents: 100}", plans: str = PLANS) -> MeterKit:
    return kit_of(url, clock, plans.replace("BUDGET", budget))


async def spent(kit: MeterKit) -> int:
    return (await kit.usage("ada"))["meters"]["spend"]["recorded"]


async def takes(kit: MeterKit, meter: str, quantity: int) -> bool:
    decision = await kit.consume("ada", meter, quantity)
    assert decision.allowed or decision.reason == "spend"
    return decision.allowed


@pytest.mark.parametrize(
    ("per", "policy", "span", "ends"),
    [
        ("day", "spend-1d", timedelta(days=1), NOW.replace(day=11, hour=0, minute=0, second=0)),
        ("hour", "spend-1h", timedelta(hours=1), NOW.replace(hour=13, second=0)),
    ],
)
async def test_a_budget_of_a_day_or_an_hour_begins_anew(
    store_url: str, clock: Clock, per: str, policy: str, span: timedelta, ends: datetime
) -> None:
    async with kit_on(store_url, clock, f"{{amount_cents: 30, per: {per}}}") as kit:
        first = await kit.consume("ada", "images", 2)
        decision = await kit.consume("ada", "images", 1)
        assert (decision.violated, decision.retry_after) == ((policy,), ends - NOW)
        assert (first.limit, first.reset_after) == (policy, ends - NOW)
        clock.advance(ends - NOW - timedelta(milliseconds=1))
        assert not await takes(kit, "images", 1)
        clock.advance(timedelta(milliseconds=1))
        assert await takes(kit, "images", 1)
        clock.advance(span)
        assert await takes(kit, "images", 1)


async def test_spend_limits_of_several_spans_hold_at_once(store_url: str, clock: Clock) -> None:
    async with kit_on(store_url, clock) as kit:
        await kit.customers.spend_limit("ada", 60)
        found = await kit.customers.spend_limit("ada", 30, per="day")
        assert found.overrides == {"spend": {"period": 60, "day": 30}}
        assert await takes(kit, "images", 2)
        assert (await kit.consume("ada", "images", 1)).violated == ("spend-1d",)
        assert (await kit.consume("ada", "images", 2)).violated == ("spend-period", "spend-1d")
        await kit.customers.spend_limit("ada", None, per="day")
        assert await takes(kit, "images", 1)
        assert (await kit.customers.spend_limit("ada", None)).overrides == {}
        assert await takes(kit, "images", 1)


async def test_no_spend_limit_takes_the_end_of_an_override(store_url: str, clock: Clock) -> None:
    async with kit_on(store_url, clock) as kit:
        await kit.customers.override("ada", {"spend": {"day": 30}}, until=NOW + timedelta(days=1))
        with pytest.raises(MeterkitError, match=r"per day until .*; set all by `override`"):
            await kit.customers.spend_limit("ada", 80)
        until_tomorrow = {"spend": NOW + timedelta(days=1)}
        assert (await kit.customers.spend_limit("ada", None)).override_ends == until_tomorrow
        assert (await kit.customers.spend_limit("ada", 40, per="day")).override_ends == {}


async def test_only_what_is_asked_for_is_weighed_beside_a_rate(store_url: str, clock: Clock) -> None:
    plans = PLANS.replace("{included: 1000, over", "{included: 1000, rate: 9000/hour, over")
    async with kit_on(store_url, clock, "{amount_cents: 25}", plans=plans) as kit:
        assert await takes(kit, "images", 1)
        assert await takes(kit, "words", 2000)
        assert not await takes(kit, "images", 1)


async def test_a_limit_that_cannot_be_is_refused(store_url: str, clock: Clock) -> None:
    plain = PLANS.replace("    budget: BUDGET\n", "")
    async with kit_on(store_url, clock, plans=plain) as kit:
        with pytest.raises(MeterkitError, match="no plan has a budget"):
            await kit.customers.spend_limit("ada", 1)
    wrong: list[tuple[Any, Any]] = [(-1, "period"), (1.5, "day"), (True, "hour"), ("x", "hour"), (1, "week")]
    async with kit_on(store_url, clock) as kit:
        for amount, per in wrong:
            with pytest.raises(PlansError):
                await kit.customers.spend_limit("ada", amount, per)
        assert (await kit.customers.get("ada")).overrides == {}
        # Only the scripts count it.
        for counting in (kit.record("ada", "spend", 1), kit.consume("ada", "spend", 1)):
            with pytest.raises(MeterkitError, match="'spend'"):
                await counting


@pytest.mark.parametrize("per", ["period", "day"])
async def test_an_override_above_the_budget_is_refused(store_url: str, clock: Clock, per: str) -> None:
    async with kit_on(store_url, clock, f"{{amount_cents: 100, per: {per}}}") as kit:
        told = f"the plan pro has a budget of [$]1.00 per {per}, and the lower one applies; raise `budget`"
        with pytest.raises(MeterkitError, match=told):
            await kit.customers.override("ada", {"spend": {per: 101}})
        with pytest.raises(PlansError, match="overridden by the limits of `spend`"):
            await kit.customers.override("ada", {"budget": {"amount_cents": 101}})
        assert (await kit.customers.get("ada")).overrides == {}
        for lower in ({per: 100}, {per: 99, "hour": 200}):
            assert (await kit.customers.override("ada", {"spend": lower})).overrides == {"spend": lower}


async def test_a_budget_that_notifies_refuses_nothing(store_url: str, clock: Clock) -> None:
    told: list[UsageThreshold] = []
    async with kit_on(store_url, clock, "{amount_cents: 60, at_limit: notify, warn_at: [50, 100]}") as kit:
        kit.on("usage.threshold")(told.append)
        assert await takes(kit, "images", 5)
        await until(lambda: len(told) == 2)
        assert sorted(event.percent for event in told) == [50, 100]
        assert {event.meter for event in told} == {"spend"}
        # The customer's own limit takes its place.
        await kit.customers.spend_limit("ada", 120)
        assert not await takes(kit, "images", 1)


async def test_units_over_a_cap_spend_nothing(store_url: str, clock: Clock) -> None:
    capped = PLANS.replace(
        "{bill: {per: 1000, amount_cents: 7}}", "{bill: {cap: 3_000, per: 1000, amount_cents: 7}}"
    )
    async with kit_on(store_url, clock, plans=capped) as kit:
        await kit.record("ada", "words", 50_000)
        assert await spent(kit) == 21 * 10_000
        assert await takes(kit, "images", 3)
        await kit.correct("ada", {"words": 46_500}, reason="a loop", correction_id="c-1")
        assert await spent(kit) == 175_000 + 600_000  # 2,500 words and two images.


BY_MODEL = """
default_plan: pro
meters:
  words: {unit: word, stripe: {event_name: words}}
prices:
  words: {default: 4 per 100, models: {"*-mini": 0.7 per 1000, "opus-*": 2 per 10}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: BUDGET
    meters: {words: {included: 1000, overage: {bill: {price: prices.words}}}}
"""


async def test_corrected_units_come_off_the_prices_that_counted_them(store_url: str, clock: Clock) -> None:
    async with kit_on(store_url, clock, plans=BY_MODEL) as kit:
        for model, words in (("a-mini", 6_000), ("opus-4", 100)):
            async with kit.reserve("ada", {"words": words}, model=model) as reservation:
                await reservation.capture({"words": words}, model=model)
        await kit.record("ada", "words", 50)
        assert await spent(kit) == 5_000 * 7 + 100 * 2_000 + 50 * 400
        await kit.correct("ada", {"words": 60}, reason="a mistake", correction_id="1", by="ops")
        assert await spent(kit) == 5_000 * 7 + 90 * 2_000
        assert (await kit.usage("ada"))["meters"]["words"]["overage_cents"] == 22
        await kit.correct("ada", {"words": 9_999}, reason="a mistake", correction_id="2", by="ops")
        assert await spent(kit) == 0
        assert (await kit.usage("ada"))["meters"]["words"]["overage_cents"] == 0
