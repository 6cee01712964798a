"""The plans that a customer had, and since when, as its terms say. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.terms.rows import (
    ADDONS,
    EVER_MS,
    NOTHING,
    PAUSED_PLAN,
    PLAN,
    PLAN_BY_HAND,
    STATUS_BY_HAND,
    SUBSCRIPTION,
    UNKNOWN_PLAN,
    USED,
    in_order,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog.models import Bought
    from meterkit.terms.rows import Row


class PlanSpan(NamedTuple):
    """A plan with its add-ons, and since when a customer has it.

    Attributes:
        plan: its key.
        from_ms: the first instant; :data:`EVER_MS`: not known.
        is_priced: whether Stripe charged the change to it by the second, as one within a subscription.
        used: units that were included by its end, of meters that only the next plan limits.
        bought: the add-ons.
        is_by_hand: whether the plan was set by hand.
        is_lost: whether the plan stands for one that has left the plans file.
    """

    plan: str
    from_ms: int
    is_priced: bool
    used: tuple[tuple[str, int], ...] = ()
    bought: Bought = ()
    is_by_hand: bool = False
    is_lost: bool = False


class _Span(NamedTuple):
    from_ms: int
    facts: Mapping[str, Any]
    used: tuple[tuple[str, int], ...] = ()


def plan_spans(
    terms: Iterable[Row], now_ms: int, default: str, start_of: Callable[[int], int] = int
) -> list[PlanSpan]:
    """The plans of a customer up to an instant, the oldest first.

    A plan set by hand counts for whole periods: those at whose end, or now, it is in force. If it is taken
    back before that, it leaves no trace.

    Args:
        terms: of the customer.
        now_ms: the instant.
        default: key of the default plan.
        start_of: first instant of the period of an instant; by default, the instant itself.
    """
    found: list[PlanSpan] = []
    spans = list(_with_facts_by_hand(_spans(terms, now_ms), start_of))
    for before, span in pairwise([spans[0], *spans]):
        facts, last = span.facts, before.facts
        plan, bought = _plan_of(facts, default)
        if found and (plan, bought) == (found[-1].plan, found[-1].bought):
            continue
        is_within = None is not facts[SUBSCRIPTION] == last[SUBSCRIPTION]
        is_priced = bool(found) and is_within and all(facts[name] == last[name] for name in _BY_HAND)
        # Nothing is charged by the second where a paused trial is resumed: a paid period begins.
        is_priced = is_priced and (last[PAUSED_PLAN] is None or facts[PAUSED_PLAN] is not None)
        if found:
            found[-1] = found[-1]._replace(used=span.used)
        is_by_hand = plan == facts[PLAN_BY_HAND]
        found.append(PlanSpan(plan, span.from_ms, is_priced, bought=bought, is_by_hand=is_by_hand))
    return found


_BY_HAND: Final = (PLAN_BY_HAND, STATUS_BY_HAND)
_NOT_SUBSCRIBED: Final = frozenset({"incomplete", "incomplete_expired", "canceled"})
"""Statuses by hand with which nothing counts that is sold."""


def _plan_of(facts: Mapping[str, Any], default: str) -> tuple[str, Bought]:
    """The plan that facts give, with its add-ons."""
    status, by_hand = facts[STATUS_BY_HAND], facts[PLAN_BY_HAND]
    if status in _NOT_SUBSCRIBED:
        return by_hand or default, ()
    if facts[PAUSED_PLAN] is not None and status is None:
        return facts[PAUSED_PLAN], ()
    return by_hand or facts[PLAN] or default, facts[ADDONS]


def _spans(terms: Iterable[Row], now_ms: int) -> list[_Span]:
    """The times in which all facts are the same, the oldest first."""
    found = [_Span(EVER_MS, NOTHING)]
    for row in in_order(terms):
        if row.since_ms > now_ms:
            break
        given, before = dict(row.facts), found[-1]
        used = given.pop(USED, ())
        if row.since_ms == before.from_ms:  # The time between them is empty.
            found.pop()
            used = used or before.used
        found.append(_Span(row.since_ms, {**before.facts, **given}, used))
    return found


def _with_facts_by_hand(spans: Sequence[_Span], start_of: Callable[[int], int]) -> Iterator[_Span]:
    """Move facts set by hand to the beginning of their period."""
    by_hand: list[tuple[int, Mapping[str, Any]]] = []
    for span in spans:
        set_ = {name: span.facts[name] for name in _BY_HAND}
        if not by_hand or by_hand[-1][1] != set_:
            start_ms = EVER_MS if span.from_ms == EVER_MS else start_of(span.from_ms)
            if by_hand and by_hand[-1][0] >= start_ms:
                by_hand.pop()
            by_hand.append((start_ms, set_))
    edges = sorted({span.from_ms for span in spans} | {from_ms for from_ms, _ in by_hand})
    for from_ms in edges:
        span = next(one for one in reversed(spans) if one.from_ms <= from_ms)
        set_ = next(one for since_ms, one in reversed(by_hand) if since_ms <= from_ms)
        yield _Span(from_ms, {**span.facts, **set_}, span.used if span.from_ms == from_ms else ())


def replace_lost_plans(spans: Sequence[PlanSpan], plans: Container[str]) -> Sequence[PlanSpan]:
    """Replace each plan that left the plans file by the one that its subscription changed to.

    What it gave is not known. Its time was paid for, and the default plan would give less.

    Args:
        spans: the plans of a customer, the oldest first.
        plans: the keys of the plans in the file.
    """
    found = list(spans)
    for nth in range(len(found) - 2, -1, -1):
        plan, following = found[nth].plan, found[nth + 1]
        if plan != UNKNOWN_PLAN and plan not in plans and following.is_priced:
            found[nth] = found[nth]._replace(plan=following.plan, is_lost=True)
    return found
