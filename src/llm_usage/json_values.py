"""Looking into JSON that may have any shape."""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from llm_usage.call_usage import figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Table: TypeAlias = "Mapping[str, Any]"
Counts: TypeAlias = "Mapping[str, int]"

_TEXT_CHARS_MAX: Final = 256
_PREFIX_CHARS: Final = 128
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
    """A name: a text that is neither empty nor longer than 256 characters."""
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_CHARS_MAX else None


def short_id(value: object) -> str | None:
    """An id; of one with more than 256 characters its beginning and a hash.

    LiteLLM's proxy makes ids of some 400 to 600 characters, which begin alike.
    """
    if not isinstance(value, str) or len(value) <= _TEXT_CHARS_MAX:
        return text(value)
    hashed = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{value[:_PREFIX_CHARS]}~{hashed}"


def dig(value: object, path: Sequence[str]) -> Any:
    """Value at a path of member names, or None."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("Table", value).get(name)
    return value


class Paths(dict[str, "Sequence[Sequence[str]]"]):
    """Our name of a figure to the paths where it may stand; the first that holds a value counts.

    Attributes:
        tree: the same by the members of the object.
    """

    __slots__ = ("tree",)

    def __init__(self, places: Mapping[str, Sequence[Sequence[str]]]) -> None:
        super().__init__(places)
        self.tree: Mapping[str, _Place] = {}
        for name, alternatives in self.items():
            for rank, path in enumerate(alternatives):
                place = _Place({}, self.tree)
                for member in path:
                    place = place.inner.setdefault(member, _Place({}, {}))
                place.names[name] = rank


class _Place(NamedTuple):
    names: dict[str, int]
    inner: Any


def paths(**places: str) -> Paths:
    """Paths from texts: dotted paths, parted by blanks."""
    return Paths({name: [path.split(".") for path in found.split()] for name, found in places.items()})


def read_counts(usage: Table, paths: Paths) -> tuple[dict[str, int], bool]:
    """The figures of a usage object by our names, and whether one was refused.

    Args:
        usage: what the provider sent.
        paths: where each figure may stand.
    """
    found: dict[str, tuple[int, object]] = {}
    _find_values(usage, paths.tree, found)
    counts: dict[str, int] = {}
    refused = False
    for name, (_, value) in found.items():
        count = figure(value)
        if count is None:
            refused = True
        else:
            counts[name] = count
    return counts, refused


def _find_values(value: Table, tree: Mapping[str, _Place], found: dict[str, tuple[int, object]]) -> None:
    """Find the value of the best place for each name: members that are there are fewer than the places."""
    for member in value if len(value) <= len(tree) else tree:
        inner, place = value.get(member), tree.get(member)
        if inner is None or place is None:
            continue
        for name, rank in place.names.items():
            if name not in found or rank < found[name][0]:
                found[name] = rank, inner
        if place.inner and isinstance(inner, dict):
            _find_values(cast("Table", inner), place.inner, found)
