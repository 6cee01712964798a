"""Usage read off a body alone: one that an app holds, or bytes and lines of an HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.framing.content_types import (
    BLANK,
    are_lines,
)
from llm_usage.framing.incremental import EVENT_BYTES_MAX
from llm_usage.json_values import load
from llm_usage.response import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_usage.call_usage import CallUsage

_JSON: Final = b"application/json"
_NDJSON: Final = b"application/x-ndjson"
_SSE: Final = b"text/event-stream"


def read_body(body: bytes) -> tuple[CallUsage, ...]:
    """Usage of the calls in a complete body; none where it is no language model's. Never raises."""
    reader = BodyReader()
    reader.feed(body)
    return reader.close(complete=True)


class BodyReader:
    """Reads the pieces of a body of unknown content type."""

    __slots__ = ("_held", "_lines", "_reader")

    def __init__(self) -> None:
        self._reader: ResponseReader | None = None
        # Whether the pieces are lines without their ends; None: not known yet.
        self._lines: bool | None = None
        # The beginning of a line that may go on in the next piece.
        self._held = b""

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no figures cover."""
        return 0 if self._reader is None else self._reader.estimated_output_tokens

    def feed(self, piece: bytes | bytearray | str) -> None:
        """Take the next bytes, the next text, or the next line without its end."""
        data = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece)
        if self._reader is None:
            if not data.strip(BLANK):
                return
            line = isinstance(piece, str) and "\n" not in piece and "\r" not in piece
            kind = _kind_of(data + b"\n" if line else data)
            self._reader = ResponseReader("auto", kind, coding=b"")
            if line and kind == _SSE:
                self._held = data
                return
            self._lines = line and kind != _JSON
        elif self._lines is None:
            self._lines = are_lines(self._held, data)
            if self._lines is None and len(self._held) <= EVENT_BYTES_MAX:
                self._held += data
                return
            self._feed_held(b"\n" if self._lines else b"")
        self._reader.feed(data + b"\n" if self._lines else data)

    def _feed_held(self, end: bytes = b"") -> None:
        if self._reader is not None and self._held:
            self._reader.feed(self._held + end)
            self._held = b""

    def close(self, *, complete: bool) -> tuple[CallUsage, ...]:
        """Usage of the calls; none where it was no language model's.

        Args:
            complete: whether the body came to its end.
        """
        self._feed_held()
        return () if self._reader is None else _recognised_calls(self._reader.close(complete=complete))

    def snapshot(self) -> tuple[CallUsage, ...]:
        """Usage of the calls by the events so far; the body may go on."""
        return () if self._reader is None else _recognised_calls(self._reader.snapshot())


def _recognised_calls(calls: Sequence[CallUsage]) -> tuple[CallUsage, ...]:
    """Leave out calls without figures of no API: a truncated body may be anything."""
    return tuple(call for call in calls if call.source != "missing" or call.provider is not None)


def _kind_of(data: bytes) -> bytes:
    head = data.lstrip(BLANK)
    if head[:1] not in (b"{", b"["):
        return _SSE
    line, end, _ = head.partition(b"\n")
    if not end:
        return _JSON
    try:
        load(line)
    except ValueError:
        return _JSON
    return _NDJSON
