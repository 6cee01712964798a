"""Plan history and plan shares: the part of a billing period's allowance that each of its plans gives. Pure.

Stripe charges a change of plan by the second. So do included quantities and recurring grants follow, unless
``billing.changes.allowance`` is ``whole``: the sum of each plan's quantity times its share of the period,
rounded up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.addons import with_addons
from meterkit.catalog.entitlements import included_by
from meterkit.decisions.allowance import Allowance, EarlierPeriod, PeriodGrants
from meterkit.decisions.customer_state import (
    bounds_of,
    counted_per,
    effective_plan,
)
from meterkit.decisions.grants import MICRO, digest_of_terms, grant_lines, sort_by_burn_order
from meterkit.decisions.periods import MONTHS, SHORTEST_MS
from meterkit.decisions.rollover import (
    PlanHistory,
    find_once,
    find_rolls,
    grant_reach,
    living_lines,
    mark_rolled,
)
from meterkit.decisions.subscription import ENDED, NEVER_MS
from meterkit.decisions.subscription_periods import CountingCycle
from meterkit.decisions.told_terms import terms_of
from meterkit.terms.cuts import INCLUDED, Cut, cuts_of, spent_of
from meterkit.terms.plan_spans import PlanSpan, plan_spans, replace_lost_plans
from meterkit.terms.rows import AT_ONCE_MS, LATE_PERIOD, PRICES, SUBSCRIPTION, UNKNOWN_PLAN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Meter, Plan
    from meterkit.decisions.allowance import GrantLine, OnceGrant, Rolls
    from meterkit.decisions.customer_state import CustomerState, EffectivePlan
    from meterkit.terms.rows import Terms


_PERIODS_MAX: Final = 24
_NOTHING: Final[Mapping[str, int]] = {}


class PlanShare(NamedTuple):
    """A plan and its share of a period.

    Attributes:
        plan: the plan with its add-ons; None: the unknown one, which gives nothing.
        share: the part of the period.
        used: units that were included by its end, of the meters that it does not limit.
    """

    plan: Plan | None
    share: Fraction
    used: Mapping[str, int] = _NOTHING


class PlansHad(NamedTuple):
    """The plans of a customer up to an instant, and what else their quantities depend on.

    Attributes:
        state: of the customer.
        catalog: what is sold.
        counting: cycle over which included quantities are counted.
        spans: the plans, the oldest first.
    """

    state: CustomerState
    catalog: Catalog
    counting: CountingCycle
    spans: Sequence[PlanSpan]

    @classmethod
    def of(cls, state: CustomerState, catalog: Catalog, now_ms: int, counting: CountingCycle) -> PlansHad:
        """Read them from a customer's terms; restricted access changes none of them."""
        return cls(state, catalog, counting, ()).by_terms(terms_of(state, catalog, now_ms), now_ms)

    def by_terms(self, terms: Terms, now_ms: int) -> PlansHad:
        """Plans by terms that are at hand."""
        spans = plan_spans(terms, now_ms, self.catalog.default_plan, self.start_of)
        return self._replace(spans=spans)

    def known(self) -> PlansHad:
        """Plans by a plans file that may have lost some of them."""
        return self._replace(
            spans=replace_lost_plans(self.spans, {plan.key for plan in self.catalog.all_plans})
        )

    @property
    def is_whole(self) -> bool:
        """Whether a plan gives all of its quantities, however late in a period it began."""
        return self.catalog.billing.changes.allowance == "whole"

    def start_of(self, at_ms: int) -> int:
        """First instant of the period of an instant."""
        return bounds_of(self.state, self.counting, at_ms).start_ms

    def history(self, spans: Sequence[PlanSpan]) -> PlanHistory:
        """Plans for grants that live on from period to period."""
        plans = [(_plan_of(span, self.catalog), span.from_ms, span.is_priced) for span in spans]
        return PlanHistory(plans, partial(bounds_of, self.state, self.counting), not self.is_whole)

    def shares(self, start_ms: int, end_ms: int) -> tuple[PlanShare, ...]:
        """The plans of a period with their shares of it; none: its plan did not change.

        A change that Stripe did not charge by the second holds from the beginning of the period, and so does
        one in its first minute. The last plan is taken to stay until the end.
        """
        return () if self.is_whole else self.shares_of(self.spans, start_ms, end_ms)

    def shares_of_cut(self, cut: Cut) -> tuple[PlanShare, ...]:
        """The plans of a period that was cut short; the time after that gives nothing, unless it was paid."""
        inside = [span for span in self.spans if span.from_ms < cut.cut_ms]
        if self.is_whole:
            inside = [inside[-1]._replace(is_priced=False)]
        if not cut.is_paid:
            inside.append(PlanSpan(UNKNOWN_PLAN, cut.cut_ms, is_priced=True))
        had = self._replace(counting=CountingCycle(per=cut.per))
        return had.shares_of(inside, cut.start_ms, cut.end_ms) or (had.share_of(inside[-1]),)

    def share_of(self, span: PlanSpan, share: Fraction = Fraction(1)) -> PlanShare:
        """A plan's share; one that is counted over a year gives a month a twelfth, and the reverse."""
        plan = _plan_of(span, self.catalog)
        if plan is not None:
            share *= Fraction(MONTHS[self.counting.per], MONTHS[counted_per(plan)])
        return PlanShare(plan, share, dict(span.used))

    def last_share(self, end_ms: int) -> PlanShare:
        """All of a period, of its last plan."""
        return self.share_of(next(span for span in reversed(self.spans) if span.from_ms < end_ms))

    def shares_of(self, spans: Sequence[PlanSpan], start_ms: int, end_ms: int) -> tuple[PlanShare, ...]:
        """Shares of some plans, also where each gives all."""
        inside = [span for span in spans if span.from_ms < end_ms]
        whole = (place for place, span in enumerate(inside) if span.from_ms <= start_ms or not span.is_priced)
        parts, length_ms = inside[max(whole) :], end_ms - start_ms
        if not parts[-1].is_by_hand:
            length_ms = _full_length_ms(self.state, start_ms) or length_ms
        if len(parts) == 1 and length_ms == end_ms - start_ms:
            return ()
        parts = parts[sum(span.from_ms <= start_ms + AT_ONCE_MS for span in parts[1:]) :]
        edges = [start_ms, *(span.from_ms for span in parts[1:]), end_ms]
        return tuple(
            self.share_of(span, Fraction(till_ms - from_ms, length_ms))
            for span, (from_ms, till_ms) in zip(parts, pairwise(edges), strict=True)
        )


def effective_terms(state: CustomerState, catalog: Catalog, now_ms: int) -> EffectivePlan:
    """The plan, access and period of a customer at an instant, with the allowance of this period.

    With restricted access, the remaining plan gives what the plans file defines; what is left of earlier
    periods' grants lives on as without the restriction.
    """
    effective, reach = effective_plan(state, catalog, now_ms), grant_reach(catalog)
    is_open = effective.access not in {"restricted", "suspended"}
    has_changed = is_open and _has_changed_since(state, effective.bounds.start_ms, now_ms)
    cuts, spent = cuts_of(state.terms), spent_of(state.terms)
    if not (has_changed or reach.life_ms or cuts or spent or reach.periods or reach.has_once):
        return effective
    counting, terms = effective.counting, terms_of(state, catalog, now_ms)
    all_had = PlansHad(state, catalog, counting, ()).by_terms(terms, now_ms)
    had = all_had.known()
    shares: tuple[PlanShare, ...] = ()
    if has_changed:
        shares = had.shares(*_uncut_period(state, counting, now_ms))
    rolls: Rolls | None = None
    if reach.periods:
        # The plan in force when a period begins decides, since its own instant also if it was set by hand.
        in_force = had._replace(spans=plan_spans(terms, now_ms, catalog.default_plan)).known().spans
        rolls = find_rolls(had.history(in_force), now_ms)
    earlier = tuple(_earlier_periods(had, cuts, now_ms, reach.life_ms, rolls))
    overdrawn = _overdrawn_at(had, now_ms) if is_open else {}
    once: tuple[OnceGrant, ...] | None = None
    if reach.has_once:
        plans = tuple(share.plan for share in shares if share.plan is not None) or (effective.plan,)
        # A plan that left the file gave other grants once than the one that followed.
        history = all_had.history(all_had.spans)
        once = find_once(history, plans, effective.bounds.start_ms, now_ms) if is_open else ()
    allowance = Allowance(earlier=earlier, rolls=rolls, once=once)
    lives_on = any(grant.expires_ms or grant.every == "once" for grant in effective.plan.grants)
    lives_on = lives_on or reach.periods > 0  # The view must not outlive the period: another one rolls.
    if allowance == Allowance() and not shares and not overdrawn and not lives_on:
        return effective
    if shares or overdrawn:
        given = _allowance_by(effective.plan, shares, catalog, overdrawn)
        allowance = replace(given, earlier=earlier, rolls=rolls, once=once)
    if shares or overdrawn or any(period.grants.limits for period in earlier):
        allowance = replace(allowance, history=digest_of_terms((all_had.spans, cuts, spent)))
    return replace(
        effective,
        allowance=None if allowance == Allowance() else allowance,
        valid_until_ms=min(effective.valid_until_ms, effective.bounds.end_ms),
    )


def _has_changed_since(state: CustomerState, start_ms: int, now_ms: int) -> bool:
    """Whether plans have shares of the period that begins then: a cheap first check."""
    subscription = state.subscription
    pending_ms = None if subscription is None else subscription.pending_at_ms
    is_scheduled = pending_ms is not None and start_ms < pending_ms <= now_ms
    rows = (dict(row.facts) for row in state.terms if start_ms <= row.since_ms <= now_ms)
    # A subscription that begins or ends gives no share, and prices have none.
    has_parts = is_scheduled or any(SUBSCRIPTION not in facts and {*facts} != {PRICES} for facts in rows)
    return has_parts or _full_length_ms(state, start_ms) is not None


def _full_length_ms(state: CustomerState, start_ms: int) -> int | None:
    """Length of a period as it is charged in full, if the one that begins then is charged by its part."""
    late = (value for row in state.terms for name, value in row.facts if name == LATE_PERIOD and value)
    return next((whole_ms for late_ms, whole_ms in late if abs(late_ms - start_ms) < SHORTEST_MS), None)


def _plan_of(span: PlanSpan, catalog: Catalog) -> Plan | None:
    """The plan with its add-ons; None: it is not known."""
    if span.plan == UNKNOWN_PLAN:
        return None
    plan = catalog.plan_or_default(span.plan)
    return with_addons(plan, span.bought, catalog) if span.bought else plan


def _prorated_included(
    plan: Plan, shares: Sequence[PlanShare], catalog: Catalog
) -> tuple[tuple[str, int], ...]:
    """The included quantity of each counter of the plan.

    Time without a limit adds nothing, but all that is used by its end is included.
    """
    return tuple(
        (name, ceil(_included_of(name, shares)))
        for name, entitlement in plan.entitlements.items()
        if entitlement.included is not None and _is_prorated(catalog.meters[name])
    )


def _is_prorated(meter: Meter) -> bool:
    has_tiers = meter.stripe is not None and meter.stripe.report == "usage"  # At Stripe, for each price.
    return meter.kind == "counter" and not (meter.is_row or meter.is_spend or has_tiers)


def _included_of(meter: str, shares: Sequence[PlanShare]) -> Fraction:
    total = Fraction(0)
    for plan, share, used in shares:
        included = 0 if plan is None else plan.entitlements[meter].included
        total = max(total + share * (included or 0), Fraction(used.get(meter, 0)))
    return total


def _prorated_addons(shares: Sequence[PlanShare], catalog: Catalog) -> Mapping[str, Fraction]:
    """The part of each included quantity that add-ons give."""
    total: dict[str, Fraction] = {}
    for plan, share, _ in shares:
        for meter, quantity in included_by(() if plan is None else plan.bought, catalog).items():
            total[meter] = total.get(meter, Fraction(0)) + share * quantity
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
    return PeriodGrants(sort_by_burn_order(lines), limits)


def _allowance_by(
    plan: Plan, shares: Sequence[PlanShare], catalog: Catalog, overdrawn: Mapping[str, int] = _NOTHING
) -> Allowance:
    """Add up shares, or the whole plan if there are none, less what is overdrawn."""
    shares = shares or (PlanShare(plan, Fraction(1)),)
    included = tuple(
        (name, max(0, units - overdrawn.get(f"{INCLUDED}{name}", 0)))
        for name, units in _prorated_included(plan, shares, catalog)
    )
    added = _prorated_addons(shares, catalog)
    return Allowance(
        included=included,
        added=tuple(
            (name, ceil(units)) for name, units in added.items() if _is_prorated(catalog.meters[name])
        ),
        grants=_subtract_overdrawn(_prorated_grants(shares), overdrawn),
    )


def _quantities_of(allowance: Allowance) -> dict[str, int]:
    """Quantities of an allowance, by target as in a cut."""
    grants = () if allowance.grants is None else allowance.grants.limits
    return {**{f"{INCLUDED}{name}": units for name, units in allowance.included}, **dict(grants)}


def _round_up(target: str, quantity: Fraction) -> int:
    unit = MICRO if target.startswith("c:") else 1
    return ceil(quantity / unit) * unit


def _earlier_periods(
    had: PlansHad, cuts: Sequence[Cut], now_ms: int, life_ms: int, rolls: Rolls | None
) -> Iterator[EarlierPeriod]:
    """Earlier periods whose grants may still live, the latest first, behind those that were cut short.

    Before the first subscription there were calendar months; of these only what lives on may be left.
    """
    rolled_ms, listed = NEVER_MS if rolls is None else rolls.starts[0], Counter[str]()
    for cut in reversed(cuts):
        if now_ms < max(cut.end_ms, cut.start_ms + life_ms) or cut.cut_ms > rolled_ms:
            given = mark_rolled(_prorated_grants(had.shares_of_cut(cut)), rolls, cut.cut_ms)
            yield EarlierPeriod(cut.start_ms, cut.cut_ms, given, True)
    subscription, first_ms = had.state.subscription, 0
    certain_ms = free_ms = had.spans[1].from_ms if len(had.spans) > 1 else NEVER_MS
    if subscription is not None and subscription.has_begun_at(now_ms):
        first_ms = subscription.made_ms
        certain_ms = min(certain_ms, first_ms)
    end_ms = had.start_of(now_ms)
    for _ in range(_PERIODS_MAX if rolls is None else max(_PERIODS_MAX, len(rolls.starts))):
        start_ms = had.start_of(end_ms - 1)
        is_before = start_ms < first_ms
        if start_ms < rolled_ms and (is_before or start_ms + life_ms <= now_ms):
            return
        if is_before and end_ms > min(first_ms, free_ms):
            return
        if not any(start_ms <= cut.start_ms < end_ms for cut in cuts):
            grants = mark_rolled(_grants_of(had, start_ms, end_ms), rolls, end_ms)
            living = living_lines(grants, rolls, start_ms, now_ms, listed)
            lines = tuple(line for line in living if line[4] < 0 or not is_before)
            if lines:
                yield EarlierPeriod(start_ms, end_ms, grants._replace(lines=lines), end_ms > certain_ms)
        end_ms = start_ms


def _grants_of(had: PlansHad, start_ms: int, end_ms: int) -> PeriodGrants:
    """The recurring grants of an earlier period, less what is overdrawn; of a lost plan those on file."""
    if any(one.is_lost and one.from_ms < end_ms and start_ms < to.from_ms for one, to in pairwise(had.spans)):
        return PeriodGrants(())
    shares, last = had.shares(start_ms, end_ms), had.last_share(end_ms)
    overdrawn = _overdrawn_at(had, start_ms)
    if shares or overdrawn:
        return _subtract_overdrawn(_prorated_grants(shares or (last,)), overdrawn)
    return PeriodGrants(() if last.plan is None else grant_lines(last.plan))


def _subtract_overdrawn(grants: PeriodGrants, overdrawn: Mapping[str, int]) -> PeriodGrants:
    limits = ((target, max(0, units - overdrawn.get(target, 0))) for target, units in grants.limits)
    return grants._replace(limits=tuple(limits))


def cut_of(
    state: CustomerState, catalog: Catalog, last_ms: int, cut_ms: int, used: Mapping[str, int] | None
) -> Cut:
    """A period that was cut short, with use beyond its paid part; what was overdrawn before adds to it.

    Args:
        state: as it was when the period was cut short.
        catalog: what is sold.
        last_ms: an instant of the period.
        cut_ms: when it was cut short.
        used: by target, as in :class:`~meterkit.terms.cuts.Cut`, what was used in the period; None: all of it
            was paid.
    """
    effective = effective_plan(state, catalog, last_ms)
    had = PlansHad.of(state, catalog, last_ms, effective.counting).known()
    start_ms, end_ms = _uncut_period(state, effective.counting, last_ms)
    cut = Cut(start_ms, cut_ms, end_ms, effective.counting.per, is_paid=used is None)
    before = _overdrawn_at(had, last_ms)
    due = _quantities_of(_allowance_by(effective.plan, had.shares_of_cut(cut), catalog))
    grants = {target: units for target, units in (used or {}).items() if not target.startswith(INCLUDED)}
    beyond = Counter(before) + Counter(
        {target: (used or {}).get(target, 0) for target in {*due, *before, *grants}}
    )
    beyond.subtract(due)
    units = tuple(sorted((target, over) for target, over in beyond.items() if over > 0))
    return cut._replace(units=units, before=units if used is None else tuple(sorted(before.items())))


def _reduce_overdrawn(overdrawn: Mapping[str, int], allowance: Allowance) -> dict[str, int]:
    """The part of what is overdrawn that a period does not make up for."""
    due = _quantities_of(allowance)
    left = ((target, units - due.get(target, 0)) for target, units in overdrawn.items())
    return {target: units for target, units in left if units > 0}


def _overdrawn_at(had: PlansHad, now_ms: int) -> dict[str, int]:
    """Overdrawn units at the start of this period: each period since the latest cut makes up for a part."""
    state, subscription = had.state, had.state.subscription
    cut, spent = next(reversed(cuts_of(state.terms)), None), spent_of(state.terms)
    if state.plan is not None:
        return {}
    start_ms = had.start_of(now_ms)
    has_begun = subscription is not None and subscription.has_begun_at(now_ms)
    if subscription is None or not has_begun or subscription.status_at(now_ms) in ENDED:
        return dict(spent.units) if spent is not None and spent.covers(start_ms) else {}
    if cut is None:
        return {}
    # The counts of a period go on where another one begins within two minutes.
    left: dict[str, int] = dict(cut.before if start_ms < cut.start_ms + SHORTEST_MS else cut.units)
    first_ms = max(cut.cut_ms, subscription.made_ms)
    for _ in range(_PERIODS_MAX):
        if start_ms <= first_ms or not left:
            return left
        end_ms, start_ms = start_ms, had.start_of(start_ms - 1)
        plan = had.last_share(end_ms).plan
        if plan is not None:
            left = _reduce_overdrawn(left, _allowance_by(plan, had.shares(start_ms, end_ms), had.catalog))
    return {}


def _uncut_period(state: CustomerState, counting: CountingCycle, now_ms: int) -> tuple[int, int]:
    """The period of an instant, to the end that is paid for: a cancellation cuts it short."""
    if state.subscription is not None:
        state = replace(state, subscription=replace(state.subscription, cancel_at_ms=None))
    bounds = bounds_of(state, counting, now_ms)
    return bounds.start_ms, bounds.end_ms


def spend_before_subscription(
    state: CustomerState, catalog: Catalog, at_ms: int, used: Mapping[str, int], begun_ms: int
) -> Cut:
    """Use without a subscription in the calendar month in which one begins.

    Args:
        state: before it has begun.
        catalog: what is sold.
        at_ms: when it began.
        used: by target, what counters have.
        begun_ms: when these counters began.
    """
    counting = effective_plan(state, catalog, at_ms).counting
    start_ms, end_ms = _uncut_period(state, counting, at_ms)
    month, spent, before = (
        Cut(start_ms, begun_ms, end_ms, counting.per),
        spent_of(state.terms),
        dict[str, int](),
    )
    if spent is not None and spent.covers(start_ms):
        month, before = spent, dict(spent.units)
    units = Counter(before) + Counter(used)
    return month._replace(
        cut_ms=begun_ms, units=tuple(sorted(units.items())), before=tuple(sorted(before.items()))
    )


def uncut_period(state: CustomerState, catalog: Catalog, at_ms: int) -> tuple[int, int]:
    """The counting period of an instant, to the end that is paid for."""
    return _uncut_period(state, effective_plan(state, catalog, at_ms).counting, at_ms)
