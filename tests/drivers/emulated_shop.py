"""What tests of emulated subscriptions share: a shop with a customer, and the official SDK to ask with."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

import pytest
import stripe

from drivers.emulated_times import NOW
from stripe_emulator import Clock, StripeEmulator

# What a shop is set up with.
SET_UP: Final = ("product.", "price.", "payment_method.", "customer.created", "customer.updated")


def shop(*, card: str | None = "pm_card_visa", **options: Any) -> tuple[StripeEmulator, Clock]:
    """An account on 1 April: prices of 10 and 20 USD a month, 9 USD a seat, 1, 2 or 0.012 cents a token."""
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock, **options)
    emulator.add_customer("cus_1", name="Acme")
    if card is not None:
        emulator.add_payment_method("cus_1", card)
    product = emulator.add_product("Pro", product_id="prod_pro")
    emulator.add_price(1000, price_id="price_10", product=product)
    emulator.add_price(2000, price_id="price_20", product=product)
    emulator.add_price(900, price_id="price_seat", product=emulator.add_product("Seat"))
    tokens = emulator.add_meter("tokens")
    emulator.add_price(1, price_id="price_tokens_1", meter=tokens)
    emulator.add_price(2, price_id="price_tokens_2", meter=tokens)
    rounding: Any = {"divide_by": 1000, "round": "up"}
    emulator.add_price(12, price_id="price_tokens", meter=tokens, transform_quantity=rounding)
    return emulator, clock


async def subscribe(client: Any, *prices: str, **params: Any) -> Any:
    items = [{"price": price} for price in prices or ("price_10",)]
    wanted = {"customer": "cus_1", "items": items, "expand": ["latest_invoice.confirmation_secret"], **params}
    return await client.subscriptions.create(**wanted)


def told(emulator: StripeEmulator, *, since: int = 0) -> list[str]:
    """The types of what has happened after that many events, set-up aside."""
    return [event.type for event in emulator.webhook_events[since:] if not event.type.startswith(SET_UP)]


def invoice_of(subscription: Any) -> Any:
    assert isinstance(subscription.latest_invoice, stripe.Invoice)
    return subscription.latest_invoice


def items_of(subscription: Any) -> Any:
    """The items; the SDK's objects have a method of that name."""
    return subscription["items"].data


def item_of(subscription: Any) -> Any:
    return items_of(subscription)[0]


def amounts(invoice: Any) -> list[int]:
    return [line.amount for line in invoice.lines.data]


def offer(**others: Any) -> dict[str, Any]:
    """The params of a Checkout Session for the price of 20 USD."""
    items = [{"price": "price_20", "quantity": 1}]
    success_url = "https://app.example/done?session={CHECKOUT_SESSION_ID}"
    return {"mode": "subscription", "line_items": items, "success_url": success_url, **others}


async def current(client: Any, subscription_id: str) -> Any:
    """The subscription as it is now, with its latest invoice expanded."""
    return await client.subscriptions.retrieve(subscription_id, expand=["latest_invoice"])


async def newest_invoice(client: Any) -> Any:
    return (await client.invoices.list(limit=1)).data[0]


async def use(client: Any, tokens: int, *, at: int) -> None:
    payload = {"stripe_customer_id": "cus_1", "value": str(tokens)}
    await client.billing.meter_events.create(event_name="tokens", payload=payload, timestamp=at)


async def refused(call: Awaitable[object], message: str = ".") -> Any:
    """Await a call that Stripe refuses as invalid, with words that match; its error."""
    with pytest.raises(stripe.InvalidRequestError, match=message) as caught:
        await call
    return caught.value
