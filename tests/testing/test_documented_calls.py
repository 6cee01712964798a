"""Calls as Stripe's reference describes them, through its SDK: each test names the page it follows."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import (
    DAY,
    MAY,
    SECOND,
    amounts,
    invoice_of,
    item_of,
    refusal,
    shop,
    subscribe,
)

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


def _metadata(of: Any) -> dict[str, str]:
    return dict(of.metadata.to_dict())


async def test_payment_methods_detach(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/payment_methods/detach: it can be used no longer."""
    (card,) = (await client.v1.customers.payment_methods.list_async("cus_1")).data
    assert (await client.v1.payment_methods.detach_async(card.id)).customer is None
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_methods.attach_async(card.id, {"customer": "cus_1"})


async def test_prices_update(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/prices/update: what it costs is no parameter."""
    changed = await client.v1.prices.update_async("price_10", {"active": False, "nickname": "old"})
    assert (changed.active, changed.nickname) == (False, "old")
    dearer: Any = {"unit_amount": 1100}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.prices.update_async("price_10", dearer)
    assert caught.value.code == "parameter_unknown"


async def test_an_inactive_price_takes_no_new_subscriptions(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/prices/object#price_object-active."""
    await client.v1.prices.update_async("price_10", {"active": False})
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        await subscribe(client)


async def test_lookup_keys(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/products-prices/manage-prices#lookup-keys: a key moves from price to price."""
    await client.v1.prices.update_async("price_10", {"lookup_key": "pro"})
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        await client.v1.prices.update_async("price_20", {"lookup_key": "pro"})
    await client.v1.prices.update_async("price_20", {"lookup_key": "pro", "transfer_lookup_key": True})
    (found,) = (await client.v1.prices.list_async({"lookup_keys": ["pro"]})).data
    assert found.id == "price_20"
    assert (await client.v1.prices.retrieve_async("price_10")).lookup_key is None


async def test_coupons_delete(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/coupons/delete: customers who have it keep it."""
    half = await client.v1.coupons.create_async({"percent_off": 50, "duration": "forever"})
    await subscribe(client, discounts=[{"coupon": half.id}])
    assert (await client.v1.coupons.delete_async(half.id)).deleted is True
    clock.advance(timedelta(days=30, hours=2))
    assert (await client.v1.invoices.list_async({"limit": 1})).data[0].total == 500


async def test_subscriptions_cancel(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/cancel: without proration by default."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    gone = await client.v1.subscriptions.cancel_async(made.id)
    assert (gone.status, gone.canceled_at, gone.ended_at) == ("canceled", clock(), clock())
    assert len((await client.v1.invoices.list_async()).data) == 1
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.subscriptions.cancel_async(made.id)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


async def test_a_canceled_subscription_changes_no_more(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/subscriptions/update: metadata and cancellation details still do."""
    made = await subscribe(client)
    await client.v1.subscriptions.cancel_async(made.id)
    error = await refusal(client, made.id, items=[{"price": "price_20"}])
    assert error.http_status == 400
    noted = await client.v1.subscriptions.update_async(made.id, {"metadata": {"why": "price"}})
    assert _metadata(noted) == {"why": "price"}


SENT: Any = {"collection_method": "send_invoice", "days_until_due": 14}


async def _draft(client: stripe.StripeClient, clock: Clock) -> stripe.Invoice:
    """The draft of a renewal that has just been made."""
    await subscribe(client)
    clock.advance(timedelta(days=30, minutes=1))
    return (await client.v1.invoices.list_async({"limit": 1})).data[0]


async def _open(client: stripe.StripeClient) -> stripe.Invoice:
    made = await subscribe(client, **SENT)
    return await client.v1.invoices.finalize_invoice_async(str(invoice_of(made).id))


async def _used(client: stripe.StripeClient, number: int, *, at: int, identifier: str) -> None:
    await client.v1.billing.meter_events.create_async(
        {
            "event_name": "calls",
            "identifier": identifier,
            "payload": {"stripe_customer_id": "cus_1", "value": str(number)},
            "timestamp": at,
        }
    )


async def test_finalization_is_put_off(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/invoicing/scheduled-finalization."""
    draft = await _draft(client, clock)
    later: Any = {"automatically_finalizes_at": MAY + DAY}
    await client.v1.invoices.update_async(str(draft.id), later)
    clock.advance(timedelta(hours=2))
    assert (await client.v1.invoices.retrieve_async(str(draft.id))).status == "draft"
    clock.advance(timedelta(days=1))
    assert (await client.v1.invoices.retrieve_async(str(draft.id))).status == "paid"


async def test_invoices_finalize(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/finalize: once."""
    draft = await _draft(client, clock)
    done = await client.v1.invoices.finalize_invoice_async(str(draft.id))
    assert done.status_transitions.finalized_at is not None
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoices.finalize_invoice_async(str(draft.id))


async def test_invoices_mark_uncollectible(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/invoices/mark_uncollectible: it can still be paid."""
    given_up = await client.v1.invoices.mark_uncollectible_async(str((await _open(client)).id))
    assert given_up.status == "uncollectible"
    assert (await client.v1.invoices.pay_async(str(given_up.id))).status == "paid"


async def test_invoices_create_preview(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: nothing is kept of it."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    asked: Any = {
        "subscription": made.id,
        "subscription_details": {
            "items": [{"id": item_of(made).id, "price": "price_20"}],
            "proration_behavior": "always_invoice",
            "proration_date": int(clock()),
        },
    }
    preview = await client.v1.invoices.create_preview_async(asked)
    assert (amounts(preview), preview.total) == ([-500, 1000], 500)
    assert len((await client.v1.invoices.list_async()).data) == 1
    assert item_of(await client.v1.subscriptions.retrieve_async(made.id)).price.id == "price_10"


async def test_a_final_invoice_takes_no_items(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-invoice."""
    price: Any = {"currency": "usd", "product": "prod_pro", "unit_amount": 250}
    wanted: Any = {"customer": "cus_1", "invoice": (await _open(client)).id, "price_data": price}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoice_items.create_async(wanted)


async def test_invoices_create_and_delete(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/delete: a draft of no subscription."""
    made = await client.v1.invoices.create_async({"customer": "cus_1"})
    assert (made.status, made.billing_reason, made.total) == ("draft", "manual", 0)
    assert (await client.v1.invoices.delete_async(str(made.id))).deleted is True
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.invoices.retrieve_async(str(made.id))
    assert caught.value.http_status == 404
    for kept in (await _draft(client, clock), await _open(client)):
        with pytest.raises(stripe.InvalidRequestError):
            await client.v1.invoices.delete_async(str(kept.id))


async def test_customer_balance_transactions(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/customer_balance_transactions: an entry below 0 is a credit."""
    entries = client.v1.customers.balance_transactions
    for amount in (-500, 200):
        made = await entries.create_async("cus_1", {"amount": amount, "currency": "usd"})
    assert (made.ending_balance, made.type, made.currency) == (-300, "adjustment", "usd")
    assert [entry.amount for entry in (await entries.list_async("cus_1")).data] == [200, -500]
    assert (await client.v1.customers.retrieve_async("cus_1")).balance == -300


async def test_meters_deactivate(client: stripe.StripeClient, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/billing/meter/deactivate: no event is taken meanwhile."""
    meter = emulator.add_meter("calls")
    assert (await client.v1.billing.meters.deactivate_async(meter)).status == "inactive"
    with pytest.raises(stripe.InvalidRequestError):
        await _used(client, 1, at=SECOND, identifier="a")
    assert (await client.v1.billing.meters.reactivate_async(meter)).status == "active"
    await _used(client, 1, at=SECOND, identifier="b")


async def test_errors_name_the_parameter(client: stripe.StripeClient, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/errors."""
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.subscriptions.retrieve_async("sub_none")
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
    odd: Any = {"nmae": "A"}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.customers.create_async(odd)
    assert (caught.value.code, getattr(caught.value, "param", None)) == ("parameter_unknown", "nmae")
    async with account(emulator, key="nonsense") as other:
        with pytest.raises(stripe.AuthenticationError):
            await other.v1.customers.list_async()


async def test_a_price_may_have_its_tax_in_it() -> None:
    """https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior: the total does not change."""
    emulator, _ = shop(tax_percent=Decimal(20))
    async with account(emulator) as client:
        await client.v1.customers.update_async("cus_1", {"address": {"country": "DE"}})
        within: Any = {
            "currency": "usd",
            "product": "prod_pro",
            "unit_amount": 600,
            "tax_behavior": "inclusive",
        }
        within["recurring"] = {"interval": "month"}
        price = (await client.v1.prices.create_async(within)).id
        invoice = invoice_of(await subscribe(client, "price_10", price, automatic_tax={"enabled": True}))
        assert (invoice.subtotal, invoice.subtotal_excluding_tax) == (1600, 1500)
        assert (invoice.total_excluding_tax, invoice.total) == (1500, 1800)
        taxes = [(tax.tax_behavior, tax.amount, tax.taxable_amount) for tax in invoice.total_taxes or ()]
        assert taxes == [("exclusive", 200, 1000), ("inclusive", 100, 500)]


async def _rate(client: stripe.StripeClient, percentage: float, *, inclusive: bool = False) -> str:
    wanted: Any = {"display_name": "VAT", "percentage": percentage, "inclusive": inclusive}
    return (await client.v1.tax_rates.create_async(wanted)).id


async def test_tax_rates_create(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/tax_rates/create: the percentage of a rate never changes."""
    made = await client.v1.tax_rates.create_async(
        {"display_name": "VAT", "percentage": 7.5, "inclusive": True, "country": "DE"}
    )
    assert (made.percentage, made.inclusive, made.country, made.active) == (7.5, True, "DE", True)
    changed: Any = {"percentage": 8}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.tax_rates.update_async(made.id, changed)


async def test_tax_rates_list(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/tax_rates/list."""
    one, two = await _rate(client, 7), await _rate(client, 19, inclusive=True)
    await client.v1.tax_rates.update_async(one, {"active": False})
    rates = client.v1.tax_rates
    assert [rate.id for rate in (await rates.list_async()).data] == [two, one]
    assert [rate.id for rate in (await rates.list_async({"active": True})).data] == [two]
    assert (await rates.retrieve_async(one)).active is False


async def test_default_tax_rates_of_a_subscription_tax_invoices(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/taxes/tax-rates: on top, or within the amount."""
    top, within = await _rate(client, 19), await _rate(client, 25, inclusive=True)
    made = await subscribe(client, default_tax_rates=[top])
    invoice = invoice_of(made)
    assert (amounts(invoice), invoice.subtotal, invoice.total) == ([1000], 1000, 1190)
    taxes: Any = invoice.total_taxes
    assert [(tax.amount, tax.tax_behavior, tax.tax_rate_details.tax_rate) for tax in taxes] == [
        (190, "exclusive", top)
    ]
    await client.v1.subscriptions.update_async(made.id, {"default_tax_rates": [within]})
    clock.advance(timedelta(days=30, minutes=1))
    renewal = (await client.v1.invoices.list_async({"limit": 1})).data[0]
    assert (renewal.total_excluding_tax, renewal.total) == (800, 1000)
    assert [rate.id for rate in renewal.default_tax_rates] == [within]


async def test_a_discount_of_an_item_is_taken_off_that_item_first(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/subscriptions/coupons: then the subscription's, off what is left."""
    coupons = client.v1.coupons
    half = (await coupons.create_async({"percent_off": 50, "duration": "forever"})).id
    once = (await coupons.create_async({"amount_off": 100, "currency": "usd", "duration": "once"})).id
    items: Any = [
        {"price": "price_10", "discounts": [{"coupon": half}, {"coupon": once}]},
        {"price": "price_seat"},
    ]
    made = await subscribe(client, items=items, discounts=[{"coupon": half}])
    invoice = invoice_of(made)
    assert (amounts(invoice), invoice.total) == ([1000, 900], 200 + 450)
    lines: Any = invoice.lines.data
    assert [[off.amount for off in line.discount_amounts] for line in lines] == [[500, 100, 200], [450]]
    clock.advance(timedelta(days=15))
    change: Any = {
        "items": [{"id": item_of(made).id, "price": "price_20"}],
        "proration_behavior": "always_invoice",
        "expand": ["latest_invoice"],
    }
    upgrade = invoice_of(await client.v1.subscriptions.update_async(made.id, change))
    assert amounts(upgrade) == [-100, 250]
    clock.advance(timedelta(days=15, minutes=1))
    renewal = (await client.v1.invoices.list_async({"limit": 1})).data[0]
    assert renewal.total == 500 + 450


async def test_invoice_line_items_update(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoice-line-item/update: of a draft alone."""
    draft = await _draft(client, clock)
    line, rate = draft.lines.data[0].id, await _rate(client, 19)
    wanted: Any = {"amount": 800, "description": "Less", "metadata": {"by": "hand"}, "tax_rates": [rate]}
    changed = await client.v1.invoices.line_items.update_async(str(draft.id), line, wanted)
    assert (changed.amount, changed.description, changed.metadata.to_dict()) == (800, "Less", {"by": "hand"})
    await client.v1.invoices.line_items.update_async(str(draft.id), line, {"quantity": 2})
    done = await client.v1.invoices.finalize_invoice_async(str(draft.id))
    assert (amounts(done), done.total) == ([1600], 1904)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.invoices.line_items.update_async(str(draft.id), line, {"amount": 1})
    assert caught.value.code == "invoice_not_editable"


async def test_invoice_line_items_bulk_update(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoice-line-item/bulk-update: all of them, or none."""
    draft = await _draft(client, clock)
    line = {"id": draft.lines.data[0].id, "amount": 700}
    wrong: Any = {"lines": [line, {"id": "il_none", "amount": 1}]}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoices.update_lines_async(str(draft.id), wrong)
    assert amounts(await client.v1.invoices.retrieve_async(str(draft.id))) == [1000]
    right: Any = {"lines": [line], "invoice_metadata": {"by": "hand"}}
    changed = await client.v1.invoices.update_lines_async(str(draft.id), right)
    assert (amounts(changed), changed.total) == ([700], 700)
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"by": "hand"}


async def test_a_setup_intent_that_has_ended_is_not_confirmed_again(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/payments/setupintents/lifecycle."""
    intent = await client.v1.setup_intents.create_async({"customer": "cus_1"})
    assert intent.status == "requires_payment_method"
    assert intent.client_secret is not None
    with pytest.raises(ValueError, match="no payment method"):
        emulator.confirm_setup(intent.client_secret)
    emulator.confirm_setup(intent.client_secret, card="pm_card_visa")
    with pytest.raises(ValueError, match="is succeeded"):
        emulator.confirm_setup(intent.client_secret, card="pm_card_visa")
    with pytest.raises(stripe.InvalidRequestError, match="No such"):
        await client.v1.setup_intents.retrieve_async("seti_other")
