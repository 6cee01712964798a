"""JSON members as any parser may read them.

Parsers disagree about members that are named twice, about capitals in names, and about figures written as
text: of all readings the dearest is taken. An app may ignore each of these, so they never lower a limit: only
an integer under the exact name does.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from math import ceil, isnan
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")
Members: TypeAlias = "tuple[tuple[str, Any], ...]"
"""An object, with members that are named twice; arrays are lists, and numbers of many digits texts."""
NamedValue: TypeAlias = "tuple[str, Any]"
"""A value with its name in the request; a member of another object has the dotted path."""
MEMBERS_MAX: Final = 1_024
NAME_CHARS_MAX: Final = 64
MODEL_NAMES: Final = ("deployment", "model")
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
# Every number that a program writes is shorter: a float has at most 17 digits, a sign, a dot and an exponent.
_NUMBER_CHARS_MAX: Final = 24
NO_VALUES: Final[list[Any]] = []
UNREADABLE: Final = True
"""Stands for an unknown value."""


def _integer(written: str) -> int | str:
    """An integer; its text if that is so long that converting it is slow."""
    return int(written) if len(written) <= _NUMBER_CHARS_MAX else written


def _fraction(written: str) -> float | str:
    """A number with a fraction or an exponent; its text likewise."""
    return float(written) if len(written) <= _NUMBER_CHARS_MAX else written


DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_float=_fraction, parse_int=_integer)


@lru_cache(maxsize=1_024)
def fold_name(name: str) -> str:
    """A name without what parsers overlook: capitals (Go), ``maxTokens`` for ``max_tokens`` (Protobuf)."""
    return name.casefold().replace("_", "")


@lru_cache(maxsize=256)
def fold_path(field: str) -> tuple[str, str, tuple[str, ...]]:
    """A field, folded: as one name, its first name, and the path from there."""
    first, *path = map(fold_name, field.split("."))
    return fold_name(field), first, tuple(path)


def group_by_name(members: Members, prefix: str = "") -> dict[str, list[NamedValue]]:
    """Members by their folded names, each under its own name after a prefix."""
    found: dict[str, list[NamedValue]] = {}
    for name, value in members:
        if len(name) <= NAME_CHARS_MAX:
            found.setdefault(fold_name(name), []).append((prefix + name, value))
    return found


def members_named(outer: NamedValue, folded: str) -> list[NamedValue]:
    """Members of a value that have a folded name; one that is unreadable if the value is no small object."""
    path, value = outer
    if value is None:
        return []
    members = cast("Members", value) if isinstance(value, tuple) else ()
    if not isinstance(value, tuple) or len(members) > MEMBERS_MAX:
        return [(path, UNREADABLE)]
    return group_by_name(members, f"{path}.").get(folded, [])


def values_read(named: Sequence[tuple[str, T]]) -> list[T]:
    """Values of repeated names that readers take: the first and the last one of all and of a usual spelling.

    A client can write a name in so many spellings that not each can count.

    Args:
        named: each value after its name as it is spelled, in the order of the request.
    """
    if len(named) <= 1:
        return [value for _, value in named]
    usual = [[pair for pair in named if pair[0] == name] for name in MODEL_NAMES]
    return [value for group in (named, *usual) for _, value in (*group[:1], *group[-1:])]


def exact_readings(value: object, path: tuple[str, ...]) -> Iterator[object]:
    """Yield each value under the exact names of a path; None where a parser finds none."""
    if not path or value is None:
        yield value
    elif not isinstance(value, tuple):
        yield UNREADABLE
    else:
        found = [inner for name, inner in cast("Members", value) if name == path[0]]
        for inner in found or [None]:
            yield from exact_readings(inner, path[1:])


def largest_reading(value: object) -> int:
    """The most that a value may be to one parser or another: 10^15 - 1 where that is not known."""
    figure = read_figure(value)
    if value is None:
        return 0
    is_plain = not isinstance(value, str) or _DIGITS.fullmatch(value) is not None
    return figure if figure is not None and is_plain else FIGURE_MAX


def read_figure(value: object) -> int | None:
    """A figure from 1 to 10^15 - 1, rounded up; larger ones as that; None where it is none."""
    if type(value) is int:
        return min(value, FIGURE_MAX) if value >= 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        # As lenient as apps are: blanks, exponents and digits of other scripts.
        figure = float(value)
    except ValueError:
        return None
    return None if isnan(figure) or figure < 1 else ceil(min(figure, FIGURE_MAX))
