"""Locks between processes that end with their holder."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

_POLL_S: Final = 0.005


class FileLock:
    """An flock on the file at ``path``, which is made if it is missing.

    The kernel drops it with the last process that holds it, however that ends. A process that is forked
    does not hold the locks of its parent: they belong to open files, which it inherits and closes. For the
    same reason a lock is given up by closing the file: unlocking would take it from everyone who shares it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._descriptor is not None

    def fileno(self) -> int:
        """The open file, for a child that shall hold the lock too.

        Raises:
            ValueError: the lock is not held.
        """
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def acquire(self, *, shared: bool = False, timeout_s: float = 0) -> bool:
        """Take the lock, alone or together with others who ask for it ``shared``.

        Returns:
            Whether it was had within ``timeout_s`` seconds.

        Raises:
            FileNotFoundError: the file's directory is missing.
            StoreError: the file belongs to another user or is a symbolic link, or its file system knows no
                locks.
        """
        how = fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        deadline = time.monotonic() + timeout_s
        self._open()
        while True:
            try:
                fcntl.flock(self.fileno(), how)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self.close()
                    return False
                time.sleep(_POLL_S)
            except OSError as error:
                self.close()
                raise StoreError(
                    f"{self._path} cannot be locked: {error.strerror}", executed=False
                ) from error
            else:
                return True

    def close(self) -> None:
        """Give the lock up. Repeatable."""
        with _forking:
            descriptor, self._descriptor = self._descriptor, None
            _open_locks.discard(self)
            if descriptor is not None:
                os.close(descriptor)

    def forget(self) -> None:
        """In a child: close what the parent holds; the parent keeps it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> None:
        with _forking:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except PermissionError as error:
                raise StoreError(f"{self._path} belongs to another user", executed=False) from error
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise StoreError(
                    f"{self._path} is a symbolic link, and no file of meterkit's is one; remove it",
                    executed=False,
                ) from error
            _open_locks.add(self)


_forking: Final = threading.Lock()
_open_locks: Final[set[FileLock]] = set()


def _forget_in_child() -> None:
    for lock in _open_locks:
        lock.forget()
    _open_locks.clear()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forget_in_child
)
