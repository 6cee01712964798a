"""The provider's jobs for which this process holds something."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["TOLD_EVERY_MS", "OutlivingWorks"]

TOLD_EVERY_MS: Final = 3_600_000
"""How often it is told at most that jobs do not end."""


class Ends(Protocol):
    """A job whose end may be seen."""

    def end(self) -> None:
        """Give back what is held for it."""


class OutlivingWorks:
    """The jobs by the keys under which they are counted, and when it was last told that one does not end."""

    __slots__ = ("told_ms", "works")

    def __init__(self) -> None:
        self.works: dict[str, Ends] = {}
        self.told_ms = -TOLD_EVERY_MS
