"""When usage of a billing period can no longer reach the invoice of that period. Pure.

Stripe makes the invoice of a period when the subscription renews or ends. The invoice is a draft for an hour
by default, and counts usage until it is final
(https://docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.scalars import DAY_MS
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import Counting, subscription_bounds

if TYPE_CHECKING:
    from meterkit.decisions.subscription import SubscriptionState

__all__ = ["MARGIN_MS", "OWN_HOUR_MS", "Renewals", "is_final", "renewals_of"]

OWN_HOUR_MS: Final = 3_600_000
"""How long Stripe keeps a draft by itself."""

MARGIN_MS: Final = 300_000
"""Usage is late so long before the draft ends: it must be sent and counted in between."""

_MONTH_MS: Final = 31 * DAY_MS


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
        """When Stripe made the invoice that has usage of an instant.

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
    if subscription is None or not subscription.has_begun or subscription.status_at(now_ms) == "paused":
        return None
    ends_ms, is_monthly = subscription.ends_ms(), subscription.end_ms - subscription.start_ms <= _MONTH_MS
    counting = Counting(per="month" if is_monthly else "year")
    made_ms = min(subscription.created_ms or subscription.start_ms, subscription.start_ms)
    since_ms = max(made_ms, subscription.trial_end_ms or 0)
    if now_ms >= ends_ms or subscription.status_at(now_ms) in ENDED:
        latest_ms = ends_ms
    else:
        latest_ms = subscription_bounds(subscription, counting, now_ms).start_ms
    if latest_ms <= since_ms:
        return None
    before_ms = subscription_bounds(subscription, counting, latest_ms - 1).start_ms
    return Renewals(since_ms, max(since_ms, before_ms), latest_ms)


def is_final(invoiced_ms: int, *, final_ms: int, held_ms: int, now_ms: int) -> bool:
    """Whether usage that is sent now would miss its invoice.

    Args:
        invoiced_ms: when Stripe made the invoice.
        final_ms: when it became final; 0: not known.
        held_ms: until when Stripe keeps the draft, by its word; 0: not known.
        now_ms: now.
    """
    return bool(final_ms) or now_ms >= max(invoiced_ms + OWN_HOUR_MS, held_ms) - MARGIN_MS
