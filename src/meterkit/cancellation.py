"""Level cancellation: a cancelled task stays cancelled until it ends.

asyncio delivers a cancellation once, as an edge. A foreign client that is connecting may take it for its own
timeout, and the task goes on: `asyncio.run()` cancels once, too, and would wait for that task for ever.

anyio's task groups repeat a cancellation, too, but `asyncio.run()` also cancels tasks outside of them. A
check after each foreign call would be forgotten at the next one.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_T = TypeVar("_T")

# Long enough for a cleanup that asks the store once.
_REPEAT_S: Final = 0.5
_BACKEND: Final = "anyio._backends._asyncio"


class LevelTask(asyncio.Task[_T]):
    """Task that repeats a cancellation until it has ended, or `uncancel()` has withdrawn the request.

    All repeats count as one request: `cancelling()`, by which timeouts go, stays the same.
    """

    _repeat: asyncio.TimerHandle | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Request a cancellation, as any task does, and repeat it."""
        is_requested = super().cancel(msg)
        if is_requested and self._repeat is None:
            self._repeat = self.get_loop().call_later(_REPEAT_S, self._cancel_again)
        return is_requested

    def _cancel_again(self) -> None:
        self._repeat = None
        if self.cancelling() and self.cancel():
            self.uncancel()


def start_task(work: Coroutine[Any, Any, _T], *, name: str | None = None) -> LevelTask[_T]:
    """Run a coroutine beside the caller, in the running event loop; the caller keeps the task."""
    return LevelTask(work, loop=asyncio.get_running_loop(), name=name)


async def keep_cancellation(answer: Awaitable[_T]) -> _T:
    """Wait for a foreign client; a cancellation of this task that the client swallows is raised afterwards.

    Raises:
        asyncio.CancelledError: this task was cancelled meanwhile.
    """
    task = asyncio.current_task()
    requests = 0 if task is None else task.cancelling()
    if requests:
        await _deliver_pending(answer)
    try:
        reply = await answer
    except Exception:
        if task is not None and task.cancelling() > requests:
            await _raise_cancellation()
        raise
    if task is not None and task.cancelling() > requests:
        await _raise_cancellation()
    return reply


async def _deliver_pending(answer: Awaitable[Any]) -> None:
    """Raise a cancellation that was requested since the task last waited, before the client sees it."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if asyncio.iscoroutine(answer):
            answer.close()
        raise


async def _raise_cancellation() -> None:
    # anyio's scopes know their own cancellation by its text, and deliver it again as soon as a task waits.
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def complete(work: Coroutine[Any, Any, _T] | asyncio.Future[_T]) -> _T:
    """Run a cleanup to its end, although its caller is cancelled; the cancellation is raised afterwards.

    The end of a loop cancels all tasks, also that of a coroutine given here, but no future of a thread.

    Raises:
        asyncio.CancelledError: this task was cancelled meanwhile.
    """
    cleanup = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    # A scope of anyio's would cancel the waiting again and again. There is none before its backend is
    # imported, and no request waits for that import.
    with anyio.CancelScope(shield=True) if _BACKEND in sys.modules else nullcontext():
        while not cleanup.done():
            try:
                await asyncio.wait([cleanup])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    return cleanup.result()
