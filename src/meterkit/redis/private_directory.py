"""Whether a directory, what lies in it, and who listens in it are this user's own."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meterkit.redis.url import unusable

if TYPE_CHECKING:
    from pathlib import Path

# What Linux answers to SO_PEERCRED: pid, uid, gid; macOS and the BSDs to LOCAL_PEERCRED: version, uid, …
_LINUX_PEER: Final = struct.Struct("=iII")
_BSD_PEER: Final = struct.Struct("=II")
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1


def make_directory(directory: Path) -> None:
    """Make a directory for this user alone where it is missing, and keep its files out of Git.

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
    check_directory(directory)
    with suppress(FileExistsError):
        ignored = directory / ".gitignore"
        ignored.touch(mode=0o600, exist_ok=False)
        ignored.write_bytes(b"# A database of meterkit.\n*\n")


def check_directory(directory: Path) -> None:
    """Check that no other user can write into a directory, and that no link in it leads elsewhere.

    Raises:
        SettingsError: it belongs to another user, others may write in it, or it holds a symbolic link.
    """
    cure = f"; name a directory of this user alone, for example {directory / 'meterkit'}, which is made"
    for found in (directory.lstat(), directory.stat()):
        # A link that root has put there leads where root wants it to.
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
        raise unusable(f"user {peer} answers on the socket {address}, and this is user {os.geteuid()}")


def is_private_folder(folder: Path) -> bool:
    """Whether this is a folder, not a link, that no other user can read or write."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
