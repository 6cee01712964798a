"""Requests that live longer than a slot of holds: what they hold is renewed, a few of them at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from secrets import randbelow
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_SLOT_MS: Final = 300_000
_TICK_MS: Final = 250
_IDLE_MS: Final = 5_000
# A hold of the slot before is due in the slot of now. Clocks may be a minute apart before the store refuses
# to decide: so neither the slot's first minute is used nor its last. Processes begin up to 40 s apart.
_BEGIN_MS: Final = 60_000
_BEGIN_SPREAD_MS: Final = 40_000
_END_MS: Final = 220_000
_MOST: Final = 200


class Renewable(Protocol):
    """A request that is being served, and holds something meanwhile."""

    def is_due(self) -> bool:
        """Whether its holds are in a slot that is over."""
        ...

    async def renew(self) -> None:
        """Move its holds to the slot of now."""

    def release_hold(self) -> None:
        """Give its holds back: the lane is about to stop."""


def portion(due: int, *, at_ms: int, begin_ms: int) -> int:
    """How many holds to renew in one tick.

    Args:
        due: how many are left to renew in this slot.
        at_ms: since when the slot of now is.
        begin_ms: when in a slot this process begins.
    """
    if at_ms < begin_ms:
        return 0
    ticks = max(1, (_END_MS - at_ms) // _TICK_MS)
    return min(due, _MOST, -(-due // ticks))


class Renewal:
    """Renews what the requests of one event loop hold.

    Args:
        spawn: runs a coroutine in the background.
        now_ms: this process's clock.

    Attributes:
        live: the requests that hold something.
    """

    def __init__(
        self, spawn: Callable[[Coroutine[Any, Any, None]], object], now_ms: Callable[[], int]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn = spawn
        self._now_ms = now_ms
        self._begin_ms = _BEGIN_MS + randbelow(_BEGIN_SPREAD_MS)
        self._due: deque[Renewable] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.live: set[Renewable] = set()

    def begin(self) -> None:
        """Look after the holds until :meth:`stop`."""
        self.stop()
        self.tick()
        pause_ms = _TICK_MS if self._due else _IDLE_MS
        self._timer = self._loop.call_later(pause_ms / 1000, self.begin)

    def stop(self) -> None:
        """Renew nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def release_all(self) -> None:
        """Have all requests give back what they hold."""
        for holder in tuple(self.live):
            holder.release_hold()

    def tick(self) -> None:
        """Renew this tick's portion."""
        at_ms = self._now_ms() % _SLOT_MS
        if at_ms >= self._begin_ms and not self._due:
            # Those that could not be renewed are among them again.
            self._due.extend(holder for holder in self.live if holder.is_due())
        for _ in range(portion(len(self._due), at_ms=at_ms, begin_ms=self._begin_ms)):
            holder = self._due.popleft()
            if holder in self.live and holder.is_due():
                self._spawn(holder.renew())
