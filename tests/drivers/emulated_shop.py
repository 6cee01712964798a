"""What tests of emulated subscriptions share: a shop with a customer, and the official SDK to ask with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
import stripe

from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW: Final = datetime(2026, 4, 1, tzinfo=UTC)
SECOND: Final = int(NOW.timestamp())
MAY: Final = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp())
DAY: Final = 86_400
HOUR: Final = 3_600
# What a shop is set up with.
SET_UP: Final = ("product.", "price.", "payment_method.", "customer.created", "customer.updated")


def shop(*, card: str | None = "pm_card_visa", **options: Any) -> tuple[StripeEmulator, Clock]:
    """An account with one customer and prices of 10 and 20 USD a month, and 9 USD a seat, on 1 April."""
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock, **options)
    emulator.add_customer("cus_1", name="Acme")
    if card is not None:
        emulator.add_payment_method("cus_1", card)
    product = emulator.add_product("Pro", product_id="prod_pro")
    emulator.add_price(1000, price_id="price_10", product=product)
    emulator.add_price(2000, price_id="price_20", product=product)
    emulator.add_price(900, price_id="price_seat", product=emulator.add_product("Seat"))
    return emulator, clock


async def subscribe(client: stripe.StripeClient, *prices: str, **params: Any) -> stripe.Subscription:
    """Subscribe the customer to prices, with its first invoice expanded."""
    wanted: Any = {
        "customer": "cus_1",
        "items": [{"price": price} for price in prices or ("price_10",)],
        "expand": ["latest_invoice.confirmation_secret"],
        **params,
    }
    return await client.v1.subscriptions.create_async(wanted)


def told(emulator: StripeEmulator, *, since: int = 0) -> list[str]:
    """The types of what has happened after that many events, set-up aside."""
    return [event.type for event in emulator.webhook_events[since:] if not event.type.startswith(SET_UP)]


def invoice_of(subscription: stripe.Subscription) -> stripe.Invoice:
    assert isinstance(subscription.latest_invoice, stripe.Invoice)
    return subscription.latest_invoice


def items_of(subscription: stripe.Subscription) -> Sequence[stripe.SubscriptionItem]:
    """The items; the SDK's objects have a method of that name."""
    items: list[stripe.SubscriptionItem] = subscription["items"].data
    return items


def item_of(subscription: stripe.Subscription) -> stripe.SubscriptionItem:
    return items_of(subscription)[0]


def amounts(invoice: stripe.Invoice) -> list[int]:
    """What the lines come to, one by one."""
    return [line.amount for line in invoice.lines.data]


async def refusal(client: stripe.StripeClient, subscription: str, **params: Any) -> stripe.StripeError:
    wanted: Any = params
    with pytest.raises(stripe.StripeError) as caught:
        await client.v1.subscriptions.update_async(subscription, wanted)
    return caught.value
