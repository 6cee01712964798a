"""Reading in bounded pieces of work, so that others can be let run in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Emit", "Work", "drain"]

Work: TypeAlias = "Iterator[None]"
"""What is left to do: a generator that takes a rest after each piece, of some tenths of a millisecond."""

Emit: TypeAlias = "Callable[[bytes], Work | None]"
"""Takes an event; what is left to do of it, None where nothing is."""


def drain(work: Work | None) -> None:
    """Do it all, without a rest."""
    if work is not None:
        for _ in work:
            pass
