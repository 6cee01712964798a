"""Router: finds the line of the plans file that decides a request or a websocket.

A line matches by Starlette's own patterns, so that a request reaches a handler and its line by the same
rules: ``{key:path}`` may be empty, and an encoded slash is a slash. Neither the wrapped app nor its framework
is asked, so three rules make up for routers that read paths in other ways:

- A path with dots, empty segments or encoded separators has more readings (:mod:`meterkit.asgi.paths`). If
  they match different lines, the request is refused.
- Capitals and a slash at the end are ignored in a last look. Of the lines found, the strictest decides.
- The feature of a line holds for every method of its path that no line names.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from sys import modules
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from starlette.routing import compile_path

from meterkit.asgi.paths import (
    PATH_CHARS_MAX,
    climbs,
    is_plain,
    loose_pattern,
    may_lead_to,
    plain_readings,
    raw_reading,
)
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from starlette.types import Scope

CACHE_ENTRIES_MAX: Final = 4096
CACHED_CHARS_MAX: Final = 2048
_WRAPPERS_MAX: Final = 100
_SESSION_METHODS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods of requests to an MCP endpoint that have no message."""
_GATED, _PRICED, _DECIDED, _SHADOWED, _EXEMPT, _NO_LINE = range(6)
AMBIGUOUS: Final = Route(match="(several)", method=None, path=None, exempt=True)
"""Stands for the line of a path whose readings match different lines; such a request is refused."""


RequestKey: TypeAlias = tuple[Any, ...]
"""All that the line of a request depends on: the values that its scope has by these names, or None."""
_KEY: Final = ("type", "method", "path", "raw_path", "root_path", "app_root_path")


class PathLine(NamedTuple):
    """Reading of a path, and the line that it matches; None: no line does."""

    reading: str
    path: str
    line: Route | None


class CompiledLine(NamedTuple):
    """Line with its methods and the patterns of its path; None stands for all of them.

    Attributes:
        loose: of any case, without a slash at the end; for a line that asks for less than others ``pattern``.
    """

    route: Route
    methods: frozenset[str] | None
    pattern: re.Pattern[str] | None
    loose: re.Pattern[str] | None

    @classmethod
    def of(cls, route: Route) -> CompiledLine:
        """Compile a line.

        Raises:
            ValueError: its path is not a template that Starlette can read.
        """
        methods = None if route.method is None else frozenset({route.method})
        if route.method == "GET":
            methods = frozenset({"GET", "HEAD"})
        if route.path is None:
            return cls(route, methods, None, None)
        try:
            pattern = compile_path(route.path)[0]
        except (AssertionError, KeyError, ValueError, re.error) as error:
            raise ValueError(
                f"route {route.match!r}: {error}; a path is written as in Starlette, "
                "for example /files/{key:path}"
            ) from error
        loose = pattern
        if not (route.exempt or route.always):
            # {key:path} takes line breaks, as Starlette's {name} does: a line covers what stands below it.
            pattern, loose = re.compile(pattern.pattern, re.DOTALL), loose_pattern(route.path)
        return cls(route, methods, pattern, loose)

    def accepts(self, method: str) -> bool:
        """Whether it is for a method."""
        return self.methods is None or method in self.methods

    def takes(self, paths: Iterable[str], *, loosely: bool = False) -> bool:
        """Whether it takes one of the paths, whatever the method."""
        if self.pattern is None or self.loose is None:
            return True
        if loosely and self.loose is not self.pattern:
            return any(self.loose.match(path.rstrip("/")) for path in paths)
        return any(map(self.pattern.match, paths))


class Router(dict[RequestKey, "Route | None"]):
    """Lines of requests by all that they depend on; a line is found by the first request of its key.

    Args:
        routes: in the order of the plans file.
        root_path: the root path that the wrapped app has; see :func:`root_path_of_app`.
        without_mount: called once, at the first request of a mounted app that would have matched a line, had
            the line been written with the mount's path; takes that line, the one that does match or None, and
            the mount's path.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        root_path: str = "",
        without_mount: Callable[[Route, Route | None, str], None] | None = None,
    ) -> None:
        super().__init__()
        lines = [CompiledLine.of(route) for route in routes]
        self._lines = [line for line in lines if line.route.method != "WS"]
        # A line with a path is about requests, unless it says WS.
        self._websocket_lines = [line for line in lines if line.route.method == "WS" or line.pattern is None]
        self._root_path = root_path
        self._without_mount = without_mount
        self._gated: dict[tuple[int, ...], Route] = {}

    def __missing__(self, key: RequestKey) -> Route | None:
        """Find the line of a request or a websocket; None: no line matches."""
        scope = {name: part for name, part in zip(_KEY, key, strict=True) if part is not None}
        route = self._find_line(scope)
        self._warn_without_mount(scope, route)
        # Behind Daphne a client chooses the root path, too.
        if sum(len(part) for part in key if part) <= CACHED_CHARS_MAX:
            if len(self) >= CACHE_ENTRIES_MAX:
                self.clear()
            self[key] = route
        return route

    def match(self, scope: Scope) -> Route | None:
        """Find the line of a scope."""
        return self[tuple(map(scope.get, _KEY))]

    def _lines_of(self, scope: Scope) -> tuple[Sequence[CompiledLine], str]:
        """Lines for the kind of a scope, and its method."""
        if scope["type"] == "websocket":
            return self._websocket_lines, "WS"
        # Some frameworks run the handler of GET for "get" too.
        return self._lines, scope["method"].upper()

    def readings(self, scope: Scope) -> list[PathLine]:
        """List the readings of a path with their lines; the path as it was handed on comes first."""
        lines, method = self._lines_of(scope)
        path: str = scope["path"]
        texts = {path: "as handed on"}
        if not is_plain(path, scope.get("raw_path")):
            texts.setdefault(raw_reading(path, scope.get("raw_path")), "raw")
            for text in plain_readings(path):
                texts.setdefault(text, "plain")
        return [
            PathLine(name, text, self._line_at(lines, method, scope, text)) for text, name in texts.items()
        ]

    def _find_line(self, scope: Scope) -> Route | None:
        """Find the line that decides; ``AMBIGUOUS`` if the readings of the path match different lines."""
        lines, method = self._lines_of(scope)
        path: str = scope["path"]
        handed = self._first_line(lines, method, client_paths(scope, root_path=self._root_path))
        if handed is not None and handed.paths == "as_sent":
            return handed
        line = self._line_at(lines, method, scope, path)
        if is_plain(path, scope.get("raw_path")):
            others: list[Route | None] = []
        elif len(path) > PATH_CHARS_MAX:
            others = [each.route for each in lines if each.accepts(method)]
        elif climbs(path):
            others = [one.line for one in self.readings(scope)]
            others += self._lines_below(lines, method, scope)
        else:
            others = [one.line for one in self.readings(scope) if one.line is not None]
        # Some routers take what stands behind the root path, wherever that is.
        behind = _behind_root_path(path, _split_root_path(scope, self._root_path)[0])
        if behind and (gate := self._line_at(lines, method, scope, behind)) is not None and gate.feature:
            others.append(gate)
        strictest = min((line, *others), key=self._strictness)
        if strictest is None or all(one is line for one in others):
            return line
        return AMBIGUOUS if strictest.enforcement == "on" else strictest

    def _lines_below(self, lines: Sequence[CompiledLine], method: str, scope: Scope) -> list[Route]:
        """List the lines that a file server may resolve a climbing path to, though it does not match them."""
        paths = client_paths(scope, root_path=self._root_path)
        return [
            line.route
            for line in lines
            if (line.accepts(method) or line.route.feature is not None)
            and not line.takes(paths)
            and any(may_lead_to(line.route.path or "", path) for path in paths)
        ]

    def _line_at(self, lines: Sequence[CompiledLine], method: str, scope: Scope, path: str) -> Route | None:
        """Find the strictest line of a path: as it is, and without regard to case and a slash at its end."""
        paths = client_paths({**scope, "path": path}, root_path=self._root_path)
        found = self._first_line(lines, method, paths)
        return self._stricter(found, self._first_line(lines, method, paths, loosely=True))

    def _first_line(
        self, lines: Sequence[CompiledLine], method: str, paths: Sequence[str], *, loosely: bool = False
    ) -> Route | None:
        """Find the first line that takes one of the paths.

        One that only takes the path with the root path gives way to a stricter one that only takes the path
        without: the router strips the root path, which Daphne takes from the client's ``Daphne-Root-Path``.
        With the path of an ``exempt`` line there, a client would get around a gate.

        Args:
            lines: the first one wins.
            method: ``WS`` for a websocket.
            paths: see :func:`client_paths`.
            loosely: without regard to case and a slash at the end.
        """
        taking = [line for line in lines if line.takes(paths, loosely=loosely)]
        found = next((line for line in taking if line.accepts(method)), None)
        route = self._add_gates(found, taking, method)
        routed = [path for path in paths if any(path != long and long.endswith(path) for long in paths)]
        if found is None or not routed or found.takes(routed, loosely=loosely):
            return route
        longer = [path for path in paths if path not in routed]
        within = [line for line in lines if not line.takes(longer, loosely=loosely)]
        return self._stricter(route, self._first_line(within, method, routed, loosely=loosely))

    def _add_gates(
        self, found: CompiledLine | None, taking: Sequence[CompiledLine], method: str
    ) -> Route | None:
        """Add the features of lines of the same path that name other methods: a handler may take any method.

        A line that names the method opens it, and so does another gate of the same path. The line that takes
        the request says what it consumes.
        """
        route = None if found is None else found.route
        if method == "WS" or (route is not None and route.method is not None):
            return route
        above = taking if found is None else taking[: taking.index(found)]
        gates = [
            line.route
            for line in above
            if line.route.feature is not None
            and not (line.route.mcp is not None and method in _SESSION_METHODS)
            and not (route is not None and route.feature is not None and route.path == line.route.path)
        ]
        # A gate in shadow adds nothing to a line that is enforced.
        gates = [gate for gate in gates if gate.enforcement == "on"] or (
            gates if route is None or route.enforcement != "on" else []
        )
        return self._combine(route, gates) if gates else route

    def _stricter(self, line: Route | None, other: Route | None) -> Route | None:
        """Return the stricter of two lines that a request may be of, with the features of both.

        Of two that count, the one that reads a message, the request or the response: nothing that it charges
        becomes free.
        """
        if line is other:
            return line
        weaker, stricter = sorted((other, line), key=self._precedence, reverse=True)
        if stricter is None or weaker is None or weaker.feature is None or weaker.enforcement != "on":
            return stricter
        return self._combine(stricter, [weaker]) if self._strictness(stricter) < _SHADOWED else stricter

    def _precedence(self, line: Route | None) -> tuple[bool, bool, bool, int]:
        rank = self._strictness(line)
        reads = line is not None and bool(
            line.usage != "none" or line.reserve or line.storage or line.grow or line.per_message
        )
        return rank >= _SHADOWED, line is None or line.mcp is None, not reads, rank

    def _combine(self, route: Route | None, gates: Sequence[Route]) -> Route:
        """Combine a line with the features of others, once: decisions are cached by the line's identity."""
        key = (id(route), *map(id, gates))
        if key not in self._gated:
            first = gates[0]
            line = route or Route(
                match=first.match,
                method=None,
                path=first.path,
                enforcement=first.enforcement,
                on_store_failure=first.on_store_failure,
                headers=first.headers,
            )
            named = [name for one in (line, *gates) for name in (one.feature, *one.further_features) if name]
            feature, *further = dict.fromkeys(named)
            self._gated[key] = replace(
                line,
                feature=feature,
                further_features=tuple(further),
                exempt=False,
                always=False,
                enforcement=first.enforcement,
            )
        return self._gated[key]

    def _strictness(self, line: Route | None) -> int:
        """Rank a line, the strictest lowest: gated, priced, decided, in shadow, ``exempt`` or ``always``."""
        if line is None:
            return _NO_LINE
        if line.exempt or line.always:
            return _EXEMPT
        if line.enforcement != "on":
            return _SHADOWED
        counts = line.consume or line.per_message or line.records or line.rates or line.usage != "none"
        is_priced = counts or line.reserve or line.storage or line.grow
        return _GATED if line.feature is not None else _PRICED if is_priced else _DECIDED

    def _warn_without_mount(self, scope: Scope, found: Route | None) -> None:
        server, mount = _split_root_path(scope, self._root_path)
        if self._without_mount is None or not mount:
            return
        if found is not None and found.path is not None and found.path.startswith(mount):
            return  # It is written as it should be.
        below = _strip_root(_strip_root(scope["path"], server), mount)
        lines, method = self._lines_of(scope)
        line = self._first_line(lines, method, [below])
        if line is not None and line is not found and line.path is not None:
            warn, self._without_mount = self._without_mount, None
            warn(line, found, mount)


def is_same_request(scope: Scope, decided: RequestKey) -> bool:
    """Whether a scope has the method and the path that were decided; mounts may have cut the path."""
    _, method, path, _, root, _ = decided
    now = _join_root(scope["path"], scope.get("root_path"))
    return scope.get("method") == method and now == _join_root(path, root)


def _join_root(path: str, root: str | None) -> str:
    root = (root or "").rstrip("/")
    return path if path == root or path.startswith(f"{root}/") else root + path


def client_paths(scope: Scope, *, root_path: str = "") -> list[str]:
    """List the decoded path as clients may write it: with the root path of the server, and without.

    Mounts are included in all of them. It is unknown which one the client wrote: a proxy may strip the root
    path or not, and servers put it before ``path`` or do not. A router runs one handler for all.

    Args:
        scope: a request's or a websocket's.
        root_path: the root path that the wrapped app has, whatever the server says.
    """
    path: str = scope["path"]
    server, mount = _split_root_path(scope, root_path)
    found = [_strip_root(path, server)]
    if mount:
        found.append(mount + _strip_root(path, server + mount))
    prefix = server.strip("/")
    if prefix:
        found += [f"/{prefix}{below}" for below in found]
    return list(dict.fromkeys(found))


def _split_root_path(scope: Scope, root_path: str) -> tuple[str, str]:
    """Split off the server's root path, and the path of the mounts within it; each may be empty."""
    root = str(scope.get("root_path", "")).rstrip("/")
    # Within a mount Starlette keeps here what the server had said, and adds the mount to the root path.
    server = str(scope.get("app_root_path", root_path or root)).rstrip("/")
    is_mounted = "app_root_path" in scope and root.startswith(f"{server}/")
    return server, root[len(server) :] if is_mounted else ""


def _behind_root_path(path: str, server: str) -> str:
    """Cut off the root path and what stands before it; empty if the path only begins with it, or lacks it."""
    below = _strip_root(path, server)
    return f"/{below.partition(server)[2].lstrip('/')}" if server and server in below else ""


def _strip_root(path: str, root: str) -> str:
    """Strip the root path, taken literally, as a router does."""
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :]
    return path


def root_path_of_app(app: object) -> str:
    """Read the root path that an app has by its own settings; empty if it goes by the server's.

    ``FastAPI(root_path=…)`` and Django's ``FORCE_SCRIPT_NAME`` take the place of the server's root path
    behind the middleware, so the scope does not have it yet.

    Args:
        app: the wrapped app; its own wrappers are looked through.
    """
    with suppress(Exception):  # Proxies of apps raise whatever they like as long as there is no app.
        settings: Any = getattr(modules.get("django.conf"), "settings", None)
        if getattr(settings, "configured", False) and settings.FORCE_SCRIPT_NAME:
            return str(settings.FORCE_SCRIPT_NAME)
        for _ in range(_WRAPPERS_MAX):
            root = getattr(app, "root_path", "")
            if root and isinstance(root, str):
                return root
            app = getattr(app, "app", None)
    return ""
