"""Content types and framings of responses that may report usage, and how they are recognised."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from meterkit.tokens.framing.eventstream import PRELUDE_BYTES, is_prelude
from meterkit.tokens.framing.incremental import EVENT_BYTES_MAX
from meterkit.tokens.json_values import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SSE: Final = b"text/event-stream"
JSON: Final = b"application/json"
EVENT_STREAM: Final = b"application/vnd.amazon.eventstream"
PLAIN: Final = (b"", b"text/plain", b"application/octet-stream")
"""Content types that say nothing of the content."""

Framing: TypeAlias = Literal["sse", "lines", "json", "text", "frames", "unknown"]
"""A body's framing: events, JSON lines, one JSON value or an array, a JSON text, Amazon's frames, or none."""

_SSE_NAMES: Final = (b":", b"data:", b"event:", b"id:", b"retry:")
_SSE_NAME_BYTES_MAX: Final = max(map(len, _SSE_NAMES))
BLANK: Final = b" \t\r\n\xef\xbb\xbf"
"""Bytes that say nothing of a body: blanks and the byte order mark."""
_NDJSON: Final = re.compile(rb"application/(?:(?:x-)?ndjson|jsonl|(?:x-)?jsonlines|stream\+json)")
HTML: Final = b"text/html"
_JSON_FRAMINGS: Final[Mapping[bytes, Framing]] = {b"{": "json", b"[": "json", b'"': "text"}
_BODILESS: Final = (204, 205)
# Apps write `none` so that no proxy compresses or holds back an event stream, and `utf-8` by mistake.
_IDENTITY: Final = frozenset({b"", b"identity", b"none", b"utf-8", b"utf8"})
_OK: Final = range(200, 300)


def has_answer(status: int) -> bool:
    """Whether a response of this status has a body that may report usage."""
    return status in _OK and status not in _BODILESS


def content_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The content type without parameters, and the content codings, both in lower case.

    Codings that change nothing are left out: what remains is empty, or has to be decoded.
    """
    kind = b""
    codings: list[bytes] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif lowered == b"content-encoding":
            codings += map(bytes.strip, value.lower().split(b","))
    return kind, b",".join(name for name in codings if name not in _IDENTITY)


def is_lines(kind: bytes) -> bool:
    """Whether the content type is that of JSON lines."""
    return _NDJSON.fullmatch(kind) is not None


def is_json(kind: bytes) -> bool:
    """Whether the content type is one of JSON, such as ``application/json``, ``text/json`` or ``…+json``."""
    return b"json" in kind and not is_lines(kind)


def is_readable(kind: bytes, *, declared: bool) -> bool:
    """Whether a response of this content type may be a model's.

    Args:
        kind: the content type.
        declared: whether its route says so: then it may be any text but a page.
    """
    if kind in (SSE, EVENT_STREAM, *PLAIN) or is_json(kind) or is_lines(kind):
        return True
    return declared and kind.startswith(b"text/") and kind != HTML


def recognise_framing(head: bytes, kind: bytes, *, is_over: bool = False) -> Framing | None:
    """Recognise the framing of a body by its first bytes; None: more bytes are needed.

    A proxy may give all responses one content type, while its client chooses between streams and documents.
    So the type decides only where the bytes do not.

    Args:
        head: the first bytes, without blanks before them.
        kind: the content type.
        is_over: whether no more bytes come.
    """
    first = head[:1]
    if first in _JSON_FRAMINGS:
        return _recognise_lines(head, is_over=is_over) if is_lines(kind) else _JSON_FRAMINGS[first]
    if head.startswith(_SSE_NAMES) or (kind == SSE and first not in (b"", b"\0")):
        return "sse"
    needed = PRELUDE_BYTES if first == b"\0" else _SSE_NAME_BYTES_MAX
    if len(head) < needed and not is_over:
        return None
    if kind == EVENT_STREAM or is_prelude(head):
        return "frames"
    return "sse" if kind == SSE and head else "unknown"


def are_lines(begun: bytes, piece: bytes) -> bool | None:
    """Whether the texts of server-sent events are lines without their ends, as the first ones tell.

    An HTTP client gives such lines, or texts that are cut anywhere.

    Args:
        begun: the first texts, which have no line's end.
        piece: the next one.

    Returns:
        None where that goes on in the same line: more of them are needed.
    """
    if b"\n" in piece or b"\r" in piece:
        return False
    if not begun.startswith(_SSE_NAMES) or (piece and not piece.startswith(_SSE_NAMES)):
        return None
    name, _, data = begun.partition(b":")
    return True if name != b"data" or _is_complete(data.strip()) else None


def _is_complete(data: bytes) -> bool:
    """Whether the data of an event may have ended."""
    try:
        load(data)
    except ValueError:
        return data == b"[DONE]"
    return True


def _recognise_lines(head: bytes, *, is_over: bool) -> Framing | None:
    """Tell JSON lines from a document over several lines, whose first line does not end an object."""
    line, end, _ = head.partition(b"\n")
    if head[:1] != b"{" or (end and not line.rstrip().endswith(b"}")):
        return _JSON_FRAMINGS[head[:1]]
    return "lines" if end or is_over or len(head) > EVENT_BYTES_MAX else None
