"""Prices that are described where they are used, what is charged once beside a subscription, and tax."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import SECOND, amounts, invoice_of, refusal, shop, subscribe

if TYPE_CHECKING:
    from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

INLINE: Final[dict[str, Any]] = {
    "currency": "usd",
    "product": "prod_pro",
    "recurring": {"interval": "month"},
    "unit_amount": 1234,
}
ONCE: Final[dict[str, Any]] = {"currency": "usd", "product": "prod_pro", "unit_amount": 5000}
LATEST: Final = ["latest_invoice"]
MONTH: Final = timedelta(days=30)  # April.
TAX: Final[dict[str, Any]] = {"automatic_tax": {"enabled": True}}
NO_TAX: Final = "Stripe Tax has not been activated on your account"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"price_data": INLINE, "price": "price_10"},
            "specify one of these parameters: price, price_data",
        ),
        ({"price_data": {**INLINE, "product": "prod_none"}}, "No such product: 'prod_none'"),
        ({"price_data": ONCE}, r"Missing required param: items\[0\]\[price_data\]\[recurring\]"),
        ({"price_data": {**INLINE, "nickname": "a"}}, "Received unknown parameter"),
        ({"price_data": {**INLINE, "unit_amount": -1}}, "Invalid non-negative integer"),
    ],
)
async def test_what_a_described_price_cannot_be(client: stripe.StripeClient, item: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-items-price_data."""
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await subscribe(client, items=[item])


async def test_what_a_change_adds_waits_for_the_next_invoice(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-add_invoice_items."""
    made = await subscribe(client)
    asked: Any = {"add_invoice_items": [{"price_data": ONCE}], "expand": LATEST}
    same = await client.v1.subscriptions.update_async(made.id, asked)
    assert amounts(invoice_of(same)) == [1000]
    clock.advance(MONTH)
    renewed = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
    assert amounts(invoice_of(renewed)) == [5000, 1000]


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
async def test_what_cannot_be_added(client: stripe.StripeClient, added: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/create#create_subscription-add_invoice_items."""
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await subscribe(client, add_invoice_items=added)


async def test_tax_is_refused_wherever_it_is_asked_for(client: stripe.StripeClient) -> None:
    """In the words of an account without Stripe Tax (https://github.com/wasp-lang/open-saas/issues/78)."""
    made = await subscribe(client, automatic_tax={"enabled": False})
    assert NO_TAX in str((await refusal(client, made.id, **TAX)).user_message)
    preview: Any = {"subscription": made.id, **TAX}
    with pytest.raises(stripe.InvalidRequestError, match=NO_TAX):
        await client.v1.invoices.create_preview_async(preview)
    page: Any = {
        "mode": "subscription",
        "line_items": [{"price": "price_10", "quantity": 1}],
        "success_url": "https://app.example/done",
        **TAX,
    }
    with pytest.raises(stripe.InvalidRequestError, match=NO_TAX):
        await client.v1.checkout.sessions.create_async(page)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    phases: Any = {"phases": [{"start_date": SECOND, "items": [{"price": "price_10"}], **TAX}]}
    with pytest.raises(stripe.InvalidRequestError, match=NO_TAX):
        await client.v1.subscription_schedules.update_async(schedule.id, phases)


async def test_tax_can_be_turned_on_and_off() -> None:
    """https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior: exclusive, on top."""
    emulator, clock = shop(tax_percent=Decimal("8.25"))
    async with account(emulator) as client:
        made = await subscribe(client)
        assert (invoice_of(made).total, invoice_of(made).total_taxes) == (1000, [])
        error = await refusal(client, made.id, **TAX)
        assert (error.code, error.http_status) == ("customer_tax_location_invalid", 400)
        await client.v1.customers.update_async("cus_1", {"address": {"country": "US", "state": "TX"}})
        on: Any = TAX
        assert (await client.v1.subscriptions.update_async(made.id, on)).automatic_tax.enabled is True
        assert (await client.v1.invoices.create_preview_async({"subscription": made.id})).total == 1083
        clock.advance(timedelta(days=30, hours=2))
        assert (await client.v1.invoices.list_async({"limit": 1})).data[0].total == 1083
        off: Any = {"automatic_tax": {"enabled": False}}
        await client.v1.subscriptions.update_async(made.id, off)
        assert (await client.v1.invoices.create_preview_async({"subscription": made.id})).total == 1000
