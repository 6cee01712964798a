"""Books against invoice lines: delivered and counted is not enough."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from period_ending import HOUR, JUNE, MINUTE, UNHELD, ending

if TYPE_CHECKING:
    from meterkit import Reconciled
    from period_ending import Ending

pytestmark = pytest.mark.anyio


async def books(at: Ending, meter: str = "requests") -> Reconciled:
    """What reconcile says of May."""
    found = await at.kit.reconcile("acme", at=JUNE - HOUR)
    return next(one for one in found if one.meter == meter)


async def delivered_after(at: Ending, quantity: int) -> None:
    """Stripe takes an event for May when the invoice is final, as of a release that does not know better."""
    fields: Any = {
        "event_name": "requests",
        "timestamp": int((JUNE - HOUR).timestamp()),
        "payload": {"stripe_customer_id": "cus_acme", "value": str(quantity)},
    }
    await at.found.client.v1.billing.meter_events.create_async(fields)


async def test_a_close_is_confirmed_by_the_lines_of_the_invoice(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        assert (await at.look()).confirmed == 1
        one = await books(at)
        assert (one.delivered, one.confirmed, one.invoiced, one.invoice) == (1000, 1000, 1000, "draft")
        at.go(JUNE + 2 * HOUR)
        one = await books(at)
        assert (one.invoiced, one.invoice, one.advice) == (1000, "final", "")


async def test_what_is_counted_and_on_no_invoice_is_said_with_its_price(any_store_url: str) -> None:
    """F-101: recorded = delivered = counted, and nothing is billed."""
    async with ending(any_store_url) as at:
        await at.kit.record("acme", "requests", 1_010)
        for item in (await at.found.client.v1.subscriptions.list_async()).data[0]["items"]["data"]:
            if item["price"]["id"] == "price_pro_requests":
                await at.found.client.v1.subscription_items.delete_async(item["id"])
        await at.flush()
        at.go(JUNE + 3 * HOUR)
        one = await books(at)
        assert (one.delivered, one.confirmed, one.difference, one.invoiced) == (1000, 1000, 0, 0)
        assert "1000 of 1000 units that Stripe has counted at USD 0.05 each are on no invoice" in one.advice
        assert (await at.look()).late


async def test_an_event_that_came_after_the_invoice_was_final_is_seen(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD) as at:
        await at.kit.record("acme", "requests", 110)
        await at.flush()
        at.go(JUNE + 2 * HOUR)
        await delivered_after(at, 40)
        one = await books(at)
        assert (one.difference, one.invoiced) == (40, 100)
        assert one.advice  # Something else sends to this meter.


async def test_two_subscriptions_bill_the_same_meter_twice_and_that_is_said(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        at.clock.set(JUNE - timedelta(days=20))
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        items: Any = [{"price": "price_pro_requests"}]
        at.clock.set(JUNE - timedelta(days=25))
        await at.found.client.v1.subscriptions.create_async(
            {"customer": "cus_acme", "items": items, "billing_cycle_anchor": int(JUNE.timestamp())}
        )
        at.go(JUNE + 3 * HOUR)
        one = await books(at)
        assert (one.confirmed, one.invoiced, one.invoice) == (1000, 2000, "final")
        assert one.advice.startswith("billed twice: ")


async def test_usage_of_a_trial_costs_nothing_and_is_no_difference(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        trial_end = int((JUNE + timedelta(days=3)).timestamp())
        subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
        changed: Any = {"trial_end": trial_end, "proration_behavior": "none"}
        await at.found.client.v1.subscriptions.update_async(subscription.id, changed)
        await at.found.settle()
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + timedelta(days=4))
        await at.found.settle()
        found = await at.kit.reconcile("acme", at=JUNE + HOUR)
        assert [(one.confirmed, one.invoiced, one.advice) for one in found] == [(1000, None, "")]


async def test_without_a_subscription_no_invoice_is_asked_for(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
        at.stripe.add_customer("cus_zeta")
        await at.kit.customers.link("zeta", "cus_zeta")
        await at.kit.customers.set_plan("zeta", "pro")
        await at.kit.record("zeta", "requests", 110)
        await at.flush()
        at.go(JUNE + timedelta(days=30))
        (one,) = await at.kit.reconcile("zeta", at=JUNE - HOUR)
        assert (one.confirmed, one.invoiced, one.invoice, one.advice) == (100, None, "", "")
