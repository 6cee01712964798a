"""A customer's stored state, and the plan, access and period that follow from it at an instant. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog import override
from meterkit.decisions.decision import Decision
from meterkit.decisions.keys import FORMAT
from meterkit.decisions.periods import Bounds, bounds_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog, Entitlement, Plan, Route
    from meterkit.decisions.decision import Reason

__all__ = [
    "NEVER_MS",
    "NOBODY",
    "NO_STATE",
    "Access",
    "CustomerState",
    "EffectivePlan",
    "Status",
    "bounds_of",
    "effective_plan",
    "entitlements_of",
    "holding_only",
    "refusal_of",
    "refusal_without",
]

Status = Literal[
    "active",
    "trialing",
    "past_due",
    "unpaid",
    "paused",
    "incomplete",
    "incomplete_expired",
    "canceled",
]
Access = Literal["full", "grace", "restricted", "suspended"]

NO_STATE: Final = f"{FORMAT}:0"
"""The rev of a customer without a state."""

NEVER_MS: Final = 9_000_000_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerState:
    """What is known of a customer beyond what it used.

    Attributes:
        plan: the plan somebody set, or None for the default plan.
        status: what Stripe says of the subscription, or None where there is none.
        status_since_ms: when the status began.
        stripe_customer: the linked Stripe customer, or None.
        anchor_ms: the billing anchor of the subscription, or None for calendar months.
        overrides: meter to an entitlement in the notation of the plans file.
        granted: whether grants were ever added.
        minutes_taken_ms: minutes that the Stripe customer's intents of a customer before this one have.
    """

    plan: str | None = None
    status: Status | None = None
    status_since_ms: int = 0
    stripe_customer: str | None = None
    anchor_ms: int | None = None
    overrides: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    granted: bool = False
    minutes_taken_ms: tuple[int, ...] = ()

    def dump(self) -> str:
        """The state as JSON, defaults left out."""
        kept = {name: value for name, value in asdict(self).items() if value != getattr(NOBODY, name)}
        return json.dumps(kept, separators=(",", ":"), sort_keys=True)

    @classmethod
    def parse(cls, data: str | bytes) -> CustomerState:
        """The inverse of :meth:`dump`; empty text is the state of a customer without one."""
        if not data:
            return NOBODY
        known: dict[str, Any] = json.loads(data)
        # A field of a newer release says nothing to this one.
        found = cls(**{name: value for name, value in known.items() if name in cls.__slots__})
        return replace(found, minutes_taken_ms=tuple(found.minutes_taken_ms))


NOBODY: Final = CustomerState()
"""The state of a customer who has none stored: the default plan, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePlan:
    """What follows from a state and a catalog at an instant.

    Attributes:
        plan: the plan in force.
        access: what the customer may do.
        bounds: this period and the next.
        valid_until_ms: until when all this holds if the state does not change.
    """

    plan: Plan
    access: Access
    bounds: Bounds
    valid_until_ms: int


def entitlements_of(
    state: CustomerState, effective: EffectivePlan, catalog: Catalog
) -> Mapping[str, Entitlement]:
    """What a customer gets of each meter: the plan's, with the customer's own laid over unless restricted."""
    if state.overrides and effective.access != "restricted":
        return override(catalog, effective.plan, state.overrides)
    return effective.plan.entitlements


def holding_only(
    entitlements: Mapping[str, Entitlement], meters: Iterable[str], concurrency: tuple[str, ...]
) -> Mapping[str, Entitlement]:
    """The same entitlements, but of these meters only what is held: no rates, concurrency of some."""
    kept = dict(entitlements)
    for name in meters:
        given = entitlements[name]
        kept[name] = replace(given, rates=(), concurrency=given.concurrency if name in concurrency else None)
    return kept


def effective_plan(state: CustomerState, catalog: Catalog, now_ms: int) -> EffectivePlan:
    """The plan, access and period of a customer at an instant.

    ``past_due`` is *grace*, then *restricted* to the dunning plan, then *suspended*, each counted from when
    the status began. ``unpaid`` is suspended; ``paused`` and ``incomplete`` are restricted; a subscription
    that has ended leaves the default plan. A plan that the catalog no longer has counts as the default plan.
    """
    default = catalog.plans[catalog.default_plan]
    plan = catalog.plans.get(state.plan, default) if state.plan is not None else default
    restricted = catalog.plans[catalog.dunning.restrict_to]
    access: Access = "full"
    valid_until_ms = NEVER_MS
    if state.status == "past_due":
        grace_end = state.status_since_ms + catalog.dunning.grace_ms
        suspension = state.status_since_ms + catalog.dunning.suspend_after_ms
        if now_ms < min(grace_end, suspension):
            access, valid_until_ms = "grace", min(grace_end, suspension)
        elif now_ms < suspension:
            access, plan, valid_until_ms = "restricted", restricted, suspension
        else:
            access = "suspended"
    elif state.status == "unpaid":
        access = "suspended"
    elif state.status in {"paused", "incomplete"}:
        access, plan = "restricted", restricted
    elif state.status in {"canceled", "incomplete_expired"}:
        plan = default
    bounds = bounds_of(state, plan, now_ms)
    return EffectivePlan(plan=plan, access=access, bounds=bounds, valid_until_ms=valid_until_ms)


def refusal_of(customer: str, effective: EffectivePlan, route: Route | None) -> Decision | None:
    """The refusal that follows from a customer's state alone; ``route`` is None off the request."""
    if route is not None and route.always:
        return None
    return refusal_without(customer, effective, None if route is None else route.feature)


def refusal_without(customer: str, effective: EffectivePlan, feature: str | None) -> Decision | None:
    """The refusal of a customer who is suspended, or whose plan does not have the feature."""
    reason: Reason | None = None
    if effective.access == "suspended":
        reason = "suspended"
    elif feature is not None and feature not in effective.plan.features:
        reason = "feature"
    if reason is None:
        return None
    return Decision(customer=customer, plan=effective.plan.key, allowed=False, reason=reason)


def bounds_of(state: CustomerState, plan: Plan, at_ms: int) -> Bounds:
    """The period that an instant lies in, and the next one, by a customer's plan and subscription of now."""
    interval = plan.price.interval if plan.price.included_per == "interval" else "month"
    return bounds_at(at_ms, anchor_ms=state.anchor_ms, interval=interval)
