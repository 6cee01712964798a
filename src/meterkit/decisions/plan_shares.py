"""Plan shares: what each plan of a billing period gives, by the time that it was active. Pure.

Stripe charges a change of plan by the second. So do included quantities and recurring grants follow, unless
``billing.changes.allowance`` is ``whole``: the sum of each plan's quantity times its share of the period,
rounded up.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.allowance import Allowance, EarlierPeriod, PeriodGrants
from meterkit.decisions.customer_state import bounds_of, counted_per, effective_plan
from meterkit.decisions.grants import MICRO, grant_lines, in_burn_order
from meterkit.decisions.plan_history import UNKNOWN_PLAN, plan_spans
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.allowance import GrantLine
    from meterkit.decisions.customer_state import CustomerState, EffectivePlan
    from meterkit.decisions.plan_history import PlanSpan
    from meterkit.decisions.subscription_periods import Counting

_PERIODS_MAX: Final = 24
_CHANGED: Final = 2
_NOTHING: Final[Mapping[str, int]] = {}
_AT_ONCE_MS: Final = 60_000
"""Stripe's periods begin at whole seconds, and a change that begins one is heard of a little later."""
_MONTHS: Final = {"month": 1, "year": 12}


class PlanShare(NamedTuple):
    """A plan and its share of a period.

    Attributes:
        plan: the plan; None: the unknown one, which gives nothing.
        share: the part of the period.
        used: units that were included by its end, of the meters that it does not limit.
    """

    plan: Plan | None
    share: Fraction
    used: Mapping[str, int] = _NOTHING


def effective_terms(state: CustomerState, catalog: Catalog, now_ms: int) -> EffectivePlan:
    """The plan, access and period of a customer at an instant, with the allowance of this period.

    Where access is restricted, the plan that is left gives what the plans file says.
    """
    effective, life_ms = effective_plan(state, catalog, now_ms), longest_life_ms(catalog)
    has_changed = state.plan is None and _has_changed_since(state, effective.bounds.start_ms, now_ms)
    if effective.access in {"restricted", "suspended"} or not (has_changed or life_ms):
        return effective
    spans, counting = plan_spans(state, catalog, now_ms), effective.counting
    shares: tuple[PlanShare, ...] = ()
    if has_changed:
        shares = plan_shares(spans, *_uncut_period(state, counting, now_ms), counting, catalog)
    earlier = () if not life_ms else tuple(_earlier_periods(state, spans, counting, catalog, now_ms, life_ms))
    lives_on = any(grant.expires_ms for grant in effective.plan.grants)
    if not shares and not earlier and not lives_on:
        return effective
    allowance = Allowance(earlier=earlier)
    if shares:
        included, grants = _prorated_included(effective.plan, shares, catalog), _prorated_grants(shares)
        allowance = replace(allowance, included=included, grants=grants)
    return replace(
        effective,
        allowance=None if allowance == Allowance() else allowance,
        valid_until_ms=min(effective.valid_until_ms, effective.bounds.end_ms),
    )


def _has_changed_since(state: CustomerState, start_ms: int, now_ms: int) -> bool:
    """Whether Stripe has charged a change of plan by the second since an instant: a cheap look beforehand."""
    subscription = state.subscription
    pending_ms = None if subscription is None else subscription.pending_at_ms
    is_scheduled = pending_ms is not None and start_ms < pending_ms <= now_ms
    return is_scheduled or any(
        change.is_priced and change.until_ms > start_ms for change in state.plan_changes
    )


def plan_shares(
    spans: Sequence[PlanSpan], start_ms: int, end_ms: int, counting: Counting, catalog: Catalog
) -> tuple[PlanShare, ...]:
    """The plans of a period with their shares of it; none: its plan did not change.

    A change that Stripe did not charge by the second holds from the beginning of the period, and so does one
    in its first minute. The last plan is taken to stay until the end.

    Args:
        spans: the plans of the customer.
        start_ms: the first instant of the period.
        end_ms: the first instant after it.
        counting: what included quantities are counted over.
        catalog: what is sold.
    """
    if catalog.billing.changes.allowance == "whole":
        return ()
    inside = [span for span in spans if span.from_ms < end_ms]
    whole = (place for place, span in enumerate(inside) if span.from_ms <= start_ms or not span.is_priced)
    parts = inside[max(whole) :]
    if len(parts) < _CHANGED:
        return ()
    parts = parts[sum(span.from_ms <= start_ms + _AT_ONCE_MS for span in parts[1:]) :]
    edges = [start_ms, *(span.from_ms for span in parts[1:]), end_ms]
    return tuple(
        _share_of(span, Fraction(till_ms - from_ms, end_ms - start_ms), counting, catalog)
        for span, (from_ms, till_ms) in zip(parts, pairwise(edges), strict=True)
    )


def _share_of(span: PlanSpan, share: Fraction, counting: Counting, catalog: Catalog) -> PlanShare:
    """A plan's share; one that is counted over a year gives a month a twelfth, and the reverse."""
    if span.plan == UNKNOWN_PLAN:
        return PlanShare(None, share)
    plan = catalog.plans.get(span.plan, catalog.plans[catalog.default_plan])
    share *= Fraction(_MONTHS[counting.per], _MONTHS[counted_per(plan)])
    return PlanShare(plan, share, dict(span.used))


def _prorated_included(
    plan: Plan, shares: Sequence[PlanShare], catalog: Catalog
) -> tuple[tuple[str, int], ...]:
    """The included quantity of each counter of the plan.

    Time without a limit adds nothing, but all that is used by its end is included.
    """
    found: list[tuple[str, int]] = []
    for name, entitlement in plan.entitlements.items():
        meter = catalog.meters[name]
        has_tiers = meter.stripe is not None and meter.stripe.report == "usage"  # At Stripe, for each price.
        is_counted = meter.kind == "counter" and not (meter.is_row or meter.is_spend or has_tiers)
        if is_counted and entitlement.included is not None:
            found.append((name, ceil(_included_of(name, shares))))
    return tuple(found)


def _included_of(meter: str, shares: Sequence[PlanShare]) -> Fraction:
    total = Fraction(0)
    for plan, share, used in shares:
        included = 0 if plan is None else plan.entitlements[meter].included
        total += share * (included or 0)
        if included is None:
            total = max(total, Fraction(used.get(meter, 0)))
    return total


def _prorated_grants(shares: Sequence[PlanShare]) -> PeriodGrants:
    """The recurring grants of a period, each by its plans' shares, in whole units and whole credits."""
    terms: dict[str, GrantLine] = {}
    given: dict[str, Fraction] = {}
    totals: dict[str, Fraction] = {}
    for plan, share, _ in shares:
        for line in () if plan is None else grant_lines(plan):
            name, target, quantity, _, _ = terms[line[0]] = line
            given[name] = given.get(name, Fraction(0)) + share * quantity
            totals[target] = totals.get(target, Fraction(0)) + share * quantity
    lines = (
        (name, target, _round_up(target, given[name]), priority, life_ms)
        for name, target, _, priority, life_ms in terms.values()
    )
    limits = tuple((target, _round_up(target, total)) for target, total in totals.items())
    return PeriodGrants(in_burn_order(lines), limits)


def _round_up(target: str, quantity: Fraction) -> int:
    unit = MICRO if target.startswith("c:") else 1
    return ceil(quantity / unit) * unit


def _earlier_periods(
    state: CustomerState,
    spans: Sequence[PlanSpan],
    counting: Counting,
    catalog: Catalog,
    now_ms: int,
    life_ms: int,
) -> Iterator[EarlierPeriod]:
    """Earlier periods whose grants may still live, the latest first."""
    subscription, first_ms = state.subscription, 0
    certain_ms = spans[1].from_ms if len(spans) > 1 else NEVER_MS
    if subscription is not None and subscription.has_begun_at(now_ms):
        first_ms = min(subscription.created_ms or subscription.start_ms, subscription.start_ms)
        certain_ms = min(certain_ms, first_ms)
    end_ms = bounds_of(state, counting, now_ms).start_ms
    for _ in range(_PERIODS_MAX):
        start_ms = bounds_of(state, counting, end_ms - 1).start_ms
        if start_ms < first_ms or start_ms + life_ms <= now_ms:
            return
        grants = _grants_of(spans, start_ms, end_ms, counting, catalog)
        lines = tuple(line for line in grants.lines if line[4] and start_ms + line[4] > now_ms)
        if lines:
            is_certain = end_ms > certain_ms
            yield EarlierPeriod(start_ms, end_ms, grants._replace(lines=lines), is_certain)
        end_ms = start_ms


def _grants_of(
    spans: Sequence[PlanSpan], start_ms: int, end_ms: int, counting: Counting, catalog: Catalog
) -> PeriodGrants:
    """The recurring grants of one period."""
    shares = plan_shares(spans, start_ms, end_ms, counting, catalog)
    if shares:
        return _prorated_grants(shares)
    last = next(span for span in reversed(spans) if span.from_ms < end_ms)
    plan = _share_of(last, Fraction(1), counting, catalog).plan
    return PeriodGrants(() if plan is None else grant_lines(plan))


def _uncut_period(state: CustomerState, counting: Counting, now_ms: int) -> tuple[int, int]:
    """The period of an instant, to the end that is paid for: a cancellation cuts it short."""
    if state.subscription is not None:
        state = replace(state, subscription=replace(state.subscription, cancel_at_ms=None))
    bounds = bounds_of(state, counting, now_ms)
    return bounds.start_ms, bounds.end_ms


def longest_life_ms(catalog: Catalog) -> int:
    """The longest life of a recurring grant; 0: none lives longer than its period."""
    return max((grant.expires_ms or 0 for plan in catalog.plans.values() for grant in plan.grants), default=0)
