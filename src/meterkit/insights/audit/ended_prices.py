"""Missing units recorded at a price that has ended: a rebuild bills none dearer than recorded. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.periods import MINUTE_MS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

_SKEW_MS: Final = 2_000
"""An intent's minute has begun at most so long before it is sealed; see ``next_free_minute.lua``."""


class LoggedPrice(NamedTuple):
    """A price of a meter in a period, by the audit log.

    Attributes:
        of_unit: the price of one unit, in micro-units of the currency.
        units: how many units had it.
        since_ms: when the first of them was recorded.
        last_ms: when the last was.
    """

    of_unit: Fraction
    units: int
    since_ms: int
    last_ms: int

    @property
    def first_minute_ms(self) -> int:
        """First minute that an event of these units can have."""
        return (self.since_ms - _SKEW_MS) // MINUTE_MS * MINUTE_MS


def find_cheaper_units(
    sold: Sequence[LoggedPrice], now: Fraction, *, by_item: int, before: int
) -> dict[Fraction, int]:
    """Find units that Stripe may lack at prices below that of now, by price, the cheapest first.

    Which units it lacks is known only as far as usage at the price of now has later timestamps: in doubt,
    they are the cheapest.

    Args:
        sold: prices of the period, by the log.
        now: the price of now, in micro-units of the currency.
        by_item: units that invoice items bill at prices that ended.
        before: units that Stripe has with timestamps before those at the price of now.
    """
    ended = [one for one in sold if one.of_unit != now and one.units > 0]
    open_since_ms = min((one.since_ms for one in sold if one.of_unit == now), default=None)
    # A price that is back may have had some of the items.
    is_back = open_since_ms is not None and any(one.last_ms > open_since_ms for one in ended)
    left = sum(one.units for one in ended) - before - (0 if is_back else by_item)
    found: dict[Fraction, int] = {}
    for one in sorted(ended):
        if one.of_unit < now and left > 0:
            found[one.of_unit] = min(left, one.units)
            left -= found[one.of_unit]
    return found
