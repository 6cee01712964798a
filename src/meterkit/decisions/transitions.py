"""State transitions: the active terms of a customer, and their changes by the clock or a command. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.periods import from_ms, iso
from meterkit.decisions.subscription import (
    ENDED,
    NEVER_MS,
    OWING,
    access_term_of,
    next_reminder_ms,
    parse_bought,
    reminders_due,
    without_defaults,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Dunning
    from meterkit.catalog.models import Bought
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import Access, Status, SubscriptionState

BY_CLOCK: Final = "clock"
"""The cause of a change that the clock alone makes."""
BY_PLANS_FILE: Final = "plans_file"
"""Cause of a change by another plans file."""
NO_ADDONS: Final = "no add-ons"
"""Words of the ledger for a planned change that leaves none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsInForce:
    """The active terms of a customer at an instant; reported terms are compared with them.

    Attributes:
        plan: the key of the plan.
        status: of the subscription; None: there is none.
        access: what the customer may do.
        seats: that the subscription pays for.
        addons: those in force beside the plan.
        subscription: its id.
        cancel_at_ms: when it ends, while that is ahead.
        pending_plan, pending_seats, pending_addons, pending_at_ms: what is to change in it, while that is
            ahead; or the plan that was requested, and when, while Stripe has not confirmed it.
        missing_plan: the key of the plan if the plans file lacks it; None: the file has it.
        mrr: what the subscription brings in a month (millionths of the currency's smallest unit).
        currency: of ``mrr``; empty: it brings nothing.
        paid_plan: the plan that ``mrr`` is for, while another one is active: access is restricted, or it was
            set by hand; empty: ``plan``.
        reminded: how many reminders of an unpaid invoice are due by then.
        at_ms: the instant.
        since_ms: when access became what it is; 0: not known.
        turn_ms: when something changes by the clock.
    """

    plan: str
    status: Status | None = None
    access: Access = "full"
    seats: int = 0
    addons: Bought = ()
    subscription: str | None = None
    cancel_at_ms: int | None = None
    pending_plan: str | None = None
    pending_seats: int | None = None
    pending_addons: Bought | None = None
    pending_at_ms: int | None = None
    missing_plan: str | None = None
    mrr: int = 0
    currency: str = ""
    paid_plan: str = ""
    reminded: int = 0
    at_ms: int = field(compare=False)
    since_ms: int = field(default=0, compare=False)
    turn_ms: int = field(default=NEVER_MS, compare=False)

    @classmethod
    def of(
        cls, state: CustomerState, catalog: Catalog, at_ms: int, before: TermsInForce | None = None
    ) -> TermsInForce:
        """Terms of a state at an instant; unchanged access keeps the beginning that it had ``before``."""
        found, subscription = effective_plan(state, catalog, at_ms), state.subscription
        since_ms = 0 if before is None else before.since_ms if before.access == found.access else at_ms
        now = cls(
            plan=found.plan.key,
            status=found.status,
            access=found.access,
            addons=found.plan.bought,
            missing_plan=found.missing_plan,
            at_ms=at_ms,
            since_ms=since_ms,
            turn_ms=found.valid_until_ms,
        )
        if subscription is None:
            return now
        now = replace(now, subscription=subscription.id, seats=subscription.seats_at(at_ms))
        if mrr := subscription.mrr_at(at_ms):
            paid_plan = subscription.plan_at(at_ms) or ""
            paid_plan = "" if paid_plan == now.plan else paid_plan
            now = replace(now, mrr=mrr, currency=subscription.currency, paid_plan=paid_plan)
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
            pending_addons=subscription.pending_addons,
            pending_at_ms=subscription.pending_at_ms,
        )

    def dump(self) -> str:
        """As JSON, defaults left out."""
        return json.dumps(without_defaults(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def parse(cls, data: str | bytes) -> TermsInForce | None:
        """Inverse of :meth:`dump`; None for an empty text. Ignores fields of a newer release."""
        if not data:
            return None
        known: dict[str, Any] = json.loads(data)
        known |= {name: parse_bought(known[name]) for name in known.keys() & {"addons", "pending_addons"}}
        return cls(**{name: value for name, value in known.items() if name in cls.__slots__})

    @property
    def changed_addons(self) -> Bought | None:
        """The add-ons after the scheduled change; None: it leaves them as they are."""
        return None if self.pending_addons == self.addons else self.pending_addons


class Transition(NamedTuple):
    """One transition: the terms before, the terms from an instant on, and the cause."""

    before: TermsInForce
    after: TermsInForce
    cause: str


def find_transitions(
    known: TermsInForce | None, state: CustomerState, catalog: Catalog, now_ms: int
) -> tuple[Sequence[Transition], TermsInForce]:
    """Changes since the last report, though the state is the same; and the active terms now.

    The steps are those of the clock, each at its own instant, however late they are found. Where the
    plans file says something else by now than it did, all is one step.
    """
    if known is None:
        return (), TermsInForce.of(state, catalog, now_ms)
    current = TermsInForce.of(state, catalog, known.at_ms, known)
    if current != known:
        after = TermsInForce.of(state, catalog, max(now_ms, known.at_ms), known)
        return ((Transition(known, after, BY_PLANS_FILE),) if after != known else ()), after
    steps: list[Transition] = []
    while current.turn_ms <= now_ms:
        after = TermsInForce.of(state, catalog, current.turn_ms, current)
        if after != current:
            steps.append(Transition(current, after, BY_CLOCK))
        current = after
    return steps, current


Kind = Literal[
    "plan",
    "status",
    "access",
    "seats",
    "addons",
    "mrr",
    "subscription",
    "cancellation",
    "scheduled",
    "link",
    "overrides",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionEntry:
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
class StateNotice:
    """An event for handlers of a kind; ``data`` has an ``id`` that is the same at each repeat."""

    kind: str
    data: Mapping[str, Any]


def transition_entries(step: Transition) -> Iterator[TransitionEntry]:
    """Ledger entries of a transition."""
    for kind, words in TERM_TEXTS.items():
        before, after = words(step.before), words(step.after)
        if before != after:
            yield TransitionEntry(
                kind=kind, at_ms=step.after.at_ms, before=before, after=after, cause=step.cause
            )


def manual_entries(
    before: CustomerState, after: CustomerState, at_ms: int, cause: str
) -> Iterator[TransitionEntry]:
    """Ledger entries of changes that are no transition: the link to Stripe, and overrides."""
    changed: dict[Kind, tuple[str, str]] = {
        "link": (before.stripe_customer or "", after.stripe_customer or ""),
        "overrides": (_overrides(before), _overrides(after)),
    }
    for kind, (old, new) in changed.items():
        if old != new:
            yield TransitionEntry(kind=kind, at_ms=at_ms, before=old, after=new, cause=cause)


def notices_of(customer: str, step: Transition) -> Iterator[StateNotice]:
    """The events of a step."""
    before, after = step.before, step.after
    common = {"at_ms": after.at_ms, "cause": step.cause, "plan": after.plan}
    was, now = _subscription_fields(before), _subscription_fields(after)
    # Of a customer who never had a subscription there is none that could change.
    if was != now and (before.status or after.status):
        data = {
            **common,
            **now,
            "plan_before": before.plan,
            "status_before": before.status,
            "seats_before": before.seats,
            "addons_before": dict(before.addons),
        }
        yield _new_notice("subscription.changed", customer, data)
    if before.access != after.access:
        data = {
            **common,
            "access": after.access,
            "access_before": before.access,
            "status": after.status,
        }
        yield _new_notice("access.changed", customer, data)


def reminders_of(
    customer: str, step: Transition, subscription: SubscriptionState | None, dunning: Dunning
) -> Iterator[StateNotice]:
    """Events at the end of each span of ``dunning.remind`` while the invoice is unpaid.

    If several spans are over at once, as after a webhook that came days late, only the last one is sent.

    Args:
        customer: the app's own id.
        step: the transition.
        subscription: the customer's, from which the step follows.
        dunning: the policy.
    """
    before, after = step.before, step.after
    known = before.reminded if before.subscription == after.subscription else 0
    if subscription is None or after.reminded <= known:
        return
    failed_at_ms = subscription.failed_since_ms()
    standing = access_term_of(
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
    yield _new_notice("dunning.reminder", customer, data, of=(subscription.id, failed_at_ms, after_ms))


def _new_notice(kind: str, customer: str, data: dict[str, Any], of: object = None) -> StateNotice:
    """Notice with an id derived from its content only."""
    content = json.dumps([kind, customer, data if of is None else of], sort_keys=True)
    return StateNotice(kind=kind, data={"id": blake2b(content.encode(), digest_size=16).hexdigest(), **data})


def _subscription_fields(found: TermsInForce) -> dict[str, Any]:
    names = ("plan", "status", "seats", "subscription", "cancel_at_ms")
    pending = ("pending_plan", "pending_seats", "pending_at_ms")
    changed = found.changed_addons
    return {
        **{name: value for name, value in asdict(found).items() if name in {*names, *pending}},
        "addons": dict(found.addons),
        "pending_addons": None if changed is None else dict(changed),
    }


def _overrides(state: CustomerState) -> str:
    return json.dumps(state.overrides, sort_keys=True) if state.overrides else ""


def _scheduled(found: TermsInForce) -> str:
    if found.pending_at_ms is None:
        return ""
    seats, addons = None if found.pending_seats is None else f"{found.pending_seats} seats", None
    if found.changed_addons is not None:
        addons = addons_text(found.changed_addons) or NO_ADDONS
    extras = " and ".join(filter(None, (seats, addons)))
    what = " with ".join(filter(None, (found.pending_plan, extras)))
    return f"{what} from {_instant(found.pending_at_ms)}"


def addons_text(bought: Iterable[tuple[str, int]]) -> str:
    """Add-ons in words, as the ledger has them: ``2 words, 1 backups``."""
    return ", ".join(f"{quantity} {name}" for name, quantity in bought)


def parse_addons(text: str) -> Bought:
    """Inverse of :func:`addons_text`."""
    parts = (part.partition(" ") for part in text.split(", ") if part)
    return tuple((name, int(quantity)) for quantity, _, name in parts)


def parse_mrr(text: str) -> tuple[int, str, str]:
    """Amount, currency and paid plan in the words of an ``mrr`` entry."""
    amount, currency, plan = f"{text}  ".split(" ")[:3]
    return int(amount or 0), currency, plan


def _instant(at_ms: int | None) -> str:
    return "" if at_ms is None else iso(from_ms(at_ms))


TERM_TEXTS: Final[Mapping[Kind, Callable[[TermsInForce], str]]] = {
    "subscription": lambda found: found.subscription or "",
    "status": lambda found: found.status or "",
    "plan": lambda found: found.plan,
    "seats": lambda found: str(found.seats or ""),
    "addons": lambda found: addons_text(found.addons),
    "access": lambda found: found.access,
    "mrr": lambda found: f"{found.mrr} {found.currency} {found.paid_plan}".rstrip() if found.mrr else "",
    "cancellation": lambda found: _instant(found.cancel_at_ms),
    "scheduled": _scheduled,
}
"""By kind of ledger entry, the words for active terms."""
