"""What was used of several meters at once, and what is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOTHING_USED", "Used"]

_NOTHING: Final[dict[str, int]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}


class Used(NamedTuple):
    """What is counted together.

    Attributes:
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that its rates count in all.
        dimensions: the model and the provider, for meters that are derived from others (``where:``).
        measured: meter to the quantity that the dimensions are of; None: what is rated.
    """

    recorded: Mapping[str, int] = _NOTHING
    rated: Mapping[str, int] = _NOTHING
    dimensions: Mapping[str, str] = _NO_DIMENSIONS
    measured: Mapping[str, int] | None = None

    @classmethod
    def of(cls, quantities: Mapping[str, int], **dimensions: str) -> Self:
        """What is recorded and rated alike."""
        return cls(quantities, quantities, dimensions)


NOTHING_USED: Final = Used()
