"""What is in force of a customer, and how the clock changes it, instant by instant. Pure."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.dunning import OWING, next_reminder_ms, reminders_due
from meterkit.decisions.subscription import ENDED, NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import Access, Status

__all__ = ["BY_CLOCK", "BY_PLANS_FILE", "InForce", "Step", "follow"]

BY_CLOCK: Final = "clock"
"""The cause of what binds at its second, with nobody doing anything."""
BY_PLANS_FILE: Final = "plans_file"
"""The cause of what another plans file brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What is in force of a customer at an instant; what was told of it is compared with it.

    Attributes:
        plan: the key of the plan.
        status: of the subscription; None: there is none.
        access: what the customer may do.
        seats: that the subscription pays for.
        subscription: its id.
        cancel_at_ms: when it ends, while that is ahead.
        pending_plan, pending_seats, pending_at_ms: what is to change in it, while that is ahead; or the plan
            that was asked for, and when, while Stripe has not confirmed it.
        missing_plan: the plan that the plans file should have, and does not; None: there is no such thing.
        mrr: what the subscription brings in a month (millionths of the currency's smallest unit).
        currency: of ``mrr``; empty: it brings nothing.
        reminded: how many reminders of an unpaid invoice are due by then.
        at_ms: the instant.
        since_ms: when access became what it is; 0: not known.
        turn_ms: when something changes by the clock.
    """

    plan: str
    status: Status | None = None
    access: Access = "full"
    seats: int = 0
    subscription: str | None = None
    cancel_at_ms: int | None = None
    pending_plan: str | None = None
    pending_seats: int | None = None
    pending_at_ms: int | None = None
    missing_plan: str | None = None
    mrr: int = 0
    currency: str = ""
    reminded: int = 0
    at_ms: int = field(compare=False)
    since_ms: int = field(default=0, compare=False)
    turn_ms: int = field(default=NEVER_MS, compare=False)

    @classmethod
    def of(cls, state: CustomerState, catalog: Catalog, at_ms: int, before: InForce | None = None) -> InForce:
        """What follows from a state; access that is as it was ``before`` keeps its beginning."""
        found, subscription = effective_plan(state, catalog, at_ms), state.subscription
        since_ms = 0 if before is None else before.since_ms if before.access == found.access else at_ms
        now = cls(
            plan=found.plan.key,
            status=found.status,
            access=found.access,
            missing_plan=found.missing_plan,
            at_ms=at_ms,
            since_ms=since_ms,
            turn_ms=found.valid_until_ms,
        )
        if subscription is None:
            return now
        now = replace(now, subscription=subscription.id, seats=subscription.seats_at(at_ms))
        if mrr := subscription.mrr_at(at_ms):
            now = replace(now, mrr=mrr, currency=subscription.currency)
        if found.status in OWING and subscription.status in OWING:
            failed_at_ms = subscription.failed_since_ms()
            next_ms = next_reminder_ms(failed_at_ms, catalog.dunning, at_ms)
            reminded = reminders_due(failed_at_ms, catalog.dunning, at_ms)
            now = replace(now, reminded=reminded, turn_ms=min(now.turn_ms, next_ms))
        if subscription.status_at(at_ms) in ENDED:
            return now
        now = replace(now, cancel_at_ms=subscription.cancel_at_ms)
        if state.asked_plan not in {None, subscription.plan}:
            return replace(now, pending_plan=state.asked_plan, pending_at_ms=state.asked_ms)
        if subscription.pending_at_ms is None or subscription.pending_at_ms <= at_ms:
            return now
        return replace(
            now,
            pending_plan=subscription.pending_plan,
            pending_seats=subscription.pending_seats,
            pending_at_ms=subscription.pending_at_ms,
        )

    def dump(self) -> str:
        """As JSON, defaults left out."""
        defaults = {known.name: known.default for known in fields(self)}
        kept = {
            name: value
            for name, value in asdict(self).items()
            if defaults[name] is MISSING or value != defaults[name]
        }
        return json.dumps(kept, separators=(",", ":"), sort_keys=True)

    @classmethod
    def parse(cls, data: str | bytes) -> InForce | None:
        """The inverse of :meth:`dump`; None of empty text. A field of a newer release says nothing here."""
        if not data:
            return None
        known: dict[str, Any] = json.loads(data)
        return cls(**{name: value for name, value in known.items() if name in cls.__slots__})


class Step(NamedTuple):
    """What was in force, what is from an instant on, and why."""

    before: InForce
    after: InForce
    cause: str


def follow(
    known: InForce | None, state: CustomerState, catalog: Catalog, now_ms: int
) -> tuple[Sequence[Step], InForce]:
    """What has changed since it was told last, though the state is the same; and what is in force now.

    The steps are those of the clock, each at its own instant, whenever somebody comes to look. Where the
    plans file says something else by now than it did, all is one step.
    """
    if known is None:
        return (), InForce.of(state, catalog, now_ms)
    current = InForce.of(state, catalog, known.at_ms, known)
    if current != known:
        after = InForce.of(state, catalog, max(now_ms, known.at_ms), known)
        return ((Step(known, after, BY_PLANS_FILE),) if after != known else ()), after
    steps: list[Step] = []
    while current.turn_ms <= now_ms:
        after = InForce.of(state, catalog, current.turn_ms, current)
        if after != current:
            steps.append(Step(current, after, BY_CLOCK))
        current = after
    return steps, current
