"""Deadlines of a subscription's invoices: when Stripe makes them, and until when they take usage. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.item_prices import interval_of
from meterkit.decisions.subscription import BILLED, ENDED
from meterkit.decisions.subscription_periods import CountingCycle, subscription_bounds

if TYPE_CHECKING:
    from meterkit.decisions.subscription import SubscriptionState

OWN_HOUR_MS: Final = 3_600_000
"""Stripe's own delay before it finalizes a draft."""
MARGIN_MS: Final = 300_000
"""Margin before the draft is final in which usage must be sent and counted."""


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


def renewals_of(subscription: SubscriptionState | None, now_ms: int) -> Renewals | None:
    """The latest renewals of a subscription by the clock; None: it has no invoice with usage yet."""
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
        latest_ms = subscription_bounds(subscription, counting, now_ms).start_ms
    if latest_ms <= since_ms:
        return None
    before_ms = subscription_bounds(subscription, counting, latest_ms - 1).start_ms
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
    return at_ms != known.ends_ms() and subscription_bounds(cycle, counting, at_ms).start_ms != at_ms


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
