"""Refunds and credit notes, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meterkit.testing.emulator.registry import Registry

if TYPE_CHECKING:
    from meterkit.testing.emulator.protocol import JsonObject

__all__ = ["CreditNote", "CreditNotes", "Refund", "Refunds"]


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
            "id": self.id,
            "object": "refund",
            "amount": self.amount,
            "balance_transaction": None,
            "charge": self.charge,
            "created": self.created,
            "currency": self.currency,
            "destination_details": {"card": {"type": "refund"}, "type": "card"},
            "metadata": dict(self.metadata),
            "payment_intent": self.payment_intent,
            "reason": self.reason,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }


@dataclass(slots=True, kw_only=True)
class CreditNote:
    """A credit note. Amounts are in minor units of the currency.

    Attributes:
        pre_payment: by how much the invoice's remaining amount became less.
        post_payment: what is given back: refunded, credited to the balance, or outside of Stripe.
    """

    id: str
    created: int
    number: str
    invoice: str
    customer: str
    currency: str
    amount: int
    pre_payment: int
    post_payment: int
    out_of_band: int = 0
    refund: Refund | None = None
    reason: str | None = None
    memo: str | None = None
    livemode: bool = False
    voided_at: int | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the credit note as Stripe shows it (https://docs.stripe.com/api/credit_notes/object)."""
        kind = "mixed" if self.pre_payment and self.post_payment else "pre_payment"
        refunds = [] if self.refund is None else [self.refund]
        return {
            "id": self.id,
            "object": "credit_note",
            "amount": self.amount,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "discount_amount": 0,
            "discount_amounts": [],
            "effective_at": self.created,
            "invoice": self.invoice,
            "livemode": self.livemode,
            "memo": self.memo,
            "metadata": dict(self.metadata),
            "number": self.number,
            "out_of_band_amount": self.out_of_band or None,
            "post_payment_amount": self.post_payment,
            "pre_payment_amount": self.pre_payment,
            "reason": self.reason,
            "refunds": [
                {"amount_refunded": each.amount, "refund": each.id, "type": "refund"} for each in refunds
            ],
            "status": "issued" if self.voided_at is None else "void",
            "subtotal": self.amount,
            "total": self.amount,
            "type": "post_payment" if not self.pre_payment else kind,
            "voided_at": self.voided_at,
        }


class Refunds(Registry[Refund]):
    """All refunds of the emulated account, oldest first."""

    what = "refund"

    def add(self, refund: Refund) -> None:
        """Take over a refund."""
        self._by_id[refund.id] = refund

    def refunded(self, invoice_id: str) -> int:
        """Return how much of an invoice's payment was refunded."""
        return sum(refund.amount for refund in self if refund.invoice == invoice_id)


class CreditNotes(Registry[CreditNote]):
    """All credit notes of the emulated account, oldest first."""

    what = "credit note"

    def add(self, note: CreditNote) -> None:
        """Take over a credit note."""
        self._by_id[note.id] = note

    def of(self, invoice_id: str) -> list[CreditNote]:
        """Return the credit notes of an invoice that count."""
        return [note for note in self if note.invoice == invoice_id and note.voided_at is None]
