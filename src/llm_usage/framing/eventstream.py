"""AWS's binary event streams, incrementally.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html describes the frames.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final
from zlib import crc32

from llm_usage.framing.incremental import EVENT_BYTES_MAX, IncrementalReader, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_usage.framing.incremental import LargeReader, Steps, Work

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">H")
PRELUDE_BYTES: Final = _PRELUDE.size
_FRAME_BYTES_MIN: Final = _PRELUDE.size + _CRC.size
_TEXT: Final = 7
# Widths of the header values that are not text, by their type; 6 (bytes) has a length of its own.
_WIDTHS: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES: Final = 6


def is_prelude(data: bytes) -> bool:
    """Whether bytes begin with the prelude of a frame, by its checksum."""
    return len(data) >= _PRELUDE.size and data[8:12] == _CRC.pack(crc32(data[:8]))


class EventStreamReader(IncrementalReader):
    """Passes on the text headers and the payload of each frame.

    Args:
        emit: takes both.
        large: makes a reader of a payload that is larger than what is kept, from the headers.

    Attributes:
        corrupt: whether a checksum failed. A frame whose own checksum fails is left out, unless it is so
            large that it was read before; after a wrong prelude nothing can be read any more.
    """

    __slots__ = ("_emit", "_open_large")

    def __init__(
        self,
        emit: Callable[[Mapping[str, str], bytes], Work | None],
        large: Callable[[Mapping[str, str]], LargeReader],
    ) -> None:
        super().__init__()
        self._emit = emit
        self._open_large = large

    def _run(self) -> Steps:
        while (yield from self._has(_PRELUDE.size)):
            total, headers, _ = _PRELUDE.unpack_from(self._data, self._at)
            right = is_prelude(self._data[self._at : self._at + _PRELUDE.size])
            if not right or not _FRAME_BYTES_MIN + headers <= total or headers > EVENT_BYTES_MAX:
                self.corrupt = True
                return
            payload = _PRELUDE.size + headers
            size = total if total <= EVENT_BYTES_MAX else payload
            if not (yield from self._has(size)):
                return
            frame = self._data[self._at : self._at + size]
            self._at += size
            names = _headers(frame[_PRELUDE.size : payload])
            if size < total:
                if names is None:
                    self.corrupt = True
                    return
                left = total - payload - _CRC.size
                yield from self._read_payload(self._open_large(names), left, crc32(frame))
            elif names is None or _CRC.pack(crc32(frame[: -_CRC.size])) != frame[-_CRC.size :]:
                self.corrupt = True
            else:
                yield from run_steps(self._emit(names, frame[payload : -_CRC.size]))
            yield False

    def _read_payload(self, reader: LargeReader, left: int, crc: int) -> Steps:
        """Read a payload as it comes, and its checksum."""
        while left and (yield from self._has(1)):
            payload = self._data[self._at : self._at + left]
            self._at += len(payload)
            left -= len(payload)
            crc = crc32(payload, crc)
            yield from run_steps(reader.feed(payload))
        reader.end()
        if (yield from self._has(_CRC.size)):
            self.corrupt |= not self._data.startswith(_CRC.pack(crc), self._at)
            self._at += _CRC.size


def _headers(data: bytes) -> dict[str, str] | None:
    """The headers that are texts, or None where the bytes are no headers."""
    found: dict[str, str] = {}
    at = 0
    try:
        while at < len(data):
            name_end = at + 1 + data[at]
            name, kind = data[at + 1 : name_end], data[name_end]
            at = name_end + 1
            if kind in (_TEXT, _BYTES):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                if kind == _TEXT:
                    found[name.decode("utf-8", "replace")] = data[at : at + length].decode("utf-8", "replace")
            else:
                length = _WIDTHS[kind]
            at += length
    except (IndexError, KeyError, struct.error):
        return None
    return found if at == len(data) else None
