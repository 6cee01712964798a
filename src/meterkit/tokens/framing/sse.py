"""Server-sent events, incrementally.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from itertools import count
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.work import Emit, Large, Work

__all__ = ["Sse"]

_DATA: Final = b"data"
_DONE: Final = b"[DONE]"
_HEAD_BYTES: Final = len(BOM_UTF8) + len(b"data: ")
_DATA_LINE: Final = re.compile(rb"^data(?:: ?(.*))?$", re.MULTILINE)
_LINES_MAX: Final = 32


class Sse(Blocks):
    """Passes on the data of each event; lines end with LF, CRLF or CR."""

    __slots__ = ("_after_cr",)

    delimiter = b"\n\n"

    def __init__(
        self,
        emit: Emit,
        wants: Callable[[bytes], bool],
        large: Callable[[], Large],
        take_all: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        super().__init__(emit, wants, lambda: LargeEvent(large()), take_all)
        self._after_cr = False

    @property
    def is_between(self) -> bool:
        """Whether the last event has ended and the next has not begun."""
        return not self._tail and self._large is None and not self._after_cr

    def feed(self, chunk: bytes) -> Work | None:
        """Take the next bytes of the stream; what is left to do with them."""
        if self._after_cr:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return super().feed(chunk)

    def _read(self, block: bytes) -> Work | None:
        """Pass on the data of an event, or of several that some servers do not part with a blank line."""
        if b"\n" not in block and block.startswith(b"data: "):
            return self._emit(block[6:])
        # A byte order mark may only come first; elsewhere it does no harm to pass it over.
        lines: list[bytes] = _DATA_LINE.findall(block.removeprefix(BOM_UTF8))
        if len(lines) == 1:
            return self._emit(lines[0])
        return _read_lines(self._emit, lines) if lines else None


class LargeEvent:
    """Passes on the data of an event that is too large to be kept.

    Args:
        data: reads the data.
    """

    __slots__ = ("_data", "_is_data", "_line")

    def __init__(self, data: Large) -> None:
        self._data = data
        self._line = b""
        self._is_data: bool | None = None

    def feed(self, data: bytes) -> Work:
        """Take the next bytes of the event; lines end with LF."""
        block, at = data, 0
        for read in count(1):
            if at >= len(block):
                return
            if read % _LINES_MAX == 0:
                yield
            if self._is_data is None:
                # The first line of a stream may have a byte order mark before it.
                before = len(self._line)
                self._line += block[at : at + _HEAD_BYTES - before]
                line = self._line.removeprefix(BOM_UTF8)
                if len(self._line) < _HEAD_BYTES and b"\n" not in line:
                    return
                name, _, value = line.partition(b"\n")[0].partition(b":")
                self._is_data = name == _DATA and b":" in line
                at += len(self._line) - before
                head, self._line = self._line, b""
                if b"\n" in head:
                    # Short: what was taken too much is looked at again.
                    at -= len(head) - head.index(b"\n")
                if self._is_data:
                    yield from self._data.feed(value.removeprefix(b" "))
            end = block.find(b"\n", at)
            stop = len(block) if end < 0 else end
            if self._is_data:
                yield from self._data.feed(block[at:stop])
            at = stop
            if end >= 0:
                self._is_data = None
                yield from self._data.feed(b"\n")
                at += 1

    def end(self) -> None:
        """The event, or the response, has come to its end."""
        self._data.end()


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
    ended = before.endswith(b"}") or before == _DONE
    return ended and (after.startswith(b"{") or after.rstrip() == _DONE)
