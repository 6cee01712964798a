"""Handlers by the name of their event."""

from __future__ import annotations

import asyncio
import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import MeterkitError
from meterkit.notify.events import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["Handlers"]

_logger = logging.getLogger("meterkit.notify")

_PATIENCE_S: Final = 30.0  # Less than the time after which another process is told.


class Handlers:
    """Runs the app's handlers; what they raise is logged, and harms nobody else."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}

    @property
    def events(self) -> Collection[str]:
        """What there are handlers for."""
        return self._handlers.keys()

    def add(self, event: str, handler: Callable[[Any], object]) -> None:
        """Have a handler, sync or async, told of an event from now on.

        Raises:
            MeterkitError: there is no such event.
        """
        if event not in EVENTS:
            raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(EVENTS)}")
        self._handlers.setdefault(event, []).append(handler)

    async def tell(self, event: str, what: object) -> bool:
        """Tell the handlers of an event, all at once; whether all have taken it."""
        handlers = self._handlers.get(event, ())
        return all(await asyncio.gather(*(_tell(event, handler, what) for handler in handlers)))


async def _tell(event: str, handler: Callable[[Any], object], what: object) -> bool:
    waiting = asyncio.timeout(_PATIENCE_S)
    try:
        async with waiting:
            answer = handler(what)
            if isawaitable(answer):
                await answer
    except Exception:
        if waiting.expired():
            _logger.error("a handler of %s was cancelled: it took longer than %d s", event, _PATIENCE_S)  # noqa: TRY400 - where it was tells nothing
        else:
            _logger.exception("a handler of %s failed", event)
        return False
    return True
