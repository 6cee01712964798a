"""Bars of used quantities, with their levels. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["enough", "near", "reached"]

_NEAR_PERCENT: Final = 80
_ALL_PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBar:
    """A bar of used quantity; positions are in percent of its length.

    Attributes:
        used_percent: used of available, rounded down; may exceed 100.
        forecast_percent: where the forecast's mark stands, at most 100; None: there is no forecast.
        included_percent: where the included quantity ends; 100 without grants and credits.
        is_limited: False: the bar is a share of a whole, and has no level.
    """

    used_percent: int
    forecast_percent: float | None = None
    included_percent: float = 100.0
    is_limited: bool = True

    @property
    def filled_percent(self) -> int:
        """The filled part of the bar."""
        return min(_ALL_PERCENT, max(0, self.used_percent))

    @property
    def level(self) -> Level:
        """Level of the bar: near from 80 %, reached from 100 %."""
        return level_of(self.used_percent) if self.is_limited else "enough"


def level_of(percent: int) -> Level:
    """Return the level of a share: near from 80 %, reached from 100 %."""
    return "reached" if percent >= _ALL_PERCENT else "near" if percent >= _NEAR_PERCENT else "enough"


def limit_bar(used: int, limit: int) -> UsageBar:
    """Make the bar of what is used of a limit; a limit of 0 is reached."""
    return UsageBar(used_percent=_ALL_PERCENT * used // limit if limit else _ALL_PERCENT)


def share_bar(part: int, whole: int) -> UsageBar:
    """Make the bar of a part of a whole above 0, without a level."""
    return UsageBar(used_percent=_ALL_PERCENT * part // whole, is_limited=False)
