"""What was used of several meters at once, and what is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from meterkit.catalog.models import QUANTITY_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOTHING_USED", "Used", "add"]

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


def add(quantities: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sums of quantities by meter; at most 10^15 - 1 each."""
    total = dict(quantities)
    for meter, quantity in more.items():
        total[meter] = min(total.get(meter, 0) + quantity, QUANTITY_MAX)
    return total
