"""Routes of a Starlette or FastAPI app, with mounts and hosts, and the plans file's line of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX
from starlette.staticfiles import StaticFiles

from meterkit.asgi.app_walk import ANY_METHOD, WEBSOCKET, RequestWay, path_pattern, unwrap, walk_app
from meterkit.asgi.middleware import MeterMiddleware
from meterkit.asgi.path_readings import path_rules_of_app
from meterkit.asgi.route_matching import Router, root_path_of_app
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.asgi.app_walk import AppPlace
    from meterkit.asgi.path_readings import Paths
    from meterkit.asgi.route_matching import PathLine
    from meterkit.catalog import Catalog, Route

_READING: Final = ("GET", "HEAD")
_EXAMPLES: Final = {
    "str": "~",
    "path": "~/~",
    "int": "7340033",
    "float": "7340033.5",
    "uuid": "9f1c2b7e-54a3-4d0f-8a6e-0c1d2e3f4a5b",
}
"""Sample values of parameters, with which a path is made of a template; no line names just these."""
_FURTHER_EXAMPLES: Final = (*_EXAMPLES.values(), "a", "aa", "aaa", "2031-06-10", "2031-06-10T12:00:00")


@dataclass(frozen=True, slots=True, eq=False)
class RequestDecider:
    """MeterMiddleware of an app, reduced to the data that finds the line of a request.

    Attributes:
        catalog: its kit's.
        root_path: what the app that it wraps takes for its root path, whatever the server says.
        mount: an example of the path at which it is mounted; empty where it is not.
        app: the app that it wraps.
        paths: its argument `paths`.
    """

    catalog: Catalog
    root_path: str
    mount: str = ""
    app: object = None
    paths: Paths | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoute:
    """Route of an app, or a mounted app that does not list its routes.

    Attributes:
        methods: ``("WS",)`` for a websocket.
        pieces: the path template, cut where mounts end.
        host: the template of the host it is for, or None.
        decider: decides its requests; None: no middleware does.
        app: the innermost app; for a handler, Starlette's own function around it.
    """

    methods: tuple[str, ...]
    pieces: tuple[str, ...]
    host: str | None
    decider: RequestDecider | None
    app: object = None

    @property
    def path(self) -> str:
        """Path template as clients see it."""
        return "".join(self.pieces)

    def pattern(self) -> re.Pattern[str]:
        """Compile the pattern of its paths, by Starlette's own. Mounts may repeat the name of a parameter."""
        return path_pattern(self.pieces)


def example_path(template: str) -> str:
    """Build a sample path that falls under a template."""
    return PARAM_REGEX.sub(lambda parameter: _example(parameter[2] or ":str"), template)


def _example(convertor: str) -> str:
    name = convertor.removeprefix(":")
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    pattern = getattr(CONVERTOR_TYPES.get(name), "regex", "")  # One of the app's own.
    return next((text for text in _FURTHER_EXAMPLES if re.fullmatch(pattern, text)), _EXAMPLES["str"])


def routes_of(app: object) -> list[AppRoute]:
    """List the routes of an app, in the order in which it tries them; wrappers are looked through.

    Raises:
        MeterkitError: the app does not list its routes.
    """
    inner = unwrap(app, RequestWay())[0]
    if not hasattr(inner, "routes"):
        raise MeterkitError(
            f"the app does not list its routes: found a value of type {type(inner).__name__}; allowed is an"
            " app of Starlette or FastAPI, or what wraps one and has it as `.app`"
        )
    known: dict[int, RequestDecider] = {}
    return [_app_route(place, known) for place in walk_app(app) if place.is_listed]


def deciders_of(app: object) -> list[RequestDecider]:
    """List the MeterMiddlewares of an app that decide, each once."""
    known: dict[int, RequestDecider] = {}
    return list(dict.fromkeys(filter(None, (_decider(place.way, known) for place in walk_app(app)))))


def _app_route(place: AppPlace, known: dict[int, RequestDecider]) -> AppRoute:
    methods = place.methods or (_READING if isinstance(place.app, StaticFiles) else ANY_METHOD)
    decider = _decider(place.way, known)
    return AppRoute(methods=methods, pieces=place.pieces, host=place.way.host, decider=decider, app=place.app)


def _decider(way: RequestWay, known: dict[int, RequestDecider]) -> RequestDecider | None:
    """Find the outermost MeterMiddleware on the way, which decides."""
    for app, pieces in way.wrappers:
        if isinstance(app, MeterMiddleware):
            return known.setdefault(id(app), _decider_of(app.catalog, app.app, app.paths, pieces))
        added: Any
        for added in getattr(app, "user_middleware", ()):
            if isinstance(getattr(added, "cls", None), type) and issubclass(added.cls, MeterMiddleware):
                catalog, paths = added.kwargs["kit"].store.catalog, added.kwargs.get("paths")
                return known.setdefault(id(app), _decider_of(catalog, app, paths, pieces))
    return None


def _decider_of(
    catalog: Catalog, app: object, paths: Paths | None, pieces: tuple[str, ...]
) -> RequestDecider:
    mount = example_path("".join(pieces))
    return RequestDecider(catalog, root_path_of_app(app), mount, app, paths)


_REST: Final = ":path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteLines:
    """Lines of the plans file that take the requests of a route.

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
class UnusedLine:
    """Line of a plans file that takes no request of any route.

    Attributes:
        is_covered: whether routes match it, and earlier lines take all of their requests.
    """

    catalog: Catalog
    line: Route
    is_covered: bool


def match_lines(
    routes: Sequence[AppRoute], otherwise: RequestDecider | None
) -> tuple[list[RouteLines], list[UnusedLine]]:
    """Find the lines that take each route, and the lines that take none.

    Args:
        routes: of an app, in its order.
        otherwise: decides where the app has no MeterMiddleware at all.
    """
    if not any(route.decider for route in routes):
        routes = [replace(route, decider=otherwise) for route in routes]
    reached = [_RoutePattern(route, route.pattern()) for route in routes]
    deciders = list(dict.fromkeys(route.decider for route in routes if route.decider is not None))
    lines = {decider: _LineTable(decider) for decider in deciders}
    found: list[RouteLines] = []
    for place, one in enumerate(reached):
        if one.route.decider is not None:
            found += _find_lines(one, reached[:place], lines[one.route.decider])
        else:
            methods = one.route.methods
            found.append(RouteLines(route=one.route, methods=methods, line=None, parts=(), is_decided=False))
    used = set[int]().union(*(each.used for each in lines.values()))
    catalogs = {id(decider.catalog): decider.catalog for decider in deciders}
    idle = [
        UnusedLine(catalog=catalog, line=line, is_covered=_is_covered(line, catalog, reached))
        for catalog in catalogs.values()
        for line in catalog.routes
        # `*` is there for what has no route, too.
        if id(line) not in used and line.path is not None and not _is_redirect(line, reached)
    ]
    return found, idle


def _is_redirect(line: Route, reached: Sequence[_RoutePattern]) -> bool:
    """Whether a line only lets the path pass that a router redirects to the same with a slash."""
    path = example_path(f"{line.path}/")
    return (line.exempt or line.always) and any(one.takes("GET", path) for one in reached)


@dataclass(frozen=True, slots=True)
class _RoutePattern:
    route: AppRoute
    pattern: re.Pattern[str]

    def takes(self, method: str, path: str) -> bool:
        return method in self.route.methods and self.pattern.fullmatch(path) is not None


class _LineTable:
    """Lines by which one middleware decides, and those of them that took a request."""

    def __init__(self, decider: RequestDecider) -> None:
        self.decider = decider
        # Messages of MCP fall under lines of their own before they fall under one of these.
        self.routes = [line for line in decider.catalog.routes if line.mcp is None]
        self._router = Router(self.routes, root_path=decider.root_path)
        self._mcp = [line for line in decider.catalog.routes if line.mcp is not None]
        self.used: set[int] = set()

    def find_line(self, method: str, path: str) -> Route | None:
        """Find the line that takes a request."""
        found = _match_path(self._router, self.decider, method, path)
        if found is not None:
            self.used.add(id(found))
        return found

    def find_message_lines(self, method: str, path: str) -> Iterator[Route]:
        """Find the lines that take MCP messages posted to a path."""
        for line in self._mcp:
            alone = [other for other in self.decider.catalog.routes if other is line or other.mcp is None]
            if (
                _match_path(Router(alone, root_path=self.decider.root_path), self.decider, method, path)
                is line
            ):
                self.used.add(id(line))
                yield line


def _is_covered(line: Route, catalog: Catalog, reached: Sequence[_RoutePattern]) -> bool:
    """Whether requests of some route would fall under a line if it were alone."""
    return any(
        _match_path(Router([line], root_path=decider.root_path), decider, method, path)
        for one in reached
        if (decider := one.route.decider) is not None and decider.catalog is catalog
        for path in _sample_paths(line, one.route, decider)
        for method in one.route.methods
        if one.takes(method, path)
    )


def _match_path(router: Router, decider: RequestDecider, method: str, path: str) -> Route | None:
    scope = _build_scope(decider, method, path)
    return router.match_websocket(scope) if method == WEBSOCKET else router.match_http(scope)


def _build_scope(decider: RequestDecider, method: str, path: str) -> dict[str, Any]:
    scope = {"type": "http", "method": method, "path": path}
    return scope | {"root_path": decider.mount, "app_root_path": ""} if decider.mount else scope


def _find_lines(one: _RoutePattern, before: Sequence[_RoutePattern], lines: _LineTable) -> list[RouteLines]:
    """Find the lines of a route; methods that the same lines take are one entry."""
    groups: dict[tuple[int, ...], RouteLines] = {}
    example = example_path(one.route.path)
    for method in one.route.methods:
        line = lines.find_line(method, example)
        parts = tuple(
            part
            for part in lines.routes
            if part is not line and part.path is not None and _takes_part(part, method, one, before, lines)
        )
        parts = (*lines.find_message_lines(method, example), *parts)
        key = (id(line), *map(id, parts))
        known = groups.get(key)
        methods = (*known.methods, method) if known else (method,)
        groups[key] = RouteLines(route=one.route, methods=methods, line=line, parts=parts, is_decided=True)
    return list(groups.values())


def _takes_part(
    part: Route, method: str, one: _RoutePattern, before: Sequence[_RoutePattern], lines: _LineTable
) -> bool:
    """Whether some path of a route, which no earlier route takes, falls under a line."""
    return any(
        one.takes(method, path)
        and not any(
            earlier.route.host in {None, one.route.host} and earlier.takes(method, path) for earlier in before
        )
        and lines.find_line(method, path) is part
        for path in _sample_paths(part, one.route, lines.decider)
    )


def _sample_paths(line: Route, route: AppRoute, decider: RequestDecider) -> set[str]:
    """Sample paths that may match both the line and the route."""
    written = line.path or ""
    root = f"/{decider.root_path.strip('/')}" if decider.root_path else ""
    without = written.removeprefix(root) if root and written.startswith(f"{root}/") else written
    found = {example_path(route.path)}
    for template in (written, without):
        found |= {
            example_path(template),
            _join_templates(template, route.path),
            _join_templates(route.path, template),
        }
    return found


def _join_templates(first: str, second: str) -> str:
    """Build a path of two templates: of each segment the more specific one, in doubt the first one's."""
    return "/".join(_join_segments(first.split("/"), second.split("/")))


def _join_segments(one: Sequence[str], other: Sequence[str]) -> list[str]:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left.endswith(_REST) or right.endswith(_REST):
            begun = _join_segments(one[:place], other[:place])
            open_ended, rest = (one, other[place:]) if left.endswith(_REST) else (other, one[place:])
            after = open_ended[place + 1 :]
            middle = len(rest) - len(after)
            return [*begun, *map(example_path, rest[:middle]), *_join_segments(after, rest[middle:])]
    return [
        example_path(right if "{" in left and "{" not in right else left)
        for left, right in zip(one, other, strict=False)
    ]


def path_lines(decider: RequestDecider, method: str, path: str) -> list[PathLine]:
    """List the readings of a path, as a client writes it, with their lines; the strictest comes first.

    Args:
        decider: says which app reads the path, and whose lines take it.
        method: ``WS`` for a websocket.
        path: still encoded.
    """
    reading = path_rules_of_app(decider.app, decider.paths)
    lines = [line for line in decider.catalog.routes if line.mcp is None]
    raw = path.partition("?")[0].encode()
    scope = {**_build_scope(decider, method, unquote(raw)), "raw_path": raw}
    return Router(lines, root_path=decider.root_path, reading=reading).readings(scope)


def describe_line(line: Route) -> str:
    """Describe a line in short: ``feature full_ai; consume 1 requests; usage auto``."""
    if line.exempt:
        return "exempt"
    parts = ["always"] if line.always else []
    parts += [f"feature {line.feature}"] if line.feature else []
    for verb, quantities in (
        ("consume", line.consume),
        ("per message", line.per_message),
        ("grow", line.grow),
    ):
        parts += [f"{verb} {_quantities(quantities)}"] if quantities else []
    parts += [f"rate {rate.limit:,} per {rate.window}" for rate in line.rates]
    parts += [f"records {', '.join(line.records)}"] if line.records else []
    parts += [f"usage {line.usage}"] if line.usage != "none" else []
    parts += [f"reserve {', '.join(one.meter for one in line.reserve)}"] if line.reserve else []
    parts += [f"storage {line.storage_meter}"] if line.storage_meter else []
    parts += [line.enforcement] if line.enforcement != "on" else []
    return "; ".join(parts) or "decided, counts nothing"


def _quantities(quantities: Mapping[str, int]) -> str:
    return ", ".join(f"{quantity:,} {meter}" for meter, quantity in quantities.items())
