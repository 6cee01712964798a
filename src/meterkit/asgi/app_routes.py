"""Routes of a Starlette or FastAPI app, and the plan route of each, for ``meterkit routes``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from inspect import isclass
from sys import modules
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX, Host, Mount, WebSocketRoute, compile_path
from starlette.routing import Router as AppRouter
from starlette.staticfiles import StaticFiles

from meterkit.asgi.middleware import MeterMiddleware
from meterkit.asgi.route_matching import Router, root_path_of_app, unwrap
from meterkit.catalog.match_lines import WEBSOCKET, covers, covers_line, covers_method
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from meterkit.asgi.route_matching import PathLine
    from meterkit.catalog import Catalog, Route

ANY_METHOD: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Stands for all methods where an app does not list them."""
_BELOW: Final = "/{path:path}"
_REST: Final = ":path}"
_SEGMENTS_MAX: Final = 40
_EXAMPLES: Final = {
    "str": "~",
    "path": "~/~",
    "int": "7340033",
    "float": "7340033.5",
    "uuid": "9f1c2b7e-54a3-4d0f-8a6e-0c1d2e3f4a5b",
}
"""Sample values of parameters, with which a path is made of a template; no line names just these."""
_FURTHER_EXAMPLES: Final = (*_EXAMPLES.values(), "a", "aa", "aaa", "2031-06-10", "2031-06-10T12:00:00")


class RequestDecider:
    """MeterMiddleware of an app, reduced to the data that finds the line of a request.

    Args:
        catalog: its kit's.
        root_path: the root path of the app that it wraps.
        mount: an example of the path at which it is mounted; empty where it is not.
    """

    def __init__(self, catalog: Catalog, root_path: str, mount: str = "") -> None:
        self.catalog = catalog
        self.root_path = root_path.rstrip("/")
        # Messages of MCP match lines of their own before they match one of these.
        self.router = Router([line for line in catalog.routes if line.mcp is None], root_path=root_path)
        self._mounted = {"root_path": mount, "app_root_path": ""} if mount else {}

    def scope(self, method: str, path: str) -> dict[str, Any]:
        """Build the scope of a request; ``WS`` stands for a websocket."""
        kind = "websocket" if method == WEBSOCKET else "http"
        return {"type": kind, "method": method, "path": path, **self._mounted}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoute:
    """Route of an app, or a mounted app that does not list its routes.

    Attributes:
        methods: ``("WS",)`` for a websocket.
        path: its template, as clients see it.
        host: the template of the host it is for, or None.
        decider: decides its requests; None: no middleware does.
        app: the innermost app; for a handler, Starlette's own function around it.
    """

    methods: tuple[str, ...] = ANY_METHOD
    path: str = ""
    host: str | None = None
    decider: RequestDecider | None = None
    app: Any = None


def routes_of(app: object) -> list[AppRoute]:
    """List the routes of an app, in the order in which it tries them; wrappers are looked through.

    Raises:
        MeterkitError: the app does not list its routes.
    """
    inner = _unwrap(app, AppRoute())[0]
    if not isinstance(inner, Starlette | AppRouter):
        raise MeterkitError(
            f"the app does not list its routes: found a value of type {type(inner).__name__}; allowed is an"
            " app of Starlette or FastAPI, or what wraps one and has it as `.app`"
        )
    return list(_walk_app(app, AppRoute()))


def deciders_of(app: object) -> list[RequestDecider]:
    """List the MeterMiddlewares of an app that decide, each once."""
    return list(dict.fromkeys(route.decider for route in _walk_app(app, AppRoute()) if route.decider))


def _walk_app(app: Any, way: AppRoute) -> Iterator[AppRoute]:
    """List the routes of an app; ``way`` has what a request has passed before it."""
    inner, way = _unwrap(app, way)
    if not isinstance(inner, Starlette | AppRouter) or way.path.count("/") > _SEGMENTS_MAX:
        methods = ("GET", "HEAD") if isinstance(inner, StaticFiles) else ANY_METHOD
        yield replace(way, methods=methods, path=way.path + _BELOW, app=inner)
        return
    # FastAPI keeps the routers that an app includes, and tells what their routes come to there.
    resolve: Callable[[Any], Iterable[Any]] = getattr(
        modules.get("fastapi.routing"), "iter_route_contexts", iter
    )
    for listed in resolve(inner.routes):
        kind = getattr(listed, "original_route", listed)
        route: Any
        # Where FastAPI made one anew, with the prefix; its first releases that do so do not look there.
        route = getattr(listed, "starlette_route", None) or listed
        if isinstance(kind, Host):
            yield from _walk_app(route.app, replace(way, host=route.host))
        elif isinstance(kind, Mount):
            yield from _walk_app(route.app, replace(way, path=way.path + route.path))
        elif isinstance(getattr(route, "path", None), str):
            handler, within = _unwrap(getattr(route, "app", None), way)
            methods = (WEBSOCKET,) if isinstance(kind, WebSocketRoute) else tuple(sorted(route.methods or ()))
            if not methods and isclass(handler):
                methods = tuple(name for name in (*ANY_METHOD, "HEAD") if hasattr(handler, name.lower()))
            path = way.path + route.path
            yield replace(within, methods=methods or ANY_METHOD, path=path, app=handler)


def _unwrap(app: Any, way: AppRoute) -> tuple[Any, AppRoute]:
    """Find the innermost app, and the outermost MeterMiddleware around it, which decides."""
    for inner in unwrap(app):
        app = inner
        way = way if way.decider else replace(way, decider=_decider_of(app, way.path))
        if isinstance(app, Starlette | AppRouter):
            break
    return app, way


def _decider_of(app: Any, path: str) -> RequestDecider | None:
    mount = example_path(path)
    if isinstance(app, MeterMiddleware):
        return RequestDecider(app.catalog, root_path_of_app(app.app), mount)
    for added in getattr(app, "user_middleware", ()):
        if isclass(added.cls) and issubclass(added.cls, MeterMiddleware):
            return RequestDecider(added.kwargs["kit"].store.catalog, root_path_of_app(app), mount)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteLines:
    """Lines of the plans file that take the requests of a route.

    Attributes:
        methods: those of the route that the same lines take.
        line: takes them; None: no line does, and they pass undecided.
        parts: lines that take some of their paths before that, in the order of the file.
    """

    route: AppRoute
    methods: tuple[str, ...]
    line: Route | None
    parts: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedLine:
    """Line of a plans file that takes no request of any route.

    Attributes:
        is_covered: whether an earlier line takes all of its requests.
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
    found = [one for nth, route in enumerate(routes) for one in _find_lines(route, routes[:nth])]
    used = {line.match for one in found for line in (one.line, *one.parts) if line is not None}
    catalogs = {id(route.decider.catalog): route.decider.catalog for route in routes if route.decider}
    return found, [
        UnusedLine(
            catalog=catalog,
            line=line,
            is_covered=any(covers_line(earlier.match, line.match) for earlier in catalog.routes[:nth]),
        )
        for catalog in catalogs.values()
        for nth, line in enumerate(catalog.routes)
        # `*` is there for what has no route, too.
        if line.match not in used and line.path is not None and not _is_redirect(line, routes)
    ]


def _is_redirect(line: Route, routes: Sequence[AppRoute]) -> bool:
    """Whether a line only lets the path pass that a router redirects to the same with a slash."""
    path = f"{line.path}/".split("/")
    return (line.exempt or line.always) and any(
        "GET" in route.methods and _overlap(path, route.path.split("/")) for route in routes
    )


def _find_lines(route: AppRoute, before: Sequence[AppRoute]) -> list[RouteLines]:
    """Find the lines of a route; methods that the same lines take are one entry."""
    decider = route.decider
    if decider is None:
        return [RouteLines(route=route, methods=route.methods, line=None)]
    groups: dict[tuple[object, ...], RouteLines] = {}
    for method in route.methods:
        line = decider.router.match(decider.scope(method, example_path(route.path)))
        match = None if line is None else line.match
        lines = decider.catalog.routes
        end = next((nth for nth, one in enumerate(lines) if one.match == match), None)
        parts = [one for one in lines[:end] if one.path and _takes_part(one, one.path, method, route, before)]
        key = (id(line), *map(id, parts))
        methods = (*groups[key].methods, method) if key in groups else (method,)
        groups[key] = RouteLines(route=route, methods=methods, line=line, parts=tuple(parts))
    return list(groups.values())


def _takes_part(part: Route, path: str, method: str, route: AppRoute, before: Sequence[AppRoute]) -> bool:
    """Whether a line takes some path of a route that no earlier route takes."""
    without = path.removeprefix(route.decider.root_path) if route.decider else path
    others = (other for other in before if other.host in {None, route.host} and method in other.methods)
    return (
        covers_method(part.method, method)
        and any(_overlap(one.split("/"), route.path.split("/")) for one in (path, without))
        and not any(covers((method, other.path), (method, path)) for other in others)
    )


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the segments of two templates have a path in common."""
    if not (one and other):
        return not (one or other)
    for first, second in ((one, other), (other, one)):
        if first[0].endswith(_REST):
            return any(_overlap(first[1:], second[place:]) for place in range(1, len(second) + 1))
    left, right = one[0], other[0]
    pattern, text = (left, right) if "{" in left else (right, left)
    fits = ("{" in text) or compile_path(pattern)[0].match(text)
    return bool(fits) and _overlap(one[1:], other[1:])


def example_path(template: str) -> str:
    """Build a sample path that falls under a template."""
    return PARAM_REGEX.sub(lambda parameter: _example((parameter[2] or ":str").removeprefix(":")), template)


def _example(convertor: str) -> str:
    if convertor in _EXAMPLES:
        return _EXAMPLES[convertor]
    pattern = getattr(CONVERTOR_TYPES.get(convertor), "regex", "")  # One of the app's own.
    return next((text for text in _FURTHER_EXAMPLES if re.fullmatch(pattern, text)), _EXAMPLES["str"])


def path_lines(decider: RequestDecider, method: str, path: str) -> tuple[list[PathLine], Route | None]:
    """List the readings of a path, as a client writes it, with their lines; and the line that decides.

    Args:
        decider: says whose lines take it.
        method: ``WS`` for a websocket.
        path: still encoded.
    """
    raw = path.partition("?")[0].encode()
    scope = {**decider.scope(method, unquote(raw)), "raw_path": raw}
    return decider.router.readings(scope), decider.router.match(scope)
