"""Tax rates, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.totals import AppliedRate
from stripe_emulator.protocol import fields_of

if TYPE_CHECKING:
    from decimal import Decimal

    from stripe_emulator.protocol import JsonObject

TEXTS: Final = ("country", "description", "jurisdiction", "state", "tax_type")
NOTHING: Final = ("effective_percentage", "flat_amount", "jurisdiction_level", "rate_type")


@dataclass(slots=True, kw_only=True)
class TaxRate:
    """A tax rate: what it adds to amounts, or has within them."""

    id: str
    created: int
    display_name: str
    percentage: Decimal
    inclusive: bool
    active: bool = True
    livemode: bool = False
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    texts: dict[str, str | None] = field(default_factory=dict[str, "str | None"])

    @property
    def rate(self) -> AppliedRate:
        """The form that totals are computed with."""
        return AppliedRate(self.id, self.percentage, self.inclusive)

    def to_json(self) -> JsonObject:
        """Return the rate as Stripe shows it (https://docs.stripe.com/api/tax_rates/object)."""
        shown = {**fields_of(self, "texts"), **dict.fromkeys(TEXTS), **self.texts, **dict.fromkeys(NOTHING)}
        return {**shown, "object": "tax_rate", "percentage": float(self.percentage)}
