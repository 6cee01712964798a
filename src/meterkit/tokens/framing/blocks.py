"""Cutting a stream of bytes into blocks, and passing on only those that may be worth reading."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meterkit.tokens.framing.work import Emit, Work

__all__ = ["EVENT_BYTES_MAX", "Blocks", "Gate", "Large", "is_promising", "whole_of"]

EVENT_BYTES_MAX: Final = 16 << 10
"""How much of an event is kept; a larger one is read as it comes, without being kept."""

# How much is read without a rest; a small block takes as long as one of some size.
_REST_BYTES: Final = 4 << 10
_BLOCK_BYTES_MIN: Final = 512

# A quotation mark within a JSON text is escaped, so that what a model says cannot look like these.
_USAGE: Final = b'"usage"'
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
_COUNT: Final = b'ount"'  # promptTokenCount, prompt_token_count, eval_count
_ANSWERS: Final = (b'"choices"', b'"candidates"', b'"content"', b'"output"', b'"message"', b'"response"')
_ERROR: Final = b'"error"'
_DONE: Final = b"[DONE]"


def is_promising(data: bytes | bytearray) -> bool:
    """Whether the JSON in it may hold usage figures, or be an answer that lacks them."""
    return _USAGE in data or _COUNT in data or any(needle in data for needle in _ANSWERS)


def _has_usage(data: bytes) -> bool:
    """Whether a usage object may be in it: OpenAI's chunks say `"usage": null` all along."""
    at = data.find(_USAGE)
    while at >= 0:
        if _USAGE_OBJECT.match(data, at) is not None:
            return True
        at = data.find(_USAGE, at + len(_USAGE))
    return False


class Large(Protocol):
    """Reads what is too large to be kept."""

    def feed(self, data: bytes) -> Work:
        """Take the next bytes of it."""
        ...

    def end(self) -> None:
        """It has come to its end, or to that of the response."""


class Gate:
    """Which events of a response are read.

    Attributes:
        all: whether every event is; else only one that may hold usage figures, an error or the end.
    """

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all = True

    def opens(self, data: bytes) -> bool:
        """Whether an event, or something among several events, is read."""
        if self.all:
            return True
        return _COUNT in data or _ERROR in data or _DONE in data or _has_usage(data)


class Blocks:
    """Cuts at a delimiter, and passes on the blocks that the gate lets through.

    Args:
        delimiter: what ends a block.
        emit: takes a block.
        gate: says which are read.
        large: makes a reader of a block that is larger than what is kept.
        take_all: is asked first whether it takes several blocks at once, delimiters and all.
    """

    __slots__ = ("_delimiter", "_emit", "_gate", "_large", "_open_large", "_tail", "_take_all")

    def __init__(
        self,
        delimiter: bytes,
        emit: Emit,
        gate: Gate,
        large: Callable[[], Large],
        take_all: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._take_all = take_all
        self._delimiter = delimiter
        self._emit = emit
        self._gate = gate
        self._open_large = large
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
            end = chunk.find(self._delimiter)
            if end >= 0 and end + len(self._delimiter) == len(chunk):
                return self._pass(chunk[:end])
        return self._cut(chunk)

    def _cut(self, chunk: bytes) -> Work:
        delimiter = self._delimiter
        if not self.is_between:
            cut = yield from self._first_cut(chunk)
            if cut < 0:
                return
            chunk = chunk[cut:]
        end = chunk.rfind(delimiter)
        if end >= 0:
            whole = chunk[:end]
            if self._take_all is not None and delimiter in whole and self._take_all(whole):
                pass
            elif len(whole) > EVENT_BYTES_MAX or self._gate.opens(whole):
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
        tail, delimiter = self._tail, self._delimiter
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
        keep = len(self._delimiter) - 1
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
        return self._emit(block) if block and self._gate.opens(block) else None


def whole_of(large: Large, data: bytes) -> Work:
    """Have all of something read as what is too large to be kept."""
    yield from large.feed(data)
    large.end()
