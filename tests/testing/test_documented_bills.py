"""Calls as Stripe's reference describes them, through its SDK: each test's docstring is the page it follows.

Here: invoices, money given back, checkout, meters, and what all calls share; the rest is in
tests/testing/test_documented_calls.py.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, SECOND, amounts, invoice_of, item_of, shop, subscribe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

Served = tuple[stripe.StripeClient, "StripeEmulator", "Clock"]
SENT: Any = {"collection_method": "send_invoice", "days_until_due": 14}


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    emulator, clock = shop()
    async with account(emulator) as client:
        yield client, emulator, clock


async def _draft(served: Served) -> stripe.Invoice:
    """The draft of a renewal that has just been made."""
    client, _, clock = served
    await subscribe(client)
    clock.advance(timedelta(days=30, minutes=1))
    return (await client.v1.invoices.list_async({"limit": 1})).data[0]


async def _open(served: Served) -> stripe.Invoice:
    client, _, _ = served
    made = await subscribe(client, **SENT)
    return await client.v1.invoices.finalize_invoice_async(str(invoice_of(made).id))


async def _metered(served: Served) -> tuple[str, str]:
    """The price and the meter of calls, at 2 cents each."""
    client, emulator, _ = served
    meter = emulator.add_meter("calls")
    wanted: Any = {
        "currency": "usd",
        "product": "prod_pro",
        "unit_amount": 2,
        "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
    }
    return (await client.v1.prices.create_async(wanted)).id, meter


async def _used(client: stripe.StripeClient, number: int, *, at: int, identifier: str) -> None:
    await client.v1.billing.meter_events.create_async(
        {
            "event_name": "calls",
            "identifier": identifier,
            "payload": {"stripe_customer_id": "cus_1", "value": str(number)},
            "timestamp": at,
        }
    )


async def test_finalization_is_put_off(served: Served) -> None:
    """https://docs.stripe.com/invoicing/scheduled-finalization."""
    client, _, clock = served
    draft = await _draft(served)
    later: Any = {"automatically_finalizes_at": MAY + DAY}
    await client.v1.invoices.update_async(str(draft.id), later)
    clock.advance(timedelta(hours=2))
    assert (await client.v1.invoices.retrieve_async(str(draft.id))).status == "draft"
    clock.advance(timedelta(days=1))
    assert (await client.v1.invoices.retrieve_async(str(draft.id))).status == "paid"


async def test_invoices_finalize(served: Served) -> None:
    """https://docs.stripe.com/api/invoices/finalize: once."""
    client, _, _ = served
    draft = await _draft(served)
    done = await client.v1.invoices.finalize_invoice_async(str(draft.id))
    assert done.status_transitions.finalized_at is not None
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoices.finalize_invoice_async(str(draft.id))


async def test_invoices_void(served: Served) -> None:
    """https://docs.stripe.com/api/invoices/void: an open one, not a draft."""
    client, _, _ = served
    found = await _open(served)
    assert (await client.v1.invoices.void_invoice_async(str(found.id))).status == "void"
    draft = await _draft(served)
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoices.void_invoice_async(str(draft.id))


async def test_invoices_mark_uncollectible(served: Served) -> None:
    """https://docs.stripe.com/api/invoices/mark_uncollectible: it can still be paid."""
    client, _, _ = served
    given_up = await client.v1.invoices.mark_uncollectible_async(str((await _open(served)).id))
    assert given_up.status == "uncollectible"
    assert (await client.v1.invoices.pay_async(str(given_up.id))).status == "paid"


async def test_invoices_create_preview(served: Served) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: nothing is kept of it."""
    client, _, clock = served
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


async def test_a_final_invoice_takes_no_items(served: Served) -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-invoice."""
    client, _, _ = served
    price: Any = {"currency": "usd", "product": "prod_pro", "unit_amount": 250}
    wanted: Any = {"customer": "cus_1", "invoice": (await _open(served)).id, "price_data": price}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.invoice_items.create_async(wanted)


async def test_invoices_create_and_delete(served: Served) -> None:
    """https://docs.stripe.com/api/invoices/delete: a draft of no subscription."""
    client, _, _ = served
    made = await client.v1.invoices.create_async({"customer": "cus_1"})
    assert (made.status, made.billing_reason, made.total) == ("draft", "manual", 0)
    assert (await client.v1.invoices.delete_async(str(made.id))).deleted is True
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.invoices.retrieve_async(str(made.id))
    assert caught.value.http_status == 404
    for kept in (await _draft(served), await _open(served)):
        with pytest.raises(stripe.InvalidRequestError):
            await client.v1.invoices.delete_async(str(kept.id))


async def test_invoice_lines_list(served: Served) -> None:
    """https://docs.stripe.com/api/invoice-line-item/invoice-lines-list."""
    client, _, _ = served
    made = await subscribe(client, "price_10", "price_20")
    invoice = str(invoice_of(made).id)
    first = await client.v1.invoices.line_items.list_async(invoice, {"limit": 1})
    assert (len(first.data), first.has_more) == (1, True)
    assert sorted([line.amount async for line in first.auto_paging_iter()]) == [1000, 2000]


async def test_credit_notes_of_an_open_invoice(served: Served) -> None:
    """https://docs.stripe.com/api/credit_notes/create: less is due."""
    client, _, _ = served
    found = await _open(served)
    note = await client.v1.credit_notes.create_async({"invoice": str(found.id), "amount": 400})
    assert (note.type, note.amount, note.status) == ("pre_payment", 400, "issued")
    assert (await client.v1.invoices.retrieve_async(str(found.id))).amount_due == 600


async def test_credit_notes_of_a_paid_invoice(served: Served) -> None:
    """https://docs.stripe.com/api/credit_notes/create#create_credit_note-credit_amount: to the balance."""
    client, _, _ = served
    invoice = str(invoice_of(await subscribe(client)).id)
    note = await client.v1.credit_notes.create_async(
        {"invoice": invoice, "amount": 400, "credit_amount": 400}
    )
    assert note.type == "post_payment"
    assert (await client.v1.customers.retrieve_async("cus_1")).balance == -400
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.credit_notes.create_async({"invoice": invoice, "amount": 601, "credit_amount": 601})


async def test_credit_notes_list(served: Served) -> None:
    """https://docs.stripe.com/api/credit_notes/list."""
    client, _, _ = served
    found, other = await _open(served), await _open(served)
    for invoice, amount in ((found, 400), (other, 100), (found, 50)):
        await client.v1.credit_notes.create_async({"invoice": str(invoice.id), "amount": amount})
    listed = await client.v1.credit_notes.list_async({"invoice": str(found.id)})
    assert [note.amount for note in listed.data] == [50, 400]


async def test_customer_balance_transactions(served: Served) -> None:
    """https://docs.stripe.com/api/customer_balance_transactions: an entry below 0 is a credit."""
    client, _, _ = served
    entries = client.v1.customers.balance_transactions
    for amount in (-500, 200):
        made = await entries.create_async("cus_1", {"amount": amount, "currency": "usd"})
    assert (made.ending_balance, made.type, made.currency) == (-300, "adjustment", "usd")
    assert [entry.amount for entry in (await entries.list_async("cus_1")).data] == [200, -500]
    assert (await client.v1.customers.retrieve_async("cus_1")).balance == -300


async def test_invoice_items_list(served: Served) -> None:
    """https://docs.stripe.com/api/invoiceitems/list: ``pending`` ones wait for the next invoice."""
    client, _, _ = served
    found = await subscribe(client)
    item: Any = {"id": item_of(found).id, "price": "price_20"}
    await client.v1.subscriptions.update_async(found.id, {"items": [item]})
    listed = await client.v1.invoice_items.list_async({"customer": "cus_1", "pending": True})
    assert sorted(each.amount for each in listed.data) == [-1000, 2000]
    assert [each.invoice for each in listed.data] == [None, None]


async def test_refunds_create(served: Served) -> None:
    """https://docs.stripe.com/api/refunds/create: in parts, until all is refunded."""
    client, _, _ = served
    invoice = str(invoice_of(await subscribe(client)).id)
    (payment,) = (await client.v1.invoice_payments.list_async({"invoice": invoice})).data
    intent = str(payment.payment.payment_intent)
    part = await client.v1.refunds.create_async({"payment_intent": intent, "amount": 400})
    assert (part.amount, part.status) == (400, "succeeded")
    assert (await client.v1.refunds.create_async({"payment_intent": intent})).amount == 600
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.refunds.create_async({"payment_intent": intent})
    assert caught.value.code == "charge_already_refunded"


async def test_meters_create(served: Served) -> None:
    """https://docs.stripe.com/api/billing/meter/create: one active meter by an event name."""
    client, _, _ = served
    wanted: Any = {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
    made = await client.v1.billing.meters.create_async(wanted)
    assert (made.status, made.event_name) == ("active", "calls")
    assert (made.customer_mapping.event_payload_key, made.value_settings.event_payload_key) == (
        "stripe_customer_id",
        "value",
    )
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.billing.meters.create_async(wanted)


async def test_meters_deactivate(served: Served) -> None:
    """https://docs.stripe.com/api/billing/meter/deactivate: no event is taken meanwhile."""
    client, emulator, _ = served
    meter = emulator.add_meter("calls")
    assert (await client.v1.billing.meters.deactivate_async(meter)).status == "inactive"
    with pytest.raises(stripe.InvalidRequestError):
        await _used(client, 1, at=SECOND, identifier="a")
    assert (await client.v1.billing.meters.reactivate_async(meter)).status == "active"
    await _used(client, 1, at=SECOND, identifier="b")


async def test_meter_events_create(served: Served) -> None:
    """https://docs.stripe.com/api/billing/meter-event/create: identifiers are unique for a day."""
    client, emulator, _ = served
    emulator.add_meter("calls")
    await _used(client, 3, at=SECOND, identifier="one")
    with pytest.raises(stripe.InvalidRequestError):
        await _used(client, 3, at=SECOND, identifier="one")
    assert emulator.accepted("cus_1", "calls") == 3


@pytest.mark.parametrize("away", [-36 * DAY, HOUR])
async def test_events_have_a_time_that_is_near(served: Served, away: int) -> None:
    """https://docs.stripe.com/api/billing/meter-event/create: 35 days ago, or in 5 minutes."""
    client, emulator, _ = served
    emulator.add_meter("calls")
    with pytest.raises(stripe.InvalidRequestError, match="timestamp"):
        await _used(client, 3, at=SECOND + away, identifier="one")


async def test_meter_event_adjustments_create(served: Served) -> None:
    """https://docs.stripe.com/api/billing/meter-event-adjustment/create: of the last day."""
    client, emulator, _ = served
    emulator.add_meter("calls")
    await _used(client, 3, at=SECOND, identifier="one")
    wanted: Any = {"type": "cancel", "event_name": "calls", "cancel": {"identifier": "one"}}
    assert (await client.v1.billing.meter_event_adjustments.create_async(wanted)).type == "cancel"
    assert emulator.accepted("cus_1", "calls") == 0


async def test_meter_event_summaries_list(served: Served) -> None:
    """https://docs.stripe.com/api/billing/meter-event-summary/list: bounds are whole minutes."""
    client, emulator, clock = served
    meter = emulator.add_meter("calls")
    await _used(client, 3, at=SECOND, identifier="one")
    await _used(client, 4, at=SECOND - 60, identifier="two")
    clock.advance(timedelta(minutes=10))
    asked: Any = {"customer": "cus_1", "start_time": SECOND - 60, "end_time": SECOND}
    (found,) = (await client.v1.billing.meters.event_summaries.list_async(meter, asked)).data
    assert found.aggregated_value == 4
    asked["end_time"] = SECOND + 1
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.billing.meters.event_summaries.list_async(meter, asked)


async def test_metered_items_have_no_quantity(served: Served) -> None:
    """https://docs.stripe.com/api/subscription_items/create#create_subscription_item-quantity."""
    client, _, _ = served
    price, _ = await _metered(served)
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscriptions.create_async(
            {"customer": "cus_1", "items": [{"price": price, "quantity": 2}]}
        )


async def test_checkout_sessions_create(served: Served) -> None:
    """https://docs.stripe.com/api/checkout/sessions/create: open for a day."""
    client, _, clock = served
    wanted: Any = {
        "mode": "subscription",
        "line_items": [{"price": "price_10", "quantity": 1}],
        "success_url": "https://app.example/done",
        "client_reference_id": "acme",
    }
    made = await client.v1.checkout.sessions.create_async(wanted)
    assert (made.status, made.payment_status, made.client_reference_id) == ("open", "unpaid", "acme")
    assert made.expires_at == SECOND + DAY
    clock.advance(timedelta(days=1, seconds=1))
    assert (await client.v1.checkout.sessions.retrieve_async(made.id)).status == "expired"


async def test_checkout_sessions_expire(served: Served) -> None:
    """https://docs.stripe.com/api/checkout/sessions/expire: an open one."""
    client, _, _ = served
    wanted: Any = {
        "mode": "subscription",
        "line_items": [{"price": "price_10", "quantity": 1}],
        "success_url": "https://app.example/done",
    }
    made = await client.v1.checkout.sessions.create_async(wanted)
    assert (await client.v1.checkout.sessions.expire_async(made.id)).status == "expired"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.checkout.sessions.expire_async(made.id)


async def test_setup_intents_create(served: Served) -> None:
    """https://docs.stripe.com/api/setup_intents/create."""
    client, _, _ = served
    made = await client.v1.setup_intents.create_async({"customer": "cus_1", "usage": "off_session"})
    assert (made.status, made.usage) == ("requires_payment_method", "off_session")
    assert made.client_secret is not None
    assert (await client.v1.setup_intents.cancel_async(made.id)).status == "canceled"


async def test_test_clocks_advance(served: Served) -> None:
    """https://docs.stripe.com/api/test_clocks/advance: forward only."""
    client, _, _ = served
    clock = await client.v1.test_helpers.test_clocks.create_async({"frozen_time": SECOND})
    advanced = await client.v1.test_helpers.test_clocks.advance_async(clock.id, {"frozen_time": MAY})
    assert advanced.status == "advancing"
    assert (await client.v1.test_helpers.test_clocks.retrieve_async(clock.id)).status == "ready"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.test_helpers.test_clocks.advance_async(clock.id, {"frozen_time": SECOND})


async def test_events_list(served: Served) -> None:
    """https://docs.stripe.com/api/events/list: newest first, by type."""
    client, _, _ = served
    made = await subscribe(client)
    (told,) = (await client.v1.events.list_async({"type": "customer.subscription.created"})).data
    assert (told.data.object["id"], told.object) == (made.id, "event")
    assert (await client.v1.events.retrieve_async(told.id)).type == "customer.subscription.created"


async def test_requests_are_repeated_safely(served: Served) -> None:
    """https://docs.stripe.com/api/idempotent_requests: the first answer, and no other parameters."""
    client, _, _ = served
    options: Any = {"idempotency_key": "once"}
    first = await client.v1.customers.create_async({"name": "A"}, options)
    assert (await client.v1.customers.create_async({"name": "A"}, options)).id == first.id
    with pytest.raises(stripe.IdempotencyError):
        await client.v1.customers.create_async({"name": "B"}, options)


async def test_lists_have_pages(served: Served) -> None:
    """https://docs.stripe.com/api/pagination: ten unless told otherwise, a hundred at most."""
    client, emulator, _ = served
    for number in range(11):
        emulator.add_customer(f"cus_n{number}")
    page = await client.v1.customers.list_async()
    assert (len(page.data), page.has_more) == (10, True)
    assert len([one async for one in page.auto_paging_iter()]) == 12
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.customers.list_async({"limit": 101})


async def test_answers_are_expanded(served: Served) -> None:
    """https://docs.stripe.com/expand: four levels at most."""
    client, _, _ = served
    made = await subscribe(client)
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": ["customer", "latest_invoice"]})
    assert isinstance(found.customer, stripe.Customer)
    assert isinstance(found.latest_invoice, stripe.Invoice)
    deep: Any = {"expand": ["latest_invoice.customer.default_source.customer.default_source"]}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.subscriptions.retrieve_async(made.id, deep)


async def test_errors_name_the_parameter(served: Served) -> None:
    """https://docs.stripe.com/api/errors."""
    client, _, _ = served
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.subscriptions.retrieve_async("sub_none")
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
    odd: Any = {"nmae": "A"}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.customers.create_async(odd)
    assert (caught.value.code, getattr(caught.value, "param", None)) == ("parameter_unknown", "nmae")
    async with account(served[1], key="nonsense") as other:
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


async def test_tax_rates_create(served: Served) -> None:
    """https://docs.stripe.com/api/tax_rates/create: the percentage of a rate never changes."""
    client, _, _ = served
    made = await client.v1.tax_rates.create_async(
        {"display_name": "VAT", "percentage": 7.5, "inclusive": True, "country": "DE"}
    )
    assert (made.percentage, made.inclusive, made.country, made.active) == (7.5, True, "DE", True)
    changed: Any = {"percentage": 8}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.tax_rates.update_async(made.id, changed)


async def test_tax_rates_list(served: Served) -> None:
    """https://docs.stripe.com/api/tax_rates/list."""
    client, _, _ = served
    one, two = await _rate(client, 7), await _rate(client, 19, inclusive=True)
    await client.v1.tax_rates.update_async(one, {"active": False})
    rates = client.v1.tax_rates
    assert [rate.id for rate in (await rates.list_async()).data] == [two, one]
    assert [rate.id for rate in (await rates.list_async({"active": True})).data] == [two]
    assert (await rates.retrieve_async(one)).active is False


async def test_default_tax_rates_of_a_subscription_tax_invoices(served: Served) -> None:
    """https://docs.stripe.com/billing/taxes/tax-rates: on top, or within the amount."""
    client, _, clock = served
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


async def test_the_tax_rates_of_an_item_replace_the_default_ones(served: Served) -> None:
    """https://docs.stripe.com/billing/taxes/tax-rates: also on its prorations."""
    client, _, clock = served
    top, own = await _rate(client, 19), await _rate(client, 10)
    items: Any = [{"price": "price_10", "tax_rates": [own]}, {"price": "price_seat"}]
    made = await subscribe(client, items=items, default_tax_rates=[top])
    assert invoice_of(made).total == 1000 + 100 + 900 + 171
    clock.advance(timedelta(days=15))
    change: Any = {
        "items": [{"id": item_of(made).id, "price": "price_20"}],
        "proration_behavior": "always_invoice",
        "expand": ["latest_invoice"],
    }
    upgrade = invoice_of(await client.v1.subscriptions.update_async(made.id, change))
    assert (amounts(upgrade), upgrade.total) == ([-500, 1000], 550)


async def test_several_tax_rates_are_each_of_the_amount_without_tax(served: Served) -> None:
    """https://docs.stripe.com/billing/taxes/tax-rates: up to five of them."""
    client, _, _ = served
    rates = [await _rate(client, 15), await _rate(client, 25, inclusive=True)]
    invoice = invoice_of(await subscribe(client, default_tax_rates=rates))
    taxes: Any = invoice.total_taxes
    assert [(tax.amount, tax.taxable_amount) for tax in taxes] == [(120, 800), (200, 800)]
    assert (invoice.total_excluding_tax, invoice.total) == (800, 1120)


async def test_a_discount_of_an_item_is_taken_off_that_item_first(served: Served) -> None:
    """https://docs.stripe.com/billing/subscriptions/coupons: then the subscription's, off what is left."""
    client, _, clock = served
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


async def test_invoice_line_items_update(served: Served) -> None:
    """https://docs.stripe.com/api/invoice-line-item/update: of a draft alone."""
    client, _, _ = served
    draft = await _draft(served)
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


async def test_invoice_line_items_bulk_update(served: Served) -> None:
    """https://docs.stripe.com/api/invoice-line-item/bulk-update: all of them, or none."""
    client, _, _ = served
    draft = await _draft(served)
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


async def test_previews_are_kept_for_a_while(served: Served) -> None:
    """https://docs.stripe.com/invoicing/preview: retrieved by their ids, with all lines."""
    client, _, _ = served
    made = await subscribe(client)
    preview = await client.v1.invoices.create_preview_async({"subscription": made.id})
    name = str(preview.id)
    assert name.startswith("upcoming_in_")
    assert (await client.v1.invoices.retrieve_async(name)).total == preview.total
    assert amounts(preview) == [
        line.amount for line in (await client.v1.invoices.line_items.list_async(name)).data
    ]
