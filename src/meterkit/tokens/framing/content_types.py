"""Content types of responses that may report usage, and how they are recognised."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SSE: Final = b"text/event-stream"
JSON: Final = b"application/json"
EVENT_STREAM: Final = b"application/vnd.amazon.eventstream"
PLAIN: Final = (b"", b"text/plain", b"application/octet-stream")
"""Content types that say nothing of the content."""

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
