"""Fractions of units that charges leave when whole units are counted."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from threading import Lock
from typing import Final

from meterkit.catalog.models import QUANTITY_MAX

_REMAINDERS_MAX: Final = 100_000


class ChargeRemainders:
    """The parts of a unit that amounts leave when whole units are counted, for the customer's next amount.

    They are of this process: when that ends, each customer has been charged less than a unit too little.
    """

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Fraction] = {}
        self._lock = Lock()

    def count_units(self, customer: str, meter: str, amount: Fraction) -> int:
        """The whole units of an amount and of what was left before."""
        with self._lock:
            total = self._left.pop((customer, meter), Fraction(0)) + amount
            units = floor(total)
            if total != units:
                self._left[customer, meter] = total - units
                if len(self._left) > _REMAINDERS_MAX:
                    del self._left[next(iter(self._left))]
        return min(units, QUANTITY_MAX)
