"""One customer, as it is shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.in_force import follow
from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.decisions.subscription import Access, Status
    from meterkit.store.state_changes import Found

__all__ = ["Customer", "customer_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """What is known of a customer beyond what it used.

    Attributes:
        plan: the key of the plan in force.
        missing_plan: the plan that should be in force and that the plans file does not have, so that the
            default plan stands in for it; None where there is no such thing.
        status: of the subscription, by the clock, or as it was set by hand; None: there is none.
        access: what the customer may do.
        access_since: when that became so (UTC); None: not known, or since ever.
        subscription: its id at Stripe; None: there is none.
        seats: that it pays for, in all; 0: it has no seat price.
        trial_end: first instant after its trial (UTC), while that is ahead; else None.
        cancel_at: when it ends (UTC); None: no end is known.
        pending_plan, pending_seats, pending_at: what is scheduled to change, and when (UTC); None: nothing.
        stripe_customer: the linked Stripe customer, or None.
        overrides: meter to what the customer gets differently.
        feature_overrides: feature to whether the customer has it, whatever the plan says.
        override_ends: when an override ends (UTC), by the meter, or by ``feature NAME``; those without an end
            are left out.
    """

    customer: str
    plan: str
    missing_plan: str | None
    status: Status | None
    access: Access
    access_since: datetime | None
    subscription: str | None
    seats: int
    trial_end: datetime | None
    cancel_at: datetime | None
    pending_plan: str | None
    pending_seats: int | None
    pending_at: datetime | None
    stripe_customer: str | None
    overrides: Mapping[str, Mapping[str, object]]
    feature_overrides: Mapping[str, bool]
    override_ends: Mapping[str, datetime]


def customer_of(customer: str, found: Found, catalog: Catalog, now_ms: int) -> Customer:
    """What is stored of a customer, as it is to be shown at an instant."""
    state = found.state
    own = overrides_at(state.overrides, now_ms)
    _, force = follow(found.force, state, catalog, now_ms)
    subscription = state.subscription
    trial_end_ms = None if subscription is None else subscription.trial_end_ms
    is_missing = state.plan is not None and state.plan not in catalog.plans
    return Customer(
        customer=customer,
        plan=force.plan,
        missing_plan=state.plan if is_missing else force.missing_plan,
        status=force.status,
        access=force.access,
        access_since=_instant(force.since_ms),
        subscription=force.subscription,
        seats=force.seats,
        trial_end=_instant(trial_end_ms) if force.status == "trialing" else None,
        cancel_at=_instant(force.cancel_at_ms),
        pending_plan=force.pending_plan,
        pending_seats=force.pending_seats,
        pending_at=_instant(force.pending_at_ms),
        stripe_customer=state.stripe_customer,
        overrides=own.meters,
        feature_overrides=own.features,
        override_ends={name: from_ms(until_ms) for name, until_ms in own.ends.items()},
    )


def _instant(at_ms: int | None) -> datetime | None:
    return from_ms(at_ms) if at_ms else None
