"""Blocking calls in daemon threads, which delay neither the end of an event loop nor that of the process."""

from __future__ import annotations

from asyncio import wrap_future
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from threading import RLock, Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_P = ParamSpec("_P")
_T = TypeVar("_T")

_imported: dict[str, ModuleType] = {}
_importing = RLock()


def in_daemon_thread(call: Callable[[], _T], *, name: str) -> Future[_T]:
    """Run a call that may block for ever; a caller that stops waiting does not end it for the others."""
    found: Future[_T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - the waiting caller handles it
            found.set_exception(error)
        else:
            found.set_result(result)

    Thread(target=run, name=name, daemon=True).start()
    return found


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function that blocks, without blocking the event loop."""
    return await wrap_future(in_daemon_thread(partial(call, *args, **kwargs), name="meterkit-call"))


def import_alone(name: str) -> ModuleType:
    """Import a module that needs redis-py while no other thread does.

    Where two threads import different parts of a package at once, Python may give one of them a module that
    is not finished, and redis-py cannot be used in that process any more.
    """
    with _importing:
        return import_module(name)


async def import_in_thread(name: str) -> ModuleType:
    """Import a module in a thread at its first use: redis-py takes 100 ms, in which requests would wait."""
    if name not in _imported:
        _imported[name] = await in_thread(import_alone, name)
    return _imported[name]
