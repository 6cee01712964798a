"""Refunds, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stripe_emulator.protocol import fields_of

if TYPE_CHECKING:
    from stripe_emulator.protocol import JsonObject


@dataclass(slots=True, kw_only=True)
class Refund:
    """A refund of an invoice's payment. ``amount`` is in minor units of the currency."""

    id: str
    created: int
    amount: int
    currency: str
    invoice: str
    payment_intent: str
    charge: str
    reason: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the refund as Stripe shows it (https://docs.stripe.com/api/refunds/object)."""
        return {
            **fields_of(self, "invoice"),
            "object": "refund",
            "balance_transaction": None,
            "destination_details": {"card": {"type": "refund"}, "type": "card"},
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }
