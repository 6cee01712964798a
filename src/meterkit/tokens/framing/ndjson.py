"""JSON values one to a line, incrementally.

https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from meterkit.tokens.framing.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.blocks import Gate, Large
    from meterkit.tokens.framing.work import Emit, Work

__all__ = ["Ndjson"]


class Ndjson:
    """Passes on each line that is not blank, the last one also without a line end."""

    __slots__ = ("_blocks",)

    def __init__(self, emit: Emit, gate: Gate, large: Callable[[], Large]) -> None:
        self._blocks = Blocks(b"\n", partial(_read, emit), gate, large)

    def feed(self, chunk: bytes) -> Work | None:
        """Take the next bytes of the stream; what is left to do with them."""
        return self._blocks.feed(chunk)

    def close(self) -> Work:
        """The stream is over."""
        return self._blocks.close()


def _read(emit: Emit, line: bytes) -> Work | None:
    line = line.strip()
    return emit(line) if line else None
