"""The one rule for quantities."""

from __future__ import annotations

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.errors import QuantityError

__all__ = ["check_quantity"]


def check_quantity(quantity: object) -> int:
    """Return the quantity.

    Raises:
        QuantityError: it is not an integer from 0 to 10^15 - 1; a bool or a float is none.
    """
    if type(quantity) is int and 0 <= quantity <= QUANTITY_MAX:
        return quantity
    found = (
        repr(quantity) if isinstance(quantity, int | float) else f"a value of type {type(quantity).__name__}"
    )
    raise QuantityError(f"quantity: found {found:.40}; allowed is an integer from 0 to {QUANTITY_MAX}")
