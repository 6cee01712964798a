"""Rows that a change of a customer's state adds to its terms. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterkit.decisions.customer_state import (
    bounds_of,
    effective_plan,
    has_paid_terms,
    plan_named,
    with_learned_prices,
)
from meterkit.decisions.free_usage import TRIAL, append_billing, free_reasons
from meterkit.decisions.item_prices import NO_PRICES, line_prices
from meterkit.decisions.periods import SHORTEST_MS, bounds_at
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import FORMER_STARTS_MAX
from meterkit.terms.folding import fold
from meterkit.terms.rows import (
    ADDONS,
    BY_HAND,
    EVER_MS,
    LATE_PERIOD,
    LINK,
    PAUSED_PLAN,
    PLAN,
    PLAN_BY_HAND,
    PRICES,
    PRICES_BY_HAND,
    SOLD,
    STATUS_BY_HAND,
    SUBSCRIPTION,
    in_force,
    last_ms,
    last_row,
    layer_of,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.decisions.subscription_periods import CountingCycle
    from meterkit.terms.rows import Source, Terms


def terms_of(state: CustomerState, catalog: Catalog, now_ms: int) -> Terms:
    """The terms of a customer up to an instant.

    What its subscription has scheduled binds at its millisecond, before anything stores it. A state without
    terms has what it has from ever.
    """
    terms = state.terms
    if last_row(terms, SOLD) is None:
        terms = tell(terms, _facts_of(state, catalog, EVER_MS), EVER_MS, EVER_MS, "stripe")
    by_hand_ms = last_ms(terms, BY_HAND)
    for at_ms in _clock_changes(state.subscription, last_ms(terms, SOLD), now_ms):
        facts = _facts_of(state, catalog, at_ms)
        if at_ms < by_hand_ms:
            facts = {name: value for name, value in facts.items() if layer_of(name) == SOLD}
        terms = tell(terms, facts, at_ms, at_ms, "clock")
    return terms


def with_terms(
    before: CustomerState,
    after: CustomerState,
    catalog: Catalog,
    at_ms: int,
    *,
    told_ms: int,
    source: Source,
) -> CustomerState:
    """The state after a change, with what it adds to the terms.

    A subscription ends at its own instant, whenever that is heard of. One that begins counts from now on: of
    those that are imported, nothing is known before but their prices.

    Args:
        before: the state until now.
        after: the state from now on.
        catalog: what is sold.
        at_ms: when it changed, as far as that is known.
        told_ms: now.
        source: who said so; of a change of the subscription that is Stripe.
    """
    is_report = after.subscription != before.subscription or after.terms != before.terms
    at_ms, before = _ends_ms(before, after, at_ms), replace(before, terms=after.terms)
    if is_report and at_ms < last_ms(before.terms, BY_HAND):
        # It ends what was set by hand before, not what was set since.
        kept = {name: getattr(before, name) for name in ("plan", "status", "status_since_ms")}
        after = replace(after, **kept)
    known = with_learned_prices(before, after)
    terms = terms_of(known, catalog, at_ms - 1)
    facts, then = _facts_of(after, catalog, at_ms), in_force(terms, at_ms)
    if not is_report and after.plan != before.plan:
        facts[PLAN_BY_HAND] = after.plan  # Also where the clock has ended the subscription by then.
    own = catalog.in_currency(after.currency)
    if after.plan != before.plan or own is not catalog.in_currency(before.currency):
        facts[PRICES_BY_HAND] = _prices_by_hand(after.plan, own)
    if then[LINK] is not None or before.stripe_customer not in {None, after.stripe_customer}:
        facts[LINK] = after.stripe_customer or ""
    if facts[SUBSCRIPTION] != then[SUBSCRIPTION]:
        facts[LATE_PERIOD] = _late_period(after, catalog, at_ms)
    for since_ms in _price_starts_ms(before.subscription, after.subscription, then[SUBSCRIPTION]):
        from_ms = max(since_ms, last_ms(terms, SOLD))
        if after.subscription is not None and from_ms < at_ms:
            terms = tell(terms, {PRICES: after.subscription.prices_at(from_ms)}, from_ms, told_ms, "stripe")
    terms = tell(terms, facts, at_ms, told_ms, "stripe" if is_report else source)
    if is_report and after.subscription is not None:
        terms = append_billing(terms, before.subscription, after.subscription, told_ms)
    counting = effective_plan(before, catalog, at_ms - 1).counting

    def start_of(instant_ms: int) -> int:
        return bounds_of(before, counting, instant_ms).start_ms

    return with_former_starts(before, replace(after, terms=fold(terms, told_ms, start_of)), counting, at_ms)


def with_former_starts(
    before: CustomerState, after: CustomerState, counting: CountingCycle, at_ms: int
) -> CustomerState:
    """State that keeps where its periods began, as far as its former subscription said so.

    Otherwise, calendar months would replace them, and what ended with the former subscription would not.

    Args:
        before: the state until now.
        after: the state from now on, perhaps with another subscription or none.
        counting: cycle of included quantities until now.
        at_ms: now.
    """
    old, new = before.subscription, after.subscription
    if old is None or (new is not None and new.id == old.id) or not (old.has_begun or old.trial_end_ms):
        return after
    starts = [bounds_of(before, counting, at_ms).start_ms]
    while starts[0] > old.made_ms and len(starts) < FORMER_STARTS_MAX:
        starts.insert(0, bounds_of(before, counting, starts[0] - 1).start_ms)
    known = (start_ms for start_ms in before.former_starts_ms if start_ms < starts[0])
    return replace(after, former_starts_ms=(*known, *starts)[-FORMER_STARTS_MAX:])


def _facts_of(state: CustomerState, catalog: Catalog, at_ms: int) -> dict[str, Any]:
    return {**_sold_facts(state, catalog, at_ms), **_facts_by_hand(state, at_ms)}


def _sold_facts(state: CustomerState, catalog: Catalog, at_ms: int) -> dict[str, Any]:
    """The facts that a subscription sells at an instant."""
    sold, subscription = replace(state, plan=None, status=None), state.subscription
    if subscription is None:
        return {SUBSCRIPTION: None, PLAN: None, ADDONS: (), PRICES: NO_PRICES, PAUSED_PLAN: None}
    status = subscription.status_at(at_ms)
    is_in_force = subscription.has_begun_at(at_ms) and status not in ENDED
    return {
        SUBSCRIPTION: subscription.id if is_in_force else None,
        PLAN: plan_named(sold, status, at_ms),
        ADDONS: subscription.addons_at(at_ms) if has_paid_terms(sold, status, at_ms) else (),
        PRICES: subscription.prices_at(at_ms),
        PAUSED_PLAN: catalog.dunning.restrict_to if status == "paused" else None,
    }


def _price_starts_ms(
    old: SubscriptionState | None, new: SubscriptionState | None, in_force_id: str | None
) -> tuple[int, ...]:
    """Instants since which a subscription has prices that are heard of later.

    Those of a scheduled change; all, if the subscription was not in force or its prices were not known.
    """
    if new is None:
        return ()
    if old is None or new.id != in_force_id or (old.metered and not old.prices):
        return (new.created_ms, new.ends_ms())
    return () if old.pending_at_ms is None else (old.pending_at_ms,)


def _late_period(state: CustomerState, catalog: Catalog, at_ms: int) -> tuple[int, ...]:
    """The first paid period of a subscription that is charged by its part, as it begins amid two anchors.

    https://docs.stripe.com/billing/subscriptions/billing-cycle
    """
    subscription = state.subscription
    if subscription is None or subscription.status_at(at_ms) in ENDED:
        return ()
    counting = effective_plan(state, catalog, at_ms).counting
    start_ms = subscription.made_ms
    if subscription.trial_end_ms is not None and TRIAL in free_reasons(state, start_ms):
        start_ms = subscription.trial_end_ms
    end_ms = bounds_of(state, counting, start_ms).end_ms
    grid = bounds_at(end_ms - 1, anchor_ms=subscription.anchor_ms, interval=counting.per)
    is_late = grid.end_ms == end_ms and start_ms - grid.start_ms > SHORTEST_MS
    return (start_ms, end_ms - grid.start_ms) if is_late else ()


def _facts_by_hand(state: CustomerState, at_ms: int) -> dict[str, Any]:
    """The facts set by hand at an instant; the end of a subscription ends a plan set before."""
    status = state.status
    if status is None and state.subscription is not None:
        status = state.subscription.status_at(at_ms)
    is_in_force = state.plan == plan_named(state, status, at_ms)
    return {PLAN_BY_HAND: state.plan if is_in_force else None, STATUS_BY_HAND: state.status}


def _prices_by_hand(plan: str | None, catalog: Catalog) -> ItemPrices:
    """The prices of a plan that is set by hand now, where invoice lines bill it."""
    sold = catalog.find_plan(plan)
    return NO_PRICES if sold is None or not catalog.billing.is_by_lines else line_prices(sold, catalog)


def _ends_ms(before: CustomerState, after: CustomerState, at_ms: int) -> int:
    old, new = before.subscription, after.subscription
    has_ended = new is not None and new.status in ENDED and old is not None and old.id == new.id
    return min(at_ms, new.ends_ms()) if new is not None and has_ended else at_ms


def _clock_changes(subscription: SubscriptionState | None, since_ms: int, now_ms: int) -> Iterator[int]:
    """The instants after another one at which something of a subscription binds by the clock."""
    at_ms = since_ms
    while subscription is not None and (at_ms := subscription.next_change_ms(at_ms)) <= now_ms:
        yield at_ms
