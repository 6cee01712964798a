"""Content type and content coding of a response, and its body in pieces of bounded size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meterkit.tokens.framing.decoding import Decoding
    from meterkit.tokens.framing.incremental import Work

PIECE_BYTES: Final = 16 << 10
"""How much is read without a pause, unless it is slow to read."""

SSE: Final = b"text/event-stream"
JSON: Final = b"application/json"
EVENT_STREAM: Final = b"application/vnd.amazon.eventstream"
PLAIN: Final = (b"", b"text/plain", b"application/octet-stream")
"""Content types that say nothing of the content."""
IDENTITY: Final = (b"", b"identity")
"""Content codings that change nothing."""

_NDJSON: Final = re.compile(rb"application/(?:(?:x-)?ndjson|jsonl|(?:x-)?jsonlines|stream\+json)")
_BODILESS: Final = (204, 205)
_OK: Final = range(200, 300)


def has_answer(status: int) -> bool:
    """Whether a response of this status has a body that may report usage."""
    return status in _OK and status not in _BODILESS


def content_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The content type without parameters, and the content coding, both in lower case."""
    kind = coding = b""
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif lowered == b"content-encoding":
            coding = value.strip().lower()
    return kind, coding


def is_lines(kind: bytes) -> bool:
    """Whether the content type is that of JSON lines."""
    return _NDJSON.fullmatch(kind) is not None


def is_json(kind: bytes) -> bool:
    """Whether the content type is that of one JSON value."""
    return kind == JSON or kind.endswith(b"+json")


def read_pieces(chunk: bytes, decoding: Decoding | None, take: Callable[[bytes], Work | None]) -> Work:
    """Hand on what a chunk holds, decoded, in pieces of bounded size."""
    for decoded in (chunk,) if decoding is None else decoding.feed(chunk):
        for at in range(0, len(decoded), PIECE_BYTES):
            work = take(decoded[at : at + PIECE_BYTES])
            if work is not None:
                yield from work
        yield
