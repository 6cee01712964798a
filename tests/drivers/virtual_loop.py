"""An event loop in virtual time: where nothing is ready, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
from selectors import DefaultSelector
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import SelectorKey

__all__ = ["VirtualLoop"]


class _JumpingSelector(DefaultSelector):
    """A selector that advances a clock instead of waiting.

    Attributes:
        now_s: seconds since the loop began.
    """

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Advance the clock by the timeout; without one, wait for what another thread or a socket says."""
        if timeout is None:
            return super().select()
        if timeout > 0:
            self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop for coroutines alone: it reads no socket, and hears of threads only when no timer is left."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since it began."""
        return self._virtual.now_s
