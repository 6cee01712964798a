"""The calls about invoices and payment methods, and what a test does to the account without a call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import MAY, SECOND, invoice_of, shop, subscribe
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
RENEWED = datetime(2026, 5, 1, tzinfo=UTC)


async def test_invoices_are_listed_newest_first(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoices/list."""
    emulator.add_customer("cus_2")
    made = await subscribe(client)
    clock.set(RENEWED)
    listed = client.v1.invoices.list_async
    both = [invoice.id for invoice in (await listed()).data]
    assert both[1:] == [invoice_of(made).id]
    assert [invoice.id for invoice in (await listed({"status": "draft"})).data] == both[:1]
    assert [invoice.id for invoice in (await listed({"subscription": made.id})).data] == both
    assert (await listed({"customer": "cus_2"})).data == []
    assert [i.id for i in (await listed({"created": {"lt": MAY}})).data] == both[1:]
    for call in (listed, client.v1.subscriptions.list_async):
        with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_x'") as caught:
            await call({"customer": "cus_x"})
        assert caught.value.error is not None
        assert (caught.value.http_status, caught.value.error.to_dict()["param"]) == (400, "customer")
    subscriptions = client.v1.subscriptions.list_async
    expanded = await subscriptions({"customer": "cus_1", "expand": ["data.latest_invoice"]})
    assert invoice_of(expanded.data[0]).id == both[0]
    assert (await subscriptions({"price": "price_20"})).data == []
    assert len((await subscriptions({"price": "price_10", "status": "active"})).data) == 1
    assert (await subscriptions({"current_period_start": {"lt": MAY}})).data == []


async def test_an_invoice_is_paid_by_hand() -> None:
    """https://docs.stripe.com/api/invoices/pay: with another card, or outside of Stripe."""
    emulator, clock = shop(card="pm_card_chargeDeclined")
    async with account(emulator) as client:
        made = await subscribe(client)
        card = await client.v1.payment_methods.attach_async("pm_card_visa", {"customer": "cus_1"})
        paid = await client.v1.invoices.pay_async(invoice_of(made).id, {"payment_method": card.id})
        assert paid.status == "paid"
        assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "active"
        clock.set(RENEWED)
        (draft, _) = (await client.v1.invoices.list_async()).data
        with pytest.raises(stripe.CardError):
            await client.v1.invoices.pay_async(draft.id)
        outside = await client.v1.invoices.pay_async(draft.id, {"paid_out_of_band": True})
        assert (outside.status, outside.amount_paid) == ("paid", 1000)
        other = await subscribe(client, "price_20")
        with pytest.raises(stripe.InvalidRequestError, match="No such PaymentMethod"):
            await client.v1.invoices.pay_async(invoice_of(other).id, {"payment_method": "pm_none"})


async def test_invoices_are_voided_or_given_up(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoices/void; .../mark_uncollectible."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    void = await client.v1.invoices.void_invoice_async(invoice_of(made).id)
    assert (void.status, void.status_transitions.voided_at) == ("void", SECOND)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "incomplete_expired"
    with pytest.raises(stripe.InvalidRequestError, match="This invoice is void"):
        await client.v1.invoices.void_invoice_async(void.id)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be paid"):
        await client.v1.invoices.pay_async(void.id)
    other = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(RENEWED + timedelta(hours=1))
    found = await client.v1.subscriptions.retrieve_async(other.id, {"expand": LATEST})
    given_up = await client.v1.invoices.mark_uncollectible_async(invoice_of(found).id)
    assert (given_up.status, given_up.next_payment_attempt) == ("uncollectible", None)
    with pytest.raises(stripe.InvalidRequestError, match="only pass in open invoices"):
        await client.v1.invoices.mark_uncollectible_async(given_up.id)
    await client.v1.invoices.void_invoice_async(given_up.id)
    assert (await client.v1.subscriptions.retrieve_async(other.id)).status == "active"


async def test_cards_are_attached_and_chosen() -> None:
    """https://docs.stripe.com/api/payment_methods/attach; customers/update: `invoice_settings`."""
    emulator = StripeEmulator()
    async with account(emulator) as client:
        methods = client.v1.payment_methods
        customer = await client.v1.customers.create_async({"payment_method": "pm_card_visa"})
        (first,) = (await methods.list_async({"customer": customer.id})).data
        assert (first.type, first.customer) == ("card", customer.id)
        assert first.card is not None
        assert first.card.last4 == "4242"
        default: Any = {"invoice_settings": {"default_payment_method": first.id}}
        changed = await client.v1.customers.update_async(customer.id, default)
        assert changed.invoice_settings is not None
        assert changed.invoice_settings.default_payment_method == first.id
        other = await client.v1.customers.create_async({"balance": 100})
        assert other.balance == 100
        with pytest.raises(stripe.InvalidRequestError, match="already been attached"):
            await methods.attach_async(first.id, {"customer": other.id})
        with pytest.raises(stripe.InvalidRequestError, match="No such PaymentMethod: 'pm_x'"):
            await methods.attach_async("pm_x", {"customer": other.id})
        with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_x'"):
            await methods.attach_async("pm_card_visa", {"customer": "cus_x"})
        with pytest.raises(stripe.InvalidRequestError, match="No such PaymentMethod"):
            await client.v1.customers.update_async(other.id, default)
        assert (await methods.detach_async(first.id)).customer is None
        assert (await methods.retrieve_async(first.id)).customer is None
        bare = await client.v1.customers.retrieve_async(customer.id)
        assert bare.invoice_settings is not None
        assert bare.invoice_settings.default_payment_method is None
        listed = await client.v1.customers.payment_methods.list_async(customer.id)
        assert listed.data == []
        none: Any = {"invoice_settings": {"default_payment_method": ""}}
        await client.v1.customers.update_async(customer.id, none)


async def test_an_invoice_may_have_a_card_of_its_own() -> None:
    """https://docs.stripe.com/billing/invoices/subscription#collect-payment: the invoice's comes first."""
    emulator, clock = shop(card="pm_card_chargeDeclined")
    async with account(emulator) as client:
        made = await subscribe(client)
        card = await client.v1.payment_methods.attach_async("pm_card_mastercard", {"customer": "cus_1"})
        own: Any = {"default_payment_method": card.id}
        await client.v1.invoices.update_async(invoice_of(made).id, own)
        assert (await client.v1.invoices.pay_async(invoice_of(made).id)).status == "paid"
        clock.set(RENEWED)
        (draft, _) = (await client.v1.invoices.list_async()).data
        held = await client.v1.invoices.finalize_invoice_async(draft.id, {"auto_advance": False})
        assert (held.status, held.next_payment_attempt) == ("open", None)
        await client.v1.payment_methods.detach_async(card.id)
        with pytest.raises(stripe.CardError):
            await client.v1.invoices.pay_async(draft.id)
