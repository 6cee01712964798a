"""Changes of a customer, as the ledger keeps them and as handlers are told of them. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from meterkit.decisions.dunning import standing_of
from meterkit.decisions.periods import from_ms, iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meterkit.catalog import Dunning
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.in_force import InForce, Step
    from meterkit.decisions.subscription import SubscriptionState

__all__ = ["KINDS", "Entry", "Kind", "Notice", "entries_of", "hand_entries", "notices_of", "reminders_of"]

Kind = Literal[
    "plan",
    "status",
    "access",
    "seats",
    "mrr",
    "subscription",
    "cancellation",
    "scheduled",
    "link",
    "overrides",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a customer's ledger.

    Attributes:
        kind: what has changed.
        at_ms: from when on it holds.
        before, after: in words; empty: there was, or is, none.
        cause: of the change.
    """

    kind: Kind
    at_ms: int
    before: str
    after: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What handlers of a kind are told; ``data`` has an ``id`` that is the same whenever it is told."""

    kind: str
    data: Mapping[str, Any]


def entries_of(step: Step) -> Iterator[Entry]:
    """What the ledger keeps of a step."""
    for kind, words in _WORDS.items():
        before, after = words(step.before), words(step.after)
        if before != after:
            yield Entry(kind=kind, at_ms=step.after.at_ms, before=before, after=after, cause=step.cause)


def hand_entries(before: CustomerState, after: CustomerState, at_ms: int, cause: str) -> Iterator[Entry]:
    """What the ledger keeps of a change of the state besides: the link to Stripe, and overrides."""
    said: dict[Kind, tuple[str, str]] = {
        "link": (before.stripe_customer or "", after.stripe_customer or ""),
        "overrides": (_overrides(before), _overrides(after)),
    }
    for kind, (old, new) in said.items():
        if old != new:
            yield Entry(kind=kind, at_ms=at_ms, before=old, after=new, cause=cause)


def notices_of(customer: str, step: Step) -> Iterator[Notice]:
    """What handlers are told of a step."""
    before, after = step.before, step.after
    common = {"at_ms": after.at_ms, "cause": step.cause, "plan": after.plan}
    was, now = _subscribed(before), _subscribed(after)
    # Of a customer who never had a subscription there is none that could change.
    if was != now and (before.status or after.status):
        data = {
            **common,
            **now,
            "plan_before": before.plan,
            "status_before": before.status,
            "seats_before": before.seats,
        }
        yield _named("subscription.changed", customer, data)
    if before.access != after.access:
        data = {**common, "access": after.access, "access_before": before.access}
        yield _named("access.changed", customer, data)


def reminders_of(
    customer: str, step: Step, subscription: SubscriptionState | None, dunning: Dunning
) -> Iterator[Notice]:
    """What handlers are told when a span of ``dunning.remind`` is over and the invoice is still unpaid.

    Where several spans are over at once, as after a webhook that came days late, the last one is told.

    Args:
        customer: the app's own id.
        step: what was in force and what is.
        subscription: the customer's, from which the step follows.
        dunning: the policy.
    """
    before, after = step.before, step.after
    known = before.reminded if before.subscription == after.subscription else 0
    if subscription is None or after.reminded <= known:
        return
    failed_at_ms = subscription.failed_since_ms()
    standing = standing_of(
        after.status,
        failures=subscription.failures,
        failed_at_ms=failed_at_ms,
        dunning=dunning,
        now_ms=after.at_ms,
    )
    after_ms = dunning.remind_ms[after.reminded - 1]
    data = {
        "at_ms": after.at_ms,
        "cause": step.cause,
        "plan": after.plan,
        "after_ms": after_ms,
        "failures": subscription.failures,
        "failed_at_ms": failed_at_ms,
        "access": after.access,
        "until_ms": standing.until_ms,
    }
    yield _named("dunning.reminder", customer, data, of=(subscription.id, failed_at_ms, after_ms))


def _named(kind: str, customer: str, data: dict[str, Any], of: object = None) -> Notice:
    """A notice with an id that is made of what has happened, and of nothing else."""
    told = json.dumps([kind, customer, data if of is None else of], sort_keys=True)
    return Notice(kind=kind, data={"id": blake2b(told.encode(), digest_size=16).hexdigest(), **data})


def _subscribed(found: InForce) -> dict[str, Any]:
    names = ("plan", "status", "seats", "subscription", "cancel_at_ms")
    pending = ("pending_plan", "pending_seats", "pending_at_ms")
    return {name: value for name, value in asdict(found).items() if name in {*names, *pending}}


def _overrides(state: CustomerState) -> str:
    return json.dumps(state.overrides, sort_keys=True) if state.overrides else ""


def _scheduled(found: InForce) -> str:
    if found.pending_at_ms is None:
        return ""
    seats = None if found.pending_seats is None else f"{found.pending_seats} seats"
    what = " with ".join(filter(None, (found.pending_plan, seats)))
    return f"{what} from {_instant(found.pending_at_ms)}"


def _instant(at_ms: int | None) -> str:
    return "" if at_ms is None else iso(from_ms(at_ms))


_WORDS: Final[Mapping[Kind, Callable[[InForce], str]]] = {
    "subscription": lambda found: found.subscription or "",
    "status": lambda found: found.status or "",
    "plan": lambda found: found.plan,
    "seats": lambda found: str(found.seats or ""),
    "access": lambda found: found.access,
    "mrr": lambda found: f"{found.mrr} {found.currency}" if found.mrr else "",
    "cancellation": lambda found: _instant(found.cancel_at_ms),
    "scheduled": _scheduled,
}
