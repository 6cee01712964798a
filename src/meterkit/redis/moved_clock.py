"""What a clock of a test may say where the store is a server."""

from __future__ import annotations

from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["not_past"]

_BEHIND_MAX_S: Final = 60.0


def not_past(clock: Callable[[], float], store: str) -> Callable[[], float]:
    """The same clock, which raises MeterkitError while it is behind the system's.

    A server ends keys by its own time: what is written with a date in the past is gone at once, and nothing
    would count.

    Args:
        clock: seconds since the epoch.
        store: its address, for the message.
    """

    def now() -> float:
        told = clock()
        if told < time() - _BEHIND_MAX_S:
            raise MeterkitError(
                f"the clock says {datetime.fromtimestamp(told, UTC).isoformat()}, which is past, and {store}"
                " keeps nothing that ended in the past: take memory:// as the store, or a time from now on"
            )
        return told

    return now
