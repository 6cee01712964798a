"""A JSON body read in pieces: one object, or an array whose items are read as they come."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

from llm_usage.event_marks import may_answer
from llm_usage.framing.incremental import EVENT_BYTES_MAX, IncrementalReader, run_steps

if TYPE_CHECKING:
    from llm_usage.framing.incremental import Emit, Steps, Work
    from llm_usage.framing.sse import EventCallbacks

DEPTH_MAX: Final = 1_000
"""No provider's answer is nested deeper; Python's own parser gives up there too."""

# Atomic groups, as Python 3.11 before 3.11.5 matches repeated groups that are possessive, (?:...)*+, wrongly:
# https://github.com/python/cpython/issues/106052
_TEXT: Final = rb'"[^"\\]*+(?>(?:\\.[^"\\]*+)*)"'
TEXT: Final = re.compile(_TEXT, re.DOTALL)
"""A whole JSON text."""

# The rest of a text up to its end, without the beginning of an escape, or of a pair of them.
_IN_TEXT: Final = re.compile(
    rb'(?>(?:[^"\\]++|\\[^u]|\\u(?:[0-9A-CEFa-cef][0-9A-Fa-f]{3}|[dD][0-7C-Fc-f][0-9A-Fa-f]{2})'
    rb"|\\u[dD][89ABab][0-9A-Fa-f]{2}(?=[^\\]|\\[^u]|\\u.{4})(?:\\u[dD][C-Fc-f][0-9A-Fa-f]{2})?"
    rb"|\\u[0-9A-Fa-f]{0,3}(?=[^0-9A-Fa-f]))*)",
    re.DOTALL,
)
_LEVELS: Final = 7


def _balanced(levels: int) -> bytes:
    inside = rb'(?>(?:[^"{}\[\]]++|' + _TEXT + rb")*)"
    for _ in range(levels):
        inside = rb'(?>(?:[^"{}\[\]]++|' + _TEXT + rb"|[{\[]" + inside + rb"[}\]])*)"
    return inside


@cache
def balanced_pattern() -> re.Pattern[bytes]:
    """Pattern of whole values and what is between them, up to a deeper or open bracket, or an open text.

    Compiled at its first use: that takes 2 ms.
    """
    return re.compile(_balanced(_LEVELS), re.DOTALL)


@cache
def _object_pattern() -> re.Pattern[bytes]:
    """Pattern of a whole object that is not nested deeper; compiled at its first use."""
    return re.compile(rb"\{" + _balanced(_LEVELS) + rb"\}", re.DOTALL)


_OPENING: Final = re.compile(rb"[{\[]*+")
_CLOSING: Final = re.compile(rb"[}\]]*+")
# Bytes read without a pause: at the slowest, some tenths of a millisecond.
_STEPS_MAX: Final = 32
_WINDOW_BYTES: Final = 4 << 10


class JsonScanner(IncrementalReader):
    """Reads JSON that comes in pieces.

    Attributes:
        stopped: whether nothing more is read, such as what is nested deeper than the bound.
    """

    __slots__ = ("stopped",)

    def __init__(self) -> None:
        super().__init__()
        self.stopped = False

    def _read_text(self, take: Emit) -> Steps:
        """Read a text to its end, whose first quotation mark was read.

        Args:
            take: takes what is in it, piece by piece; no escape is cut.
        """
        while True:
            begin, stop = self._at, min(len(self._data), self._at + _WINDOW_BYTES)
            end = self._data.find(b'"', begin, stop)
            end = stop if end < 0 else end
            if self._data.find(b"\\", begin, end) >= 0:
                end = span(_IN_TEXT, self._data, begin, stop)
            self._at = end
            yield from run_steps(take(self._data[begin:end]))
            if self._data.startswith(b'"', end):
                self._at += 1
                return
            if self._is_over:
                return
            yield end == begin or end == len(self._data)

    def _pass_over(self, take: Emit) -> Steps:
        """Read an array or object to its end, whose first bracket was read.

        Args:
            take: takes what is in it, piece by piece.
        """
        depth = steps = 1
        while depth and not self.stopped:
            steps += 1
            if not steps % _STEPS_MAX:
                yield False
            data, begin = self._data, self._at
            stop = min(len(data), begin + _WINDOW_BYTES)
            at = span(balanced_pattern(), data, begin, stop)
            is_text = at < stop and data.startswith(b'"', at)
            if is_text:
                at += 1
            elif at < stop and data.startswith((b"{", b"["), at):
                # The innermost of them are balanced, it may be.
                opened = max(1, span(_OPENING, data, at, stop) - at - _LEVELS)
                depth, at = depth + opened, at + opened
                self.stopped = depth > DEPTH_MAX
            else:
                closed = min(depth, span(_CLOSING, data, at, stop) - at)
                depth, at = depth - closed, at + closed
            self._at = at
            yield from run_steps(take(data[begin:at]))
            if is_text:
                yield from self._read_text(take)
                yield from run_steps(take(b'"'))
            elif depth and at == len(data):
                if self._is_over:
                    return
                yield True


def span(pattern: re.Pattern[bytes], data: bytes, at: int, stop: int | None = None) -> int:
    """End of the match of a pattern that also matches nothing."""
    match = pattern.match(data, at, len(data) if stop is None else stop)
    return at if match is None else match.end()


_BLANK: Final = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")
_BETWEEN: Final = re.compile(rb'[^"{}\[\]]*+')
_ITEMS_MAX: Final = 4
"""Items read without a pause."""


class JsonReader(JsonScanner):
    """A JSON body: passes on an object at its end, or each item of an array that is an object.

    Args:
        takers: see there; an event is the object, or an item.
        unseen: see below.

    Attributes:
        unseen: whether an object is read although nothing in it looks like a language model's answer.
    """

    __slots__ = ("_emit", "_open_large", "_wants", "unseen")

    def __init__(self, takers: EventCallbacks, *, unseen: bool) -> None:
        super().__init__()
        self._emit, self._wants, self._open_large, _ = takers
        self.unseen = unseen

    def _run(self) -> Steps:
        while (yield from self._has(1)):
            self._at = span(_BLANK, self._data, self._at)
            if self._at < len(self._data):
                break
        if self._data.startswith(b"[", self._at):
            self._at += 1
            yield from self._read_items()
        elif (yield from self._has(EVENT_BYTES_MAX + 1)):
            large = self._open_large()
            while (yield from self._has(1)):
                begin, self._at = self._at, len(self._data)
                yield from run_steps(large.feed(self._data[begin:]))
            large.end()
        elif self._at < len(self._data) and (self.unseen or may_answer(self._data)):
            begin, self._at = self._at, len(self._data)
            yield from run_steps(self._emit(self._data[begin:]))

    def _read_items(self) -> Steps:
        steps = 0
        while not self.stopped:
            steps += 1
            if not steps % _ITEMS_MAX:
                yield False
            self._at = span(_BETWEEN, self._data, self._at)
            mark = self._data[self._at : self._at + 1]
            if mark == b"{":
                yield from self._read_item()
            elif mark:
                self._at += 1
                if mark == b'"':
                    yield from self._read_text(_ignore)
                elif mark == b"[":
                    yield from self._pass_over(_ignore)
                else:
                    return
            elif self._is_over:
                return
            else:
                yield True

    def _read_item(self) -> Steps:
        data, at = self._data, self._at
        found = _object_pattern().match(data, at, at + EVENT_BYTES_MAX)
        if found is not None:
            self._at = found.end()
            item = found[0]
            if self._wants(item):
                yield from run_steps(self._emit(item))
        elif len(data) - at < EVENT_BYTES_MAX and not self._is_over:
            yield True
        else:
            # Larger, nested deeper, or torn: what there is of it is passed on.
            large = self._open_large()
            yield from run_steps(large.feed(b"{"))
            self._at += 1
            yield from self._pass_over(large.feed)
            large.end()


_ESCAPES: Final = re.compile(rb"(?:\\u[0-9A-Fa-f]{4})+|\\[^u]", re.DOTALL)
_ESCAPED: Final = {
    b"\\" + bytes([name]): bytes([value]) for name, value in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True)
}


class InnerReader(Protocol):
    """Reads the body that is in a JSON text."""

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of it; what is left to do with them."""
        ...

    def close(self) -> Work:
        """No more bytes come: read what is left."""
        ...


class JsonTextReader(JsonScanner):
    """A JSON text that is itself a body, as of a response that was serialized twice.

    Args:
        inner: reads the body in it.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: InnerReader) -> None:
        super().__init__()
        self._inner = inner

    def _run(self) -> Steps:
        self._at = span(_BLANK, self._data, self._at) + 1
        yield from self._read_text(lambda piece: self._inner.feed(_ESCAPES.sub(_unescape, piece)))
        yield from run_steps(self._inner.close())


def _unescape(match: re.Match[bytes]) -> bytes:
    """Text that an escape, or a run of character codes, stands for; what is no escape stays as it is."""
    written = match[0]
    if not written.startswith(b"\\u"):
        return _ESCAPED.get(written, written)
    codes = written[2:].split(b"\\u")
    units = b"".join(bytes.fromhex(code.decode()) for code in codes)
    return units.decode("utf-16-be", "replace").encode()


def _ignore(_: bytes) -> None:
    """The state between two items."""
