"""Metered prices: usage on invoices, by the meter events that were accepted until they are finalized."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, SECOND, amounts, invoice_of, items_of, shop, subscribe

if TYPE_CHECKING:
    import stripe

    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]


def metered() -> tuple[StripeEmulator, Clock]:
    """The shop, with tokens at 12 cents for each 1000."""
    emulator, clock = shop()
    emulator.add_price(
        12,
        price_id="price_tokens",
        meter=emulator.add_meter("tokens"),
        transform_quantity={"divide_by": 1000, "round": "up"},
    )
    return emulator, clock


async def use(client: stripe.StripeClient, value: int, *, at: int) -> None:
    await client.v1.billing.meter_events.create_async(
        {
            "event_name": "tokens",
            "payload": {"stripe_customer_id": "cus_1", "value": str(value)},
            "timestamp": at,
        }
    )


async def latest(client: stripe.StripeClient, subscription: str) -> stripe.Invoice:
    found = await client.v1.subscriptions.retrieve_async(subscription, {"expand": LATEST})
    return invoice_of(found)


async def test_late_usage_counts_until_the_draft_is_finalized() -> None:
    """facts/stripe.md 0.6: "usage for a period whose invoice is finalised is never billed"."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_tokens")
        assert (made.status, made.latest_invoice) == ("active", None)
        clock.set(datetime(2026, 5, 1, 0, 59, tzinfo=UTC))
        await use(client, 1000, at=MAY - 60)
        await use(client, 5000, at=MAY)  # Of the next period.
        draft = await latest(client, made.id)
        assert (amounts(await client.v1.invoices.retrieve_async(draft.id)), draft.status) == ([12], "draft")
        await use(client, 1000, at=MAY - 120)
        clock.advance(timedelta(minutes=1))
        done = await client.v1.invoices.retrieve_async(draft.id)
        assert (amounts(done), done.status, done.ending_balance) == ([24], "paid", 24)
        await use(client, 1000, at=MAY - 180)
        assert amounts(await client.v1.invoices.retrieve_async(draft.id)) == [24]
        lines = await client.v1.invoices.line_items.list_async(draft.id)
        assert [line.quantity for line in lines.data] == [2000]
        clock.set(datetime(2026, 6, 1, tzinfo=UTC))
        assert amounts(await latest(client, made.id)) == [60]


async def test_usage_is_charged_at_the_price_of_its_time(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """1000 calls at price A and 500 at price B: 1 and 0.75.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing
    """
    meter = emulator.add_meter("tokens")
    for price, cents in (("price_a", 10), ("price_b", 15)):
        emulator.add_price(
            cents, price_id=price, meter=meter, transform_quantity={"divide_by": 100, "round": "up"}
        )
    made = await subscribe(client, "price_a")
    clock.advance(timedelta(days=14))
    await use(client, 1000, at=SECOND + 4 * DAY)
    change: Any = {"items": [{"id": items_of(made)[0].id, "price": "price_b"}]}
    await client.v1.subscriptions.update_async(made.id, change)
    clock.advance(timedelta(days=10))
    await use(client, 500, at=SECOND + 19 * DAY)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    assert amounts(await latest(client, made.id)) == [100, 75]


async def test_a_cancellation_at_once_charges_usage_only_if_told_so() -> None:
    """facts/stripe.md 6.4: "discards un-invoiced metered usage unless `invoice_now=True`"."""
    for invoice_now, lines in ((True, [[-500, 24], [1000]]), (False, [[1000]])):
        emulator, clock = metered()
        async with account(emulator) as client:
            made = await subscribe(client, "price_10", "price_tokens")
            clock.advance(timedelta(days=15))
            await use(client, 2000, at=SECOND)
            await client.v1.subscriptions.cancel_async(
                made.id, {"invoice_now": invoice_now, "prorate": invoice_now}
            )
            clock.advance(timedelta(hours=2))
            invoices = await client.v1.invoices.list_async({"subscription": made.id})
            assert [amounts(invoice) for invoice in invoices.data] == lines


async def test_negative_usage_and_tiers(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """A sum below 0 is billed as 0 (facts/stripe.md 0.7); each graduated tier has a line."""
    emulator.add_price(
        price_id="price_tiers",
        meter=emulator.add_meter("tokens"),
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[{"up_to": 1000, "unit_amount": 0}, {"up_to": "inf", "unit_amount_decimal": "0.1"}],
    )
    made = await subscribe(client, "price_tiers")
    clock.advance(timedelta(days=1))
    await use(client, -5, at=SECOND)
    shown = await client.v1.invoices.create_preview_async({"subscription": made.id})
    assert [(line.quantity, line.amount) for line in shown.lines.data] == [(0, 0)]
    await use(client, 3005, at=SECOND + HOUR)
    shown = await client.v1.invoices.create_preview_async({"subscription": made.id})
    assert [(line.quantity, line.amount) for line in shown.lines.data] == [(1000, 0), (2000, 200)]
    assert shown.lines.data[1].description == "2000 × price_tiers (Tier 2 at 0.001 USD)"  # noqa: RUF001
