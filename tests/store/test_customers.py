"""Customers: links that are one to one, deletion that loses nothing, changes that do not mix up requests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import time
from typing import Any

import pytest

from drivers.delivery import NOW
from drivers.plans import completed
from drivers.subscribed_customer import INSTANT, kit_of
from drivers.subscribed_customer import PLANS as SUBSCRIBED
from faults.refusals import before_asking, before_script
from meterkit import MeterKit, UnknownFeatureError
from meterkit.catalog import loads
from meterkit.errors import CustomerError, MeterkitError, PlansError, StoreError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

UNTIL = NOW + timedelta(days=3)
PLANS = SUBSCRIBED.replace("credits:", "features: [basic, full, extra]\ncredits:").replace(
    "  pro:\n", "  pro:\n    features: [basic, full]\n"
)


async def test_a_stripe_customer_is_linked_to_one_customer_only(kit: MeterKit) -> None:
    tries = [kit.customers.link(f"c{n}", "cus_1") for n in range(8)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    linked = [found.customer async for found in kit.customers.list() if found.stripe_customer == "cus_1"]
    assert (sum(isinstance(error, CustomerError) for error in done), len(linked)) == (7, 1)
    # The same link may be made again, and many times at once.
    await asyncio.gather(*(kit.customers.link(linked[0], "cus_1") for _ in range(8)))
    assert (await kit.customers.get(linked[0])).stripe_customer == "cus_1"
    with pytest.raises(CustomerError, match=f"linked to customer '{linked[0]}' already"):
        await kit.customers.link("b", "cus_1")


@pytest.mark.parametrize("script", ["change_claim", "amend_state"])
async def test_a_fulfilled_claim_is_kept(kit: MeterKit, other: MeterKit, valkey: Server, script: str) -> None:
    # Two customers were linked to one: the first between the other's look at its state and its claim, or
    # between its claim and its change.
    if script == "change_claim":
        valkey.command("SET", kit.store.keys.link("cus_1"), "a")  # As after a process that was killed.
    await before_script(other, script, lambda: kit.customers.link("a", "cus_1"))
    with pytest.raises(CustomerError, match="linked to customer 'a' already"):
        await other.customers.link("b", "cus_1")
    assert (await kit.customers.get("b")).stripe_customer is None
    assert (await kit.customers.get("a")).stripe_customer == "cus_1"


async def test_an_unlink_leaves_a_link_that_was_made_meanwhile(kit: MeterKit, other: MeterKit) -> None:
    await kit.customers.link("a", "cus_1")

    async def relink() -> None:
        await kit.customers.unlink("a")
        await kit.customers.link("a", "cus_2")

    await before_script(other, "amend_state", relink)
    assert (await other.customers.unlink("a")).stripe_customer == "cus_2"
    assert (await kit.customers.get("a")).stripe_customer == "cus_2"
    assert (await kit.customers.link("b", "cus_1")).stripe_customer == "cus_1"


@pytest.mark.parametrize(
    ("script", "what"), [("amend_state", "while it was being changed"), ("forget_customer", "was deleted")]
)
async def test_a_changing_customer_is_given_up(
    kit: MeterKit, other: MeterKit, script: str, what: str
) -> None:
    numbers = iter(range(1, 100))

    async def change() -> None:
        await kit.customers.override("a", {"tokens": {"included": next(numbers)}})

    await before_script(other, script, change)
    asked = (
        other.customers.delete("a") if script == "forget_customer" else other.customers.set_plan("a", "pro")
    )
    with pytest.raises(StoreError, match=f"customer 'a' changed 32 times .*{what}; try again"):
        await asked
    assert (await kit.customers.get("a")).overrides == {"tokens": {"included": 32}}


async def test_a_state_that_changes_twice_while_asking_refuses(kit: MeterKit) -> None:
    changes = [lambda: kit.customers.set_status("a", "unpaid"), lambda: kit.customers.set_plan("a", "pro")]

    async def change() -> None:
        await changes.pop()()  # It is not asked a third time.

    end = await before_asking(kit, change)
    decision = await kit.consume("a", "tokens")
    end()
    assert (decision.allowed, decision.reason, changes) == (False, "suspended", [])
    assert (await kit.usage("a"))["meters"]["tokens"]["recorded"] == 0


async def test_a_customer_with_sealed_usage_is_not_deleted(kit: MeterKit, valkey: Server) -> None:
    await kit.customers.link("a", "cus_a")
    await kit.customers.set_plan("a", "pro")
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


def test_two_meters_that_would_share_a_field_are_refused(clock: Clock) -> None:
    meters = "meters:\n  meter_2074: {unit: u}\n  meter_3503: {unit: u}\n"
    with pytest.raises(PlansError, match="would be counted as one"):
        kit_of("redis://127.0.0.1:1", clock, PLANS.replace("meters:\n", meters, 1))


TOO_LARGE = {"limit": "1/day", "algorithm": "token-bucket", "burst": 10**15 - 1}
WRONG: list[tuple[str, object, str]] = [
    ("link", None, "Stripe customer: found a value of type NoneType; allowed is an id like cus_123"),
    ("set_plan", [], "plan: found a value of type list; allowed are the plans "),
    ("set_status", "none", "status: found 'none'; allowed are .*, canceled and None"),
    ("override", None, "override: found a value of type NoneType; allowed is a mapping of meters"),
    ("override", {5: {}}, "override: found a value of type int as a meter; name it by a text"),
    ("override", {"tokens": None}, "override of tokens: found a value of type NoneType; .* to take it back"),
    ("override", {"tokens": {"included": Decimal(5)}}, "override of tokens.included: .* of type Decimal"),
    ("override", {"tokens": {"included": {5}}}, "override tokens.included: found "),
    ("override", {"tokens": {"rate": [TOO_LARGE]}}, ".* cannot be counted exactly"),
]


@pytest.mark.parametrize(("method", "argument", "message"), WRONG)
async def test_a_wrong_type_keeps_nothing(kit: MeterKit, method: str, argument: object, message: str) -> None:
    with pytest.raises(MeterkitError, match=rf"^{message}"):
        await getattr(kit.customers, method)("a", argument)
    assert not await kit.customers.known("a")


async def test_known_is_who_was_set_up_or_has_used_something(kit: MeterKit) -> None:
    await kit.usage("a")  # To look is not to know.
    assert not await kit.customers.known("a")
    await kit.consume("a", "tokens", 1)
    assert await kit.customers.known("a")
    await kit.customers.set_status("b", None)
    assert await kit.customers.known("b")
    await kit.gauges.set("c", "seats", 3)
    assert await kit.customers.known("c")
    assert (await kit.customers.set_plan("b", "pro")).missing_plan is None
    for customer in ("a", "b", "c"):
        await kit.customers.delete(customer)
        assert not await kit.customers.known(customer)


# Overrides of features, and overrides that end: they bind at once, and end at their millisecond.


async def had(kit: MeterKit) -> list[str]:
    return [name for name in ("basic", "full", "extra") if await kit.allows("acme", name)]


async def test_i4_an_override_ends_in_every_process(kit: MeterKit, other: MeterKit, clock: Clock) -> None:
    """F-116: no override ended by itself."""
    await kit.customers.override("acme", {"requests": {"included": 50}}, until=UNTIL)
    for at in (NOW, UNTIL - INSTANT):
        clock.set(at)
        for one in (kit, other):
            assert (await one.check("acme", "requests", 50)).allowed
    assert (await other.usage("acme"))["meters"]["requests"]["included"] == 50
    clock.set(UNTIL)
    for one in (other, kit):
        assert not (await one.check("acme", "requests", 6)).allowed
    assert (await other.usage("acme"))["meters"]["requests"]["included"] == 5
    found = await kit.customers.get("acme")
    assert (found.overrides, found.override_ends) == ({}, {})


AHEAD = """
meters: {requests: {unit: request}, tokens: {unit: token}}
features: [extra]
default_plan: free
plans:
  free:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 900}
    meters:
      requests: {included: 5, overage: deny}
      tokens: {included: 5, overage: deny}
    subjects:
      user: {requests: {rate: 10/minute}}
"""
GIVEN = ("requests", "tokens", "spend", "feature extra", "subject user:u_7")


async def test_a_host_that_is_ahead_drops_no_override(store_url: str) -> None:
    catalog, until = loads(completed(AHEAD)), datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    async with MeterKit(catalog, redis_url=store_url, shards=4, flush=False, store_timeout=60.0) as kit:
        user = kit.customers.subject("acme", user="u_7")
        await kit.customers.override(
            "acme", {"requests": {"included": 50}, "spend": {"day": 500}}, until=until
        )
        await user.override({"requests": {"rate": "20/minute"}}, until=until)
        kit.store.clock = lambda: time() + 3 * 86_400
        await kit.customers.override("acme", {"tokens": {"included": 7}}, features=["extra"], until=until)
        await kit.customers.subject("acme", user="u_8").override({"requests": {"rate": "30/minute"}})
        with pytest.raises(MeterkitError, match="an override limits what 'acme' spends per day until"):
            await kit.customers.spend_limit("acme", 700, "hour")
        kit.store.clock = time
        found = await kit.customers.get("acme")
        assert found.override_ends == dict.fromkeys(GIVEN, until)


async def test_an_override_that_ends_with_the_period_shortens_no_wait(kit: MeterKit) -> None:
    """Waiting helps only those whose quantity the plan itself admits in the next period."""
    end = datetime(2031, 7, 1, tzinfo=UTC)
    await kit.customers.override("acme", {"requests": {"included": 50}}, until=end)
    await kit.record("acme", "requests", 50)
    waits = [(await kit.check("acme", "requests", quantity)).retry_after for quantity in (5, 6)]
    assert waits == [end - NOW, None]


async def test_features_are_given_and_taken_besides_the_plans(kit: MeterKit, other: MeterKit) -> None:
    """F-116: there was no override of features."""
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
    kit: MeterKit, given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await kit.customers.override("acme", {"requests": {"included": 50}}, **given)
    assert not await kit.customers.known("acme")
