"""Tasks that run beside each event loop for as long as it is served, each begun anew where it has ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["BackgroundTasks"]

_CANCEL_AGAIN_S: Final = 0.2


class BackgroundTasks:
    """Named tasks, one of each name in an event loop."""

    def __init__(self) -> None:
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[None]]]
        self._tasks = WeakKeyDictionary()

    def keep(
        self, loop: asyncio.AbstractEventLoop, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Have a task run in a loop, which is the running one; nothing is done where it does."""
        tasks = self._tasks.setdefault(loop, {})
        if name not in tasks or tasks[name].done():
            tasks[name] = loop.create_task(work())

    async def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel a loop's tasks, and wait until they have ended."""
        for task in self._tasks.pop(loop, {}).values():
            # Again and again: a client that connects may take a cancellation for a failure to.
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
