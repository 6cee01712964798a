"""The spools in a directory: which process left them, their size and age, and why one was not sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.errors import StoreError
from meterkit.redis.filelock import FileLock
from meterkit.spool.spool_file import DAMAGED, HEADER_BYTES_MAX, SUFFIX, Header, SpoolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit.decisions.keys import Keys

SpoolState = Literal["held", "left", "refused", "foreign", "damaged"]
SPOOL_STATES: Final[tuple[SpoolState, ...]] = ("held", "left", "refused", "foreign", "damaged")
"""A process has it; none does any more, and the next one sends it; it is never sent, being too old, or not to
be read; it is of another store; what was damaged in it was put aside."""
SPOOL_BYTES_MAX: Final = 1 << 30
"""Of one event loop's spool: four million settlements or so. What comes then is counted as lost."""
DAYS_MAX: Final = 7
"""The store keeps a producer's last number for eight days: what is older might be applied twice."""
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSeen:
    """A file in the directory of spools.

    Attributes:
        state: see :data:`SPOOL_STATES`.
        size: in bytes.
        begun_ms: when it was begun; of what cannot be read, when it was last written.
        why: why it is not sent; empty: it is.
    """

    path: Path
    state: SpoolState
    size: int
    begun_ms: int
    why: str = ""


def look_at_spools(directory: Path, keys: Keys, *, store: str, now_ms: int) -> Sequence[SpoolSeen]:
    """What lies in a directory of spools, the oldest first; nothing, where there is none.

    Args:
        directory: the setting ``spool_dir``.
        keys: names of the keys of this store.
        store: its address, without credentials.
        now_ms: this process's clock.

    Raises:
        OSError: this user may not look into it.
    """
    try:
        paths = [path for path in directory.iterdir() if path.suffix in {SUFFIX, DAMAGED}]
    except FileNotFoundError:
        return []
    own = Header.of(keys, store)
    seen = [_look(path, own, now_ms) for path in paths]
    return sorted((one for one in seen if one is not None), key=lambda one: one.begun_ms)


def why_not_sent(header: Header, own: Header, now_ms: int) -> tuple[SpoolState, str] | None:
    """Why the spool of a process that is gone is never sent to a store; None: it is.

    Args:
        header: the file's.
        own: what those of the store's files have in common.
        now_ms: this process's clock.
    """
    if header.whose != own.whose:
        whose = f"{header.store}, prefix {header.prefix}, {header.shards} shards"
        return "foreign", f"it belongs to another store: {whose}"
    days = (now_ms - header.made_ms) // _DAY_MS
    if days >= DAYS_MAX:
        return "refused", (
            f"it was begun {days} days ago, and the store has forgotten what it has applied of it: sent"
            " again, it might be billed twice. Look whether its usage is recorded, record what is not by"
            " hand, and remove the file"
        )
    return None


def _look(path: Path, own: Header, now_ms: int) -> SpoolSeen | None:
    try:
        status = path.stat()
        with path.open("rb") as file:
            begin = file.read(HEADER_BYTES_MAX)
        is_held = _is_held(path)
    except (FileNotFoundError, StoreError):
        return None  # Sent meanwhile, or not a file of meterkit.
    written_ms = int(status.st_mtime * 1000)
    if not status.st_size:
        return None  # Its process died before it wrote anything, or is just about to.
    if path.suffix == DAMAGED:
        return SpoolSeen(path=path, state="damaged", size=status.st_size, begun_ms=written_ms)
    try:
        header, _ = Header.read(begin)
    except SpoolError as error:
        why = f"it cannot be read: {error}"
        return SpoolSeen(path=path, state="refused", size=status.st_size, begun_ms=written_ms, why=why)
    state: SpoolState = "held"
    why = ""
    if not is_held:
        state, why = why_not_sent(header, own, now_ms) or ("left", "")
    return SpoolSeen(path=path, state=state, size=status.st_size, begun_ms=header.made_ms, why=why)


def _is_held(path: Path) -> bool:
    """Whether a process has it; one that takes it over at this very moment tries again."""
    lock = FileLock(path)
    try:
        return not lock.acquire(shared=True)
    finally:
        lock.close()
