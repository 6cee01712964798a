"""What a change within a billing period costs: credit for what is not used, charge for what is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Proration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """What a change costs for the rest of the period, before taxes and discounts; in minor units.

    Attributes:
        credit_cents: given back for what was paid and is not used any more; at least 0.
        charge_cents: asked for what is used instead; at least 0.
        net_cents: the charge less the credit; below 0: it is taken off the next invoice.
        currency: of all three.
        effective_at: when the change takes effect (UTC): now, or when the period ends.
        description: the same in a sentence.
    """

    credit_cents: int
    charge_cents: int
    net_cents: int
    currency: str
    effective_at: datetime
    description: str
