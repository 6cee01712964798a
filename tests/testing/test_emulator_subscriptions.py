"""Subscriptions of the emulated account from first invoice to end, seen through the official SDK."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, SECOND, invoice_of, item_of, refusal, shop, subscribe, told

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def test_the_first_invoice_is_finalized_and_paid_at_once(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#new-subscription-invoices."""
    made = await subscribe(client, metadata={"meterkit_customer": "ada"})
    invoice, item = invoice_of(made), item_of(made)
    assert (made.status, made.billing_mode.type, made.start_date) == ("active", "flexible", SECOND)
    assert (item.current_period_start, item.current_period_end, item.quantity) == (SECOND, MAY, 1)
    assert (made.billing_cycle_anchor, made.cancel_at_period_end, made.ended_at) == (SECOND, False, None)
    assert (invoice.status, invoice.total, invoice.amount_due, invoice.amount_paid) == (
        "paid",
        1000,
        1000,
        1000,
    )
    assert (invoice.billing_reason, invoice.attempt_count, invoice.number) == (
        "subscription_create",
        1,
        "CUS_1-0001",
    )
    line = invoice.lines.data[0]
    assert (line.description, line.quantity) == ("1 × Pro (at 10 USD / month)", 1)  # noqa: RUF001
    assert (line.period.start, line.period.end) == (SECOND, MAY)
    assert told(emulator) == [
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
    ]
    created, *_, updated = [e for e in emulator.webhook_events if e.type.startswith("customer.subscription")]
    assert (created.object["status"], updated.previous) == ("incomplete", {"status": "incomplete"})


async def test_a_default_incomplete_one_waits_for_the_customer(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#payment-window: 23 hours."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    invoice = invoice_of(made)
    assert (made.status, invoice.status, invoice.attempt_count) == ("incomplete", "open", 0)
    assert invoice.confirmation_secret is not None
    assert invoice.confirmation_secret.type == "payment_intent"
    assert (invoice.auto_advance, invoice.next_payment_attempt) == (False, None)
    error = await refusal(client, made.id, cancel_at_period_end=True)
    assert error.user_message is not None
    assert "whose status is `incomplete`" in error.user_message
    assert (await client.v1.subscriptions.update_async(made.id, {"metadata": {"a": "b"}})).id == made.id
    emulator.confirm_payment(invoice.confirmation_secret.client_secret)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
    with pytest.raises(ValueError, match="no invoice that is open"):
        emulator.confirm_payment(invoice.id)


async def test_one_that_is_never_paid_expires_after_23_hours(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscriptions/object#subscription_object-status: incomplete_expired."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    clock.advance(timedelta(hours=23, seconds=-1))
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "incomplete"
    clock.advance(timedelta(seconds=1))
    expired = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    assert (expired.status, invoice_of(expired).status) == ("incomplete_expired", "void")
    assert expired.ended_at == SECOND + 23 * HOUR
    assert (await client.v1.subscriptions.list_async({"customer": "cus_1"})).data == []
    ended = await client.v1.subscriptions.list_async({"status": "ended"})
    assert [made.id] == [each.id for each in ended.data]
    assert told(emulator)[-2:] == ["invoice.voided", "customer.subscription.updated"]


async def test_a_card_that_fails_leaves_it_incomplete_or_refuses_it() -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-payment_behavior."""
    emulator, _ = shop(card="pm_card_chargeDeclined")
    async with account(emulator) as client:
        with pytest.raises(stripe.CardError, match="Your card was declined") as caught:
            await subscribe(client, payment_behavior="error_if_incomplete")
        assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
        assert (await client.v1.subscriptions.list_async({"status": "all"})).data == []
        made = await subscribe(client)
        assert (made.status, invoice_of(made).status, invoice_of(made).attempt_count) == (
            "incomplete",
            "open",
            1,
        )
        with pytest.raises(stripe.InvalidRequestError, match="can only be used to update"):
            await subscribe(client, payment_behavior="pending_if_incomplete")
    assert told(emulator)[-1] == "invoice.payment_failed"


async def test_without_a_payment_method_it_is_refused() -> None:
    """Observed: 400, resource_missing; `default_incomplete` is for customers who pay in a moment."""
    emulator, _ = shop(card=None)
    async with account(emulator) as client:
        with pytest.raises(stripe.InvalidRequestError, match="no attached payment source") as caught:
            await subscribe(client)
        assert (caught.value.http_status, caught.value.code) == (400, "resource_missing")
        assert (await subscribe(client, payment_behavior="default_incomplete")).status == "incomplete"


async def test_a_renewal_is_a_draft_for_an_hour_and_then_paid(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#subscription-renewal-invoices."""
    made = await subscribe(client)
    happened = len(emulator.webhook_events)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    renewed = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    draft = invoice_of(renewed)
    assert (renewed.status, item_of(renewed).current_period_start) == ("active", MAY)
    assert (draft.status, draft.billing_reason, draft.auto_advance) == (
        "draft",
        "subscription_cycle",
        True,
    )
    assert (draft.period_start, draft.period_end, draft.amount_due) == (SECOND, MAY, 1000)
    assert (draft.automatically_finalizes_at, draft.next_payment_attempt) == (MAY + HOUR, MAY + HOUR)
    assert draft.lines.data[0].period.start == MAY
    assert told(emulator, since=happened) == ["invoice.created", "customer.subscription.updated"]
    clock.advance(timedelta(hours=1))
    paid = await client.v1.invoices.retrieve_async(draft.id)
    assert (paid.status, paid.status_transitions.finalized_at) == ("paid", MAY + HOUR)
    assert told(emulator, since=happened + 2) == [
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    assert [event.created for event in emulator.webhook_events[-3:]] == [MAY + HOUR] * 3


async def test_a_failed_renewal_is_retried_and_then_given_up(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """Retries by ``retry_days``, each after the one before.

    https://docs.stripe.com/billing/revenue-recovery/smart-retries#custom-retry-schedule
    """
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
    for failures, status, wait in ((1, "past_due", 3), (2, "past_due", 5), (3, "past_due", 7)):
        found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
        invoice = invoice_of(found)
        assert (failures, status) == (invoice.attempt_count, found.status)
        assert invoice.next_payment_attempt == clock() + wait * DAY
        assert invoice.status_transitions.finalized_at == MAY + HOUR
        clock.advance(timedelta(days=wait))
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    invoice = invoice_of(found)
    assert (found.status, invoice.attempt_count, invoice.status) == ("canceled", 4, "open")
    assert (invoice.next_payment_attempt, invoice.auto_advance) == (None, False)
    assert found.cancellation_details is not None
    assert found.cancellation_details.reason == "payment_failed"
    assert told(emulator).count("invoice.payment_failed") == 4
    assert told(emulator)[-1] == "customer.subscription.deleted"


async def test_a_payment_mends_it(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoices/pay; a manual try does not count as a retry (attempt_count)."""
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
    found = await client.v1.subscriptions.retrieve_async(made.id)
    assert isinstance(found.latest_invoice, str)
    with pytest.raises(stripe.CardError):
        await client.v1.invoices.pay_async(found.latest_invoice)
    assert (await client.v1.invoices.retrieve_async(found.latest_invoice)).attempt_count == 1
    emulator.mend_payments("cus_1")
    paid = await client.v1.invoices.pay_async(found.latest_invoice)
    assert (paid.status, paid.amount_remaining) == ("paid", 0)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        await client.v1.invoices.pay_async(found.latest_invoice)


async def test_a_cancellation_at_the_periods_end_binds_there(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/subscriptions/cancel."""
    made = await subscribe(client)
    clock.advance(timedelta(days=1))
    ending = await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at, ending.canceled_at) == ("active", MAY, SECOND + DAY)
    kept = await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": False})
    assert (kept.cancel_at, kept.canceled_at, kept.cancel_at_period_end) == (None, None, False)
    await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    ended = await client.v1.subscriptions.retrieve_async(made.id)
    assert (ended.status, ended.ended_at, ended.canceled_at) == ("canceled", MAY, SECOND + DAY)
    assert len((await client.v1.invoices.list_async({"subscription": made.id})).data) == 1
    assert told(emulator)[-1] == "customer.subscription.deleted"
    error = await refusal(client, made.id, cancel_at_period_end=False)
    assert (
        error.user_message == "A canceled subscription can only update its cancellation_details and metadata."
    )
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription") as caught:
        await client.v1.subscriptions.cancel_async(made.id)
    assert caught.value.http_status == 404


async def test_an_unpaid_one_stays_unpaid_until_it_is_paid() -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses: unpaid."""
    emulator, clock = shop(after_retries="unpaid", retry_days=())
    async with account(emulator) as client:
        made = await subscribe(client)
        emulator.fail_payments("cus_1")
        clock.set(datetime(2026, 5, 1, 1, tzinfo=UTC))
        unpaid = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
        assert unpaid.status == "unpaid"
        with pytest.raises(stripe.CardError):
            await client.v1.invoices.pay_async(invoice_of(unpaid).id)
        assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "unpaid"
        emulator.mend_payments("cus_1")
        await client.v1.invoices.pay_async(invoice_of(unpaid).id)
        assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
