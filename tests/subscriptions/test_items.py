"""A change ends with exactly the plan's items, whatever was done to the subscription at Stripe before."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import kit_for
from drivers.shop import HALF, PLANS, Shop, shop
from meterkit.catalog import loads

if TYPE_CHECKING:
    from meterkit import Subscription

pytestmark = pytest.mark.anyio

PRO = {"price_pro": 1, "price_pro_ai_tokens": None}


async def switched_by_hand(at: Shop, price: str, **changed: str) -> Subscription:
    """A subscription to ``team`` whose base price a person has switched in the dashboard."""
    found = await at.subscribed(plan="team")
    item = await item_of(at, found.id, "price_team")
    await at.stripe_change(f"/v1/subscription_items/{item}", price=price, quantity="1", **changed)
    return found


async def item_of(at: Shop, subscription: str, price: str) -> str:
    items: list[dict[str, Any]] = (await at.stripe_subscription(subscription))["items"]["data"]
    return next(str(item["id"]) for item in items if item["price"]["id"] == price)


async def test_seats_after_a_dashboard_switch_leave_one_price_a_meter(at: Shop) -> None:
    """F-102: the item of the old plan's usage was nobody's, and the new plan's came beside it."""
    found = await switched_by_hand(at, "price_pro")
    await at.kit.subscriptions.set_seats("acme", 12)
    assert await at.items(found.id) == {**PRO, "price_pro_seat": 2}
    # From then on usage is billed once, by the new plan.
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 1_500)
    await at.kit.flush(everything=True)
    at.clock.set(HALF + timedelta(hours=1))
    ended = await at.kit.subscriptions.cancel("acme", immediately=True)
    lines = [
        (line["pricing"]["price_details"]["price"], line["quantity"], line["amount"])
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if line["quantity"] == 500
    ]
    assert (ended.status, lines) == ("canceled", [("price_pro_ai_tokens", 500, 1_000)])


async def test_unlimited_seats_are_never_charged(store_url: str) -> None:
    """F-104: a plan that extends one with a seat price charged for every seat."""
    more = """  open:
    extends: pro
    rank: 20
    price: {amount_cents: 9900, stripe_price: price_open}
    meters: {seats: {included: unlimited}}
"""
    async with shop(store_url, catalog=loads(PLANS + more)) as at:
        found = await at.subscribed(plan="open", seats=30)
        assert await at.items(found.id) == {"price_open": 1, "price_open_ai_tokens": None}
        assert [invoice["total"] for invoice in await at.invoices()] == [9900]
        await at.kit.gauges.set("acme", "seats", 80)
        assert (await at.kit.check("acme", "seats", 100)).allowed
        await at.kit.subscriptions.set_seats("acme", 100)
        await at.subscribed("other", plan="pro", seats=12)
        changed = await at.kit.subscriptions.change_plan("other", "open")
        assert await at.items(changed.subscription.id) == {"price_open": 1, "price_open_ai_tokens": None}
        assert await at.items(found.id) == {"price_open": 1, "price_open_ai_tokens": None}
        assert found.seats == 0


async def test_an_items_seats_show_though_the_plan_covers_all(at: Shop, store_url: str) -> None:
    """F-22g: `seats` was 0 for a customer who still pays for two."""
    found = await at.subscribed(plan="pro", seats=12)
    assert (found.seats, (await at.items(found.id))["price_pro_seat"]) == (12, 2)
    unlimited = PLANS.replace("seats:    {included: 10,", "seats:    {included: unlimited,")
    assert unlimited != PLANS
    async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(unlimited)) as kit:
        await kit.subscriptions.sync("acme")
        shown = await kit.subscriptions.get("acme")
        assert shown is not None
        assert shown.seats == 2
        assert (await kit.check("acme", "seats", 1000)).allowed
        # The item is none of the plan's any more: `repair` removes it, and a credit follows.
        await kit.subscriptions.repair("acme")
        shown = await kit.subscriptions.get("acme")
        assert shown is not None
        assert (shown.seats, "price_pro_seat" in await at.items(found.id)) == (0, False)
