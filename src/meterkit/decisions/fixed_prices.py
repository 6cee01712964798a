"""Prices of a plan and of its seats by the customer's own subscription items. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Literal, NamedTuple

_INTERVALS: Final[dict[str, Literal["month", "year"]]] = {"month": "month", "year": "year"}
_MONTH_MS: Final = 31 * 86_400_000


class FixedPrice(NamedTuple):
    """Price of one unit of a licensed item.

    Attributes:
        unit_amount: in minor units of the currency.
        currency: in lower case.
        interval: ``month``, ``year``, or a text such as ``3 months``.
    """

    unit_amount: Fraction
    currency: str
    interval: str

    def cents(self, quantity: int = 1) -> int:
        """The price of some units, rounded half up as a line of an invoice is."""
        return int(self.unit_amount * quantity + Fraction(1, 2))

    @classmethod
    def parse(cls, kept: str) -> FixedPrice | None:
        """Read ``AMOUNT CURRENCY INTERVAL``; None: not known."""
        if not kept:
            return None
        amount, currency, interval = kept.split(" ", 2)
        return cls(Fraction(amount), currency, interval)


class FixedPrices(NamedTuple):
    """Prices of a subscription's plan and of a seat, each as a state keeps it; empty: not known, or none."""

    base: str = ""
    seat: str = ""


NO_FIXED_PRICES: Final = FixedPrices()


def base_interval(base_price: str) -> Literal["month", "year"] | None:
    """The interval of a kept base price; None: not known, or another one."""
    return _INTERVALS.get(base_price.partition(" ")[2].partition(" ")[2])


def interval_of(start_ms: int, end_ms: int) -> Literal["month", "year"]:
    """The interval of a billing period, by its length."""
    return "month" if end_ms - start_ms <= _MONTH_MS else "year"
