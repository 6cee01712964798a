"""Log lines that may come by the thousand: the first ones are written, the others counted."""

from __future__ import annotations

from asyncio import get_running_loop
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Sampler"]


class Sampler:
    """Lets the first lines of each span of time through, and tells how many it kept back.

    Args:
        most: how many lines a span may have.
        every_s: how long a span is, in seconds.
        tell: takes how many lines were kept back; called when the span is over, or by the next line.
    """

    def __init__(self, most: int, every_s: float, tell: Callable[[int], None]) -> None:
        self._most = most
        self._every_s = every_s
        self._tell = tell
        self._began = -every_s
        self._written = 0
        self._kept_back = 0

    def admits(self) -> bool:
        """Whether one more line may be written now; it is counted either way."""
        now = monotonic()
        if now - self._began >= self._every_s:
            self._report()  # Also where the loop that was to do it has ended.
            self._began, self._written = now, 0
        if self._written < self._most:
            self._written += 1
            return True
        if not self._kept_back:
            get_running_loop().call_later(self._began + self._every_s - now, self._report)
        self._kept_back += 1
        return False

    def _report(self) -> None:
        if self._kept_back:
            kept_back, self._kept_back = self._kept_back, 0
            self._tell(kept_back)
