"""Changes of subscriptions: prorations by the second, when they are invoiced, what an unpaid one leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import httpx
import pytest

from drivers.emulated_shop import (
    amounts,
    current,
    invoice_of,
    item_of,
    items_of,
    newest_invoice,
    offer,
    refused,
    subscribe,
)
from drivers.emulated_times import MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


LATEST: Final = ["latest_invoice"]


async def switch(client: Any, subscription: Any, to: str, **params: Any) -> Any:
    items = [{"id": item_of(subscription).id, "price": to}]
    return await client.subscriptions.update(subscription.id, items=items, expand=LATEST, **params)


def prorations(invoice: Any) -> list[tuple[int, bool]]:
    return [(line.amount, line.parent.subscription_item_details.proration) for line in invoice.lines.data]


async def test_what_is_too_little_to_charge_is_put_on_the_balance(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/object#invoice_object-amount_due: less than 0.50 USD."""
    made = await subscribe(client)
    clock.advance(timedelta(days=29))
    invoice = invoice_of(await switch(client, made, "price_20", proration_behavior="always_invoice"))
    assert (invoice.total, invoice.amount_due, invoice.ending_balance) == (34, 0, 34)
    assert invoice.status == "paid"


async def test_a_credit_names_the_charge_that_it_credits(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoice-line-item/object: "the original debit line_items"."""

    def credited(line: Any) -> Any:
        return line.parent.subscription_item_details.proration_details.credited_items

    made = await subscribe(client)
    clock.advance(timedelta(days=10))
    changed = invoice_of(await switch(client, made, "price_20", proration_behavior="always_invoice"))
    back, charge = changed.lines.data
    assert (credited(back).invoice, credited(charge)) == (made.latest_invoice.id, None)
    assert credited(back).invoice_line_items == [made.latest_invoice.lines.data[0].id]
    clock.advance(timedelta(days=10))
    await switch(client, made, "price_10", proration_behavior="create_prorations")
    clock.advance(timedelta(days=1))
    await switch(client, made, "price_20", proration_behavior="create_prorations")
    pending = (await client.invoice_items.list(customer=made.customer, pending=True)).data
    shown = [item.proration_details.credited_items for item in pending]
    later, first = (one for one in shown if one is not None)
    assert first.invoice_line_item_details.invoice_line_items == [charge.id]
    assert later.invoice_item in {item.id for item in pending}


@pytest.mark.parametrize(("prorate", "left"), [(True, [-500, 1000, -1000]), (False, [])])
async def test_a_cancellation_with_credits_keeps_pending_prorations(
    client: Any, clock: Clock, prorate: bool, left: list[int]
) -> None:
    """https://docs.stripe.com/api/subscriptions/cancel: they are removed if there are no credits."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    await switch(client, made, "price_20", proration_behavior="create_prorations")
    await client.subscriptions.cancel(made.id, prorate=prorate)
    pending = (await client.invoice_items.list(customer=made.customer, pending=True)).data
    assert [item.amount for item in reversed(pending)] == left


async def test_a_preview_of_the_next_renewal(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: prorations with the next period, or that alone."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    shown = await client.invoices.create_preview(subscription=made.id)
    assert (prorations(shown), shown.billing_reason) == ([(1000, False)], "upcoming")
    assert (shown.period_start, shown.period_end, shown.created) == (SECOND, MAY, MAY)
    details: Any = {"items": [{"id": item_of(made).id, "price": "price_20"}]}
    wanted: Any = {"subscription": made.id, "subscription_details": details}
    shown = await client.invoices.create_preview(**wanted)
    assert prorations(shown) == [(-500, True), (1000, True), (2000, False)]
    wanted["subscription_details"] = {"cancel_at_period_end": True}
    error = await refused(client.invoices.create_preview(**wanted), "No upcoming invoices")
    assert (error.code, error.http_status) == ("invoice_upcoming_none", 404)
    wanted["subscription_details"] = {"cancel_now": True}
    assert amounts(await client.invoices.create_preview(**wanted)) == [-500]
    new: Any = {"customer": "cus_1", "subscription_details": {"items": [{"price": "price_20"}]}}
    assert amounts(await client.invoices.create_preview(**new)) == [2000]


async def test_a_proration_date_lies_in_the_present_period(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: "within the current subscription period"."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    for at in (SECOND - 1, MAY + 1):
        await refused(client.subscriptions.update(made.id, proration_date=at), "proration date outside")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"id": "si_none", "price": "price_20"}], "No such subscription item: 'si_none'"),
        ([{"price": "price_none"}], "No such price: 'price_none'"),
        ([{"price": "price_10"}], "Cannot add multiple subscription items with the same plan: price_10"),
        ([{"price": "price_once"}], "only accepts prices with `type=recurring`"),
        ([{"price": "price_eur"}], "This doesn't match the expected currency: `usd`"),
        ([{"price": "price_20", "colour": "red"}], r"Received unknown parameter: items\[0\]\[colour\]"),
    ],
)
async def test_refused_items(client: Any, emulator: StripeEmulator, items: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-items; nothing changes."""
    emulator.add_price(1, price_id="price_once", interval=None)
    emulator.add_price(1, price_id="price_eur", currency="eur")
    made = await subscribe(client)
    await refused(client.subscriptions.update(made.id, items=items), message)
    await refused(
        client.subscriptions.update(made.id, items=[{"id": item_of(made).id, "deleted": True}]),
        "at least one active plan/price",
    )
    assert len(items_of(await client.subscriptions.retrieve(made.id))) == 1


async def test_items_have_calls_of_their_own(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_items."""
    made = await subscribe(client)
    items = client.subscription_items
    clock.advance(timedelta(days=15))
    seats = await items.create(
        subscription=made.id, price="price_seat", quantity=2, proration_behavior="always_invoice"
    )
    assert (seats.quantity, seats.current_period_start, seats.current_period_end) == (2, clock(), MAY)
    assert (await items.update(seats.id, quantity=4)).quantity == 4
    assert (await items.retrieve(seats.id)).metadata.to_dict() == {}
    listed = await items.list(subscription=made.id)
    assert [item.price.id for item in listed.data] == ["price_10", "price_seat"]
    assert amounts(invoice_of(await current(client, made.id))) == [900]
    assert (await items.delete(seats.id)).deleted
    await refused(items.delete(item_of(made).id), "at least one active plan/price")
    await refused(items.retrieve(seats.id), "No such subscription_item")
    await client.subscriptions.cancel(made.id)
    await refused(items.update(item_of(made).id, quantity=2), "A canceled subscription")


async def test_a_year_is_charged_less_the_rest(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://gist.github.com/matthewarkin/27bcfdf622eb91d3508ea082d0ad50b8: -364 and 10000."""
    emulator.add_price(10_000, price_id="price_year", interval="year")
    clock.set(datetime.fromtimestamp(1_487_030_400, UTC))
    made = await subscribe(client)
    clock.set(datetime.fromtimestamp(1_488_568_488, UTC))
    changed = await switch(client, made, "price_year", billing_cycle_anchor={"type": "now"})
    assert amounts(invoice_of(changed)) == [-364, 10_000]
    anew: Any = {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "none"}
    assert amounts(invoice_of(await switch(client, made, "price_10", **anew))) == [1000]


async def test_at_most_20_items_of_one_currency(client: Any, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-items."""
    prices = [emulator.add_price(100) for _ in range(21)]
    euro = emulator.add_price(100, currency="eur")
    await refused(subscribe(client, *prices), "at most 20 subscription items")
    await refused(subscribe(client, euro, prices[0]), "must have the same currency: eur, usd")
    made = await subscribe(client, *prices[:20])
    assert len((await client.subscription_items.list(subscription=made.id, limit=100)).data) == 20
    # An invoice shows the first ten of its lines; all of them are listed.
    assert (len(invoice_of(made).lines.data), invoice_of(made).lines.has_more) == (10, True)
    assert len((await client.invoices.line_items.list(invoice_of(made).id, limit=100)).data) == 20


async def test_metered_items_have_no_quantity(client: Any) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-items-quantity."""
    items = [{"price": "price_tokens", "quantity": 1}]
    await refused(subscribe(client, items=items), "quantity for metered plans")
    made = await subscribe(client, "price_10", "price_tokens")
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    phases = [{"items": items, "start_date": SECOND}]
    error = await refused(client.subscription_schedules.update(schedule.id, phases=phases))
    assert "quantity for metered plans" in str(error)


async def test_previews_are_refused_where_nothing_comes(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview."""
    made = await subscribe(client)
    previews = client.invoices.create_preview
    at = {"proration_date": SECOND, "proration_behavior": "none"}
    now = {"proration_behavior": "always_invoice"}
    for asked, message in (
        ({"subscription": made.id, "subscription_details": at}, "cannot be set where prorations are off"),
        ({"subscription": made.id, "subscription_details": now}, "No upcoming invoices"),
        ({"customer": "cus_1"}, "Missing required param: subscription"),
        ({"customer": "cus_x"}, "No such customer"),
        ({"subscription": "sub_x"}, "No such subscription: 'sub_x'"),
    ):
        assert (await refused(previews(**asked), message)).http_status in {400, 404}
    clock.advance(timedelta(days=1))
    await client.subscriptions.cancel(made.id)
    await refused(previews(subscription=made.id), "No upcoming invoices")


ONCE: Final[dict[str, Any]] = {"currency": "usd", "product": "prod_pro", "unit_amount": 5000}
INLINE: Final[dict[str, Any]] = {**ONCE, "recurring": {"interval": "month"}}
MONTH: Final = timedelta(days=30)  # April.
TAX: Final[dict[str, Any]] = {"automatic_tax": {"enabled": True}}
NO_TAX: Final = "Stripe Tax has not been activated on your account"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"price_data": INLINE, "price": "price_10"}, "specify one of these parameters: price, price_data"),
        ({"price_data": {**INLINE, "product": "prod_none"}}, "No such product: 'prod_none'"),
        ({"price_data": ONCE}, r"Missing required param: items\[0\]\[price_data\]\[recurring\]"),
        ({"price_data": {**INLINE, "nickname": "a"}}, "Received unknown parameter"),
        ({"price_data": {**INLINE, "unit_amount": -1}}, "Invalid non-negative integer"),
    ],
)
async def test_what_a_described_price_cannot_be(client: Any, item: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-items-price_data."""
    await refused(subscribe(client, items=[item]), message)


async def test_what_a_change_adds_waits_for_the_next_invoice(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-add_invoice_items."""
    made = await subscribe(client)
    same = await client.subscriptions.update(made.id, add_invoice_items=[{"price_data": ONCE}], expand=LATEST)
    assert amounts(invoice_of(same)) == [1000]
    clock.advance(MONTH)
    assert amounts(invoice_of(await current(client, made.id))) == [5000, 1000]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([{"price": "price_10"}], "`type=recurring` but this field only accepts prices with `type=one_time`"),
        ([{"quantity": 1}], "Missing required param"),
        ([{"price_data": {**ONCE, "currency": "eur"}}], "only supports `eur`"),
        ([{"price_data": ONCE, "quantity": -1}], "greater than or equal to 0"),
        ([{"price_data": ONCE}] * 21, "at most 20"),
    ],
)
async def test_what_cannot_be_added(client: Any, added: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-add_invoice_items."""
    await refused(subscribe(client, add_invoice_items=added), message)


async def test_tax_is_refused_wherever_it_is_asked_for(client: Any) -> None:
    """In the words of an account without Stripe Tax (https://github.com/wasp-lang/open-saas/issues/78)."""
    made = await subscribe(client, automatic_tax={"enabled": False})
    await refused(client.subscriptions.update(made.id, **TAX), NO_TAX)
    await refused(client.invoices.create_preview(subscription=made.id, **TAX), NO_TAX)
    await refused(client.checkout.sessions.create(**offer(**TAX)), NO_TAX)
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    phases = [{"start_date": SECOND, "items": [{"price": "price_10"}], **TAX}]
    await refused(client.subscription_schedules.update(schedule.id, phases=phases), NO_TAX)


@pytest.mark.parametrize("opened", [{"tax_percent": Decimal("8.25")}], indirect=True)
async def test_tax_can_be_turned_on_and_off(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior: exclusive, on top."""
    made = await subscribe(client)
    assert (invoice_of(made).total, invoice_of(made).total_taxes) == (1000, [])
    error = await refused(client.subscriptions.update(made.id, **TAX))
    assert (error.code, error.http_status) == ("customer_tax_location_invalid", 400)
    await client.customers.update("cus_1", address={"country": "US", "state": "TX"})
    assert (await client.subscriptions.update(made.id, **TAX)).automatic_tax.enabled is True
    assert (await client.invoices.create_preview(subscription=made.id)).total == 1083
    clock.advance(timedelta(days=30, hours=2))
    renewal = await newest_invoice(client)
    tax = renewal.automatic_tax
    assert (renewal.total, tax.enabled, tax.status) == (1083, True, "complete")
    await client.subscriptions.update(made.id, automatic_tax={"enabled": False})
    assert (await client.invoices.create_preview(subscription=made.id)).total == 1000


async def test_f_30i_a_deletion_reads_query_and_form(
    client: Any, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscriptions/cancel: its example has a form, as curl sends it."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, auth=("sk_test_1", "")) as own:
        path, form = f"/v1/subscriptions/{made.id}?invoice_now=true", {"prorate": "true"}
        ended = await own.request("DELETE", path, data=form)
        wrong = await own.request("DELETE", path, data={"refund": "true"})
    assert (ended.status_code, ended.json()["status"]) == (200, "canceled")
    assert wrong.json()["error"]["param"] == "refund"
    assert amounts(await newest_invoice(client)) == [-500]
