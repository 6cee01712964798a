"""Trials and pauses of a customer: no invoice bills their usage. Pure.

A subscription shows its last trial, and a pause that lasts. The terms have the ones before, also of earlier
subscriptions: their usage may be billed later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subscription import ENDED, NEVER_MS
from meterkit.decisions.subscription_periods import stops_billing_ms
from meterkit.terms.rows import FREE, FactSpan, Row, fact_spans, in_force

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.terms.rows import Terms

_TRIAL: Final = "trial"
_PAUSE: Final = "pause"


def is_usage_free_of(state: CustomerState, start_ms: int, invoiced_ms: int | None = None) -> bool:
    """Whether no invoice bills the usage of the period that begins then: a trial, or a pause.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials

    Args:
        state: the customer's.
        start_ms: the period's first instant.
        invoiced_ms: when its invoice is made: collection that is paused then voids it; None: not yet.
    """
    subscription, at_ms = state.subscription, start_ms if invoiced_ms is None else invoiced_ms
    if is_trial_of(state, start_ms) or is_paused_from(state, start_ms):
        return True
    return subscription is not None and subscription.is_unpaid_at(at_ms)


def is_trial_of(state: CustomerState, start_ms: int) -> bool:
    """Whether the period that begins then is one of a trial, which may begin a little later than that."""
    return _is_within(state, _TRIAL, start_ms)


def is_paused_from(state: CustomerState, start_ms: int) -> bool:
    """Whether the period that begins then is one of a pause, which may begin a little later than that."""
    return _is_within(state, _PAUSE, start_ms)


def _is_within(state: CustomerState, reason: str, start_ms: int) -> bool:
    shown = () if state.subscription is None else _shown_spans(state.subscription)
    return any(
        span.value == reason and span.from_ms - SHORTEST_MS < start_ms < span.till_ms
        for span in (*shown, *fact_spans(state.terms, FREE))
    )


def _shown_spans(subscription: SubscriptionState) -> Iterator[FactSpan]:
    """Yield the trial and the pause that a subscription shows; either is over when the subscription is."""
    if subscription.trial_end_ms is not None:
        from_ms = subscription.trial_start_ms or subscription.created_ms
        yield FactSpan(from_ms, min(subscription.trial_end_ms, subscription.ends_ms()), _TRIAL)
    if subscription.status == "paused":
        yield FactSpan(stops_billing_ms(subscription), NEVER_MS, _PAUSE)


def tell_free_spans(terms: Terms, known: SubscriptionState, new: SubscriptionState, told_ms: int) -> Terms:
    """Append the trial and the pause that a subscription has shown until now.

    A pause ends the period, and its end begins another one unless that follows too soon: then it frees no
    usage.

    Args:
        terms: of the customer.
        known: its subscription as it was known until now.
        new: the same one, or the next one.
        told_ms: now.
    """
    begun, over_ms = set[int](), min(known.ends_ms(), new.created_ms or new.start_ms)
    if new.id == known.id:
        begun = {span.from_ms for span in _shown_spans(new)}
        over_ms = new.ends_ms() if new.status in ENDED else new.usage_period[0]
    for from_ms, till_ms, reason in _shown_spans(known):
        ended_ms = min(till_ms, over_ms)
        shortest_ms = SHORTEST_MS if reason == _PAUSE else 1
        if from_ms not in begun and ended_ms - from_ms >= shortest_ms:
            edges = (from_ms, reason), (ended_ms, in_force(terms, ended_ms)[FREE])
            terms = (*terms, *(Row(at_ms, told_ms, "stripe", ((FREE, why),)) for at_ms, why in edges))
    return terms
