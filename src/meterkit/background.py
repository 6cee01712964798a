"""Tasks that run beside each event loop while it is served, each begun anew where it ends by an error."""

from __future__ import annotations

import asyncio
import logging
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError
from meterkit.throttle import HOUR_S, Throttle

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine

__all__ = ["BackgroundTasks"]

_logger = logging.getLogger("meterkit.background")

_jitter = SystemRandom().uniform

_AGAIN_FIRST_S: Final = 1.0
_AGAIN_MOST_S: Final = 60.0
_STEADY_S: Final = 60.0


class BackgroundTasks:
    """Named tasks, one of each name in an event loop.

    One that ends by an error is begun anew: after a second, then after twice as long each time, up to a
    minute. Each kind of error is logged once, and again each hour until the task has run for a minute.

    Args:
        failures: counts how often each task has ended by an error.
    """

    def __init__(self, failures: Counter[str]) -> None:
        self._failures = failures
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[None]]]
        self._tasks = WeakKeyDictionary()

    def keep(
        self, loop: asyncio.AbstractEventLoop, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Have a task run in a loop, which is the running one; nothing is done where it does."""
        tasks = self._tasks.setdefault(loop, {})
        if name not in tasks or tasks[name].done():
            tasks[name] = start_task(self._run(name, work), name=f"meterkit {name}")

    async def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel a loop's tasks, and wait until they have ended."""
        tasks = self._tasks.pop(loop, {}).values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        said, pause_s, loop = Throttle(HOUR_S), _AGAIN_FIRST_S, asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - no other code would log it, or start again
                failed = error
            else:
                return
            self._failures[name] += 1
            if loop.time() - began_s >= _STEADY_S:
                said.forget()
                pause_s = _AGAIN_FIRST_S
            if said.is_due(type(failed)):
                _say(name, failed)
            await asyncio.sleep(pause_s * _jitter(0.5, 1.0))
            pause_s = min(_AGAIN_MOST_S, 2 * pause_s)


def _say(name: str, failed: Exception) -> None:
    if isinstance(failed, MeterkitError):  # Mostly the store is away: a traceback would say nothing more.
        _logger.warning("the background task %r ended by an error and begins anew: %s", name, failed)
    else:
        _logger.error("the background task %r ended by an error and begins anew", name, exc_info=failed)
