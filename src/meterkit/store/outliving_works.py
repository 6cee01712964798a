"""The provider's jobs that requests of this process began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from meterkit.store.views import CustomerView

__all__ = ["TOLD_EVERY_MS", "OutlivingWorks"]

TOLD_EVERY_MS: Final = 3_600_000
"""How often it is told at most that jobs do not end."""


class Ends(Protocol):
    """A job whose end may be seen."""

    def end(self) -> None:
        """Give back what is held for it."""


class OutlivingWorks:
    """The jobs by the provider's ids.

    Attributes:
        works: those for which something is held.
        owners: who began the latest ones: counted without a look into the store while that is away.
        told_ms: when it was last told that one does not end.
    """

    __slots__ = ("owners", "told_ms", "works")

    def __init__(self) -> None:
        self.works: dict[str, Ends] = {}
        self.owners: dict[str, CustomerView] = {}
        self.told_ms = -TOLD_EVERY_MS
