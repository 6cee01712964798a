"""AWS's binary event streams, incrementally.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html describes the frames.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final
from zlib import crc32

from meterkit.asgi.usage.blocks import EVENT_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.asgi.usage.blocks import Gate

__all__ = ["EventStream"]

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">H")
_FRAME_BYTES_MIN: Final = _PRELUDE.size + _CRC.size
_TEXT: Final = 7
# Widths of the header values that are not text, by their type; 6 (bytes) has a length of its own.
_WIDTHS: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES: Final = 6


class EventStream:
    """Passes on the text headers and the payload of each frame.

    Attributes:
        corrupt: whether a checksum failed. A frame whose own checksum fails is left out; after a wrong
            prelude nothing can be read any more.
    """

    __slots__ = ("_buffer", "_emit", "_gate", "_lost", "_to_skip", "corrupt")

    def __init__(self, emit: Callable[[Mapping[str, str], bytes], None], gate: Gate) -> None:
        self._emit = emit
        self._gate = gate
        self._buffer = bytearray()
        self._to_skip = 0
        self._lost = False
        self.corrupt = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._lost:
            return
        if self._to_skip:
            skipped = min(self._to_skip, len(chunk))
            self._to_skip -= skipped
            chunk = chunk[skipped:]
        self._buffer += chunk
        while self._take():
            pass

    def close(self) -> None:
        """The stream is over; a frame that has not ended says nothing."""

    def _take(self) -> bool:
        """Take one frame off the buffer; False where there is no whole one."""
        buffer = self._buffer
        if len(buffer) < _PRELUDE.size:
            return False
        total, headers, crc = _PRELUDE.unpack_from(buffer)
        if crc32(buffer[:8]) != crc or total < _FRAME_BYTES_MIN or headers > total - _FRAME_BYTES_MIN:
            self.corrupt = self._lost = True
            buffer.clear()
            return False
        if total > EVENT_BYTES_MAX:
            self._gate.skipped += 1
            self._to_skip = max(0, total - len(buffer))
            del buffer[:total]
            return bool(buffer)
        if len(buffer) < total:
            return False
        frame = bytes(buffer[:total])
        del buffer[:total]
        (crc,) = _CRC.unpack_from(frame, total - _CRC.size)
        payload = _PRELUDE.size + headers
        names = _headers(frame[_PRELUDE.size : payload])
        if crc32(frame[: -_CRC.size]) != crc or names is None:
            self.corrupt = True
        else:
            self._emit(names, frame[payload : -_CRC.size])
        return True


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
