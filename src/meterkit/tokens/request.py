"""What a request's JSON asks for, read so that no parser could find more in it.

Parsers disagree about members that are named twice, about capitals in names, and about figures written as
text: of all readings the dearest is taken.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.json_values import rows
from meterkit.tokens.layout import utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES_MAX: Final = 1 << 20
"""A larger body is not read: parsing it would hold up other requests."""
MARKS_MAX: Final = 1 << 14
"""A body with more commas and brackets is not read, for the same reason."""

_Pairs: TypeAlias = "tuple[tuple[str, Any], ...]"
"""An object, with members that are named twice; arrays are lists, and all numbers floats."""

_MEMBERS_MAX: Final = 1_024
_ALIKE_MAX: Final = 16
_NAME_CHARS_MAX: Final = 64
_SHORT_CHARS_MAX: Final = 256
_VALUES_MAX: Final = 3_072
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
# Every number that a program writes is shorter: a float has at most 17 digits, a sign, a dot and an exponent.
_NUMBER_CHARS_MAX: Final = 24
# And byte order marks, and the other bytes of a blank in UTF-16 and UTF-32.
_BLANK: Final = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
_NONE: Final[list[Any]] = []
_UNREADABLE: Final = True
"""Stands for an unknown value."""


def _number(written: str) -> float:
    """A number, exact up to QUANTITY_MAX; infinite if its text is so long that converting it is slow."""
    return float(written) if len(written) <= _NUMBER_CHARS_MAX else inf


_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_float=_number, parse_int=_number)

_OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample")
_ANSWERS: Final = (
    *("n", "best_of", "candidate_count", "num_generations", "num_return_sequences"),
    *("generationConfig.candidateCount", "parameters.candidateCount"),
    *("parameters.best_of", "parameters.num_return_sequences"),
)
_MEDIA: Final = frozenset(
    {
        *("image_url", "input_audio", "inlineData", "inline_data", "fileData", "file_data", "file_id"),
        *("image", "images", "audio", "video"),
    }
)
_MEDIA_SOURCES: Final = ("base64", "url", "file")
_MEDIA_DATA: Final = ("data", "url", "file_id")
_NO_TEXT: Final = frozenset(
    {
        *("type", "role", "id", "tool_call_id", "tool_use_id", "call_id", "cache_control", "cachePoint"),
        *("model", "user"),
    }
)


class LlmRequest:
    """What a request says whose body was read to its end.

    Args:
        root: the body's members.
    """

    __slots__ = ("_named", "_root")

    def __init__(self, root: _Pairs = ()) -> None:
        self._root = root
        self._named = _by_name(root)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are named; several where `model` stands twice, or in two spellings."""
        found = [value for value in self._named.get("model", ()) if isinstance(value, str) and value]
        return tuple(dict.fromkeys(found))

    @property
    def model(self) -> str | None:
        """The model that is named; the last one of several, as most readers of JSON take it."""
        return self.models[-1] if self.models else None

    def limit(self, field: str) -> int | None:
        """The quantity that a field names; None where it is absent or null.

        Args:
            field: a member's name, or a dotted path such as ``generationConfig.maxOutputTokens``. OpenAI's
                names for the limit of output tokens are one field.

        Returns:
            The largest that any parser could read, from 1; 10^15 - 1 if that is unknown: for a
            figure from 0 down, which some take for no limit, and for one of more than 24 characters; for
            texts and objects likewise.
        """
        names = _OUTPUT_LIMITS if field in _OUTPUT_LIMITS else (field,)
        return max(self._quantities(names), default=None)

    def answers(self) -> int:
        """For how many answers it asks: choices of each prompt, times the prompts."""
        if self._named.keys().isdisjoint(_SEVERAL):
            return 1
        # Texts and arrays of tokens are a prompt each, and so is one array of tokens.
        prompts = [sum(type(item) is not float for item in rows(value)) for value in self._at("prompt")]
        return min(max(1, *self._quantities(_ANSWERS), 1) * max(1, *prompts, 1), QUANTITY_MAX)

    def input_size(self) -> tuple[int, int, int] | None:
        """Bytes of text, tokens given as numbers, and media parts; None where there are too many values."""
        values: list[Any] = [self._root]
        found = measure(values, values_max=_VALUES_MAX)
        return None if values else found

    def _quantities(self, names: tuple[str, ...]) -> Iterator[int]:
        for name in names:
            for value in self._at(name):
                found = _quantity(value)
                if found is not None:
                    yield found

    def _at(self, field: str) -> list[Any]:
        """All that a field may be to one parser or another."""
        whole, first, path = _path(field)
        found = self._named.get(whole, _NONE)
        level = self._named.get(first) if path else None
        if level is not None:
            for name in path:
                level = [value for outer in level[:_ALIKE_MAX] for value in _members(outer, name)]
                if len(level) > _ALIKE_MAX:
                    return [_UNREADABLE]
            found = [*found, *level]
        return found if len(found) <= _ALIKE_MAX else [_UNREADABLE]


def read_request(body: bytes) -> LlmRequest | None:
    """What a whole body asks for; None where it is no JSON object, or larger or denser than is read.

    Takes the time of other requests: some milliseconds at most, whatever the body.
    """
    if len(body) > READ_BYTES_MAX or not body.lstrip(_BLANK).startswith(b"{"):
        return None
    if sum(map(body.count, (b",", b"{", b"["))) > MARKS_MAX:
        return None
    try:
        root: object = _DECODER.decode(body.decode(json.detect_encoding(body)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(root, tuple):
        return None
    members = cast("_Pairs", root)
    return LlmRequest(members) if len(members) <= _MEMBERS_MAX else None


def _quantity(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and value > 0:
        return ceil(min(value, QUANTITY_MAX))
    return QUANTITY_MAX


def _folded(name: str) -> str:
    """A name without what parsers overlook: capitals (Go), ``maxTokens`` for ``max_tokens`` (Protobuf)."""
    return name.casefold().replace("_", "")


@lru_cache(maxsize=256)
def _path(field: str) -> tuple[str, str, tuple[str, ...]]:
    """A field that a plans file names, folded: as one name, its first name, and the path from there."""
    first, *path = map(_folded, field.split("."))
    return _folded(field), first, tuple(path)


def _by_name(members: _Pairs) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in members:
        if len(name) <= _NAME_CHARS_MAX:
            found.setdefault(_folded(name), []).append(value)
    return found


def _members(outer: object, folded: str) -> list[Any]:
    if outer is None:
        return []
    if not isinstance(outer, tuple):
        return [_UNREADABLE]
    members = cast("_Pairs", outer)
    return _by_name(members).get(folded, []) if len(members) <= _MEMBERS_MAX else [_UNREADABLE]


def measure(values: list[Any], *, values_max: int) -> tuple[int, int, int]:
    """Bytes of text, tokens given as numbers, and media parts in values of any depth.

    Args:
        values: parsed JSON, its objects as dicts, or as pairs with all numbers floats. It keeps the values
            beyond the bound.
        values_max: how many values are read.
    """
    size = numbers = media = 0
    for _ in range(values_max):
        if not values:
            break
        value = values.pop()
        if isinstance(value, str):
            size += utf8_bytes(value)
        elif isinstance(value, list):
            items = rows(cast("object", value))
            others = [item for item in items if type(item) not in (int, float) or item % 1]
            numbers += len(items) - len(others)
            values += others
        elif isinstance(value, dict):
            media += _parts(tuple(cast("dict[str, Any]", value).items()), values)
        elif isinstance(value, tuple) and len(cast("_Pairs", value)) > _MEMBERS_MAX:
            values.append(value)
            break
        elif isinstance(value, tuple):
            media += _parts(cast("_Pairs", value), values)
    return size, numbers, media


def _parts(members: _Pairs, values: list[Any]) -> int:
    """How many media parts an object is; what else is in it is added to the values."""
    is_source = any(name == "type" and value in _MEDIA_SOURCES for name, value in members)
    media = 0
    for name, value in members:
        if name in _MEDIA or (is_source and name in _MEDIA_DATA):
            media += max(1, len(rows(value)))
        elif name not in _NO_TEXT or not isinstance(value, str) or len(value) > _SHORT_CHARS_MAX:
            values.append(value)
    return media


# What must be in a request that asks for more than one answer, wherever in it the number stands.
_SEVERAL: Final = frozenset({"prompt"}.union(*(_path(name)[:2] for name in _ANSWERS)))
