"""How a spool file is laid out: a header that says whose it is, then records. Pure.

The first line names the format and its version. What follows are frames: the length and the CRC-32 of a
record, four bytes each, little-endian, and the record. The header is the first of them.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from meterkit.decisions.keys import Keys

__all__ = [
    "FRAME_BYTES_MAX",
    "HEADER_BYTES_MAX",
    "Header",
    "SpoolError",
    "TornError",
    "frame",
    "split",
]

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
    """The last record of a file is not whole: whoever wrote it died over it, and had told nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
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
