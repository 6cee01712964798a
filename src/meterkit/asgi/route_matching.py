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

from meterkit.asgi.paths import PATH_CHARS_MAX, compile_loosely, is_plain, list_readings, may_climb_to
from meterkit.catalog.match_lines import WEBSOCKET
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.types import Scope

CACHE_ENTRIES_MAX: Final = 4096
CACHED_CHARS_MAX: Final = 2048
COMBINATIONS_MAX: Final = 1000
READINGS_MAX: Final = 24
_WRAPPERS_MAX: Final = 100
_SESSION_METHODS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods of requests to an MCP endpoint that have no message."""
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
    """Line with the patterns of its path; None stands for all paths.

    Attributes:
        loose: without regard to case and a slash at the end; None if the line asks for less than others.
    """

    route: Route
    pattern: re.Pattern[str] | None
    loose: re.Pattern[str] | None

    @classmethod
    def of(cls, route: Route) -> CompiledLine:
        """Compile a line; the plans file has only templates that Starlette can read."""
        if route.path is None:
            return cls(route, None, None)
        pattern = compile_path(route.path)[0]
        if route.exempt or route.always:
            return cls(route, pattern, None)
        # {key:path} takes line breaks, as Starlette's {name} does: a line covers what stands below it.
        return cls(route, re.compile(pattern.pattern, re.DOTALL), compile_loosely(route.path))

    def accepts(self, method: str) -> bool:
        """Whether it is for a method."""
        return self.route.method in {None, method} or (self.route.method, method) == ("GET", "HEAD")

    def takes(self, paths: Sequence[str], end: str | None = None) -> bool:
        """Whether it takes one of the paths, whatever the method.

        Args:
            paths: decoded.
            end: what they end with instead of a slash, without regard to case; None: they are as they are.
        """
        if end is None or self.loose is None:
            return self.pattern is None or any(map(self.pattern.match, paths))
        return any(self.loose.match(f"{path.rstrip('/')}{end}") for path in paths)


class Router(dict[RequestKey, "Route | None"]):
    """Lines of requests by all that they depend on; a line is found by the first request of its key.

    Args:
        routes: in the order of the plans file.
        root_path: the root path that the wrapped app has; see :func:`root_path_of_app`.
        without_mount: called once, at the first request of a mounted app that would have matched a line, had
            the line been written with the mount's path; takes that line, the one that does match or None, and
            the mount's path.
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
        self._lines = {
            "http": [line for line in lines if line.route.method != WEBSOCKET],
            # A line with a path is about requests, unless it says WS.
            "websocket": [line for line in lines if line.route.method == WEBSOCKET or line.pattern is None],
        }
        self._root_path = root_path
        # A pattern with more behind {key:path} takes long for long paths.
        self._is_slow = any(":path}" in (route.path or "")[:-1] for route in routes)
        self._without_mount = without_mount
        self._combined: dict[tuple[int, ...], Route] = {}

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

    def readings(self, scope: Scope) -> list[PathLine]:
        """List the readings of a path with their lines; the path as it was handed on comes first.

        Further readings are listed if they match a line that takes a feature. If there are too many, or the
        path is too long, ``AMBIGUOUS`` stands for all of them, unless no line refuses requests.
        """
        path, raw, roots = scope["path"], scope.get("raw_path"), self._list_roots(scope)
        lines, line = self._lines_of(scope)[0], self._line_at(scope, path)
        found = [PathLine("as handed on", path, line)]
        is_long = len(path) > PATH_CHARS_MAX
        named = [root for root in roots if root.strip("/")]
        is_nested = any(other in _strip_root(path, root) for root in named for other in named)
        if is_plain(path, raw) and not is_nested and not (is_long and self._is_slow):
            return found
        is_bounded = not is_long and all(is_plain(root, None) for root in roots)
        texts = list_readings(path, raw, roots) if is_bounded else {}
        if not is_bounded or len(texts) > READINGS_MAX:
            rest = PathLine("too many", path, AMBIGUOUS)
            return [*found, rest] if any(_is_enforced(one.route) for one in lines) else found
        # A line that takes paths as sent keeps the readings that it takes itself.
        kept = [one for one in lines if one.route is line and one.route.paths == "as_sent"]
        for text, name in texts.items():
            is_kept = any(one.takes(self._list_paths(scope, text)) for one in kept)
            found.append(PathLine(name, text, line if is_kept else self._line_at(scope, text)))
        return [one for one in found if one.reading != "further" or _features_of(one.line)]

    def _find_line(self, scope: Scope) -> Route | None:
        """Find the line that decides; ``AMBIGUOUS`` if the readings of the path match different lines.

        Further readings, and folders to which the path may climb, count if they need another feature.
        """
        (_, path, line), *others = self.readings(scope)
        if not others:
            return line
        known, paths = _features_of(line), self._list_paths(scope, path)
        for name, _, other in others:
            if _features_of(other) - known or (name != "further" and _is_contested(line, other)):
                return AMBIGUOUS
        lines, method = self._lines_of(scope)
        may_climb = any(
            _features_of(one.route) - known
            and (one.accepts(method) or not one.takes(paths))
            and any(may_climb_to(one.route.path or "", text) for text in paths)
            for one in lines
        )
        return AMBIGUOUS if may_climb else line

    def _lines_of(self, scope: Scope) -> tuple[Sequence[CompiledLine], str]:
        """Lines for the kind of a scope, and its method."""
        kind = scope["type"]
        # Some frameworks run the handler of GET for "get" too.
        return self._lines[kind], WEBSOCKET if kind == "websocket" else scope["method"].upper()

    def _list_roots(self, scope: Scope) -> tuple[str, ...]:
        """List the root paths: the server's, and the wrapped app's, which takes its place behind here."""
        roots = (_split_root_path(scope)[0], self._root_path)
        return tuple(dict.fromkeys(each for root in roots for each in (root, root.rstrip("/")) if each))

    def _list_paths(self, scope: Scope, path: str) -> list[str]:
        """List a decoded path as clients may write it: with the root path of the server, and without.

        Mounts are included in all of them. It is unknown which one the client wrote: a proxy may strip the
        root path or not, and servers put it before ``path`` or do not. A router runs one handler for all.
        """
        mount, roots = _split_root_path(scope)[1], self._list_roots(scope)
        places = dict.fromkeys(("", mount))
        found = [place + _strip_root(path, root + place) for root in ("", *roots) for place in places]
        for prefix in dict.fromkeys(root.strip("/") for root in roots):
            found += [f"/{prefix}{below}" for below in found if prefix]
        return list(dict.fromkeys(found))

    def _line_at(self, scope: Scope, path: str) -> Route | None:
        """Find the strictest line of a path: as it is, and without regard to case and a slash at its end."""
        lines, method = self._lines_of(scope)
        paths = self._list_paths(scope, path)
        looks = [self._first_line(lines, method, paths, end) for end in (None, "")]
        found = self._choose_stricter(*looks)
        if not any(one and one.path and not one.path.endswith(":path}") for one in looks):
            # {key:path} may be empty: for some routers it takes the path without the slash before it, too.
            found = self._choose_stricter(found, self._first_line(lines, method, paths, "/"))
        if scope.get("method") not in {None, method}:
            # Some frameworks run the handler of GET for "get", others that of no method.
            found = self._choose_stricter(found, self._first_line(lines, scope["method"], paths))
        return found

    def _first_line(
        self, lines: Sequence[CompiledLine], method: str, paths: Sequence[str], end: str | None = None
    ) -> Route | None:
        """Find the first line that takes one of the paths; loosely, the strictest up to that line.

        One that only takes the path with the root path gives way to a stricter one that only takes the path
        without: the router strips the root path, which Daphne takes from the client's ``Daphne-Root-Path``.
        With the path of an ``exempt`` line there, a client would get around a gate.

        Args:
            lines: in the order of the plans file.
            method: ``WS`` for a websocket.
            paths: see :meth:`_list_paths`.
            end: see :meth:`CompiledLine.takes`.
        """
        taking = [line for line in lines if line.takes(paths, end)]
        accepting = [line for line in taking if line.accepts(method)]
        exact = next((nth for nth, line in enumerate(accepting) if line.takes(paths)), len(accepting))
        route = self._add_gates(None, taking, method) if not accepting else None
        for line in (*accepting[exact : exact + 1], *accepting[:exact]):
            route = self._choose_stricter(route, self._add_gates(line, taking, method))
        longer = [path for path in paths if any(path != below and path.endswith(below) for below in paths)]
        routed = [path for path in paths if path not in longer]
        if not accepting or accepting[0].takes(routed, end):
            return route
        within = [line for line in lines if not line.takes(longer, end)]
        return self._choose_stricter(route, self._first_line(within, method, routed, end))

    def _add_gates(
        self, found: CompiledLine | None, taking: Sequence[CompiledLine], method: str
    ) -> Route | None:
        """Add the features of lines of the same path that name other methods: a handler may take any method.

        A line that names the method opens it, and so does another gate of the same path. The line that takes
        the request says what it consumes.
        """
        route = None if found is None else found.route
        if method == WEBSOCKET or (route is not None and route.method is not None):
            return route
        above = taking if found is None else taking[: taking.index(found)]
        gates = [
            line.route
            for line in above
            if line.route.feature is not None
            and not line.accepts(method)
            and not (line.route.mcp is not None and method in _SESSION_METHODS)
            and not (route is not None and route.feature is not None and route.path == line.route.path)
        ]
        # A gate in shadow adds nothing to a line that is enforced.
        gates = [gate for gate in gates if gate.enforcement == "on"] or (
            gates if route is None or route.enforcement != "on" else []
        )
        return self._combine_lines(route, gates) if gates else route

    def _choose_stricter(self, line: Route | None, other: Route | None) -> Route | None:
        """Return the stricter of two lines that a request may be of, with the features of both."""
        stricter, weaker = sorted((line, other), key=_precedence)
        if weaker is None or weaker is stricter or not _features_of(weaker):
            return stricter
        return self._combine_lines(stricter, [weaker])

    def _combine_lines(self, route: Route | None, gates: Sequence[Route]) -> Route:
        """Combine a line with the features of others, once: decisions are cached by the line's identity."""
        if len(self._combined) >= COMBINATIONS_MAX:  # A client can write paths between many gates.
            lines = (*self._lines["http"], *self._lines["websocket"])
            route, gates = None, [line.route for line in lines if line.route.feature is not None]
        key = (id(route), *map(id, gates))
        if key not in self._combined:
            # A line in shadow refuses nothing: of it and an enforced gate the gate alone decides.
            is_base = route is not None and (route.enforcement == "on" or gates[0].enforcement != "on")
            line = route if route is not None and is_base else _bare_line(gates[0])
            named = [name for one in (line, *gates) for name in (one.feature, *one.further_features) if name]
            feature, *further = dict.fromkeys(named)
            self._combined[key] = replace(
                line, feature=feature, further_features=tuple(further), exempt=False, always=False
            )
        return self._combined[key]

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


def _split_root_path(scope: Scope) -> tuple[str, str]:
    """Split off the server's root path, and the path of the mounts within it; each may be empty."""
    root: str = scope.get("root_path") or ""
    # Within a mount Starlette keeps here what the server had said, and adds the mount to the root path.
    server: str = scope.get("app_root_path", root)
    is_mounted = "app_root_path" in scope and root.startswith(f"{server.rstrip('/')}/")
    return server, root[len(server.rstrip("/")) :] if is_mounted else ""


def _is_enforced(line: Route | None) -> bool:
    """Whether a line may refuse a request."""
    return line is not None and line.enforcement == "on" and not (line.exempt or line.always)


def _features_of(line: Route | None) -> set[str]:
    """Features that a line takes, where it is enforced."""
    if line is None or line.feature is None or line.enforcement != "on":
        return set()
    return {line.feature, *line.further_features}


def _is_contested(line: Route | None, other: Route | None) -> bool:
    """Whether it matters which of two lines decides: in shadow nothing is refused."""
    if other is None or other is line or other.enforcement != "on":
        return False
    if other is AMBIGUOUS:
        return True
    return _is_enforced(other) or (line is not None and line.enforcement == "on")


def _precedence(line: Route | None) -> tuple[bool, ...]:
    """Sort key of lines, the strictest first: gated, priced, decided, in shadow, ``exempt`` or ``always``.

    Of two that count, the one that reads a message, the request or the response: nothing that it charges
    becomes free.
    """
    if line is None:
        return (True, True)
    reads = line.usage != "none" or line.reserve or line.storage or line.grow or line.per_message
    return (
        not _is_enforced(line),
        False,
        line.exempt or line.always,
        line.mcp is None,
        not reads,
        line.feature is None,
        not (line.feature or line.consume or line.records or line.rates),
    )


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
        roots = (getattr(each, "root_path", "") for each in unwrap(app))
        return next((root for root in roots if root and isinstance(root, str)), "")
    return ""


def unwrap(app: Any) -> Iterator[Any]:
    """List an app and what it wraps as its ``.app``, from the outside in."""
    for _ in range(_WRAPPERS_MAX):
        app = getattr(app, "__self__", app)  # `app.__call__`.
        yield app
        app = getattr(app, "app", None)
        if app is None:
            return
