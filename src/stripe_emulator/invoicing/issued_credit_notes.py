"""Issued credit notes, by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stripe_emulator.protocol import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditNote:
    """An issued credit note. ``shown`` is the object as Stripe shows it."""

    id: str
    created: int
    customer: str
    invoice: str
    shown: JsonObject

    def to_json(self) -> JsonObject:
        """Return the credit note as Stripe shows it (https://docs.stripe.com/api/credit_notes/object)."""
        return dict(self.shown)
