"""Handlers that the app registers for events."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.errors import MeterkitError
from meterkit.safe_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_logger = logging.getLogger("meterkit.notify")
_PATIENCE_S: Final = 30.0  # Less than the time after which another process gets the notice.

Handler = TypeVar("Handler", bound="Callable[[Any], object]")


class Handlers:
    """Runs event handlers; an error of one is logged and does not affect the others."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}
        self._internal: dict[str, tuple[Callable[[], bool], Callable[[Any], object]]] = {}

    @property
    def events(self) -> Collection[str]:
        """Events that the app has handlers for."""
        return self._handlers.keys()

    def add(self, event: str, handler: Handler) -> Handler:
        """Register a handler, sync or async, for an event."""
        self._handlers.setdefault(event, []).append(handler)
        return handler

    def check_event(self, event: str) -> str:
        """Return the name of an event, as a plain text.

        Raises:
            MeterkitError: there is no such event.
        """
        # Imported with the first handler: classes of events take 10 ms.
        allowed: Collection[str] = import_module("meterkit.notify.events").EVENT_CLASSES
        if event not in allowed:
            raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(allowed)}")
        return plain_text(event)

    def add_internal(
        self, group: str, event: str, handler: Callable[[Any], object], *, is_wanted: Callable[[], bool]
    ) -> None:
        """Register a handler of meterkit itself, which gets each event in addition to the app's.

        Args:
            group: its name among the readers of the event.
            event: for example ``credits.low``.
            handler: sync or async.
            is_wanted: asked each time whether this process handles it.
        """
        self._internal[f"{group} {event}"] = (is_wanted, handler)

    @property
    def groups(self) -> tuple[str, ...]:
        """Reader groups of this process: ``EVENT`` for the app's handlers, ``GROUP EVENT`` for others."""
        return (*self._handlers, *(group for group, (is_wanted, _) in self._internal.items() if is_wanted()))

    async def call(self, name: str, event: object, *, group: str) -> bool:
        """Call the handlers of a group concurrently; return whether all succeeded."""
        handlers = [self._internal[group][1]] if group in self._internal else self._handlers.get(group, [])
        return all(
            await asyncio.gather(*(start_task(_call_handler(name, handler, event)) for handler in handlers))
        )


async def _call_handler(name: str, handler: Callable[[Any], object], event: object) -> bool:
    waiting = asyncio.timeout(_PATIENCE_S)
    try:
        async with waiting:
            result = handler(event)
            if isawaitable(result):
                await keep_cancellation(result)
    except Exception:
        if waiting.expired():
            _logger.error("a handler of %s was cancelled after %d s", name, _PATIENCE_S)  # noqa: TRY400 - the traceback is of the timeout
        else:
            _logger.exception("a handler of %s failed", name)
        return False
    return True
