"""Changes of subscriptions: prorations by the second, when they are invoiced, what an unpaid one leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_shop import (
    MAY,
    SECOND,
    amounts,
    invoice_of,
    item_of,
    items_of,
    refusal,
    subscribe,
)

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]


async def switch(
    client: stripe.StripeClient, subscription: stripe.Subscription, to: str, **params: Any
) -> stripe.Subscription:
    wanted: Any = {
        "items": [{"id": item_of(subscription).id, "price": to}],
        "expand": ["latest_invoice"],
        **params,
    }
    return await client.v1.subscriptions.update_async(subscription.id, wanted)


def prorations(invoice: stripe.Invoice) -> list[tuple[int, bool]]:
    found: list[tuple[int, bool]] = []
    for line in invoice.lines.data:
        assert line.parent is not None
        assert line.parent.subscription_item_details is not None
        found.append((line.amount, line.parent.subscription_item_details.proration))
    return found


async def test_what_is_too_little_to_charge_is_put_on_the_balance(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoices/object#invoice_object-amount_due: less than 0.50 USD."""
    made = await subscribe(client)
    clock.advance(timedelta(days=29))
    changed = await switch(client, made, "price_20", proration_behavior="always_invoice")
    invoice = invoice_of(changed)
    assert (invoice.total, invoice.amount_due, invoice.ending_balance) == (34, 0, 34)
    assert invoice.status == "paid"


async def test_a_preview_of_the_next_renewal(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: prorations with the next period, or that alone."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    shown = await client.v1.invoices.create_preview_async({"subscription": made.id})
    assert (prorations(shown), shown.billing_reason) == ([(1000, False)], "upcoming")
    assert (shown.period_start, shown.period_end, shown.created) == (SECOND, MAY, MAY)
    details: Any = {"items": [{"id": item_of(made).id, "price": "price_20"}]}
    wanted: Any = {"subscription": made.id, "subscription_details": details}
    shown = await client.v1.invoices.create_preview_async(wanted)
    assert prorations(shown) == [(-500, True), (1000, True), (2000, False)]
    wanted["subscription_details"] = {"cancel_at_period_end": True}
    with pytest.raises(stripe.InvalidRequestError, match="No upcoming invoices") as caught:
        await client.v1.invoices.create_preview_async(wanted)
    assert (caught.value.code, caught.value.http_status) == ("invoice_upcoming_none", 404)
    wanted["subscription_details"] = {"cancel_now": True}
    assert amounts(await client.v1.invoices.create_preview_async(wanted)) == [-500]
    new: Any = {"customer": "cus_1", "subscription_details": {"items": [{"price": "price_20"}]}}
    assert amounts(await client.v1.invoices.create_preview_async(new)) == [2000]


async def test_a_proration_date_lies_in_the_present_period(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview: "within the current subscription period"."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    for at in (SECOND - 1, MAY + 1):
        error = await refusal(client, made.id, proration_date=at)
        assert error.user_message is not None
        assert "Cannot specify a proration date outside" in error.user_message


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"id": "si_none", "price": "price_20"}], "No such subscription item: 'si_none'"),
        ([{"price": "price_none"}], "No such price: 'price_none'"),
        ([{"price": "price_10"}], "Cannot add multiple subscription items with the same plan: price_10"),
        ([{"price": "price_once"}], "only accepts prices with `type=recurring`"),
        ([{"price": "price_eur"}], "This doesn't match the expected currency: `usd`"),
        ([{"price": "price_20", "colour": "red"}], "Received unknown parameter: items[0][colour]"),
    ],
)
async def test_items_that_are_refused(
    client: stripe.StripeClient, emulator: StripeEmulator, items: Any, message: str
) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-items; nothing changes."""
    emulator.add_price(1, price_id="price_once", interval=None)
    emulator.add_price(1, price_id="price_eur", currency="eur")
    made = await subscribe(client)
    error = await refusal(client, made.id, items=items)
    assert error.user_message is not None
    assert message in error.user_message
    last = await refusal(client, made.id, items=[{"id": item_of(made).id, "deleted": True}])
    assert last.user_message is not None
    assert "at least one active plan/price" in last.user_message
    assert len(items_of(await client.v1.subscriptions.retrieve_async(made.id))) == 1


async def test_items_have_calls_of_their_own(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_items."""
    made = await subscribe(client)
    items = client.v1.subscription_items
    clock.advance(timedelta(days=15))
    seats = await items.create_async(
        {
            "subscription": made.id,
            "price": "price_seat",
            "quantity": 2,
            "proration_behavior": "always_invoice",
        }
    )
    assert (seats.quantity, seats.current_period_start, seats.current_period_end) == (2, clock(), MAY)
    assert (await items.update_async(seats.id, {"quantity": 4})).quantity == 4
    assert (await items.retrieve_async(seats.id)).metadata.to_dict() == {}
    listed = await items.list_async({"subscription": made.id})
    assert [item.price.id for item in listed.data] == ["price_10", "price_seat"]
    found = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
    assert amounts(invoice_of(found)) == [900]
    assert (await items.delete_async(seats.id)).deleted
    with pytest.raises(stripe.InvalidRequestError, match="at least one active plan/price"):
        await items.delete_async(item_of(made).id)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription_item"):
        await items.retrieve_async(seats.id)
    await client.v1.subscriptions.cancel_async(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="A canceled subscription"):
        await items.update_async(item_of(made).id, {"quantity": 2})


async def test_a_new_year_is_charged_less_the_rest_of_the_month(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://gist.github.com/matthewarkin/27bcfdf622eb91d3508ea082d0ad50b8: -364 and 10000."""
    emulator.add_price(10_000, price_id="price_year", interval="year")
    clock.set(datetime.fromtimestamp(1_487_030_400, UTC))
    made = await subscribe(client)
    clock.set(datetime.fromtimestamp(1_488_568_488, UTC))
    changed = await switch(client, made, "price_year", billing_cycle_anchor={"type": "now"})
    assert amounts(invoice_of(changed)) == [-364, 10_000]
    free = await switch(
        client, made, "price_10", billing_cycle_anchor={"type": "now"}, proration_behavior="none"
    )
    assert amounts(invoice_of(free)) == [1000]


async def test_a_subscription_has_at_most_20_items_of_one_currency(
    client: stripe.StripeClient, emulator: StripeEmulator
) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-items."""
    prices = [emulator.add_price(100) for _ in range(21)]
    euro = emulator.add_price(100, currency="eur")
    with pytest.raises(stripe.InvalidRequestError, match="at most 20 subscription items"):
        await subscribe(client, *prices)
    with pytest.raises(stripe.InvalidRequestError, match="must have the same currency: eur, usd"):
        await subscribe(client, euro, prices[0])
    made = await subscribe(client, *prices[:20])
    items = await client.v1.subscription_items.list_async({"subscription": made.id, "limit": 100})
    assert len(items.data) == 20
    # An invoice shows the first ten of its lines; all of them are listed.
    assert (len(invoice_of(made).lines.data), invoice_of(made).lines.has_more) == (10, True)
    listed = await client.v1.invoices.line_items.list_async(invoice_of(made).id, {"limit": 100})
    assert len(listed.data) == 20


async def test_metered_items_have_no_quantity(client: stripe.StripeClient, emulator: StripeEmulator) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-items-quantity."""
    emulator.add_price(1, price_id="price_usage", meter=emulator.add_meter("tokens"))
    with pytest.raises(stripe.InvalidRequestError, match="quantity for metered plans"):
        await subscribe(client, items=[{"price": "price_usage", "quantity": 1}])
    made = await subscribe(client, "price_10", "price_usage")
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    phases: Any = {"phases": [{"items": [{"price": "price_usage", "quantity": 1}], "start_date": SECOND}]}
    with pytest.raises(stripe.InvalidRequestError, match="quantity for metered plans"):
        await client.v1.subscription_schedules.update_async(schedule.id, phases)


async def test_previews_are_refused_where_nothing_comes(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/invoices/create_preview."""
    made = await subscribe(client)
    previews = client.v1.invoices.create_preview_async
    at: Any = {"proration_date": SECOND, "proration_behavior": "none"}
    with pytest.raises(stripe.InvalidRequestError, match="cannot be set where prorations are off"):
        await previews({"subscription": made.id, "subscription_details": at})
    now: Any = {"proration_behavior": "always_invoice"}
    with pytest.raises(stripe.InvalidRequestError, match="No upcoming invoices"):
        await previews({"subscription": made.id, "subscription_details": now})
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: subscription"):
        await previews({"customer": "cus_1"})
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        await previews({"customer": "cus_x"})
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription: 'sub_x'") as caught:
        await previews({"subscription": "sub_x"})
    assert caught.value.http_status == 400
    clock.advance(timedelta(days=1))
    await client.v1.subscriptions.cancel_async(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="No upcoming invoices"):
        await previews({"subscription": made.id})
