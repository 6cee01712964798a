"""A JSON body: one object, read at its end, or an array, whose items are read as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.asgi.usage.blocks import EVENT_BYTES_MAX, is_promising
from meterkit.asgi.usage.nesting import Nesting, TextEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.blocks import Gate, Large

__all__ = ["Document", "JsonArray"]

_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_BETWEEN: Final = re.compile(rb'[^"{}\[\]]*+')
_QUOTE, _OPEN_OBJECT, _OPEN_ARRAY = b'"{['


class JsonArray:
    """Passes on each item of an array that is an object.

    Args:
        emit: takes an item.
        gate: says which are read.
        large: makes a reader of an item that is larger than what is kept.

    Attributes:
        stopped: set to end reading.
    """

    __slots__ = (
        "_begun",
        "_emit",
        "_gate",
        "_is_object",
        "_item",
        "_large",
        "_nesting",
        "_open_large",
        "_text",
        "stopped",
    )

    def __init__(self, emit: Callable[[bytes], None], gate: Gate, large: Callable[[], Large]) -> None:
        self._emit = emit
        self._gate = gate
        self._open_large = large
        self._large: Large | None = None
        self._item = bytearray()
        self._nesting: Nesting | None = None
        self._text: TextEnd | None = None
        self._begun = self._is_object = self.stopped = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the array, its opening bracket first."""
        at = 0
        while 0 <= at < len(chunk) and not self.stopped:
            if self._nesting is not None:
                at = self._pass(self._nesting, chunk, at, at)
            elif self._text is not None:
                end = self._text.find(chunk, at)
                at = end + 1 if end >= 0 else -1
                self._text = None if end >= 0 else self._text
            else:
                at = self._begin(chunk, at)

    def close(self) -> None:
        """The array is over, or torn: what there is of an item is passed on."""
        item = bytes(self._item)
        self._item.clear()
        large, self._large = self._large, None
        if large is not None:
            large.feed(item)
            large.end()
        elif item:
            self._emit(item)

    def _begin(self, chunk: bytes, at: int) -> int:
        between = _BETWEEN.match(chunk, at)
        at = at if between is None else between.end()
        if at == len(chunk):
            return -1
        mark = chunk[at]
        if mark == _QUOTE:
            self._text = TextEnd()
        elif mark == _OPEN_ARRAY and not self._begun:
            self._begun = True
        elif mark in (_OPEN_OBJECT, _OPEN_ARRAY):
            self._nesting = Nesting()
            self._is_object = mark == _OPEN_OBJECT
            return self._pass(self._nesting, chunk, at, at + 1)
        else:
            self.stopped = True
        return at + 1

    def _pass(self, nesting: Nesting, chunk: bytes, begin: int, at: int) -> int:
        """Find the end of an item, of which some begins here."""
        end = nesting.find(chunk, at)
        self.stopped = nesting.too_deep
        if self._is_object:
            self._take(chunk[begin : len(chunk) if end < 0 else end], ended=end >= 0)
        if end >= 0:
            self._nesting = None
        return end

    def _take(self, piece: bytes, *, ended: bool) -> None:
        if self._large is None and len(self._item) + len(piece) > EVENT_BYTES_MAX:
            self._large = self._open_large()
            self._large.feed(bytes(self._item))
            self._item.clear()
        if self._large is not None:
            self._large.feed(piece)
            if ended:
                self._large.end()
                self._large = None
            return
        if not ended:
            self._item += piece
            return
        item = bytes(self._item) + piece if self._item else piece
        self._item.clear()
        if self._gate.opens(item):
            self._emit(item)


class Document:
    """A JSON body of either kind.

    Args:
        emit: takes the object, or each item.
        gate: decides on items.
        large: makes a reader of what is larger than what is kept.
        unseen: see below.

    Attributes:
        array: the reader of its items, where it is an array.
        unseen: whether an object is read although nothing in it looks like a language model's answer.
    """

    __slots__ = ("_emit", "_gate", "_kept", "_large", "_open_large", "array", "unseen")

    def __init__(
        self, emit: Callable[[bytes], None], gate: Gate, large: Callable[[], Large], *, unseen: bool
    ) -> None:
        self._emit = emit
        self._gate = gate
        self._open_large = large
        self._large: Large | None = None
        self.unseen = unseen
        self._kept = bytearray()
        self.array: JsonArray | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if self.array is not None:
            self.array.feed(chunk)
        elif self._large is not None:
            self._large.feed(chunk)
        elif self._kept:
            self._keep(chunk)
        else:
            chunk = chunk.lstrip(_BLANK)
            if chunk.startswith(b"["):
                self.array = JsonArray(self._emit, self._gate, self._open_large)
                self.array.feed(chunk)
            elif chunk:
                self._keep(chunk)

    def close(self) -> None:
        """The body is over, or torn."""
        if self.array is not None:
            self.array.close()
        elif self._large is not None:
            self._large.end()
        elif self._kept and (self.unseen or is_promising(self._kept)):
            self._emit(bytes(self._kept))
        self._kept.clear()
        self._large = None

    def _keep(self, chunk: bytes) -> None:
        if len(self._kept) + len(chunk) <= EVENT_BYTES_MAX:
            self._kept += chunk
            return
        self._large = self._open_large()
        self._large.feed(bytes(self._kept))
        self._large.feed(chunk)
        self._kept.clear()
