"""Plan history: the plans of a customer and since when, from its state and the clock alone. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import DAY_MS
from meterkit.decisions.allowance import PlanChange
from meterkit.decisions.customer_state import plan_named
from meterkit.decisions.subscription import ENDED, NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState

_KEPT_MS: Final = 400 * DAY_MS
_KEPT_MAX: Final = 64
UNKNOWN_PLAN: Final = ""
"""Stands for plans before the oldest change that is kept: it gives nothing."""


class PlanSpan(NamedTuple):
    """A plan, and since when a customer has it.

    Attributes:
        plan: its key.
        from_ms: the first instant; -NEVER_MS: not known.
        is_priced: whether Stripe charged the change to it by the second, as one within a subscription.
        used: units that were included by its end; see :class:`~meterkit.decisions.allowance.PlanChange`.
    """

    plan: str
    from_ms: int
    is_priced: bool
    used: tuple[tuple[str, int], ...] = ()


def plan_spans(state: CustomerState, catalog: Catalog, now_ms: int) -> list[PlanSpan]:
    """The plans of a customer up to an instant, the oldest first; restricted access changes none of them.

    Changes that are over are in the state. What its subscription has had scheduled binds at its millisecond,
    before anything stores it.
    """
    spans: list[PlanSpan] = []
    since_ms, is_priced = -NEVER_MS, False
    for plan, until_ms, was_priced, used in state.plan_changes:
        spans.append(PlanSpan(plan, since_ms, is_priced, used))
        since_ms, is_priced = until_ms, was_priced
    spans.append(PlanSpan(_plan_at(state, catalog, since_ms), since_ms, is_priced))
    for at_ms in _clock_changes(state.subscription, since_ms, now_ms):
        plan = _plan_at(state, catalog, at_ms)
        if plan != spans[-1].plan:
            spans.append(PlanSpan(plan, at_ms, _is_subscribed(state, at_ms)))
    return spans


def with_plan_changes(
    before: CustomerState, after: CustomerState, catalog: Catalog, at_ms: int
) -> CustomerState:
    """The state after a change, with the plans before it.

    A subscription ends at its own instant, whenever that is heard of. One that begins counts from now on: of
    those that are imported, nothing is known before.

    Args:
        before: the state until now.
        after: the state from now on.
        catalog: what is sold.
        at_ms: when the plan changed, as far as that is known.
    """
    at_ms = _ends_ms(before, after, at_ms)
    known = plan_spans(before, catalog, at_ms)
    spans = [span for span in known if span.from_ms < at_ms]
    changes = [
        PlanChange(span.plan, follower.from_ms, follower.is_priced, span.used)
        for span, follower in pairwise(spans)
    ]
    if spans[-1].plan != _plan_at(after, catalog, at_ms):
        is_same = _subscription_id(before) == _subscription_id(after) is not None
        is_priced = is_same and after.plan is None and _is_subscribed(after, at_ms)
        # Changes that are not earlier give way to this one, with what they were.
        is_priced = is_priced and all(span.is_priced for span in known[len(spans) :])
        changes.append(PlanChange(spans[-1].plan, at_ms, is_priced))
    kept = [change for change in changes if change.until_ms > at_ms - _KEPT_MS]
    if len(kept) > _KEPT_MAX:
        kept = kept[-_KEPT_MAX:]
        kept[0] = kept[0]._replace(plan=UNKNOWN_PLAN)
    return replace(after, plan_changes=tuple(kept))


def _ends_ms(before: CustomerState, after: CustomerState, at_ms: int) -> int:
    old, new = before.subscription, after.subscription
    has_ended = new is not None and new.status in ENDED and old is not None and old.id == new.id
    return min(at_ms, new.ends_ms()) if new is not None and has_ended else at_ms


def _subscription_id(state: CustomerState) -> str | None:
    """The id of the subscription that has begun and not ended."""
    found = state.subscription
    return found.id if found is not None and found.has_begun and found.status not in ENDED else None


def _is_subscribed(state: CustomerState, at_ms: int) -> bool:
    found = state.subscription
    return found is not None and found.has_begun_at(at_ms) and found.status_at(at_ms) not in ENDED


def _plan_at(state: CustomerState, catalog: Catalog, at_ms: int) -> str:
    """The plan that a state gives at an instant; while a trial is paused, what restricted access leaves."""
    subscription, status = state.subscription, state.status
    if status is None and subscription is not None:
        status = subscription.status_at(at_ms)
        if status == "paused":
            return catalog.dunning.restrict_to
    return plan_named(state, status, at_ms) or catalog.default_plan


def _clock_changes(subscription: SubscriptionState | None, since_ms: int, now_ms: int) -> Sequence[int]:
    """The instants within a span at which something of a subscription binds by the clock."""

    def turns() -> Iterator[int]:
        at_ms = since_ms
        while subscription is not None and (at_ms := subscription.next_turn_ms(at_ms)) <= now_ms:
            yield at_ms

    return tuple(turns())
