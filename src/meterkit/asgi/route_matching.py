"""Router: finds the line of the plans file that takes a request or a websocket."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.routing import compile_path

from meterkit.asgi.combined_lines import LineCombiner, is_metered
from meterkit.asgi.path_readings import (
    AS_WRITTEN,
    EXACT,
    PathReading,
    PathRules,
    django_settings,
    fastapi_root_path,
    has_dots,
    has_encoded_slash,
    is_uneven,
    loose_pattern,
    loose_spellings,
    may_be_django,
    may_lead_to,
    path_readings,
    path_spellings,
    segments_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from starlette.types import Scope

    from meterkit.asgi.path_readings import PathReader
    from meterkit.catalog.models import Route

CompiledLine = tuple["Route", "frozenset[str] | None", "re.Pattern[str] | None"]
"""A line, its methods and its pattern; None for all of them."""


class PathLine(NamedTuple):
    """Reading of a path, and the line that takes it; None: no line does."""

    reading: PathReading
    line: Route | None


class LineSearch(NamedTuple):
    """Lines to search for the one that takes a request.

    Attributes:
        is_odd: whether its method is taken for that of any line that decides.
        prefix: the root path without slashes around it; empty where there is none.
        every_method: whether the handler takes every method unless it says otherwise.
    """

    lines: Sequence[CompiledLine]
    method: str
    is_odd: bool = False
    prefix: str = ""
    every_method: bool = False

    def only(self, lines: Iterable[CompiledLine]) -> LineSearch:
        """Ask some of the lines, or other patterns of them."""
        return self._replace(lines=list(lines))

    def only_line(self, line: Route) -> LineSearch:
        """Ask one of the lines."""
        return self.only(each for each in self.lines if each[0] is line)

    def accepts(self, route: Route, methods: frozenset[str] | None) -> bool:
        """Whether a line takes the method."""
        return methods is None or self.method in methods or (self.is_odd and not route.exempt)


def first_line(asked: LineSearch, paths: Sequence[str]) -> Route | None:
    """Find the first line that matches."""
    for line in asked.lines:
        if asked.accepts(line[0], line[1]) and takes_path(line, paths):
            return line[0]
    return None


def takes_path(line: CompiledLine, paths: Sequence[str]) -> bool:
    """Whether a line takes one of the paths, whatever the method."""
    return line[2] is None or any(map(line[2].match, paths))


def methods_of(route: Route) -> frozenset[str] | None:
    """Methods that a line takes; None: all."""
    if route.method is None:
        return None
    return frozenset({"GET", "HEAD"}) if route.method == "GET" else frozenset({route.method})


def pattern_of(route: Route) -> re.Pattern[str] | None:
    """Compile the path of a line; None: it takes all.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """
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


CACHE_ENTRIES_MAX: Final = 4096
CACHED_PATH_CHARS_MAX: Final = 512
CACHED_METHOD_CHARS_MAX: Final = 16
_WRAPPERS_MAX: Final = 100
_PREFLIGHT: Final = frozenset({b"origin", b"access-control-request-method"})
_NO_PREFLIGHT: Final = frozenset({b"authorization", b"cookie", b"transfer-encoding"})
TOO_MANY: Final = "too many readings: any line whose fixed segments stand in it, in that order"
_ORDINARY: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})
"""Methods that lines need not name: handlers take them on purpose."""
_OF_SESSIONS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods of requests to an MCP endpoint that have no message."""


class Router:
    """Finds the first route that matches, by the path as the client wrote it.

    The patterns are Starlette's own, so that a request reaches a handler and its route line by the same
    rules: a trailing slash counts, ``{key:path}`` may be empty, ``%2F`` in a path is a slash. But
    ``{key:path}`` takes line breaks too, as Starlette's ``{name}`` does: a line covers what stands below it.
    Only lines that ask for less, ``exempt`` and ``always``, take no more than Starlette's pattern.

    Where something behind may read the path in another way, a request falls under the strictest line that
    any reading leads to: one that has a feature or counts, then another, then those in shadow, then `exempt`
    and `always`; see :class:`~meterkit.asgi.combined_lines.LineCombiner`. The last two never take a path with
    dot segments, empty segments, backslashes or encoded slashes that something behind may read in another
    way. For loose routers, a path that is written exactly as a line without parameters is that line's.

    Args:
        routes: in the order of the plans file.
        root_path: what the wrapped app takes for its root path, whatever the server says; see
            :func:`root_path_of_app`.
        without_mount: called once, at the first request of a mounted app that would have matched a line, had
            the line been written with the mount's path; takes that line, the one that does match or None, and
            the mount's path.
        reading: how the app's router reads paths.
        messages_first: whether lines of MCP messages are the strictest. Which one of them takes a request,
            and how strict that is, is known only once its message is read.

    Raises:
        ValueError: a path is not a template that Starlette can read.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        root_path: str = "",
        without_mount: _WithoutMount | None = None,
        reading: PathRules = EXACT,
        messages_first: bool = False,
    ) -> None:
        lines = [(route, methods_of(route), pattern_of(route)) for route in routes]
        self._lines = [line for line in lines if line[0].method != "WS"]
        # A line with a path is about requests, unless it says WS.
        self._websocket_lines = [line for line in lines if line[0].method == "WS" or line[0].path is None]
        self._methods = _ORDINARY.union(*(methods for _, methods, _ in lines if methods is not None))
        self._combiner = LineCombiner(routes, messages_first=messages_first)
        self._reading = reading
        self._loose = {
            id(route): loose_pattern(route.path)
            for route in routes
            if route.path is not None and reading is not EXACT
        }
        # What asks for less is matched exactly.
        self._uncased = {
            id(route): re.compile(pattern.pattern, pattern.flags | re.IGNORECASE)
            for route, _, pattern in lines
            if reading.ignores_case and pattern is not None and not (route.exempt or route.always)
        }
        self._is_raw = reading.is_raw
        self._root_path = root_path
        self._without_mount = without_mount
        self._found: dict[_Key, Route | None] = {}

    def match_http(self, scope: Scope) -> Route | None:
        """Find the route of an HTTP request; None: no line matches."""
        method: str = scope["method"]
        # Without a root path, and with no byte encoded, method and path say it all.
        is_long = self._root_path or scope.get("root_path")
        if is_long or (self._is_raw and b"%" in (scope.get("raw_path") or b"")):
            key = self._cache_key(method, scope)
        else:
            key = (method, scope["path"])
        try:
            return self._found[key]
        except KeyError:
            # Frameworks other than Starlette run the handler of GET for "get" too.
            method = method.upper()
            route = self._strictest_line(self._lines, method, scope)
            if self._without_mount is not None:
                self._warn_without_mount(method, scope, route)
            return self._cache_route(key, route)

    def match_websocket(self, scope: Scope) -> Route | None:
        """Find the route of a websocket; None: no line matches."""
        # It has no method, whatever methods a client may invent.
        key = self._cache_key(None, scope)
        try:
            return self._found[key]
        except KeyError:
            return self._cache_route(key, self._strictest_line(self._websocket_lines, "WS", scope))

    def _cache_key(self, method: str | None, scope: Scope) -> _Key:
        """Key of the cache: all that the line depends on."""
        root_path = scope.get("root_path")
        if self._is_raw and has_encoded_slash(scope):
            raw: bytes = scope["raw_path"]
            return method, scope["path"], root_path, scope.get("app_root_path"), raw.decode("latin-1")
        return method, scope["path"], root_path, scope.get("app_root_path")

    def readings(self, scope: Scope) -> list[PathLine]:
        """List the readings of a path with their lines; the strictest comes first."""
        method: str = scope.get("method", "WS").upper()
        lines = self._websocket_lines if method == "WS" else self._lines
        return sorted(self._read_path(lines, method, scope), key=self._strictness)

    def _strictest_line(self, lines: Sequence[CompiledLine], method: str, scope: Scope) -> Route | None:
        found = self._read_path(lines, method, scope)
        if len(found) == 1:
            return found[0].line
        # Ordinary clients add slashes or write other capitals; who writes these hides what is served.
        is_crooked = has_encoded_slash(scope) or has_dots(scope["path"])
        return self._combiner.combine([one.line for one in found], is_crooked=is_crooked)

    def _read_path(self, lines: Sequence[CompiledLine], method: str, scope: Scope) -> list[PathLine]:
        """Find the line of the path as written, and those of other readings that the app may take."""
        reading, path = self._reading, scope["path"]
        if reading.inner_root and not scope.get("root_path"):
            scope = {**scope, "root_path": reading.inner_root}
        paths = client_paths(scope, root_path=self._root_path)
        written = PathReading(path, AS_WRITTEN)
        routed = routed_paths(scope, path, self._root_path) if reading.readers else []
        readers = [one for one in reading.readers if any(one.gets(method, each) for each in routed)]
        asked = LineSearch(
            lines,
            method,
            is_odd=reading.any_method and method not in self._methods,
            prefix=_split_root_path(scope, self._root_path)[0].strip("/"),
            every_method=reading.every_method
            or any(one.takes_every_method(method, each) for one in readers for each in routed),
        )
        found = self._first_line(asked, paths)
        if reading is EXACT:
            return [PathLine(written, found)]
        is_loose = reading.is_loose or any(reader.is_loose for reader in readers)
        if not (is_loose or reading.resolves or readers):
            return [PathLine(written, found)]
        is_encoded = is_loose and has_encoded_slash(scope)
        if is_encoded or is_uneven(path):
            asked = asked.only(line for line in lines if not (line[0].exempt or line[0].always))
            found = self._first_line(asked, paths)
        elif is_loose and found is not None and found.path is not None and "{" not in found.path:
            return [PathLine(written, found)]
        others = self._other_readings(asked, scope, found, readers, is_loose=is_loose)
        return [PathLine(written, found), *others]

    def _other_readings(
        self,
        asked: LineSearch,
        scope: Scope,
        found: Route | None,
        readers: Sequence[PathReader],
        *,
        is_loose: bool,
    ) -> Iterator[PathLine]:
        server = _split_root_path(scope, self._root_path)[0]
        resolves = self._reading.resolves or bool(readers)
        for spelling in path_spellings(scope, is_raw=is_loose):
            several = path_readings(spelling, server, resolves=resolves)
            if several is None:
                yield PathLine(PathReading(spelling, TOO_MANY), self._upper_bound(asked, spelling))
            for one in several or ():
                yield from self._lines_of_reading(one, asked, scope, found, readers)

    def _lines_of_reading(
        self,
        one: PathReading,
        asked: LineSearch,
        scope: Scope,
        found: Route | None,
        readers: Sequence[PathReader],
    ) -> Iterator[PathLine]:
        """Find the lines of one reading: for loose routers, and for exact routers and file servers."""
        method, reading = asked.method, self._reading
        spellings = self._client_paths(scope, one.path)
        routed = routed_paths(scope, one.path, self._root_path)
        if reading.is_loose or any(
            each.is_loose and each.reads(method, path) for each in readers for path in routed
        ):
            # What asks for less is matched exactly, or not at all.
            loose = asked.only(
                (route, methods, self._loose.get(id(route)))
                for route, methods, _ in asked.lines
                if route is found or not (route.exempt or route.always)
            )
            pairs = [loose_spellings(each) for each in spellings]
            yield from self._both_lines(one, loose, [each[1] for each in pairs], [each[0] for each in pairs])
        reads_all = reading.is_loose or reading.resolves
        if reads_all or any(each.reads(method, path) for each in readers for path in routed):
            if one.steps != AS_WRITTEN:
                yield PathLine(one, self._first_line(asked, spellings))
            if reading.ignores_case and not reading.is_loose:
                uncased = asked.only(
                    (route, methods, self._uncased.get(id(route), pattern))
                    for route, methods, pattern in asked.lines
                )
                yield PathLine(one.then(one.path, "case ignored"), self._first_line(uncased, spellings))
        short = one.path.rstrip("/")
        if short == one.path or reading.is_loose:
            return
        routed = routed_paths(scope, short, self._root_path)
        if reading.drops_slash or any(
            each.ignores_slash(method, path) for each in readers for path in routed
        ):
            without = one.then(short, "without the slash at the end")
            yield from self._both_lines(without, asked, spellings, self._client_paths(scope, short))

    def _both_lines(
        self, one: PathReading, asked: LineSearch, with_slash: Sequence[str], without: Sequence[str]
    ) -> Iterator[PathLine]:
        """Find the line of a path whose slash at the end is ignored: the first one, or one that is metered.

        One that also takes the path with the slash stands below the other line on purpose.
        """
        yield PathLine(one, self._first_line(asked, [*without, *with_slash]))
        line = self._first_line(asked, without)
        if line is None or not is_metered(line) or first_line(asked.only_line(line), with_slash):
            return
        yield PathLine(one, line)

    def _client_paths(self, scope: Scope, path: str) -> list[str]:
        return client_paths({**scope, "path": path}, root_path=self._root_path)

    def _upper_bound(self, asked: LineSearch, path: str) -> Route | None:
        """Find the strictest line that any reading of a path might lead to."""
        spellings = segments_of(path)
        several = [each for each in asked.lines if may_lead_to(each[0].path or "", spellings)]
        accepted = [route for route, methods, _ in several if asked.accepts(route, methods)]
        found = self._combiner.combine(accepted, is_crooked=True) if accepted else None
        if not asked.every_method:
            return found
        gates = [route for route, *_ in several if route.feature is not None and route.method != "WS"]
        return self._combiner.add_gates(found, gates)

    def _first_line(self, asked: LineSearch, paths: Sequence[str]) -> Route | None:
        """Find the first line that takes one of the paths.

        One that only takes the path with the root path gives way to a stricter one that only takes the path
        without: the router strips the root path, which Daphne takes from the client's ``Daphne-Root-Path``.
        With the path of an ``exempt`` line there, a client would get around a gate.
        """
        found = first_line(asked, paths)
        routed = [path for path in paths if f"/{asked.prefix}{path}" in paths] if asked.prefix else []
        line = self._add_gates(found, asked, paths) if asked.every_method else found
        if found is None or not routed or first_line(asked.only_line(found), routed):
            return line
        longer = [path for path in paths if path not in routed]
        within = asked.only(each for each in asked.lines if not takes_path(each, longer))
        return self._combiner.combine([line, self._first_line(within, routed)])

    def _add_gates(self, found: Route | None, asked: LineSearch, paths: Sequence[str]) -> Route | None:
        """Add gates to the line of a request whose handler takes every method.

        A gate of its path holds for all methods; a line that names the method opens it, and so does another
        gate of the same path. Only the features of the gated lines count: the line that takes the request
        says what it consumes.
        """
        if found is not None and found.method is not None:
            return found
        gates: list[Route] = []
        for route, methods, pattern in asked.lines:
            if route is found:
                break
            if methods is None or route.feature is None or asked.method == "WS" or pattern is None:
                continue
            is_session = route.mcp is not None and asked.method in _OF_SESSIONS
            is_opened = found is not None and found.feature is not None and found.path == route.path
            if not (is_session or is_opened) and any(map(pattern.match, paths)):
                gates.append(route)
        return self._combiner.add_gates(found, gates)

    def _strictness(self, one: PathLine) -> tuple[int, bool, int]:
        return self._combiner.strictness(one.line)

    def _warn_without_mount(self, method: str, scope: Scope, found: Route | None) -> None:
        server, mount = _split_root_path(scope, self._root_path)
        if self._without_mount is None or not mount:
            return
        if found is not None and found.path is not None and found.path.startswith(mount):
            return  # It is written as it should be.
        line = first_line(
            LineSearch(self._lines, method), [_strip_root(_strip_root(scope["path"], server), mount)]
        )
        if line is not None and line is not found and line.path is not None:
            warn, self._without_mount = self._without_mount, None
            warn(line, found, mount)

    def _cache_route(self, key: _Key, route: Route | None) -> Route | None:
        """Cache the line of a key, unless a client could fill the memory with such keys."""
        # Behind Daphne a client chooses the root path, too.
        method, *paths = key
        longest = max(len(path or "") for path in paths)
        if longest <= CACHED_PATH_CHARS_MAX and len(method or "") <= CACHED_METHOD_CHARS_MAX:
            if len(self._found) >= CACHE_ENTRIES_MAX:
                self._found.clear()
            self._found[key] = route
        return route


def client_paths(scope: Scope, *, root_path: str = "") -> list[str]:
    """List the decoded path as clients may write it: with the root path of the server, and without.

    Mounts are included in all of them. It is unknown which one the client wrote: a proxy may strip the root
    path or not, and servers put it before ``path`` or do not. A router runs one handler for all.

    Args:
        scope: a request's or a websocket's.
        root_path: what the wrapped app takes for its root path, whatever the server says.
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


def routed_paths(scope: Scope, path: str, root_path: str) -> list[str]:
    """List what Starlette's router may match for a path: without root path and mounts, and as it is."""
    server, mount = _split_root_path(scope, root_path)
    return list(
        dict.fromkeys(
            (_strip_root(path, server + mount), _strip_root(path, mount), _strip_root(path, server), path)
        )
    )


def _split_root_path(scope: Scope, root_path: str) -> tuple[str, str]:
    """Split off the server's root path, and the path of the mounts within it; each may be empty."""
    root: str = scope.get("root_path", "")
    # Within a mount Starlette keeps here what the server had said, and adds the mount to the root path.
    server: str = scope.get("app_root_path", root_path or root)
    is_mounted = "app_root_path" in scope and root.startswith(f"{server}/")
    return server, root[len(server) :] if is_mounted else ""


def _strip_root(path: str, root: str) -> str:
    """Strip the root path, taken literally, as a router does."""
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :]
    return path


def root_path_of_app(app: object) -> str:
    """Find the root path that an app sets itself; empty where it takes the server's.

    ``FastAPI(root_path=…)`` puts it into the scope on the way in, so the middleware does not see it there.
    Django goes by ``FORCE_SCRIPT_NAME`` where that is set, and by the scope otherwise.

    Args:
        app: the wrapped app; its own wrappers are looked through.
    """
    settings = django_settings()
    if settings is not None and may_be_django(app):
        return str(settings.FORCE_SCRIPT_NAME or "")
    for _ in range(_WRAPPERS_MAX):
        if root_path := fastapi_root_path(app):
            return root_path
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
