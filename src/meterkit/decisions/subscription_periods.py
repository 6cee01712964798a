"""Billing periods of a subscription, and the deadlines of their invoices. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.decisions.item_prices import interval_of
from meterkit.decisions.periods import DAY_MS, SHORTEST_MS, Bounds, bounds_at
from meterkit.decisions.subscription import BILLED, ENDED, NEVER_MS
from meterkit.terms.rows import FREE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from meterkit.catalog import Plan
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.terms.rows import Terms

Interval = Literal["month", "year"]
_LONGEST_MS: Final[dict[Interval, int]] = {"month": 31 * DAY_MS, "year": 366 * DAY_MS}
OWN_HOUR_MS: Final = 3_600_000
"""Stripe's own delay before it finalizes a draft."""
MARGIN_MS: Final = 300_000
"""Margin before the draft is final in which usage must be sent and counted."""


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


def subscription_bounds(
    subscription: SubscriptionState, counting: CountingCycle, at_ms: int, terms: Terms
) -> Bounds:
    """The period that an instant lies in, and the next one.

    The subscription's own period, where included quantities are counted over no less; else months (or years)
    from its anchor: so also beyond the period that is known, and before it. Before it was made and after it
    has ended: calendar months.
    """
    stretches = tuple(_cycle_spans(subscription, counting, terms))
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


def _cycle_spans(
    subscription: SubscriptionState, counting: CountingCycle, terms: Terms
) -> Iterator[_CycleSpan]:
    start_ms, end_ms, ends_ms = subscription.start_ms, _current_end_ms(subscription), subscription.ends_ms()
    made_ms = min(subscription.created_ms or start_ms, start_ms, ends_ms)
    is_trial = subscription.status == "trialing"
    is_whole = is_trial or end_ms - start_ms <= _LONGEST_MS[counting.per]
    anchor_ms, anew_ms = subscription.anchor_ms, counting.anew_ms
    grid = bounds_at(start_ms, anchor_ms=anchor_ms, interval=counting.per)
    is_resumed = any(row.since_ms == start_ms and (FREE, None) in row.facts for row in terms)
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


class Renewals(NamedTuple):
    """The instants at which Stripe has made invoices of a subscription, the latest two of them.

    Attributes:
        since_ms: usage before this is on no invoice with a price: there was no subscription, or a trial.
        before_ms: the renewal before the latest one, or ``since_ms``.
        latest_ms: the latest renewal, or the end of the subscription.
    """

    since_ms: int
    before_ms: int
    latest_ms: int

    def invoiced_ms(self, at_ms: int, ends_ms: int) -> int | None:
        """Instant at which Stripe made the invoice with the usage of an instant.

        Args:
            at_ms: the instant.
            ends_ms: the end of its period, which stands for a renewal before the latest two.

        Returns:
            None: there is no such invoice, or not yet.
        """
        if not self.since_ms <= at_ms < self.latest_ms:
            return None
        return self.latest_ms if at_ms >= self.before_ms else ends_ms


def renewals_of(subscription: SubscriptionState | None, now_ms: int, terms: Terms) -> Renewals | None:
    """The latest renewals of a subscription by the clock; None: it has no invoice with usage yet.

    Args:
        subscription: a customer's.
        now_ms: now.
        terms: of the customer.
    """
    if subscription is None or not subscription.has_begun_at(now_ms):
        return None
    if subscription.status_at(now_ms) == "paused":
        return None
    ends_ms = subscription.ends_ms()
    subscription, counting = _usage_cycle(subscription)
    since_ms = max(subscription.made_ms, subscription.trial_end_ms or 0)
    if now_ms >= ends_ms or subscription.status_at(now_ms) in ENDED:
        latest_ms = ends_ms
    else:
        latest_ms = subscription_bounds(subscription, counting, now_ms, terms).start_ms
    if latest_ms <= since_ms:
        return None
    before_ms = subscription_bounds(subscription, counting, latest_ms - 1, terms).start_ms
    return Renewals(since_ms, max(since_ms, before_ms), latest_ms)


def _usage_cycle(subscription: SubscriptionState) -> tuple[SubscriptionState, CountingCycle]:
    """The subscription with the period of its metered prices, and the interval of that."""
    start_ms, end_ms = subscription.usage_period
    counting = CountingCycle(per=interval_of(start_ms, end_ms))
    return replace(subscription, start_ms=start_ms, end_ms=end_ms), counting


def is_cut_short(known: SubscriptionState, at_ms: int) -> bool:
    """Whether usage was billed until an instant at which no renewal was due, so no draft takes up more.

    Stripe makes the invoice of such a period at once, or none
    (https://docs.stripe.com/billing/subscriptions/billing-cycle#reset-the-billing-period-to-the-current-time).

    Args:
        known: the subscription as it was known before.
        at_ms: when Stripe has ended its period.
    """
    cycle, counting = _usage_cycle(known)
    if not cycle.start_ms < at_ms or known.status_at(at_ms - 1) not in BILLED:
        return False
    return at_ms != known.ends_ms() and subscription_bounds(cycle, counting, at_ms, ()).start_ms != at_ms


def stops_billing_ms(subscription: SubscriptionState) -> int:
    """Instant at which Stripe stops billing usage: a pause or the end; ``NEVER_MS``: neither is known."""
    return subscription.usage_period[1] if subscription.status == "paused" else subscription.ends_ms()


def is_final(invoiced_ms: int | None, *, final_ms: int, held_ms: int, now_ms: int) -> bool:
    """Whether usage that is sent now would miss its invoice.

    Args:
        invoiced_ms: when Stripe made the invoice; None: no renewal is known to have made one.
        final_ms: when it became final; 0: not known.
        held_ms: instant until which Stripe says it keeps the draft; 0: not known.
        now_ms: now.
    """
    if final_ms or invoiced_ms is None:
        return bool(final_ms)
    return now_ms >= max(invoiced_ms + OWN_HOUR_MS, held_ms) - MARGIN_MS
