"""A plans file that is read again when it has changed."""

from __future__ import annotations

import logging
import os
import signal
from asyncio import Event, gather, get_running_loop, to_thread, wait_for
from contextlib import contextmanager, suppress
from threading import Lock, current_thread, main_thread
from typing import TYPE_CHECKING, Final, TypeVar

from meterkit.catalog.load import load
from meterkit.errors import PlansError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from meterkit.catalog.models import Catalog

T = TypeVar("T")

_logger = logging.getLogger("meterkit.plans")
_LOOK_EVERY_S: Final = 2.0


@contextmanager
def _on_hangup(call: Callable[[], None]) -> Generator[None]:
    """Handle SIGHUP, which would end the process, where nothing else does and there is no terminal.

    The end of a terminal session still ends what was started in it.
    """
    is_ours = (
        current_thread() is main_thread()
        and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        and not os.isatty(0)
    )
    if not is_ours:
        yield
        return
    loop = get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


class WatchedPlans:
    """A plans file, and what it was when it was read last.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._read: tuple[int, ...] | None = None
        self._reading = Lock()

    def read(self, use: Callable[[Catalog], T]) -> T:
        """Read the file, and have it used before anybody reads it again.

        Raises:
            PlansError: the file is refused.
        """
        with self._reading:
            found = self._look()
            result = use(load(self._path))
            self._read = found
            return result

    async def watch(self, reload: Callable[[], Awaitable[object]], *, every_s: float | None = None) -> None:
        """Have it read again after each change and at SIGHUP, until cancelled; a refusal is logged.

        A change counts once the file has been the same for two looks, so that none is read that is half
        written. A link is followed: what it leads to may be swapped, as Kubernetes does with its ConfigMaps.

        Args:
            reload: reads it.
            every_s: how often the file is checked, in seconds; None: every two.
        """
        before, refused, said = self._read, None, ""
        hung_up = Event()
        with _on_hangup(hung_up.set):
            while True:
                with suppress(TimeoutError):
                    await wait_for(hung_up.wait(), _LOOK_EVERY_S if every_s is None else every_s)
                is_asked = hung_up.is_set()
                hung_up.clear()
                now = await to_thread(self._look)
                is_changed = now is not None and now == before and now not in (self._read, refused)
                for error in await gather(reload(), return_exceptions=True) if is_asked or is_changed else ():
                    if isinstance(error, PlansError | SettingsError):
                        refused = now  # What cannot be read at all for now is tried again.
                    if isinstance(error, Exception) and (str(error) != said or is_asked):
                        said = str(error)
                        _logger.error(
                            "%s has changed and is refused; the one before holds: %s", self._path, said
                        )
                before = now

    def _look(self) -> tuple[int, ...] | None:
        """What differs after a change; None where there is no such file."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a text will do
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
