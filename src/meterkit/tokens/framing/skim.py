"""What a JSON value of any size says that is looked at, in bounded memory and as it comes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.tokens.framing.nesting import BALANCED, TEXT, Nesting, TextEnd, span
from meterkit.tokens.places import ROOT, handed_bytes, utf8_bytes
from meterkit.tokens.shape import rows

if TYPE_CHECKING:
    from meterkit.tokens.places import Place
    from meterkit.tokens.shape import Table

__all__ = ["UNKNOWN", "Skim"]

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
_CODES: Final = re.compile(rb"(?>(?:\\u[0-9A-Fa-f]{4})+)")
_CODE_BYTES: Final = 6
# What is read without a rest: at the slowest, some tenths of a millisecond.
_TOKENS_MAX: Final = 32
_RUN_BYTES: Final = 1 << 10
_TEXT_BYTES: Final = 4 << 10
_MEASURED_DEPTH_MAX: Final = _DEPTH_MAX // 2
_DECODER: Final = json.JSONDecoder(strict=False)
_QUOTE, _OPEN_OBJECT, _OPEN_ARRAY, _CLOSE_OBJECT, _CLOSE_ARRAY = b'"{[}]'
UNKNOWN: Final = ""
"""The name of a member that stands for those that are not looked at."""


class _Container:
    """An object or array that has not ended."""

    __slots__ = ("at_name", "is_kept", "name", "place", "value")

    def __init__(self, value: dict[str, Any] | list[Any], place: Place, *, is_kept: bool) -> None:
        self.value = value
        self.place = place
        self.is_kept = is_kept
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

    def resumed(self, data: bytes) -> bytes:
        """The next bytes of the value, behind those of a token that was cut."""
        held, self._held = self._held, b""
        return held + data if held else data

    def read(self, data: bytes, at: int) -> int:
        """Read on, as far as no rest is needed.

        Args:
            data: the next bytes of the value; see :meth:`resumed`.
            at: where among them to begin.

        Returns:
            Where to go on, or what follows the object's end; the length where more bytes are needed.
        """
        stop = min(len(data), at + _RUN_BYTES)
        for _ in range(_TOKENS_MAX):
            if at >= stop or self.broken or self.ended:
                break
            if self._passing is not None:
                return self._pass(self._passing, data, at)
            if self._text is not None:
                return self._read_text(self._text, data, at)
            at = self._read(data, at)
        return at

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
            if inner.is_kept and inner.place.whole and not outer.place.whole:
                self._drop(outer)
        self._stack.clear()
        return self._root

    def _drop(self, outer: _Container) -> None:
        if isinstance(outer.value, dict):
            outer.value.pop(outer.name or UNKNOWN, None)
        elif outer.value:
            outer.value.pop()

    def _pass(self, passing: Nesting, data: bytes, at: int) -> int:
        end = passing.read(data, at)
        self.broken = passing.too_deep
        if self._text_counts:
            self.text_bytes += handed_bytes(data[at:end])
        if passing.ended:
            self._passing = None
        return end

    def _read(self, data: bytes, at: int) -> int:
        """Read one token, or some that are not kept; where the next one is."""
        at = span(_BETWEEN, data, at, len(data))
        if at == len(data):
            return at
        mark = data[at]
        if not self._stack and mark != _OPEN_OBJECT:
            self.broken = True
            return at
        if not self._items_left and isinstance(self._stack[-1].value, list):
            end = self._measure_items(data, at)
            if end > at:
                return end
        if mark == _QUOTE:
            return self._read_short_text(data, at)
        if mark in (_OPEN_OBJECT, _OPEN_ARRAY):
            self._open({} if mark == _OPEN_OBJECT else [])
        elif mark in (_CLOSE_OBJECT, _CLOSE_ARRAY):
            self._close(is_object=mark == _CLOSE_OBJECT)
        else:
            return self._read_scalar(data, at)
        return at + 1

    def _measure_items(self, data: bytes, at: int) -> int:
        """Measure the text of items that are not kept; where the next one is that is read by its tokens."""
        end = span(BALANCED, data, at, min(len(data), at + _RUN_BYTES))
        # A number at the end may go on.
        end = 1 + max(data.rfind(mark, at, end) for mark in (b"}", b"]", b'"'))
        if end <= at or len(self._stack) > _MEASURED_DEPTH_MAX:
            return at
        place = self._stack[-1].place
        if not place.silent:
            try:
                self.text_bytes += _said(_ITEMS.decode(f"[{data[at:end].decode()}]"), place)
            except ValueError:
                return at
        return end

    def _read_scalar(self, data: bytes, at: int) -> int:
        end = span(_SCALAR, data, at, len(data))
        if end - at > _TOKEN_BYTES_MAX or self._stack[-1].at_name:
            self.broken = True
        elif end == len(data):
            self._held = data[at:]
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
            return len(data)
        self._text = TextEnd()
        place = self._place()
        self._text_counts = place is not None and place.text
        self._take("")
        return at + 1

    def _read_text(self, text: TextEnd, data: bytes, at: int) -> int:
        """Read on in a long text, measuring it where the model wrote it."""
        stop = min(len(data), at + _TEXT_BYTES) if self._text_counts else len(data)
        end = text.find(data, at, stop)
        if self._text_counts:
            self._measure(data[at : stop if end < 0 else end], last=end >= 0)
        if end < 0:
            return stop
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
        said = token.decode("utf-8", "replace")
        value: object
        if token[0] == _QUOTE and b"\\" not in token:
            value = said[1:-1]
        else:
            try:
                value = _DECODER.decode(said)
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

    def _put(self, outer: _Container, value: object, place: Place | None) -> bool:
        """Keep a value in what holds it, as far as that is looked at and within bounds; whether it was."""
        outer.at_name = isinstance(outer.value, dict)
        if not outer.is_kept:
            return False
        if isinstance(outer.value, list):
            kept = self._items_left > 0
            if kept:
                self._items_left -= 1
                outer.value.append(value)
            return kept
        if place is None:
            if outer.value is self._root:
                outer.value.setdefault(UNKNOWN, None)
            return False
        if outer.place.whole:
            if not self._figures_left:
                return False
            self._figures_left -= 1
        outer.value[outer.name or UNKNOWN] = value
        return True

    def _open(self, value: dict[str, Any] | list[Any]) -> None:
        if not self._stack:
            self._root = cast("dict[str, Any]", value)
            self._stack.append(_Container(value, self._start, is_kept=True))
            return
        outer = self._stack[-1]
        if isinstance(outer.value, dict) and outer.at_name:
            self.broken = True
            return
        place = self._place()
        is_kept = self._put(outer, value, place)
        if place is None or not place.entered or len(self._stack) == _DEPTH_MAX:
            self._passing = Nesting()
            self._text_counts = place is not None and place.handed
        else:
            self._stack.append(_Container(value, place, is_kept=is_kept))

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
        runs: list[bytes] = _CODES.findall(plain)
        # Parted, so that halves of a character are not put together.
        said: str = json.loads(b'"' + b" ".join(runs) + b'"')
        codes = sum(map(len, runs))
        found += codes - codes // _CODE_BYTES - (utf8_bytes(said) - len(runs) + 1)
    return found


def _short(number: str) -> None:
    """Refuse a number that is too long to be one; which it is says nothing of a text.

    Raises:
        ValueError: it is.
    """
    if len(number) > _TOKEN_BYTES_MAX:
        raise ValueError("too many digits")


# Of members that are named twice both are measured.
_ITEMS: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_int=_short, parse_float=_short, strict=False)


def _said(value: object, place: Place) -> int:
    """UTF-8 bytes of what the model wrote in a value that was parsed with its members as pairs.

    Raises:
        ValueError: JSON is handed to a tool in it, which is measured as it is written.
    """
    if isinstance(value, str):
        return utf8_bytes(value) if place.text else 0
    if isinstance(value, list):
        inner = [(place, item) for item in rows(cast("object", value)) if item]
    elif isinstance(value, tuple):
        names = place.names
        pairs = cast("tuple[tuple[str, object], ...]", value)
        inner = [(names[name], held) for name, held in pairs if held and name in names]
    else:
        return 0
    if place.handed:
        raise ValueError("not measured here")
    return sum([_said(held, known) for known, held in inner if not known.silent])
