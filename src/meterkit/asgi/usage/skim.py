"""What a JSON value of any size says that is looked at, in bounded memory and as it comes."""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.asgi.usage.nesting import TEXT, Nesting, TextEnd
from meterkit.asgi.usage.places import ROOT, handed_bytes, utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.places import Place
    from meterkit.asgi.usage.shape import Table

__all__ = ["UNKNOWN", "Encoded", "Skim", "SkimRun"]

_TOKEN_BYTES_MAX: Final = 256
"""A longer text is kept as an empty one; a longer number makes the value unreadable."""
_ITEMS_MAX: Final = 32
"""How many items of arrays are kept; of the others only the text is measured."""
_FIGURES_MAX: Final = 256
_DEPTH_MAX: Final = 64
_BETWEEN: Final = re.compile(rb"[\s,:]*+")
_SCALAR: Final = re.compile(rb'[^\s,:"{}\[\]]++')
# What may be the beginning of an escape, or of a pair of them, at the end of a piece of a text.
_UNFINISHED: Final = re.compile(
    rb"\\(?:u[0-9A-Fa-f]{0,3}|u[dD][89abAB][0-9A-Fa-f]{2}(?:\\(?:u[0-9A-Fa-f]{0,3})?)?)?\Z"
)
_UNFINISHED_BYTES_MAX: Final = 12
_CODES: Final = re.compile(rb"(?:\\u[0-9A-Fa-f]{4})++")
_CODE_BYTES: Final = 6
_BYTES: Final = re.compile(rb'"bytes"\s*:\s*"')
_BYTES_NAME_MAX: Final = 64
_SEPARATORS: Final = b" \t\r\n,"
_QUOTE, _OPEN_OBJECT, _OPEN_ARRAY, _CLOSE_OBJECT, _CLOSE_ARRAY = b'"{[}]'
UNKNOWN: Final = ""
"""The name of a member that stands for those that are not looked at."""


class _Container:
    """An object or array that has not ended."""

    __slots__ = ("at_name", "name", "place", "value")

    def __init__(self, value: dict[str, Any] | list[Any], place: Place) -> None:
        self.value = value
        self.place = place
        self.at_name = isinstance(value, dict)
        self.name: str | None = None


class Skim:
    """Reads one JSON object and keeps those members that readers of usage look at.

    What it keeps has a bound: of long texts and of the hundreds of items of an array nothing is kept but that
    they are there. What is not looked at is passed over without being checked.

    Attributes:
        text_bytes: UTF-8 bytes of what the model wrote in it so far.
        broken: whether it turned out to be no JSON object.
        ended: whether the object has come to its end; what follows is not read.
    """

    __slots__ = (
        "_figures_left",
        "_held",
        "_items_left",
        "_passing",
        "_root",
        "_stack",
        "_start",
        "_text",
        "_text_counts",
        "_text_rest",
        "broken",
        "ended",
        "text_bytes",
    )

    def __init__(self, place: Place = ROOT) -> None:
        self._start = place
        self._root: dict[str, Any] | None = None
        self._stack: list[_Container] = []
        self._held = b""
        self._passing: Nesting | None = None
        self._text: TextEnd | None = None
        self._text_counts = False
        self._text_rest: bytes = b""
        self._items_left = _ITEMS_MAX
        self._figures_left = _FIGURES_MAX
        self.text_bytes = 0
        self.broken = self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the value.

        Returns:
            Those that follow the object's end.
        """
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        while 0 <= at < len(data) and not (self.broken or self.ended):
            if self._passing is not None:
                at = self._pass(self._passing, data, at)
            elif self._text is not None:
                at = self._read_text(self._text, data, at)
            else:
                at = self._read(data, at)
        return data[at:] if self.ended else b""

    def result(self) -> Table | None:
        """What was kept; None where that is no object. Nothing is to be fed any more.

        Figures that were cut off are left out, and of a text that was, what there is of it is measured.
        """
        if self.broken or self._root is None:
            return None
        if self._held.startswith(b'"') and not self._stack[-1].at_name:
            place = self._place()
            if place is not None and place.text:
                self._measure(self._held[1:], last=True)
            self._take("")
        for outer, inner in zip(self._stack, self._stack[1:], strict=False):
            if inner.place.whole and not outer.place.whole:
                self._drop(outer)
        self._stack.clear()
        return self._root

    def _drop(self, outer: _Container) -> None:
        if isinstance(outer.value, dict):
            outer.value.pop(outer.name or UNKNOWN, None)
        elif outer.value:
            outer.value.pop()

    def _pass(self, passing: Nesting, data: bytes, at: int) -> int:
        end = passing.find(data, at)
        self.broken = passing.too_deep
        if self._text_counts:
            self.text_bytes += handed_bytes(data[at : len(data) if end < 0 else end])
        if end >= 0:
            self._passing = None
        return end

    def _read(self, data: bytes, at: int) -> int:
        """Read one token; where the next one is, or -1 where more bytes are needed for that."""
        between = _BETWEEN.match(data, at)
        at = at if between is None else between.end()
        if at == len(data):
            return -1
        mark = data[at]
        if not self._stack and mark != _OPEN_OBJECT:
            self.broken = True
        elif mark == _QUOTE:
            return self._read_short_text(data, at)
        elif mark in (_OPEN_OBJECT, _OPEN_ARRAY):
            self._open({} if mark == _OPEN_OBJECT else [])
            return at + 1
        elif mark in (_CLOSE_OBJECT, _CLOSE_ARRAY):
            self._close(is_object=mark == _CLOSE_OBJECT)
            return at + 1
        else:
            return self._read_scalar(data, at)
        return -1

    def _read_scalar(self, data: bytes, at: int) -> int:
        found = _SCALAR.match(data, at)
        end = at if found is None else found.end()
        if end - at > _TOKEN_BYTES_MAX or self._stack[-1].at_name:
            self.broken = True
        elif end == len(data):
            self._held = data[at:]
            return -1
        else:
            self._keep_token(data[at:end])
        return end

    def _read_short_text(self, data: bytes, at: int) -> int:
        found = TEXT.match(data, at)
        if found is not None and found.end() - at <= _TOKEN_BYTES_MAX:
            self._keep_token(data[at : found.end()])
            return found.end()
        if found is None and len(data) - at <= _TOKEN_BYTES_MAX:
            self._held = data[at:]
            return -1
        self._text = TextEnd()
        place = self._place()
        self._text_counts = place is not None and place.text
        self._take("")
        return at + 1

    def _read_text(self, text: TextEnd, data: bytes, at: int) -> int:
        """Read on in a long text, measuring it where the model wrote it."""
        end = text.find(data, at)
        if self._text_counts:
            self._measure(data[at : len(data) if end < 0 else end], last=end >= 0)
        if end < 0:
            return -1
        self._text = None
        return end + 1

    def _measure(self, piece: bytes, *, last: bool) -> None:
        piece = self._text_rest + piece
        self._text_rest = b""
        self.text_bytes += len(piece)
        if b"\\" in piece:
            unfinished = (
                None if last else _UNFINISHED.search(piece, max(0, len(piece) - _UNFINISHED_BYTES_MAX))
            )
            if unfinished is not None and not _is_escaped(piece, unfinished.start()):
                self._text_rest = piece[unfinished.start() :]
                self.text_bytes -= len(self._text_rest)
                piece = piece[: unfinished.start()]
            self.text_bytes -= _escaping_bytes(piece)

    def _keep_token(self, token: bytes) -> None:
        try:
            value: object = json.loads(token.decode("utf-8", "replace"), strict=False)
        except ValueError:
            self.broken = True
            return
        if isinstance(value, str):
            place = self._place()
            if place is not None and place.text:
                self.text_bytes += utf8_bytes(value)
                value = ""
        self._take(value)

    def _place(self) -> Place | None:
        """The place of the value that comes next; None where it is not looked at, or is a name."""
        outer = self._stack[-1]
        if isinstance(outer.value, list):
            return outer.place
        return None if outer.at_name or outer.name is None else outer.place.member(outer.name)

    def _take(self, value: object) -> None:
        """A name, or a value that is neither object nor array."""
        outer = self._stack[-1]
        if outer.at_name:
            if isinstance(value, str):
                outer.name = value
                outer.at_name = False
            else:
                self.broken = True
            return
        self._put(outer, value, self._place())

    def _put(self, outer: _Container, value: object, place: Place | None) -> None:
        """Keep a value in what holds it, as far as that is looked at and within bounds."""
        if isinstance(outer.value, list):
            if self._items_left > 0:
                self._items_left -= 1
                outer.value.append(value)
            return
        outer.at_name = True
        name = outer.name or UNKNOWN
        if place is None:
            if outer.value is self._root:
                outer.value.setdefault(UNKNOWN, None)
        elif outer.place.whole:
            if self._figures_left > 0:
                self._figures_left -= 1
                outer.value[name] = value
        else:
            outer.value[name] = value

    def _open(self, value: dict[str, Any] | list[Any]) -> None:
        if not self._stack:
            self._root = cast("dict[str, Any]", value)
            self._stack.append(_Container(value, self._start))
            return
        outer = self._stack[-1]
        if isinstance(outer.value, dict) and outer.at_name:
            self.broken = True
            return
        place = self._place()
        self._put(outer, value, place)
        if place is None or not place.entered or len(self._stack) == _DEPTH_MAX:
            self._passing = Nesting()
            self._text_counts = place is not None and place.handed
        else:
            self._stack.append(_Container(value, place))

    def _close(self, *, is_object: bool) -> None:
        inner = self._stack.pop()
        self.broken = isinstance(inner.value, dict) != is_object
        self.ended = not self._stack


def _is_escaped(piece: bytes, at: int) -> bool:
    """Whether the backslash there is itself escaped."""
    before = piece[:at]
    return bool((len(before) - len(before.rstrip(b"\\"))) % 2)


def _escaping_bytes(piece: bytes) -> int:
    """By how many bytes escapes are longer than what they stand for."""
    plain = piece.replace(b"\\\\", b"/")
    found = len(piece) - len(plain) + plain.count(b"\\")
    if b"\\u" in plain:
        for run in _CODES.findall(plain):
            said: str = json.loads(b'"' + run + b'"')
            found += len(run) - len(run) // _CODE_BYTES - utf8_bytes(said)
    return found


class SkimRun:
    """Reads JSON objects that follow one another, each of any size, and passes on what was kept of each.

    Args:
        emit: takes what was kept of an object, and the bytes of text in it.
        spoiled: is told that something that should be an object was none, or had no end.
        place: where the objects stand.
    """

    __slots__ = ("_emit", "_place", "_skim", "_spoiled", "_untouched")

    def __init__(
        self, emit: Callable[[Table, int], None], spoiled: Callable[[], None], place: Place = ROOT
    ) -> None:
        self._emit = emit
        self._spoiled = spoiled
        self._place = place
        self._skim = Skim(place)
        self._untouched = True

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        while data and not self._skim.broken:
            if self._untouched:
                data = data.lstrip(_SEPARATORS)
                self._untouched = not data
            data = self._skim.feed(data)
            if self._skim.ended:
                self._pass()

    def end(self) -> None:
        """Nothing follows: of what has not come to its end, what there is of it is passed on."""
        if not self._untouched:
            self._spoiled()
            self._pass()

    def _pass(self) -> None:
        skim, self._skim = self._skim, Skim(self._place)
        self._untouched = True
        kept = skim.result()
        if kept is not None:
            self._emit(kept, skim.text_bytes)


class Encoded:
    """Reads the JSON that another JSON object has in base64, as Bedrock's frames do.

    Args:
        data: reads what was encoded.
    """

    __slots__ = ("_data", "_head", "_rest")

    def __init__(self, data: SkimRun) -> None:
        self._data = data
        self._head: bytes | None = b""
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the outer object."""
        if self._head is not None:
            data = self._head + data
            begin = _BYTES.search(data)
            if begin is None:
                self._head = data[-_BYTES_NAME_MAX:]
                return
            self._head, data = None, data[begin.end() :]
        data = self._rest + data
        whole = len(data) // 4 * 4
        end = data.find(b'"')
        if end >= 0:
            self._head, data = b"", data[:end]
            whole = end
        self._rest = data[whole:]
        try:
            decoded = a2b_base64(data[:whole])
        except ValueError:
            decoded = b"\0"  # It spoils what is in it.
        self._data.feed(decoded)

    def end(self) -> None:
        """The outer object has come to its end."""
        self._data.end()
