"""Which line of the plans file a request or a websocket falls under."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from sys import modules
from typing import TYPE_CHECKING, Final, Self

from starlette.routing import compile_path

from meterkit.asgi.loose_paths import (
    EXACT,
    Reading,
    has_encoded_slash,
    loose_paths,
    loose_pattern,
    loose_spellings,
    reading_of,
)
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

    from meterkit.asgi.loose_paths import Paths

CACHE_ENTRIES_MAX: Final = 4096
CACHED_PATH_CHARS_MAX: Final = 512
CACHED_METHOD_CHARS_MAX: Final = 16
_WRAPPERS_MAX: Final = 100
_PREFLIGHT: Final = frozenset({b"origin", b"access-control-request-method"})
_NO_PREFLIGHT: Final = frozenset({b"authorization", b"cookie", b"transfer-encoding"})
_ORDINARY: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})
"""What lines need not name: handlers have these methods for a purpose."""


class Router:
    """Finds the first route that matches, by the path as the client wrote it.

    The patterns are Starlette's own, so that a request reaches a handler and its route line by the same
    rules: a trailing slash counts, ``{key:path}`` may be empty, ``%2F`` in a path is a slash. But
    ``{key:path}`` takes line breaks too, as Starlette's ``{name}`` does: a line covers what stands below it.
    Only lines that ask for less, ``exempt`` and ``always``, take no more than Starlette's pattern.

    Where the app's router reads loosely, a request falls under a line that any of its readings leads to: one
    with a feature, or else the first. A path that is written exactly as a line without parameters is that
    line's.

    Args:
        routes: in the order of the plans file.
        root_path: what the wrapped app takes for its root path, whatever the server says; see
            :func:`own_root_path`.
        without_mount: called once, at the first request of a mounted app that would have matched a line, had
            the line been written with the mount's path; takes that line, the one that does match or None, and
            the mount's path.
        reading: how the app's router reads paths.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        root_path: str = "",
        without_mount: _WithoutMount | None = None,
        reading: Reading = EXACT,
    ) -> None:
        lines = [(route, _methods(route), _pattern(route)) for route in routes]
        self._lines = [line for line in lines if line[0].method != "WS"]
        # A line with a path is about requests, unless it says WS.
        self._websocket_lines = [line for line in lines if line[0].method == "WS" or line[0].path is None]
        self._methods = _ORDINARY.union(*(methods for _, methods, _ in lines if methods is not None))
        self._gates: dict[tuple[int, int], Route] = {}
        self._order = {id(route): nth for nth, route in enumerate(routes)}
        self._reading = reading
        self._loose = {
            id(route): loose_pattern(route.path)
            for route in routes
            if route.path is not None and reading is not EXACT
        }
        self._has_long_keys = bool(root_path) or reading is not EXACT
        self._root_path = root_path
        self._without_mount = without_mount
        self._found: dict[_Key, Route | None] = {}

    @classmethod
    def of(
        cls,
        app: object,
        routes: Sequence[Route],
        *,
        paths: Paths | None,
        without_mount: _WithoutMount | None = None,
    ) -> Self:
        """Reads paths as the router of an app does; ``paths`` overrules what its class says."""
        root_path, reading = own_root_path(app), reading_of(app, paths)
        return cls(routes, root_path=root_path, without_mount=without_mount, reading=reading)

    def match_http(self, scope: Scope) -> Route | None:
        """The route of an HTTP request, or None where no line matches."""
        method: str = scope["method"]
        key = (
            self._key(method, scope)
            if self._has_long_keys or scope.get("root_path")
            else (method, scope["path"])
        )
        try:
            return self._found[key]
        except KeyError:
            # Frameworks other than Starlette run the handler of GET for "get" too.
            method = method.upper()
            route = self._find(self._lines, method, scope)
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
            return self._remember(key, self._find(self._websocket_lines, "WS", scope))

    def _key(self, method: str | None, scope: Scope) -> _Key:
        """All that an answer depends on."""
        root_path = scope.get("root_path")
        if self._reading is not EXACT and has_encoded_slash(scope):
            raw: bytes = scope["raw_path"]
            return method, scope["path"], root_path, scope.get("app_root_path"), raw.decode("latin-1")
        return method, scope["path"], root_path, scope.get("app_root_path")

    def _find(self, lines: Sequence[_Line], method: str, scope: Scope) -> Route | None:
        paths = client_paths(scope, root_path=self._root_path)
        reading = self._reading
        is_odd = reading.any_method and method not in self._methods
        found = _first(lines, method, paths, is_odd=is_odd)
        if reading.every_method:
            return self._gated(found, lines, method, paths)
        if reading is EXACT or not reading.reads_loosely(paths):
            return found
        encoded = has_encoded_slash(scope)
        if found is not None and found.path is not None and "{" not in found.path and not encoded:
            return found
        # What asks for less is matched exactly, or not at all.
        loose = [
            (route, methods, self._loose.get(id(route)))
            for route, methods, _ in lines
            if route is found or not (route.exempt or route.always)
        ]
        readings = [found]
        for path in loose_paths(scope, _mounted_at(scope, self._root_path)[0]):
            written = client_paths({**scope, "path": path}, root_path=self._root_path)
            spellings = [spelt for one in written for spelt in loose_spellings(one)]
            readings.append(_first(loose, method, spellings, is_odd=is_odd))
        several = [line for line in readings if line is not None]
        return min(several, key=self._rank, default=None)

    def _gated(
        self, found: Route | None, lines: Sequence[_Line], method: str, paths: Sequence[str]
    ) -> Route | None:
        """The line of a request whose handler takes every method: a gate of its path holds for all of them.

        A line that names the method opens the gate. Of the gated line only the feature counts: what the
        request consumes is left to the line that takes it.
        """
        if found is not None and (found.exempt or found.method is not None or found.feature is not None):
            return found
        for route, methods, pattern in lines:
            if route is found:
                break
            if methods is None or route.feature is None or method == "WS" or pattern is None:
                continue
            if any(map(pattern.match, paths)):
                line = found or Route(match=route.match, method=None, path=route.path)
                return self._gates.setdefault(
                    (id(found), id(route)), replace(line, feature=route.feature, always=False)
                )
        return found

    def _rank(self, line: Route) -> tuple[bool, int]:
        return line.feature is None, self._order[id(line)]

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

    Mounts are included in all of them. It is unknown which one the client wrote: a proxy may strip the root
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
    """Whether an HTTP request is a CORS preflight (Fetch standard, section 3.2.2).

    Browsers send it without credentials and without a body: what has either may be a request for a handler
    that takes every method.
    """
    if scope["method"] != "OPTIONS":
        return False
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if not headers.keys() >= _PREFLIGHT or not headers.keys().isdisjoint(_NO_PREFLIGHT):
        return False
    return headers.get(b"content-length", b"0") == b"0"


_Key = tuple[str | None, ...]
"""Method and path, and the root paths where there are any."""
_WithoutMount = Callable[["Route", "Route | None", str], None]
_Line = tuple["Route", "frozenset[str] | None", "re.Pattern[str] | None"]


def _first(
    lines: Sequence[_Line], method: str, paths: Sequence[str], *, is_odd: bool = False
) -> Route | None:
    """The first line that matches; an odd method is taken for that of any line that decides."""
    for route, methods, pattern in lines:
        if methods is not None and method not in methods and not (is_odd and not route.exempt):
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
