"""How long ago something was, where too short a span would bill twice."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Elapsed"]


class Elapsed:
    """The time since it was made, in seconds: by the wall clock or the monotonic one, whichever says more.

    The monotonic clock stands still while a machine is suspended; the wall clock may be set back.

    Args:
        clock: the wall clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_s = clock()
        self._monotonic_s = monotonic()

    @property
    def seconds(self) -> float:
        """How long ago that was, at least."""
        return max(self._clock() - self._wall_s, monotonic() - self._monotonic_s)
