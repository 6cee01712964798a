"""Routes of a Starlette or FastAPI app, with mounts and hosts, and the plans file's line of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX
from starlette.staticfiles import StaticFiles

from meterkit.asgi.app_walk import ANY_METHOD, WEBSOCKET, Way, path_pattern, unwrap, walk
from meterkit.asgi.middleware import MeterMiddleware
from meterkit.asgi.path_readings import app_reading
from meterkit.asgi.routing import Router, own_root_path
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.asgi.app_walk import Place
    from meterkit.asgi.path_readings import Paths
    from meterkit.asgi.routing import PathLine
    from meterkit.catalog import Catalog, Route

_READING: Final = ("GET", "HEAD")
_EXAMPLES: Final = {
    "str": "~",
    "path": "~/~",
    "int": "7340033",
    "float": "7340033.5",
    "uuid": "9f1c2b7e-54a3-4d0f-8a6e-0c1d2e3f4a5b",
}
"""What a parameter stands for where a path is made of a template: no line is written for just that."""
_FURTHER_EXAMPLES: Final = (*_EXAMPLES.values(), "a", "aa", "aaa", "2031-06-10", "2031-06-10T12:00:00")


@dataclass(frozen=True, slots=True, eq=False)
class Decider:
    """A MeterMiddleware, as far as it says which line takes a request.

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
    """A route, or a mounted app that does not tell its routes.

    Attributes:
        methods: ``("WS",)`` for a websocket.
        pieces: the path template, cut where mounts end.
        host: the template of the host it is for, or None.
        decider: what decides its requests; None where none does.
    """

    methods: tuple[str, ...]
    pieces: tuple[str, ...]
    host: str | None
    decider: Decider | None

    @property
    def path(self) -> str:
        """The path template as clients see it."""
        return "".join(self.pieces)

    def pattern(self) -> re.Pattern[str]:
        """What matches its paths, by Starlette's own patterns. Mounts may repeat the name of a parameter."""
        return path_pattern(self.pieces)


def example_path(template: str) -> str:
    """A path that falls under a template."""
    return PARAM_REGEX.sub(lambda parameter: _example(parameter[2] or ":str"), template)


def _example(convertor: str) -> str:
    name = convertor.removeprefix(":")
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    pattern = getattr(CONVERTOR_TYPES.get(name), "regex", "")  # One of the app's own.
    return next((text for text in _FURTHER_EXAMPLES if re.fullmatch(pattern, text)), _EXAMPLES["str"])


def routes_of(app: object) -> list[AppRoute]:
    """All routes of an app, in the order in which it tries them; looked through what wraps it.

    Raises:
        MeterkitError: the app does not tell its routes.
    """
    inner = unwrap(app, Way())[0]
    if not hasattr(inner, "routes"):
        raise MeterkitError(
            f"the app does not tell its routes: found a value of type {type(inner).__name__}; allowed is an"
            " app of Starlette or FastAPI, or what wraps one and has it as `.app`"
        )
    known: dict[int, Decider] = {}
    return [_app_route(place, known) for place in walk(app) if place.is_listed]


def deciders_of(app: object) -> list[Decider]:
    """The MeterMiddlewares of an app that decide, each once."""
    known: dict[int, Decider] = {}
    return list(dict.fromkeys(filter(None, (_decider(place.way, known) for place in walk(app)))))


def _app_route(place: Place, known: dict[int, Decider]) -> AppRoute:
    methods = place.methods or (_READING if isinstance(place.app, StaticFiles) else ANY_METHOD)
    decider = _decider(place.way, known)
    return AppRoute(methods=methods, pieces=place.pieces, host=place.way.host, decider=decider)


def _decider(way: Way, known: dict[int, Decider]) -> Decider | None:
    """The outermost MeterMiddleware on the way, which decides."""
    for app, pieces in way.wrappers:
        if isinstance(app, MeterMiddleware):
            return known.setdefault(id(app), _decider_of(app.catalog, app.app, app.paths, pieces))
        added: Any
        for added in getattr(app, "user_middleware", ()):
            if isinstance(added.cls, type) and issubclass(added.cls, MeterMiddleware):
                catalog, paths = added.kwargs["kit"].store.catalog, added.kwargs.get("paths")
                return known.setdefault(id(app), _decider_of(catalog, app, paths, pieces))
    return None


def _decider_of(catalog: Catalog, app: object, paths: Paths | None, pieces: tuple[str, ...]) -> Decider:
    mount = example_path("".join(pieces))
    return Decider(catalog, own_root_path(app), mount, app, paths)


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
        # Messages of MCP fall under lines of their own before they fall under one of these.
        self.routes = [line for line in decider.catalog.routes if line.mcp is None]
        self._router = Router(self.routes, root_path=decider.root_path)
        self._mcp = [line for line in decider.catalog.routes if line.mcp is not None]
        self.used: set[int] = set()

    def first(self, method: str, path: str) -> Route | None:
        """The line that takes a request."""
        found = _ask(self._router, self.decider, method, path)
        if found is not None:
            self.used.add(id(found))
        return found

    def of_messages(self, method: str, path: str) -> Iterator[Route]:
        """The lines that take messages of MCP which are posted to a path."""
        for line in self._mcp:
            alone = [other for other in self.decider.catalog.routes if other is line or other.mcp is None]
            if _ask(Router(alone, root_path=self.decider.root_path), self.decider, method, path) is line:
                self.used.add(id(line))
                yield line


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
    scope = _scope(decider, method, path)
    return router.match_websocket(scope) if method == WEBSOCKET else router.match_http(scope)


def _scope(decider: Decider, method: str, path: str) -> dict[str, Any]:
    scope = {"type": "http", "method": method, "path": path}
    return scope | {"root_path": decider.mount, "app_root_path": ""} if decider.mount else scope


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
        parts = (*lines.of_messages(method, example), *parts)
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
    """Sample paths that may match both the line and the route."""
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


def path_lines(decider: Decider, method: str, path: str) -> list[PathLine]:
    """List the readings of a path, as a client writes it, with their lines; the strictest comes first.

    Args:
        decider: says which app reads the path, and whose lines take it.
        method: ``WS`` for a websocket.
        path: still encoded.
    """
    reading = app_reading(decider.app, decider.paths)
    lines = [line for line in decider.catalog.routes if line.mcp is None]
    raw = path.partition("?")[0].encode()
    scope = {**_scope(decider, method, unquote(raw)), "raw_path": raw}
    return Router(lines, root_path=decider.root_path, reading=reading).readings(scope)


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
    said += [f"records {', '.join(line.records)}"] if line.records else []
    said += [f"usage {line.usage}"] if line.usage != "none" else []
    said += [f"reserve {', '.join(one.meter for one in line.reserve)}"] if line.reserve else []
    said += [f"storage {line.storage_meter}"] if line.storage_meter else []
    said += [line.enforcement] if line.enforcement != "on" else []
    return "; ".join(said) or "decided, counts nothing"


def _quantities(quantities: Mapping[str, int]) -> str:
    return ", ".join(f"{quantity:,} {meter}" for meter, quantity in quantities.items())
