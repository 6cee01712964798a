"""Subscription schedules: what a subscription will be, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from meterkit.testing.emulator.invoicing.totals import tax_to_json
from meterkit.testing.emulator.protocol import fields_of
from meterkit.testing.emulator.subscribing.billing_cycle import BillingMode

if TYPE_CHECKING:
    from meterkit.testing.emulator.protocol import JsonObject
    from meterkit.testing.emulator.selling.coupons import Discount
    from meterkit.testing.emulator.selling.prices import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseItem:
    """A price of a phase. ``quantity`` is None where usage is charged."""

    price: Price
    quantity: int | None

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        shown: JsonObject = {
            "billing_thresholds": None,
            "discounts": [],
            "metadata": {},
            "plan": self.price.id,
            "price": self.price.id,
            "tax_rates": [],
        }
        if self.quantity is not None:
            shown["quantity"] = self.quantity
        return shown


@dataclass(slots=True, kw_only=True)
class Phase:
    """What a subscription is from ``start`` to ``end``, in Unix seconds.

    Attributes:
        discounts: those that it has then; others end with the phase before.
    """

    start: int
    end: int
    items: list[PhaseItem]
    proration_behavior: str = "create_prorations"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    trial_end: int | None = None
    discounts: list[Discount] = field(default_factory=list["Discount"])

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/subscription_schedules/object)."""
        nothing = (
            *("application_fee_percent", "billing_cycle_anchor", "billing_thresholds", "collection_method"),
            *("default_payment_method", "description", "invoice_settings", "on_behalf_of", "transfer_data"),
        )
        return {
            "add_invoice_items": [],
            "currency": self.items[0].price.currency,
            "default_tax_rates": [],
            "discounts": [
                {"coupon": None, "discount": each.id, "promotion_code": None} for each in self.discounts
            ],
            "end_date": self.end,
            "items": [item.to_json() for item in self.items],
            "metadata": dict(self.metadata),
            "proration_behavior": self.proration_behavior,
            "start_date": self.start,
            "trial_end": self.trial_end,
            **dict.fromkeys(nothing),
        }


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A subscription schedule. Instants are in Unix seconds.

    Attributes:
        subscription: id of the one it manages; None before it has begun and after it has let go of it.
        place: of the phase that it is in, among all phases.
        end_behavior: ``release`` or ``cancel``: what becomes of the subscription after the last phase.
    """

    id: str
    customer: str
    created: int
    phases: list[Phase]
    billing_mode: BillingMode = field(default_factory=BillingMode)
    livemode: bool = False
    status: Literal["active", "canceled", "completed", "not_started", "released"] = "active"
    subscription: str | None = None
    place: int = 0
    end_behavior: str = "release"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    canceled_at: int | None = None
    completed_at: int | None = None
    released_at: int | None = None
    released_subscription: str | None = None
    test_clock: str | None = None

    def to_json(self) -> JsonObject:
        """Return the schedule as Stripe shows it (https://docs.stripe.com/api/subscription_schedules/object)."""
        current = self.phases[self.place] if self.status == "active" else None
        return {
            **fields_of(self, "place"),
            "object": "subscription_schedule",
            "application": None,
            "billing_mode": self.billing_mode.to_json(),
            "current_phase": None
            if current is None
            else {"end_date": current.end, "start_date": current.start},
            "customer_account": None,
            "default_settings": {
                "application_fee_percent": None,
                "automatic_tax": tax_to_json(enabled=False),
                "billing_cycle_anchor": "automatic",
                "billing_thresholds": None,
                "collection_method": "charge_automatically",
                "default_payment_method": None,
                "description": None,
                "invoice_settings": {
                    "account_tax_ids": None,
                    "days_until_due": None,
                    "issuer": {"type": "self"},
                },
                "on_behalf_of": None,
                "transfer_data": None,
            },
            "pause_schedules": [],
            "phases": [phase.to_json() for phase in self.phases],
        }
