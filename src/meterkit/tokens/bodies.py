"""Usage from bytes that the app has got from a provider: whole bodies, and streams of an HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.json_values import load
from meterkit.tokens.response import ResponseReader

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

_JSON: Final = b"application/json"
_NDJSON: Final = b"application/x-ndjson"
_SSE: Final = b"text/event-stream"
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"


def read_body(body: bytes) -> tuple[CallUsage, ...]:
    """What the calls in a whole body used; none where it is no language model's. Never raises."""
    reader = BodyReader()
    reader.feed(body)
    return reader.close(complete=True)


class BodyReader:
    """Reads the pieces of a body of unknown content type."""

    __slots__ = ("_lines", "_reader")

    def __init__(self) -> None:
        self._reader: ResponseReader | None = None
        self._lines = False

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no figures cover."""
        return 0 if self._reader is None else self._reader.estimated_output_tokens

    def feed(self, piece: bytes | bytearray | str) -> None:
        """Take the next bytes, the next text, or the next line without its end."""
        data = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece)
        if self._reader is None:
            if not data.strip(_BLANK):
                return
            line = isinstance(piece, str) and "\n" not in piece and "\r" not in piece
            kind = _kind_of(data + b"\n" if line else data)
            self._lines = line and kind != _JSON
            self._reader = ResponseReader("auto", kind, coding=b"")
        self._reader.feed(data + b"\n" if self._lines else data)

    def close(self, *, complete: bool) -> tuple[CallUsage, ...]:
        """What the calls used; none where it was no language model's.

        Args:
            complete: whether the body came to its end.
        """
        calls = () if self._reader is None else self._reader.close(complete=complete)
        # A truncated body may be anything, unless an API was recognised in it.
        return tuple(call for call in calls if call.source != "missing" or call.provider is not None)


def _kind_of(data: bytes) -> bytes:
    head = data.lstrip(_BLANK)
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
