"""Calls as Stripe's reference describes them, through its SDK: each test names the page it follows."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import amounts, invoice_of, item_of, newest_invoice, refused, subscribe, use
from drivers.emulated_times import DAY, HOUR, MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def test_payment_methods_detach(client: Any) -> None:
    """https://docs.stripe.com/api/payment_methods/detach: it can be used no longer."""
    (card,) = (await client.customers.payment_methods.list("cus_1")).data
    assert (await client.payment_methods.detach(card.id)).customer is None
    await refused(client.payment_methods.attach(card.id, customer="cus_1"))


async def test_prices_update(client: Any) -> None:
    """https://docs.stripe.com/api/prices/update: what it costs is no parameter."""
    changed = await client.prices.update("price_10", active=False, nickname="old")
    assert (changed.active, changed.nickname) == (False, "old")
    assert (await refused(client.prices.update("price_10", unit_amount=1100))).code == "parameter_unknown"
    await refused(subscribe(client), "inactive")


async def test_lookup_keys(client: Any) -> None:
    """https://docs.stripe.com/products-prices/manage-prices#lookup-keys: a key moves from price to price."""
    await client.prices.update("price_10", lookup_key="pro")
    await refused(client.prices.update("price_20", lookup_key="pro"), "already uses that lookup key")
    await client.prices.update("price_20", lookup_key="pro", transfer_lookup_key=True)
    (found,) = (await client.prices.list(lookup_keys=["pro"])).data
    assert found.id == "price_20"
    assert (await client.prices.retrieve("price_10")).lookup_key is None


async def test_coupons_delete(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/coupons/delete: customers who have it keep it."""
    half = await client.coupons.create(percent_off=50, duration="forever")
    await subscribe(client, discounts=[{"coupon": half.id}])
    assert (await client.coupons.delete(half.id)).deleted is True
    clock.advance(timedelta(days=30, hours=2))
    assert (await newest_invoice(client)).total == 500


async def test_subscriptions_cancel(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/cancel: without proration by default."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    gone = await client.subscriptions.cancel(made.id)
    assert (gone.status, gone.canceled_at, gone.ended_at) == ("canceled", clock(), clock())
    assert len((await client.invoices.list()).data) == 1
    error = await refused(client.subscriptions.cancel(made.id))
    assert (error.http_status, error.code) == (404, "resource_missing")
    # https://docs.stripe.com/api/subscriptions/update: metadata and cancellation details still change.
    error = await refused(client.subscriptions.update(made.id, items=[{"price": "price_20"}]))
    assert error.http_status == 400
    noted = await client.subscriptions.update(made.id, metadata={"why": "price"})
    assert noted.metadata.to_dict() == {"why": "price"}


SENT: Any = {"collection_method": "send_invoice", "days_until_due": 14}


async def _draft(client: Any, clock: Clock) -> Any:
    """The draft of a renewal that has just been made."""
    await subscribe(client)
    clock.advance(timedelta(days=30, minutes=1))
    return await newest_invoice(client)


async def _open(client: Any) -> Any:
    return await client.invoices.finalize_invoice(str(invoice_of(await subscribe(client, **SENT)).id))


async def test_finalization_is_put_off(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/invoicing/scheduled-finalization."""
    draft = await _draft(client, clock)
    for at, finalizes_at in ((MAY + DAY, MAY + DAY), ("", MAY + HOUR), (MAY + DAY, MAY + DAY)):
        changed = await client.invoices.update(draft.id, automatically_finalizes_at=at)
        assert changed.automatically_finalizes_at == finalizes_at
    clock.advance(timedelta(hours=2))
    assert (await client.invoices.retrieve(draft.id)).status == "draft"
    clock.advance(timedelta(days=1))
    assert (await client.invoices.retrieve(draft.id)).status == "paid"


async def test_invoices_finalize(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/finalize: once."""
    draft = await _draft(client, clock)
    assert (await client.invoices.finalize_invoice(draft.id)).status_transitions.finalized_at is not None
    await refused(client.invoices.finalize_invoice(draft.id))


async def test_invoices_mark_uncollectible(client: Any) -> None:
    """https://docs.stripe.com/api/invoices/mark_uncollectible: it can still be paid."""
    given_up = await client.invoices.mark_uncollectible(str((await _open(client)).id))
    assert given_up.status == "uncollectible"
    assert (await client.invoices.pay(given_up.id)).status == "paid"


async def test_invoices_create_preview(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: nothing is kept of it."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    details: Any = {"items": [{"id": item_of(made).id, "price": "price_20"}], "proration_date": int(clock())}
    details["proration_behavior"] = "always_invoice"
    preview = await client.invoices.create_preview(subscription=made.id, subscription_details=details)
    assert (amounts(preview), preview.total) == ([-500, 1000], 500)
    assert len((await client.invoices.list()).data) == 1
    assert item_of(await client.subscriptions.retrieve(made.id)).price.id == "price_10"


async def test_a_final_invoice_takes_no_items(client: Any) -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-invoice."""
    price: Any = {"currency": "usd", "product": "prod_pro", "unit_amount": 250}
    wanted: Any = {"customer": "cus_1", "invoice": (await _open(client)).id, "price_data": price}
    await refused(client.invoice_items.create(**wanted))


async def test_invoices_create_and_delete(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/delete: a draft of no subscription."""
    made = await client.invoices.create(customer="cus_1")
    assert (made.status, made.billing_reason, made.total) == ("draft", "manual", 0)
    assert (await client.invoices.delete(made.id)).deleted is True
    assert (await refused(client.invoices.retrieve(made.id))).http_status == 404
    for kept in (await _draft(client, clock), await _open(client)):
        await refused(client.invoices.delete(kept.id))


async def test_customer_balance_transactions(client: Any) -> None:
    """https://docs.stripe.com/api/customer_balance_transactions: an entry below 0 is a credit."""
    entries = client.customers.balance_transactions
    for amount in (-500, 200):
        made = await entries.create("cus_1", amount=amount, currency="usd")
    assert (made.ending_balance, made.type, made.currency) == (-300, "adjustment", "usd")
    assert [entry.amount for entry in (await entries.list("cus_1")).data] == [200, -500]
    assert (await client.customers.retrieve("cus_1")).balance == -300


async def test_meters_deactivate(client: Any) -> None:
    """https://docs.stripe.com/api/billing/meter/deactivate: no event is taken meanwhile."""
    (meter,) = (await client.billing.meters.list()).data
    assert (await client.billing.meters.deactivate(meter.id)).status == "inactive"
    await refused(use(client, 1, at=SECOND))
    assert (await client.billing.meters.reactivate(meter.id)).status == "active"
    await use(client, 1, at=SECOND)


async def test_errors_name_the_parameter(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/errors."""
    error = await refused(client.subscriptions.retrieve("sub_none"))
    assert (error.http_status, error.code) == (404, "resource_missing")
    error = await refused(client.customers.create(nmae="A"))
    assert (error.code, error.param) == ("parameter_unknown", "nmae")
    async with account(emulator, key="nonsense") as other:
        with pytest.raises(stripe.AuthenticationError):
            await other.customers.list()


@pytest.mark.parametrize("opened", [{"tax_percent": Decimal(20)}], indirect=True)
async def test_a_price_may_have_its_tax_in_it(client: Any) -> None:
    """https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior: the total does not change."""
    await client.customers.update("cus_1", address={"country": "DE"})
    within: Any = {"currency": "usd", "product": "prod_pro", "unit_amount": 600, "tax_behavior": "inclusive"}
    within["recurring"] = {"interval": "month"}
    price = (await client.prices.create(**within)).id
    invoice = invoice_of(await subscribe(client, "price_10", price, automatic_tax={"enabled": True}))
    assert (invoice.subtotal, invoice.subtotal_excluding_tax) == (1600, 1500)
    assert (invoice.total_excluding_tax, invoice.total) == (1500, 1800)
    taxes = [(tax.tax_behavior, tax.amount, tax.taxable_amount) for tax in invoice.total_taxes or ()]
    assert taxes == [("exclusive", 200, 1000), ("inclusive", 100, 500)]
    lines = [{"type": "invoice_line_item", "invoice_line_item": line.id} for line in invoice.lines.data]
    note = await client.credit_notes.create(invoice=invoice.id, lines=lines, credit_amount=1800)
    assert note.amount == 1800


async def _rate(client: Any, percentage: float, *, inclusive: bool = False) -> Any:
    return (await client.tax_rates.create(display_name="VAT", percentage=percentage, inclusive=inclusive)).id


async def test_tax_rates_create_and_list(client: Any) -> None:
    """https://docs.stripe.com/api/tax_rates/create: the percentage of a rate never changes."""
    made = await client.tax_rates.create(display_name="VAT", percentage=7.5, inclusive=True, country="DE")
    assert (made.percentage, made.inclusive, made.country, made.active) == (7.5, True, "DE", True)
    rates, other = client.tax_rates, await _rate(client, 19, inclusive=True)
    await refused(rates.update(made.id, percentage=8))
    await rates.update(made.id, active=False)
    assert [rate.id for rate in (await rates.list()).data] == [other, made.id]
    assert [rate.id for rate in (await rates.list(active=True)).data] == [other]
    assert (await rates.retrieve(made.id)).active is False


async def test_default_tax_rates_of_a_subscription_tax_invoices(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/taxes/tax-rates: on top, or within the amount."""
    top, within = await _rate(client, 19), await _rate(client, 25, inclusive=True)
    made = await subscribe(client, default_tax_rates=[top])
    invoice = invoice_of(made)
    assert (amounts(invoice), invoice.subtotal, invoice.total) == ([1000], 1000, 1190)
    taxes: Any = invoice.total_taxes
    assert [(tax.amount, tax.tax_behavior, tax.tax_rate_details.tax_rate) for tax in taxes] == [
        (190, "exclusive", top)
    ]
    await client.subscriptions.update(made.id, default_tax_rates=[within])
    clock.advance(timedelta(days=30, minutes=1))
    renewal = await newest_invoice(client)
    assert (renewal.total_excluding_tax, renewal.total) == (800, 1000)
    assert [rate.id for rate in renewal.default_tax_rates] == [within]


async def test_a_discount_of_an_item_is_taken_off_that_item_first(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/coupons: then the subscription's, off what is left."""
    coupons = client.coupons
    half = (await coupons.create(percent_off=50, duration="forever")).id
    once = (await coupons.create(amount_off=100, currency="usd", duration="once")).id
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
    assert amounts(invoice_of(await client.subscriptions.update(made.id, **change))) == [-100, 250]
    clock.advance(timedelta(days=15, minutes=1))
    assert (await newest_invoice(client)).total == 500 + 450


async def test_invoice_line_items_update(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoice-line-item/update: of a draft alone."""
    draft = await _draft(client, clock)
    line, rate = draft.lines.data[0].id, await _rate(client, 19)
    wanted: Any = {"amount": 800, "description": "Less", "metadata": {"by": "hand"}, "tax_rates": [rate]}
    changed = await client.invoices.line_items.update(draft.id, line, **wanted)
    assert (changed.amount, changed.description, changed.metadata.to_dict()) == (800, "Less", {"by": "hand"})
    await client.invoices.line_items.update(draft.id, line, quantity=2)
    done = await client.invoices.finalize_invoice(draft.id)
    assert (amounts(done), done.total) == ([1600], 1904)
    error = await refused(client.invoices.line_items.update(draft.id, line, amount=1))
    assert error.code == "invoice_not_editable"


async def test_invoice_line_items_bulk_update(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoice-line-item/bulk-update: all of them, or none."""
    draft = await _draft(client, clock)
    line = {"id": draft.lines.data[0].id, "amount": 700}
    await refused(client.invoices.update_lines(draft.id, lines=[line, {"id": "il_none", "amount": 1}]))
    assert amounts(await client.invoices.retrieve(draft.id)) == [1000]
    changed = await client.invoices.update_lines(draft.id, lines=[line], invoice_metadata={"by": "hand"})
    assert (amounts(changed), changed.total) == ([700], 700)
    assert changed.metadata.to_dict() == {"by": "hand"}


async def test_an_ended_setup_intent_is_not_confirmed_again(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/payments/setupintents/lifecycle."""
    intent = await client.setup_intents.create(customer="cus_1")
    assert intent.status == "requires_payment_method"
    with pytest.raises(ValueError, match="no payment method"):
        emulator.confirm_setup(intent.client_secret)
    emulator.confirm_setup(intent.client_secret, card="pm_card_visa")
    with pytest.raises(ValueError, match="is succeeded"):
        emulator.confirm_setup(intent.client_secret, card="pm_card_visa")
    await refused(client.setup_intents.retrieve("seti_other"), "No such")
