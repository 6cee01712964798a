"""How an app's routers and file servers read a path: exactly as it is written, or in further ways."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import unquote

from starlette.staticfiles import StaticFiles

from meterkit.asgi.app_walk import STARLETTE, Way, lists_routes, packages_of, unwrap, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import Scope

    from meterkit.asgi.app_walk import Place

Paths: TypeAlias = Literal["exact", "loose"]

_PLAIN: Final = frozenset({"meterkit", "prometheus_client"})
"""Packages whose apps do not dispatch, or serve fixed paths only."""
_EXACT: Final = STARLETTE | _PLAIN
"""Packages whose apps dispatch a path as Starlette does, or do not dispatch at all."""
_DJANGO: Final = "django"
"""Exact about paths; its views take every method unless they say otherwise."""
_NO_SLASH: Final = "\N{FRACTION SLASH}"
_SLASHES: Final = re.compile("/{2,}")
_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?P<convertor>:[A-Za-z_][A-Za-z0-9_]*)?\}")


@dataclass(frozen=True, slots=True)
class PathReader:
    """A handler, file server or other app within the app that reads paths in further ways.

    Attributes:
        place: where it stands.
        is_loose: whether it reads loosely; otherwise it resolves dot segments and the like below its place.
        earlier: places that the app tries before it; none where it gets whole paths.
    """

    place: Place
    is_loose: bool
    earlier: Sequence[Place]

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
        return self.reads(method, path) and not any(
            place.way.host in {None, self.place.way.host} and place.accepts(method) and place.matches(path)
            for place in self.earlier
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """How paths are read.

    Attributes:
        is_loose: whether all paths are read loosely.
        any_method: whether handlers may take methods that no line names, such as BREW.
        every_method: whether a handler takes every method unless it says otherwise, GET and PUT among them.
        readers: what reads paths in further ways than the app's exact router.
        resolves: whether whatever lies behind the router may resolve dot segments and the like.
        drops_slash: whether it may ignore a slash at the end.
    """

    is_loose: bool = False
    any_method: bool = False
    every_method: bool = False
    readers: tuple[PathReader, ...] = ()
    resolves: bool = False
    drops_slash: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether a router may go by the path as the client has encoded it."""
        return self.is_loose or any(reader.is_loose for reader in self.readers)


EXACT: Final = Reading()
LOOSE: Final = Reading(is_loose=True, any_method=True)


def app_reading(app: object, paths: Paths | None = None) -> Reading:
    """Reading of an app: its router, and everything that its router hands a request to.

    Args:
        app: what is wrapped.
        paths: overrules how its router reads.
    """
    reading = reading_of(app, paths)
    inner = unwrap(app, Way())[0]
    if lists_routes(inner):
        if paths == "loose":
            return replace(reading, resolves=True)
        return reading if paths is None else _starlette_reading(app, is_exact=True)
    packages = packages_of(inner)
    if _DJANGO in packages or isinstance(inner, StaticFiles):
        return replace(reading, resolves=True, drops_slash=paths is None)
    return reading if not packages.isdisjoint(_EXACT) else replace(reading, resolves=True)


def reading_of(app: object, paths: Paths | None = None) -> Reading:
    """Reading of an app's router, by the class of the innermost app; loose where it is unknown.

    Args:
        app: what is wrapped; looked through what wraps it in turn.
        paths: overrules the class.
    """
    if paths is not None:
        return EXACT if paths == "exact" else LOOSE
    inner = unwrap(app, Way())[0]
    packages = packages_of(inner)
    if _DJANGO in packages:
        return Reading(any_method=True, every_method=True)
    if packages.isdisjoint(_EXACT):
        return LOOSE
    return _starlette_reading(app) if lists_routes(inner) else EXACT


def _starlette_reading(app: object, *, is_exact: bool = False) -> Reading:
    readers = tuple(_readers(app, Way()))
    if is_exact:
        readers = tuple(replace(reader, is_loose=False) for reader in readers)
    if not readers:
        return EXACT
    return Reading(readers=readers, any_method=any(reader.is_loose for reader in readers))


def _readers(app: object, way: Way) -> Iterator[PathReader]:
    places = list(walk(app, way))
    for nth, place in enumerate(places):
        if (
            lists_routes(place.app) and not place.has_custom_match
        ):  # In a route, which leaves the path as it is.
            yield from _readers(place.app, place.way)
            continue
        reading = LOOSE if place.has_custom_match else reading_of(place.app)
        if reading.is_loose or reading.every_method:
            yield PathReader(place, is_loose=True, earlier=())
        elif place.takes_slashes and packages_of(place.app).isdisjoint(_PLAIN):
            yield PathReader(place, is_loose=False, earlier=() if place.is_whole else places[:nth])


def loose_pattern(template: str) -> re.Pattern[str]:
    """What a line's path matches when it is read loosely: any case, and any text for a parameter's type."""
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
    """A path with its slashes merged, without one at its end and with one."""
    merged = _SLASHES.sub("/", f"/{path}").rstrip("/")
    return merged, f"{merged}/"
