"""When each shard's customers are looked at: in the first six hours of the day (UTC), one by one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Night", "due_shards"]

_DAY_MS: Final = 86_400_000
_NIGHT_MS: Final = 6 * 3_600_000
_LATE_MS: Final = 600_000


@dataclass(frozen=True, slots=True, order=True)
class Night:
    """A shard's turn.

    Attributes:
        day: since 1970.
        shard: whose customers are looked at.
    """

    day: int
    shard: int

    def dump(self) -> str:
        """As text."""
        return f"{self.day} {self.shard}"

    @classmethod
    def parse(cls, text: str) -> Night | None:
        """The inverse of :meth:`dump`; None of an empty one."""
        return cls(*map(int, text.split())) if text else None


def due_shards(done: Night | None, now_ms: int, shards: int) -> Iterator[tuple[Night, int]]:
    """The turns that have begun and are not done, in order, and over how long (ms) each is spread.

    A day that nobody was there for is left out. What is late of this one is spread over as long as a night:
    what is due first is looked at first, and events would wait behind everybody.

    Args:
        done: the last turn that was done.
        now_ms: now.
        shards: how many there are.
    """
    day, into_ms = divmod(now_ms, _DAY_MS)
    span_ms = max(1, _NIGHT_MS // shards)
    first = done.shard + 1 if done is not None and done.day == day else 0
    if done is not None and done.day > day:
        return  # Of a clock that was ahead.
    for shard in range(first, min(shards, into_ms // span_ms + 1)):
        is_late = into_ms >= (shard + 1) * span_ms + _LATE_MS
        yield Night(day, shard), _NIGHT_MS if is_late else span_ms
