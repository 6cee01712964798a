"""An event loop in a thread of its own, for code that has none."""

from __future__ import annotations

import asyncio
import atexit
import os
from concurrent.futures import Future
from functools import partial, wraps
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet

import anyio
from anyio.from_thread import BlockingPortal

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

__all__ = ["LoopThread"]

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """Runs coroutines to their end, from any thread; an own event loop and thread in each process.

    They begin with the first call, and after a fork with the first call of the child. They end with the last
    :meth:`stop`, or with the process.

    Args:
        served: entered in the event loop when that begins, left when it ends; more than once.
    """

    def __init__(self, served: AbstractAsyncContextManager[object]) -> None:
        self._served = served
        self._lock = Lock()
        self._starts = 0
        self._portal: BlockingPortal | None = None
        self._thread: Thread | None = None
        self._of_parents: list[object] = []
        _everywhere.add(self)

    def start(self) -> None:
        """Begin now. Counted: each start wants a stop.

        Raises:
            MeterkitError: an event loop runs in this thread.
        """
        _refuse_beside_a_loop()
        with self._lock:
            self._open()
            self._starts += 1

    def stop(self) -> None:
        """Undo one start; with the last one the event loop and its thread end."""
        with self._lock:
            self._starts = max(0, self._starts - 1)
            if not self._starts:
                self._close()

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **named: P.kwargs) -> T:
        """Run a coroutine to its end; gives what it returns, and raises what it raises.

        Raises:
            MeterkitError: an event loop runs in this thread.
        """
        _refuse_beside_a_loop()
        portal = self._portal
        if portal is None:
            with self._lock:
                portal = self._open()
        future: Future[T] = portal.start_task_soon(partial(function, *args, **named))
        try:
            return future.result()
        except BaseException:
            # Where a signal interrupts the waiting (Ctrl-C, a time limit of Celery) the call ends, too.
            future.cancel()
            raise

    def blocking(self, function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """A function of the same arguments that returns what the coroutine does."""

        @wraps(function)
        def run(*args: P.args, **named: P.kwargs) -> T:
            return self.call(function, *args, **named)

        return run

    def end(self) -> None:
        """End what was begun, however often it was started."""
        with self._lock:
            self._starts = 0
            self._close()

    def after_fork(self) -> None:
        """In a child process: the thread is the parent's; what belongs to it is neither used nor closed."""
        self._of_parents += [self._portal, self._thread]
        self._portal = self._thread = None
        self._lock = Lock()

    def _open(self) -> BlockingPortal:
        if self._portal is None:
            begun: Future[BlockingPortal] = Future()
            # No reason for a process to stay: what is open when it ends is closed by then.
            thread = Thread(target=self._run, args=(begun,), name="meterkit", daemon=True)
            thread.start()
            self._portal, self._thread = begun.result(), thread
        return self._portal

    def _close(self) -> None:
        portal, thread, self._portal, self._thread = self._portal, self._thread, None, None
        if portal is not None and thread is not None:
            portal.call(portal.stop)
            thread.join()

    def _run(self, begun: Future[BlockingPortal]) -> None:
        async def serve() -> None:
            async with self._served, BlockingPortal() as portal:
                begun.set_result(portal)
                await portal.sleep_until_stopped()

        try:
            anyio.run(serve)
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)


def _refuse_beside_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise MeterkitError(
        "sync() is for code without an event loop, and one runs in this thread, which the call would block:"
        " await the same method of the kit itself (async with MeterKit(…) as kit)"
    )


_everywhere: WeakSet[LoopThread] = WeakSet()


def _after_fork() -> None:
    for thread in _everywhere:
        thread.after_fork()


def _at_exit() -> None:
    for thread in list(_everywhere):
        thread.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
