"""A JSON body: one object, read at its end, or an array, whose items are read as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.incremental import EVENT_BYTES_MAX, paused
from meterkit.tokens.framing.json_scan import OBJECT, Scanner, span
from meterkit.tokens.layout import may_answer

if TYPE_CHECKING:
    from meterkit.tokens.framing.blocks import Takers
    from meterkit.tokens.framing.incremental import Steps

__all__ = ["Document"]

_BLANK: Final = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")
_BETWEEN: Final = re.compile(rb'[^"{}\[\]]*+')
_ITEMS_MAX: Final = 4
"""How many items are read without a pause."""


class Document(Scanner):
    """A JSON body: passes on an object at its end, or each item of an array that is an object.

    Args:
        takers: see there; an event is the object, or an item.
        unseen: see below.

    Attributes:
        unseen: whether an object is read although nothing in it looks like a language model's answer.
    """

    __slots__ = ("_emit", "_open_large", "_wants", "unseen")

    def __init__(self, takers: Takers, *, unseen: bool) -> None:
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
                yield from paused(large.feed(self._data[begin:]))
            large.end()
        elif self._at < len(self._data) and (self.unseen or may_answer(self._data)):
            begin, self._at = self._at, len(self._data)
            yield from paused(self._emit(self._data[begin:]))

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
        found = OBJECT.match(data, at, at + EVENT_BYTES_MAX)
        if found is not None:
            self._at = found.end()
            item = found[0]
            if self._wants(item):
                yield from paused(self._emit(item))
        elif len(data) - at < EVENT_BYTES_MAX and not self._is_over:
            yield True
        else:
            # Larger, nested deeper, or torn: what there is of it is passed on.
            large = self._open_large()
            yield from paused(large.feed(b"{"))
            self._at += 1
            yield from self._pass_over(large.feed)
            large.end()


def _ignore(_: bytes) -> None:
    """What is between the items."""
