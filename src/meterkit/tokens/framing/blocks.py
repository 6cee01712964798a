"""Cutting a stream of bytes into blocks, and passing on only those that may be worth reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.work import EVENT_BYTES_MAX, whole_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meterkit.tokens.framing.work import Emit, Large, Work

__all__ = ["Blocks", "Ndjson"]

# How much is read without a rest; a small block takes as long as one of some size.
_REST_BYTES: Final = 4 << 10
_BLOCK_BYTES_MIN: Final = 512


class Blocks:
    """Cuts at a delimiter, and passes on the blocks that are wanted; the last one also without a delimiter.

    Args:
        emit: takes a block.
        wants: whether a block, or something among several blocks, is read.
        large: makes a reader of a block that is larger than what is kept.
        take_all: is asked first whether it takes several blocks at once, delimiters and all.
    """

    __slots__ = ("_emit", "_large", "_open_large", "_tail", "_take_all", "_wants")

    delimiter = b"\n"

    def __init__(
        self,
        emit: Emit,
        wants: Callable[[bytes], bool],
        large: Callable[[], Large],
        take_all: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._emit = emit
        self._wants = wants
        self._open_large = large
        self._take_all = take_all
        self._large: Large | None = None
        self._tail = bytearray()

    @property
    def is_between(self) -> bool:
        """Whether the last block has ended and the next has not begun."""
        return not self._tail and self._large is None

    def feed(self, chunk: bytes) -> Work | None:
        """Take the next bytes of the stream; what is left to do with them."""
        if self.is_between and len(chunk) <= EVENT_BYTES_MAX:
            # Most servers write one event at a time.
            end = chunk.find(self.delimiter)
            if end >= 0 and end + len(self.delimiter) == len(chunk):
                return self._pass(chunk[:end])
        return self._cut(chunk)

    def _cut(self, chunk: bytes) -> Work:
        delimiter = self.delimiter
        if not self.is_between:
            cut = yield from self._first_cut(chunk)
            if cut < 0:
                return
            chunk = chunk[cut:]
        end = chunk.rfind(delimiter)
        if end >= 0:
            whole = chunk[:end]
            if delimiter in whole and self._take_all(whole):
                pass
            elif len(whole) > EVENT_BYTES_MAX or self._wants(whole):
                left = _REST_BYTES
                for block in filter(None, whole.split(delimiter)):
                    work = self._pass(block)
                    if work is not None:
                        yield from work
                    left -= len(block) + _BLOCK_BYTES_MIN
                    if left < 0:
                        yield
                        left = _REST_BYTES
            chunk = chunk[end + len(delimiter) :]
        if chunk:
            self._tail += chunk
            yield from self._bound()

    def close(self) -> Work:
        """The stream is over: what is left is a block."""
        tail = bytes(self._tail)
        self._tail.clear()
        yield from self._end(tail)

    def _first_cut(self, chunk: bytes) -> Generator[None, None, int]:
        """Complete the block that was begun: how much of the chunk it took, or -1 if it has not ended."""
        tail, delimiter = self._tail, self.delimiter
        before = len(tail)
        tail += chunk
        cut = tail.find(delimiter, max(0, before - len(delimiter) + 1))
        if cut < 0:
            yield from self._bound()
            return -1
        block = bytes(tail[:cut])
        tail.clear()
        yield from self._end(block)
        return cut + len(delimiter) - before

    def _read(self, block: bytes) -> Work | None:
        """Pass on what is in a block."""
        return self._emit(block)

    def _end(self, block: bytes) -> Work:
        """The end of a block, or the whole of it."""
        large, self._large = self._large, None
        if large is not None:
            yield from large.feed(block)
            large.end()
            return
        work = self._pass(block)
        if work is not None:
            yield from work

    def _bound(self) -> Work:
        keep = len(self.delimiter) - 1
        if self._large is None and len(self._tail) > EVENT_BYTES_MAX + keep:
            self._large = self._open_large()
        if self._large is not None:
            # What may begin a delimiter stays.
            end = len(self._tail) - keep
            passed = bytes(self._tail[:end])
            del self._tail[:end]
            yield from self._large.feed(passed)

    def _pass(self, block: bytes) -> Work | None:
        if len(block) > EVENT_BYTES_MAX:
            return whole_of(self._open_large(), block)
        return self._read(block) if block and self._wants(block) else None


class Ndjson(Blocks):
    """JSON values one to a line: https://github.com/ndjson/ndjson-spec."""

    __slots__ = ()

    def _read(self, block: bytes) -> Work | None:
        line = block.strip()
        return self._emit(line) if line else None
