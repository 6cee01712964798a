"""A JSON body: one object, read at its end, or an array, whose items are read as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.scan import OBJECT, Scanner, span
from meterkit.tokens.framing.work import EVENT_BYTES_MAX, rests
from meterkit.tokens.places import may_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.work import Emit, Large, Steps, Work

__all__ = ["Document", "JsonArray"]

_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_BETWEEN: Final = re.compile(rb'[^"{}\[\]]*+')
_ITEMS_MAX: Final = 4
"""How many items are read without a rest."""


class JsonArray(Scanner):
    """Passes on each item of an array that is an object.

    Args:
        emit: takes an item.
        wants: whether an item is read.
        large: makes a reader of an item that is larger than what is kept.
    """

    __slots__ = ("_emit", "_open_large", "_wants")

    def __init__(self, emit: Emit, wants: Callable[[bytes], bool], large: Callable[[], Large]) -> None:
        super().__init__()
        self._emit = emit
        self._wants = wants
        self._open_large = large

    def _run(self) -> Steps:
        while not self._data and not self._is_over:
            yield True
        self._at = 1  # Behind the array's own bracket.
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
        found = OBJECT.match(data, at, at + EVENT_BYTES_MAX)
        if found is not None:
            self._at = found.end()
            item = found[0]
            if self._wants(item):
                yield from rests(self._emit(item))
        elif len(data) - at < EVENT_BYTES_MAX and not self._is_over:
            yield True
        else:
            # Larger, nested deeper, or torn: what there is of it is passed on.
            large = self._open_large()
            yield from rests(large.feed(b"{"))
            self._at += 1
            yield from self._pass_over(large.feed)
            large.end()


def _ignore(_: bytes) -> None:
    """What is between the items."""


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
