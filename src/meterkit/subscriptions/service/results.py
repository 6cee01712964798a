"""What the calls of ``kit.subscriptions`` give, and how it is read off what is known. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - Pydantic reads the annotations for the billing routes
from typing import TYPE_CHECKING, Any, Literal

from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.periods import bounds_at, from_ms
from meterkit.decisions.subscription import ENDED, Access, Status
from meterkit.subscriptions.change_rules import OverLimit  # noqa: TC001 - as above
from meterkit.subscriptions.proration import Proration  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChange:
    """A change of a subscription that is scheduled, or accepted and not confirmed yet.

    Attributes:
        plan: the key of the plan that it will have; None: no plan of the plans file.
        seats: that it will have in all; 0: that plan sells none.
        effective_at: when (UTC); for one that is not confirmed yet, when it was requested.
    """

    plan: str | None
    seats: int
    effective_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A customer's subscription, as it was when it was last fetched from Stripe, by the clock of now.

    Attributes:
        id: at Stripe, ``sub_…``.
        customer: the app's own id.
        plan: the key of the plan whose price it has; None: no plan of the plans file has it.
        status: Stripe's word; what is scheduled has bound at its second.
        access: what the customer may do.
        seats: that the base price covers and those that are bought, by the quantities at Stripe; 0: the plan
            sells no seats. Where they are unlimited, those of an item that is still paid for. The gauge has
            the seats in use.
        current_period_start: first instant of the period that is billed (UTC).
        current_period_end: first instant after it.
        cancel_at_period_end: whether it ends with the period.
        cancel_at: when it ends; None: it goes on.
        trial_end: first instant after the trial; None: there was none.
        pending_change: what is scheduled; None: nothing.
    """

    id: str
    customer: str
    plan: str | None
    status: Status
    access: Access
    seats: int
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
        client_secret: with which the customer's browser confirms the first payment, or saves a payment method
            for later ones; None: there is nothing to confirm. Give it to that customer only.
        missing: ``payment_method``: the plan is in force once one is saved, as with the client secret, which
            is a SetupIntent's. None: nothing, or the first payment, while it is ``incomplete``.
    """

    subscription: Subscription
    client_secret: str | None
    missing: Literal["payment_method"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionAfter:
    """A subscription after what was done to it."""

    subscription: Subscription


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """A subscription after a change, and what the change costs for the rest of the period.

    Attributes:
        client_secret: None: it is done. Else nothing has changed: with this secret of a SetupIntent the
            customer's browser authenticates the card (3-D Secure), and then the app asks for the change
            again. Give it to this customer only.
        confirmed: False: Stripe has not confirmed the change within 10 s. It is tried on in the background;
            the event ``subscription.changed`` tells the outcome, and until then it is the ``pending_change``.
    """

    subscription: Subscription
    proration: Proration
    client_secret: str | None = None
    confirmed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a change would cost, and which gauges would be filled further than it allows."""

    proration: Proration
    over_limit: tuple[OverLimit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A page at Stripe where a subscription is paid for: send the customer to ``url`` within a day."""

    id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """A page at Stripe where a customer manages payments: send them to ``url`` at once, it is soon void."""

    id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Where to send the customer."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice at Stripe; money in minor units, times in UTC.

    Attributes:
        id: ``in_…``.
        number: what the customer knows it by; None: it is a draft.
        status: ``draft``, ``open``, ``paid``, ``uncollectible`` or ``void``.
        currency: of the amounts.
        total_cents: of all lines, after taxes and discounts; below 0: a credit.
        amount_due_cents: of that, what is to be paid.
        amount_paid_cents: of that, what was.
        created_at: when it was made.
        period_start: of the period that it was made for.
        period_end: first instant after that.
        url: where the customer sees and pays it; None: it is a draft.
        pdf_url: the same as a file.
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
    """The subscription of a customer at an instant; None: nothing is known of one."""
    known = state.subscription
    if known is None:
        return None
    status = known.status_at(now_ms)
    start_ms, end_ms = _period_of(known, catalog, now_ms)
    cancel_at_ms = None if status in ENDED else known.cancel_at_ms
    return Subscription(
        id=known.id,
        customer=customer,
        plan=known.plan_at(now_ms),
        status=status,
        access=effective_plan(state, catalog, now_ms).access,
        seats=known.seats_at(now_ms),
        current_period_start=from_ms(start_ms),
        current_period_end=from_ms(end_ms),
        cancel_at_period_end=known.cancel_at_period_end,
        cancel_at=None if cancel_at_ms is None else from_ms(cancel_at_ms),
        trial_end=None if known.trial_end_ms is None else from_ms(known.trial_end_ms),
        pending_change=_pending_of(state, known, now_ms),
    )


def _period_of(known: SubscriptionState, catalog: Catalog, now_ms: int) -> tuple[int, int]:
    """The period that is billed; where its renewal is not known yet, by the anchor."""
    plan = catalog.plans.get(known.plan_at(now_ms) or "")
    if known.start_ms <= now_ms < known.end_ms or now_ms >= known.ends_ms() or plan is None:
        return known.start_ms, known.end_ms
    interval = known.interval_at(now_ms) or plan.price.interval
    bounds = bounds_at(now_ms, anchor_ms=known.anchor_ms, interval=interval)
    return bounds.start_ms, bounds.end_ms


def _pending_of(state: CustomerState, known: SubscriptionState, now_ms: int) -> PendingChange | None:
    if state.asked_plan not in {None, known.plan} and known.status_at(now_ms) not in ENDED:
        seats = known.seats_at(now_ms)
        return PendingChange(plan=state.asked_plan, seats=seats, effective_at=from_ms(state.asked_ms))
    at_ms = known.pending_at_ms
    if at_ms is None or at_ms <= now_ms or known.status_at(now_ms) in ENDED:
        return None
    seats = known.seats if known.pending_seats is None else known.pending_seats
    return PendingChange(plan=known.pending_plan or known.plan, seats=seats, effective_at=from_ms(at_ms))


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
