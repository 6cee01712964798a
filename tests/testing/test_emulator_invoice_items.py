"""Invoice items of the emulator that wait for the next invoice, by the official SDK."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_shop import subscribe

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


def wanted(**more: Any) -> Any:
    amounts = {"quantity_decimal": Decimal(26), "unit_amount_decimal": Decimal("0.375"), "currency": "usd"}
    return {"customer": "cus_1", **amounts, **more}


async def test_an_item_is_on_the_next_invoice_of_its_subscription(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoiceitems/create: exact until it is rounded once."""
    made = await subscribe(client)
    period: Any = {"start": 1_000, "end": 2_000}
    item = await client.v1.invoice_items.create_async(
        wanted(subscription=made.id, period=period, description="Words", metadata={"a": "b"})
    )
    assert (item.amount, item.invoice, item.quantity_decimal) == (10, None, Decimal(26))
    clock.advance(timedelta(days=31))
    emulator.advance()
    renewal = (await client.v1.invoices.list_async({"limit": 1})).data[0]
    (line,) = [line for line in renewal.lines.data if line.description == "Words"]
    assert (line.amount, line.quantity_decimal, line.period.start, line.period.end) == (
        *(10, Decimal(26)),
        *(1_000, 2_000),
    )
    assert line.pricing is not None
    assert line.pricing.unit_amount_decimal == Decimal("0.375")
    assert line.metadata.to_dict() == {"a": "b"}
    assert (await client.v1.invoice_items.retrieve_async(item.id)).invoice == renewal.id


async def test_items_are_listed_until_they_are_deleted(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/invoiceitems/list, https://docs.stripe.com/api/invoiceitems/delete."""
    made = await subscribe(client)
    first, second = [
        await client.v1.invoice_items.create_async(wanted(subscription=made.id)) for _ in range(2)
    ]
    listed = await client.v1.invoice_items.list_async({"customer": "cus_1", "pending": True})
    assert [item.id for item in listed.data] == [second.id, first.id]
    assert (await client.v1.invoice_items.delete_async(first.id)).deleted is True
    clock.advance(timedelta(days=31))
    emulator.advance()
    assert (await client.v1.invoice_items.list_async({"pending": True})).data == []
    kept = await client.v1.invoice_items.list_async({"customer": "cus_1"})
    assert [item.id for item in kept.data] == [second.id]
    clock.advance(timedelta(days=31))
    emulator.advance()
    with pytest.raises(stripe.InvalidRequestError, match="no longer editable"):
        await client.v1.invoice_items.delete_async(second.id)


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
async def test_items_that_stripe_refuses(client: stripe.StripeClient, more: dict[str, Any], why: str) -> None:
    made = await subscribe(client)
    asked: Any = {
        name: value for name, value in wanted(subscription=made.id, **more).items() if value is not None
    }
    with pytest.raises(stripe.InvalidRequestError, match=why):
        await client.v1.invoice_items.create_async(asked)


async def test_a_subscription_that_has_ended_takes_no_items(client: stripe.StripeClient) -> None:
    made = await subscribe(client)
    await client.v1.subscriptions.cancel_async(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="that has not ended"):
        await client.v1.invoice_items.create_async(wanted(subscription=made.id))
    with pytest.raises(stripe.InvalidRequestError, match="No such invoiceitem"):
        await client.v1.invoice_items.retrieve_async("ii_none")
