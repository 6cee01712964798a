"""Looking into JSON that may have any shape."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from meterkit.tokens.call_usage import figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Table: TypeAlias = "Mapping[str, Any]"
Paths: TypeAlias = "Mapping[str, Sequence[Sequence[str]]]"
Counts: TypeAlias = "Mapping[str, int]"

_TEXT_CHARS_MAX: Final = 256
# A smaller or less nested event is parsed within a millisecond.
_DENSE_BYTES_MIN: Final = 1 << 10
_BRACKETS_MAX: Final = 256
_decode: Final[Callable[[str], object]] = json.JSONDecoder().decode


def load(data: bytes | bytearray) -> object:
    """The JSON value.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        return _decode(data.removeprefix(BOM_UTF8).decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_dense(data: bytes) -> bool:
    """Whether an event is so full of brackets that it would take long to parse."""
    return len(data) > _DENSE_BYTES_MIN and data.count(b"{") + data.count(b"[") > _BRACKETS_MAX


def table(value: object) -> Table | None:
    """The value, if it is an object with members."""
    return cast("Table", value) if isinstance(value, dict) else None


def rows(value: object) -> list[Any]:
    """The items of an array; none, if it is something else."""
    return cast("list[object]", value) if isinstance(value, list) else []


def text(value: object) -> str | None:
    """A name or id: a text that is neither empty nor longer than 256 characters."""
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_CHARS_MAX else None


def dig(value: object, path: Sequence[str]) -> Any:
    """What stands at a path of member names, or None."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("Table", value).get(name)
    return value


def paths(**places: str) -> Paths:
    """Where figures may stand, by our names for them: dotted paths, parted by blanks."""
    return {name: [path.split(".") for path in found.split()] for name, found in places.items()}


def read_counts(usage: Table, paths: Paths) -> tuple[dict[str, int], bool]:
    """The figures of a usage object by our names, and whether one was refused.

    Args:
        usage: what the provider sent.
        paths: our name to the paths where the figure may stand; the first that holds a value counts.
    """
    counts: dict[str, int] = {}
    refused = False
    for name, alternatives in paths.items():
        for path in alternatives:
            found = usage.get(path[0])  # Most figures are not there: that is seen at the first name.
            if found is not None and len(path) > 1:
                found = dig(found, path[1:])
            if found is not None:
                count = figure(found)
                if count is None:
                    refused = True
                else:
                    counts[name] = count
                break
    return counts, refused
