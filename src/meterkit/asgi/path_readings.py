"""Readings of one path: what routers and file servers may take it for.

Pure functions. A reading is a path that some router or file server makes of the path that a request has:
it decodes once more, cuts a query or a fragment off, takes backslashes for slashes, resolves dot segments,
merges slashes. The steps are combined, each taken or not, as there may be several readers one behind the
other.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

READINGS_MAX: Final = 96
SEGMENTS_MAX: Final = 256
AS_WRITTEN: Final = "as written"
_DECODED_MAX: Final = 3
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")
_UNEVEN: Final = re.compile(r"(?:^|/)\.{1,2}(?:/|\Z)|//|\\")
_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_SLASHES: Final = re.compile("/{2,}")
_PARAMETERS: Final = re.compile(";[^/]*")
_SEPARATORS: Final = re.compile(r"[/\\]")
_ENDS: Final = re.compile(r"[;?#\x00].*", re.DOTALL)


class PathReading(NamedTuple):
    """A path that a reader may take the written one for, and the steps that lead to it."""

    path: str
    steps: str

    def then(self, path: str, step: str) -> PathReading:
        """Add a step."""
        return PathReading(path, step if self.steps == AS_WRITTEN else f"{self.steps}, {step}")


def is_uneven(path: str) -> bool:
    """Whether a path has dot segments, empty segments or backslashes, in any decoding of it."""
    return any(_UNEVEN.search(decoded) for decoded in decodings(path))


@lru_cache(maxsize=16)  # Several steps ask for each, and decoding 60 kB takes milliseconds.
def decodings(path: str) -> tuple[str, ...]:
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
            if step is _resolve and reading.path.count("/") > SEGMENTS_MAX and _UNEVEN.search(reading.path):
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
        for decoded in decodings(path)
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


def _decode(reading: PathReading, _: str) -> Iterator[PathReading]:
    for times, decoded in enumerate(decodings(reading.path)[1:], 1):
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


def _merge(reading: PathReading, _: str) -> Iterator[PathReading]:
    if "//" in reading.path:
        yield reading.then(_SLASHES.sub("/", reading.path), "slashes merged")


def _resolve(reading: PathReading, _: str) -> Iterator[PathReading]:
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
    *(_decode, _cut_authority, *_ROUTER_STEPS, _convert_backslashes, _cut_query, _cut_parameters),
    *(_convert_backslashes, _resolve, _merge),
    # A router resolves dots, and what lies behind it decodes or cuts.
    *(_decode, _convert_backslashes, _cut_fragment, _cut_query, _cut_parameters),
)
