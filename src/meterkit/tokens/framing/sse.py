"""Server-sent events, incrementally.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from itertools import count
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.blocks import Blocks
from meterkit.tokens.framing.incremental import Incremental, drain, paused

if TYPE_CHECKING:
    from meterkit.tokens.framing.blocks import Takers
    from meterkit.tokens.framing.incremental import Emit, Large, Steps, Work

__all__ = ["Sse"]

_DONE: Final = b"[DONE]"
_HEAD_BYTES: Final = len(BOM_UTF8) + len(b"data: ")
_DATA_NAME: Final = re.compile(rb"(?:" + BOM_UTF8 + rb")?data: ?")
_DATA_LINE: Final = re.compile(rb"^data(?:: ?(.*))?$", re.MULTILINE)
_LINES_MAX: Final = 32


class Sse(Blocks):
    """Passes on the data of each event; lines end with LF, CRLF or CR."""

    __slots__ = ("_after_cr",)

    delimiter = b"\n\n"

    def __init__(self, takers: Takers) -> None:
        super().__init__(takers._replace(large=lambda: LargeEvent(takers.large())))
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


class LargeEvent(Incremental):
    """Passes on the data of an event that is too large to be kept; its lines end with LF.

    Args:
        data: reads the data.
    """

    __slots__ = ("_reader",)

    def __init__(self, data: Large) -> None:
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
                    yield from paused(self._reader.feed(self._data[begin : end if ended else None]))
                if not ended:
                    if self._is_over:
                        return
                    yield True
            yield from paused(self._reader.feed(b"\n"))

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
    ended = before.endswith(b"}") or before == _DONE
    return ended and (after.startswith(b"{") or after.rstrip() == _DONE)
