"""Readings of a path: what the routers and file servers of an app may take it for.

A reading is a path that some router or file server makes of the path that a request has: it decodes once
more, cuts a query or a fragment off, takes backslashes for slashes, resolves dot segments, merges slashes.
The steps are combined, each taken or not, as there may be several readers one behind the other.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from sys import modules
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

from starlette.staticfiles import StaticFiles

from meterkit.asgi.app_walk import STARLETTE, RequestWay, lists_routes, packages_of, unwrap, walk_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.types import Scope

    from meterkit.asgi.app_walk import AppPlace

READINGS_MAX: Final = 96
SEGMENTS_MAX: Final = 256
AS_WRITTEN: Final = "as written"
_DECODED_MAX: Final = 3
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")
_DOTS: Final = r"(?:^|/)\.{1,2}(?:/|\Z)|\\"
_DOTTED: Final = re.compile(_DOTS)
_UNEVEN: Final = re.compile(f"{_DOTS}|//")
_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_SLASHES: Final = re.compile("/{2,}")
_PARAMETERS: Final = re.compile(";[^/]*")
_SEPARATORS: Final = re.compile(r"[/\\]")
_ENDS: Final = re.compile(r"[;?#\x00].*", re.DOTALL)


class PathReading(NamedTuple):
    """Path that a reader may take the written one for, and the steps that lead to it."""

    path: str
    steps: str

    def then(self, path: str, step: str) -> PathReading:
        """Add a step."""
        return PathReading(path, step if self.steps == AS_WRITTEN else f"{self.steps}, {step}")


def is_uneven(path: str) -> bool:
    """Whether a path has dot segments, empty segments or backslashes, in any decoding of it."""
    return any(_UNEVEN.search(decoded) for decoded in list_decodings(path))


def has_dots(path: str) -> bool:
    """Whether a path has dot segments or backslashes, in any decoding of it."""
    return any(_DOTTED.search(decoded) for decoded in list_decodings(path))


@lru_cache(maxsize=16)  # Several steps ask for each, and decoding 60 kB takes milliseconds.
def list_decodings(path: str) -> tuple[str, ...]:
    """List a path and what it is decoded to further times."""
    found = [path]
    while len(found) <= _DECODED_MAX and _ENCODED.search(found[-1]):
        found.append(unquote(found[-1]))
    return tuple(found)


def path_readings(path: str, server_root: str = "", *, resolves: bool = True) -> list[PathReading] | None:
    """List the readings of a path, itself first; None: too many.

    Args:
        path: as the server has decoded it.
        server_root: the root path of the server, which it may have put before an absolute target.
        resolves: whether to take the steps of file servers and of code behind the router, too.
    """
    found = {path: PathReading(path, AS_WRITTEN)}
    for step in _STEPS if resolves else _ROUTER_STEPS:
        for reading in tuple(found.values()):
            if (
                step is _resolve_dots
                and reading.path.count("/") > SEGMENTS_MAX
                and _UNEVEN.search(reading.path)
            ):
                return None
            for new in step(reading, server_root):
                found.setdefault(new.path, new)
                if len(found) > READINGS_MAX:
                    return None
    return list(found.values())


def segments_of(path: str) -> list[list[str]]:
    """Split each decoding of a path into its segments, each with its ends and without; in small letters."""
    return [
        [part for segment in _SEPARATORS.split(decoded.lower()) for part in (segment, _ENDS.sub("", segment))]
        if _ENDS.search(decoded)
        else _SEPARATORS.split(decoded.lower())
        for decoded in list_decodings(path)
    ]


def may_lead_to(template: str, spellings: Sequence[Sequence[str]]) -> bool:
    """Whether some reading of a path may match a template: the upper bound for paths of too many readings.

    Readings only leave segments out, decode them or cut their ends off. So the fixed segments of a template
    that one of them matches stand in the path, in that order.

    Args:
        template: of a line.
        spellings: see :func:`segments_of`.
    """
    fixed = [part.lower() for part in template.split("/") if part and "{" not in part]
    return any(_stand_in_order(fixed, segments) for segments in spellings)


def _stand_in_order(fixed: Sequence[str], segments: Sequence[str]) -> bool:
    start = 0
    for part in fixed:
        try:
            start = segments.index(part, start) + 1
        except ValueError:
            return False
    return True


def _decode_again(reading: PathReading, _: str) -> Iterator[PathReading]:
    for times, decoded in enumerate(list_decodings(reading.path)[1:], 1):
        yield reading.then(decoded, "decoded again" if times == 1 else f"decoded {times} times more")


def _cut_host(reading: PathReading, server_root: str) -> Iterator[PathReading]:
    path = reading.path
    root = server_root if path.startswith(server_root) else ""
    target = _TARGET.match(path, len(root))
    if target is not None:
        yield reading.then(root + path[target.end() :], "without scheme and host")


def _cut_authority(reading: PathReading, _: str) -> Iterator[PathReading]:
    """Take what follows two slashes for a host, as parsers of addresses do."""
    if reading.path.startswith("//"):
        yield reading.then(f"/{reading.path[2:].partition('/')[2]}", "without host")


def _cut_root(reading: PathReading, server_root: str) -> Iterator[PathReading]:
    """Drop the root path, wherever it stands, and what stands before it, as Litestar does."""
    before, root, below = reading.path.partition(server_root) if server_root else ("", "", "")
    if root and (before or not below.startswith("/")):
        yield reading.then(below, "without the root path and what stands before it")


def _cut_fragment(reading: PathReading, _: str) -> Iterator[PathReading]:
    if "#" in reading.path:
        yield reading.then(reading.path.partition("#")[0], "cut at #")


def _cut_query(reading: PathReading, _: str) -> Iterator[PathReading]:
    if "?" in reading.path:
        yield reading.then(reading.path.partition("?")[0], "cut at ?")
    if "\x00" in reading.path:
        yield reading.then(reading.path.partition("\x00")[0], "cut at NUL")


def _cut_parameters(reading: PathReading, _: str) -> Iterator[PathReading]:
    if ";" in reading.path:
        yield reading.then(_PARAMETERS.sub("", reading.path), "without ;parameters")
        before, slash, last = reading.path.rpartition("/")
        yield reading.then(f"{before}{slash}{last.partition(';')[0]}", "without the last ;parameters")


def _convert_backslashes(reading: PathReading, _: str) -> Iterator[PathReading]:
    if "\\" in reading.path:
        yield reading.then(reading.path.replace("\\", "/"), "backslashes as slashes")


def _merge_slashes(reading: PathReading, _: str) -> Iterator[PathReading]:
    if "//" in reading.path:
        yield reading.then(_SLASHES.sub("/", reading.path), "slashes merged")


def _resolve_dots(reading: PathReading, _: str) -> Iterator[PathReading]:
    """Resolve dot segments: as URLs do, and as a file server does below each root that it may have."""
    segments = reading.path.split("/")
    if "." not in segments and ".." not in segments:
        return
    without = [segment for segment in segments if segment != "."]
    end = [""] if segments[-1] in {".", ".."} else []
    if ".." not in without:
        yield reading.then("/".join([*without, *end]), "dots resolved")
        return
    yield reading.then("/".join([*_without_parents(without), *end]), "dots resolved")
    names = [segment for segment in without if segment]
    if not without[-1]:
        end = [""]
    for root in range(names.index("..") + 1):
        before, below = names[:root], names[root:]
        where = f"below /{'/'.join(before)}"
        for is_open in (False, True):
            resolved = _below_root(below, is_open=is_open)
            if resolved is not None:
                step = f"dots resolved {where}{', out of it and back' if is_open else ''}"
                yield reading.then("/".join(["", *before, *resolved, *end]), step)


def _without_parents(segments: Sequence[str]) -> list[str]:
    """Remove dot segments as in RFC 3986, section 5.2.4, where an empty segment is one, too."""
    kept: list[str] = []
    for segment in segments:
        if segment != "..":
            kept.append(segment)
        elif len(kept) > 1:
            kept.pop()
    return kept


def _below_root(names: Sequence[str], *, is_open: bool) -> list[str] | None:
    """Resolve names below a root; None: they end outside of it.

    Args:
        names: without empty ones.
        is_open: whether `..` may leave the root. The root's own folders lead back into it, whatever their
            names are.
    """
    kept: list[str] = []
    outside = 0
    for name in names:
        if name == "..":
            if kept:
                kept.pop()
            elif is_open:
                outside += 1
        elif outside:
            outside -= 1
        else:
            kept.append(name)
    return None if outside else kept


_ROUTER_STEPS: Final = (_cut_host, _cut_root, _cut_fragment)
_STEPS: Final = (
    *(_decode_again, _cut_authority, *_ROUTER_STEPS, _convert_backslashes, _cut_query, _cut_parameters),
    *(_convert_backslashes, _resolve_dots, _merge_slashes),
    # A router resolves dots, and what lies behind it decodes or cuts.
    *(_decode_again, _convert_backslashes, _cut_fragment, _cut_query, _cut_parameters),
)


Paths: TypeAlias = Literal["exact", "loose"]

_PLAIN: Final = frozenset({"meterkit", "prometheus_client"})
"""Packages whose apps do not dispatch, or serve fixed paths only."""
_EXACT: Final = STARLETTE | _PLAIN
"""Packages whose apps dispatch a path as Starlette does, or do not dispatch at all."""
_DJANGO: Final = "django"
"""Exact about paths; its views take every method unless they say otherwise."""


def _rules_of_every_method(app: Any) -> list[Any]:
    """Rules of Quart's or Flask's that name no methods."""
    return [rule for rule in app.url_map.iter_rules() if rule.methods is None]


_NAMING_METHODS: Final[dict[str, Callable[[Any], object]]] = {
    "litestar": lambda app: [route for route in app.routes if type(route).__name__ == "ASGIRoute"],
    "blacksheep": lambda app: app.mount_registry.mounted_apps or app.router.fallback,
    "falcon": lambda app: getattr(app, "_sinks", ()),
    "quart": _rules_of_every_method,
    "flask": _rules_of_every_method,
    "sanic": lambda _: (),
}
"""Packages whose handlers say which methods they take, with what in an app of theirs does not.

An app of another package may take every method, as views of Pyramid and GraphQL apps do.
"""
_NO_SLASH: Final = "\N{FRACTION SLASH}"
_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?P<convertor>:[A-Za-z_][A-Za-z0-9_]*)?\}")


@dataclass(frozen=True, slots=True)
class PathReader:
    """Handler, file server or other app within the app that reads paths in its own ways.

    Attributes:
        place: where it stands.
        is_loose: whether it reads loosely; otherwise it resolves dot segments and the like below its place.
        earlier: places that the app tries before it; none where it gets whole paths.
        every_method: whether its handlers may take every method, as Django's do.
    """

    place: AppPlace
    is_loose: bool
    earlier: Sequence[AppPlace]
    every_method: bool = False

    def gets(self, method: str, path: str) -> bool:
        """Whether Starlette hands a path to it, or may."""
        return self.place.accepts(method) and self.place.matches(path)

    def reads(self, method: str, path: str) -> bool:
        """Whether it may take what it gets for a path."""
        return self.place.is_whole or self.gets(method, path)

    def ignores_slash(self, method: str, path: str) -> bool:
        """Whether it may take a path with a slash at the end for the same path without.

        Where an earlier place gets the latter, that is another thing: the folder of a file server at the root
        may be called as a handler is.

        Args:
            method: of the request.
            path: without the slash.
        """
        return self.reads(method, path) and self._is_first(method, path)

    def takes_every_method(self, method: str, path: str) -> bool:
        """Whether it gets a path, and runs a handler of it whatever the method is."""
        return self.every_method and self.gets(method, path) and self._is_first(method, path)

    def _is_first(self, method: str, path: str) -> bool:
        return not any(
            place.way.host in {None, self.place.way.host} and place.accepts(method) and place.matches(path)
            for place in self.earlier
        )


@dataclass(frozen=True, slots=True)
class PathRules:
    """Rules by which an app reads paths.

    Attributes:
        is_loose: whether all paths are read loosely.
        any_method: whether handlers may take methods that no line names, such as BREW.
        every_method: whether a handler takes every method unless it says otherwise, GET and PUT among them.
        readers: what reads paths in further ways than the app's exact router.
        resolves: whether whatever lies behind the router may resolve dot segments and the like.
        drops_slash: whether it may ignore a slash at the end.
        inner_root: what an app of FastAPI's that gets all paths takes for its root path.
        ignores_case: whether a reader, or whatever resolves, may ignore case, as some file systems do.
    """

    is_loose: bool = False
    any_method: bool = False
    every_method: bool = False
    readers: tuple[PathReader, ...] = ()
    resolves: bool = False
    drops_slash: bool = False
    inner_root: str = ""
    ignores_case: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether a router may go by the path as the client has encoded it."""
        return self.is_loose or any(reader.is_loose for reader in self.readers)


EXACT: Final = PathRules()
LOOSE: Final = PathRules(is_loose=True, any_method=True)


def path_rules_of_app(app: object, paths: Paths | None = None) -> PathRules:
    """Reading of an app: its router, and everything that its router hands a request to.

    Args:
        app: what is wrapped.
        paths: overrules how its router reads.
    """
    rules = _rules_with_resolving(app, paths)
    return rules if paths is not None or rules is EXACT else replace(rules, ignores_case=True)


def _rules_with_resolving(app: object, paths: Paths | None) -> PathRules:
    reading = path_rules_of_router(app, paths)
    inner = unwrap(app, RequestWay())[0]
    if lists_routes(inner):
        if paths == "loose":
            return replace(reading, resolves=True)
        return reading if paths is None else _starlette_rules(app, is_exact=True)
    packages = packages_of(inner)
    if _DJANGO in packages or isinstance(inner, StaticFiles):
        return replace(reading, resolves=True, drops_slash=paths is None)
    return reading if not packages.isdisjoint(_EXACT) else replace(reading, resolves=True)


def path_rules_of_router(app: object, paths: Paths | None = None) -> PathRules:
    """Reading of an app's router, by the class of the innermost app; loose where it is unknown.

    Args:
        app: what is wrapped; looked through what wraps it in turn.
        paths: overrules the class.
    """
    if paths is not None:
        return EXACT if paths == "exact" else LOOSE
    inner = unwrap(app, RequestWay())[0]
    packages = packages_of(inner)
    if _DJANGO in packages:
        return PathRules(any_method=True, every_method=True)
    if packages.isdisjoint(_EXACT):
        return LOOSE if _names_methods(inner, packages) else replace(LOOSE, every_method=True)
    return _starlette_rules(app) if lists_routes(inner) else EXACT


def _names_methods(app: object, packages: set[str]) -> bool:
    """Whether each handler of an app says which methods it takes."""
    with suppress(Exception):  # What cannot be read may take every method.
        return any(not takes_more(app) for name, takes_more in _NAMING_METHODS.items() if name in packages)
    return False


def may_be_django(app: object) -> bool:
    """Whether an app is Django's, or of unknown kind in a process of Django's: it may hand requests to it."""
    packages = packages_of(unwrap(app, RequestWay())[0])
    return _DJANGO in packages or (
        django_settings() is not None and packages.isdisjoint(_EXACT | _NAMING_METHODS.keys())
    )


def django_settings() -> Any:
    """Settings of Django, where this process serves it by ASGI; otherwise None."""
    settings: Any = getattr(modules.get("django.conf"), "settings", None)
    return settings if "django.core.handlers.asgi" in modules and settings.configured else None


def _starlette_rules(app: object, *, is_exact: bool = False) -> PathRules:
    places = list(_places_within(app, RequestWay()))
    readers = tuple(filter(None, (_reader_at(*place) for place in places)))
    any_method = any(place.has_functions for place, _ in places)
    if is_exact:
        readers = tuple(replace(reader, is_loose=False) for reader in readers)
    roots = (
        fastapi_root_path(app) for place, _ in places for app, at in place.way.wrappers if not "".join(at)
    )
    inner_root = next(filter(None, roots), "")
    if not (readers or any_method or inner_root):
        return EXACT
    any_method = any_method or any(reader.is_loose for reader in readers)
    return PathRules(readers=readers, any_method=any_method, inner_root=inner_root)


def fastapi_root_path(app: object) -> str:
    """Root path that an app of FastAPI's sets itself, in place of the server's and of mounts."""
    # An app of FastAPI's has imported it. Others mean a folder by that name: Quart does.
    kind = getattr(modules.get("fastapi"), "FastAPI", ())
    return str(getattr(app, "root_path", "")) if isinstance(app, kind) else ""


def _places_within(app: object, way: RequestWay) -> Iterator[tuple[AppPlace, Sequence[AppPlace]]]:
    """List the places of an app, each with those that the app tries before it."""
    places = list(walk_app(app, way))
    for nth, place in enumerate(places):
        # One in a route leaves the path as it is.
        if lists_routes(place.app) and not place.has_custom_match:
            yield from _places_within(place.app, place.way)
        else:
            yield place, places[:nth]


def _reader_at(place: AppPlace, earlier: Sequence[AppPlace]) -> PathReader | None:
    reading = LOOSE if place.has_custom_match else path_rules_of_router(place.app)
    if reading.is_loose or reading.every_method:
        before = earlier if reading.every_method else ()
        return PathReader(place, is_loose=True, earlier=before, every_method=reading.every_method)
    if place.takes_slashes and packages_of(place.app).isdisjoint(_PLAIN):
        return PathReader(place, is_loose=False, earlier=() if place.is_whole else earlier)
    return None


def loose_pattern(template: str) -> re.Pattern[str]:
    """Compile a line's path for loose routers: any case, and any text for a parameter's type."""
    parts: list[str] = []
    at = 0
    merged = _SLASHES.sub("/", template).rstrip("/")
    for parameter in _PARAMETER.finditer(merged):
        parts.append(re.escape(merged[at : parameter.start()]))
        parts.append(".*" if parameter["convertor"] == ":path" else "[^/]+")
        at = parameter.end()
    parts.append(re.escape(merged[at:]))
    return re.compile("".join(parts) + r"\Z", re.DOTALL | re.IGNORECASE)


def path_spellings(scope: Scope, *, is_raw: bool) -> list[str]:
    """List the decoded path, and the one in which an encoded slash is a part of a segment.

    Some routers cut the raw path at its slashes.

    Args:
        scope: a request's or a websocket's.
        is_raw: whether there may be such a router.
    """
    found: list[str] = [scope["path"]]
    if is_raw and has_encoded_slash(scope):
        segments = scope["raw_path"].decode("latin-1").split("/")
        found.append("/".join(unquote(segment).replace("/", _NO_SLASH) for segment in segments))
    return found


def has_encoded_slash(scope: Scope) -> bool:
    """Whether the client has written a slash of the path as ``%2F``."""
    raw: bytes | None = scope.get("raw_path")
    return raw is not None and b"%" in raw and b"%2f" in raw.lower()


def loose_spellings(path: str) -> tuple[str, str]:
    """Merge the slashes of a path; without a slash at its end, and with one."""
    merged = _SLASHES.sub("/", f"/{path}").rstrip("/")
    return merged, f"{merged}/"
