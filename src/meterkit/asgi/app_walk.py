"""Walk over an app: each handler and app that may take a request, in the order in which they are tried."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import isclass, ismethod
from sys import modules
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.routing import Host, Mount, WebSocketRoute, compile_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

WEBSOCKET: Final = "WS"
ANY_METHOD: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Stands for all methods where an app does not list them."""
STARLETTE: Final = frozenset({"starlette", "fastapi"})
_ALL_METHODS: Final = (*ANY_METHOD, "HEAD", "OPTIONS", "QUERY")
_BELOW: Final = "/{path:path}"
_WRAPPERS_MAX: Final = 100
_VISITS_MAX: Final = 2
_GROUP: Final = re.compile(r"\(\?P<\w+>")
_LOW_PRIORITY: Final = "_iter_low_priority_routes"
"""FastAPI's iterator over the routes of `app.frontend(…)`, which are tried last."""


class AppWrapper(NamedTuple):
    """App that a request passes on its way, and the path template at which it stands."""

    app: object
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestWay:
    """Mounts, host and wrappers that a request has passed."""

    pieces: tuple[str, ...] = ()
    host: str | None = None
    wrappers: tuple[AppWrapper, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPlace:
    """Handler, or app that a request is handed to.

    Attributes:
        way: mounts, host and wrappers before it; the wrappers of its own route included.
        pieces: the path template, cut where mounts end.
        methods: ``("WS",)`` for a websocket; empty where it takes what it likes.
        has_functions: whether the methods are functions of a class, which may run any other function, too:
            Starlette before 1.1 took each name for that of a method.
        app: the innermost app; for a handler, Starlette's own function around it.
        takes_slashes: whether a parameter of the path may have a slash in it.
        is_whole: whether it is an app in a route, which gets the whole path and may read it anew.
        is_listed: whether it is a route, a mount or a file server of Starlette's or FastAPI's own classes.
        has_custom_match: whether its class or its pattern matches in another way than Starlette's.
    """

    way: RequestWay
    pieces: tuple[str, ...]
    methods: tuple[str, ...]
    app: object
    has_functions: bool = False
    takes_slashes: bool = False
    is_whole: bool = False
    is_listed: bool = True
    has_custom_match: bool = False

    def accepts(self, method: str) -> bool:
        """Whether it may run for a method; Starlette's classes take HEAD where they have GET."""
        if not self.methods or method in self.methods or (method == "HEAD" and "GET" in self.methods):
            return True
        return self.has_functions and method not in _ALL_METHODS

    def matches(self, path: str) -> bool:
        """Whether Starlette hands a path to it, or may; a target may lack the slash at its begin."""
        return "".join(self.pieces) == _BELOW or path_pattern(self.pieces).fullmatch(path) is not None


@lru_cache(maxsize=4096)
def path_pattern(pieces: tuple[str, ...]) -> re.Pattern[str]:
    """Compile Starlette's own patterns of path templates; mounts may repeat the name of a parameter."""
    bodies = [compile_path(piece)[0].pattern[1:-1] for piece in pieces if piece]
    return re.compile(_GROUP.sub("(?:", "".join(bodies)), re.DOTALL)


def packages_of(app: object) -> set[str]:
    """Names of the packages in which the classes of an app are defined."""
    if isclass(app):
        kinds: Sequence[Any] = app.__mro__
    else:
        kinds = (app,) if isinstance(app, FunctionType) else type(app).__mro__
    return {str(kind.__module__).partition(".")[0] for kind in kinds}


def lists_routes(app: object) -> bool:
    """Whether an app is a router of Starlette or FastAPI."""
    return hasattr(app, "routes") and not packages_of(app).isdisjoint(STARLETTE)


def unwrap(app: Any, way: RequestWay) -> tuple[Any, RequestWay]:
    """Find the innermost app; the way passes whatever wraps it.

    A dispatcher, which has further apps beside the one that it wraps, counts as the innermost.
    """
    for _ in range(_WRAPPERS_MAX):
        if ismethod(app):  # `app.asgi_app`, `app.__call__`.
            is_passed = any(passed.app is app.__self__ for passed in way.wrappers)
            app = app.__self__
            if is_passed:
                break
        way = replace(way, wrappers=(*way.wrappers, AppWrapper(app, way.pieces)))
        if hasattr(app, "routes"):
            stack = getattr(app, "middleware_stack", None)  # A router's own.
            return app, way if stack is None else unwrap(stack, way)[1]
        inner = getattr(app, "app", None) or getattr(app, "wsgi_application", None) or _find_front(app)
        if inner is None or hasattr(app, "mounts"):
            break
        app = inner
    return app, way


def _find_front(app: Any) -> Any:
    """Find what stands before an app of Quart's or Flask's, where something was put there."""
    own: dict[str, Any] = getattr(app, "__dict__", {})
    return own.get("asgi_app") or own.get("wsgi_app")


def walk_app(app: Any, way: RequestWay | None = None) -> Iterator[AppPlace]:
    """List every place to which an app may hand a request.

    Args:
        app: looked through what wraps it.
        way: what a request has passed before it.
    """
    inner, way = unwrap(app, way or RequestWay())
    if not lists_routes(inner):
        yield AppPlace(way=way, pieces=(*way.pieces, _BELOW), methods=(), app=inner, takes_slashes=True)
        return
    if sum(passed.app is inner for passed in way.wrappers) > _VISITS_MAX:
        yield _unlisted_place(inner, way)  # It is mounted in itself.
        return
    for listed in _list_routes(inner):
        kind = getattr(listed, "original_route", listed)
        # Where FastAPI made one anew, with the prefix; its first releases that do so do not look there.
        route = getattr(listed, "starlette_route", None) or listed
        path = getattr(route, "path", None)
        if _has_custom_match(kind, route):
            yield _unlisted_place(kind, way)
        if isinstance(kind, Host):
            yield from walk_app(route.app, replace(way, host=route.host))
        elif isinstance(kind, Mount):
            yield from walk_app(route.app, replace(way, pieces=(*way.pieces, route.path)))
        elif isinstance(path, str):
            yield _route_place(kind, route, way)
    yield from _fallback_places(inner, way)


def _unlisted_place(app: object, way: RequestWay) -> AppPlace:
    pieces = (*way.pieces, _BELOW)
    return AppPlace(way=way, pieces=pieces, methods=(), app=app, is_listed=False, has_custom_match=True)


def _route_place(kind: object, route: Any, way: RequestWay) -> AppPlace:
    app, way = unwrap(getattr(route, "app", None), way)
    convertors: dict[str, Any] = getattr(route, "param_convertors", None) or compile_path(route.path)[2]
    methods = (WEBSOCKET,) if isinstance(kind, WebSocketRoute) else tuple(sorted(route.methods or ()))
    has_functions = not methods and isclass(app)
    if has_functions:
        methods = tuple(name for name in _ALL_METHODS if hasattr(app, name.lower()))
    return AppPlace(
        way=way,
        pieces=(*way.pieces, route.path),
        methods=methods,
        app=app,
        has_functions=has_functions,
        takes_slashes=any(re.fullmatch(each.regex, "a/b") for each in convertors.values()),
        is_whole=not isclass(app) and not isinstance(app, FunctionType),
    )


def _fallback_places(router: Any, way: RequestWay) -> Iterator[AppPlace]:
    """Places that a router tries where none of its routes matches."""
    router = getattr(router, "router", router)
    for candidate in getattr(router, _LOW_PRIORITY, tuple[Any, ...])():
        group = getattr(candidate, "original_route", candidate)
        prefix: str = getattr(candidate, "frontend_prefix", "")
        for front in getattr(group, "routes", ()):
            template = f"{prefix}{front.path}".rstrip("/")
            pieces = (*way.pieces, template, _BELOW)
            yield AppPlace(way=way, pieces=pieces, methods=("GET", "HEAD"), app=front.app, takes_slashes=True)
    default = getattr(router, "default", None)
    if default is not None and getattr(default, "__self__", None) is not router:
        yield from walk_app(default, way)


def _list_routes(app: Any) -> Iterable[Any]:
    # FastAPI keeps the routers that an app includes, and tells what their routes come to there.
    resolve: Callable[[Any], Iterable[Any]] = getattr(
        modules.get("fastapi.routing"), "iter_route_contexts", iter
    )
    return resolve(app.routes)


def _has_custom_match(kind: Any, route: Any) -> bool:
    matches = getattr(kind, "matches", None)
    package = str(getattr(matches, "__module__", "")).partition(".")[0]
    flags = getattr(getattr(route, "path_regex", None), "flags", 0)
    return package not in STARLETTE or bool(flags & re.IGNORECASE)
