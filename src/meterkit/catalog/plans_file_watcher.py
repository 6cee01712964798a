"""A plans file that is read again when it has changed."""

from __future__ import annotations

import logging
import os
import signal
from asyncio import Event, gather, get_running_loop, to_thread, wait_for
from contextlib import contextmanager, suppress
from threading import Lock, current_thread, main_thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.cancellation import start_task
from meterkit.catalog.load import load
from meterkit.errors import PlansError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from meterkit.catalog.models import Catalog

T = TypeVar("T")

_logger = logging.getLogger("meterkit.plans")
# Together two seconds: a change is found by one check and confirmed by the next.
_CHECK_EVERY_S: Final = 1.5
_CONFIRM_AFTER_S: Final = 0.5


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
            found = self._file_stamp()
            result = use(load(self._path))
            self._read = found
            return result

    async def watch(
        self, reload: Callable[[], Coroutine[Any, Any, object]], *, every_s: float | None = None
    ) -> None:
        """Reload the file within two seconds of a change and at SIGHUP, until cancelled; log a refusal.

        A change counts once two checks have found the same file, so that none is read that is half written.
        A link is followed: what it leads to may be swapped, as Kubernetes does with its ConfigMaps.

        Args:
            reload: reads it.
            every_s: how often the file is checked, in seconds; None: every one and a half.
        """
        before, refused, logged = self._read, None, ""
        every_s = _CHECK_EVERY_S if every_s is None else every_s
        hung_up, pause_s = Event(), every_s
        with _on_hangup(hung_up.set):
            while True:
                with suppress(TimeoutError):
                    await wait_for(hung_up.wait(), pause_s)
                is_asked = hung_up.is_set()
                hung_up.clear()
                now = await to_thread(self._file_stamp)
                is_new = now not in (self._read, refused)
                is_confirmed = is_new and now == before
                pause_s = min(_CONFIRM_AFTER_S, every_s) if is_new and not is_confirmed else every_s
                reading = [start_task(reload())] if is_asked or is_confirmed else []
                for error in await gather(*reading, return_exceptions=True):
                    if isinstance(error, PlansError | SettingsError):
                        refused = now  # What cannot be read at all for now is tried again.
                    if isinstance(error, Exception) and (str(error) != logged or is_asked):
                        logged = str(error)
                        _logger.error(
                            "%s has changed and is refused; the previous one stays in use: %s",
                            self._path,
                            logged,
                        )
                if now == self._read:
                    if logged:
                        _logger.warning("%s is valid again and in use", self._path)
                    refused, logged = None, ""  # The next mistake is news, even if it is the same.
                before = now

    def _file_stamp(self) -> tuple[int, ...]:
        """File identity and times, which differ after a change; empty if there is no such file."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a text will do
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
