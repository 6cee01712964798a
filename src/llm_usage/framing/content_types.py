"""Content types and framings of responses that may report usage, told by header or by their first bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from llm_usage.framing.eventstream import PRELUDE_BYTES, is_prelude
from llm_usage.framing.incremental import EVENT_BYTES_MAX
from llm_usage.framing.json import JsonTextReader
from llm_usage.json_values import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llm_usage.framing.incremental import IncrementalReader, Work

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


def is_sound(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response of this status and these headers is sound."""
    return has_answer(status) and content_of(headers)[0].startswith(b"audio/")


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
        declared: whether the caller says so: then it may be any text but a page.
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


class SniffedBody:
    """Opens the reader of a body once its framing is recognised, and feeds it.

    Args:
        kind: the content type.
        open_reader: opens the reader of a framing. A JSON text is read as the body that is in it: some apps
            serialize a response twice. Its framing is ``text`` if there is none.
        is_inner: whether this is the body in a JSON text.

    Attributes:
        reader: of the body; None until its framing is recognised.
    """

    __slots__ = ("_head", "_is_inner", "_kind", "_open_reader", "reader")

    def __init__(
        self, kind: bytes, open_reader: Callable[[Framing], IncrementalReader], *, is_inner: bool = False
    ) -> None:
        self._kind = kind
        self._open_reader = open_reader
        self._is_inner = is_inner
        self._head = b""
        self.reader: IncrementalReader | None = None

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of the body; what is left to do with them."""
        reader = self.reader
        return self._begin_reading(data) if reader is None else reader.feed(data)

    def close(self) -> Work:
        """No more bytes come: read what is left."""
        if self._head:
            yield from self._begin_reading(b"", is_over=True) or ()
        if self.reader is not None:
            yield from self.reader.close()

    def _begin_reading(self, data: bytes, *, is_over: bool = False) -> Work | None:
        # Some servers send blanks for minutes, to keep the connection alive: they are not kept.
        head = (self._head + data).lstrip(BLANK)
        framing = recognise_framing(head, self._kind, is_over=is_over)
        if framing is None:
            self._head = head
            return None
        self._head = b""
        if self._is_inner and framing == "unknown":
            framing = "text"
        if framing != "text" or self._is_inner:
            self.reader = self._open_reader(framing)
        else:
            self.reader = JsonTextReader(SniffedBody(b"", self._open_reader, is_inner=True))
        return self.reader.feed(head)


def feed_nothing(_: bytes) -> None:
    """Drop bytes: the body is closed."""
