"""One call in a thread of its own, for which nobody need wait: not a loop that ends, nor the process."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_daemon_thread"]

T = TypeVar("T")


def in_daemon_thread(call: Callable[[], T], *, name: str) -> Future[T]:
    """Have something called that blocks, perhaps for ever; who gives up waiting ends it for nobody else."""
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody may wait for it
            found.set_exception(error)
        else:
            found.set_result(result)

    Thread(target=run, name=name, daemon=True).start()
    return found
