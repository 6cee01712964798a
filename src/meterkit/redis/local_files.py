"""Local files: locks between processes, which end with their holder, and directories private to a user."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meterkit.errors import SettingsError, StoreError
from meterkit.redis.url import unusable_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_POLL_S: Final = 0.005


class FileLock:
    """flock on the file at ``path``, which is made if it is missing, unless ``creates`` is false.

    The kernel drops it with the last process that holds it, however that ends. A process that is forked
    does not hold the locks of its parent: they belong to open files, which it inherits and closes. For the
    same reason a lock is released by closing the file: unlocking would release it for all who share it.
    """

    def __init__(self, path: Path, *, creates: bool = True) -> None:
        self._path = path
        self._flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if creates else 0)
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
        """Acquire the lock, exclusive or ``shared``.

        Returns:
            Whether it was acquired within ``timeout_s`` seconds.

        Raises:
            FileNotFoundError: the file's directory is missing, or the file, and it is not to be made.
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
        """Release the lock. Idempotent."""
        with _forking:
            descriptor, self._descriptor = self._descriptor, None
            _open_locks.discard(self)
            if descriptor is not None:
                os.close(descriptor)

    def forget(self) -> None:
        """Close the parent's file in a forked child; the parent keeps the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> None:
        with _forking:
            try:
                self._descriptor = os.open(self._path, self._flags, 0o600)
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


# Reply of Linux to SO_PEERCRED: pid, uid, gid; of macOS and the BSDs to LOCAL_PEERCRED: version, uid, …
_LINUX_PEER: Final = struct.Struct("=iII")
_BSD_PEER: Final = struct.Struct("=II")
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1


def make_directory(directory: Path, *, unusable: Callable[[str], SettingsError] = unusable_store) -> None:
    """Make a directory for this user alone where it is missing, and keep its files out of Git.

    Args:
        directory: to make.
        unusable: makes the error, which names the setting of the directory.

    Raises:
        SettingsError: it cannot be made, may not be written in, or is not this user's alone.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(directory, os.W_OK | os.X_OK)
    except OSError as error:
        raise unusable(f"the directory {directory} cannot be made: {error.strerror}") from error
    if not usable:
        raise unusable(f"this user may not write in the directory {directory}")
    check_directory(directory, unusable=unusable)
    with suppress(FileExistsError):
        ignored = directory / ".gitignore"
        ignored.touch(mode=0o600, exist_ok=False)
        ignored.write_bytes(b"# A database of meterkit.\n*\n")


def check_directory(directory: Path, *, unusable: Callable[[str], SettingsError] = unusable_store) -> None:
    """Check that no other user can write into a directory, and that no link in it leads elsewhere.

    Args:
        directory: to check.
        unusable: makes the error, which names the setting of the directory.

    Raises:
        SettingsError: it belongs to another user, others may write in it, or it holds a symbolic link.
    """
    cure = f"; name a directory of this user alone, for example {directory / 'meterkit'}, which is made"
    for found in (directory.lstat(), directory.stat()):
        # A link made by root is trusted.
        if found.st_uid != os.geteuid() and not (stat.S_ISLNK(found.st_mode) and found.st_uid == 0):
            raise unusable(
                f"the directory {directory} belongs to user {found.st_uid}, and this is user"
                f" {os.geteuid()}{cure}"
            )
    if directory.stat().st_mode & 0o022:
        raise unusable(f"others may write in the directory {directory}: chmod go-w {directory}, or{cure[1:]}")
    for folder in (directory, directory / "appendonlydir"):
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise unusable(
                        f"{entry.path} is a symbolic link, and the server would write through it;"
                        " remove it, or name another directory"
                    )


def unusable_spools(why: str) -> SettingsError:
    """Error for a directory of spools that cannot be used."""
    return SettingsError("spool_dir", f"METERKIT_SPOOL_DIR: {why}")


def check_peer(connection: socket.socket, address: Path) -> None:
    """Check that the server on a unix socket runs as this user.

    Raises:
        SettingsError: it is another user.
    """
    if sys.platform == "linux":
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_PEER.size)
        peer = int(_LINUX_PEER.unpack(data)[1])
    else:  # pragma: no cover - not run on Linux
        data = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 128)
        peer = int(_BSD_PEER.unpack_from(data)[1])
    if peer != os.geteuid():
        raise unusable_store(f"user {peer} answers on the socket {address}, and this is user {os.geteuid()}")


def is_private_folder(folder: Path) -> bool:
    """Whether this is a folder, not a link, that no other user can read or write."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
