"""Invoice items: what a call charges once, on a draft or on the next invoice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from emulated import account
from subscribing import DAY, MAY, SECOND, amounts, invoice_of, items_of, shop, subscribe, told

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
RENEWED = datetime(2026, 5, 1, tzinfo=UTC)
LATE: Any = {
    "customer": "cus_1",
    "currency": "usd",
    "quantity_decimal": Decimal("1234.5"),
    "unit_amount_decimal": Decimal("0.1"),
    "description": "1234.5 words of April",
    "period": {"start": SECOND, "end": MAY},
    "metadata": {"meter": "words"},
}


def metered() -> tuple[StripeEmulator, Clock]:
    """The shop, with tokens at 1 cent."""
    emulator, clock = shop()
    emulator.add_price(1, price_id="price_tokens", meter=emulator.add_meter("tokens"))
    return emulator, clock


async def charge(client: stripe.StripeClient, **params: Any) -> stripe.InvoiceItem:
    wanted: Any = {**LATE, **params}
    return await client.v1.invoice_items.create_async(wanted)


async def latest(client: stripe.StripeClient, made: stripe.Subscription) -> stripe.Invoice:
    return invoice_of(await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST}))


async def test_an_item_is_on_the_next_renewal_of_its_subscription() -> None:
    """ "Scheduled invoices for subscriptions other than the specified subscription will ignore" it.

    https://docs.stripe.com/api/invoiceitems/create
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made, other = await subscribe(client), await subscribe(client)
        happened = len(emulator.webhook_events)
        item = await charge(client, subscription=made.id)
        assert told(emulator, since=happened) == ["invoiceitem.created"]
        assert (item.amount, item.quantity, item.quantity_decimal, item.invoice, item.proration) == (
            123,
            1234,
            Decimal("1234.5"),
            None,
            False,
        )
        clock.set(RENEWED)
        assert amounts(await latest(client, other)) == [1000]
        invoice = await latest(client, made)
        assert amounts(invoice) == [123, 1000]
        line = invoice.lines.data[0]
        assert (line.description, line.period.start, line.period.end) == (
            "1234.5 words of April",
            SECOND,
            MAY,
        )
        assert (line.quantity, line.quantity_decimal, dict(line.metadata.to_dict())) == (
            1234,
            Decimal("1234.5"),
            {"meter": "words"},
        )
        assert line.pricing is not None
        assert line.pricing.unit_amount_decimal == Decimal("0.1")
        assert line.parent is not None
        assert line.parent.type == "invoice_item_details"
        assert line.parent.invoice_item_details is not None
        assert line.parent.invoice_item_details.invoice_item == item.id
        assert (await client.v1.invoice_items.retrieve_async(item.id)).invoice == invoice.id


async def test_an_item_is_on_the_draft_that_it_names() -> None:
    """ "You can only add invoice items to draft invoices" (the same page)."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client)
        clock.set(RENEWED)
        draft = await latest(client, made)
        happened = len(emulator.webhook_events)
        item = await charge(client, invoice=draft.id)
        assert told(emulator, since=happened) == ["invoice.updated", "invoiceitem.created"]
        assert item.invoice == draft.id
        assert amounts(await client.v1.invoices.retrieve_async(draft.id)) == [1000, 123]
        clock.advance(timedelta(hours=1))
        done = await client.v1.invoices.retrieve_async(draft.id)
        assert (done.status, done.total) == ("paid", 1123)
        for attempt in (
            charge(client, invoice=draft.id),
            client.v1.invoice_items.delete_async(item.id),
        ):
            with pytest.raises(stripe.InvalidRequestError) as refused:
                await attempt
            assert refused.value.code == "invoice_not_editable"


async def test_an_item_of_a_customer_is_on_the_next_invoice_in_its_currency() -> None:
    """ "If no invoice is specified, the item will be on the next invoice created for the customer"."""
    emulator, _ = metered()
    async with account(emulator) as client:
        await charge(client)
        await charge(client, currency="eur")
        made = await subscribe(client)
        assert amounts(invoice_of(made)) == [123, 1000]
        (left,) = (await client.v1.invoice_items.list_async({"customer": "cus_1", "pending": True})).data
        assert left.currency == "eur"


async def test_an_item_is_an_amount_or_a_price() -> None:
    """The same page: `amount`, `pricing[price]`, `price_data` or `unit_amount_decimal`."""
    emulator, clock = metered()
    emulator.add_price(250, price_id="price_setup", product="prod_pro", interval=None)
    only: Any = {"customer": "cus_1"}
    async with account(emulator) as client:
        made = await subscribe(client)
        for params in (
            {"amount": -700, "currency": "usd", "description": "Sorry"},
            {"pricing": {"price": "price_setup"}, "quantity": 2},
            {"price_data": {"currency": "usd", "product": "prod_pro", "unit_amount": 40}},
            {"unit_amount_decimal": Decimal("0.5"), "currency": "USD", "quantity": 3},
        ):
            wanted: Any = {**only, "subscription": made.id, **params}
            await client.v1.invoice_items.create_async(wanted)
        clock.set(RENEWED)
        invoice = await latest(client, made)
        assert amounts(invoice) == [-700, 500, 40, 2, 1000]
        assert [line.description for line in invoice.lines.data][:3] == ["Sorry", "Pro", "Pro"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"customer": "cus_2"}, "No such customer"),
        ({"amount": 5}, "only specify one of these parameters: amount, quantity_decimal"),
        ({"quantity": 5}, "only specify one of these parameters: quantity, quantity_decimal"),
        ({"quantity_decimal": Decimal(-1)}, "greater than or equal to 0"),
        ({"pricing": {"price": "price_seat"}}, "only specify one of these parameters: pricing, unit_amount"),
        ({"currency": "eur", "subscription": "mine"}, "must be that of its invoice: `usd`"),
        ({"period": {"start": MAY, "end": SECOND}}, "greater than or equal to its start"),
        ({"subscription": "others"}, "is not one of the customer cus_1"),
        ({"subscription": "ended"}, "has no next invoice"),
        ({"invoice": "others"}, "is not one of the customer cus_1"),
        ({"subscription": "second", "invoice": "mine"}, "is not one of the subscription"),
    ],
)
async def test_items_that_are_refused(params: Any, message: str) -> None:
    """What does not fit is refused and leaves nothing."""
    emulator, clock = metered()
    emulator.add_payment_method(emulator.add_customer("cus_3"))
    async with account(emulator) as client:
        made = {"mine": await subscribe(client), "second": await subscribe(client)}
        made["others"], made["ended"] = await subscribe(client, customer="cus_3"), await subscribe(client)
        await client.v1.subscriptions.cancel_async(made["ended"].id)
        clock.set(RENEWED)
        wanted = dict(params)
        if "subscription" in params:
            wanted["subscription"] = made[params["subscription"]].id
        if "invoice" in params:
            wanted["invoice"] = (await latest(client, made[params["invoice"]])).id
        with pytest.raises(stripe.InvalidRequestError, match=message):
            await charge(client, **wanted)
        assert (await client.v1.invoice_items.list_async()).data == []


async def test_a_recurring_price_is_no_item_and_an_amount_has_a_currency() -> None:
    """https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-pricing-price."""
    emulator, _ = metered()
    async with account(emulator) as client:
        for params, message in (
            ({"pricing": {"price": "price_tokens"}}, "only accepts prices with `type=one_time`"),
            ({"amount": 5}, "Missing required param: currency"),
            ({}, "Missing required param: amount"),
        ):
            wanted: Any = {"customer": "cus_1", **params}
            with pytest.raises(stripe.InvalidRequestError, match=message):
                await client.v1.invoice_items.create_async(wanted)


async def test_an_invoice_has_250_items_at_most() -> None:
    """ "There is a maximum of 250 items per invoice": what is more waits for the invoice after it."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client)
        for _ in range(251):
            await charge(client, subscription=made.id)
        clock.set(RENEWED)
        draft = await latest(client, made)
        assert draft.total == 1000 + 250 * 123
        with pytest.raises(stripe.InvalidRequestError, match="at most 250 invoice items"):
            await charge(client, invoice=draft.id)
        (left,) = (await client.v1.invoice_items.list_async({"pending": True})).data
        clock.set(datetime(2026, 6, 1, tzinfo=UTC))
        assert amounts(await latest(client, made)) == [123, 1000]
        assert (await client.v1.invoice_items.retrieve_async(left.id)).invoice is not None


async def test_items_are_listed_newest_first_and_deleted() -> None:
    """https://docs.stripe.com/api/invoiceitems/list; prorations are items, too."""
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client, "price_10", "price_tokens")
        first = await charge(client, subscription=made.id)
        clock.advance(timedelta(days=1))
        draft_less = await charge(client)
        clock.advance(timedelta(days=14))
        await client.v1.billing.meter_events.create_async(
            {
                "event_name": "tokens",
                "payload": {"stripe_customer_id": "cus_1", "value": "60"},
                "timestamp": SECOND + 15 * DAY - 1,
            }
        )
        base, tokens = items_of(made)
        change: Any = {"items": [{"id": base.id, "price": "price_20"}, {"id": tokens.id, "deleted": True}]}
        await client.v1.subscriptions.update_async(made.id, change)
        listed = (await client.v1.invoice_items.list_async({"customer": "cus_1"})).data
        assert [(each.amount, each.proration) for each in listed][-2:] == [(123, False), (123, False)]
        assert sorted((each.amount, each.proration) for each in listed[:3]) == [
            (-500, True),
            (60, False),
            (1000, True),
        ]
        recent: Any = {"created": {"gt": SECOND + DAY}}
        assert len((await client.v1.invoice_items.list_async(recent)).data) == 3
        happened = len(emulator.webhook_events)
        assert (await client.v1.invoice_items.delete_async(first.id)).deleted
        assert told(emulator, since=happened) == ["invoiceitem.deleted"]
        with pytest.raises(stripe.InvalidRequestError, match="No such invoiceitem"):
            await client.v1.invoice_items.retrieve_async(first.id)
        clock.set(RENEWED)
        draft = await latest(client, made)
        assert sorted(amounts(draft)) == [-500, 60, 123, 1000, 2000]
        on = await client.v1.invoice_items.list_async({"invoice": draft.id})
        assert draft_less.id in {each.id for each in on.data}
        await client.v1.invoice_items.delete_async(draft_less.id)
        assert sorted(amounts(await latest(client, made))) == [-500, 60, 1000, 2000]


async def test_an_item_survives_a_cancellation_that_has_no_last_invoice() -> None:
    """ "Any pending invoice items that you've created are still charged at the end of the period".

    https://docs.stripe.com/api/subscriptions/cancel: no page says on which invoice of a subscription that has
    ended, and here it is on none. Pending prorations go.
    """
    emulator, clock = metered()
    async with account(emulator) as client:
        made = await subscribe(client)
        item = await charge(client, subscription=made.id)
        clock.advance(timedelta(days=15))
        change: Any = {"items": [{"id": items_of(made)[0].id, "price": "price_20"}]}
        await client.v1.subscriptions.update_async(made.id, change)
        await client.v1.subscriptions.cancel_async(made.id)
        (left,) = (await client.v1.invoice_items.list_async({"pending": True})).data
        assert left.id == item.id
        billed = await subscribe(client)
        assert amounts(invoice_of(billed)) == [1000]


async def test_the_last_invoice_has_what_waits() -> None:
    """The same page: `invoice_now`."""
    emulator, _ = metered()
    async with account(emulator) as client:
        made = await subscribe(client)
        await charge(client, subscription=made.id)
        await client.v1.subscriptions.cancel_async(made.id, {"invoice_now": True})
        assert amounts(await latest(client, made)) == [123]


async def test_a_preview_has_the_items_that_wait() -> None:
    """https://docs.stripe.com/api/invoices/create_preview: "any proration or pending invoice items"."""
    emulator, _ = metered()
    async with account(emulator) as client:
        made = await subscribe(client)
        await charge(client, subscription=made.id)
        preview = await client.v1.invoices.create_preview_async({"subscription": made.id})
        assert amounts(preview) == [123, 1000]
        assert len((await client.v1.invoice_items.list_async({"pending": True})).data) == 1
