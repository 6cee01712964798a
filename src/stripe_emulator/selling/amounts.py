"""What a quantity costs at a price: per unit, by tiers, by packages. Exact until it is rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier of a price.

    Attributes:
        up_to: the last unit of it; None: no end.
        unit_amount: minor units of the currency for each unit in it.
        flat_amount: minor units for reaching it.
    """

    up_to: int | None
    unit_amount: Decimal = Decimal(0)
    flat_amount: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What a quantity costs.

    Attributes:
        unit_amount: minor units of the currency per unit or package; None where it has tiers.
        tiers_mode: ``graduated`` or ``volume``; None where it has none.
        divide_by: units in a package; None: units are priced singly.
        round_up: whether a package begun counts as a whole.
    """

    unit_amount: Decimal | None = None
    tiers: tuple[Tier, ...] = ()
    tiers_mode: str | None = None
    divide_by: int | None = None
    round_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A part of what a quantity costs, that has a line of its own on an invoice.

    Attributes:
        amount: minor units of the currency, not rounded yet.
        tier: its number, from 1; None where the price has one amount for all units.
    """

    quantity: Decimal
    amount: Fraction
    unit_amount: Decimal
    tier: int | None = None


def to_cents(amount: Fraction) -> int:
    """Round to whole minor units, half away from zero, so that a credit mirrors its charge.

    Stripe's own examples: a third of 20 USD is 6.67, of 10 USD 3.33, and half of 8.34 USD is credited as
    4.17 (https://docs.stripe.com/billing/subscriptions/prorations).
    """
    exact = abs(amount)
    cents = int((2 * exact + 1) // 2)
    return cents if amount >= 0 else -cents


def amount_of(pricing: Pricing, quantity: Decimal) -> Fraction:
    """What a quantity costs for a whole interval, in minor units of the currency, not rounded."""
    return sum((charge.amount for charge in charges_of(pricing, quantity)), Fraction(0))


def charges_of(pricing: Pricing, quantity: Decimal) -> list[Charge]:
    """Return what a quantity costs for a whole interval: a charge, or with graduated tiers one for each tier.

    ``transform_quantity`` divides the quantity and rounds it before it is multiplied
    (https://docs.stripe.com/api/prices/object#price_object-transform_quantity). Graduated tiers charge each
    unit at its own tier, volume tiers all units at the tier of the last
    (https://docs.stripe.com/products-prices/pricing-models#tiered-pricing).
    """
    if pricing.tiers_mode == "graduated":
        return _graduated(pricing.tiers, quantity)
    if pricing.tiers_mode == "volume":
        return _volume(pricing.tiers, quantity)
    unit_amount = pricing.unit_amount or Decimal(0)
    packages = quantity
    if pricing.divide_by is not None:
        rounding = ROUND_CEILING if pricing.round_up else ROUND_FLOOR
        packages = (quantity / pricing.divide_by).to_integral_value(rounding=rounding)
    amount = Fraction(packages) * Fraction(unit_amount)
    return [Charge(quantity=quantity, amount=amount, unit_amount=unit_amount)]


def _graduated(tiers: Sequence[Tier], quantity: Decimal) -> list[Charge]:
    charges: list[Charge] = []
    below = Decimal(0)
    for number, tier in enumerate(tiers, 1):
        end = quantity if tier.up_to is None else min(quantity, Decimal(tier.up_to))
        inside = end - below
        if inside > 0 or number == 1:
            amount = Fraction(inside) * Fraction(tier.unit_amount) + Fraction(tier.flat_amount)
            charges.append(Charge(quantity=inside, amount=amount, unit_amount=tier.unit_amount, tier=number))
        below = max(below, end)
    return charges


def _volume(tiers: Sequence[Tier], quantity: Decimal) -> list[Charge]:
    number, tier = next(
        (number, tier) for number, tier in enumerate(tiers, 1) if tier.up_to is None or quantity <= tier.up_to
    )
    amount = Fraction(quantity) * Fraction(tier.unit_amount) + Fraction(tier.flat_amount)
    return [Charge(quantity=quantity, amount=amount, unit_amount=tier.unit_amount, tier=number)]
