"""JSON values one to a line, incrementally.

https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from meterkit.asgi.usage.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.asgi.usage.blocks import Gate, Large

__all__ = ["Ndjson"]


class Ndjson:
    """Passes on each line that is not blank, the last one also without a line end."""

    __slots__ = ("_blocks",)

    def __init__(self, emit: Callable[[bytes], None], gate: Gate, large: Callable[[], Large]) -> None:
        self._blocks = Blocks(b"\n", partial(_read, emit), gate, large)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self._blocks.feed(chunk)

    def close(self) -> None:
        """The stream is over."""
        self._blocks.close()


def _read(emit: Callable[[bytes], None], line: bytes) -> None:
    line = line.strip()
    if line:
        emit(line)
