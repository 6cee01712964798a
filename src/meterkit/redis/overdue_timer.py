"""Timer of an event loop's queues: one for all of them, as most queues wait for nothing most of the time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("meterkit.store")


class WatchedQueue(Protocol):
    """Queue with unacknowledged settlements."""

    def spill_if_overdue(self) -> None:
        """Spool its settlements if they wait too long; be watched again if they may come to."""


@dataclass(eq=False)
class OverdueTimer:
    """Timer after which queues spool what is still unacknowledged; a shorter delay touches no disk.

    Args:
        call_later: calls a function after some seconds, in the event loop.
    """

    call_later: Callable[[float, Callable[[], None]], object]
    _queues: list[WatchedQueue] = field(default_factory=list[WatchedQueue], init=False)

    def watch(self, queue: WatchedQueue, *, after_s: float) -> None:
        """Call the queue when the timer runs, after this time at most."""
        self._queues.append(queue)
        if len(self._queues) == 1:
            self.call_later(after_s, self._run)

    def _run(self) -> None:
        queues, self._queues = self._queues, []
        for queue in queues:
            try:
                queue.spill_if_overdue()
            except Exception as error:  # noqa: BLE001 - one queue stops no other
                # The others are watched no more: each spools now, or not at all.
                _log.exception(
                    "settlements could not be spooled, those of other shards are: %r; please report this",
                    error,
                )
