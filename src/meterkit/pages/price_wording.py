"""Prices of overage in words: one, or those of models. Pure."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from meterkit.catalog.amount_wording import exact_money

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.catalog.model_prices import PriceRows
    from meterkit.store.customer_usage import MeterUsage, OveragePrice

_PERS: Final = (1, 1_000, 1_000_000)
_LISTED_MAX: Final = 4


def price_text(meter: str, rows: PriceRows | None, usage: Mapping[str, MeterUsage], unit: str) -> str | None:
    """Write the price of a meter's overage: ``USD 0.20 per 100 tokens``; None: not billed, or not known.

    Args:
        meter: the meter.
        rows: its prices by model on the customer's plan; None: it has one price.
        usage: of all meters, with the customer's prices.
        unit: of the meter.
    """
    if rows is None:
        own = usage[meter].get("price")
        return None if own is None else _format([("", own)], unit)
    others = [("other models", rows.default)] if rows.has_default else []
    listed = [
        (name, price)
        for name, row in (*rows.models, *others)
        if row in usage and (price := usage[row].get("price")) is not None
    ]
    return _format(listed, unit) if listed else None


def _format(prices: Collection[tuple[str, OveragePrice]], unit: str) -> str:
    per = _common_per([price for _, price in prices])
    suffix = f"per {unit}" if per == 1 else f"per {per:,} {unit}s"
    amounts = [
        (_exact(price["amount_cents"] * per, price["per"]), price["currency"], name) for name, price in prices
    ]
    if len(amounts) > _LISTED_MAX:
        (least, currency, _), (most, _, _) = min(amounts), max(amounts)
        return f"{exact_money(least, currency)} to {exact_money(most, currency)} {suffix}, by model"
    shown = [f"{exact_money(of, currency)}{name and f' ({name})'}" for of, currency, name in amounts]
    *first, last = shown
    return f"{', '.join(first)}{' or ' if first else ''}{last} {suffix}"


def _exact(amount_cents: int, per: int) -> Decimal:
    return (Decimal(amount_cents) / per).normalize()


def _common_per(prices: Collection[OveragePrice]) -> int:
    """Find the quantity to show prices for: 1, a thousand or a million, or the written power of ten."""
    pers = {price["per"] for price in prices}
    first = next(iter(pers))
    if len(pers) == 1 and not str(first).strip("0").removeprefix("1"):
        return first
    exact = [Fraction(price["amount_cents"], price["per"]) for price in prices]
    fits = (per for per in _PERS if all((of * per).denominator == 1 for of in exact))
    return next(fits, first if len(pers) == 1 else _PERS[-1])
