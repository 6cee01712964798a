"""Add-ons of a subscription in decisions: what they give, from when on, until when, and to whom alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from drivers.subscribed_customer import (
    END,
    INSTANT,
    NOW,
    catch_up,
    fetched,
    kit_of,
    recorder,
    subscription,
    sweep,
)
from faults.proxy import TcpProxy
from faults.refusals import Client, eventually, kit_at, metered, settled
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

START: Final = END - timedelta(days=30)
HALF: Final = END - timedelta(days=15)
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  exports:  {unit: export}
  seats:    {unit: seat, kind: gauge}
features: [chat, reports]
credits:
  ai: {costs: {requests: 1 per 1}}
addons:
  pack:
    price: {amount_cents: 500, interval: month}
    meters: {requests: {included: 50}, exports: {included: 3}, seats: {included: 2}}
    features: [reports]
  credit:
    price: {amount_cents: 300, interval: month}
    grants: [{credit: ai, quantity: 25, every: period}]
  lasting:
    price: {amount_cents: 300, interval: month}
    grants: [{credit: ai, quantity: 8, every: period, expires: 90d}]
routes:
  - {match: "GET /reports", feature: reports}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 5, overage: deny}, exports: {included: 0, overage: deny}}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    seat_price: {amount_cents: 100}
    features: [chat]
    addons: [pack, credit, lasting]
    meters:
      requests: {included: 100, overage: deny}
      exports:  {included: 0, overage: deny}
      seats:    {included: 10, overage: deny}
    grants: [{credit: ai, quantity: 10, every: period}]
  top:
    extends: pro
    rank: 20
    addons: [pack]
    meters: {requests: {included: unlimited}}
  bare:
    extends: pro
    rank: 5
    addons: []
dunning: {grace: 7d, restrict_to: default_plan, suspend_after: 14d}
"""
WHOLE: Final = PLANS + "billing: {changes: {allowance: whole}}\n"
BOUGHT: Final = (("credit", 1), ("pack", 2))
NONE: Final[dict[str, int]] = {}


def sold(**changed: Any) -> Any:
    """A subscription to ``pro`` since the beginning of its period, with these add-ons."""
    return subscription(**{"addons": BOUGHT, **changed})


async def given(kit: MeterKit, customer: str = "acme") -> tuple[Any, Any, int]:
    """Included requests and exports, and credits."""
    usage = await kit.usage(customer)
    meters = usage["meters"]
    return meters["requests"]["included"], meters["exports"]["included"], usage["balance"]["ai"]


async def most(kit: MeterKit, customer: str = "acme") -> int:
    """The most requests that a decision admits at once."""
    usage = await kit.usage(customer)
    left = usage["meters"]["requests"]["remaining"]
    assert isinstance(left, int)
    allowed = [(await kit.check(customer, "requests", units)).allowed for units in (left, left + 1)]
    assert allowed == [left > 0, False]
    return left


async def test_addons_give_their_part_beside_the_plan(kit: MeterKit) -> None:
    await fetched(kit, sold())
    usage = await kit.usage("acme")
    assert (usage["plan"], usage["addons"]) == ("pro", {"credit": 1, "pack": 2})
    assert usage["features"] == ["chat", "reports"]
    assert await given(kit) == (200, 6, 35)
    assert await most(kit) == 235
    assert await kit.allows("acme", "reports")
    await kit.record("acme", "requests", 210)
    assert await given(kit) == (200, 6, 25)
    assert not (await kit.consume("acme", "exports", 7)).allowed
    assert (await kit.consume("acme", "exports", 6)).allowed


async def test_addons_that_a_plan_does_not_list_give_nothing(kit: MeterKit) -> None:
    for plan, expected in (
        ("top", ("unlimited", 6, 10)),
        ("bare", (100, 0, 10)),
        ("free", (5, 0, 0)),
    ):
        await fetched(kit, sold(plan=plan), customer=plan)
        assert await given(kit, plan) == expected
        listed = {"pack": 2} if plan == "top" else NONE
        assert (await kit.usage(plan))["addons"] == listed


@pytest.mark.parametrize("first", ["plain", "buyer"])
async def test_customers_of_one_plan_share_no_addon(kit: MeterKit, first: str) -> None:
    """Programs and packed terms of a plan are shared by its customers: so would its credits be."""
    await fetched(kit, subscription(), customer="plain")
    await fetched(kit, sold(addons=(("credit", 1),)), customer="buyer")
    await fetched(kit, sold(addons=(("credit", 2),)), customer="twice")
    for customer in sorted(("plain", "buyer", "twice"), key=lambda one: one != first):
        most_of = {"plain": 110, "buyer": 135, "twice": 160}[customer]
        assert await most(kit, customer) == most_of
        assert await Client(metered(kit)).get(customer) == 200
        await settled(kit)
        assert (await kit.consume(customer, "requests", most_of - 1)).allowed
        assert not (await kit.consume(customer, "requests")).allowed
        assert await given(kit, customer) == (100, 0, 0)


async def test_seats_of_addons_may_be_used(kit: MeterKit) -> None:
    for seats, most in ((0, 14), (14, 14), (17, 17)):  # Ten of the plan, four of add-ons, three of their own.
        await fetched(kit, sold(seats=seats))
        await kit.gauges.set("acme", "seats", most - 1)
        assert (await kit.check("acme", "seats", 1)).allowed
        assert (await kit.check("acme", "seats", 2)).reason == "seats"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"status": "incomplete"}, id="an unpaid sign-up"),
        pytest.param({"status": "past_due", "failures": 3, "failed_at_ms": NOW}, id="restricted"),
        pytest.param({"status": "paused"}, id="paused"),
        pytest.param({"status": "canceled", "ended_at_ms": NOW}, id="ended"),
    ],
)
async def test_addons_that_are_not_paid_for_give_nothing(kit: MeterKit, changed: dict[str, Any]) -> None:
    await fetched(kit, sold(**changed))
    assert (await kit.usage("acme"))["addons"] == NONE
    assert await given(kit) == (5, 0, 0)


async def test_a_status_set_by_hand_ends_and_keeps_addons(kit: MeterKit) -> None:
    await fetched(kit, sold())
    await kit.customers.set_status("acme", "past_due")
    assert await given(kit) == (200, 6, 35)
    await kit.customers.set_status("acme", "canceled")
    assert (await kit.usage("acme"))["addons"] == NONE
    await kit.customers.set_status("acme", None)
    assert (await kit.usage("acme"))["addons"] == dict(BOUGHT)


async def test_i4_fewer_addons_bind_at_the_periods_end(kit: MeterKit, other: MeterKit, clock: Clock) -> None:
    fewer: dict[str, Any] = {"pending_plan": "pro", "pending_addons": (("pack", 1),), "pending_at_ms": END}
    await fetched(kit, sold(**fewer))
    found = await kit.customers.get("acme")
    assert (found.addons, found.pending_addons) == ({"credit": 1, "pack": 2}, {"pack": 1})
    clock.set(END - INSTANT)
    assert await most(other) == 235
    clock.set(END)
    assert await most(other) == 150 + 10
    assert (await other.usage("acme"))["addons"] == {"pack": 1}
    assert await given(other) == (150, 3, 10)
    assert await sweep(kit) == 1
    lines = [(entry.kind, entry.before, entry.after) for entry in await kit.customers.history("acme")]
    assert lines[-4:] == [
        ("addons", None, "1 credit, 2 pack"),
        ("scheduled", None, "pro with 1 pack from 2031-06-30T12:00:00Z"),
        ("addons", "1 credit, 2 pack", "1 pack"),
        ("scheduled", "pro with 1 pack from 2031-06-30T12:00:00Z", None),
    ]


async def test_handlers_are_told_of_addons(kit: MeterKit) -> None:
    told = recorder(kit, "subscription.changed")
    await fetched(kit, subscription())
    await eventually(lambda: len(told) == 1)
    event = told.pop()
    assert (event.addons, event.addons_before, event.pending_addons) == ({}, {}, None)
    fewer: dict[str, Any] = {"pending_plan": "pro", "pending_addons": (), "pending_at_ms": END}
    await fetched(kit, sold(addons=(("pack", 2),), **fewer))
    await eventually(lambda: len(told) == 1)
    event = told.pop()
    assert (event.addons, event.addons_before, event.pending_addons) == ({"pack": 2}, {}, {})
    await catch_up(kit)
    lines = [(entry.kind, entry.after) for entry in await kit.customers.history("acme")]
    assert lines[-1] == ("scheduled", "pro with no add-ons from 2031-06-30T12:00:00Z")


async def test_an_addon_gives_its_share_of_the_time_left(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, PLANS) as kit:
        clock.set(START)
        await fetched(kit, subscription())
        assert await given(kit) == (100, 0, 10)
        clock.set(HALF)
        await fetched(kit, sold())
        # Half of 100 more requests, of 6 exports and of 25 credits.
        assert await given(kit) == (150, 3, 23)
        assert await most(kit) == 173
        await kit.record("acme", "requests", 160)
        assert await given(kit) == (150, 3, 13)
        clock.set(HALF + (END - HALF) / 3)
        await fetched(kit, sold(addons=(("credit", 3), ("pack", 2))))
        # Ten days of 50 credits more; 10 are used.
        assert await given(kit) == (150, 3, 13 + 17)
        clock.set(HALF + 2 * (END - HALF) / 3)
        await fetched(kit, subscription())
        # Two packs for a third of the period.
        assert (await given(kit))[:2] == (134, 2)
        clock.set(END)
        assert await given(kit) == (100, 0, 10)


async def test_an_addon_is_whole_where_the_plans_file_says_so(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, WHOLE) as kit:
        clock.set(START)
        await fetched(kit, subscription())
        clock.set(END - timedelta(hours=1))
        await fetched(kit, sold())
        assert await given(kit) == (200, 6, 35)
        clock.set(END)
        await fetched(kit, subscription(start_ms=END, end_ms=END + timedelta(days=31)))
        assert await given(kit) == (100, 0, 10)


async def test_an_addon_to_a_plan_set_by_hand_gives_its_share(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, PLANS) as kit:
        clock.set(START)
        await fetched(kit, subscription(plan="bare"))
        clock.set(START + timedelta(days=3))
        await kit.customers.set_plan("acme", "pro")
        assert await given(kit) == (100, 0, 10)
        clock.set(HALF)
        await fetched(kit, sold(plan="bare"))
        assert await given(kit) == (150, 3, 23)
        await kit.customers.set_plan("acme", None)
        assert (await kit.usage("acme"))["addons"] == NONE


async def test_a_change_of_plan_keeps_what_the_new_plan_lists(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, PLANS) as kit:
        clock.set(START)
        await fetched(kit, sold())
        clock.set(HALF)
        await fetched(kit, sold(plan="bare", addons=()))
        assert (await kit.usage("acme"))["addons"] == NONE
        assert await given(kit) == (150, 3, 23)


async def test_a_lasting_grant_of_an_addon_outlives_it(store_url: str, clock: Clock) -> None:
    async with kit_of(store_url, clock, PLANS) as kit:
        clock.set(START)
        await fetched(kit, sold(addons=(("lasting", 2),)))
        assert await given(kit) == (100, 0, 26)
        clock.set(END)
        renewed = {"start_ms": END, "end_ms": END + timedelta(days=31)}
        await fetched(kit, subscription(**renewed))
        assert await given(kit) == (100, 0, 26)
        assert await most(kit) == 126
        clock.set(START + timedelta(days=90))
        assert (await given(kit))[2] == 10


async def test_i9_addons_hold_while_the_store_is_away(valkey: Server) -> None:
    clock = Clock(NOW)
    fewer: dict[str, Any] = {"pending_plan": "pro", "pending_addons": (), "pending_at_ms": END}
    async with (
        TcpProxy(valkey.port) as proxy,
        kit_at(proxy.url, plans=loads(PLANS), clock=clock, store_timeout=1.0) as kit,
    ):
        await fetched(kit, sold(**fewer))
        client = Client(metered(kit))
        assert await client.get("acme", "/reports") == 200
        await settled(kit)
        await proxy.set("refuse")
        assert await client.get("acme", "/reports") == 200
        clock.set(END)
        assert await client.get("acme", "/reports") == 403
