"""Refunds, credit notes, sent invoices and changes of customers, seen through the official SDK."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import stripe

from drivers.emulated_shop import invoice_of, newest_invoice, refused, subscribe, told
from drivers.emulated_times import DAY, HOUR, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

SENT: Any = {"collection_method": "send_invoice", "days_until_due": 10}


async def paid(client: Any) -> tuple[str, Any, str]:
    """A subscription, its paid first invoice, and the payment intent that paid it."""
    made = await subscribe(client, expand=["latest_invoice.payments"])
    invoice = invoice_of(made)
    return made.id, invoice, str(invoice.payments.data[0].payment.payment_intent)


def since(emulator: StripeEmulator, kinds: Sequence[str]) -> list[str]:
    return [each for each in told(emulator) if each.startswith(tuple(kinds))]


async def test_a_refund_leaves_invoice_and_subscription(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/refunds."""
    subscription, invoice, intent = await paid(client)
    made = await client.refunds.create(
        payment_intent=intent, amount=300, reason="requested_by_customer", metadata={"a": "b"}
    )
    assert (made.amount, made.currency, made.status) == (300, "usd", "succeeded")
    assert made.reason == "requested_by_customer"
    charge = await client.charges.retrieve(made.charge)
    assert (charge.amount, charge.amount_refunded, charge.refunded) == (1000, 300, False)
    rest = await client.refunds.create(charge=charge.id)
    assert rest.amount == 700
    assert (await client.charges.retrieve(charge.id)).refunded is True
    listed = await client.refunds.list(payment_intent=intent)
    assert [each.id for each in listed.data] == [rest.id, made.id]
    assert (await client.refunds.retrieve(made.id)).amount == 300
    after = await client.invoices.retrieve(invoice.id)
    assert (after.status, after.amount_paid, after.amount_remaining) == ("paid", 1000, 0)
    assert (await client.subscriptions.retrieve(subscription)).status == "active"
    seen = await client.payment_intents.retrieve(intent, expand=["customer"])
    assert (seen.status, seen.latest_charge) == ("succeeded", charge.id)
    payments = await client.invoice_payments.list(invoice=invoice.id)
    assert [each.payment.payment_intent for each in payments.data] == [intent]
    assert since(emulator, ["refund.", "charge."]) == ["refund.created", "charge.refunded"] * 2


@pytest.mark.parametrize(
    ("params", "said", "code"),
    [
        ({}, "One of the following params should be provided", None),
        ({"payment_intent": "pi_none"}, "No such payment_intent: 'pi_none'", "resource_missing"),
        ({"amount": 1001}, r"\(\$10.01\) is greater than unrefunded amount on charge \(\$10.00\)", None),
    ],
)
async def test_refunds_that_are_refused(client: Any, params: Any, said: str, code: str | None) -> None:
    """https://docs.stripe.com/api/refunds/create."""
    _, _, intent = await paid(client)
    named = {} if not params or set(params) & {"payment_intent", "charge"} else {"payment_intent": intent}
    error = await refused(client.refunds.create(**named, **params), said)
    assert error.code == code
    await client.refunds.create(payment_intent=intent)
    error = await refused(client.refunds.create(payment_intent=intent), "has already been refunded")
    assert error.code == "charge_already_refunded"
    await refused(client.charges.retrieve("ch_none"), "No such charge: 'ch_none'")


async def test_a_credit_note_on_an_open_invoice_takes_off_what_is_due(client: Any) -> None:
    """https://docs.stripe.com/api/credit_notes/create: pre-payment."""
    invoice = str(invoice_of(await subscribe(client, **SENT)).id)
    await refused(client.credit_notes.create(invoice=invoice, amount=100), "open or paid invoice")
    await client.invoices.finalize_invoice(invoice)
    note = await client.credit_notes.create(invoice=invoice, amount=400, memo="Sorry")
    assert (note.amount, note.pre_payment_amount, note.post_payment_amount) == (400, 400, 0)
    assert (note.type, note.status, note.memo) == ("pre_payment", "issued", "Sorry")
    seen = await client.invoices.retrieve(invoice)
    assert (seen.total, seen.amount_due, seen.pre_payment_credit_notes_amount) == (1000, 600, 400)
    line: Any = {"type": "invoice_line_item", "invoice_line_item": seen.lines.data[0].id}
    wanted: Any = {"invoice": invoice, "lines": [line]}
    await refused(client.credit_notes.create(**wanted), "greater than what is left")
    line["amount"] = 600
    rest = await client.credit_notes.create(**wanted)
    assert (rest.amount, rest.type) == (600, "pre_payment")
    seen = await client.invoices.retrieve(invoice)
    assert (seen.status, seen.total, seen.amount_due, seen.amount_paid) == ("paid", 1000, 0, 0)


async def test_a_credit_note_on_a_paid_invoice_gives_back(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/credit_notes/create: post-payment."""
    _, invoice, _ = await paid(client)
    named = invoice.id
    shares = {"refund_amount": 300, "credit_amount": 200, "out_of_band_amount": 100}
    note = await client.credit_notes.create(invoice=named, amount=600, **shares)
    assert (note.type, note.post_payment_amount, note.out_of_band_amount) == ("post_payment", 600, 100)
    (refund,) = note.refunds
    assert (refund.amount_refunded, (await client.refunds.retrieve(refund.refund)).amount) == (300, 300)
    assert (await client.customers.retrieve("cus_1")).balance == -200
    seen = await client.invoices.retrieve(named)
    assert (seen.total, seen.amount_paid, seen.post_payment_credit_notes_amount) == (1000, 1000, 600)
    clock.advance(timedelta(days=30, hours=2))
    renewal = await newest_invoice(client)
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
async def test_credit_notes_that_are_refused(client: Any, params: Any, said: str) -> None:
    _, invoice, _ = await paid(client)
    await refused(client.credit_notes.create(invoice=invoice.id, **params), said)


async def test_a_sent_invoice_falls_overdue(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/object#subscription_object-status."""
    made = await subscribe(client, **SENT)
    named = str(invoice_of(made).id)
    assert (made.status, invoice_of(made).status) == ("active", "draft")
    clock.advance(timedelta(hours=2))
    seen = await client.invoices.retrieve(named)
    assert (seen.status, seen.due_date, seen.attempt_count) == ("open", SECOND + 10 * DAY, 0)
    assert (seen.next_payment_attempt, seen.attempted) == (None, False)
    await client.invoices.send_invoice(named)
    clock.advance(timedelta(days=10))
    assert (await client.subscriptions.retrieve(made.id)).status == "past_due"
    seen = await client.invoices.retrieve(named)
    assert (seen.status, seen.attempt_count, seen.amount_remaining) == ("open", 0, 1000)
    clock.advance(timedelta(days=10))
    await client.invoices.pay(named, paid_out_of_band=True)
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    events = since(emulator, ["invoice.sent", "invoice.overdue", "invoice.payment_failed", "invoice.paid"])
    assert events == ["invoice.sent", "invoice.sent", "invoice.overdue", "invoice.paid"]
    (overdue,) = [each for each in emulator.webhook_events if each.type == "invoice.overdue"]
    assert overdue.created == SECOND + 10 * DAY


async def test_a_paid_invoice_is_never_overdue(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    made = await subscribe(client, **SENT)
    named = str(invoice_of(made).id)
    assert (await client.invoices.send_invoice(named)).status == "open"
    await client.invoices.pay(named)
    clock.advance(timedelta(days=20))
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    await refused(client.invoices.send_invoice(named), "only send draft or open")
    charged = await subscribe(client)
    with pytest.raises(stripe.InvalidRequestError, match="collection method is 'send_invoice'"):
        await client.invoices.send_invoice(str(invoice_of(charged).id))
    assert since(emulator, ["invoice.overdue"]) == []


async def test_half_an_hour_of_a_draft_is_left_alone(client: Any, clock: Clock) -> None:
    """A sent invoice's draft hour is no due date."""
    made = await subscribe(client, collection_method="send_invoice", days_until_due=0)
    clock.advance(timedelta(seconds=HOUR // 2))
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    clock.advance(timedelta(seconds=HOUR))
    assert (await client.subscriptions.retrieve(made.id)).status == "past_due"
