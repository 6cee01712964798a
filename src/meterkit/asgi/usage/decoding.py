"""Undoing a response's content coding, on a copy and within bounds."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DECODED_BYTES_MAX", "Inflate"]

DECODED_BYTES_MAX: Final = 64 << 20

_PIECE_BYTES: Final = 64 << 10
_ZLIB_OR_GZIP: Final = 47
_RAW: Final = -15
_HEADER_BYTES: Final = 2
_GZIP: Final = b"\x1f\x8b"
# RFC 1950 section 2.2: the method in the first byte, and a first word that is a multiple of 31.
_DEFLATE: Final = 8
_ZLIB_CHECK: Final = 31


class Inflate:
    """Passes on what gzip or deflate data holds, in pieces of at most 64 KiB.

    Attributes:
        corrupt: whether the data was no such data; how much of it was read is up to the decompressor then.
        too_large: whether it held more than the bound; the rest is not read.
    """

    __slots__ = ("_emit", "_head", "_left", "_stream", "corrupt", "too_large")

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._head = b""
        self._left = DECODED_BYTES_MAX
        self._stream = zlib.decompressobj(_ZLIB_OR_GZIP)
        self.corrupt = self.too_large = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the coded data."""
        if self.corrupt or self.too_large:
            return
        if len(self._head) < _HEADER_BYTES:
            chunk = self._head + chunk
            self._head = chunk[:_HEADER_BYTES]
            if len(chunk) < _HEADER_BYTES:
                return
            if not _has_header(chunk):
                self._stream = zlib.decompressobj(_RAW)
        try:
            self._inflate(chunk)
        except zlib.error:
            self.corrupt = True

    def _inflate(self, data: bytes) -> None:
        while data:
            stream = self._stream
            piece = stream.decompress(data, _PIECE_BYTES)
            self._left -= len(piece)
            if self._left < 0:
                self.too_large = True
                return
            if piece:
                self._emit(piece)
            data = stream.unconsumed_tail
            if stream.eof:
                # Several members may follow one another; anything else after the end is padding.
                data = stream.unused_data
                if not data.startswith(_GZIP):
                    return
                self._stream = zlib.decompressobj(_ZLIB_OR_GZIP)
            elif not data and len(piece) == _PIECE_BYTES:
                self._drain()

    def _drain(self) -> None:
        """Pass on what the decompressor holds back although it has no input left."""
        while not self.too_large:
            piece = self._stream.decompress(b"", _PIECE_BYTES)
            if not piece:
                return
            self._left -= len(piece)
            self.too_large = self._left < 0
            if not self.too_large:
                self._emit(piece)


def _has_header(data: bytes) -> bool:
    """Whether it begins as gzip or zlib data does; servers also send deflate without either."""
    zlib_header = data[0] & 0x0F == _DEFLATE and int.from_bytes(data[:2]) % _ZLIB_CHECK == 0
    return zlib_header or data.startswith(_GZIP)
