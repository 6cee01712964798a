"""Which lines of the plans file take the requests of an app's routes, found by asking the router itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from meterkit.asgi.app_routes import example_path
from meterkit.asgi.routing import Router
from meterkit.catalog.match_syntax import WEBSOCKET

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping, Sequence

    from meterkit.asgi.app_routes import AppRoute, Decider
    from meterkit.catalog import Catalog, Route

__all__ = ["Idle", "Taken", "described", "take"]

_REST: Final = ":path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What becomes of requests of a route.

    Attributes:
        methods: those of the route that the same lines take.
        line: takes them; None: no line does, and they pass undecided.
        parts: lines that take some of their paths before that, in the order of the file.
        is_decided: whether a MeterMiddleware stands before the route.
    """

    route: AppRoute
    methods: tuple[str, ...]
    line: Route | None
    parts: tuple[Route, ...]
    is_decided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A line of a plans file that takes no request of any route.

    Attributes:
        is_behind: whether routes match it, and earlier lines take all of their requests.
    """

    catalog: Catalog
    line: Route
    is_behind: bool


def take(routes: Sequence[AppRoute], otherwise: Decider | None) -> tuple[list[Taken], list[Idle]]:
    """What lines take each route, and the lines that take none.

    Args:
        routes: of an app, in its order.
        otherwise: what decides where the app has no MeterMiddleware at all.
    """
    if not any(route.decider for route in routes):
        routes = [replace(route, decider=otherwise) for route in routes]
    reached = [_Reached(route, route.pattern()) for route in routes]
    deciders = list(dict.fromkeys(route.decider for route in routes if route.decider is not None))
    lines = {decider: _Lines(decider) for decider in deciders}
    found: list[Taken] = []
    for place, one in enumerate(reached):
        if one.route.decider is not None:
            found += _taken(one, reached[:place], lines[one.route.decider])
        else:
            methods = one.route.methods
            found.append(Taken(route=one.route, methods=methods, line=None, parts=(), is_decided=False))
    used = set[int]().union(*(each.used for each in lines.values()))
    catalogs = {id(decider.catalog): decider.catalog for decider in deciders}
    idle = [
        Idle(catalog=catalog, line=line, is_behind=_is_behind(line, catalog, reached))
        for catalog in catalogs.values()
        for line in catalog.routes
        # `*` is there for what has no route, too.
        if id(line) not in used and line.path is not None
    ]
    return found, idle


@dataclass(frozen=True, slots=True)
class _Reached:
    route: AppRoute
    pattern: re.Pattern[str]

    def takes(self, method: str, path: str) -> bool:
        return method in self.route.methods and self.pattern.fullmatch(path) is not None


class _Lines:
    """The lines by which one middleware decides, and those of them that took something."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.routes = decider.catalog.routes
        self._router = Router(self.routes, root_path=decider.root_path)
        self.used: set[int] = set()

    def first(self, method: str, path: str) -> Route | None:
        """The line that takes a request."""
        found = _ask(self._router, self.decider, method, path)
        if found is not None:
            self.used.add(id(found))
        return found


def _is_behind(line: Route, catalog: Catalog, reached: Sequence[_Reached]) -> bool:
    """Whether requests of some route would fall under a line if it were alone."""
    return any(
        _ask(Router([line], root_path=decider.root_path), decider, method, path)
        for one in reached
        if (decider := one.route.decider) is not None and decider.catalog is catalog
        for path in _meetings(line, one.route, decider)
        for method in one.route.methods
        if one.takes(method, path)
    )


def _ask(router: Router, decider: Decider, method: str, path: str) -> Route | None:
    scope = {"type": "http", "method": method, "path": path}
    if decider.mount:
        scope |= {"root_path": decider.mount, "app_root_path": ""}
    if method == WEBSOCKET:
        return router.match_websocket(scope)
    return router.match_http(scope)


def _taken(one: _Reached, before: Sequence[_Reached], lines: _Lines) -> list[Taken]:
    """What becomes of a route, its methods put together where the same lines take them."""
    groups: dict[tuple[int, ...], Taken] = {}
    example = example_path(one.route.path)
    for method in one.route.methods:
        line = lines.first(method, example)
        parts = tuple(
            part
            for part in lines.routes
            if part is not line and part.path is not None and _takes_part(part, method, one, before, lines)
        )
        key = (id(line), *map(id, parts))
        known = groups.get(key)
        methods = (*known.methods, method) if known else (method,)
        groups[key] = Taken(route=one.route, methods=methods, line=line, parts=parts, is_decided=True)
    return list(groups.values())


def _takes_part(part: Route, method: str, one: _Reached, before: Sequence[_Reached], lines: _Lines) -> bool:
    """Whether some path of a route, which no earlier route takes, falls under a line."""
    return any(
        one.takes(method, path)
        and not any(
            earlier.route.host in {None, one.route.host} and earlier.takes(method, path) for earlier in before
        )
        and lines.first(method, path) is part
        for path in _meetings(part, one.route, lines.decider)
    )


def _meetings(line: Route, route: AppRoute, decider: Decider) -> set[str]:
    """Paths of which some are both the line's and the route's, if any are."""
    written = line.path or ""
    root = f"/{decider.root_path.strip('/')}" if decider.root_path else ""
    without = written.removeprefix(root) if root and written.startswith(f"{root}/") else written
    found = {example_path(route.path)}
    for template in (written, without):
        found |= {example_path(template), _meet(template, route.path), _meet(route.path, template)}
    return found


def _meet(first: str, second: str) -> str:
    """A path of two templates: of each segment the one that says more, in doubt the first one's."""
    return "/".join(_met(first.split("/"), second.split("/")))


def _met(one: Sequence[str], other: Sequence[str]) -> list[str]:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left.endswith(_REST) or right.endswith(_REST):
            begun = _met(one[:place], other[:place])
            open_ended, rest = (one, other[place:]) if left.endswith(_REST) else (other, one[place:])
            after = open_ended[place + 1 :]
            middle = len(rest) - len(after)
            return [*begun, *map(example_path, rest[:middle]), *_met(after, rest[middle:])]
    return [
        example_path(right if "{" in left and "{" not in right else left)
        for left, right in zip(one, other, strict=False)
    ]


def described(line: Route) -> str:
    """What a line does with a request, in short: ``feature full_ai; consume 1 requests; usage auto``."""
    if line.exempt:
        return "exempt"
    said = ["always"] if line.always else []
    said += [f"feature {line.feature}"] if line.feature else []
    for verb, quantities in (
        ("consume", line.consume),
        ("per message", line.per_message),
        ("grow", line.grow),
    ):
        said += [f"{verb} {_quantities(quantities)}"] if quantities else []
    said += [f"rate {rate.limit:,} per {rate.window}" for rate in line.rates]
    said += [f"usage {line.usage}"] if line.usage != "none" else []
    said += [f"reserve {', '.join(one.meter for one in line.reserve)}"] if line.reserve else []
    said += [f"storage {line.storage_meter}"] if line.storage_meter else []
    said += [line.enforcement] if line.enforcement != "on" else []
    return "; ".join(said) or "decided, counts nothing"


def _quantities(quantities: Mapping[str, int]) -> str:
    return ", ".join(f"{quantity:,} {meter}" for meter, quantity in quantities.items())
