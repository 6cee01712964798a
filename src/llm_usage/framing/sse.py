"""Server-sent events, read in pieces: blocks of the stream that may hold usage."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage.framing.incremental import (
    EVENT_BYTES_MAX,
    IncrementalReader,
    drain,
    feed_large,
    run_steps,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_usage.framing.incremental import Emit, LargeReader, Steps, Work

# How much is read without a pause; a small block takes as long as one of some size.
_PAUSE_BYTES: Final = 4 << 10
_BLOCK_BYTES_MIN: Final = 512


class EventCallbacks(NamedTuple):
    """Callbacks that receive the events of a body.

    Attributes:
        emit: takes an event.
        wants: whether an event, or something among several events, is read.
        large: makes a reader of an event that is larger than what is kept.
        take_all: is asked first whether it takes several events at once, delimiters and all.
    """

    emit: Emit
    wants: Callable[[bytes], bool]
    large: Callable[[], LargeReader]
    take_all: Callable[[bytes], bool] = lambda _: False


class BlockReader(IncrementalReader):
    """Cuts at a delimiter, and passes on the blocks that are wanted; the last one also without a delimiter.

    Args:
        takers: see there; an event is a block.
    """

    __slots__ = ("_emit", "_is_large", "_open_large", "_take_all", "_wants")

    delimiter = b"\n"

    def __init__(self, takers: EventCallbacks) -> None:
        super().__init__()
        self._emit, self._wants, self._open_large, self._take_all = takers
        self._is_large = False

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of the stream; what is left to do with them."""
        if not self._data and not self._is_large and len(data) <= EVENT_BYTES_MAX:
            # Most servers write one event at a time.
            end = data.find(self.delimiter)
            if end >= 0 and end + len(self.delimiter) == len(data):
                return self._pass(data[:end])
        return self._feed(data)

    def _run(self) -> Steps:
        keep = len(self.delimiter) - 1
        while True:
            begin, end = self._at, self._data.rfind(self.delimiter, self._at)
            if end >= 0:
                self._at = end + len(self.delimiter)
                yield from self._pass_all(self._data[begin:end])
            elif self._is_over:
                self._at = len(self._data)
                yield from run_steps(self._pass(self._data[begin:]))
                return
            elif len(self._data) - begin > EVENT_BYTES_MAX + keep:
                yield from self._read_large(self._open_large(), keep)
            else:
                yield True

    def _pass_all(self, blocks: bytes) -> Steps:
        if self.delimiter in blocks and self._take_all(blocks):
            return
        if len(blocks) <= EVENT_BYTES_MAX and not self._wants(blocks):
            return
        left = _PAUSE_BYTES
        for block in filter(None, blocks.split(self.delimiter)):
            yield from run_steps(self._pass(block))
            left -= len(block) + _BLOCK_BYTES_MIN
            if left < 0:
                yield False
                left = _PAUSE_BYTES

    def _pass(self, block: bytes) -> Work | None:
        if len(block) > EVENT_BYTES_MAX:
            return feed_large(self._open_large(), block)
        return self._read(block) if block and self._wants(block) else None

    def _read(self, block: bytes) -> Work | None:
        """Pass on what is in a block."""
        return self._emit(block)

    def _read_large(self, large: LargeReader, keep: int) -> Steps:
        """Read a block as it comes; what may begin a delimiter stays."""
        self._is_large = True
        ended = False
        while not ended:
            begin, end = self._at, self._data.find(self.delimiter, self._at)
            ended = end >= 0 or self._is_over
            stop = end if end >= 0 else len(self._data) - (0 if ended else keep)
            self._at = stop + (len(self.delimiter) if end >= 0 else 0)
            yield from run_steps(large.feed(self._data[begin:stop]))
            if not ended:
                yield True
        self._is_large = False
        large.end()


class NdjsonReader(BlockReader):
    """JSON values one to a line: https://github.com/ndjson/ndjson-spec."""

    __slots__ = ()

    def _read(self, block: bytes) -> Work | None:
        line = block.strip()
        return self._emit(line) if line else None


DONE: Final = b"[DONE]"
_HEAD_BYTES: Final = len(BOM_UTF8) + len(b"data: ")
_DATA_NAME: Final = re.compile(rb"(?:" + BOM_UTF8 + rb")?data: ?")
_DATA_LINE: Final = re.compile(rb"^data(?:: ?(.*))?$", re.MULTILINE)
_LINES_MAX: Final = 32


class SseReader(BlockReader):
    """Passes on the data of each event; lines end with LF, CRLF or CR."""

    __slots__ = ("_after_cr",)

    delimiter = b"\n\n"

    def __init__(self, takers: EventCallbacks) -> None:
        emit, wants, large, take_all = takers
        super().__init__(EventCallbacks(emit, wants, lambda: LargeEventReader(large()), take_all))
        self._after_cr = False

    @property
    def is_between(self) -> bool:
        """Whether the last event has ended and the next has not begun."""
        return not (self._data or self._is_large or self._after_cr)

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of the stream; what is left to do with them."""
        if self._after_cr:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return super().feed(data)

    def _read(self, block: bytes) -> Work | None:
        """Pass on the data of an event, or of several that some servers do not part with a blank line."""
        if b"\n" not in block and block.startswith(b"data: "):
            return self._emit(block[6:])
        # A byte order mark may only come first; elsewhere it does no harm to pass it over.
        lines: list[bytes] = _DATA_LINE.findall(block.removeprefix(BOM_UTF8))
        if len(lines) == 1:
            return self._emit(lines[0])
        return _read_lines(self._emit, lines) if lines else None


class LargeEventReader(IncrementalReader):
    """Passes on the data of an event that is too large to be kept; its lines end with LF.

    Args:
        data: reads the data.
    """

    __slots__ = ("_reader",)

    def __init__(self, data: LargeReader) -> None:
        super().__init__()
        self._reader = data

    def _run(self) -> Steps:
        for number in count(1):
            if number % _LINES_MAX == 0:
                yield False
            while self._data.find(b"\n", self._at) < 0 and len(self._data) - self._at < _HEAD_BYTES:
                if self._is_over:
                    return
                yield True
            # The first line of a stream may have a byte order mark before it.
            found = _DATA_NAME.match(self._data, self._at)
            if found is not None:
                self._at = found.end()
            ended = False
            while not ended:
                begin, end = self._at, self._data.find(b"\n", self._at)
                ended = end >= 0
                self._at = end + 1 if ended else len(self._data)
                if found is not None:
                    yield from run_steps(self._reader.feed(self._data[begin : end if ended else None]))
                if not ended:
                    if self._is_over:
                        return
                    yield True
            yield from run_steps(self._reader.feed(b"\n"))

    def end(self) -> None:
        """The event, or the response, has come to its end."""
        drain(self.close())
        self._reader.end()


def _read_lines(emit: Emit, lines: list[bytes]) -> Work:
    begin = 0
    for at, (before, after) in enumerate(zip(lines, [*lines[1:], None], strict=True), 1):
        if at % _LINES_MAX == 0:
            yield
        if after is None or _parts(before, after):
            work = emit(b"\n".join(lines[begin:at]))
            if work is not None:
                yield from work
            yield
            begin = at


def _parts(before: bytes, after: bytes) -> bool:
    """Whether no JSON value can go on from one line to the other."""
    before, after = before.rstrip(), after.lstrip()
    ended = before.endswith(b"}") or before == DONE
    return ended and (after.startswith(b"{") or after.rstrip() == DONE)
