"""Figures that a route's ``usage_fields`` names by their paths in the JSON of a response."""

from __future__ import annotations

from math import floor, isfinite
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.framing.decoding import decoding_of
from meterkit.tokens.json_values import dig, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BYTES_MAX: Final = 1 << 20
_IDENTITY: Final = (b"", b"identity")
_OK: Final = range(200, 300)
_DATA: Final = b"data:"


class FieldsReader:
    """Reads figures at paths of a JSON document, or of a stream's events or lines: there the last counts.

    Args:
        fields: meter to dotted path.

    Attributes:
        missing: the meters without a figure; empty where nothing was to be read.
    """

    __slots__ = ("_buffer", "_decoding", "_found", "_paths", "_reads", "_streams", "missing")

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._paths = {meter: path.split(".") for meter, path in fields.items()}
        self._found: dict[str, int] = {}
        self._buffer = bytearray()
        self._reads = self._streams = False
        self.missing: tuple[str, ...] = ()

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Look at the head of the response; only answers of 2xx are read."""
        named = {name.lower(): value.strip().lower() for name, value in headers}
        kind = named.get(b"content-type", b"").partition(b";")[0].strip()
        coding = named.get(b"content-encoding", b"")
        self._decoding = None if coding in _IDENTITY else decoding_of(coding)
        self._streams = kind == b"text/event-stream" or b"ndjson" in kind or b"jsonl" in kind
        self._reads = status in _OK and (coding in _IDENTITY or self._decoding is not None)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if not self._reads:
            return
        for piece in (chunk,) if self._decoding is None else self._decoding.feed(chunk):
            self._buffer += piece
            if self._streams and b"\n" in piece:
                *lines, rest = self._buffer.split(b"\n")
                self._buffer = bytearray(rest)
                for line in lines:
                    self._read(line)
            if len(self._buffer) > _BYTES_MAX:
                self._buffer.clear()
                self._reads = self._streams  # A line of a stream is passed over, a document is not read.

    def close(self) -> dict[str, int]:
        """Meter to the figure found, rounded down. Idempotent."""
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            self._read(data)
        self.missing = tuple(meter for meter in self._paths if meter not in self._found and self._reads)
        return self._found

    def _read(self, data: bytearray) -> None:
        if self._streams:
            data = data.strip().removeprefix(_DATA)
        # Most events have none of the figures.
        if not any(path[-1].encode() in data for path in self._paths.values()):
            return
        try:
            said = load(data)
        except ValueError:
            return
        for meter, path in self._paths.items():
            figure = dig(said, path)
            if type(figure) in (int, float) and isfinite(figure) and 0 <= figure <= QUANTITY_MAX:
                self._found[meter] = floor(figure)
