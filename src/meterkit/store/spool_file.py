"""Spool files: append-only, locked by their process, with a header that names the store.

Each record is framed with length and checksum, so that a torn end is detected and cut off.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, Self

from meterkit.decisions.periods import DAY_MS
from meterkit.errors import SettingsError, StoreError
from meterkit.redis.local_files import FileLock, check_directory, make_directory, unusable_spools

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
"""Largest header, from the beginning of the file."""
SpoolState = Literal["held", "left", "refused", "foreign", "damaged"]
SPOOL_STATES: Final[tuple[SpoolState, ...]] = ("held", "left", "refused", "foreign", "damaged")
"""``held``: a process has it. ``left``: its process is dead, and the next one sends it. ``refused``:
never sent, too old or unreadable. ``foreign``: of another store. ``damaged``: renamed because of damage."""
DAYS_MAX: Final = 7
"""The store has a producer's last number for eight days: older records might be applied twice."""


class SpoolError(ValueError):
    """A file is no spool, or its header is damaged."""


class TornError(SpoolError):
    """The last record of a file is torn: its process died while writing, before it confirmed the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolHeader:
    """Header of a spool file.

    Attributes:
        store: address of the store, without credentials.
        prefix: prefix of its keys.
        shards: number of shards.
        producer: producer that numbers the records, in each shard from 1.
        made_ms: time at which the file was created.
    """

    store: str
    prefix: str
    shards: int
    producer: str = ""
    made_ms: int = 0

    @classmethod
    def of(cls, keys: Keys, store: str) -> Self:
        """Common header of a store's files.

        Args:
            keys: names of its keys.
            store: its address, without credentials.
        """
        return cls(store=store, prefix=keys.prefix, shards=keys.shards)

    @property
    def store_id(self) -> str:
        """Text that identifies the store."""
        return f"{self.store} {self.prefix} {self.shards}"

    def dump(self) -> bytes:
        """Serialize the beginning of a file."""
        return b"%b%d\n%b" % (_MAGIC, _VERSION, frame(json.dumps(asdict(self)).encode()))

    @classmethod
    def read(cls, data: bytes) -> tuple[Self, int]:
        """Read the header of a file, and the position of its records.

        Raises:
            SpoolError: it is missing, damaged, or of a newer format.
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
    """Frame a record with its length and checksum."""
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


def split(data: bytes) -> tuple[list[bytes], int, bool]:
    """Split bytes into complete records.

    Returns:
        The records; their size in bytes; whether the rest is damaged, not only cut short.
    """
    records: list[bytes] = []
    at = 0
    while len(data) - at >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(data, at)
        if not 0 < length <= _RECORD_BYTES_MAX:
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
"""Suffix of damaged files."""

# Another process may hold the lock for a moment, to check it.
_LOCK_WAIT_S: Final = 0.01
_READ_BYTES: Final = 1 << 18


class SpoolFile:
    """A locked spool file. The kernel drops the lock of a dead process, so that others find its file.

    Attributes:
        path: of the file.
        header: of the file.
        begins: position of the first record.
        end: position behind the last record.
    """

    def __init__(self, path: Path, lock: FileLock, header: SpoolHeader, *, begins: int, end: int) -> None:
        self.path = path
        self.header = header
        self.begins = begins
        self.end = end
        self._lock = lock

    @classmethod
    def create(cls, directory: Path, header: SpoolHeader) -> Self:
        """Create a file.

        Raises:
            SettingsError: the directory cannot be used.
            StoreError, OSError: the file cannot be created or written.
        """
        make_directory(directory, unusable=unusable_spools)
        path = directory / f"{_file_prefix(header)}-{header.producer}{SUFFIX}"
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
        """Take over a file that no process has locked; None: it is locked, removed or empty.

        Raises:
            SpoolError: it cannot be read.
            StoreError, OSError: it cannot be opened.
        """
        lock = FileLock(path, creates=False)
        try:
            if not lock.acquire(timeout_s=_LOCK_WAIT_S):
                return None
        except FileNotFoundError:
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
        """Append and sync data; if that fails, nothing is added.

        Raises:
            OSError: the disk is full, for example.
        """
        self.recreate_if_removed()
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

    def recreate_if_removed(self) -> None:
        """Create the file again with its contents, if it was removed.

        Another process may have claimed it before it was locked; or its directory was removed.

        Raises:
            SettingsError, StoreError, OSError: the file cannot be created.
        """
        while not os.fstat(self._lock.fileno()).st_nlink:
            make_directory(self.path.parent, unusable=unusable_spools)
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
        """Read the next records from a position, and the position behind them; none at the end.

        Raises:
            TornError: the rest is an incomplete record, or zeros, as a power failure leaves them.
            SpoolError: the rest is damaged.
        """
        data = os.pread(self._lock.fileno(), min(_READ_BYTES, self.end - at), at)
        records, used, is_damaged = split(data)
        if not (records or is_damaged) and at + len(data) < self.end:  # The record is larger.
            data = os.pread(self._lock.fileno(), min(FRAME_BYTES_MAX, self.end - at), at)
            records, used, is_damaged = split(data)
        if not records and data:
            is_torn = not is_damaged or not data.strip(b"\0")
            kind, what = (TornError, "are no whole record") if is_torn else (SpoolError, "are damaged")
            raise kind(f"{self.end - at} bytes at its end {what}")
        return records, at + used

    def remove(self) -> None:
        """Remove the file: the store has all its records."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def set_aside(self) -> None:
        """Rename a damaged file, for an operator to examine."""
        try:
            self.path.rename(self.path.with_suffix(DAMAGED))
        finally:
            self.close()

    def close(self) -> None:
        """Unlock the file: another process may claim it."""
        self._lock.close()


def _lock_of(path: Path) -> FileLock:
    lock = FileLock(path)
    if not lock.acquire(timeout_s=_LOCK_WAIT_S):
        raise OSError(f"{path} is in use")
    return lock


def find_spools(directory: Path, own: SpoolHeader) -> Iterator[Path]:
    """Files of a header's store, the oldest first, including locked ones.

    Raises:
        OSError: this user may not read the directory.
    """
    found: list[tuple[float, Path]] = []
    with suppress(FileNotFoundError):  # There is no directory yet.
        for path in directory.iterdir():  # A glob passes over what cannot be read.
            if path.name.startswith(f"{_file_prefix(own)}-") and path.suffix == SUFFIX:
                with suppress(FileNotFoundError):  # Another process has sent it meanwhile.
                    found.append((path.lstat().st_mtime, path))
    for _, path in sorted(found):
        yield path


def _file_prefix(header: SpoolHeader) -> str:
    """Common prefix of the file names of a store."""
    return blake2b(header.store_id.encode(), digest_size=8).hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    lock = FileLock(path, creates=False)
    try:
        return not lock.acquire(shared=True)
    finally:
        lock.close()
