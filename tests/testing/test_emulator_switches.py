"""Metered prices that change: which event is charged at which price, and what is charged at none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, SECOND, invoice_of, items_of, refusal, shop, subscribe
from drivers.sampled import pairs

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
HALF = SECOND + 15 * DAY


def metered(**options: Any) -> tuple[StripeEmulator, Clock]:
    """The shop, with tokens at 1 and at 2 cents, and words at 3 cents."""
    emulator, clock = shop(**options)
    tokens, words = emulator.add_meter("tokens"), emulator.add_meter("words")
    emulator.add_price(1, price_id="price_tokens_1", meter=tokens)
    emulator.add_price(2, price_id="price_tokens_2", meter=tokens)
    emulator.add_price(3, price_id="price_words", meter=words)
    return emulator, clock


async def use(client: stripe.StripeClient, value: int, *, at: int, meter: str = "tokens") -> None:
    payload = {"stripe_customer_id": "cus_1", "value": str(value)}
    await client.v1.billing.meter_events.create_async(
        {"event_name": meter, "payload": payload, "timestamp": at}
    )


async def change(
    client: stripe.StripeClient, made: stripe.Subscription, **params: Any
) -> stripe.Subscription:
    wanted: Any = params
    return await client.v1.subscriptions.update_async(made.id, wanted)


async def switch(
    client: stripe.StripeClient, made: stripe.Subscription, to: str = "price_tokens_2", **params: Any
) -> stripe.Subscription:
    """Have the last item cost another price."""
    return await change(client, made, items=[{"id": items_of(made)[-1].id, "price": to}], **params)


async def charged(client: stripe.StripeClient, made: stripe.Subscription) -> list[tuple[str, int]]:
    """The metered price and the quantity of each usage line of the latest invoice that is not 0."""
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
    lines: list[tuple[str, int]] = []
    for line in invoice_of(found).lines.data:
        assert line.pricing is not None
        assert line.pricing.price_details is not None
        price = str(line.pricing.price_details.price)
        if price.startswith(("price_tokens", "price_words")) and line.quantity:
            lines.append((price, line.quantity))
    return lines


async def phases(client: stripe.StripeClient, made: stripe.Subscription, *later: str, **how: Any) -> None:
    """Schedule a subscription's items to be others from ``at`` on, or from its period's end."""
    at = how.pop("at", MAY)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    now: Any = {
        "start_date": SECOND,
        "end_date": at,
        "items": [{"price": item.price.id} for item in items_of(made)],
    }
    then: Any = {"items": [{"price": price} for price in later], **how}
    await client.v1.subscription_schedules.update_async(schedule.id, {"phases": [now, then]})


@pytest.mark.parametrize(
    ("later", "by", "behavior"),
    pairs(
        [["price_10"], ["price_10", "price_tokens_2"]],
        ["update", "phase", "phase_at_the_end"],
        ["create_prorations", "always_invoice", "none"],
    ),
)
async def test_without_prorations_a_price_that_goes_bills_nothing(
    later: list[str], by: str, behavior: str
) -> None:
    """ "To remove a metered price without billing for it, set `proration_behavior` to `none`".

    https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        await use(client, 500, at=SECOND)
        if by == "update":
            clock.set(datetime(2026, 4, 16, tzinfo=UTC))
            item: Any = {"id": items_of(made)[1].id}
            item |= {"deleted": True} if len(later) == 1 else {"price": later[1]}
            await change(client, made, items=[item], proration_behavior=behavior)
        else:
            at = HALF if by == "phase" else MAY
            await phases(client, made, *later, proration_behavior=behavior, at=at)
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        await client.v1.subscriptions.retrieve_async(made.id)
        clock.advance(timedelta(hours=2))
        found: list[tuple[str, int, str]] = []
        for invoice in (await client.v1.invoices.list_async({"subscription": made.id})).data:
            for line in invoice.lines.data:
                assert line.pricing is not None
                assert line.pricing.price_details is not None
                assert line.parent is not None
                price = str(line.pricing.price_details.price)
                if price.startswith("price_tokens") and line.amount:
                    found.append((price, line.amount, line.parent.type))
        assert found == ([("price_tokens_1", 500, "invoice_item_details")] if behavior != "none" else [])


async def test_a_schedule_that_ends_charges_the_last_usage() -> None:
    """https://docs.stripe.com/billing/subscriptions/subscription-schedules: `end_behavior` is `cancel`."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
        await client.v1.subscription_schedules.update_async(schedule.id, {"end_behavior": "cancel"})
        await use(client, 40, at=SECOND)
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        assert await charged(client, made) == [("price_tokens_1", 40)]


async def pending(client: stripe.StripeClient, made: stripe.Subscription) -> stripe.Invoice:
    """Have a switch of both prices wait for a payment that fails; the invoice of that."""
    base, tokens = items_of(made)
    items = [{"id": base.id, "price": "price_20"}, {"id": tokens.id, "price": "price_tokens_2"}]
    how = {"payment_behavior": "pending_if_incomplete", "proration_behavior": "always_invoice"}
    changed = await change(client, made, items=items, expand=LATEST, **how)
    assert changed.pending_update is not None
    return invoice_of(changed)


@pytest.mark.parametrize("how", ["expires", "voided", "phase"])
async def test_usage_on_a_pending_updates_invoice_is_lost_with_it(how: str) -> None:
    """Outstanding usage is on that invoice; when it is voided, the usage is discarded for good.

    https://docs.stripe.com/billing/subscriptions/pending-updates
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        if how == "phase":
            await phases(client, made, "price_10", "price_tokens_1", "price_seat", at=SECOND + DAY + HOUR)
        await use(client, 500, at=SECOND)
        clock.advance(timedelta(days=1))
        emulator.fail_payments("cus_1")
        invoice = await pending(client, made)
        assert [line.amount for line in invoice.lines.data if line.quantity == 500] == [500]
        emulator.mend_payments("cus_1")
        if how == "voided":
            await client.v1.invoices.void_invoice_async(invoice.id)
        if how == "phase":
            clock.advance(timedelta(hours=1))
            assert (await client.v1.subscriptions.retrieve_async(made.id)).pending_update is None
        clock.advance(timedelta(days=1))
        found = await client.v1.subscriptions.retrieve_async(made.id)
        assert found.pending_update is None
        assert (await client.v1.invoices.retrieve_async(invoice.id)).status == "void"
        assert items_of(found)[1].price.id == "price_tokens_1"
        await use(client, 70, at=SECOND + 2 * DAY)
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        assert await charged(client, made) == [("price_tokens_1", 70)]


async def test_a_pending_update_that_is_paid_charges_its_usage_once() -> None:
    """What is used between the request and the payment is on no line: no page says whose it is."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        await use(client, 500, at=SECOND)
        clock.advance(timedelta(days=1))
        emulator.fail_payments("cus_1")
        invoice = await pending(client, made)
        await use(client, 30, at=SECOND + DAY)
        clock.advance(timedelta(hours=1))
        emulator.mend_payments("cus_1")
        await client.v1.invoices.pay_async(invoice.id)
        await use(client, 7, at=SECOND + DAY + HOUR)
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        assert await charged(client, made) == [("price_tokens_2", 7)]


async def test_a_pending_update_expires_with_the_period() -> None:
    """ "The trial end time or the current period end, whichever comes first", or 23 hours.

    https://docs.stripe.com/billing/subscriptions/pending-updates-reference#expiration
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        clock.set(datetime(2026, 4, 30, 12, tzinfo=UTC))
        await use(client, 500, at=SECOND)
        emulator.fail_payments("cus_1")
        await pending(client, made)
        found = await client.v1.subscriptions.retrieve_async(made.id)
        assert found.pending_update is not None
        assert found.pending_update.expires_at == MAY
        clock.set(datetime(2026, 5, 1, tzinfo=UTC))
        assert (await client.v1.subscriptions.retrieve_async(made.id)).pending_update is None


async def test_a_pending_update_deletes_no_items() -> None:
    """https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes."""
    emulator, _ = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens_1")
        gone = items_of(made)[1].id
        how: Any = {"payment_behavior": "pending_if_incomplete"}
        error = await refusal(client, made.id, items=[{"id": gone, "deleted": True}], **how)
        assert "`items[deleted]` cannot be set" in str(error)
        with pytest.raises(stripe.InvalidRequestError, match="cannot be set"):
            await client.v1.subscription_items.delete_async(gone, how)
