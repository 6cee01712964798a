"""Whether one ``match`` line takes every request that another would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.match_syntax import PARAMETER, WEBSOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["covers"]

_DIGITS: Final = frozenset("0123456789")
# What a parameter is sure to take of another line: single characters of it, and its parameters by convertor.
_TAKES: Final = {
    "str": frozenset({"str", "int", "float", "uuid"}),
    "int": frozenset({"int"}),
    "float": frozenset({"float", "int"}),
    "uuid": frozenset({"uuid"}),
}


Match = tuple[str | None, str | None]
"""A method and a path template, as :func:`meterkit.catalog.match_syntax.parse_match` gives them."""


def covers(earlier: Match, later: Match) -> bool:
    """Whether every request that falls under ``later`` falls under ``earlier``.

    What is said to be covered is; a line may be covered without its being seen. Line breaks in paths, which
    ``{key:path}`` of ``exempt`` and ``always`` lines does not take, are left out of account.
    """
    method, path = earlier
    later_method, later_path = later
    if path is None:
        return True
    return later_path is not None and _covers_method(method, later_method) and _covers_path(path, later_path)


def _covers_method(method: str | None, later: str | None) -> bool:
    if method is None:
        return later != WEBSOCKET
    return method == later or (method == "GET" and later == "HEAD")


def _covers_path(path: str, later: str) -> bool:
    """Follow the steps of ``path`` along the parts of ``later``, all ways at once."""
    literal = path.partition("{")[0]
    if not later.startswith(literal):
        return False
    steps = [step for part in _parts(path[len(literal) :]) for step in _steps(part)]
    reached = _closed({0}, steps)
    for part in _parts(later[len(literal) :]):
        reached = _closed(
            {
                at if steps[at][1] else at + 1
                for at in reached
                if at < len(steps) and _takes(steps[at][0], part)
            },
            steps,
        )
    return len(steps) in reached


def _parts(path: str) -> list[str]:
    """Single characters, and for each parameter ``{convertor}``."""
    found: list[str] = []
    end = 0
    for parameter in PARAMETER.finditer(path):
        found += path[end : parameter.start()]
        found.append(f"{{{parameter[2] or 'str'}}}")
        end = parameter.end()
    return [*found, *path[end:]]


def _steps(part: str) -> list[tuple[str, bool]]:
    """What takes a part; the flag says that it takes any number of them, none too."""
    if part == "{path}":
        return [(part, True)]
    more = {"{str}": "{str}", "{int}": "{int}", "{float}": "{int}"}.get(part)
    return [(part, False), (more, True)] if more else [(part, False)]


def _closed(reached: Iterable[int], steps: list[tuple[str, bool]]) -> set[int]:
    """With the steps that may be passed over."""
    found = set[int]()
    for at in reached:
        further = at
        found.add(further)
        while further < len(steps) and steps[further][1]:
            further += 1
            found.add(further)
    return found


def _takes(step: str, part: str) -> bool:
    if step == "{path}":
        return True
    if len(step) == 1 or part == "{path}":
        return step == part
    convertor = step.strip("{}")
    if len(part) > 1:
        return part.strip("{}") in _TAKES[convertor]
    if convertor == "str":
        return part != "/"
    return convertor in {"int", "float"} and part in _DIGITS
