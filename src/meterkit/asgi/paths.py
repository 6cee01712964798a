"""Readings of a path: the paths that routers and file servers may take a request's path for. Pure.

A server decodes a path once and hands it on. Some routers split it before they decode it, others decode it
again, and file servers resolve dot segments. A path without such characters means the same to all of them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, unquote_to_bytes
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATH_CHARS_MAX: Final = 1_536
"""Length of a path whose readings are listed: S3 allows keys of 1,024 bytes."""
_DECODED_MAX: Final = 3
_ROOTS_MAX: Final = 4
_ODD: Final = re.compile(r"\A(?!/)|//|[\\;?#%\x00]|/\.{1,2}(?:/|\Z)")
_ODD_RAW: Final = re.compile(rb"%(?:2[EFef]|5[Cc]|25|00)")
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")
_SEPARATORS: Final = re.compile(r"[/\\]")
_PARAMETERS: Final = re.compile(";[^/]*")
_ENDS: Final = re.compile(r"[;?#\x00\n][^/\\]*")
_TAIL: Final = re.compile(r"[?#\x00].*", re.DOTALL)
_HOST: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*")
_CLIMB: Final = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\;?#\x00]|\Z)")
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
    sent = b"" if raw is None else raw.partition(b"?")[0]
    if _decode(sent) != path:
        return path
    return "/".join(_decode(segment).replace("/", _TEXT_SLASH) for segment in sent.split(b"/"))


def _decode(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def plain_reading(path: str) -> str:
    """Read the path as it is once it is decoded, without parameters and backslashes, and resolved."""
    return _resolve_dots(_PARAMETERS.sub("", _list_decodings(path)[-1].replace("\\", "/")))


def partial_readings(path: str, raw: bytes | None, roots: Sequence[str]) -> list[str]:
    """List what some routers make of a path by a part of these steps, or by more.

    They take what stands behind the root path, wherever that is; drop scheme and host; cut at ``?``, ``#``
    and NUL; leave backslashes and parameters as they are, or decode once less.
    """
    texts = {path, raw_reading(path, raw)}
    texts |= {behind for text in texts for root in roots for behind in _list_rests(text, root)}
    texts |= {_HOST.sub("", text, count=1) for text in texts if _HOST.match(text)}
    decoded = {each for text in texts for each in _list_decodings(text)}
    slashed = {text for each in decoded for text in (each, each.replace("\\", "/"))}
    cut = {text for each in slashed for text in (each, _ENDS.sub("", each), _TAIL.sub("", each))}
    return sorted({_resolve_dots(each) for each in cut})


def _list_rests(path: str, root: str) -> list[str]:
    """List the rests of a path behind each root path in it."""
    found = path.split(root)[1:] if root else []
    whole = [root.join(found[place:]) for place in range(min(len(found), _ROOTS_MAX))]
    return [text for each in whole for text in (each, f"/{each.lstrip('/')}")]


def climbs(path: str) -> bool:
    """Whether a path has ``..`` in any decoding of it: where it leads depends on a file server's folder."""
    return any(_CLIMB.search(decoded) for decoded in _list_decodings(path))


def may_lead_to(template: str, path: str) -> bool:
    """Whether a file server may resolve a path that climbs to one of a template.

    It leaves segments out, decodes them, cuts their ends off and ignores case. So the fixed segments of the
    template stand in the path, in that order.
    """
    fixed = [part.lower() for part in template.split("/") if part and "{" not in part]
    return any(_stand_in_order(fixed, segments) for segments in _segments_of(path))


class LoosePattern(NamedTuple):
    """Pattern of a template without regard to case and to a slash at the end.

    A parameter takes what frameworks convert to its type: ``float`` reads ``+7``, ``7.0`` and ``1_0``.
    """

    regex: re.Pattern[str]
    kinds: tuple[Callable[[str], Any], ...]

    @classmethod
    def of(cls, template: str) -> LoosePattern:
        """Compile a template."""
        parts: list[str] = []
        kinds: list[Callable[[str], Any]] = []
        at = 0
        for parameter in _PARAMETER.finditer(template):
            kind = parameter["convertor"]
            parts.append(re.escape(template[at : parameter.start()]))
            parts.append(".*" if kind == "path" else "([^/]+)")
            kinds += [] if kind == "path" else [_KINDS.get(kind, str)]
            at = parameter.end()
        parts.append(re.escape(template[at:].rstrip("/")))
        regex = re.compile("".join(parts) + r"\n?\Z", re.DOTALL | re.IGNORECASE)
        return cls(regex, tuple(kinds))

    def match(self, path: str) -> bool:
        """Whether a path without a slash at its end matches."""
        found = self.regex.match(path)
        if found is not None:
            with suppress(ValueError):
                for kind, text in zip(self.kinds, found.groups(), strict=True):
                    kind(text)
                return True
        return False


_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?::(?P<convertor>[A-Za-z_][A-Za-z0-9_]*))?\}")
_KINDS: Final[dict[str | None, Callable[[str], Any]]] = {"int": float, "float": float, "uuid": UUID}


@lru_cache(maxsize=64)
def _list_decodings(path: str) -> tuple[str, ...]:
    found = [path]
    while len(found) <= _DECODED_MAX and _ENCODED.search(found[-1]):
        found.append(unquote(found[-1]))
    return tuple(found)


@lru_cache(maxsize=16)
def _segments_of(path: str) -> tuple[Sequence[str], ...]:
    """Split each decoding of a path; the ends of segments that some readers cut off are left out, too."""
    decoded = _list_decodings(path.lower())
    texts = {text for each in decoded for text in (each, _ENDS.sub("", each))}
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
