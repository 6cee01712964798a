"""States of spool files: which one is sent after its process died, which one is refused, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.periods import DAY_MS
from meterkit.errors import SettingsError, StoreError
from meterkit.redis.local_files import FileLock, check_directory, unusable_spools
from meterkit.store.spool_file import DAMAGED, HEADER_BYTES_MAX, SUFFIX, SpoolError, SpoolHeader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit.decisions.keys import Keys

SpoolState = Literal["held", "left", "refused", "foreign", "damaged"]
SPOOL_STATES: Final[tuple[SpoolState, ...]] = ("held", "left", "refused", "foreign", "damaged")
"""``held``: a process has it. ``left``: its process is dead, and the next one sends it. ``refused``:
never sent, too old or unreadable. ``foreign``: of another store. ``damaged``: renamed because of damage."""
DAYS_MAX: Final = 7
"""The store has a producer's last number for eight days: older records might be applied twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolInfo:
    """A file in the directory of spools.

    Attributes:
        state: see :data:`SPOOL_STATES`.
        size: in bytes.
        begun_ms: time of its creation; if it cannot be read, of its last write.
        why: reason why it is not sent; empty: it is sent.
    """

    path: Path
    state: SpoolState
    size: int
    begun_ms: int
    why: str = ""


def list_spools(directory: Path, keys: Keys, *, store: str, now_ms: int) -> Sequence[SpoolInfo]:
    """List the files in a directory of spools, the oldest first; empty if there is no directory.

    Args:
        directory: the setting ``spool_dir``.
        keys: names of the keys of this store.
        store: its address, without credentials.
        now_ms: this process's clock.

    Raises:
        OSError: this user may not read it.
    """
    try:
        paths = [path for path in directory.iterdir() if path.suffix in {SUFFIX, DAMAGED}]
    except FileNotFoundError:
        return []
    own = SpoolHeader.of(keys, store)
    seen = [_inspect_file(path, own, now_ms) for path in paths]
    return sorted((one for one in seen if one is not None), key=lambda one: one.begun_ms)


def reason_unusable(directory: Path) -> str:
    """Return why spools cannot be written in a directory, which may be missing; empty if they can."""
    try:
        made = nearest_existing(directory)
        if not made.is_dir():
            return f"{made} is no directory"
        if not os.access(made, os.W_OK | os.X_OK):
            return f"this user may not write in {made}"
        if made == directory:
            check_directory(directory, unusable=unusable_spools)
    except SettingsError as error:
        return str(error)
    except OSError as error:  # Of a parent that this user may not enter.
        return f"{error.filename}: {error.strerror}"
    return ""


def nearest_existing(directory: Path) -> Path:
    """Return the directory, or its nearest existing parent.

    Raises:
        OSError: this user may not see it.
    """
    return next(folder for folder in (directory, *directory.parents) if folder.exists())


def check_sendable(header: SpoolHeader, expected: SpoolHeader, now_ms: int) -> tuple[SpoolState, str] | None:
    """Check if a dead process's spool may be sent to a store; None: it may, otherwise state and reason.

    Args:
        header: of the file.
        expected: common header of the store's files.
        now_ms: this process's clock.
    """
    if header.store_id != expected.store_id:
        whose = f"{header.store}, prefix {header.prefix}, {header.shards} shards"
        return "foreign", f"it belongs to another store: {whose}"
    days = (now_ms - header.made_ms) // DAY_MS
    if days >= DAYS_MAX:
        return "refused", (
            f"it was begun {days} days ago, and the store no longer knows which of its usage was applied:"
            " sent again, it might be billed twice. Check whether its usage is recorded, record by hand what"
            " is missing, and remove the file"
        )
    return None


def _inspect_file(path: Path, own: SpoolHeader, now_ms: int) -> SpoolInfo | None:
    try:
        status = path.stat()
        with path.open("rb") as file:
            begin = file.read(HEADER_BYTES_MAX)
        is_held = _is_held(path)
    except (FileNotFoundError, StoreError):
        return None  # Sent meanwhile, or no file of meterkit.
    written_ms = int(status.st_mtime * 1000)
    if not status.st_size:
        return None  # Its process died before it wrote anything, or is just about to.
    if path.suffix == DAMAGED:
        return SpoolInfo(path=path, state="damaged", size=status.st_size, begun_ms=written_ms)
    try:
        header, _ = SpoolHeader.read(begin)
    except SpoolError as error:
        why = f"it cannot be read: {error}"
        return SpoolInfo(path=path, state="refused", size=status.st_size, begun_ms=written_ms, why=why)
    state: SpoolState = "held"
    why = ""
    if not is_held:
        state, why = check_sendable(header, own, now_ms) or ("left", "")
    return SpoolInfo(path=path, state=state, size=status.st_size, begun_ms=header.made_ms, why=why)


def _is_held(path: Path) -> bool:
    """Whether a process has locked the file; a process about to claim it tries again."""
    lock = FileLock(path)
    try:
        return not lock.acquire(shared=True)
    finally:
        lock.close()
