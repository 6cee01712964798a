"""Reads the wanted members of JSON objects of any size as they come, in bounded memory."""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from llm_usage.framing.incremental import drain
from llm_usage.framing.json import TEXT, JsonScanner, balanced_pattern, span
from llm_usage.json_values import rows
from llm_usage.layout import ROOT, tool_input_bytes, utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_usage.framing.incremental import LargeReader, Steps, Work
    from llm_usage.json_values import Table
    from llm_usage.layout import ValuePlace

_TOKEN_BYTES_MAX: Final = 256
"""A longer text is kept as an empty one; a longer number makes the value unreadable."""
_ID_BYTES_MAX: Final = 2_048
_IDS: Final = frozenset({"id", "item_id", "generation_id", "responseId", "response_id"})
"""Members that tell the id of a call."""
_BUDGETS: Final = {
    "items": 32,  # Of arrays; of those that are not kept only the text is measured.
    "figures": 256,  # Members of usage objects.
    "rows": 512,  # Members of what is in arrays of usage objects; an item counts as eight of them.
}
_ROW_COST: Final = 8
_DEPTH_MAX: Final = 64
_SEPARATORS: Final = re.compile(rb"[ \t\r\n,]*+")
_BETWEEN: Final = re.compile(rb"[\s,:]*+")
_SCALAR: Final = re.compile(rb'[^\s,:"{}\[\]]++')
_CODES: Final = re.compile(rb"(?>(?:\\u[0-9A-Fa-f]{4})+)")
_CODE_BYTES: Final = 6
# Bytes read without a pause: at the slowest, some tenths of a millisecond.
_TOKENS_MAX: Final = 32
_RUN_BYTES: Final = 1 << 10
_MEASURED_DEPTH_MAX: Final = _DEPTH_MAX // 2
_DECODER: Final = json.JSONDecoder(strict=False)
_BYTES: Final = re.compile(rb'"bytes"\s*:\s*"')
_BYTES_NAME_MAX: Final = 64
UNKNOWN: Final = ""
"""The name of a member that stands for those that are not looked at."""


@dataclass(slots=True, eq=False)
class _Container:
    """An object or array that has not ended."""

    value: dict[str, Any] | list[Any]
    place: ValuePlace
    key: str | None
    is_kept: bool
    in_rows: bool = False  # Whether it is an array of a usage object, or within one.
    name: str | None = None  # Of the member whose value comes next, once it is read.

    def next_place(self) -> ValuePlace | None:
        """The place of the value that comes next; None where it is not looked at, or is a name."""
        if isinstance(self.value, list):
            return self.place
        return None if self.name is None else self.place.member(self.name)


class LargeJsonReader(JsonScanner):
    """Reads JSON objects that follow one another, and keeps those members that readers of usage look at.

    What it keeps has a bound: of long texts and of the hundreds of items of an array nothing is kept but that
    they are there. What is not looked at is passed over without being checked.

    Args:
        emit: takes what was kept of an object, and the UTF-8 bytes of what the model wrote in it.
        spoiled: called if an expected object was none, or had no end.
        place: where the objects stand.

    Attributes:
        text_bytes: of what the model wrote in the object that has not come to its end.
    """

    def __init__(
        self, emit: Callable[[Table, int], None], spoiled: Callable[[], None], place: ValuePlace = ROOT
    ) -> None:
        super().__init__()
        self._emit = emit
        self._spoiled = spoiled
        self._place = place
        self._root: dict[str, Any] = {}
        self._stack: list[_Container] = []
        self._left = dict(_BUDGETS)
        self.text_bytes = 0
        self._is_open = False

    def end(self) -> None:
        """Nothing follows: of what has not come to its end, what there is of it is passed on.

        Figures that were cut off are left out, and of a text that was, what there is of it is measured.
        """
        drain(self.close())
        if self._is_open:
            self._spoiled()
            for outer, inner in zip(self._stack, self._stack[1:], strict=False):
                if inner.is_kept and inner.place.keeps_all and not outer.place.keeps_all:
                    _drop_last(outer.value, inner.key)
            self._pass_on()

    def _pass_on(self) -> None:
        measured, self.text_bytes = self.text_bytes, 0
        self._is_open = False
        if self._stack or not self.stopped:
            self._emit(self._root, measured)

    def _run(self) -> Steps:
        while not self.stopped:
            self._at = span(_SEPARATORS, self._data, self._at)
            if self._at < len(self._data):
                self._is_open = True
                yield from self._read_object()
                if self._stack or self.stopped:
                    return
                self._pass_on()
                yield False
            elif self._is_over:
                return
            else:
                yield True

    def _read_object(self) -> Steps:
        self._root = {}
        self._stack = [_Container(self._root, self._place, None, is_kept=True)]
        self._left = dict(_BUDGETS)
        self.stopped = not self._data.startswith(b"{", self._at)
        self._at += 1
        steps = 0
        while self._stack and not self.stopped:
            steps += 1
            if not steps % _TOKENS_MAX:
                yield False
            outer = self._stack[-1]
            self._at = span(_BETWEEN, self._data, self._at)
            mark = self._data[self._at : self._at + 1]
            if not mark:
                if self._is_over:
                    return
                yield True
            elif (
                isinstance(outer.value, list)
                and self._left[_budget(outer)] <= 0
                and self._measure_items(outer.place)
            ):
                yield False
            elif mark == b'"':
                yield from self._handle_text(outer)
            elif mark in b"{[":
                self._at += 1
                yield from self._open_container(outer, {} if mark == b"{" else [])
            elif mark in b"}]":
                self._at += 1
                self._stack.pop()
                self.stopped = isinstance(outer.value, dict) != (mark == b"}")
            else:
                yield from self._handle_scalar(outer)

    def _handle_scalar(self, outer: _Container) -> Steps:
        data, at = self._data, self._at
        end = span(_SCALAR, data, at)
        if end - at > _TOKEN_BYTES_MAX or (isinstance(outer.value, dict) and outer.name is None):
            self.stopped = True
        elif end < len(data):
            self._at = end
            self._handle_token(outer, data[at:end])
        elif self._is_over:
            self._at = end
        else:
            yield True

    def _handle_text(self, outer: _Container) -> Steps:
        """Read a name or a text, of a long one only how long it is where the model wrote it."""
        most = _ID_BYTES_MAX if outer.name in _IDS else _TOKEN_BYTES_MAX
        found = TEXT.match(self._data, self._at, self._at + most)
        if found is not None:
            self._at = found.end()
            self._handle_token(outer, found[0])
        elif len(self._data) - self._at <= most and not self._is_over:
            yield True
        else:
            self._at += 1
            place = outer.next_place()
            self._keep_value(outer, "", place)
            yield from self._read_text(_ignore if place is None or not place.is_text else self._measure)

    def _handle_token(self, outer: _Container, token: bytes) -> None:
        written = token.decode("utf-8", "replace")
        value: object
        if written[0] == '"' and "\\" not in written:
            value = written[1:-1]
        else:
            try:
                value = _DECODER.decode(written)
            except ValueError:
                self.stopped = True
                return
        place = outer.next_place()
        if place is not None and place.is_text and isinstance(value, str):
            self.text_bytes += utf8_bytes(value)
            value = ""
        self._keep_value(outer, value, place)

    def _keep_value(self, outer: _Container, value: object, place: ValuePlace | None) -> bool:
        """Take a name; or keep a wanted value within bounds: whether it was kept."""
        kept = outer.value
        if isinstance(kept, dict) and outer.name is None:
            self.stopped = not isinstance(value, str)
            outer.name = str(value)
            return False
        name, outer.name = outer.name or UNKNOWN, None
        if not outer.is_kept:
            return False
        if place is None and not isinstance(kept, list):
            if kept is self._root:
                kept.setdefault(UNKNOWN, None)
            return False
        if isinstance(kept, list) or outer.place.keeps_all:
            budget = _budget(outer)
            if self._left[budget] <= 0:
                return False
            self._left[budget] -= _ROW_COST if budget == "rows" and isinstance(kept, list) else 1
        if isinstance(kept, list):
            kept.append(value)
        else:
            kept[name] = value
        return True

    def _open_container(self, outer: _Container, value: dict[str, Any] | list[Any]) -> Steps:
        place, key = outer.next_place(), outer.name
        is_kept = self._keep_value(outer, value, place)
        if place is None or not place.is_entered or len(self._stack) == _DEPTH_MAX:
            yield from self._pass_over(
                self._measure_tool_input if place is not None and place.is_tool_input else _ignore
            )
        else:
            in_rows = outer.in_rows or (place.keeps_all and isinstance(value, list))
            self._stack.append(_Container(value, place, key, is_kept=is_kept, in_rows=in_rows))

    def _measure(self, piece: bytes) -> None:
        self.text_bytes += len(piece) - (_escaping_bytes(piece) if b"\\" in piece else 0)

    def _measure_tool_input(self, piece: bytes) -> None:
        self.text_bytes += tool_input_bytes(piece)

    def _measure_items(self, place: ValuePlace) -> bool:
        """Measure the text of items that are not kept; False where they are to be read by their tokens."""
        data, at = self._data, self._at
        end = span(balanced_pattern(), data, at, min(len(data), at + _RUN_BYTES))
        # A number at the end may go on; one before a comma has ended.
        ended = 1 + max(data.rfind(mark, at, end) for mark in (b"}", b"]", b'"'))
        end = max(ended, data.rfind(b",", at, end))
        if end <= at or len(self._stack) > _MEASURED_DEPTH_MAX:
            return False
        if not place.is_textless:
            try:
                self.text_bytes += _text_bytes_in(_ITEMS.decode(f"[{data[at:end].decode()}]"), place)
            except ValueError:
                return False
        self._at = end
        return True


def _budget(outer: _Container) -> str:
    """The budget that what is kept of a container counts against."""
    if outer.in_rows:
        return "rows"
    return "figures" if outer.place.keeps_all else "items"


def _ignore(_: bytes) -> None:
    """A value that is skipped."""


def _drop_last(kept: dict[str, Any] | list[Any], key: str | None) -> None:
    """Leave out the member, or the item, that came last."""
    if isinstance(kept, list):
        del kept[-1:]
    else:
        kept.pop(key or UNKNOWN, None)


def _escaping_bytes(piece: bytes) -> int:
    """By how many bytes escapes are longer than what they stand for."""
    plain = piece.replace(b"\\\\", b"/")
    found = len(piece) - len(plain) + plain.count(b"\\")
    if b"\\u" in plain:
        runs: list[bytes] = _CODES.findall(plain)
        # Parted, so that halves of a character are not put together.
        characters: str = json.loads(b'"' + b" ".join(runs) + b'"')
        codes = sum(map(len, runs))
        found += codes - codes // _CODE_BYTES - (utf8_bytes(characters) - len(runs) + 1)
    return found


def _check_length(number: str) -> None:
    """Refuse a number that is too long to be one; which it is says nothing of a text.

    Raises:
        ValueError: it is.
    """
    if len(number) > _TOKEN_BYTES_MAX:
        raise ValueError("too many digits")


# Of members that are named twice both are measured.
_ITEMS: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_check_length, parse_float=_check_length, strict=False
)


def _text_bytes_in(value: object, place: ValuePlace) -> int:
    """UTF-8 bytes of what the model wrote in a value that was parsed with its members as pairs.

    Raises:
        ValueError: JSON is handed to a tool in it, which is measured as it is written.
    """
    if isinstance(value, str):
        return utf8_bytes(value) if place.is_text else 0
    if isinstance(value, list):
        inner = [(place, item) for item in rows(cast("object", value)) if item]
    elif isinstance(value, tuple):
        members = place.members
        pairs = cast("tuple[tuple[str, object], ...]", value)
        inner = [(members[name], held) for name, held in pairs if held and name in members]
    else:
        return 0
    if place.is_tool_input:
        raise ValueError("not measured here")
    return sum([_text_bytes_in(held, known) for known, held in inner if not known.is_textless])


class Base64JsonReader:
    """Reads the JSON that another JSON object has in base64, as Bedrock's frames do.

    Args:
        data: reads what was encoded.
    """

    __slots__ = ("_data", "_head", "_rest")

    def __init__(self, data: LargeReader) -> None:
        self._data = data
        self._head: bytes | None = b""
        self._rest = b""

    def feed(self, data: bytes) -> Work:
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
        yield from self._data.feed(decoded) or ()

    def end(self) -> None:
        """The outer object has come to its end."""
        self._data.end()
