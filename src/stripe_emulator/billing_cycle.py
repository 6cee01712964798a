"""Billing cycles: the bounds of periods, counted from an anchor."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stripe_emulator.prices import PriceInterval

DAY_S: Final = 86_400
FIXED_S: Final = {"day": DAY_S, "week": 7 * DAY_S}
MONTHS: Final = {"month": 1, "year": 12}
# No month is shorter, no year has more than 366 days: what a guess may be off by.
MONTH_S_MIN: Final = 28 * DAY_S


def period_boundary(anchor: int, recurring: PriceInterval, number: int) -> int:
    """Return the start of the period with this number, in Unix seconds; number 0 starts at the anchor.

    Months are counted from the anchor and never from the end before, so that 31 January is followed by
    28 February and 31 March (https://docs.stripe.com/billing/subscriptions/billing-cycle).
    """
    steps = number * recurring.interval_count
    if recurring.interval in FIXED_S:
        return anchor + steps * FIXED_S[recurring.interval]
    begin = datetime.fromtimestamp(anchor, UTC)
    month = begin.year * 12 + begin.month - 1 + steps * MONTHS[recurring.interval]
    year, month = month // 12, month % 12 + 1
    day = min(begin.day, monthrange(year, month)[1])
    return int(begin.replace(year=year, month=month, day=day).timestamp())


def period_at(anchor: int, recurring: PriceInterval, at: int) -> tuple[int, int]:
    """Return the bounds of the period that an instant lies in: [start, end), in Unix seconds.

    Before the anchor there are periods too: of a cycle that is anchored in the future.
    """
    length = FIXED_S.get(recurring.interval) or MONTHS[recurring.interval] * MONTH_S_MIN
    number = (at - anchor) // (length * recurring.interval_count)
    while period_boundary(anchor, recurring, number) > at:
        number -= 1
    while period_boundary(anchor, recurring, number + 1) <= at:
        number += 1
    return period_boundary(anchor, recurring, number), period_boundary(anchor, recurring, number + 1)
