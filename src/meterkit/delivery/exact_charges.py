"""Exact charge for units at a price of Stripe: by its unit price, or by its graduated or volume tiers."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class PriceTier(NamedTuple):
    """A tier of a price.

    Attributes:
        up_to: its last unit; None: no limit.
        unit: the price of a unit in it, in minor units.
        flat: the charge for reaching it.
    """

    up_to: int | None
    unit: Fraction
    flat: Fraction


class PriceTerms(NamedTuple):
    """The terms of a price.

    Attributes:
        id: ``price_…``.
        meter: the id of its meter; None: it is not metered.
        currency: of the amounts.
        unit: the price of a unit; None: it has tiers, or charges packages of several units.
        is_packed: whether it charges packages of several units.
        tiers: in order; empty: there are none.
        is_volume: whether the tier of the last unit applies to all units.
    """

    id: str
    meter: str | None
    currency: str
    unit: Fraction | None
    is_packed: bool
    tiers: Sequence[PriceTier]
    is_volume: bool

    def charge(self, quantity: Decimal, *, after: Decimal = Decimal(0)) -> Fraction | None:
        """Compute the exact charge for units that follow others of the period; None: not computable.

        Args:
            quantity: the units.
            after: earlier units of the period.
        """
        total, before = self._charge_all(after + quantity), self._charge_all(after) if after else Fraction(0)
        return None if total is None or before is None else total - before

    def _charge_all(self, quantity: Decimal) -> Fraction | None:
        if self.tiers:
            return self._charge_by_tier(quantity)
        return None if self.unit is None else Fraction(quantity) * self.unit

    def _charge_by_tier(self, quantity: Decimal) -> Fraction:
        total, below = Fraction(0), Decimal(0)
        for number, tier in enumerate(self.tiers):
            end = quantity if tier.up_to is None else min(quantity, Decimal(tier.up_to))
            if self.is_volume and (tier.up_to is None or quantity <= tier.up_to):
                return Fraction(quantity) * tier.unit + tier.flat
            if not self.is_volume and (end > below or number == 0):
                total += Fraction(end - below) * tier.unit + tier.flat
            below = max(below, end)
        return total


def read_price_terms(found: Mapping[str, Any]) -> PriceTerms:
    """Read a price with expanded tiers."""
    recurring: Mapping[str, Any] = found.get("recurring") or {}
    unit, is_packed = found.get("unit_amount_decimal"), found.get("transform_quantity") is not None
    return PriceTerms(
        id=str(found["id"]),
        meter=recurring.get("meter"),
        currency=str(found.get("currency") or ""),
        unit=None if unit is None or is_packed else Fraction(str(unit)),
        is_packed=is_packed,
        tiers=[
            PriceTier(tier.get("up_to"), _amount(tier, "unit_amount"), _amount(tier, "flat_amount"))
            for tier in found.get("tiers") or ()
        ],
        is_volume=found.get("tiers_mode") == "volume",
    )


def _amount(tier: Mapping[str, Any], name: str) -> Fraction:
    amount = tier.get(f"{name}_decimal")
    return Fraction(str(amount if amount is not None else tier.get(name) or 0))
