"""Reading in bounded pieces of work, so that others can be let run in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EVENT_BYTES_MAX", "Emit", "Large", "Work", "drain", "whole_of"]

EVENT_BYTES_MAX: Final = 16 << 10
"""How much of an event is kept; a larger one is read as it comes, without being kept."""

Work: TypeAlias = "Iterator[None]"
"""What is left to do: a generator that takes a rest after each piece, of some tenths of a millisecond."""

Emit: TypeAlias = "Callable[[bytes], Work | None]"
"""Takes an event; what is left to do of it, None where nothing is."""


class Large(Protocol):
    """Reads what is too large to be kept."""

    def feed(self, data: bytes) -> Work:
        """Take the next bytes of it."""
        ...

    def end(self) -> None:
        """It has come to its end, or to that of the response."""


def whole_of(large: Large, data: bytes) -> Work:
    """Have all of something read as what is too large to be kept."""
    yield from large.feed(data)
    large.end()


def drain(work: Work | None) -> None:
    """Do it all, without a rest."""
    for _ in work or ():
        pass
