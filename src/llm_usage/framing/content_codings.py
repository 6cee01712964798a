"""Content codings (gzip, deflate, br, zstd): decode a response in pieces of bounded size.

gzip and deflate come with Python; br and zstd are decoded where a package for them is installed.
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
"""Bytes read without a pause, unless they are slow to read."""


def read_pieces(chunk: bytes, decoding: ContentDecoder | None, take: Callable[[bytes], Work | None]) -> Work:
    """Hand on what a chunk holds, decoded, in pieces of bounded size."""
    for decoded in (chunk,) if decoding is None else decoding.feed(chunk):
        for at in range(0, len(decoded), PIECE_BYTES):
            work = take(decoded[at : at + PIECE_BYTES])
            if work is not None:
                yield from work
        yield


DECODED_BYTES_MAX: Final = 64 << 20
"""Bytes of a compressed response that are read."""

_DECODED_PIECE_BYTES: Final = 64 << 10
# Of what is coded twice; decompressors copy what follows each of the members that they are given.
_INNER_BYTES: Final = 4 << 10
_CODINGS_MAX: Final = 3
_ZLIB_OR_GZIP: Final = 47
_RAW: Final = -15
_HEADER_BYTES: Final = 2
_GZIP: Final = b"\x1f\x8b"
# RFC 1950 section 2.2: the method in the first byte, and a first word that is a multiple of 31.
_DEFLATE: Final = 8
_ZLIB_CHECK: Final = 31
# RFC 9659: what a client on the web has to have memory for.
_ZSTD_WINDOW_MAX: Final = 8 << 20
# A block of four bytes may hold 128 KiB: with so few at a time no more than 1 MiB comes out at once.
_ZSTD_STEP_BYTES: Final = 32


_Decoder: TypeAlias = "Callable[[bytes], Iterator[bytes]]"
"""Decodes the next bytes, in pieces; may raise any exception if they are damaged."""
_Maker: TypeAlias = "Callable[[], _Decoder]"


def _inflate() -> _Decoder:
    """gzip, zlib and raw deflate."""
    stream: Any = None  # Of the member that has begun and not ended.
    held = b""  # Where the next one begins, as long as that does not tell what it is.
    is_first, over = True, False

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal stream, held, is_first, over
        while data and not over:
            if stream is None:
                held, data = b"", held + data
                if len(data) < _HEADER_BYTES:
                    held = data
                    return
                # Several members may follow one another; anything else after the end is padding.
                over = not is_first and not data.startswith(_GZIP)
                if over:
                    return
                is_first = False
                stream = zlib.decompressobj(_ZLIB_OR_GZIP if _has_header(data) else _RAW)
            member = stream
            piece = member.decompress(data, _DECODED_PIECE_BYTES)
            yield piece
            data = member.unconsumed_tail
            while not data and len(piece) == _DECODED_PIECE_BYTES and not member.eof:
                # The decompressor holds something back although it has no input left.
                piece = member.decompress(b"", _DECODED_PIECE_BYTES)
                yield piece
            if member.eof:
                data, stream = member.unused_data, None

    return feed


def _brotli(make: Callable[[], Any]) -> _Decoder:
    """br, by ``brotli`` or ``brotlicffi``, of 1.2 or later: before, their output had no bound."""
    stream = make()

    def feed(data: bytes) -> Iterator[bytes]:
        while not stream.is_finished():
            piece: bytes = stream.process(data, output_buffer_limit=_DECODED_PIECE_BYTES)
            yield piece
            # It says that it takes more also where it holds something back.
            if not piece and stream.can_accept_more_data():
                return
            data = b""

    return feed


def _zstd(make: Callable[[], Any]) -> _Decoder:
    """zstd, by Python's own module (3.14) or its backport."""
    stream = make()

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal stream
        while data or not stream.needs_input:
            yield stream.decompress(data, _DECODED_PIECE_BYTES)
            data = b""
            if stream.eof:
                data = stream.unused_data
                stream = make()
                if not data:
                    return

    return feed


def _zstandard(make: Callable[[], Any]) -> _Decoder:
    """zstd, by ``zstandard``."""
    stream = make()

    def feed(data: bytes) -> Iterator[bytes]:
        nonlocal stream
        for at in range(0, len(data), _ZSTD_STEP_BYTES):
            part = data[at : at + _ZSTD_STEP_BYTES]
            while part:
                yield stream.decompress(part)
                part = stream.unused_data if stream.eof else b""
                if stream.eof:
                    stream = make()

    return feed


class ContentDecoder:
    """Undoes the codings of one response, the last one first.

    Attributes:
        corrupt: whether the data was no such data; how much of it was read is up to the decompressor then.
        too_large: whether it held more than the bound; the rest is not read.
    """

    __slots__ = ("_decoders", "_left", "corrupt", "too_large")

    def __init__(self, decoders: list[_Decoder]) -> None:
        self._decoders = decoders
        self._left = DECODED_BYTES_MAX
        self.corrupt = self.too_large = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes, in pieces of at most some MiB, mostly 64 KiB.

        Pieces may be empty: there is much to undo in what holds nothing, too.
        """
        if self.corrupt or self.too_large:
            return
        try:
            for piece in self._decode_layer(len(self._decoders) - 1, data):
                if self.too_large:
                    return
                yield piece
        except Exception:  # noqa: BLE001 - Each package has errors of its own, and this is about damaged data.
            self.corrupt = True

    def _decode_layer(self, at: int, data: bytes) -> Iterator[bytes]:
        for piece in self._decoders[at](data):
            self._left -= len(piece)
            self.too_large = self._left < 0
            if at == 0 or self.too_large:
                yield piece
                continue
            for begin in range(0, len(piece), _INNER_BYTES):
                yield from self._decode_layer(at - 1, piece[begin : begin + _INNER_BYTES])
            yield b""


def make_decoder(codings: bytes) -> ContentDecoder | None:
    """Decoder of a ``Content-Encoding``; None where one of its codings cannot be undone here.

    Args:
        codings: the header's value, in lower case.
    """
    decoders: list[_Decoder] = []
    for name in codings.split(b","):
        find = _FINDERS.get(name.strip())
        make = None if find is None else find()
        if make is None or len(decoders) == _CODINGS_MAX:
            return None
        decoders.append(make())
    return ContentDecoder(decoders)


# Packages are looked for once, as one that is absent takes long.
@cache
def _find_brotli() -> _Maker | None:
    for name in ("brotli", "brotlicffi"):
        # Whatever is wrong with a package, it cannot be used.
        with suppress(Exception):
            make: Callable[[], Any] = import_module(name).Decompressor
            make().process(b"", output_buffer_limit=1)
            return partial(_brotli, make)
    return None


@cache
def _find_zstd() -> _Maker | None:
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(Exception):
            zstd: Any = import_module(name)
            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_MAX.bit_length() - 1}
            make = partial(zstd.ZstdDecompressor, options=options)
            make()
            return partial(_zstd, make)
    with suppress(Exception):
        zstandard: Any = import_module("zstandard")
        open_one = partial(zstandard.ZstdDecompressor, max_window_size=_ZSTD_WINDOW_MAX)
        open_one().decompressobj()
        # One each: what comes of one shares its state.
        return lambda: _zstandard(open_one().decompressobj)
    return None


_FINDERS: Final[dict[bytes, Callable[[], _Maker | None]]] = {
    **dict.fromkeys((b"gzip", b"x-gzip", b"deflate"), lambda: _inflate),
    b"br": _find_brotli,
    b"zstd": _find_zstd,
}
"""Finders of the factory of a coding's decoder; None where no package for it is installed."""


def _has_header(data: bytes) -> bool:
    """Whether it begins as gzip or zlib data does; servers also send deflate without either."""
    zlib_header = data[0] & 0x0F == _DEFLATE and int.from_bytes(data[:2]) % _ZLIB_CHECK == 0
    return zlib_header or data.startswith(_GZIP)
