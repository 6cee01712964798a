"""Which line of the plans file a request or a websocket falls under."""

from __future__ import annotations

import re
from collections.abc import Callable
from sys import modules
from typing import TYPE_CHECKING, Final

from starlette.routing import compile_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

    from meterkit.catalog.models import Route

__all__ = ["Router", "client_paths", "is_preflight", "own_root_path"]

CACHE_ENTRIES_MAX: Final = 4096
CACHED_PATH_CHARS_MAX: Final = 512
CACHED_METHOD_CHARS_MAX: Final = 16
_WRAPPERS_MAX: Final = 100


class Router:
    """Finds the first route that matches, by the path as the client wrote it.

    The patterns are Starlette's own, so that a request reaches a handler and its route line by the same
    rules: a trailing slash counts, ``{key:path}`` may be empty, ``%2F`` in a path is a slash. But
    ``{key:path}`` takes line breaks too, as Starlette's ``{name}`` does: a line covers what stands below it.
    Only lines that ask for less, ``exempt`` and ``always``, take no more than Starlette's pattern.

    Args:
        routes: in the order of the plans file.
        root_path: what the wrapped app takes for its root path, whatever the server says; see
            :func:`own_root_path`.
        without_mount: called once, at the first request of a mounted app that would have matched a line, had
            the line been written with the mount's path; takes that line, the one that does match or None, and
            the mount's path.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """

    def __init__(
        self, routes: Sequence[Route], *, root_path: str = "", without_mount: _WithoutMount | None = None
    ) -> None:
        lines = [(route, _methods(route), _pattern(route)) for route in routes]
        self._lines = [line for line in lines if line[0].method != "WS"]
        # A line with a path is about requests, unless it says WS.
        self._websocket_lines = [line for line in lines if line[0].method == "WS" or line[0].path is None]
        self._root_path = root_path
        self._without_mount = without_mount
        self._found: dict[_Key, Route | None] = {}

    def match_http(self, scope: Scope) -> Route | None:
        """The route of an HTTP request, or None where no line matches."""
        method: str = scope["method"]
        key = (
            self._key(method, scope) if self._root_path or scope.get("root_path") else (method, scope["path"])
        )
        try:
            return self._found[key]
        except KeyError:
            # Frameworks other than Starlette run the handler of GET for "get" too.
            method = method.upper()
            route = _first(self._lines, method, client_paths(scope, root_path=self._root_path))
            if self._without_mount is not None:
                self._tell_without_mount(method, scope, route)
            return self._remember(key, route)

    def match_websocket(self, scope: Scope) -> Route | None:
        """The route of a websocket, or None where no line matches."""
        # It has no method, whatever methods a client may invent.
        key = self._key(None, scope)
        try:
            return self._found[key]
        except KeyError:
            paths = client_paths(scope, root_path=self._root_path)
            return self._remember(key, _first(self._websocket_lines, "WS", paths))

    def _key(self, method: str | None, scope: Scope) -> _Key:
        """All that an answer depends on."""
        return method, scope["path"], scope.get("root_path"), scope.get("app_root_path")

    def _tell_without_mount(self, method: str, scope: Scope, found: Route | None) -> None:
        server, mount = _mounted_at(scope, self._root_path)
        if self._without_mount is None or not mount:
            return
        if found is not None and found.path is not None and found.path.startswith(mount):
            return  # It is written as it should be.
        line = _first(self._lines, method, [_cut(_cut(scope["path"], server), mount)])
        if line is not None and line is not found and line.path is not None:
            tell, self._without_mount = self._without_mount, None
            tell(line, found, mount)

    def _remember(self, key: _Key, route: Route | None) -> Route | None:
        """Keep an answer, unless a client could fill the memory with such keys."""
        method, path = key[0] or "", key[1] or ""
        if len(path) <= CACHED_PATH_CHARS_MAX and len(method) <= CACHED_METHOD_CHARS_MAX:
            if len(self._found) >= CACHE_ENTRIES_MAX:
                self._found.clear()
            self._found[key] = route
        return route


def client_paths(scope: Scope, *, root_path: str = "") -> list[str]:
    """The decoded path as clients may write it: with the root path of the server before it, and without.

    Mounts are included in all of them. Which one the client wrote cannot be told: a proxy may strip the root
    path or not, and servers put it before ``path`` or do not. A router runs one handler for all.

    Args:
        scope: a request's or a websocket's.
        root_path: what the wrapped app takes for its root path, whatever the server says.
    """
    path: str = scope["path"]
    server, mount = _mounted_at(scope, root_path)
    found = [_cut(path, server)]
    if mount:
        found.append(mount + _cut(path, server + mount))
    prefix = server.strip("/")
    if prefix:
        found += [f"/{prefix}{below}" for below in found]
    return list(dict.fromkeys(found))


def _mounted_at(scope: Scope, root_path: str) -> tuple[str, str]:
    """The root path of the server, and the path of the mounts within it; empty where there are none."""
    root: str = scope.get("root_path", "")
    # Within a mount Starlette keeps here what the server had said, and adds the mount to the root path.
    server: str = scope.get("app_root_path", root_path or root)
    is_mounted = "app_root_path" in scope and root.startswith(f"{server}/")
    return server, root[len(server) :] if is_mounted else ""


def _cut(path: str, root: str) -> str:
    """The path that a router goes by: without the root path, taken literally, where it begins with it."""
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :]
    return path


def own_root_path(app: object) -> str:
    """What an app takes for its root path, whatever the server says; empty where it goes by the server.

    ``FastAPI(root_path=…)`` puts it into the scope on the way in: who stands outside does not see it there.

    Args:
        app: what is wrapped; looked through what wraps it in turn.
    """
    # An app of FastAPI's has imported it. Others mean a folder by that name: Quart does.
    kind = getattr(modules.get("fastapi"), "FastAPI", ())
    for _ in range(_WRAPPERS_MAX):
        if isinstance(app, kind):
            return str(getattr(app, "root_path", ""))
        app = getattr(app, "app", None)
    return ""


def is_preflight(scope: Scope) -> bool:
    """Whether an HTTP request is a CORS preflight (Fetch standard, section 3.2.2)."""
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


_Key = tuple[str | None, ...]
"""Method and path, and the root paths where there are any."""
_WithoutMount = Callable[["Route", "Route | None", str], None]
_Line = tuple["Route", "frozenset[str] | None", "re.Pattern[str] | None"]


def _first(lines: Sequence[_Line], method: str, paths: Sequence[str]) -> Route | None:
    for route, methods, pattern in lines:
        if methods is not None and method not in methods:
            continue
        if pattern is None or any(map(pattern.match, paths)):
            return route
    return None


def _methods(route: Route) -> frozenset[str] | None:
    if route.method is None:
        return None
    return frozenset({"GET", "HEAD"}) if route.method == "GET" else frozenset({route.method})


def _pattern(route: Route) -> re.Pattern[str] | None:
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
