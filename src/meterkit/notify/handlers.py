"""Handlers by the name of their event."""

from __future__ import annotations

import logging
from asyncio import Task, get_running_loop, wait
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import MeterkitError
from meterkit.notify.events import CreditsLow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Handlers"]

_logger = logging.getLogger("meterkit.notify")

EVENTS: Final = ("credits.low",)


class Handlers:
    """Runs the app's handlers; what they raise is logged, and harms nobody else."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}
        self._tasks: set[Task[None]] = set()

    def add(self, event: str, handler: Callable[[Any], object]) -> None:
        """Have a handler, sync or async, told of an event from now on.

        Raises:
            MeterkitError: there is no such event.
        """
        if event not in EVENTS:
            raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(EVENTS)}")
        self._handlers.setdefault(event, []).append(handler)

    def credits_low(self, customer: str, credit: str) -> None:
        """Tell that the balance of a customer's credit has become low."""
        self.tell("credits.low", CreditsLow(customer=customer, credit=credit))

    def tell(self, event: str, what: object) -> None:
        """Tell the handlers of an event; returns before the async ones are done."""
        for handler in self._handlers.get(event, ()):
            try:
                answer = handler(what)
            except Exception:
                _logger.exception("a handler of %s failed", event)
                continue
            if isawaitable(answer):
                task = get_running_loop().create_task(_await(answer, event))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def finish(self, *, timeout_s: float) -> None:
        """Wait for the handlers that run in this event loop; those that take longer are cancelled."""
        loop = get_running_loop()
        running = [task for task in self._tasks if task.get_loop() is loop]
        if not running:
            return
        _, late = await wait(running, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            _logger.error("handlers of events were cancelled when the kit stopped: %d", len(late))
            await wait(late)


async def _await(answer: Awaitable[object], event: str) -> None:
    try:
        await answer
    except Exception:
        _logger.exception("a handler of %s failed", event)
