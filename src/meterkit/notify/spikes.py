"""Whether usage is a spike: this hour and this day against the same hours and days of four weeks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DAYS", "FLOOR", "HOUR_MS", "Pace", "Spike", "pace_of", "spike_at"]

HOUR_MS: Final = 3_600_000

DAYS: Final = 28
"""The days before today that usage is compared with."""

FLOOR: Final = 100
"""Fewer units than this are never a spike."""

_DAYS_LEAST: Final = 14
_HOURS_A_DAY: Final = 24
_WEEK: Final = 7
_FACTOR: Final = 3
_FACTOR_MOST: Final = 20
_SPREADS: Final = 4
_TO_DEVIATION: Final = 1.4826
"""From a median of distances to a standard deviation."""
_RARE: Final = 2
"""So many of the days may have been unusual themselves: they do not count as a precedent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Usage that is far above what is usual.

    Attributes:
        span: what was compared: an ``hour`` with the same hours of other days, or a ``day``.
        used: the units recorded in it so far.
        usual: the median of those that it was compared with.
    """

    span: Literal["hour", "day"]
    used: int
    usual: int


def spike_at(hours: Mapping[int, int], now_ms: int) -> Spike | None:
    """The spike in the hour or the day of an instant; None: there is none.

    An hour that has begun counts as far as it has come, so that a spike is found within the hour.

    Args:
        hours: units by hour since 1970, of a customer and a meter; hours without units may be left out.
        now_ms: the instant.
    """
    hour = now_ms // HOUR_MS
    first = min(hours, default=hour)
    days = min(DAYS, (hour - first) // _HOURS_A_DAY)
    if days < _DAYS_LEAST:
        return None
    used = hours.get(hour, 0)
    past = [hours.get(hour - _HOURS_A_DAY * back, 0) for back in range(1, days + 1)]
    if used >= FLOOR and used > _FACTOR * median(past):
        # The same job may run an hour earlier or later; those hours also tell how much usage varies.
        near = [
            [hours.get(hour - _HOURS_A_DAY * back + by, 0) for back in range(1, days + 1)] for by in (-1, 1)
        ]
        if _is_unusual(used, past, [past, *near]) and used > _FACTOR * _peak(hours, hour, days):
            return Spike(span="hour", used=used, usual=int(median(past)))
    midnight = hour - hour % _HOURS_A_DAY
    used = sum(hours.get(at, 0) for at in range(midnight, hour + 1))
    if used < FLOOR:
        return None
    totals = [_day(hours, midnight - _HOURS_A_DAY * back) for back in range(1, days + 1)]
    if _is_unusual(used, totals, [totals]):
        return Spike(span="day", used=used, usual=int(median(totals)))
    return None


class Pace(NamedTuple):
    """Units of four weeks.

    Attributes:
        ahead: of four weeks in which each hour, or day, is like the spike.
        behind: of the four weeks before today.
    """

    ahead: int
    behind: int


def pace_of(spike: Spike, hours: Mapping[int, int], now_ms: int) -> Pace:
    """What a spike comes to if it goes on.

    Args:
        spike: what was found.
        hours: units by hour since 1970; those that are left out have none.
        now_ms: now.
    """
    hour = now_ms // HOUR_MS
    midnight = hour - hour % _HOURS_A_DAY
    times = DAYS * _HOURS_A_DAY if spike.span == "hour" else DAYS
    behind = sum(hours.get(at, 0) for at in range(midnight - DAYS * _HOURS_A_DAY, midnight))
    return Pace(ahead=spike.used * times, behind=behind)


def _is_unusual(used: int, past: Sequence[int], samples: Sequence[Sequence[int]]) -> bool:
    """Whether it is far above the median, by the spread, and above all but the rarest of what was."""
    middle = median(past)
    if used <= _FACTOR * median(past[_WEEK - 1 :: _WEEK]):  # The same weekdays.
        return False
    precedent = max(sorted(sample)[-1 - _RARE] for sample in samples)
    if not middle:
        return used > _FACTOR * precedent
    # Noise grows with usage: the spread is one of logarithms, and so a factor.
    distances = [abs(log((one + 1) / (median(sample) + 1))) for sample in samples for one in sample]
    spread = exp(_TO_DEVIATION * median(distances))
    factor = min(max(_FACTOR, spread**_SPREADS), _FACTOR_MOST)
    return used > factor * middle and used > max(_FACTOR / 2, spread) * precedent


def _peak(hours: Mapping[int, int], hour: int, days: int) -> int:
    """The busiest hour of a day, leaving out the rarest days; 0 where the same hours are never idle."""
    past = [hours.get(hour - _HOURS_A_DAY * back, 0) for back in range(1, days + 1)]
    if median(past):
        return 0
    peaks = (
        max(hours.get(hour - _HOURS_A_DAY * back - by, 0) for by in range(_HOURS_A_DAY))
        for back in range(1, days + 1)
    )
    return sorted(peaks)[-1 - _RARE]


def _day(hours: Mapping[int, int], midnight: int) -> int:
    return sum(hours.get(at, 0) for at in range(midnight, midnight + _HOURS_A_DAY))
