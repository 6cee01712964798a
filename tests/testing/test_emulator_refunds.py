"""Refunds, credit notes, sent invoices and changes of customers, seen through the official SDK."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_shop import DAY, HOUR, SECOND, invoice_of, subscribe, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

SENT: Any = {"collection_method": "send_invoice", "days_until_due": 10}


async def paid(client: stripe.StripeClient) -> tuple[str, stripe.Invoice, str]:
    """A subscription, its paid first invoice, and the payment intent that paid it."""
    made = await subscribe(client, expand=["latest_invoice.payments"])
    invoice = invoice_of(made)
    assert invoice.payments is not None
    intent = invoice.payments.data[0].payment.payment_intent
    assert intent is not None
    return made.id, invoice, str(intent)


def since(emulator: StripeEmulator, kinds: Sequence[str]) -> list[str]:
    return [each for each in told(emulator) if each.startswith(tuple(kinds))]


async def test_a_refund_changes_neither_invoice_nor_subscription(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/refunds."""
    subscription, invoice, intent = await paid(client)
    made = await client.v1.refunds.create_async(
        {
            "payment_intent": intent,
            "amount": 300,
            "reason": "requested_by_customer",
            "metadata": {"a": "b"},
        }
    )
    assert (made.amount, made.status, made.reason, made.currency) == (
        300,
        "succeeded",
        "requested_by_customer",
        "usd",
    )
    charge = await client.v1.charges.retrieve_async(str(made.charge))
    assert (charge.amount, charge.amount_refunded, charge.refunded) == (1000, 300, False)
    rest = await client.v1.refunds.create_async({"charge": charge.id})
    assert rest.amount == 700
    assert (await client.v1.charges.retrieve_async(charge.id)).refunded is True
    listed = await client.v1.refunds.list_async({"payment_intent": intent})
    assert [each.id for each in listed.data] == [rest.id, made.id]
    assert (await client.v1.refunds.retrieve_async(made.id)).amount == 300
    after = await client.v1.invoices.retrieve_async(str(invoice.id))
    assert (after.status, after.amount_paid, after.amount_remaining) == ("paid", 1000, 0)
    assert (await client.v1.subscriptions.retrieve_async(subscription)).status == "active"
    seen = await client.v1.payment_intents.retrieve_async(intent, {"expand": ["customer"]})
    assert (seen.status, seen.latest_charge) == ("succeeded", charge.id)
    payments = await client.v1.invoice_payments.list_async({"invoice": str(invoice.id)})
    assert [each.payment.payment_intent for each in payments.data] == [intent]
    assert since(emulator, ["refund.", "charge."]) == [
        *["refund.created", "charge.refunded"],
        *["refund.created", "charge.refunded"],
    ]


@pytest.mark.parametrize(
    ("params", "said", "code"),
    [
        ({}, "One of the following params should be provided", None),
        ({"payment_intent": "pi_none"}, "No such payment_intent: 'pi_none'", "resource_missing"),
        ({"amount": 1001}, r"\(\$10.01\) is greater than unrefunded amount on charge \(\$10.00\)", None),
    ],
)
async def test_refunds_that_are_refused(
    client: stripe.StripeClient, params: Any, said: str, code: str | None
) -> None:
    """https://docs.stripe.com/api/refunds/create."""
    _, _, intent = await paid(client)
    named = {} if not params or set(params) & {"payment_intent", "charge"} else {"payment_intent": intent}
    wanted: Any = {**named, **params}
    with pytest.raises(stripe.InvalidRequestError, match=said) as caught:
        await client.v1.refunds.create_async(wanted)
    assert caught.value.code == code
    await client.v1.refunds.create_async({"payment_intent": intent})
    with pytest.raises(stripe.InvalidRequestError, match="has already been refunded") as caught:
        await client.v1.refunds.create_async({"payment_intent": intent})
    assert caught.value.code == "charge_already_refunded"
    with pytest.raises(stripe.InvalidRequestError, match="No such charge: 'ch_none'"):
        await client.v1.charges.retrieve_async("ch_none")


async def test_a_credit_note_on_an_open_invoice_takes_off_what_is_due(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/credit_notes/create: pre-payment."""
    made = await subscribe(client, **SENT)
    invoice = str(invoice_of(made).id)
    with pytest.raises(stripe.InvalidRequestError, match="open or paid invoice"):
        await client.v1.credit_notes.create_async({"invoice": invoice, "amount": 100})
    await client.v1.invoices.finalize_invoice_async(invoice)
    note = await client.v1.credit_notes.create_async({"invoice": invoice, "amount": 400, "memo": "Sorry"})
    assert (note.amount, note.pre_payment_amount, note.post_payment_amount) == (400, 400, 0)
    assert (note.type, note.status, note.memo) == ("pre_payment", "issued", "Sorry")
    seen = await client.v1.invoices.retrieve_async(invoice)
    assert (seen.total, seen.amount_due, seen.pre_payment_credit_notes_amount) == (1000, 600, 400)
    line: Any = {"type": "invoice_line_item", "invoice_line_item": seen.lines.data[0].id}
    wanted: Any = {"invoice": invoice, "lines": [line]}
    with pytest.raises(stripe.InvalidRequestError, match="greater than what is left"):
        await client.v1.credit_notes.create_async(wanted)
    line["amount"] = 600
    rest = await client.v1.credit_notes.create_async(wanted)
    assert (rest.amount, rest.type) == (600, "pre_payment")
    seen = await client.v1.invoices.retrieve_async(invoice)
    assert (seen.status, seen.total, seen.amount_due, seen.amount_paid) == ("paid", 1000, 0, 0)


async def test_a_credit_note_on_a_paid_invoice_gives_back(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/credit_notes/create: post-payment."""
    _, invoice, _ = await paid(client)
    named = str(invoice.id)
    shares = {"refund_amount": 300, "credit_amount": 200, "out_of_band_amount": 100}
    wanted: Any = {"invoice": named, "amount": 600, **shares}
    note = await client.v1.credit_notes.create_async(wanted)
    assert (note.type, note.post_payment_amount, note.out_of_band_amount) == ("post_payment", 600, 100)
    (refund,) = note.refunds
    made = await client.v1.refunds.retrieve_async(str(refund.refund))
    assert (refund.amount_refunded, made.amount) == (300, 300)
    assert (await client.v1.customers.retrieve_async("cus_1")).balance == -200
    seen = await client.v1.invoices.retrieve_async(named)
    assert (seen.total, seen.amount_paid, seen.post_payment_credit_notes_amount) == (1000, 1000, 600)
    clock.advance(timedelta(days=30, hours=2))
    renewal = (await client.v1.invoices.list_async({"limit": 1})).data[0]
    assert (renewal.starting_balance, renewal.amount_paid) == (-200, 800)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"amount": 100}, "must equal the post-payment amount"),
        ({"amount": 1001, "refund_amount": 1001}, "greater than what is left"),
        ({}, "Missing required param: amount"),
        ({"amount": 1, "lines": [{"type": "invoice_line_item"}]}, "only specify one of"),
        ({"lines": [{"type": "invoice_line_item", "invoice_line_item": "il_none"}]}, "No such invoice line"),
    ],
)
async def test_credit_notes_that_are_refused(client: stripe.StripeClient, params: Any, said: str) -> None:
    _, invoice, _ = await paid(client)
    wanted: Any = {"invoice": str(invoice.id), **params}
    with pytest.raises(stripe.InvalidRequestError, match=said):
        await client.v1.credit_notes.create_async(wanted)


async def test_a_sent_invoice_is_not_tried_and_falls_overdue(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscriptions/object#subscription_object-status."""
    made = await subscribe(client, **SENT)
    named = str(invoice_of(made).id)
    assert (made.status, invoice_of(made).status) == ("active", "draft")
    clock.advance(timedelta(hours=2))
    seen = await client.v1.invoices.retrieve_async(named)
    assert (seen.status, seen.due_date, seen.attempt_count) == ("open", SECOND + 10 * DAY, 0)
    assert (seen.next_payment_attempt, seen.attempted) == (None, False)
    await client.v1.invoices.send_invoice_async(named)
    clock.advance(timedelta(days=10))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "past_due"
    seen = await client.v1.invoices.retrieve_async(named)
    assert (seen.status, seen.attempt_count, seen.amount_remaining) == ("open", 0, 1000)
    clock.advance(timedelta(days=10))
    await client.v1.invoices.pay_async(named, {"paid_out_of_band": True})
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
    events = since(emulator, ["invoice.sent", "invoice.overdue", "invoice.payment_failed", "invoice.paid"])
    assert events == ["invoice.sent", "invoice.sent", "invoice.overdue", "invoice.paid"]
    (overdue,) = [each for each in emulator.webhook_events if each.type == "invoice.overdue"]
    assert overdue.created == SECOND + 10 * DAY


async def test_an_invoice_that_is_paid_in_time_is_never_overdue(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    made = await subscribe(client, **SENT)
    named = str(invoice_of(made).id)
    sent = await client.v1.invoices.send_invoice_async(named)
    assert sent.status == "open"
    await client.v1.invoices.pay_async(named)
    clock.advance(timedelta(days=20))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="only send draft or open"):
        await client.v1.invoices.send_invoice_async(named)
    charged = await subscribe(client)
    with pytest.raises(stripe.InvalidRequestError, match="collection method is 'send_invoice'"):
        await client.v1.invoices.send_invoice_async(str(invoice_of(charged).id))
    assert since(emulator, ["invoice.overdue"]) == []


async def test_half_an_hour_of_a_draft_is_left_alone(client: stripe.StripeClient, clock: Clock) -> None:
    """A sent invoice's draft hour is no due date."""
    made = await subscribe(client, collection_method="send_invoice", days_until_due=0)
    clock.advance(timedelta(seconds=HOUR // 2))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
    clock.advance(timedelta(seconds=HOUR))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "past_due"
