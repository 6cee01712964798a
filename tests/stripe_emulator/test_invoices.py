"""Calls about invoices, their items and payment methods, and what a test does to the account itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import current, invoice_of, newest_invoice, refused, subscribe
from drivers.emulated_times import MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
RENEWED = datetime(2026, 5, 1, tzinfo=UTC)


async def test_invoices_are_listed_newest_first(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/list."""
    emulator.add_customer("cus_2")
    made = await subscribe(client)
    clock.set(RENEWED)
    listed = client.invoices.list
    old = invoice_of(made).id
    new = (await newest_invoice(client)).id
    for asked, found in (
        ({}, [new, old]),
        ({"status": "draft"}, [new]),
        ({"subscription": made.id}, [new, old]),
        ({"customer": "cus_2"}, []),
        ({"created": {"lt": MAY}}, [old]),
    ):
        assert found == [invoice.id for invoice in (await listed(**asked)).data]
    subscriptions = client.subscriptions.list
    for call in (listed, subscriptions):
        error = await refused(call(customer="cus_x"), "No such customer: 'cus_x'")
        assert (error.http_status, error.param) == (400, "customer")
    expanded = await subscriptions(customer="cus_1", expand=["data.latest_invoice"])
    assert invoice_of(expanded.data[0]).id == new
    assert (await subscriptions(price="price_20")).data == []
    assert len((await subscriptions(price="price_10", status="active")).data) == 1
    assert (await subscriptions(current_period_start={"lt": MAY})).data == []


@pytest.mark.parametrize("opened", [{"card": "pm_card_chargeDeclined"}], indirect=True)
async def test_an_invoice_is_paid_by_hand(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/pay: with another card, or outside of Stripe."""
    made = await subscribe(client)
    card = await client.payment_methods.attach("pm_card_visa", customer="cus_1")
    assert (await client.invoices.pay(invoice_of(made).id, payment_method=card.id)).status == "paid"
    assert (await client.subscriptions.retrieve(made.id)).status == "active"
    clock.set(RENEWED)
    (draft, _) = (await client.invoices.list()).data
    with pytest.raises(stripe.CardError):
        await client.invoices.pay(draft.id)
    outside = await client.invoices.pay(draft.id, paid_out_of_band=True)
    assert (outside.status, outside.amount_paid) == ("paid", 1000)
    other = await subscribe(client, "price_20")
    with pytest.raises(stripe.InvalidRequestError, match="No such PaymentMethod"):
        await client.invoices.pay(invoice_of(other).id, payment_method="pm_none")


async def test_invoices_are_voided_or_given_up(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/void; .../mark_uncollectible."""
    made = await subscribe(client, payment_behavior="default_incomplete")
    void = await client.invoices.void_invoice(invoice_of(made).id)
    assert (void.status, void.status_transitions.voided_at) == ("void", SECOND)
    assert (await client.subscriptions.retrieve(made.id)).status == "incomplete_expired"
    await refused(client.invoices.void_invoice(void.id), "This invoice is void")
    await refused(client.invoices.pay(void.id), "cannot be paid")
    other = await subscribe(client)
    emulator.fail_payments("cus_1")
    clock.set(RENEWED + timedelta(hours=1))
    given_up = await client.invoices.mark_uncollectible(invoice_of(await current(client, other.id)).id)
    assert (given_up.status, given_up.next_payment_attempt) == ("uncollectible", None)
    await refused(client.invoices.mark_uncollectible(given_up.id), "only pass in open invoices")
    await client.invoices.void_invoice(given_up.id)
    assert (await client.subscriptions.retrieve(other.id)).status == "active"


@pytest.mark.parametrize("opened", [{"after_retries": "past_due"}], indirect=True)
async def test_f_30i_the_latest_invoice_that_is_not_void_decides(
    client: Any, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses."""

    async def fail_renewal() -> str:
        clock.advance(timedelta(days=31, hours=2))
        emulator.advance()
        found = await newest_invoice(client)
        assert (found.status, await status()) == ("open", "past_due")
        return str(found.id)

    async def status() -> str:
        return str((await client.subscriptions.retrieve(made.id)).status)

    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    await client.invoices.mark_uncollectible(await fail_renewal())
    assert await status() == "active"
    first, second = await fail_renewal(), await fail_renewal()
    await client.invoices.mark_uncollectible(first)
    assert await status() == "past_due"
    third = await fail_renewal()
    await client.invoices.void_invoice(third)
    assert await status() == "past_due"  # The one before it is still open.
    await client.invoices.mark_uncollectible(second)
    assert await status() == "active"


async def test_cards_are_attached_and_chosen() -> None:
    """https://docs.stripe.com/api/payment_methods/attach; customers/update: `invoice_settings`."""
    emulator = StripeEmulator()
    async with account(emulator) as client:
        methods = client.payment_methods
        customer = await client.customers.create(payment_method="pm_card_visa")
        (first,) = (await methods.list(customer=customer.id)).data
        assert (first.type, first.customer, first.card.last4) == ("card", customer.id, "4242")
        default: Any = {"invoice_settings": {"default_payment_method": first.id}}
        changed = await client.customers.update(customer.id, **default)
        assert changed.invoice_settings.default_payment_method == first.id
        other = await client.customers.create(balance=100)
        assert other.balance == 100
        await refused(methods.attach(first.id, customer=other.id), "already been attached")
        await refused(methods.attach("pm_x", customer=other.id), "No such PaymentMethod: 'pm_x'")
        await refused(methods.attach("pm_card_visa", customer="cus_x"), "No such customer: 'cus_x'")
        await refused(client.customers.update(other.id, **default), "No such PaymentMethod")
        assert (await methods.detach(first.id)).customer is None
        assert (await methods.retrieve(first.id)).customer is None
        bare = await client.customers.retrieve(customer.id)
        assert bare.invoice_settings.default_payment_method is None
        assert (await client.customers.payment_methods.list(customer.id)).data == []
        await client.customers.update(customer.id, invoice_settings={"default_payment_method": ""})


@pytest.mark.parametrize("opened", [{"card": "pm_card_chargeDeclined"}], indirect=True)
async def test_an_invoice_may_have_a_card_of_its_own(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#collect-payment: the invoice's comes first."""
    made = await subscribe(client)
    card = await client.payment_methods.attach("pm_card_mastercard", customer="cus_1")
    await client.invoices.update(invoice_of(made).id, default_payment_method=card.id)
    assert (await client.invoices.pay(invoice_of(made).id)).status == "paid"
    clock.set(RENEWED)
    (draft, _) = (await client.invoices.list()).data
    held = await client.invoices.finalize_invoice(draft.id, auto_advance=False)
    assert (held.status, held.next_payment_attempt) == ("open", None)
    await client.payment_methods.detach(card.id)
    with pytest.raises(stripe.CardError):
        await client.invoices.pay(draft.id)


async def test_a_default_source_pays_where_there_is_no_other(client: Any) -> None:
    """https://docs.stripe.com/billing/invoices/subscription#collect-payment: it comes last."""
    (good,) = (await client.payment_methods.list(customer="cus_1")).data
    declined = await client.payment_methods.attach("pm_card_chargeDeclined", customer="cus_1")
    for default, status in ((good.id, "active"), ("", "incomplete")):
        settings = {"default_payment_method": default}
        await client.customers.update("cus_1", default_source=declined.id, invoice_settings=settings)
        assert (await subscribe(client)).status == status


async def add_item(client: Any, subscription: Any, **more: Any) -> Any:
    amounts = {"quantity_decimal": Decimal(26), "unit_amount_decimal": Decimal("0.375"), "currency": "usd"}
    wanted = {"customer": "cus_1", "subscription": subscription.id, **amounts, **more}
    return await client.invoice_items.create(**{k: v for k, v in wanted.items() if v is not None})


async def test_an_item_is_on_the_next_invoice(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoiceitems/create: exact until it is rounded once."""
    made = await subscribe(client)
    period = {"start": 1_000, "end": 2_000}
    item = await add_item(client, made, period=period, description="Words", metadata={"a": "b"})
    assert (item.amount, item.invoice, item.quantity_decimal) == (10, None, Decimal(26))
    clock.advance(timedelta(days=31))
    emulator.advance()
    renewal = await newest_invoice(client)
    (line,) = [line for line in renewal.lines.data if line.description == "Words"]
    assert (line.amount, line.quantity_decimal) == (10, Decimal(26))
    assert (line.period.start, line.period.end) == (1_000, 2_000)
    assert line.pricing.unit_amount_decimal == Decimal("0.375")
    assert line.metadata.to_dict() == {"a": "b"}
    assert (await client.invoice_items.retrieve(item.id)).invoice == renewal.id


async def test_f_30i_an_item_may_have_an_amount(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-amount: below 0, it reduces."""
    await subscribe(client)
    fee = await client.invoice_items.create(customer="cus_1", amount=700, currency="usd", description="Fee")
    assert (fee.amount, fee.quantity, fee.pricing.unit_amount_decimal) == (700, 1, Decimal(700))
    less = await client.invoice_items.create(customer="cus_1", amount=-100, currency="usd")
    assert (await client.invoice_items.update(less.id, amount=-250)).amount == -250
    for wrong in ({"quantity": 2}, {"unit_amount_decimal": Decimal(5)}, {"pricing": {"price": "price_10"}}):
        asked: Any = {"customer": "cus_1", "amount": 700, "currency": "usd", **wrong}
        await refused(client.invoice_items.create(**asked))
    await refused(client.invoice_items.create(customer="cus_1", amount=700), "currency")
    clock.advance(timedelta(days=31))
    emulator.advance()
    renewal = await newest_invoice(client)
    assert (sorted(line.amount for line in renewal.lines.data), renewal.total) == ([-250, 700, 1000], 1450)


async def test_items_are_listed_until_deleted(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoiceitems/list, https://docs.stripe.com/api/invoiceitems/delete."""
    made = await subscribe(client)
    first, second = [await add_item(client, made) for _ in range(2)]
    listed = await client.invoice_items.list(customer="cus_1", pending=True)
    assert [second.id, first.id] == [item.id for item in listed.data]
    assert (await client.invoice_items.delete(first.id)).deleted is True
    clock.advance(timedelta(days=31))
    emulator.advance()
    assert (await client.invoice_items.list(pending=True)).data == []
    kept = await client.invoice_items.list(customer="cus_1")
    assert [second.id] == [item.id for item in kept.data]
    clock.advance(timedelta(days=31))
    emulator.advance()
    await refused(client.invoice_items.delete(second.id), "no longer editable")


async def test_an_item_is_changed_until_its_invoice_is_final(
    client: Any, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoiceitems/update: what a call does not name stays."""
    made = await subscribe(client)
    item = await add_item(client, made, metadata={"a": "b", "c": "d"})
    changed = await client.invoice_items.update(
        item.id, quantity_decimal=Decimal(80), metadata={"a": "", "e": "f"}
    )
    assert (changed.amount, changed.quantity_decimal, changed.metadata.to_dict()) == (
        30,
        Decimal(80),
        {"c": "d", "e": "f"},
    )
    cheaper = await client.invoice_items.update(
        item.id, unit_amount_decimal=Decimal("0.25"), description="Words"
    )
    assert (cheaper.amount, cheaper.description, cheaper.period) == (20, "Words", item.period)
    await refused(client.invoice_items.update(item.id, quantity_decimal=Decimal(-1)), "non-negative")
    clock.advance(timedelta(days=31))
    emulator.advance()
    assert 20 in [line.amount for line in (await newest_invoice(client)).lines.data]
    await refused(client.invoice_items.update(item.id, quantity_decimal=Decimal(1)), "no longer editable")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"currency": "eur"}, "invoice in `usd`"),
        ({"unit_amount_decimal": None}, "pricing"),
        ({"quantity_decimal": Decimal(-1)}, "non-negative"),
        ({"quantity": 1}, "quantity"),
        ({"invoice": "in_1"}, "subscription"),
    ],
)
async def test_items_that_stripe_refuses(client: Any, more: dict[str, Any], why: str) -> None:
    await refused(add_item(client, await subscribe(client), **more), why)


async def test_a_subscription_that_has_ended_takes_no_items(client: Any) -> None:
    made = await subscribe(client)
    await client.subscriptions.cancel(made.id)
    await refused(add_item(client, made), "that has not ended")
    await refused(client.invoice_items.retrieve("ii_none"), "No such invoiceitem")


async def test_pending_items_are_assigned_to_a_draft(client: Any) -> None:
    """https://docs.stripe.com/api/invoice-line-item/bulk: all of them, or none."""
    made = await subscribe(client)
    first, second = [await add_item(client, made) for _ in range(2)]
    await client.subscriptions.cancel(made.id)
    draft = await client.invoices.create(customer="cus_1", metadata={"a": "b"})
    await refused(
        client.invoices.add_lines(draft.id, lines=[{"invoice_item": first.id}, {"invoice_item": "ii_none"}]),
        "that are unassigned",
    )
    changed = await client.invoices.add_lines(draft.id, lines=[{"invoice_item": first.id}])
    assert (changed.total, changed.metadata.to_dict()) == (10, {"a": "b"})
    assert (await client.invoice_items.retrieve(first.id)).invoice == draft.id
    assert [one.id for one in (await client.invoice_items.list(pending=True)).data] == [second.id]
    await refused(client.invoices.add_lines(draft.id, lines=[{"invoice_item": first.id}]), "unassigned")
    await client.invoices.finalize_invoice(draft.id)
    await refused(client.invoices.add_lines(draft.id, lines=[{"invoice_item": second.id}]), "updated")


async def renewal_draft(client: Any, clock: Clock, **how: Any) -> Any:
    """Subscribe, and go to the first renewal; its invoice."""
    await subscribe(client, **how)
    clock.set(RENEWED)
    return await newest_invoice(client)


def priced(**more: Any) -> dict[str, Any]:
    """Parameters of an item of 100 units at one cent each."""
    price = {"currency": "usd", "product": "prod_pro", "unit_amount_decimal": Decimal(1), **more}
    return {"price_data": price, "quantity_decimal": Decimal(100), "customer": "cus_1"}


async def test_an_invoice_takes_250_items_while_it_is_a_draft(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoiceitems/create: "up to 250 items per invoice", on a draft.

    https://docs.stripe.com/api/invoices/list finds the draft by subscription and status.
    """
    draft = await renewal_draft(client, clock)
    create = client.invoice_items.create
    for _ in range(249):
        await create(invoice=draft.id, **priced())
    await refused(create(invoice=draft.id, **priced()), "at most 250 items")
    owner = draft.parent.subscription_details.subscription
    (found,) = (await client.invoices.list(subscription=owner, status="draft")).data
    assert (found.id, found.total) == (draft.id, 1000 + 249 * 100)
    await client.invoices.finalize_invoice(draft.id)
    await refused(create(invoice=draft.id, **priced()), "draft invoice")


async def test_an_item_has_the_currency_of_its_invoice(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/invoicing/multi-currency-customers: one currency for each invoice."""
    draft = await renewal_draft(client, clock)
    euros = client.invoice_items.create(invoice=draft.id, **priced(currency="eur"))
    await refused(euros, "doesn't match the expected currency: `usd`")


@pytest.mark.parametrize("opened", [{"tax_percent": Decimal(10)}], indirect=True)
@pytest.mark.parametrize(
    ("behaviour", "total"), [("unspecified", 1210), ("exclusive", 1210), ("inclusive", 1200)]
)
async def test_items_of_a_draft_are_taxed(client: Any, clock: Clock, behaviour: str, total: int) -> None:
    """https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior: on top, or within the amount."""
    await client.customers.update("cus_1", address={"country": "US", "postal_code": "94103"})
    draft = await renewal_draft(client, clock, automatic_tax={"enabled": True})
    for own in (priced(tax_behavior=behaviour), {**priced(), "tax_behavior": behaviour}):
        item = await client.invoice_items.create(invoice=draft.id, **own)
        assert (await client.invoices.retrieve(draft.id)).total == total
        await client.invoice_items.delete(item.id)


async def test_items_of_a_draft_have_default_tax_rates_or_their_own(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-tax_rates: they win."""
    rates = [
        (await client.tax_rates.create(display_name="VAT", percentage=percent, inclusive=False)).id
        for percent in (10, 20)
    ]
    draft = await renewal_draft(client, clock, default_tax_rates=rates[:1])
    for own, total in (({}, 1210), ({"tax_rates": rates[1:]}, 1220)):
        item = await client.invoice_items.create(invoice=draft.id, **priced(), **own)
        assert (await client.invoices.retrieve(draft.id)).total == total
        await client.invoice_items.delete(item.id)
