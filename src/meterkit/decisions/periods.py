"""Billing periods: pure arithmetic on instants."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from meterkit.errors import MeterkitError

HOLD_SLOT_MS: Final = 300_000
"""Length of one of the two slots of holds."""

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
SHORTEST_MS: Final = 120_000
"""A period that another one follows sooner goes on in it: counts stay (``close_period.lua``), grants too."""

MONTHS: Final = {"month": 1, "year": 12}
_MONTH_DIGITS: Final = len("2026-10")
_PERIOD_END: Final = datetime(9990, 1, 1, tzinfo=UTC)
"""First instant that names no period: the ends of the next two periods must be a datetime, too."""
_EVERY_MONTH_HAS: Final = 28
_MINUTES_AHEAD: Final = 3
"""Most minutes that an intent's minute may be ahead when it is sealed; see seal.lua."""


def to_ms(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware instant."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def aware_ms(what: str, moment: object) -> int:
    """Milliseconds since the epoch of an instant that the app gave.

    Raises:
        MeterkitError: it is no datetime, or has no time zone; ``what`` names the argument.
    """
    if not isinstance(moment, datetime):
        found = f"{moment!r:.80}" if isinstance(moment, str) else f"a value of type {type(moment).__name__}"
        raise MeterkitError(f"{what}: found {found}; allowed is an aware datetime")
    if moment.utcoffset() is None:
        raise MeterkitError(f"{what}: found a naive datetime; give it a time zone, UTC for example")
    return to_ms(moment)


def occurred_ms(occurred_at: datetime, now_ms: int) -> int:
    """Check the app's ``occurred_at``, and convert it to milliseconds since the epoch.

    Raises:
        MeterkitError: it is no aware datetime, before 1970, or more than a minute in the future.
    """
    found_ms = aware_ms("occurred_at", occurred_at)
    if not 0 <= found_ms <= now_ms + 60_000:
        raise MeterkitError(
            f"occurred_at: found {occurred_at.isoformat()}; allowed are instants from 1970 to now, "
            f"which is {from_ms(now_ms).isoformat()}, and a minute more"
        )
    return found_ms


def period_ms(period: object) -> int:
    """The instant that names a billing period, in milliseconds since the epoch.

    Args:
        period: an aware instant in it; or a text: its id, an instant, a day, or a month for its first day,
            in UTC where it has no zone.

    Raises:
        MeterkitError: it is none of these, naive, before 1970, or after 9989.
    """
    try:
        if isinstance(period, str):
            found = datetime.fromisoformat(f"{period}-01" if len(period) == _MONTH_DIGITS else period)
            at_ms = to_ms(found if found.tzinfo is not None else found.replace(tzinfo=UTC))
        elif isinstance(period, datetime):
            at_ms = aware_ms("period", period)
        else:
            at_ms = -1
    except (ValueError, OverflowError):
        at_ms = -1
    if not 0 <= at_ms < to_ms(_PERIOD_END):
        shown = f"{period!r:.80}" if isinstance(period, str | datetime) else f"a {type(period).__name__}"
        raise MeterkitError(
            f"period: found {shown}; allowed is an aware datetime from 1970 to 9989, the id of a period, a"
            " day such as 2026-10-01, or a month such as 2026-10"
        )
    return at_ms


def from_ms(ms: int) -> datetime:
    """The aware UTC instant of milliseconds since the epoch."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def first_minute_s(start_ms: int) -> int:
    """First whole minute of a period, in Unix seconds: a stamped minute lies wholly in its period.

    Args:
        start_ms: the first instant of the period.
    """
    return -(-start_ms // MINUTE_MS) * 60


def stamped_span_s(start_ms: int, now_ms: int, *, end_ms: int | None = None) -> tuple[int, int]:
    """Minutes that a period's intents can have by now: the first second, and the first one after them.

    Args:
        start_ms: the first instant of the period.
        now_ms: now.
        end_ms: the first instant after it; None: it goes on.
    """
    behind_ms = now_ms + (_MINUTES_AHEAD + 1) * MINUTE_MS
    if end_ms is not None:
        behind_ms = min(behind_ms, end_ms)
    return first_minute_s(start_ms), behind_ms // MINUTE_MS * 60


def iso(moment: datetime) -> str:
    """An aware instant in ISO 8601, in UTC, with Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The period that an instant lies in, and the one after it.

    Attributes:
        start_ms: first instant of the period.
        end_ms: first instant after it, which begins the next one.
        next_end_ms: first instant after the next one.
    """

    start_ms: int
    end_ms: int
    next_end_ms: int


def bounds_at(
    now_ms: int, *, anchor_ms: int | None = None, interval: Literal["month", "year"] = "month"
) -> Bounds:
    """The period around ``now_ms``.

    Without an anchor: calendar months (or years) in UTC. With one: spans counted from the anchor, never from
    the end of the last one, so that 31 January leads to 28 February and then to 31 March.
    """
    now = from_ms(now_ms)
    months = MONTHS[interval]
    anchor = from_ms(anchor_ms) if anchor_ms is not None else datetime(1970, 1, 1, tzinfo=UTC)
    n = ((now.year - anchor.year) * 12 + now.month - anchor.month) // months
    start = _add_months(anchor, n * months)
    if start > now:
        n -= 1
        start = _add_months(anchor, n * months)
    end, after = (_add_months(anchor, (n + step) * months) for step in (1, 2))
    return Bounds(start_ms=to_ms(start), end_ms=to_ms(end), next_end_ms=to_ms(after))


def _add_months(moment: datetime, months: int) -> datetime:
    index = moment.year * 12 + moment.month - 1 + months
    year, month = divmod(index, 12)
    day = moment.day if moment.day <= _EVERY_MONTH_HAS else min(moment.day, monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)
