"""Subscriptions and their items, by id, and the terms that they share with phases of schedules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, cast

from stripe_emulator.billing_cycle import period_at
from stripe_emulator.billing_mode import BillingMode
from stripe_emulator.invoice_totals import automatic_tax_to_json
from stripe_emulator.protocol import JsonObject, list_to_json, not_found, null_fields, shown_fields
from stripe_emulator.registry import ObjectRegistry
from stripe_emulator.terms import (
    ACCOUNT,
    ITEM_TERMS,
    SHOWN_TERMS,
    SUBSCRIPTION_TERMS,
    read_hash,
    read_terms,
    terms_to_json,
)

if TYPE_CHECKING:
    from stripe_emulator.call import Params
    from stripe_emulator.coupons import Discount
    from stripe_emulator.prices import Price

SubscriptionStatus = Literal[
    "incomplete", "incomplete_expired", "trialing", "active", "past_due", "unpaid", "canceled", "paused"
]
# Of up to 20, as of every list that is shown inside of something else: https://docs.stripe.com/api/pagination.
ITEMS_SHOWN: Final = 10
ENDED: Final = ("canceled", "incomplete_expired")
# Fields of a subscription that Stripe shows in another shape, or not at all.
SUBSCRIPTION_HIDDEN: Final = (
    "cancellation paused_at paused_by prorate_at_cancel resumption save_payment_method scheduled_end shown"
    " tax_liability terms trial_action is_trial_end_reported"
)
SUBSCRIPTION_NULLS: Final = (
    "application billing_cycle_anchor_config customer_account"
    " next_pending_invoice_item_invoice presentment_details"
)


@dataclass(slots=True, kw_only=True)
class ItemDebit:
    """A charge of an item for a span of time, from which credits for unused time are taken.

    Attributes:
        amount: minor units of the currency.
        start: Unix seconds, as is ``end``.
        until: up to where it is used or not credited yet; the rest has been given back.
        line: the id of the line that charges it.
        invoice: the id of its invoice; None: it is pending.
        invoice_item: the id of that line as an invoice item; None: it is none.
    """

    amount: int
    start: int
    end: int
    until: int
    line: str
    invoice: str | None = None
    invoice_item: str | None = None


@dataclass(slots=True, kw_only=True)
class SubscriptionItem:
    """A subscribed price with its quantity, period and debits.

    Attributes:
        quantity: None where usage is charged.
        period_start: Unix seconds, as is ``period_end``; items may have different periods
            (https://docs.stripe.com/billing/subscriptions/mixed-interval).
        usage_from: from where on usage has not been charged yet.
        arrived_from: how many events the account had accepted when it got its price: they do not count where
            usage is priced by arrival.
        terms: thresholds, without effect on amounts, and tax rates.
    """

    id: str
    subscription: str
    created: int
    price: Price
    quantity: int | None
    period_start: int
    period_end: int
    usage_from: int
    arrived_from: int = 0
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    debits: list[ItemDebit] = field(default_factory=list[ItemDebit])
    terms: JsonObject = field(default_factory=dict[str, object])
    discounts: list[Discount] = field(default_factory=list["Discount"])

    def copy(self) -> SubscriptionItem:
        """Return a deep copy."""
        return replace(
            self,
            metadata=dict(self.metadata),
            debits=[replace(debit) for debit in self.debits],
            terms=dict(self.terms),
            discounts=list(self.discounts),
        )

    @property
    def rate_ids(self) -> tuple[str, ...]:
        """Its own tax rates."""
        return tuple(cast("list[str]", self.terms.get("tax_rates") or ()))

    def renew(self, anchor: int, *, now: int) -> None:
        """Begin the current period of the cycle of ``anchor``."""
        self.period_start, self.period_end = period_at(anchor, self.price.cycle, now)
        self.usage_from = max(self.usage_from, self.period_start)

    def to_json(self) -> JsonObject:
        """Return the item as Stripe shows it (https://docs.stripe.com/api/subscription_items/object)."""
        hidden = ("arrived_from", "debits", "period_end", "period_start", "terms", "usage_from")
        return {
            **shown_fields(self, *(hidden if self.quantity is not None else (*hidden, "quantity"))),
            "object": "subscription_item",
            "billed_until": self.period_start if self.price.is_metered else self.period_end,
            "current_period_end": self.period_end,
            "current_period_start": self.period_start,
            "current_trial": None,
            "discounts": [discount.id for discount in self.discounts],
            "plan": _plan_to_json(self.price),
            "price": self.price.to_json(),
            **terms_to_json(self.terms, ITEM_TERMS),
        }


@dataclass(slots=True, kw_only=True)
class PendingUpdate:
    """A change that is pending until its invoice is paid.

    Attributes:
        expires_at: Unix seconds; then it is given up and the invoice is voided.
        invoice: its id.
        changed: the subscription as it will be.
    """

    expires_at: int
    invoice: str
    changed: Subscription

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/subscriptions/object)."""
        return {
            "billing_cycle_anchor": None,
            "expires_at": self.expires_at,
            "subscription_items": [item.to_json() for item in self.changed.items],
            "trial_end": None,
            "trial_from_plan": None,
        }


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A subscription. Instants are in Unix seconds.

    Attributes:
        billing_cycle_anchor: where periods are counted from.
        cancel_at: when it ends by itself; with ``cancel_at_period_end`` the end of its first item's period.
        scheduled_end: when its schedule ends it, which Stripe shows as ``cancel_at``; None: it does not.
        prorate_at_cancel: whether the unused time is credited where ``cancel_at`` cuts a period short.
        trial_action: what becomes of it without a payment method at the trial's end.
        paused_by: why it is paused; None while it is not.
        resumption: id of the invoice that has to be paid before it is resumed.
        terms: its :data:`SUBSCRIPTION_TERMS`; all but ``default_tax_rates`` without effect on amounts.
    """

    id: str
    customer: str
    created: int
    currency: str
    billing_cycle_anchor: int
    billing_mode: BillingMode = field(default_factory=BillingMode)
    livemode: bool = False
    test_clock: str | None = None
    automatic_tax: bool = False
    tax_liability: JsonObject | None = None
    terms: JsonObject = field(default_factory=dict[str, object])
    discounts: list[Discount] = field(default_factory=list["Discount"])
    status: SubscriptionStatus = "active"
    items: list[SubscriptionItem] = field(default_factory=list[SubscriptionItem])
    cancel_at: int | None = None
    cancel_at_period_end: bool = False
    scheduled_end: int | None = None
    prorate_at_cancel: bool = False
    canceled_at: int | None = None
    ended_at: int | None = None
    cancellation: dict[str, str | None] = field(
        default_factory=lambda: dict.fromkeys(("comment", "feedback", "reason"))
    )
    collection_method: str = "charge_automatically"
    days_until_due: int | None = None
    default_payment_method: str | None = None
    description: str | None = None
    latest_invoice: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    pause_collection: JsonObject | None = None
    save_payment_method: str = "off"
    shown: JsonObject = field(default_factory=dict[str, object])
    pending_setup_intent: str | None = None
    pending_update: PendingUpdate | None = None
    schedule: str | None = None
    trial_start: int | None = None
    trial_end: int | None = None
    trial_action: str = "create_invoice"
    is_trial_end_reported: bool = False
    paused_by: str | None = None
    paused_at: int | None = None
    resumption: str | None = None

    @property
    def period_end(self) -> int:
        """The end of the longest of its items' periods."""
        return max(item.period_end for item in self.items)

    @property
    def item_discounts(self) -> list[Discount]:
        """The discounts of its items."""
        return [discount for item in self.items for discount in item.discounts]

    @property
    def rate_ids(self) -> tuple[str, ...]:
        """Its default tax rates."""
        return tuple(cast("list[str]", self.terms.get("default_tax_rates") or ()))

    @property
    def renews_at(self) -> int:
        """The instant at which the first of its items renews."""
        return min(item.period_end for item in self.items)

    def copy(self) -> Subscription:
        """Return a deep copy as the draft of a change."""
        return replace(
            self,
            shown=dict(self.shown),
            items=[item.copy() for item in self.items],
            metadata=dict(self.metadata),
            terms=dict(self.terms),
            discounts=list(self.discounts),
            cancellation=dict(self.cancellation),
        )

    def to_json(self) -> JsonObject:
        """Return the subscription as Stripe shows it (https://docs.stripe.com/api/subscriptions/object)."""
        terms = terms_to_json(self.terms, SUBSCRIPTION_TERMS)
        return {
            **shown_fields(self, SUBSCRIPTION_HIDDEN),
            "object": "subscription",
            **terms,
            **terms_to_json(self.shown, SHOWN_TERMS),
            "automatic_tax": automatic_tax_to_json(enabled=self.automatic_tax, liability=self.tax_liability),
            "billing_mode": self.billing_mode.to_json(),
            "billing_schedules": [],
            "cancel_at": self.cancel_at if self.scheduled_end is None else self.scheduled_end,
            "cancellation_details": {**self.cancellation, "feedback_option": None},
            "discounts": [discount.id for discount in self.discounts],
            "invoice_settings": terms["invoice_settings"]
            or {"account_tax_ids": None, "issuer": {"type": "self"}},
            "items": list_to_json(
                [item.to_json() for item in self.items],
                url=f"/v1/subscription_items?subscription={self.id}",
                shown_max=ITEMS_SHOWN,
            ),
            "payment_settings": {
                "payment_method_options": None,
                "payment_method_types": self.shown.get("payment_method_types"),
                "save_default_payment_method": self.save_payment_method,
            },
            "pending_update": None if self.pending_update is None else self.pending_update.to_json(),
            "start_date": self.created,
            "status_details": self._status_details(),
            "trial_settings": {"end_behavior": {"missing_payment_method": self.trial_action}},
            **null_fields(SUBSCRIPTION_NULLS),
        }

    def _status_details(self) -> JsonObject | None:
        if self.paused_by is None:
            return None
        why: JsonObject = {"subscription": {"type": self.paused_by}, "type": "subscription"}
        return {"paused": {**why, "transitioned_at": self.paused_at}}


class Subscriptions(ObjectRegistry[Subscription]):
    """All subscriptions of the emulated account, oldest first."""

    def find_item(self, item_id: str) -> tuple[Subscription, SubscriptionItem]:
        """Return an item and the subscription that has it. Raises ApiError, 404, if there is none."""
        for subscription in self._by_id.values():
            for item in subscription.items:
                if item.id == item_id:
                    return subscription, item
        raise not_found("subscription_item", item_id)


def _plan_to_json(price: Price) -> JsonObject:
    """Return the price as a legacy ``plan``, which items still have."""
    shown = price.to_json()
    names = ("active", "created", "currency", "livemode", "metadata", "nickname", "product", "tiers_mode")
    return {
        "id": price.id,
        "object": "plan",
        "amount": shown["unit_amount"],
        "amount_decimal": shown["unit_amount_decimal"],
        "billing_scheme": shown["billing_scheme"],
        "transform_usage": shown["transform_quantity"],
        **price.cycle.to_json(),
        **{name: shown[name] for name in names},
    }


def phase_terms_of(subscription: Subscription) -> JsonObject:
    """Return the terms of a subscription as a phase has them."""
    terms = {name: value for name, value in subscription.terms.items() if value is not None}
    settings = dict(cast("JsonObject", terms.get("invoice_settings") or {}))
    if subscription.days_until_due is not None:
        settings["days_until_due"] = subscription.days_until_due
    own: JsonObject = {
        "automatic_tax": {"enabled": subscription.automatic_tax, "liability": subscription.tax_liability},
        "collection_method": subscription.collection_method,
        "default_payment_method": subscription.default_payment_method,
        "description": subscription.description,
        "invoice_settings": settings or None,
    }
    return terms | {name: value for name, value in own.items() if value is not None}


def apply_phase_terms(subscription: Subscription, terms: JsonObject) -> None:
    """Replace the terms of a subscription by those of a phase."""
    tax = cast("JsonObject", terms.get("automatic_tax") or {})
    settings = dict(cast("JsonObject", terms.get("invoice_settings") or {}))
    subscription.automatic_tax = tax.get("enabled") is True
    subscription.tax_liability = cast("JsonObject | None", tax.get("liability"))
    subscription.collection_method = str(terms.get("collection_method") or "charge_automatically")
    subscription.days_until_due = cast("int | None", settings.pop("days_until_due", None))
    subscription.default_payment_method = cast("str | None", terms.get("default_payment_method"))
    subscription.description = cast("str | None", terms.get("description"))
    subscription.terms = {
        name: value
        for name in SUBSCRIPTION_TERMS
        if (value := settings if name == "invoice_settings" else terms.get(name))
    }


def read_subscription_terms(subscription: Subscription, params: Params) -> None:
    """Apply the terms of a call; parts of ``invoice_settings`` are merged."""
    given = read_terms(params, SUBSCRIPTION_TERMS)
    settings = given.get("invoice_settings")
    if settings is not None:
        known = cast("JsonObject", subscription.terms.get("invoice_settings") or {})
        given["invoice_settings"] = {**known, **cast("JsonObject", settings)}
    subscription.terms = {**subscription.terms, **given}
    tax = params.hash("automatic_tax")
    liability = None if tax is None else tax.hash("liability")
    if tax is not None:
        tax.only("enabled liability")
        subscription.tax_liability = None if liability is None else read_hash(liability, ACCOUNT)
