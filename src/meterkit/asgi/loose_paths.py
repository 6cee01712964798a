"""How an app's router reads a path: exactly as it is written, or loosely, as many other frameworks do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import unquote

from starlette.routing import Mount

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Scope

Paths: TypeAlias = Literal["exact", "loose"]

_WRAPPERS_MAX: Final = 100
_EXACT: Final = frozenset({"starlette", "fastapi", "meterkit", "prometheus_client"})
"""Packages whose apps dispatch a path as Starlette does, or do not dispatch at all."""
_ANY_METHOD: Final = "django"
"""Exact about paths; its views take every method unless they say otherwise."""
_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_NO_SLASH: Final = "\N{FRACTION SLASH}"
_SLASHES: Final = re.compile("/{2,}")
_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?P<convertor>:[A-Za-z_][A-Za-z0-9_]*)?\}")


@dataclass(frozen=True, slots=True)
class Reading:
    """How paths are read.

    Attributes:
        is_loose: whether all paths are read loosely.
        mounts: paths below which another router than the app's reads loosely.
        any_method: whether handlers may take methods that no line names, such as BREW.
        every_method: whether a handler takes every method unless it says otherwise, GET and PUT among them.
    """

    is_loose: bool = False
    mounts: tuple[re.Pattern[str], ...] = ()
    any_method: bool = False
    every_method: bool = False

    def reads_loosely(self, paths: Iterable[str]) -> bool:
        """Whether one of the paths that a client may have written is read loosely."""
        return self.is_loose or any(mount.match(path) for path in paths for mount in self.mounts)


EXACT: Final = Reading()
LOOSE: Final = Reading(is_loose=True, any_method=True)


def reading_of(app: Any, paths: Paths | None = None) -> Reading:
    """How the router of an app reads paths, by the class of the innermost app; loose where it is unknown.

    Args:
        app: what is wrapped; looked through what wraps it in turn.
        paths: overrules the class.
    """
    if paths is not None:
        return EXACT if paths == "exact" else LOOSE
    for _ in range(_WRAPPERS_MAX):
        inner = getattr(app, "app", None)
        if inner is None:
            break
        app = inner
    app = getattr(app, "__self__", app)  # Of `app.asgi_app`, which is a method.
    kinds = (app,) if isinstance(app, FunctionType) else type(app).__mro__
    packages = {kind.__module__.partition(".")[0] for kind in kinds}
    if _ANY_METHOD in packages:
        return Reading(any_method=True, every_method=True)
    if packages.isdisjoint(_EXACT):
        return LOOSE
    mounts = tuple(_loose_mounts(app))
    return Reading(mounts=mounts, any_method=bool(mounts)) if mounts else EXACT


def _loose_mounts(app: Any) -> Iterator[re.Pattern[str]]:
    for route in getattr(app, "routes", None) or ():
        if not isinstance(route, Mount):
            continue
        found = reading_of(route.app)
        if found.is_loose or found.every_method:
            yield re.compile(route.path_regex.pattern, re.DOTALL)
        elif found.mounts:
            prefix = route.path_regex.pattern.removesuffix("/(?P<path>.*)$")
            for mount in found.mounts:
                below = re.sub(r"\?P<\w+>", "?:", mount.pattern.removeprefix("^"))
                yield re.compile(prefix + below, re.DOTALL)


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


def loose_paths(scope: Scope, server_root: str) -> list[str]:
    """What a loose router may take the path of a request for, slashes and capitals aside.

    A target in absolute form loses scheme and host, a fragment is cut off, and some routers cut the raw path
    at its slashes: there an encoded one is a part of a segment.

    Args:
        scope: a request's or a websocket's.
        server_root: the root path of the server, which it may have put before the target.
    """
    found: list[str] = [scope["path"]]
    if has_encoded_slash(scope):
        segments = scope["raw_path"].decode("latin-1").split("/")
        found.append("/".join(unquote(segment).replace("/", _NO_SLASH) for segment in segments))
    for path in tuple(found):
        root = server_root if path.startswith(server_root) else ""
        target = _TARGET.match(path, len(root))
        if target is not None:
            found.append(root + path[target.end() :])
    return found + [path.partition("#")[0] for path in found if "#" in path]


def has_encoded_slash(scope: Scope) -> bool:
    """Whether the client has written a slash of the path as ``%2F``."""
    raw: bytes | None = scope.get("raw_path")
    return raw is not None and b"%" in raw and b"%2f" in raw.lower()


def loose_spellings(path: str) -> tuple[str, str]:
    """A path with its slashes merged, without one at its end and with one."""
    merged = _SLASHES.sub("/", f"/{path}").rstrip("/")
    return merged, f"{merged}/"
