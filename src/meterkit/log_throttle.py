"""Throttled log: a condition that persists is logged at most once in a span."""

from __future__ import annotations

from time import monotonic
from typing import Final

__all__ = ["HOUR_S", "MINUTE_S", "Throttle"]

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0


class Throttle:
    """Decides whether a line of the log is due.

    Args:
        every_s: how long the same line is withheld.
        most: how many lines are remembered. Beyond, all are forgotten and due again.
    """

    def __init__(self, every_s: float, *, most: int = 1000) -> None:
        self._every_s = every_s
        self._most = most
        self._logged_s: dict[object, float] = {}

    def is_due(self, what: object) -> bool:
        """Whether to log this now. If so, it is not due again before the span has passed."""
        now_s = monotonic()
        if now_s - self._logged_s.get(what, -self._every_s) < self._every_s:
            return False
        if len(self._logged_s) >= self._most:
            self._logged_s.clear()
        self._logged_s[what] = now_s
        return True

    def forget(self) -> None:
        """Forget all lines, as the conditions have ended: each is due again."""
        self._logged_s.clear()
