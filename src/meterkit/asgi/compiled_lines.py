"""Lines of the plans file, compiled: which of them takes a method and a path, and how strict it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from starlette.routing import compile_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.asgi.path_readings import PathReading
    from meterkit.catalog.models import Route

CompiledLine = tuple["Route", "frozenset[str] | None", "re.Pattern[str] | None"]
"""A line, its methods and its pattern; None for all of them."""
_GATED, _COUNTED, _DECIDED, _EXEMPT, _NO_LINE = range(5)


def strictness(line: Route | None) -> int:
    """Rank a line, the strictest lowest: gated, counted, decided, ``exempt`` or ``always``, none."""
    if line is None:
        return _NO_LINE
    if line.feature is not None:
        return _GATED
    if line.exempt or line.always:
        return _EXEMPT
    return _COUNTED if _counts(line) else _DECIDED


class PathLine(NamedTuple):
    """One reading of a path, and the line that takes it; None: no line does."""

    reading: PathReading
    line: Route | None


class AskedLines(NamedTuple):
    """Lines to search for the one that takes a request.

    Attributes:
        is_odd: whether its method is taken for that of any line that decides.
    """

    lines: Sequence[CompiledLine]
    method: str
    is_odd: bool = False

    def only(self, lines: Iterable[CompiledLine]) -> AskedLines:
        """Ask some of the lines, or other patterns of them."""
        return self._replace(lines=list(lines))

    def accepts(self, route: Route, methods: frozenset[str] | None) -> bool:
        """Whether a line takes the method."""
        return methods is None or self.method in methods or (self.is_odd and not route.exempt)


def first_line(asked: AskedLines, paths: Sequence[str]) -> Route | None:
    """The first line that matches."""
    for route, methods, pattern in asked.lines:
        if asked.accepts(route, methods) and (pattern is None or any(map(pattern.match, paths))):
            return route
    return None


def _counts(line: Route) -> bool:
    """Whether a line asks for more than a customer."""
    return bool(
        line.consume
        or line.per_message
        or line.grow
        or line.storage
        or line.rates
        or line.reserve
        or line.usage != "none"
    )


def methods_of(route: Route) -> frozenset[str] | None:
    """Methods that a line takes; None: all."""
    if route.method is None:
        return None
    return frozenset({"GET", "HEAD"}) if route.method == "GET" else frozenset({route.method})


def pattern_of(route: Route) -> re.Pattern[str] | None:
    """Compile the path of a line; None: it takes all.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """
    if route.path is None:
        return None
    try:
        pattern = compile_path(route.path)[0]
        return pattern if route.exempt or route.always else re.compile(pattern.pattern, re.DOTALL)
    except (AssertionError, KeyError, ValueError, re.error) as error:
        raise ValueError(
            f"route {route.match!r}: {error}; a path is written as in Starlette, "
            "for example /files/{key:path}"
        ) from error
