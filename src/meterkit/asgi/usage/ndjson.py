"""JSON values one to a line, incrementally.

https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.asgi.usage.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.blocks import Gate

__all__ = ["Ndjson"]


class Ndjson:
    """Passes on each line that is not blank, the last one also without a line end."""

    __slots__ = ("_blocks", "_emit")

    def __init__(self, emit: Callable[[bytes], None], gate: Gate) -> None:
        self._emit = emit
        self._blocks = Blocks(b"\n", self._read, gate)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self._blocks.feed(chunk)

    def close(self) -> None:
        """The stream is over."""
        self._blocks.close()

    def _read(self, line: bytes) -> None:
        line = line.strip()
        if line:
            self._emit(line)
