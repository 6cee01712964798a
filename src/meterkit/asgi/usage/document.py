"""A JSON body: one object, read at its end, or an array, whose items are read as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.asgi.usage.blocks import EVENT_BYTES_MAX, is_promising

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.blocks import Gate

__all__ = ["DOCUMENT_BYTES_MAX", "Document", "JsonArray"]

DOCUMENT_BYTES_MAX: Final = 8 << 20

_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_OUTSIDE_TEXT: Final = re.compile(rb'["{}\[\]]')
_INSIDE_TEXT: Final = re.compile(rb'["\\]')
_SEAM: Final = 16  # longer than any needle that tells a figure
_QUOTE, _BACKSLASH = b'"\\'
_OPENING: Final = b"{["
_ITEM_DEPTH: Final = 2


class JsonArray:
    """Passes on each item of an array that is an object, found by the depth of brackets outside of texts.

    Attributes:
        item: what has come of the item that has not come to its end.
        stopped: set to end reading.
    """

    __slots__ = ("_depth", "_emit", "_escaped", "_gate", "_in_text", "_skipping", "item", "stopped")

    def __init__(self, emit: Callable[[bytes], None], gate: Gate) -> None:
        self._emit = emit
        self._gate = gate
        self.item = bytearray()
        self._depth = 0
        self._in_text = self._escaped = self._skipping = False
        self.stopped = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the array, its opening bracket first."""
        at = begin = 0
        while not self.stopped:
            if self._escaped:
                if at >= len(chunk):
                    break
                self._escaped = False
                at += 1
            found = (_INSIDE_TEXT if self._in_text else _OUTSIDE_TEXT).search(chunk, at)
            if found is None:
                break
            at = found.end()
            mark = chunk[at - 1]
            if self._in_text:
                self._escaped = mark == _BACKSLASH
                self._in_text = self._escaped
            elif mark == _QUOTE:
                self._in_text = True
            elif mark in _OPENING:
                self._depth += 1
                if self._depth == _ITEM_DEPTH:
                    begin = at - 1
            else:
                self._depth -= 1
                if self._depth == 1:
                    self._keep(chunk, begin, at)
                    self._finish()
                elif self._depth <= 0:
                    self.stopped = True
        if self._depth > 1:
            self._keep(chunk, begin, len(chunk))

    def _keep(self, chunk: bytes, begin: int, end: int) -> None:
        if self._skipping:
            return
        if len(self.item) + end - begin > EVENT_BYTES_MAX:
            self._skipping = True
            self._gate.skipped += 1
            self.item.clear()
        else:
            self.item += chunk[begin:end]

    def _finish(self) -> None:
        item = bytes(self.item)
        self.item.clear()
        if not self._skipping and item.startswith(b"{") and self._gate.opens(item):
            self._emit(item)
        self._skipping = False


class Document:
    """A JSON body of either kind.

    Args:
        emit: takes the object, or each item.
        gate: decides on items.
        unseen: whether an object is read although nothing in it looks like a language model's answer.

    Attributes:
        array: the reader of its items, where it is an array.
        promising: whether anything in it looked like a language model's answer.
        too_large: whether it was larger than the bound, and so is not read.
    """

    __slots__ = ("_emit", "_gate", "_length", "_parts", "_seam", "_unseen", "array", "promising", "too_large")

    def __init__(self, emit: Callable[[bytes], None], gate: Gate, *, unseen: bool) -> None:
        self._emit = emit
        self._gate = gate
        self._unseen = unseen
        self._parts: list[bytes] = []
        self._length = 0
        self._seam = b""
        self.array: JsonArray | None = None
        self.promising = self.too_large = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if self.array is not None:
            self.array.feed(chunk)
            return
        if not self._length:
            chunk = chunk.lstrip(_BLANK)
            if not chunk:
                return
            if chunk.startswith(b"["):
                self.array = JsonArray(self._emit, self._gate)
                self.array.feed(chunk)
                return
        if not self.promising:
            self.promising = is_promising(self._seam + chunk)
            self._seam = (self._seam + chunk)[-_SEAM:]
        self._length += len(chunk)
        if self._length > DOCUMENT_BYTES_MAX:
            self.too_large = True
            self._parts.clear()
        else:
            self._parts.append(chunk)

    def torn(self) -> bytes:
        """The object, or the item of the array, that has not come to its end; empty where it is no answer."""
        if self.array is None:
            return b"".join(self._parts) if self.promising else b""
        item = bytes(self.array.item)
        return item if is_promising(item) else b""

    def close(self) -> None:
        """The body is over."""
        if self._parts and (self.promising or self._unseen):
            self._emit(b"".join(self._parts))
        self._parts.clear()
