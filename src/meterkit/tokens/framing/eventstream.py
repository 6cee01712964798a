"""AWS's binary event streams, incrementally.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html describes the frames.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final
from zlib import crc32

from meterkit.tokens.framing.work import EVENT_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from meterkit.tokens.framing.work import Large, Work

__all__ = ["EventStream"]

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">H")
_FRAME_BYTES_MIN: Final = _PRELUDE.size + _CRC.size
_TEXT: Final = 7
# Widths of the header values that are not text, by their type; 6 (bytes) has a length of its own.
_WIDTHS: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES: Final = 6


class _LargeFrame:
    """A frame whose payload is too large to be kept."""

    __slots__ = ("_crc", "_left", "_reader", "_tail")

    def __init__(self, head: bytes, payload_bytes: int, reader: Large) -> None:
        self._crc = crc32(head)
        self._left = payload_bytes
        self._reader = reader
        self._tail = b""

    def feed(self, data: bytes) -> Generator[None, None, bytes]:
        """Take the next bytes; those that follow the frame are returned."""
        payload = data[: self._left]
        self._left -= len(payload)
        self._crc = crc32(payload, self._crc)
        yield from self._reader.feed(payload)
        data = data[len(payload) :]
        missing = _CRC.size - len(self._tail)
        self._tail += data[:missing]
        return data[missing:]

    @property
    def ended(self) -> bool:
        return len(self._tail) == _CRC.size

    def end(self) -> bool:
        """Whether its checksum is right, or has not come."""
        self._reader.end()
        return not self.ended or self._tail == _CRC.pack(self._crc)


class EventStream:
    """Passes on the text headers and the payload of each frame.

    Args:
        emit: takes both.
        large: makes a reader of a payload that is larger than what is kept, from the headers.

    Attributes:
        corrupt: whether a checksum failed. A frame whose own checksum fails is left out, unless it is so
            large that it was read before; after a wrong prelude nothing can be read any more.
    """

    __slots__ = ("_buffer", "_emit", "_large", "_lost", "_open_large", "corrupt")

    def __init__(
        self,
        emit: Callable[[Mapping[str, str], bytes], Work | None],
        large: Callable[[Mapping[str, str]], Large],
    ) -> None:
        self._emit = emit
        self._open_large = large
        self._large: _LargeFrame | None = None
        self._buffer = bytearray()
        self._lost = False
        self.corrupt = False

    def feed(self, chunk: bytes) -> Work:
        """Take the next bytes of the stream."""
        if self._lost:
            return
        if self._large is not None:
            chunk = yield from self._large.feed(chunk)
            if not self._large.ended:
                return
            self._end_large(self._large)
        self._buffer += chunk
        while (yield from self._take()):
            yield

    def close(self) -> Work:
        """The stream is over; of a frame that has not ended only a large one says something."""
        if self._large is not None:
            self._end_large(self._large)
        yield from ()

    def _end_large(self, large: _LargeFrame) -> None:
        self._large = None
        self.corrupt |= not large.end()

    def _take(self) -> Generator[None, None, bool]:
        """Take one frame off the buffer; False where there is no whole one."""
        buffer = self._buffer
        if len(buffer) < _PRELUDE.size:
            return False
        total, headers, crc = _PRELUDE.unpack_from(buffer)
        payload = _PRELUDE.size + headers
        if crc32(buffer[:8]) != crc or total < _FRAME_BYTES_MIN or headers > total - _FRAME_BYTES_MIN:
            self._lose()
            return False
        if total > EVENT_BYTES_MAX:
            if headers > EVENT_BYTES_MAX:
                self._lose()
            elif len(buffer) >= payload:
                return (yield from self._take_large(total, payload))
            return False
        if len(buffer) < total:
            return False
        frame = bytes(buffer[:total])
        del buffer[:total]
        (crc,) = _CRC.unpack_from(frame, total - _CRC.size)
        names = _headers(frame[_PRELUDE.size : payload])
        if crc32(frame[: -_CRC.size]) != crc or names is None:
            self.corrupt = True
        else:
            yield from self._emit(names, frame[payload : -_CRC.size]) or ()
        return True

    def _take_large(self, total: int, payload: int) -> Generator[None, None, bool]:
        """Begin to read a frame whose headers are in the buffer."""
        buffer = self._buffer
        head = bytes(buffer[:payload])
        names = _headers(head[_PRELUDE.size :])
        if names is None:
            self._lose()
            return False
        rest = bytes(buffer[payload:])
        buffer.clear()
        large = _LargeFrame(head, total - payload - _CRC.size, self._open_large(names))
        buffer += yield from large.feed(rest)
        if large.ended:
            self._end_large(large)
            return True
        self._large = large
        return False

    def _lose(self) -> None:
        self.corrupt = self._lost = True
        self._buffer.clear()


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
