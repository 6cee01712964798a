"""Entries of a customer's balance that a call has made, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stripe_emulator.protocol import fields_of

if TYPE_CHECKING:
    from stripe_emulator.protocol import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceTransaction:
    """An entry of a customer's balance; ``amount`` is in minor units of the currency, a credit below 0."""

    id: str
    created: int
    customer: str
    amount: int
    currency: str
    ending_balance: int
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the entry as Stripe shows it (https://docs.stripe.com/api/customer_balance_transactions/object)."""
        return {**fields_of(self), "object": "customer_balance_transaction", "type": "adjustment"}
