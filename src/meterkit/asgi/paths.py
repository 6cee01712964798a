"""Readings of a path: the paths that routers and file servers may take a request's path for. Pure.

A server decodes a path once and hands it on. Some routers split it before they decode it, others decode it
again, and file servers resolve dot segments. A path without such characters means the same to all of them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_to_bytes

from meterkit.catalog.match_lines import PARAMETER

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_TEXT_SLASH: Final = "\N{FRACTION SLASH}"
_NUMBER: Final = r"(?:(?=[^/]*\d)[\s\d_.e+-]+|\s*[+-]?(?:nan|inf(?:inity)?)\s*)"
_KINDS: Final = {"path": ".*", "int": _NUMBER, "float": _NUMBER, "uuid": r"[\s\da-f_urnix{}:+-]{32,}"}


def is_plain(path: str, raw: bytes | None) -> bool:
    """Whether a path has one reading only.

    Args:
        path: as the server has decoded it.
        raw: as the client has sent it; None if the server does not say.
    """
    return _ODD.search(path) is None and (raw is None or b"%" not in raw or _ODD_RAW.search(raw) is None)


def list_readings(path: str, raw: bytes | None, roots: Sequence[str]) -> dict[str, str]:
    """Name each reading of a path beside the path itself: ``raw``, ``plain``, or ``further``.

    The raw one is of routers that split first. The plain one is decoded, without parameters and backslashes,
    and resolved. For further ones, some routers take a part of these steps, or more: they take what stands
    behind the root path, wherever that is; drop scheme and host; cut at ``?``, ``#`` and NUL; leave
    backslashes and parameters as they are, or decode once less.
    """
    split = _split_first(path, raw)
    plain = _resolve_dots(_PARAMETERS.sub("", _list_decodings(path)[-1].replace("\\", "/")))
    texts = {path, split}
    texts |= {behind for text in texts for root in roots for behind in _list_rests(text, root)}
    texts |= {_HOST.sub("", text, count=1) for text in texts if _HOST.match(text)}
    decoded = {each for text in texts for each in _list_decodings(text)}
    slashed = {text for each in decoded for text in (each, each.replace("\\", "/"))}
    cut = {text for each in slashed for text in (each, _ENDS.sub("", each), _TAIL.sub("", each))}
    found = {split: "raw"}
    for text, name in ((plain, "plain"), *((_resolve_dots(each), "further") for each in sorted(cut))):
        found.setdefault(text, name)
    found.pop(path, None)
    return found


def _split_first(path: str, raw: bytes | None) -> str:
    """Read the path as routers do that split it first: an encoded slash is text within a segment.

    A raw path that differs from ``path``, because a middleware has replaced one of them, says nothing.
    """
    sent = b"" if raw is None else raw.partition(b"?")[0]
    if _decode(sent) != path:
        return path
    return "/".join(_decode(segment).replace("/", _TEXT_SLASH) for segment in sent.split(b"/"))


def _decode(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _list_rests(path: str, root: str) -> list[str]:
    """List the rests of a path behind each root path in it."""
    found = path.split(root)[1:] if root else []
    whole = [root.join(found[place:]) for place in range(min(len(found), _ROOTS_MAX))]
    return [text for each in whole for text in (each, f"/{each.lstrip('/')}")]


def may_climb_to(template: str, path: str) -> bool:
    """Whether a file server may resolve a path with ``..`` to one of a template.

    Where it leads depends on the server's folder. It leaves segments out, decodes them, cuts their ends off
    and ignores case. So the fixed segments of the template stand in the path, in that order.
    """
    found = _list_segments(path)
    fixed = [part.lower() for part in template.split("/") if part and "{" not in part]
    return any(".." in segments for segments in found) and any(
        all(part in rest for part in fixed) for rest in map(iter, found)
    )


def compile_loosely(template: str) -> re.Pattern[str]:
    """Compile a template without regard to case; it matches a path without a slash at its end.

    A parameter takes what frameworks convert to its type: ``float`` reads ``+7``, ``7.0`` and ``1_0``.
    """
    pattern, at = "", 0
    for parameter in PARAMETER.finditer(template):
        pattern += re.escape(template[at : parameter.start()]) + _KINDS.get(parameter[2], "[^/]+")
        at = parameter.end()
    return re.compile(rf"{pattern}{re.escape(template[at:].rstrip('/'))}\n?\Z", re.DOTALL | re.IGNORECASE)


@lru_cache(maxsize=64)
def _list_decodings(path: str) -> tuple[str, ...]:
    found = [path]
    while len(found) <= _DECODED_MAX and _ENCODED.search(found[-1]):
        found.append(unquote(found[-1]))
    return tuple(found)


@lru_cache(maxsize=16)
def _list_segments(path: str) -> tuple[Sequence[str], ...]:
    """Split each decoding of a path; the ends of segments that some readers cut off are left out, too."""
    decoded = _list_decodings(path.lower())
    texts = {text for each in decoded for text in (each, _ENDS.sub("", each))}
    return tuple([*filter(None, _SEPARATORS.split(text))] for text in texts)


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
