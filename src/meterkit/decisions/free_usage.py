"""Trials and pauses of a customer, whose usage no invoice bills; rows of how usage is billed. Pure.

A subscription shows its last trial, and a pause that lasts. The terms have the ones before, also of earlier
subscriptions: usage of their time may come later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subscription import ENDED, NEVER_MS
from meterkit.decisions.subscription_periods import stops_billing_ms
from meterkit.terms.rows import FREE, LINES, FactSpan, append_usage_fact, fact_spans, in_force

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.terms.rows import Terms

TRIAL: Final = "trial"
PAUSE: Final = "pause"


def is_usage_free_of(state: CustomerState, start_ms: int, invoiced_ms: int | None = None) -> bool:
    """Whether no invoice bills the usage of the period that begins then: a trial, or a pause.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials

    Args:
        state: the customer's.
        start_ms: the period's first instant.
        invoiced_ms: when its invoice is made: collection that is paused then voids it; None: not yet.
    """
    subscription, at_ms = state.subscription, start_ms if invoiced_ms is None else invoiced_ms
    if free_reasons(state, start_ms):
        return True
    return subscription is not None and subscription.is_unpaid_at(at_ms)


def free_reasons(state: CustomerState, start_ms: int) -> frozenset[str]:
    """The trial or pause of the period that begins then, which may begin a little later; empty: neither."""
    shown = () if state.subscription is None else _shown_spans(state.subscription)
    spans = (span for span in (*shown, *fact_spans(state.terms, FREE)) if span.value is not None)
    return frozenset(one.value for one in spans if one.from_ms - SHORTEST_MS < start_ms < one.till_ms)


def _shown_spans(subscription: SubscriptionState) -> Iterator[FactSpan]:
    """Yield the trial and the pause that a subscription shows; either is over when the subscription is."""
    if subscription.trial_end_ms is not None:
        from_ms = subscription.trial_start_ms or subscription.created_ms
        yield FactSpan(from_ms, min(subscription.trial_end_ms, subscription.ends_ms()), TRIAL)
    if subscription.status == "paused":
        yield FactSpan(stops_billing_ms(subscription), NEVER_MS, PAUSE)


def append_billing(
    terms: Terms, known: SubscriptionState | None, new: SubscriptionState, told_ms: int
) -> Terms:
    """Append how usage is billed by a report: former trials and pauses, and what carries usage to invoices.

    Args:
        terms: of the customer.
        known: its subscription as it was known until now; None: none was, so lines or prices bill from ever.
        new: the same one, or the next one.
        told_ms: now.
    """
    since_ms = new.start_ms if known else 0
    if known is not None:
        terms = _append_free_spans(terms, known, new, told_ms)
        if known.pending_lines_ms is not None and known.pending_lines_ms < since_ms:
            terms = append_usage_fact(terms, LINES, not known.by_lines, known.pending_lines_ms, told_ms)
    # An older subscription may follow a newer one.
    later = (span.from_ms for span in fact_spans(terms, LINES) if span.from_ms > since_ms)
    for at_ms in (since_ms, *later):
        terms = append_usage_fact(terms, LINES, new.by_lines, at_ms, told_ms)
    return terms


def _append_free_spans(terms: Terms, known: SubscriptionState, new: SubscriptionState, told_ms: int) -> Terms:
    """Append the trial and the pause that a subscription has shown until now.

    A pause ends the period, and its end begins another one unless that follows too soon: then it frees no
    usage.
    """
    begun, over_ms = set[int](), min(known.ends_ms(), new.created_ms or new.start_ms)
    if new.id == known.id:
        begun = {span.from_ms for span in _shown_spans(new)}
        over_ms = new.ends_ms() if new.status in ENDED else new.usage_period[0]
    for from_ms, till_ms, reason in _shown_spans(known):
        ended_ms = min(till_ms, over_ms)
        shortest_ms = SHORTEST_MS if reason == PAUSE else 1
        if from_ms not in begun and ended_ms - from_ms >= shortest_ms:
            following = in_force(terms, ended_ms)[FREE]
            terms = append_usage_fact(terms, FREE, reason, from_ms, told_ms)
            terms = append_usage_fact(terms, FREE, following, ended_ms, told_ms)
    return terms
