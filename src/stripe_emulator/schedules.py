"""Subscription schedules and their phases, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from stripe_emulator.billing_mode import BillingMode
from stripe_emulator.invoice_totals import automatic_tax_to_json
from stripe_emulator.protocol import JsonObject, shown_fields
from stripe_emulator.terms import DEFAULT_SETTINGS, ITEM_TERMS, PHASE_TERMS, terms_to_json

if TYPE_CHECKING:
    from stripe_emulator.coupons import Discount
    from stripe_emulator.prices import Price

SETTINGS_DEFAULTS: Final[JsonObject] = {
    "billing_cycle_anchor": "automatic",
    "collection_method": "charge_automatically",
    "invoice_settings": {"issuer": {"type": "self"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDiscount:
    """A discount of a phase, and how the call named it: ``coupon``, ``discount`` or ``promotion_code``."""

    discount: Discount
    named: str = "discount"

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        ids = {
            "coupon": self.discount.coupon.id,
            "discount": self.discount.id,
            "promotion_code": self.discount.promotion_code,
        }
        return {name: found if name == self.named else None for name, found in ids.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseItem:
    """A price of a phase. ``quantity`` is None where usage is charged."""

    price: Price
    quantity: int | None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    terms: JsonObject = field(default_factory=dict[str, object])
    discounts: tuple[PhaseDiscount, ...] = ()

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        shown: JsonObject = {
            "discounts": [each.to_json() for each in self.discounts],
            "metadata": dict(self.metadata),
            "plan": self.price.id,
            "price": self.price.id,
            **terms_to_json(self.terms, ITEM_TERMS),
        }
        if self.quantity is not None:
            shown["quantity"] = self.quantity
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseInvoiceItem:
    """A one-time price that the first invoice of a phase has."""

    price: Price
    quantity: int
    shown: JsonObject

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        return {**self.shown, "price": self.price.id, "quantity": self.quantity}


@dataclass(slots=True, kw_only=True)
class Phase:
    """A phase: the terms of a subscription from ``start`` to ``end``, in Unix seconds.

    Attributes:
        given: the discounts that it has then; others end with the phase before.
        terms: its :data:`PHASE_TERMS`; what they leave out the schedule's default settings say.
    """

    start: int
    end: int
    items: list[PhaseItem]
    proration_behavior: str = "create_prorations"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    trial: bool | None = None
    trial_end: int | None = None
    given: list[PhaseDiscount] = field(default_factory=list[PhaseDiscount])
    terms: JsonObject = field(default_factory=dict[str, object])
    added: list[PhaseInvoiceItem] = field(default_factory=list[PhaseInvoiceItem])

    @property
    def discounts(self) -> list[Discount]:
        """Its discounts."""
        return [each.discount for each in self.given]

    @property
    def all_discounts(self) -> list[PhaseDiscount]:
        """Its discounts and those of its items."""
        return [*self.given, *(each for item in self.items for each in item.discounts)]

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/subscription_schedules/object)."""
        return {
            "add_invoice_items": [each.to_json() for each in self.added],
            "currency": self.items[0].price.currency,
            "discounts": [each.to_json() for each in self.given],
            "end_date": self.end,
            "items": [item.to_json() for item in self.items],
            "metadata": dict(self.metadata),
            "proration_behavior": self.proration_behavior,
            "start_date": self.start,
            "trial": self.trial,
            "trial_end": self.trial_end,
            **terms_to_json(self.terms, PHASE_TERMS),
        }


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A subscription schedule. Instants are in Unix seconds.

    Attributes:
        subscription: id of the one it manages; None before it has begun and after it has let go of it.
        place: of the phase that it is in, among all phases.
        end_behavior: ``release`` or ``cancel``: what becomes of the subscription after the last phase.
        default_settings: the terms of phases that do not name them.
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
    default_settings: JsonObject = field(default_factory=dict[str, object])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    canceled_at: int | None = None
    completed_at: int | None = None
    released_at: int | None = None
    released_subscription: str | None = None
    test_clock: str | None = None

    @property
    def next_transition_at(self) -> int | None:
        """The start of a schedule that has not begun, in Unix seconds; None otherwise."""
        return self.phases[0].start if self.status == "not_started" else None

    @property
    def ends_at(self) -> int | None:
        """End of its subscription, in Unix seconds; None: it sets none."""
        return self.phases[-1].end if self.status == "active" and self.end_behavior == "cancel" else None

    def terms_of_phase(self, phase: Phase) -> JsonObject:
        """Return the terms of a phase, with those that it inherits from the default settings."""
        return {**self.default_settings, **phase.terms}

    def to_json(self) -> JsonObject:
        """Return the schedule as Stripe shows it (https://docs.stripe.com/api/subscription_schedules/object)."""
        current = self.phases[self.place] if self.status == "active" else None
        tax = cast("dict[str, Any]", self.default_settings.get("automatic_tax") or {})
        return {
            **shown_fields(self, "place"),
            "object": "subscription_schedule",
            "application": None,
            "billing_mode": self.billing_mode.to_json(),
            "current_phase": None
            if current is None
            else {"end_date": current.end, "start_date": current.start},
            "customer_account": None,
            "default_settings": {
                **terms_to_json({**SETTINGS_DEFAULTS, **self.default_settings}, DEFAULT_SETTINGS),
                "automatic_tax": automatic_tax_to_json(
                    enabled=tax.get("enabled") is True, liability=tax.get("liability")
                ),
            },
            "pause_schedules": [],
            "phases": [phase.to_json() for phase in self.phases],
        }
