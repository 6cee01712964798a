"""One spool file: an append-only file under a lock, with a header that names its process and its store.

Each record stands in a frame with its length and checksum, so a torn end is recognised and cut off.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, Self

from meterkit.errors import StoreError
from meterkit.redis.local_files import FileLock, make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from meterkit.decisions.keys import Keys

_VERSION: Final = 1
_MAGIC: Final = b"meterkit spool "
_FRAME: Final = struct.Struct("<II")
_RECORD_BYTES_MAX: Final = 1 << 20
FRAME_BYTES_MAX: Final = _RECORD_BYTES_MAX + _FRAME.size
HEADER_BYTES_MAX: Final = 1 << 12
"""The beginning of a file has its header within so many."""


class SpoolError(ValueError):
    """A file is no spool, or its header is damaged."""


class TornError(SpoolError):
    """The last record of a file is torn: its process died while writing, before it confirmed the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolHeader:
    """Whose a spool is.

    Attributes:
        store: the address of the store, without credentials.
        prefix: the first part of its keys.
        shards: how many shards it has.
        producer: who numbers the records, in each shard from 1.
        made_ms: when the file was begun.
    """

    store: str
    prefix: str
    shards: int
    producer: str = ""
    made_ms: int = 0

    @classmethod
    def of(cls, keys: Keys, store: str) -> Self:
        """What the headers of a store's files have in common.

        Args:
            keys: names of its keys.
            store: its address, without credentials.
        """
        return cls(store=store, prefix=keys.prefix, shards=keys.shards)

    @property
    def whose(self) -> str:
        """What tells the store apart from all others."""
        return f"{self.store} {self.prefix} {self.shards}"

    def dump(self) -> bytes:
        """The beginning of a file."""
        return b"%b%d\n%b" % (_MAGIC, _VERSION, frame(json.dumps(asdict(self)).encode()))

    @classmethod
    def read(cls, data: bytes) -> tuple[Self, int]:
        """The header at the beginning of a file, and where the records begin.

        Raises:
            SpoolError: there is none, or it is damaged, or of a newer format.
        """
        line, _, rest = data.partition(b"\n")
        version = line.removeprefix(_MAGIC)
        if not (line.startswith(_MAGIC) and version.isdigit() and len(version) < _FRAME.size):
            raise SpoolError("it does not begin as a spool does")
        if int(version) > _VERSION:
            newer = f"it is of format {int(version)}, and this release reads up to {_VERSION}"
            raise SpoolError(f"{newer}; upgrade this process")
        records, _, _ = split(rest)
        if not records:
            raise SpoolError("its header is damaged")
        try:
            return cls(**json.loads(records[0])), len(line) + 1 + len(frame(records[0]))
        except (ValueError, TypeError) as error:
            raise SpoolError("its header is damaged") from error


def frame(record: bytes) -> bytes:
    """A record with its length and checksum."""
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


def split(data: bytes) -> tuple[list[bytes], int, bool]:
    """The whole records at the beginning of some bytes.

    Returns:
        The records; how many bytes they take; whether what follows is damaged, not only cut short.
    """
    records: list[bytes] = []
    at = 0
    while len(data) - at >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(data, at)
        if length > _RECORD_BYTES_MAX:
            return records, at, True
        record = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(record) < length:
            break
        if zlib.crc32(record) != checksum:
            return records, at, True
        records.append(record)
        at += _FRAME.size + length
    return records, at, False


# The file and its lock.

SUFFIX: Final = ".spool"
DAMAGED: Final = ".damaged"
"""Of what was put aside."""

# A process that checks the lock holds it for a moment.
_LOOKED_AT_S: Final = 0.01
_READ_BYTES: Final = 1 << 18


class SpoolFile:
    """A file whose lock is held. The kernel drops the lock with the process, which shows dead ones.

    Attributes:
        path: where it lies.
        header: whose it is.
        begins: where the records begin.
        end: where the next record goes.
    """

    def __init__(self, path: Path, lock: FileLock, header: SpoolHeader, *, begins: int, end: int) -> None:
        self.path = path
        self.header = header
        self.begins = begins
        self.end = end
        self._lock = lock

    @classmethod
    def create(cls, directory: Path, header: SpoolHeader) -> Self:
        """Begin a file.

        Raises:
            SettingsError: the directory cannot be used.
            StoreError, OSError: the file cannot be made or written.
        """
        make_directory(directory)
        path = directory / f"{_name(header)}-{header.producer}{SUFFIX}"
        lock = _lock_of(path)
        try:
            found = cls(path, lock, header, begins=0, end=0)
            found.append(header.dump())
            _sync_directory(directory)
        except BaseException:
            path.unlink(missing_ok=True)
            lock.close()
            raise
        found.begins = found.end
        return found

    @classmethod
    def claim(cls, path: Path) -> Self | None:
        """Take over a file without a holder; None: it has one, or it is gone or empty.

        Raises:
            SpoolError: it cannot be read.
            StoreError, OSError: it cannot be opened.
        """
        lock = FileLock(path)
        if not lock.acquire(timeout_s=_LOOKED_AT_S):
            return None
        try:
            status = os.fstat(lock.fileno())
            if not status.st_nlink or not status.st_size:
                # Sent and removed meanwhile; or its process died before it wrote anything, or is about to.
                if status.st_nlink:
                    path.unlink(missing_ok=True)
                lock.close()
                return None
            header, begins = SpoolHeader.read(os.pread(lock.fileno(), _READ_BYTES, 0))
        except BaseException:
            lock.close()
            raise
        return cls(path, lock, header, begins=begins, end=status.st_size)

    def append(self, data: bytes) -> None:
        """Write to the end, onto the disk; where that fails nothing is added.

        Raises:
            OSError: there is no room, for example.
        """
        self.put_back()
        at = self.end
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(self._lock.fileno(), view, at)
                at, view = at + written, view[written:]
            os.fsync(self._lock.fileno())  # macOS has no fdatasync; at the end of a file it is no cheaper.
        except OSError:
            os.ftruncate(self._lock.fileno(), self.end)
            raise
        self.end = at

    def put_back(self) -> None:
        """Make the file anew where it is not at its place any more, with all that is in it.

        Another process claimed it in the moment before it was locked, as a file without a writer;
        or its directory was removed.

        Raises:
            SettingsError, StoreError, OSError: that cannot be done.
        """
        while not os.fstat(self._lock.fileno()).st_nlink:
            make_directory(self.path.parent)
            lock, at = _lock_of(self.path), 0
            try:
                while at < self.end:
                    at += os.pwrite(lock.fileno(), os.pread(self._lock.fileno(), _READ_BYTES, at), at)
                os.fsync(lock.fileno())
                _sync_directory(self.path.parent)
            except BaseException:
                self.path.unlink(missing_ok=True)
                lock.close()
                raise
            self._lock.close()
            self._lock = lock

    def read(self, at: int) -> tuple[list[bytes], int]:
        """The next records from a place on, and the place behind them; none at the end.

        Raises:
            TornError: what follows is no whole record.
            SpoolError: what follows is damaged.
        """
        data = os.pread(self._lock.fileno(), min(_READ_BYTES, self.end - at), at)
        records, used, is_damaged = split(data)
        if (
            not (records or is_damaged) and at + len(data) < self.end
        ):  # One that is larger than what was read.
            data = os.pread(self._lock.fileno(), min(FRAME_BYTES_MAX, self.end - at), at)
            records, used, is_damaged = split(data)
        if not records and data:
            kind, what = (SpoolError, "are damaged") if is_damaged else (TornError, "are no whole record")
            raise kind(f"{self.end - at} bytes at its end {what}")
        return records, at + used

    def remove(self) -> None:
        """Remove the file: all that was in it is in the store."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def set_aside(self) -> None:
        """Leave the file to an operator, who examines the damage."""
        try:
            self.path.rename(self.path.with_suffix(DAMAGED))
        finally:
            self.close()

    def close(self) -> None:
        """Leave the file to the next process."""
        self._lock.close()


def _lock_of(path: Path) -> FileLock:
    lock = FileLock(path)
    if not lock.acquire(timeout_s=_LOOKED_AT_S):
        raise OSError(f"{path} is in use")
    return lock


def spools_of(directory: Path, own: SpoolHeader) -> Iterator[Path]:
    """The files of the store that a header is of, the oldest first; also those that are held."""
    try:
        found = [(path.stat().st_mtime, path) for path in directory.glob(f"{_name(own)}-*{SUFFIX}")]
    except OSError:
        return
    for _, path in sorted(found):
        yield path


def _name(header: SpoolHeader) -> str:
    """What the names of a store's files begin with."""
    return blake2b(header.whose.encode(), digest_size=8).hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
class SpoolInfo:
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


def list_spools(directory: Path, keys: Keys, *, store: str, now_ms: int) -> Sequence[SpoolInfo]:
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
    own = SpoolHeader.of(keys, store)
    seen = [_look(path, own, now_ms) for path in paths]
    return sorted((one for one in seen if one is not None), key=lambda one: one.begun_ms)


def check_sendable(header: SpoolHeader, own: SpoolHeader, now_ms: int) -> tuple[SpoolState, str] | None:
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


def _look(path: Path, own: SpoolHeader, now_ms: int) -> SpoolInfo | None:
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
    """Whether a process has it; one that takes it over at this very moment tries again."""
    lock = FileLock(path)
    try:
        return not lock.acquire(shared=True)
    finally:
        lock.close()
