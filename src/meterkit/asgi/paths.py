"""Readings of a path: the paths that routers and file servers may take a request's path for. Pure.

A server decodes a path once and hands it on. Some routers split it before they decode it, others decode it
again, and file servers resolve dot segments. A path without such characters means the same to all of them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATH_CHARS_MAX: Final = 1_536
"""Length of a path whose readings are listed: S3 allows keys of 1,024 bytes."""
_DECODED_MAX: Final = 3
_ODD: Final = re.compile(r"\A(?!/)|//|[\\;?#%\x00]|/\.{1,2}(?:/|\Z)")
_ODD_RAW: Final = re.compile(rb"%(?:2[EFef]|5[Cc]|25|00)")
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")
_SEPARATORS: Final = re.compile(r"[/\\]")
_PARAMETERS: Final = re.compile(r"[;?#\x00\n][^/\\]*")
_TAIL: Final = re.compile(r"[?#\x00].*", re.DOTALL)
_CLIMB: Final = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\;?#\x00]|\Z)|\A(?!/)|\A//|://")
_TEXT_SLASH: Final = "\N{FRACTION SLASH}"


def is_plain(path: str, raw: bytes | None) -> bool:
    """Whether a path has one reading only.

    Args:
        path: as the server has decoded it.
        raw: as the client has sent it; None if the server does not say.
    """
    return _ODD.search(path) is None and (raw is None or b"%" not in raw or _ODD_RAW.search(raw) is None)


def raw_reading(path: str, raw: bytes | None) -> str:
    """Read the path as routers do that split it first: an encoded slash is text within a segment.

    A raw path that differs from ``path``, because a middleware has replaced one of them, says nothing.
    """
    sent = "" if raw is None else raw.partition(b"?")[0].decode("latin-1")
    if unquote(sent) != path:
        return path
    return "/".join(unquote(segment).replace("/", _TEXT_SLASH) for segment in sent.split("/"))


def plain_readings(path: str) -> list[str]:
    """List what a path comes to once it is decoded, cut and resolved; each step may be left out."""
    slashed = {text for each in _list_decodings(path) for text in (each, each.replace("\\", "/"))}
    cut = {text for each in slashed for text in (each, _PARAMETERS.sub("", each), _TAIL.sub("", each))}
    return sorted({_resolve_dots(each) for each in cut})


def climbs(path: str) -> bool:
    """Whether a path has ``..``, in any decoding of it, or does not begin at the root of the app.

    Where it leads depends on the reader: a file server may resolve it below its own folder.
    """
    return any(_CLIMB.search(decoded) for decoded in _list_decodings(path))


def may_lead_to(template: str, path: str) -> bool:
    """Whether some reader may take a path that climbs for one of a template.

    Readers leave segments out, decode them, cut their ends off and ignore case. So the fixed segments of the
    template stand in the path, in that order.
    """
    fixed = [part.lower() for part in template.split("/") if part and "{" not in part]
    return bool(fixed) and any(_stand_in_order(fixed, segments) for segments in _segments_of(path))


def loose_pattern(template: str) -> re.Pattern[str]:
    """Compile a template without regard to case and a slash at the end.

    Parameters take what a framework may convert to their type: Python's ``int`` reads ``+7`` and ``1_000``.
    """
    parts: list[str] = []
    at = 0
    for parameter in _PARAMETER.finditer(template):
        parts.append(re.escape(template[at : parameter.start()]))
        parts.append(_CONVERTED.get(parameter["convertor"], "[^/]+"))
        at = parameter.end()
    parts.append(re.escape(template[at:].rstrip("/")))
    return re.compile("".join(parts) + r"\n?\Z", re.DOTALL | re.IGNORECASE)


_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?::(?P<convertor>[A-Za-z_][A-Za-z0-9_]*))?\}")
_CONVERTED: Final = {
    "path": ".*",
    "int": r"\s*[+-]?\d[\d_]*\s*",
    "float": r"\s*[+-]?(?:[\d_.]+(?:e[+-]?\d+)?|nan|inf|infinity)\s*",
    "uuid": r"(?:urn:uuid:)?\{?[0-9a-f-]{32,36}\}?",
}


@lru_cache(maxsize=16)
def _list_decodings(path: str) -> tuple[str, ...]:
    found = [path]
    while len(found) <= _DECODED_MAX and _ENCODED.search(found[-1]):
        found.append(unquote(found[-1]))
    return tuple(found)


@lru_cache(maxsize=16)
def _segments_of(path: str) -> tuple[Sequence[str], ...]:
    """Split each decoding of a path; the ends of segments that some readers cut off are left out, too."""
    texts = {
        text for decoded in _list_decodings(path.lower()) for text in (decoded, _PARAMETERS.sub("", decoded))
    }
    return tuple([*filter(None, _SEPARATORS.split(text))] for text in texts)


def _stand_in_order(fixed: Sequence[str], segments: Sequence[str]) -> bool:
    rest: Iterator[str] = iter(segments)
    return all(part in rest for part in fixed)


def _resolve_dots(path: str) -> str:
    """Resolve dot segments and drop empty ones; a slash at the end stays."""
    segments = path.split("/")
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    end = "/" if kept and segments[-1] in {"", ".", ".."} else ""
    return f"/{'/'.join(kept)}{end}"
