"""Customers: links that are one to one, deletion that loses nothing, changes that do not mix up requests."""

# Internals: a pure table of what a customer's own terms come to, and when they end.

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import CATALOG
from drivers.subscribed_customer import INSTANT, NOW, PLANS, kit_of
from faults.refusals import before_asking, before_script, kit_at
from meterkit import UnknownFeatureError
from meterkit.catalog import loads, override
from meterkit.customers.states import States
from meterkit.decisions.customer_overrides import overrides_at, with_overrides
from meterkit.decisions.periods import to_ms
from meterkit.errors import CustomerError, MeterkitError, PlansError, StoreError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit import MeterKit
    from servers.stores import Server

pytestmark = pytest.mark.anyio


async def test_a_stripe_customer_is_linked_to_one_customer_only(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        tries = [kit.customers.link(f"c{n}", "cus_1") for n in range(8)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        refused = [error for error in done if isinstance(error, CustomerError)]
        linked = [found.customer async for found in kit.customers.list() if found.stripe_customer == "cus_1"]
        assert (7, 1) == (len(refused), len(linked))
        again = await kit.customers.link(linked[0], "cus_1")
        assert again.stripe_customer == "cus_1"


async def test_a_claim_that_is_fulfilled_meanwhile_is_not_taken_over(valkey: Server) -> None:
    # Two customers were linked to one: the first between the other's look at its state and its claim.
    async with kit_at(valkey.url, plans=CATALOG) as first, kit_at(valkey.url, plans=CATALOG) as second:
        valkey.command("SET", first.store.keys.link("cus_1"), "a")  # As after a process that was killed.
        await before_script(second, "claim", lambda: first.customers.link("a", "cus_1"))
        with pytest.raises(CustomerError, match="linked to customer 'a' already"):
            await second.customers.link("b", "cus_1")
        assert (await first.customers.get("b")).stripe_customer is None
        assert (await first.customers.get("a")).stripe_customer == "cus_1"


async def test_a_link_whose_claim_is_taken_over_meanwhile_is_undone(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as first, kit_at(valkey.url, plans=CATALOG) as second:
        await before_script(second, "amend", lambda: first.customers.link("a", "cus_1"))
        with pytest.raises(CustomerError, match="linked to customer 'a' already"):
            await second.customers.link("b", "cus_1")
        assert (await first.customers.get("b")).stripe_customer is None
        assert (await first.customers.get("a")).stripe_customer == "cus_1"


async def test_an_unlink_leaves_a_link_that_was_made_meanwhile(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as first, kit_at(valkey.url, plans=CATALOG) as second:
        await first.customers.link("a", "cus_1")

        async def relink() -> None:
            await first.customers.unlink("a")
            await first.customers.link("a", "cus_2")

        await before_script(second, "amend", relink)
        assert (await second.customers.unlink("a")).stripe_customer == "cus_2"
        assert (await first.customers.get("a")).stripe_customer == "cus_2"
        assert (await first.customers.link("b", "cus_1")).stripe_customer == "cus_1"


@pytest.mark.parametrize(
    ("script", "what"), [("amend", "while it was being changed"), ("forget", "was deleted")]
)
async def test_a_customer_that_changes_again_and_again_is_given_up(
    valkey: Server, script: str, what: str
) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as first, kit_at(valkey.url, plans=CATALOG) as second:
        numbers = iter(range(1, 100))

        async def change() -> None:
            await first.customers.override("a", {"rows": {"included": next(numbers)}})

        await before_script(second, script, change)
        with pytest.raises(StoreError, match=f"customer 'a' changed 32 times .*{what}; try again"):
            await (
                second.customers.delete("a") if script == "forget" else second.customers.set_plan("a", "pro")
            )
        assert (await first.customers.get("a")).overrides == {"rows": {"included": 32}}


async def test_a_state_that_changes_twice_while_asking_refuses(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        customers = kit.customers
        changes = [lambda: customers.set_status("a", "unpaid"), lambda: customers.set_plan("a", "pro")]

        async def change() -> None:
            await changes.pop()()  # It is not asked a third time.

        end = await before_asking(kit, change)
        decision = await kit.consume("a", "rows")
        end()
        assert (decision.allowed, decision.reason, changes) == (False, "suspended", [])
        assert (await kit.usage("a"))["meters"]["rows"]["recorded"] == 0


async def test_the_same_link_made_many_times_at_once_holds(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        await asyncio.gather(*(kit.customers.link("a", "cus_1") for _ in range(8)))
        assert (await kit.customers.get("a")).stripe_customer == "cus_1"
        with pytest.raises(CustomerError, match="linked to customer 'a' already"):
            await kit.customers.link("b", "cus_1")


async def test_a_customer_with_sealed_usage_is_not_deleted(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        await kit.customers.link("a", "cus_a")
        await kit.record("a", "tokens", 150)
        with pytest.raises(CustomerError, match="not delivered yet"):
            await kit.customers.delete("a")
        keys = kit.store.keys.customer("a")
        valkey.command("ZREM", keys.dirty, "a")
        valkey.command("HSET", keys.totals, "1|abcdq", 50)  # Sealed, and on its way.
        with pytest.raises(CustomerError, match="not delivered yet"):
            await kit.customers.delete("a")
        valkey.command("HSET", keys.totals, "1|abcdq", 0)
        await kit.customers.delete("a")
        assert (await kit.usage("a"))["meters"]["tokens"]["recorded"] == 0
        assert (await kit.customers.get("a")).stripe_customer is None
        await kit.customers.link("b", "cus_a")


async def test_an_override_that_cannot_be_counted_is_refused(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        rate = {"limit": "1/day", "algorithm": "token-bucket", "burst": 10**15 - 1}
        with pytest.raises(PlansError, match="cannot be counted exactly"):
            await kit.customers.override("a", {"rows": {"rate": [rate]}})
        assert (await kit.customers.get("a")).overrides == {}


def test_two_meters_that_would_share_a_field_are_refused() -> None:
    plans = loads("""
schema: 1
currency: usd
default_plan: p
meters:
  meter_2074: {unit: u}
  meter_3503: {unit: u}
plans:
  p:
    price: {amount_cents: 0, interval: month}
""")
    with pytest.raises(PlansError, match="would be counted as one"):
        kit_at("redis://127.0.0.1:1", plans=plans)


WRONG: list[tuple[str, object, str]] = [
    ("link", None, "Stripe customer: found a value of type NoneType; allowed is an id like cus_123"),
    ("set_plan", [], "plan: found a value of type list; allowed are the plans "),
    ("set_status", "none", "status: found 'none'; allowed are .*, canceled and None"),
    ("override", None, "override: found a value of type NoneType; allowed is a mapping of meters"),
    ("override", {5: {}}, "override: found a value of type int as a meter; name it by a text"),
    ("override", {"rows": None}, "override of rows: found a value of type NoneType; .* to take it back"),
    ("override", {"rows": {"included": Decimal(5)}}, "override of rows.included: .* of type Decimal"),
    ("override", {"rows": {"included": {5}}}, "override rows.included: found "),
]


@pytest.mark.parametrize(("method", "argument", "message"), WRONG)
async def test_what_is_of_a_wrong_type_is_refused_and_nothing_is_kept(
    valkey: Server, method: str, argument: object, message: str
) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        with pytest.raises(MeterkitError, match=rf"^{message}"):
            await getattr(kit.customers, method)("a", argument)
        assert not await kit.customers.known("a")


async def test_known_is_who_was_set_up_or_has_used_something(valkey: Server) -> None:
    async with kit_at(valkey.url, plans=CATALOG) as kit:
        await kit.usage("a")  # To look is not to know.
        assert not await kit.customers.known("a")
        await kit.consume("a", "rows", 1)
        assert await kit.customers.known("a")
        await kit.customers.set_status("b", None)
        assert await kit.customers.known("b")
        assert (await kit.customers.set_plan("b", "pro")).missing_plan is None
        for customer in ("a", "b"):
            await kit.customers.delete(customer)
            assert not await kit.customers.known(customer)


# Overrides of features, and overrides that end: they bind at once, and end at their millisecond.


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
