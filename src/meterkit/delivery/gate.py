"""Whether anything may be sent: a refusal that concerns all of it is met once, not by each intent. Pure."""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["Admitted", "Gate"]

Admitted = Literal["all", "one", "none"]

_FAILURES_MAX: Final = 10
_ALERT_EVERY_MS: Final = 3_600_000


class Gate:
    """Opens when something passes, closes for a growing while when all would be refused.

    After that while one intent is let through: it opens the gate, or closes it for twice as long.

    Args:
        is_open: whether all may pass at first, or one that shows whether the others may.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._closed_ms = 0
        self._until_ms = 0
        self._wait_ms = 0
        self._failures = 0
        self._alerted_ms: int | None = None

    def admits(self, now_ms: int) -> Admitted:
        """What may pass now; where a clock was set back, as if it had not been closed."""
        if self._is_open:
            return "all"
        return "none" if self._closed_ms <= now_ms < self._until_ms else "one"

    def passed(self) -> None:
        """Something has passed: all may."""
        self._is_open, self._wait_ms, self._failures, self._alerted_ms = True, 0, 0, None

    def close(self, now_ms: int, *, first_ms: int, most_ms: int) -> None:
        """Let nothing pass for a while: ``first_ms``, and twice as long each time, up to ``most_ms``."""
        if self.admits(now_ms) == "none":
            return  # Of those that were on their way when it was closed.
        self._wait_ms = min(most_ms, max(first_ms, 2 * self._wait_ms))
        self._is_open, self._closed_ms, self._until_ms = False, now_ms, now_ms + self._wait_ms

    def failed(self, now_ms: int, *, first_ms: int, most_ms: int) -> None:
        """Nobody answered. Many times in a row, or where one was to show whether others pass, closes it."""
        self._failures += 1
        if not self._is_open or self._failures >= _FAILURES_MAX:
            self.close(now_ms, first_ms=first_ms, most_ms=most_ms)

    def is_alert_due(self, now_ms: int) -> bool:
        """Whether a person is to be told now: when it closes, and each hour while it stays closed."""
        told_ms = self._alerted_ms
        if told_ms is not None and told_ms <= now_ms < told_ms + _ALERT_EVERY_MS:
            return False
        self._alerted_ms = now_ms
        return True
