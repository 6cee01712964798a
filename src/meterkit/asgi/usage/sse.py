"""Server-sent events, incrementally.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.usage.blocks import EVENT_BYTES_MAX, Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.blocks import Gate

__all__ = ["Sse"]

_BOM: Final = b"\xef\xbb\xbf"
_DATA: Final = b"data"


class Sse:
    """Passes on the data of each event, that of the last one also without the blank line after it."""

    __slots__ = ("_after_cr", "_blocks", "_emit", "_gate")

    def __init__(
        self, emit: Callable[[bytes], None], gate: Gate, take_all: Callable[[bytes], bool] | None = None
    ) -> None:
        self._emit = emit
        self._gate = gate
        self._after_cr = False
        self._blocks = Blocks(b"\n\n", self._read, gate, take_all)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream; lines end with LF, CRLF or CR."""
        # Most servers write one event at a time, on one line.
        if (
            chunk.find(b"\n") == len(chunk) - 2
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and not self._after_cr
            and self._blocks.is_between
            and len(chunk) <= EVENT_BYTES_MAX
        ):
            if self._gate.opens(chunk):
                self._emit(chunk[6:-2])
            return
        if self._after_cr:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._blocks.feed(chunk)

    def close(self) -> None:
        """The stream is over."""
        self._blocks.close()

    def _read(self, block: bytes) -> None:
        if b"\n" not in block and block.startswith(b"data: "):
            self._emit(block[6:])
            return
        data: list[bytes] = []
        # A byte order mark may only come first; elsewhere it does no harm to pass it over.
        for line in block.removeprefix(_BOM).split(b"\n"):
            name, _, value = line.partition(b":")
            if name == _DATA:
                data.append(value.removeprefix(b" "))
        if data:
            self._emit(b"\n".join(data))
