"""Which line of the plans file a request or a websocket falls under."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from starlette.routing import compile_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

    from meterkit.catalog.models import Route

__all__ = ["Router", "client_path", "is_preflight"]

CACHE_ENTRIES_MAX: Final = 4096
CACHED_PATH_CHARS_MAX: Final = 512
CACHED_METHOD_CHARS_MAX: Final = 16


class Router:
    """Finds the first route that matches, by the path as the client wrote it.

    The patterns are Starlette's own, so that a request reaches a handler and its route line by the same
    rules: a trailing slash counts, ``{key:path}`` may be empty, ``%2F`` in a path is a slash.

    Args:
        routes: in the order of the plans file.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        lines = [(route, _methods(route), _pattern(route)) for route in routes]
        self._http = [line for line in lines if line[0].method != "WS"]
        self._websocket = [line for line in lines if _takes_websockets(line[0])]
        # Keyed by method and path; a websocket has no method, whatever methods a client may invent.
        self._found: dict[tuple[str | None, str], Route | None] = {}

    def match_http(self, scope: Scope) -> Route | None:
        """The route of an HTTP request, or None where no line matches."""
        path: str = client_path(scope) if scope.get("root_path") else scope["path"]
        method: str = scope["method"]
        try:
            return self._found[method, path]
        except KeyError:
            return self._remember(method, path, _first(self._http, method, path))

    def match_websocket(self, scope: Scope) -> Route | None:
        """The route of a websocket, or None where no line matches."""
        path: str = client_path(scope) if scope.get("root_path") else scope["path"]
        try:
            return self._found[None, path]
        except KeyError:
            return self._remember(None, path, _first(self._websocket, "WS", path))

    def _remember(self, method: str | None, path: str, route: Route | None) -> Route | None:
        """Keep an answer, unless a client could fill the memory with such keys."""
        if len(path) <= CACHED_PATH_CHARS_MAX and len(method or "") <= CACHED_METHOD_CHARS_MAX:
            if len(self._found) >= CACHE_ENTRIES_MAX:
                self._found.clear()
            self._found[method, path] = route
        return route


def client_path(scope: Scope) -> str:
    """The decoded path as the client wrote it.

    By the ASGI specification ``path`` includes ``root_path``; servers behind a proxy that strips a prefix
    leave it out, and there it is put back.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if not root or path == root or path.startswith(root + "/"):
        return path
    return root + path


def is_preflight(scope: Scope) -> bool:
    """Whether an HTTP request is a CORS preflight (Fetch standard, section 3.2.2)."""
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


_Line = tuple["Route", "frozenset[str] | None", "re.Pattern[str] | None"]


def _first(lines: Sequence[_Line], method: str, path: str) -> Route | None:
    for route, methods, pattern in lines:
        if (methods is None or method in methods) and (pattern is None or pattern.match(path)):
            return route
    return None


def _takes_websockets(route: Route) -> bool:
    return route.method == "WS" or (route.method is None and route.path is None)


def _methods(route: Route) -> frozenset[str] | None:
    if route.method is None:
        return None
    return frozenset({"GET", "HEAD"}) if route.method == "GET" else frozenset({route.method})


def _pattern(route: Route) -> re.Pattern[str] | None:
    if route.path is None:
        return None
    try:
        return compile_path(route.path)[0]
    except (AssertionError, KeyError, ValueError, re.error) as error:
        raise ValueError(
            f"route {route.match!r}: {error}; a path is written as in Starlette, "
            "for example /files/{key:path}"
        ) from error
