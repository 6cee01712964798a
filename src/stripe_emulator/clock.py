"""A clock that a test sets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


class Clock:
    """A clock that stands still until it is moved. Calling it gives Unix seconds, as ``time.time`` does.

    Args:
        start: an aware datetime; by default the real time at construction.

    Raises:
        ValueError: if a datetime without a time zone is given.
    """

    __slots__ = ("__weakref__", "_now")

    def __init__(self, start: datetime | None = None) -> None:
        self._now = datetime.now(UTC) if start is None else _utc(start)

    def __call__(self) -> float:
        """Return Unix seconds."""
        return (self._now - EPOCH) / timedelta(seconds=1)

    def __repr__(self) -> str:
        return f"Clock({self._now.isoformat()})"

    def now(self) -> datetime:
        """Return the time, aware and in UTC."""
        return self._now

    @property
    def now_ms(self) -> int:
        """Unix time in whole milliseconds, rounded down."""
        return (self._now - EPOCH) // MILLISECOND

    def advance(self, by: timedelta) -> None:
        """Move by ``by``; a negative one moves back."""
        self._now += by

    def set(self, to: datetime) -> None:
        """Move to ``to``. Raises ValueError if it has no time zone."""
        self._now = _utc(to)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone: give an aware datetime, such as tzinfo=UTC")
    return moment.astimezone(UTC)
