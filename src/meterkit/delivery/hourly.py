"""What is the case for hours is said once an hour."""

from __future__ import annotations

from time import monotonic
from typing import Final

__all__ = ["Hourly"]

_AGAIN_S: Final = 3600.0


class Hourly:
    """Whether something is to be said: when it is first the case, and again each hour."""

    def __init__(self) -> None:
        self._said_s: dict[object, float] = {}

    def is_due(self, what: object) -> bool:
        """Whether to say this now; then it is not for an hour."""
        now = monotonic()
        if now - self._said_s.get(what, -_AGAIN_S) < _AGAIN_S:
            return False
        self._said_s[what] = now
        return True

    def forget(self) -> None:
        """Nothing of it is the case any more."""
        self._said_s.clear()
