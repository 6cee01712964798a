"""Overrides of features, and overrides that end: they bind at once, and end at their millisecond."""

# Internals: a pure table of what an older release reads.

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.subscribed_customer import INSTANT, NOW, PLANS, kit_of
from meterkit import MeterkitError, UnknownFeatureError
from meterkit.catalog import loads, override
from meterkit.customers.states import States
from meterkit.decisions.customer_overrides import overrides_at, with_overrides
from meterkit.decisions.periods import to_ms
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

UNTIL = NOW + timedelta(days=3)
FEATURES = PLANS.replace("credits:", "features: [basic, full, extra]\ncredits:").replace(
    "  pro:\n", "  pro:\n    features: [basic, full]\n"
)


def timed_kit(url: str, clock: Clock) -> MeterKit:
    return kit_of(url, clock, FEATURES)


async def had(kit: MeterKit, customer: str = "acme") -> list[str]:
    return [name for name in ("basic", "full", "extra") if await kit.allows(customer, name)]


async def test_i4_an_override_ends_at_its_millisecond_in_every_process(store_url: str) -> None:
    """F-116: no override ended by itself."""
    clock = Clock(NOW)
    async with timed_kit(store_url, clock) as one, timed_kit(store_url, clock) as two:
        await one.customers.override("acme", {"requests": {"included": 50}}, until=UNTIL)
        for kit in (one, two):
            assert (await kit.check("acme", "requests", 50)).allowed
        clock.set(UNTIL - INSTANT)
        for kit in (one, two):
            assert (await kit.check("acme", "requests", 50)).allowed
        assert (await two.usage("acme"))["meters"]["requests"]["included"] == 50
        clock.set(UNTIL)
        for kit in (two, one):
            assert not (await kit.check("acme", "requests", 6)).allowed
        assert (await two.usage("acme"))["meters"]["requests"]["included"] == 5
        found = await one.customers.get("acme")
        assert (found.overrides, found.override_ends) == ({}, {})


async def test_features_are_given_and_taken_besides_the_plans(store_url: str) -> None:
    """F-116: there was no override of features."""
    async with timed_kit(store_url, Clock(NOW)) as kit, timed_kit(store_url, Clock(NOW)) as other:
        await kit.customers.set_plan("acme", "pro")
        assert await had(other) == ["basic", "full"]
        await kit.customers.override("acme", {}, features=["extra"])
        assert await had(other) == ["basic", "full", "extra"]
        await kit.customers.override("acme", {}, features={"full": False})
        assert await had(other) == await had(kit) == ["basic", "extra"]
        assert (await other.usage("acme"))["features"] == ["basic", "extra"]
        found = await other.customers.get("acme")
        assert found.feature_overrides == {"extra": True, "full": False}
        await kit.customers.override("acme", {"requests": {"included": 50}})  # Features stay.
        assert await had(other) == ["basic", "extra"]
        await kit.customers.override("acme", {}, features=[])
        assert await had(other) == ["basic", "full"]
        assert (await kit.customers.get("acme")).overrides == {"requests": {"included": 50}}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"features": ["fulll"]}, UnknownFeatureError),
        ({"features": {"full": "yes"}}, MeterkitError),
        ({"features": [1]}, MeterkitError),
        ({"features": ["full"], "until": NOW}, MeterkitError),
        ({"features": ["full"], "until": UNTIL.replace(tzinfo=None)}, MeterkitError),
        ({"features": ["full"], "until": "2031-07-01"}, MeterkitError),
    ],
)
async def test_what_cannot_be_given_changes_nothing(
    store_url: str, given: dict[str, Any], error: type[Exception]
) -> None:
    async with timed_kit(store_url, Clock(NOW)) as kit:
        with pytest.raises(error):
            await kit.customers.override("acme", {"requests": {"included": 50}}, **given)
        assert not await kit.customers.known("acme")


def test_i12_an_older_release_keeps_an_override_it_cannot_read() -> None:
    """An older one lays over what it can read: an override with an end, or of features, it cannot."""
    catalog = loads(FEATURES)
    plan, now_ms = catalog.plans["free"], to_ms(NOW)
    stored = with_overrides(
        {"tokens": {"included": 60}},
        {"requests": {"included": 50}},
        {"full": True},
        until_ms=to_ms(UNTIL),
        now_ms=now_ms,
    )
    assert override(catalog, plan, stored) == override(catalog, plan, {"tokens": {"included": 60}})
    kept = json.loads(json.dumps(stored))
    assert overrides_at(kept, now_ms) == overrides_at(stored, now_ms)
    assert overrides_at(kept, to_ms(UNTIL)).features == {}
    assert overrides_at(kept, now_ms).ends == {"requests": to_ms(UNTIL), "feature full": to_ms(UNTIL)}


PRICED = """
schema: 1
currency: usd
default_plan: basic
meters:
  tokens: {unit: token, stripe: {event_name: ai_tokens}}
plans:
  basic:
    price: {amount_cents: 1000, interval: month}
    meters: {tokens: {included: 0, overage: {bill: {per: 1, amount_cents: 5}}}}
  cheaper:
    price: {amount_cents: 2000, interval: month}
    meters: {tokens: {included: 0, overage: {bill: {per: 1, amount_cents: 3}}}}
"""


async def test_a_timed_price_stays_that_of_units_recorded_under_it() -> None:
    """Once the plan had changed they were shown at the earlier plan's price: 50 cents for 20.

    An older release has stored the price, without a subscription.
    """
    own: Mapping[str, Mapping[str, object]] = {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 2}}}}
    stored = with_overrides({}, own, None, until_ms=to_ms(UNTIL), now_ms=to_ms(NOW))
    async with kit_of("memory://", Clock(NOW), PRICED) as kit:
        await States(kit.store).change("acme", lambda state: replace(state, overrides=stored))
        await kit.customers.set_plan("acme", "basic")
        await kit.record("acme", "tokens", 10)
        assert (await kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 20
        await kit.customers.set_plan("acme", "cheaper")
        assert (await kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 20
