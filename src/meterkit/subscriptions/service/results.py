"""Results of ``kit.subscriptions``, and their reading from the stored state. Pure."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - as below
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - Pydantic reads the annotations for the billing routes
from typing import TYPE_CHECKING, Any, Literal

from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import (
    ENDED,
    Access,
    Status,
)
from meterkit.decisions.subscription_periods import shown_period
from meterkit.subscriptions.change_rules import OverLimit  # noqa: TC001 - as above
from meterkit.subscriptions.proration_estimate import Proration  # noqa: TC001 - as above

if TYPE_CHECKING:
    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChange:
    """A change of a subscription that is scheduled, or accepted and not confirmed yet.

    Attributes:
        plan: the key of the next plan; None: no plan of the plans file.
        seats: total seats then; 0: that plan sells none.
        addons: quantity of each add-on then, by key.
        effective_at: when (UTC); of an unconfirmed change, when it was requested.
    """

    plan: str | None
    seats: int
    addons: Mapping[str, int]
    effective_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A customer's subscription as last fetched from Stripe, at the current time.

    Attributes:
        id: at Stripe, ``sub_…``.
        customer: the app's own id.
        plan: the key of its plan; None: no plan of the plans file has its price.
        status: as at Stripe; scheduled changes apply at their second.
        access: the customer's access.
        seats: those that the base price covers and those bought, by the quantities at Stripe; 0: the plan
            sells no seats. If they are unlimited, those of an item that is still paid for. The gauge has
            the seats in use.
        addons: quantity of each add-on, by key, as at Stripe.
        current_period_start: first instant of the billing period (UTC).
        current_period_end: first instant after it.
        cancel_at_period_end: whether it ends with the period.
        cancel_at: when it ends; None: it continues.
        trial_end: first instant after the trial; None: there was none.
        pending_change: the scheduled change; None: there is none.
    """

    id: str
    customer: str
    plan: str | None
    status: Status
    access: Access
    seats: int
    addons: Mapping[str, int]
    current_period_start: datetime
    current_period_end: datetime
    cancel_at_period_end: bool
    cancel_at: datetime | None
    trial_end: datetime | None
    pending_change: PendingChange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSubscription:
    """A subscription that was just made.

    Attributes:
        client_secret: the customer's browser confirms the first payment with it, or saves a payment method
            for later ones; None: there is nothing to confirm. Give it to that customer only.
        missing: ``payment_method``: the plan is active once one is saved, as with the client secret of a
            SetupIntent. None: nothing, or the first payment, while it is ``incomplete``.
    """

    subscription: Subscription
    client_secret: str | None
    missing: Literal["payment_method"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionAfter:
    """A subscription after a change."""

    subscription: Subscription


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """A subscription after a change, and the cost of the change for the rest of the period.

    Attributes:
        client_secret: None: it is done. Otherwise nothing has changed: the customer's browser authenticates
            the card (3-D Secure) with this secret of a SetupIntent, then the app asks for the change again.
            Give it to this customer only.
        confirmed: False: Stripe has not confirmed the change within 10 s. It is retried in the background;
            the event ``subscription.changed`` reports the outcome, and until then it is the
            ``pending_change``.
        ended_addons: those that the new plan does not list, with their quantities: they end with the change.
    """

    subscription: Subscription
    proration: Proration
    client_secret: str | None = None
    confirmed: bool = True
    ended_addons: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The cost of a change, the gauges above its limits, and the add-ons that end with it."""

    proration: Proration
    over_limit: tuple[OverLimit, ...]
    ended_addons: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A Stripe page for a new subscription: redirect the customer to ``url`` within a day."""

    id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """A Stripe page for managing payments: redirect the customer to ``url`` at once, it expires soon."""

    id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page to redirect the customer to."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice at Stripe; money in minor units, times in UTC.

    Attributes:
        id: ``in_…``.
        number: the number that the customer sees; None: it is a draft.
        status: ``draft``, ``open``, ``paid``, ``uncollectible`` or ``void``.
        currency: of the amounts.
        total_cents: of all lines, after taxes and discounts; below 0: a credit.
        amount_due_cents: the part of the total to pay.
        amount_paid_cents: the paid part of the total.
        created_at: when it was created.
        period_start: first instant of its period.
        period_end: first instant after its period.
        url: page where the customer sees and pays it; None: it is a draft.
        pdf_url: its PDF file.
    """

    id: str
    number: str | None
    status: str
    currency: str
    total_cents: int
    amount_due_cents: int
    amount_paid_cents: int
    created_at: datetime
    period_start: datetime
    period_end: datetime
    url: str | None
    pdf_url: str | None


def subscription_of(
    customer: str, state: CustomerState, catalog: Catalog, now_ms: int
) -> Subscription | None:
    """The subscription of a customer at an instant; None if none is known."""
    known = state.subscription
    if known is None:
        return None
    status = known.status_at(now_ms)
    start_ms, end_ms = shown_period(known, catalog.find_plan(known.plan_at(now_ms)), now_ms)
    cancel_at_ms = None if status in ENDED else known.cancel_at_ms
    return Subscription(
        id=known.id,
        customer=customer,
        plan=known.plan_at(now_ms),
        status=status,
        access=effective_plan(state, catalog, now_ms).access,
        seats=known.seats_at(now_ms),
        addons=dict(known.addons_at(now_ms)),
        current_period_start=from_ms(start_ms),
        current_period_end=from_ms(end_ms),
        cancel_at_period_end=known.cancel_at_period_end,
        cancel_at=None if cancel_at_ms is None else from_ms(cancel_at_ms),
        trial_end=None if known.trial_end_ms is None else from_ms(known.trial_end_ms),
        pending_change=_pending_change(state, known, catalog, now_ms),
    )


def _pending_change(
    state: CustomerState, known: SubscriptionState, catalog: Catalog, now_ms: int
) -> PendingChange | None:
    if state.asked_plan not in {None, known.plan} and known.status_at(now_ms) not in ENDED:
        plan = catalog.find_plan(state.asked_plan)
        return PendingChange(
            plan=state.asked_plan,
            seats=known.seats_at(now_ms),
            addons={
                addon: quantity
                for addon, quantity in known.addons_at(now_ms)
                if plan is not None and addon in plan.addons
            },
            effective_at=from_ms(state.asked_ms),
        )
    at_ms = known.pending_at_ms
    if at_ms is None or at_ms <= now_ms or known.status_at(now_ms) in ENDED:
        return None
    return PendingChange(
        plan=known.pending_plan or known.plan,
        seats=known.seats if known.pending_seats is None else known.pending_seats,
        addons=dict(known.addons if known.pending_addons is None else known.pending_addons),
        effective_at=from_ms(at_ms),
    )


def invoice_of(found: Mapping[str, Any]) -> Invoice:
    """An invoice as Stripe shows it."""
    return Invoice(
        id=found["id"],
        number=found.get("number"),
        status=found.get("status") or "draft",
        currency=found["currency"],
        total_cents=found["total"],
        amount_due_cents=found["amount_due"],
        amount_paid_cents=found["amount_paid"],
        created_at=from_ms(1000 * found["created"]),
        period_start=from_ms(1000 * found["period_start"]),
        period_end=from_ms(1000 * found["period_end"]),
        url=found.get("hosted_invoice_url"),
        pdf_url=found.get("invoice_pdf"),
    )
