"""Subscriptions of the emulated account from first invoice to end, seen through the official SDK."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from drivers.emulated_shop import current, invoice_of, item_of, refused, subscribe, told
from drivers.emulated_times import DAY, HOUR, MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def test_the_first_invoice_is_finalized_and_paid_at_once(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices."""
    made = await subscribe(client, metadata={"meterkit_customer": "ada"})
    invoice, item = invoice_of(made), item_of(made)
    assert (made.status, made.billing_mode.type, made.start_date) == ("active", "flexible", SECOND)
    assert (item.current_period_start, item.current_period_end, item.quantity) == (SECOND, MAY, 1)
    assert (made.billing_cycle_anchor, made.cancel_at_period_end, made.ended_at) == (SECOND, False, None)
    assert (invoice.status, invoice.total, invoice.amount_due) == ("paid", 1000, 1000)
    assert invoice.amount_paid == 1000
    assert (invoice.billing_reason, invoice.attempt_count) == ("subscription_create", 1)
    assert invoice.number == "CUS_1-0001"
    line = invoice.lines.data[0]
    assert (line.description, line.quantity) == ("1 × Pro (at 10 USD / month)", 1)  # noqa: RUF001
    assert (line.period.start, line.period.end) == (SECOND, MAY)
    paid = ["invoice.created", "invoice.finalized", "invoice.paid", "invoice.payment_succeeded"]
    assert told(emulator) == ["customer.subscription.created", *paid, "customer.subscription.updated"]
    created, *_, updated = [e for e in emulator.webhook_events if e.type.startswith("customer.subscription")]
    assert (created.object["status"], updated.previous) == ("incomplete", {"status": "incomplete"})


async def test_a_default_incomplete_one_waits_for_the_customer(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#payment-window: 23 hours."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    invoice = invoice_of(made)
    assert (made.status, invoice.status, invoice.attempt_count) == ("incomplete", "open", 0)
    assert invoice.confirmation_secret.type == "payment_intent"
    assert (invoice.auto_advance, invoice.next_payment_attempt) == (False, None)
    ended = client.subscriptions.update(made.id, cancel_at_period_end=True)
    await refused(ended, "whose status is `incomplete`")
    assert (await client.subscriptions.update(made.id, metadata={"a": "b"})).id == made.id
    emulator.confirm_payment(invoice.confirmation_secret.client_secret)
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    with pytest.raises(ValueError, match="no invoice that is open"):
        emulator.confirm_payment(invoice.id)


async def test_never_paid_it_expires_in_23_hours(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/object#subscription_object-status: incomplete_expired."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    clock.advance(timedelta(hours=23, seconds=-1))
    assert (await client.subscriptions.retrieve(made.id)).status == "incomplete"
    clock.advance(timedelta(seconds=1))
    expired = await current(client, made.id)
    assert (expired.status, invoice_of(expired).status) == ("incomplete_expired", "void")
    assert expired.ended_at == SECOND + 23 * HOUR
    assert (await client.subscriptions.list(customer="cus_1")).data == []
    ended = await client.subscriptions.list(status="ended")
    assert [made.id] == [each.id for each in ended.data]
    assert told(emulator)[-2:] == ["invoice.voided", "customer.subscription.updated"]


@pytest.mark.parametrize("opened", [{"card": "pm_card_chargeDeclined"}], indirect=True)
async def test_a_failing_card_leaves_it_incomplete_or_fails(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-payment_behavior."""
    with pytest.raises(stripe.CardError, match="Your card was declined") as caught:
        await subscribe(client, payment_behavior="error_if_incomplete")
    error: Any = caught.value
    said = (error.http_status, error.code, error.error.decline_code)
    assert said == (402, "card_declined", "generic_decline")
    assert (await client.subscriptions.list(status="all")).data == []
    made = await subscribe(client)
    assert (made.status, invoice_of(made).status, invoice_of(made).attempt_count) == ("incomplete", "open", 1)
    await refused(subscribe(client, payment_behavior="pending_if_incomplete"), "can only be used to update")
    assert told(emulator)[-1] == "invoice.payment_failed"


@pytest.mark.parametrize("opened", [{"card": None}], indirect=True)
async def test_without_a_payment_method_it_is_refused(client: Any) -> None:
    """Observed: 400, resource_missing; `default_incomplete` is for customers who pay in a moment."""
    error = await refused(subscribe(client), "no attached payment source")
    assert (error.http_status, error.code) == (400, "resource_missing")
    assert (await subscribe(client, payment_behavior="default_incomplete")).status == "incomplete"


async def test_a_renewal_is_a_draft_for_an_hour(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#subscription-renewal-invoices."""
    made = await subscribe(client)
    happened = len(emulator.webhook_events)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    renewed = await current(client, made.id)
    draft = invoice_of(renewed)
    assert (renewed.status, item_of(renewed).current_period_start) == ("active", MAY)
    assert (draft.status, draft.billing_reason, draft.auto_advance) == ("draft", "subscription_cycle", True)
    assert (draft.period_start, draft.period_end, draft.amount_due) == (SECOND, MAY, 1000)
    assert (draft.automatically_finalizes_at, draft.next_payment_attempt) == (MAY + HOUR, MAY + HOUR)
    assert draft.lines.data[0].period.start == MAY
    assert told(emulator, since=happened) == ["invoice.created", "customer.subscription.updated"]
    clock.advance(timedelta(hours=1))
    paid = await client.invoices.retrieve(draft.id)
    assert (paid.status, paid.status_transitions.finalized_at) == ("paid", MAY + HOUR)
    events = ["invoice.finalized", "invoice.paid", "invoice.payment_succeeded"]
    assert told(emulator, since=happened + 2) == events
    assert [event.created for event in emulator.webhook_events[-3:]] == [MAY + HOUR] * 3


async def test_a_failed_renewal_is_retried(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """Retries by ``retry_days``, each after the one before.

    https://docs.stripe.com/billing/revenue-recovery/smart-retries#custom-retry-schedule
    """
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
    for failures, status, wait in ((1, "past_due", 3), (2, "past_due", 5), (3, "past_due", 7)):
        found = await current(client, made.id)
        invoice = invoice_of(found)
        assert (failures, status) == (invoice.attempt_count, found.status)
        assert invoice.next_payment_attempt == clock() + wait * DAY
        assert invoice.status_transitions.finalized_at == MAY + HOUR
        clock.advance(timedelta(days=wait))
    found = await current(client, made.id)
    invoice = invoice_of(found)
    assert (found.status, invoice.attempt_count, invoice.status) == ("canceled", 4, "open")
    assert (invoice.next_payment_attempt, invoice.auto_advance) == (None, False)
    assert found.cancellation_details.reason == "payment_failed"
    assert told(emulator).count("invoice.payment_failed") == 4
    assert told(emulator)[-1] == "customer.subscription.deleted"


async def test_a_payment_mends_it(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/pay; a manual try does not count as a retry (attempt_count)."""
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
    found = await client.subscriptions.retrieve(made.id)
    assert isinstance(found.latest_invoice, str)
    with pytest.raises(stripe.CardError):
        await client.invoices.pay(found.latest_invoice)
    assert (await client.invoices.retrieve(found.latest_invoice)).attempt_count == 1
    emulator.mend_payments("cus_1")
    paid = await client.invoices.pay(found.latest_invoice)
    assert (paid.status, paid.amount_remaining) == ("paid", 0)
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    await refused(client.invoices.pay(found.latest_invoice), "already paid")


async def test_cancel_at_period_end_binds_there(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/cancel."""
    made = await subscribe(client)
    clock.advance(timedelta(days=1))
    ending = await client.subscriptions.update(made.id, cancel_at_period_end=True)
    assert (ending.status, ending.cancel_at, ending.canceled_at) == ("active", MAY, SECOND + DAY)
    kept = await client.subscriptions.update(made.id, cancel_at_period_end=False)
    assert (kept.cancel_at, kept.canceled_at, kept.cancel_at_period_end) == (None, None, False)
    await client.subscriptions.update(made.id, cancel_at_period_end=True)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    ended = await client.subscriptions.retrieve(made.id)
    assert (ended.status, ended.ended_at, ended.canceled_at) == ("canceled", MAY, SECOND + DAY)
    assert len((await client.invoices.list(subscription=made.id)).data) == 1
    assert told(emulator)[-1] == "customer.subscription.deleted"
    only = "A canceled subscription can only update its cancellation_details and metadata."
    await refused(client.subscriptions.update(made.id, cancel_at_period_end=False), only)
    assert (await refused(client.subscriptions.cancel(made.id), "No such subscription")).http_status == 404


@pytest.mark.parametrize("opened", [{"after_retries": "unpaid", "retry_days": ()}], indirect=True)
async def test_an_unpaid_one_stays_until_paid(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses: unpaid."""
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
    unpaid = await current(client, made.id)
    assert unpaid.status == "unpaid"
    with pytest.raises(stripe.CardError):
        await client.invoices.pay(invoice_of(unpaid).id)
    assert (await client.subscriptions.retrieve(made.id)).status == "unpaid"
    emulator.mend_payments("cus_1")
    await client.invoices.pay(invoice_of(unpaid).id)
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
