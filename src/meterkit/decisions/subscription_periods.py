"""Billing periods of a subscription. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.decisions.periods import DAY_MS, SHORTEST_MS, Bounds, bounds_at
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from meterkit.catalog import Plan
    from meterkit.decisions.subscription import SubscriptionState

Interval = Literal["month", "year"]
_LONGEST_MS: Final[dict[Interval, int]] = {"month": 31 * DAY_MS, "year": 366 * DAY_MS}


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingCycle:
    """Cycle over which included quantities are counted.

    Attributes:
        per: month or year.
        anew_ms: instant of a scheduled change to a price of another interval, which moves Stripe's anchor and
            so restarts the periods; None: no such change is known.
    """

    per: Interval
    anew_ms: int | None = None


class _CycleSpan(NamedTuple):
    """Span with one rule for periods; ``anchor_ms`` None: calendar; ``is_whole``: the span is one period."""

    from_ms: int
    till_ms: int
    anchor_ms: int | None
    is_whole: bool = False


def subscription_bounds(subscription: SubscriptionState, counting: CountingCycle, at_ms: int) -> Bounds:
    """The period that an instant lies in, and the next one.

    The subscription's own period, where included quantities are counted over no less; else months (or years)
    from its anchor: so also beyond the period that is known, and before it. Before it was made and after it
    has ended: calendar months.
    """
    stretches = tuple(_cycle_spans(subscription, counting))
    start_ms, end_ms = _period_at(stretches, counting, at_ms)
    _, next_end_ms = _period_at(stretches, counting, end_ms)
    return Bounds(start_ms=start_ms, end_ms=end_ms, next_end_ms=next_end_ms)


def shown_period(subscription: SubscriptionState, plan: Plan | None, now_ms: int) -> tuple[int, int]:
    """The billing period as customers see it, by the anchor if its renewal is not known yet.

    Args:
        subscription: the stored one.
        plan: its plan at that instant; None: no plan of the plans file.
        now_ms: the instant.
    """
    start_ms, end_ms = subscription.start_ms, subscription.end_ms
    if start_ms <= now_ms < end_ms or now_ms >= subscription.ends_ms() or plan is None:
        return start_ms, end_ms
    interval = subscription.interval_at(now_ms) or plan.price.interval
    bounds = bounds_at(now_ms, anchor_ms=subscription.anchor_ms, interval=interval)
    return bounds.start_ms, bounds.end_ms


def is_provisional(subscription: SubscriptionState, at_ms: int) -> bool:
    """Whether the period that an instant lies in was computed because no renewal is known yet."""
    return subscription.has_begun and _current_end_ms(subscription) <= at_ms < subscription.ends_ms()


def _current_end_ms(subscription: SubscriptionState) -> int:
    trial_end_ms = subscription.trial_end_ms if subscription.status == "trialing" else None
    return max(subscription.start_ms, subscription.end_ms if trial_end_ms is None else trial_end_ms)


def _period_at(stretches: Iterable[_CycleSpan], counting: CountingCycle, at_ms: int) -> tuple[int, int]:
    stretch = next(found for found in stretches if found.from_ms <= at_ms < found.till_ms)
    if stretch.is_whole:
        return stretch.from_ms, stretch.till_ms
    grid = bounds_at(at_ms, anchor_ms=stretch.anchor_ms, interval=counting.per)
    return max(grid.start_ms, stretch.from_ms), min(grid.end_ms, stretch.till_ms)


def _cycle_spans(subscription: SubscriptionState, counting: CountingCycle) -> Iterator[_CycleSpan]:
    start_ms, end_ms, ends_ms = subscription.start_ms, _current_end_ms(subscription), subscription.ends_ms()
    made_ms = min(subscription.created_ms or start_ms, start_ms, ends_ms)
    is_trial = subscription.status == "trialing"
    is_whole = is_trial or end_ms - start_ms <= _LONGEST_MS[counting.per]
    anchor_ms, anew_ms = subscription.anchor_ms, counting.anew_ms
    grid = bounds_at(start_ms, anchor_ms=anchor_ms, interval=counting.per)
    is_resumed = any(start_ms == till_ms for _, till_ms in subscription.paused_spans)
    if not (is_trial or is_resumed) and (not is_whole or grid.end_ms == end_ms):
        # Stripe has a price of another interval begin in mid-period; what was used in it stays used.
        start_ms = max(grid.start_ms, made_ms)
    former_ms = max(made_ms, min(subscription.former_start_ms or start_ms, start_ms))
    former_is_whole = start_ms - former_ms <= _LONGEST_MS[counting.per]
    renewal_ms = end_ms if anew_ms is None else max(end_ms, anew_ms)
    cuts = (
        _CycleSpan(-NEVER_MS, made_ms, None),
        _CycleSpan(made_ms, former_ms, anchor_ms),
        _CycleSpan(former_ms, start_ms, anchor_ms, former_is_whole),
        _CycleSpan(start_ms, end_ms, anchor_ms, is_whole),
        _CycleSpan(end_ms, renewal_ms, anchor_ms),
        _CycleSpan(renewal_ms, ends_ms, anchor_ms if anew_ms is None else anew_ms),
        _CycleSpan(ends_ms, NEVER_MS, None),
    )
    for found in cuts[:-1]:
        yield found._replace(till_ms=min(found.till_ms, ends_ms))
    yield cuts[-1]


def with_former_start(new: SubscriptionState, known: SubscriptionState) -> SubscriptionState:
    """Keep where the period before the current one began, unless the anchor says so.

    Args:
        new: a subscription as Stripe shows it now.
        known: the same one, as it was known until now.
    """
    if new.start_ms - known.start_ms < SHORTEST_MS:
        return replace(new, former_start_ms=known.former_start_ms)
    if new.start_ms > _current_end_ms(known):
        return new  # A renewal was not heard of.
    per: Interval = "month" if new.start_ms - known.start_ms <= _LONGEST_MS["month"] else "year"
    grid = bounds_at(new.start_ms - 1, anchor_ms=new.anchor_ms, interval=per)
    by_anchor_ms = max(grid.start_ms, new.created_ms)
    return new if by_anchor_ms == known.start_ms else replace(new, former_start_ms=known.start_ms)


FORMER_STARTS_MAX: Final = 25
"""Most periods that a state keeps of former subscriptions: grants look back 24, from the one that follows."""


def former_bounds(found: Bounds, starts: Sequence[int], at_ms: int) -> Bounds:
    """The period of an instant before the present subscription, or without one.

    Args:
        found: the calendar month (or year) of the instant, up to the present subscription.
        starts: first instants of the periods until another subscription was known, the oldest first.
        at_ms: the instant.
    """
    place = bisect_right(starts, at_ms)
    start_ms, end_ms = found.start_ms, found.end_ms
    if place < len(starts):
        end_ms = starts[place] if place else min(end_ms, starts[0])
    if place:
        start_ms = starts[place - 1] if place < len(starts) else max(start_ms, starts[-1])
    return Bounds(start_ms=start_ms, end_ms=end_ms, next_end_ms=max(found.next_end_ms, end_ms))
