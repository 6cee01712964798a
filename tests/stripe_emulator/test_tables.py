"""Amounts, periods and changed fields at the emulator of Stripe: pure tables."""

# Internals: pure tables of amounts and instants.

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import httpx
import pytest

from stripe_emulator import StripeEmulator
from stripe_emulator.billing_cycle import period_at
from stripe_emulator.call import Params
from stripe_emulator.prices import (
    Price,
    PriceInterval,
    PriceScheme,
    PricingTier,
    charges_by_tier,
    price_quantity,
    to_cents,
)
from stripe_emulator.subscription_params import ItemChange

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("anchor", "at", "start", "end"),
    [
        ("2026-01-31T12:00", "2026-02-28T11:59", "2026-01-31T12:00", "2026-02-28T12:00"),
        ("2026-01-31T12:00", "2026-02-28T12:00", "2026-02-28T12:00", "2026-03-31T12:00"),
        ("2024-02-29T00:00", "2031-01-01T00:00", "2030-12-29T00:00", "2031-01-29T00:00"),
        ("2026-05-15T00:00", "2026-04-20T00:00", "2026-04-15T00:00", "2026-05-15T00:00"),
        ("2030-05-15T00:00", "2026-04-20T00:00", "2026-04-15T00:00", "2026-05-15T00:00"),
    ],
)
def test_periods_follow_from_the_anchor(anchor: str, at: str, start: str, end: str) -> None:
    """https://docs.stripe.com/billing/subscriptions/billing-cycle: in a short month on its last day."""
    first, instant, begin, finish = (
        int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) for text in (anchor, at, start, end)
    )
    assert period_at(first, PriceInterval(interval="month"), instant) == (begin, finish)


def test_what_recurs_not_has_no_cycle() -> None:
    once = Price(id="price_1", product="prod_1", currency="usd", created=0, pricing=PriceScheme())
    with pytest.raises(ValueError, match="price_1 is charged once"):
        _ = once.cycle
    with pytest.raises(ValueError, match="needs a price"):
        _ = ItemChange().new_price


GRADUATED = PriceScheme(
    tiers=(
        PricingTier(up_to=10, unit_amount=Decimal(5)),
        PricingTier(up_to=20, unit_amount=Decimal(4)),
        PricingTier(up_to=None, unit_amount=Decimal(3), flat_amount=Decimal(100)),
    ),
    tiers_mode="graduated",
)
VOLUME = PriceScheme(tiers=GRADUATED.tiers, tiers_mode="volume")
THOUSANDS = PriceScheme(unit_amount=Decimal(12), divide_by=1000, round_up=True)
WHOLE_THOUSANDS = PriceScheme(unit_amount=Decimal(12), divide_by=1000)


@pytest.mark.parametrize(
    ("pricing", "quantity", "cents"),
    [
        (PriceScheme(unit_amount=Decimal(2900)), 3, 8700),
        (PriceScheme(unit_amount=Decimal("0.5")), 3, 2),  # 1.5 cents.
        (PriceScheme(unit_amount=Decimal("0.012")), 1000, 12),
        (PriceScheme(), 7, 0),
        (THOUSANDS, 0, 0),
        (THOUSANDS, 1, 12),
        (THOUSANDS, 1001, 24),
        (WHOLE_THOUSANDS, 1999, 12),
        (GRADUATED, 0, 0),
        (GRADUATED, 10, 50),
        (GRADUATED, 15, 70),
        (GRADUATED, 25, 50 + 40 + 15 + 100),
        (VOLUME, 10, 50),
        (VOLUME, 11, 44),
        (VOLUME, 25, 175),
    ],
)
def test_what_a_quantity_costs(pricing: PriceScheme, quantity: int, cents: int) -> None:
    """https://docs.stripe.com/products-prices/pricing-models#tiered-pricing."""
    assert cents == to_cents(price_quantity(pricing, Decimal(quantity)))


def test_graduated_tiers_have_a_charge_each() -> None:
    charges = charges_by_tier(GRADUATED, Decimal(15))
    assert ["1: 10 for 50", "2: 5 for 20"] == [
        f"{charge.tier}: {charge.quantity} for {charge.amount}" for charge in charges
    ]


async def test_lists_of_hashes_are_read_in_either_form() -> None:
    """``items[0][price]``, as the SDK writes it, and ``items[][price]``, as shells do."""
    for form in (
        "items[0][price]=a&items[0][quantity]=2&items[1][price]=b",
        "items[][price]=a&items[][quantity]=2&items[][price]=b",
    ):
        first, second = Params(form).hashes("items")
        assert (first.text("price"), first.integer("quantity"), second.text("price")) == ("a", 2, "b")
        assert first.path("price") == "items[0][price]"
    emulator = StripeEmulator()
    async with emulator.serve() as url, httpx.AsyncClient(auth=("sk_test_1", "")) as client:
        answer = await client.get(f"{url}/v1/prices", params={"lookup_keys[]": ["a", "b"]})
        assert answer.json()["data"] == []
        answer = await client.get(f"{url}/v1/prices", params={"lookup_keys": "a"})
        assert answer.json()["error"]["param"] == "lookup_keys"
