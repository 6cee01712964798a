"""Circuit breaker for a refusal that would meet every request. Pure."""

from __future__ import annotations

from typing import Final, Literal

Admitted = Literal["all", "one", "none"]

_FAILURES_MAX: Final = 10
_ALERT_EVERY_MS: Final = 3_600_000


class CircuitBreaker:
    """Lets nothing pass for a growing while after a refusal that all would meet, and then one to try.

    That one lets all pass again, or trips the breaker for twice as long.

    Args:
        is_tried: whether all may pass at first, or one that shows whether the others may.
    """

    def __init__(self, *, is_tried: bool) -> None:
        self._admits_all = is_tried
        self._tripped_ms = 0
        self._until_ms = 0
        self._wait_ms = 0
        self._failures = 0
        self._alerted_ms: int | None = None

    def admits(self, now_ms: int) -> Admitted:
        """Requests that may pass now; if the clock was set back, as if never tripped."""
        if self._admits_all:
            return "all"
        return "none" if self._tripped_ms <= now_ms < self._until_ms else "one"

    def succeeded(self) -> None:
        """Something has passed: all may."""
        self._admits_all, self._wait_ms, self._failures, self._alerted_ms = True, 0, 0, None

    def trip(self, now_ms: int, *, first_ms: int, most_ms: int) -> None:
        """Let nothing pass for a while: ``first_ms``, and twice as long each time, up to ``most_ms``."""
        if self.admits(now_ms) == "none":
            return  # Of those that were on their way when it was tripped.
        self._wait_ms = min(most_ms, max(first_ms, 2 * self._wait_ms))
        self._admits_all, self._tripped_ms, self._until_ms = False, now_ms, now_ms + self._wait_ms

    def failed(self, now_ms: int, *, first_ms: int, most_ms: int, by_trial: bool = True) -> None:
        """Count a failure. Many in a row trip it, and with ``by_trial`` so does a failed trial call."""
        self._failures += 1
        if (by_trial and not self._admits_all) or self._failures >= _FAILURES_MAX:
            self.trip(now_ms, first_ms=first_ms, most_ms=most_ms)

    def is_alert_due(self, now_ms: int) -> bool:
        """Whether an alert is due: when it trips, and each hour while it stays tripped."""
        told_ms = self._alerted_ms
        if told_ms is not None and told_ms <= now_ms < told_ms + _ALERT_EVERY_MS:
            return False
        self._alerted_ms = now_ms
        return True
