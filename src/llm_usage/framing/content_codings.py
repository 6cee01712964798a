"""Content codings (gzip, deflate, br, zstd): decode a response in pieces of bounded size.

gzip and deflate come with Python; br and zstd are decoded if a package that can is installed.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_usage.framing.incremental import Work

PIECE_BYTES: Final = 16 << 10
"""Bytes handed on between two pauses; a reader that is slow on some bytes pauses within them, too."""
DECODED_BYTES_MAX: Final = 64 << 20
"""Decoded bytes that are read of a compressed response."""

_DECODED_PIECE_BYTES: Final = 64 << 10
# Input of the second and third decoder. It is small because a decompressor copies all input that follows the
# end of a member, once for each member.
_INNER_INPUT_BYTES: Final = 4 << 10
_CODINGS_MAX: Final = 3
# zlib's `wbits`: 32 and 15 detect a gzip or a zlib header, -15 expects neither.
_HEADER_WBITS: Final = 47
_RAW_WBITS: Final = -15
_GZIP_MAGIC: Final = b"\x1f\x8b"
# RFC 1950 section 2.2: the method in the first byte, and a first word that is a multiple of 31.
_HEADER_BYTES: Final = 2
_DEFLATE_METHOD: Final = 8
_ZLIB_CHECK: Final = 31
# RFC 9659: the memory that every web client must have for a window.
_ZSTD_WINDOW_MAX: Final = 8 << 20
# Input of `zstandard`, whose output has no bound. A block of 4 bytes may hold 128 KiB: 32 bytes hold 1 MiB.
_ZSTANDARD_INPUT_BYTES: Final = 32

_Decode: TypeAlias = "Callable[[bytes], Iterator[bytes]]"
"""Decodes the next bytes of one coding, in pieces; may raise any exception if they are damaged."""
_DecodeFactory: TypeAlias = "Callable[[], _Decode]"


class ContentDecoder:
    """Undoes the codings of one response, the last one first.

    Args:
        layers: a decode function for each coding, in the order in which the server applied them.

    Attributes:
        corrupt: whether a decompressor refused the data; what it returned before was handed on.
        too_large: whether all layers together decoded more than the bound; the rest is not read.
    """

    __slots__ = ("_bytes_left", "_layers", "corrupt", "too_large")

    def __init__(self, layers: list[_Decode]) -> None:
        self._layers = layers
        self._bytes_left = DECODED_BYTES_MAX
        self.corrupt = self.too_large = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes, in pieces of at most some MiB, mostly 64 KiB.

        A piece may be empty, so that the caller can pause: a decompressor may work long without output.
        """
        if self.corrupt or self.too_large:
            return
        try:
            for piece in self._decode_layer(len(self._layers) - 1, data):
                if self.too_large:
                    return
                yield piece
        except Exception:  # noqa: BLE001 - Each package has its own errors for damaged data.
            self.corrupt = True

    def _decode_layer(self, at: int, data: bytes) -> Iterator[bytes]:
        """Decode the input of one layer, and feed its output to the layer before it; layer 0 is the last."""
        for piece in self._layers[at](data):
            self._bytes_left -= len(piece)
            self.too_large = self._bytes_left < 0
            if at == 0 or self.too_large:
                yield piece
                continue
            for begin in range(0, len(piece), _INNER_INPUT_BYTES):
                yield from self._decode_layer(at - 1, piece[begin : begin + _INNER_INPUT_BYTES])
            yield b""


def make_decoder(codings: bytes) -> ContentDecoder | None:
    """Decoder of a ``Content-Encoding``; None if it has an unknown coding, or too many.

    Args:
        codings: the header's value, in lower case.
    """
    layers: list[_Decode] = []
    for name in codings.split(b","):
        find_factory = _FACTORY_FINDERS.get(name.strip())
        make_decode = None if find_factory is None else find_factory()
        if make_decode is None or len(layers) == _CODINGS_MAX:
            return None
        layers.append(make_decode())
    return ContentDecoder(layers)


def read_pieces(chunk: bytes, decoder: ContentDecoder | None, feed: Callable[[bytes], Work | None]) -> Work:
    """Decode a chunk and feed it to a reader in pieces of bounded size, with pauses.

    Args:
        chunk: the next bytes of the body.
        decoder: of the body; None: it has no content coding.
        feed: takes each piece; returns the work that is left to do with it.
    """
    for decoded in (chunk,) if decoder is None else decoder.feed(chunk):
        for at in range(0, len(decoded), PIECE_BYTES):
            work = feed(decoded[at : at + PIECE_BYTES])
            if work is not None:
                yield from work
        yield


def _make_inflate() -> _Decode:
    """Decode function of gzip, zlib and raw deflate."""
    member: Any = None  # Decompressor of the member that has begun and not ended.
    header = b""  # A beginning of a member that is too short to show its format.
    is_first = True
    is_over = False

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal member, header, is_first, is_over
        while data and not is_over:
            if member is None:
                header, data = b"", header + data
                if len(data) < _HEADER_BYTES:
                    header = data
                    return
                # Several gzip members may follow one another; anything else after an end is padding.
                is_over = not is_first and not data.startswith(_GZIP_MAGIC)
                if is_over:
                    return
                is_first = False
                member = zlib.decompressobj(_HEADER_WBITS if _has_header(data) else _RAW_WBITS)
            stream = member
            piece = stream.decompress(data, _DECODED_PIECE_BYTES)
            yield piece
            data = stream.unconsumed_tail
            while not data and len(piece) == _DECODED_PIECE_BYTES and not stream.eof:
                # The decompressor may hold output back although it has no input left.
                piece = stream.decompress(b"", _DECODED_PIECE_BYTES)
                yield piece
            if stream.eof:
                data, member = stream.unused_data, None

    return feed


def _has_header(data: bytes) -> bool:
    """Whether data begins like gzip or zlib; some servers send raw deflate, which has no header."""
    zlib_header = (
        data[0] & 0x0F == _DEFLATE_METHOD and int.from_bytes(data[:_HEADER_BYTES]) % _ZLIB_CHECK == 0
    )
    return zlib_header or data.startswith(_GZIP_MAGIC)


def _make_brotli(make_stream: Callable[[], Any]) -> _Decode:
    """Decode function of br, by ``brotli`` or ``brotlicffi`` from 1.2 on, which bound their output."""
    stream = make_stream()

    def feed(data: bytes) -> Iterator[bytes]:
        while not stream.is_finished():
            piece: bytes = stream.process(data, output_buffer_limit=_DECODED_PIECE_BYTES)
            yield piece
            # `can_accept_more_data` is also true while output is held back: only an empty piece is the end.
            if not piece and stream.can_accept_more_data():
                return
            data = b""

    return feed


def _make_zstd(make_stream: Callable[[], Any]) -> _Decode:
    """Decode function of zstd, by Python's own module (3.14) or its backport; a stream reads one frame."""
    stream = make_stream()

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal stream
        while data or not stream.needs_input:
            yield stream.decompress(data, _DECODED_PIECE_BYTES)
            data = b""
            if stream.eof:
                data = stream.unused_data
                stream = make_stream()
                if not data:
                    return

    return feed


def _make_zstandard(make_stream: Callable[[], Any]) -> _Decode:
    """Decode function of zstd, by the package ``zstandard``; a stream reads one frame."""
    stream = make_stream()

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal stream
        for at in range(0, len(data), _ZSTANDARD_INPUT_BYTES):
            part = data[at : at + _ZSTANDARD_INPUT_BYTES]
            while part:
                yield stream.decompress(part)
                part = stream.unused_data if stream.eof else b""
                if stream.eof:
                    stream = make_stream()

    return feed


# Cached: a search for an absent package is slow.
@cache
def _find_brotli() -> _DecodeFactory | None:
    for name in ("brotli", "brotlicffi"):
        # A package that fails in any way, such as an old version, is not used.
        with suppress(Exception):
            make_stream: Callable[[], Any] = import_module(name).Decompressor
            make_stream().process(b"", output_buffer_limit=1)
            return partial(_make_brotli, make_stream)
    return None


@cache
def _find_zstd() -> _DecodeFactory | None:
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(Exception):
            zstd: Any = import_module(name)
            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_MAX.bit_length() - 1}
            make_stream = partial(zstd.ZstdDecompressor, options=options)
            make_stream()
            return partial(_make_zstd, make_stream)
    with suppress(Exception):
        zstandard: Any = import_module("zstandard")
        make_context = partial(zstandard.ZstdDecompressor, max_window_size=_ZSTD_WINDOW_MAX)
        make_context().decompressobj()
        # A context for each response: streams of one context share its state.
        return lambda: _make_zstandard(make_context().decompressobj)
    return None


_FACTORY_FINDERS: Final[dict[bytes, Callable[[], _DecodeFactory | None]]] = {
    **dict.fromkeys((b"gzip", b"x-gzip", b"deflate"), lambda: _make_inflate),
    b"br": _find_brotli,
    b"zstd": _find_zstd,
}
"""Content coding to a search for the factory of its decode functions; None: no package is installed."""
