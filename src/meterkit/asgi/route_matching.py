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
    LoosePattern,
    climbs,
    is_plain,
    may_lead_to,
    partial_readings,
    plain_reading,
    raw_reading,
)
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from starlette.types import Scope

CACHE_ENTRIES_MAX: Final = 4096
CACHED_CHARS_MAX: Final = 2048
COMBINATIONS_MAX: Final = 1000
READINGS_MAX: Final = 24
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
        loose: without regard to case and a slash at the end; None if the line asks for less than others.
    """

    route: Route
    methods: frozenset[str] | None
    pattern: re.Pattern[str] | None
    loose: LoosePattern | None

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
        if route.exempt or route.always:
            return cls(route, methods, pattern, None)
        # {key:path} takes line breaks, as Starlette's {name} does: a line covers what stands below it.
        return cls(route, methods, re.compile(pattern.pattern, re.DOTALL), LoosePattern.of(route.path))

    def accepts(self, method: str) -> bool:
        """Whether it is for a method."""
        return self.methods is None or method in self.methods

    def takes(self, paths: Iterable[str]) -> bool:
        """Whether it takes one of the paths, whatever the method."""
        return self.pattern is None or any(map(self.pattern.match, paths))

    def takes_loosely(self, paths: Iterable[str], *, end: str) -> bool:
        """Whether it takes one of the paths without regard to case and a slash at the end."""
        if self.loose is None:
            return self.takes(paths)
        return any(self.loose.match(f"{path.rstrip('/')}{end}") for path in paths)


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
        # A pattern with more behind {key:path} takes long for long paths.
        self._is_slow = any(":path}" in (route.path or "")[:-1] for route in routes)
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
        """List the readings of a path with their lines; the path as it was handed on comes first.

        Further readings are listed if they match a line that takes a feature.
        """
        path, raw, roots = scope["path"], scope.get("raw_path"), self._roots(scope)
        found = [PathLine("as handed on", path, self._line_at(scope, path))]
        if not self._is_odd(scope):
            return found
        texts = {raw_reading(path, raw): "raw"}
        texts.setdefault(plain_reading(path), "plain")
        texts.pop(path, None)
        found += [PathLine(name, text, self._line_at(scope, text)) for text, name in texts.items()]
        more = [text for text in partial_readings(path, raw, roots) if text not in {path, *texts}]
        others = (PathLine("further", text, self._line_at(scope, text)) for text in more)
        return found + [one for one in others if _features_of(one.line)]

    def _is_odd(self, scope: Scope) -> bool:
        """Whether a path has more than one reading, or is too long for the patterns."""
        path, roots = scope["path"], [root for root in self._roots(scope) if root.strip("/")]
        return (
            not is_plain(path, scope.get("raw_path"))
            or (self._is_slow and len(path) > PATH_CHARS_MAX)
            or any(other in _strip_root(path, root) for root in roots for other in roots)
        )

    def _roots(self, scope: Scope) -> list[str]:
        """List the root paths: the server's, and the wrapped app's, which takes its place behind here."""
        roots = (_split_root_path(scope)[0], self._root_path)
        return list(dict.fromkeys(each for root in roots for each in (root, root.rstrip("/"))))

    def _find_line(self, scope: Scope) -> Route | None:
        """Find the line that decides; ``AMBIGUOUS`` if the readings of the path match different lines."""
        line = self._line_at(scope, scope["path"])
        return AMBIGUOUS if self._is_odd(scope) and self._has_other_line(scope, line) else line

    def _has_other_line(self, scope: Scope, line: Route | None) -> bool:
        """Whether a reading of a path matches another line than the path as it was handed on.

        Readings that only some routers have count if they match a line of another feature.
        """
        lines, method = self._lines_of(scope)
        path, raw, roots = scope["path"], scope.get("raw_path"), self._roots(scope)
        enforced = [one for one in lines if self._strictness(one.route) < _SHADOWED]
        if len(path) > PATH_CHARS_MAX or not all(is_plain(root, None) for root in roots if root):
            return bool(enforced)
        kept = [one for one in lines if line is not None and one.route is line and line.paths == "as_sent"]

        def line_of(text: str) -> Route | None:
            """Find the line of a reading; a line that takes paths as sent keeps what it takes itself."""
            is_kept = any(one.takes(self._list_paths(scope, text)) for one in kept)
            return line if is_kept else self._line_at(scope, text)

        for text in (raw_reading(path, raw), plain_reading(path)):
            other = line_of(text)
            if other is not None and other is not line and self._is_contested(line, other):
                return True
        known, further = _features_of(line), partial_readings(path, raw, roots)
        if len(further) > READINGS_MAX or any(_features_of(line_of(text)) - known for text in further):
            return bool(enforced)
        paths = self._list_paths(scope, path)
        return climbs(path) and any(
            not _features_of(one.route) <= known
            and (one.accepts(method) or not one.takes(paths))
            and any(may_lead_to(one.route.path or "", text) for text in paths)
            for one in enforced
        )

    def _is_contested(self, line: Route | None, other: Route) -> bool:
        """Whether it matters which of two lines decides: in shadow nothing is refused."""
        ranks = (self._strictness(line), self._strictness(other))
        return other.enforcement == "on" and min(ranks) != _SHADOWED and ranks != (_NO_LINE, _EXEMPT)

    def _list_paths(self, scope: Scope, path: str) -> list[str]:
        return client_paths({**scope, "path": path}, root_path=self._root_path)

    def _line_at(self, scope: Scope, path: str) -> Route | None:
        """Find the strictest line of a path: as it is, and without regard to case and a slash at its end."""
        lines, method = self._lines_of(scope)
        paths = self._list_paths(scope, path)
        line = self._first_line(lines, method, paths)
        loosely = self._first_line(lines, method, paths, end="")
        found = self._choose_stricter(line, loosely)
        if not any(one and one.path and not one.path.endswith(":path}") for one in (line, loosely)):
            # {key:path} may be empty: for some routers it takes the path without the slash before it, too.
            found = self._choose_stricter(found, self._first_line(lines, method, paths, end="/"))
        if method != "WS" and scope["method"] != method:
            # Some frameworks run the handler of GET for "get", others that of no method.
            found = self._choose_stricter(found, self._first_line(lines, scope["method"], paths))
        return found

    def _first_line(
        self, lines: Sequence[CompiledLine], method: str, paths: Sequence[str], *, end: str | None = None
    ) -> Route | None:
        """Find the first line that takes one of the paths; loosely, the strictest up to that line.

        One that only takes the path with the root path gives way to a stricter one that only takes the path
        without: the router strips the root path, which Daphne takes from the client's ``Daphne-Root-Path``.
        With the path of an ``exempt`` line there, a client would get around a gate.

        Args:
            lines: the first one wins.
            method: ``WS`` for a websocket.
            paths: see :func:`client_paths`.
            end: what the paths end with, without regard to case; None: they are as they are.
        """

        def takes(line: CompiledLine, paths: Sequence[str]) -> bool:
            return line.takes(paths) if end is None else line.takes_loosely(paths, end=end)

        taking = [line for line in lines if takes(line, paths)]
        accepting = [line for line in taking if line.accepts(method)]
        found = accepting[0] if accepting else None
        route = self._add_gates(found, taking, method)
        if end is not None:
            exact = next((nth for nth, line in enumerate(accepting) if line.takes(paths)), len(accepting))
            for line in accepting[1 : exact + 1]:
                route = self._choose_stricter(route, line.route)
        longer = [path for path in paths if any(path != below and path.endswith(below) for below in paths)]
        routed = [path for path in paths if path not in longer]
        if found is None or takes(found, routed):
            return route
        within = [line for line in lines if not takes(line, longer)]
        return self._choose_stricter(route, self._first_line(within, method, routed, end=end))

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
        return self._combine_lines(route, gates) if gates else route

    def _choose_stricter(self, line: Route | None, other: Route | None) -> Route | None:
        """Return the stricter of two lines that a request may be of, with the features of both.

        Of two that count, the one that reads a message, the request or the response: nothing that it charges
        becomes free.
        """
        if line is other:
            return line
        weaker, stricter = sorted((other, line), key=self._precedence, reverse=True)
        if stricter is None or weaker is None or weaker.feature is None or weaker.enforcement != "on":
            return stricter
        return self._combine_lines(stricter, [weaker]) if self._strictness(stricter) < _SHADOWED else stricter

    def _precedence(self, line: Route | None) -> tuple[bool, bool, bool, int]:
        rank = self._strictness(line)
        reads = line is not None and bool(
            line.usage != "none" or line.reserve or line.storage or line.grow or line.per_message
        )
        return rank >= _SHADOWED, line is None or line.mcp is None, not reads, rank

    def _combine_lines(self, route: Route | None, gates: Sequence[Route]) -> Route:
        """Combine a line with the features of others, once: decisions are cached by the line's identity."""
        if len(self._gated) >= COMBINATIONS_MAX:  # A client can write paths between many gates.
            lines = (*self._lines, *self._websocket_lines)
            route, gates = None, [line.route for line in lines if line.route.feature is not None]
        key = (id(route), *map(id, gates))
        if key not in self._gated:
            # A line in shadow refuses nothing: of it and an enforced gate the gate alone decides.
            is_base = route is not None and (route.enforcement == "on" or gates[0].enforcement != "on")
            line = route if route is not None and is_base else _bare_line(gates[0])
            named = [name for one in (line, *gates) for name in (one.feature, *one.further_features) if name]
            feature, *further = dict.fromkeys(named)
            self._gated[key] = replace(
                line, feature=feature, further_features=tuple(further), exempt=False, always=False
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
        server, mount = _split_root_path(scope)
        if self._without_mount is None or not mount:
            return
        if found is not None and found.path is not None and found.path.startswith(mount):
            return  # It is written as it should be.
        below = _strip_root(_strip_root(scope["path"], server), mount)
        line = self._first_line(*self._lines_of(scope), [below])
        if line is not None and line is not found and line.path is not None:
            warn, self._without_mount = self._without_mount, None
            warn(line, found, mount)


def is_same_request(scope: Scope, decided: RequestKey, *, is_within: bool) -> bool:
    """Whether a scope has the method and the path that were decided.

    Args:
        scope: a request's or a websocket's.
        decided: all that the decided line depended on.
        is_within: whether another middleware asks: between them mounts and prefixes may have cut the path, or
            HEAD may have become GET.
    """
    _, method, path, _, root, _ = decided
    now: str = scope["path"]
    if not is_within:
        return (scope.get("method"), now, scope.get("root_path")) == (method, path, root)
    is_method = scope.get("method") == method or (method, scope.get("method")) == ("HEAD", "GET")
    return is_method and (path.endswith(now) or now.endswith(path))


def client_paths(scope: Scope, *, root_path: str = "") -> list[str]:
    """List the decoded path as clients may write it: with the root path of the server, and without.

    Mounts are included in all of them. It is unknown which one the client wrote: a proxy may strip the root
    path or not, and servers put it before ``path`` or do not. A router runs one handler for all.

    Args:
        scope: a request's or a websocket's.
        root_path: the root path that the wrapped app has, whatever the server says.
    """
    path: str = scope["path"]
    server, mount = _split_root_path(scope)
    found: list[str] = []
    for root in dict.fromkeys(("", server, server.rstrip("/"), root_path.rstrip("/"))):
        found.append(_strip_root(path, root))
        if mount:
            found.append(mount + _strip_root(path, root + mount))
    for prefix in dict.fromkeys((server.strip("/"), root_path.strip("/"))):
        found += [f"/{prefix}{below}" for below in found if prefix]
    return list(dict.fromkeys(found))


def _split_root_path(scope: Scope) -> tuple[str, str]:
    """Split off the server's root path, and the path of the mounts within it; each may be empty."""
    root: str = scope.get("root_path") or ""
    # Within a mount Starlette keeps here what the server had said, and adds the mount to the root path.
    server: str = scope.get("app_root_path", root)
    is_mounted = "app_root_path" in scope and root.startswith(f"{server.rstrip('/')}/")
    return server, root[len(server.rstrip("/")) :] if is_mounted else ""


def _features_of(line: Route | None) -> set[str]:
    """Features that a line takes, where it is enforced."""
    if line is None or line.feature is None or line.enforcement != "on":
        return set()
    return {line.feature, *line.further_features}


def _bare_line(gate: Route) -> Route:
    """Line of the path of a gate, which counts nothing."""
    return Route(
        match=gate.match,
        method=None,
        path=gate.path,
        enforcement=gate.enforcement,
        on_store_failure=gate.on_store_failure,
        headers=gate.headers,
    )


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
