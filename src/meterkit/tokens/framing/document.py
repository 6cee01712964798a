"""A JSON body: one object, read at its end, or an array, whose items are read as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.nesting import Nesting, TextEnd, span
from meterkit.tokens.framing.work import EVENT_BYTES_MAX, whole_of
from meterkit.tokens.places import may_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.work import Emit, Large, Work

__all__ = ["Document", "JsonArray"]

_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_BETWEEN: Final = re.compile(rb'[^"{}\[\]]*+')
_QUOTE, _OPEN_OBJECT, _OPEN_ARRAY = b'"{['
# How much is read without a rest; a small item takes as long as one of some size.
_REST_BYTES: Final = 4 << 10
_STEP_BYTES_MIN: Final = 256


class JsonArray:
    """Passes on each item of an array that is an object.

    Args:
        emit: takes an item.
        wants: whether an item is read.
        large: makes a reader of an item that is larger than what is kept.

    Attributes:
        stopped: set to end reading.
    """

    __slots__ = (
        "_begun",
        "_emit",
        "_is_object",
        "_item",
        "_large",
        "_nesting",
        "_open_large",
        "_text",
        "_wants",
        "stopped",
    )

    def __init__(self, emit: Emit, wants: Callable[[bytes], bool], large: Callable[[], Large]) -> None:
        self._emit = emit
        self._wants = wants
        self._open_large = large
        self._large: Large | None = None
        self._item = bytearray()
        self._nesting: Nesting | None = None
        self._text: TextEnd | None = None
        self._begun = self._is_object = self.stopped = False

    def feed(self, chunk: bytes) -> Work:
        """Take the next bytes of the array, its opening bracket first."""
        at = 0
        left = _REST_BYTES
        while at < len(chunk) and not self.stopped:
            begin = at
            work = None
            if self._text is not None:
                end = self._text.find(chunk, at, len(chunk))
                at = end + 1 if end >= 0 else len(chunk)
                self._text = None if end >= 0 else self._text
            elif self._nesting is not None:
                at = self._nesting.read(chunk, at)
                work = self._pass(self._nesting, chunk[begin:at])
            else:
                at = self._begin(chunk, at)
            if work is not None:
                yield from work
            left -= at - begin + _STEP_BYTES_MIN
            if left < 0:
                yield
                left = _REST_BYTES

    def close(self) -> Work:
        """The array is over, or torn: what there is of an item is passed on."""
        item = bytes(self._item)
        self._item.clear()
        large, self._large = self._large, None
        if large is not None:
            yield from whole_of(large, item)
        elif item:
            yield from self._emit(item) or ()

    def _begin(self, chunk: bytes, at: int) -> int:
        at = span(_BETWEEN, chunk, at, len(chunk))
        if at == len(chunk):
            return at
        mark = chunk[at]
        if mark == _QUOTE:
            self._text = TextEnd()
        elif mark == _OPEN_ARRAY and not self._begun:
            self._begun = True
        elif mark in (_OPEN_OBJECT, _OPEN_ARRAY):
            self._nesting = Nesting()
            self._is_object = mark == _OPEN_OBJECT
            if self._is_object:
                self._item += b"{"
        else:
            self.stopped = True
        return at + 1

    def _pass(self, nesting: Nesting, piece: bytes) -> Work | None:
        """Take some more of an item; what is left to do with it."""
        self.stopped = nesting.too_deep
        if nesting.ended:
            self._nesting = None
        if not self._is_object:
            return None
        if self._large is None and len(self._item) + len(piece) > EVENT_BYTES_MAX:
            self._large = self._open_large()
        self._item += piece
        if self._large is None and not nesting.ended:
            return None
        item = bytes(self._item)
        self._item.clear()
        if self._large is None:
            return self._emit(item) if self._wants(item) else None
        if not nesting.ended:
            return self._large.feed(item)
        large, self._large = self._large, None
        return whole_of(large, item)


class Document:
    """A JSON body of either kind.

    Args:
        emit: takes the object, or each item.
        wants: whether an item is read.
        large: makes a reader of what is larger than what is kept.
        unseen: see below.

    Attributes:
        array: the reader of its items, where it is an array.
        unseen: whether an object is read although nothing in it looks like a language model's answer.
    """

    __slots__ = ("_emit", "_kept", "_large", "_open_large", "_wants", "array", "unseen")

    def __init__(
        self, emit: Emit, wants: Callable[[bytes], bool], large: Callable[[], Large], *, unseen: bool
    ) -> None:
        self._emit = emit
        self._wants = wants
        self._open_large = large
        self._large: Large | None = None
        self.unseen = unseen
        self._kept = bytearray()
        self.array: JsonArray | None = None

    def feed(self, chunk: bytes) -> Work | None:
        """Take the next bytes of the body; what is left to do with them."""
        if self.array is None and self._large is None and not self._kept:
            chunk = chunk.lstrip(_BLANK)
            if chunk.startswith(b"["):
                self.array = JsonArray(self._emit, self._wants, self._open_large)
        if self.array is not None:
            return self.array.feed(chunk)
        if self._large is not None:
            return self._large.feed(chunk)
        return self._keep(chunk)

    def close(self) -> Work:
        """The body is over, or torn."""
        kept = bytes(self._kept)
        large, self._large = self._large, None
        self._kept.clear()
        if self.array is not None:
            yield from self.array.close()
        elif large is not None:
            large.end()
        elif kept and (self.unseen or may_answer(kept)):
            yield from self._emit(kept) or ()

    def _keep(self, chunk: bytes) -> Work | None:
        if len(self._kept) + len(chunk) <= EVENT_BYTES_MAX:
            self._kept += chunk
            return None
        self._large = self._open_large()
        chunk = bytes(self._kept) + chunk
        self._kept.clear()
        return self._large.feed(chunk)
