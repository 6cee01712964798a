"""The stored state of a customer; the plan, access, period and seats that follow from it at an instant."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog import override
from meterkit.catalog.addons import with_addons
from meterkit.catalog.entitlements import included_by
from meterkit.catalog.models import SEAT_UNITS
from meterkit.decisions.customer_overrides import (
    NO_OVERRIDES,
    has_price,
    has_timed_price,
    next_end_ms,
    overrides_at,
    without_priced_overage,
)
from meterkit.decisions.decision import Decision
from meterkit.decisions.item_prices import (
    ItemPrices,
    base_interval,
    dump_item_prices,
    parse_item_prices,
    with_item_prices,
)
from meterkit.decisions.keys import FORMAT
from meterkit.decisions.periods import Bounds, bounds_at
from meterkit.decisions.subscription import (
    ENDED,
    NEVER_MS,
    Access,
    Status,
    SubscriptionState,
    access_term_of,
    known_line_switches,
    restrict_unpaid,
)
from meterkit.decisions.subscription_periods import (
    CountingCycle,
    Interval,
    former_bounds,
    subscription_bounds,
    with_former_start,
)
from meterkit.terms.rows import (
    BY_HAND,
    PLAN_BY_HAND,
    PRICES,
    PRICES_BY_HAND,
    SOLD,
    SUBSCRIPTION,
    Row,
    in_force,
    last_ms,
    rename,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter, Plan, Route
    from meterkit.catalog.models import Bought
    from meterkit.decisions.allowance import Allowance
    from meterkit.decisions.customer_overrides import Overrides, Stored
    from meterkit.decisions.decision import Reason
    from meterkit.terms.rows import Terms

_NO_ADDONS: Final[Bought] = ()
_SEATS: Final = "seats"
_UNPAID: Final = "incomplete"
_COUNTING: Final[Mapping[Interval, CountingCycle]] = {
    "month": CountingCycle(per="month"),
    "year": CountingCycle(per="year"),
}


def seat_meter(meters: Mapping[str, Meter]) -> str | None:
    """Gauge that counts seats: the one named ``seats``, otherwise the only one whose unit is a seat."""
    gauges = {name: meter.unit for name, meter in meters.items() if meter.kind == "gauge"}
    if _SEATS in gauges:
        return _SEATS
    found = [name for name, unit in gauges.items() if unit in SEAT_UNITS]
    return found[0] if len(found) == 1 else None


def with_seats(
    entitlements: Mapping[str, Entitlement], meters: Mapping[str, Meter], seats: int
) -> Mapping[str, Entitlement]:
    """Entitlements with at least the paid number of seats included."""
    name = seat_meter(meters) if seats else None
    included = None if name is None else entitlements[name].included
    if name is None or included is None or included >= seats:
        return entitlements
    return {**entitlements, name: replace(entitlements[name], included=seats)}


def covered_seats(plan: Plan, meters: Mapping[str, Meter]) -> int | None:
    """Number of seats that a plan and its add-ons cover; None: no limit, or no gauge counts seats."""
    name = seat_meter(meters)
    return None if name is None else plan.entitlements[name].included


NO_STATE: Final = f"{FORMAT}:0"
"""The rev of a customer without a state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerState:
    """The state of a customer: everything except its usage.

    Attributes:
        plan: the plan set by the app or an operator, or None: the subscription's, or the default plan.
        status: the status set by the app or an operator, or None: the subscription's.
        status_since_ms: when the status set by hand began.
        subscription: as it was when it was last fetched from Stripe, or None where there is none.
        stripe_customer: the linked Stripe customer, or None.
        anchor_ms: where there is no subscription: the anchor of billing periods, or None for calendar months.
        overrides: of meters and features; see :mod:`meterkit.decisions.customer_overrides`.
        granted: whether grants were ever added.
        minutes_taken_ms: minutes used by intents of an earlier customer of the same Stripe customer.
        asked_plan: a plan that the customer asked for and that Stripe has not confirmed yet; None: none.
        asked_ms: when that was.
        terms: what it had since when; see :mod:`meterkit.terms.rows`.
        former_starts_ms: first instants of periods until another subscription was known, the oldest first;
            see :mod:`meterkit.decisions.subscription_periods`.
        currency: of the linked Stripe customer or its subscription, in lower case, also after that has ended;
            empty: not known, so it is the first of the plans file.
    """

    plan: str | None = None
    status: Status | None = None
    status_since_ms: int = 0
    stripe_customer: str | None = None
    anchor_ms: int | None = None
    overrides: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    granted: bool = False
    minutes_taken_ms: tuple[int, ...] = ()
    asked_plan: str | None = None
    asked_ms: int = 0
    terms: Terms = ()
    former_starts_ms: tuple[int, ...] = ()
    currency: str = ""
    subscription: SubscriptionState | None = None

    @property
    def plan_keys(self) -> tuple[str, ...]:
        """The plans that it names: set by hand, sold and scheduled."""
        sold = self.subscription
        named = (self.plan, None if sold is None else sold.plan, None if sold is None else sold.pending_plan)
        return tuple(key for key in named if key is not None)

    def prices_at(self, at_ms: int) -> ItemPrices:
        """Prices of the subscription's items at an instant, of earlier ones too; none between two of them."""
        if self.subscription is None or at_ms < last_ms(self.terms, SOLD):
            found: ItemPrices = in_force(self.terms, at_ms)[PRICES]
            return found
        return self.subscription.prices_at(at_ms)

    def prices_on(self, plan: str, at_ms: int) -> ItemPrices:
        """Prices of usage on a plan: those of the subscription, and of a plan set by hand what it lacks."""
        found, facts = self.prices_at(at_ms), in_force(self.terms, at_ms)
        if plan != facts[PLAN_BY_HAND]:
            return found
        events = {one.event_name for one in found if not one.is_dropped}
        return (*found, *(one for one in facts[PRICES_BY_HAND] if one.event_name not in events))

    def dump(self) -> str:
        """The state as JSON, defaults left out. Prices are stored once; rows and subscription name them."""
        places: dict[ItemPrices, int] = {}

        def place(facts: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
            for name, value in facts:
                yield name, places.setdefault(value, len(places)) if name in _PRICES else value

        of = replace(self, subscription=None, terms=())
        kept = {name: value for name, value in asdict(of).items() if value != getattr(INITIAL_STATE, name)}
        if self.terms:
            kept["terms"] = [row._replace(facts=tuple(place(row.facts))) for row in self.terms]
        if self.subscription is not None:
            kept["subscription"] = dict(place(self.subscription.kept().items()))
        if places:
            kept["prices"] = [*map(dump_item_prices, places)]
        return json.dumps(kept, separators=(",", ":"), sort_keys=True)

    @classmethod
    def parse(cls, data: str | bytes) -> CustomerState:
        """The inverse of :meth:`dump`; empty text is the state of a customer without one."""
        if not data:
            return INITIAL_STATE
        known: dict[str, Any] = json.loads(data)
        subscription = known.pop("subscription", None)
        # Ignores fields of a newer release.
        given = {name: value for name, value in known.items() if name in _FIELDS}
        for name in given.keys() & {"minutes_taken_ms", "former_starts_ms"}:
            given[name] = tuple(given[name])
        prices = [*map(parse_item_prices, known.get("prices", ()))]
        for row in given.get("terms", ()):
            row[3] = [(name, prices[value] if name in _PRICES else value) for name, value in row[3]]
        if "terms" in given:
            given["terms"] = tuple(map(Row.of, given["terms"]))
        if subscription is not None:
            subscription |= {name: prices[subscription[name]] for name in subscription.keys() & _PRICES}
        kept = None if subscription is None else SubscriptionState.of(subscription)
        return cls(**given, subscription=kept)


_PRICES: Final = frozenset({PRICES, PRICES_BY_HAND, "prices", "pending_prices"})
_FIELDS: Final = frozenset(CustomerState.__slots__)
INITIAL_STATE: Final = CustomerState()
"""The state of a customer who has none stored: the default plan, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePlan:
    """Terms that a state and a catalog give at an instant.

    Attributes:
        plan: the active plan, with the add-ons in force and the customer's own features.
        status: of the subscription, by the clock; None: there is none.
        access: what the customer may do.
        seats: that the subscription pays for, those that the plan and add-ons cover included.
        missing_plan: the key of the plan if the plans file lacks it. The default plan replaces it if its
            terms are not known. None: the file has the plan.
        keeps_limits: whether gauges above their limits after a change of plan keep the former limits, by
            the plans file. A restricted customer does not: that is no change of plan.
        overrides: meter to an entitlement in the notation of the plans file, laid over the plan's.
        subject_overrides: what subjects get differently; see :mod:`meterkit.decisions.customer_overrides`.
        prices: of usage: the subscription's own, or those of a plan set by hand; empty: none, or not known.
        counting: cycle over which included quantities are counted.
        bounds: this period and the next.
        valid_until_ms: end of validity if the state does not change.
        allowance: differences from the plan in this period; None: none.
        currency: of all amounts, one of the plans file.
        follows_prices: whether lines bill usage whose price the clock or an edited plans file may change.
    """

    plan: Plan
    status: Status | None
    access: Access
    seats: int
    missing_plan: str | None
    keeps_limits: bool
    overrides: Mapping[str, Mapping[str, object]]
    subject_overrides: Mapping[str, Mapping[str, object]]
    prices: ItemPrices
    counting: CountingCycle
    bounds: Bounds
    valid_until_ms: int
    allowance: Allowance | None = None
    currency: str = ""
    follows_prices: bool = False


def entitlements_of(effective: EffectivePlan, catalog: Catalog) -> Mapping[str, Entitlement]:
    """Entitlements of a customer: the plan's, with this period's allowance, overrides and seats.

    Overage costs what the customer's own subscription items charge.
    """
    plan, catalog = effective.plan, catalog.in_currency(effective.currency)
    if effective.allowance is not None:
        changed = {
            meter: replace(plan.entitlements[meter], included=quantity)
            for meter, quantity in effective.allowance.included
        }
        plan = replace(plan, entitlements={**plan.entitlements, **changed})
    given = plan.entitlements
    if effective.overrides:
        added = dict(included_by(plan.bought, catalog))
        if effective.allowance is not None:
            added |= effective.allowance.added
        given = override(catalog, plan, effective.overrides, added=added)
    given = with_item_prices(given, effective.prices, catalog)
    return with_seats(given, catalog.meters, effective.seats)


def entitlements_on(
    plan: Plan, state: CustomerState, catalog: Catalog, at_ms: int, *, own_prices: bool = True
) -> Mapping[str, Entitlement]:
    """Entitlements of a customer on a plan at an instant, in the customer's currency, seats left out.

    Args:
        plan: which, in any currency of the plans file.
        state: the customer's: overrides, and its own prices.
        catalog: where the plan is.
        at_ms: the instant.
        own_prices: whether overage has the prices of the subscription's items, not those of the plan.
    """
    overrides, own = overrides_in_force(state, at_ms).meters, catalog.in_currency(state.currency)
    if own is not catalog:
        bought, plan, catalog = plan.bought, own.find_plan(plan.key) or plan, own
        plan = with_addons(plan, bought, own) if bought else plan
    given = override(catalog, plan, overrides) if overrides else plan.entitlements
    if not own_prices:
        return given
    prices = _without_overridden(state.prices_on(plan.key, at_ms), overrides, state, catalog, at_ms)
    return with_item_prices(given, prices, catalog)


def overrides_in_force(state: CustomerState, at_ms: int) -> Overrides:
    """Overrides at an instant. Without a subscription in force, no price of one holds: nothing bills it."""
    own = overrides_at(state.overrides, at_ms)
    if not own.meters or is_subscribed(state, at_ms):
        return own
    return replace(own, meters=without_priced_overage(own.meters))


def is_subscribed(state: CustomerState, at_ms: int) -> bool:
    """Whether a subscription is in force at an instant."""
    known = state.subscription
    if known is None or at_ms < known.created_ms:
        return in_force(state.terms, at_ms)[SUBSCRIPTION] is not None
    return known.has_begun_at(at_ms) and at_ms < known.ends_ms()


def item_prices_at(state: CustomerState, catalog: Catalog, overrides: Stored, at_ms: int) -> ItemPrices:
    """Prices of the subscription's items at an instant, without those that overrides replace."""
    return _without_overridden(state.prices_at(at_ms), overrides, state, catalog, at_ms)


def _without_overridden(
    prices: ItemPrices, overrides: Stored, state: CustomerState, catalog: Catalog, at_ms: int
) -> ItemPrices:
    """Prices without those that overrides replace; where Stripe has them, its items say so themselves."""
    if not overrides or not is_billed_by_lines(state, catalog, at_ms):
        return prices
    return tuple(one for one in prices if not has_price(overrides.get(one.meter, {})))


def line_switches(state: CustomerState, catalog: Catalog) -> tuple[int, ...]:
    """Instants from which invoice lines, and metered prices again, in turn bill a customer's usage (ms).

    Without a subscription, and after its end, the plans file decides.
    """
    known, by_file = state.subscription, catalog.billing.is_by_lines
    switches = () if known is None else known_line_switches(known, state.terms)
    if known is None or not (switches or known.metered):
        return (0,) * by_file
    ends_ms = known.ends_ms()
    kept = tuple(at_ms for at_ms in switches if at_ms < ends_ms)
    return kept if ends_ms == NEVER_MS or len(kept) % 2 == by_file else (*kept, ends_ms)


def is_billed_by_lines(state: CustomerState, catalog: Catalog, at_ms: int) -> bool:
    """Whether invoice lines, not metered prices, bill a customer's usage of an instant."""
    return sum(switch_ms <= at_ms for switch_ms in line_switches(state, catalog)) % 2 == 1


def keep_holds_only(
    entitlements: Mapping[str, Entitlement], meters: Iterable[str], concurrency: tuple[str, ...]
) -> Mapping[str, Entitlement]:
    """Entitlements without the rates of some meters, and without the concurrency limits of others.

    Args:
        entitlements: of every meter.
        meters: those that only hold quantities.
        concurrency: those of them that keep their concurrency limit.
    """
    kept = dict(entitlements)
    for name in meters:
        given = entitlements[name]
        kept[name] = replace(given, rates=(), concurrency=given.concurrency if name in concurrency else None)
    return kept


def effective_plan(state: CustomerState, catalog: Catalog, now_ms: int) -> EffectivePlan:
    """The plan, access and period of a customer at an instant.

    The plan is the one set by hand, otherwise the subscription's, otherwise the default plan; likewise the
    status. What the subscription sells beside its plan, seats and add-ons, counts beside either.
    :func:`~meterkit.decisions.subscription.access_term_of` derives the access. A subscription that has ended
    leaves the default plan, and so does a plan whose terms are not known. A subscription that was never
    paid for, nor on trial, changes neither plan nor access; only its status is shown. ``incomplete`` set by
    hand means the same.
    """
    subscription, catalog = state.subscription, catalog.in_currency(state.currency)
    status, failures, failed_at_ms, turn_ms = state.status, 1, state.status_since_ms, NEVER_MS
    if subscription is not None:
        turn_ms = subscription.next_change_ms(now_ms)
        if status is None:
            status, failures = subscription.status_at(now_ms), subscription.failures
            failed_at_ms = subscription.failed_since_ms()
    standing = access_term_of(
        status, failures=failures, failed_at_ms=failed_at_ms, dunning=catalog.dunning, now_ms=now_ms
    )
    if state.status is None and subscription is not None and subscription.is_unpaid_at(now_ms):
        standing = restrict_unpaid(standing)
    named = plan_named(state, status, now_ms)
    plan = catalog.plan_or_default(named)
    own = overrides_in_force(state, now_ms)
    if standing.access == "restricted":
        plan, own = catalog.plans[catalog.dunning.restrict_to], NO_OVERRIDES
    counting = _counting_cycle(state, plan, catalog, now_ms)
    seats, bought = 0, _NO_ADDONS
    if subscription is not None and standing.access != "restricted" and has_paid_terms(state, status, now_ms):
        bought = subscription.addons_at(now_ms)
        sold = catalog.find_plan(subscription.plan_at(now_ms))
        covered = None if sold is None else covered_seats(with_addons(sold, bought, catalog), catalog.meters)
        seats = subscription.seats_at(now_ms, covered)
    if bought:
        plan = with_addons(plan, bought, catalog)
    return EffectivePlan(
        plan=_with_features(plan, own.features, catalog),
        status=status,
        access=standing.access,
        seats=seats,
        missing_plan=None if named in catalog.plans else named,
        keeps_limits=catalog.billing.changes.over_limit == "allow" and standing.access != "restricted",
        overrides=own.meters,
        subject_overrides=own.subjects,
        prices=_without_overridden(state.prices_on(plan.key, now_ms), own.meters, state, catalog, now_ms),
        counting=counting,
        bounds=bounds_of(state, counting, now_ms),
        valid_until_ms=min(standing.until_ms, turn_ms, next_end_ms(state.overrides, now_ms)),
        currency=catalog.currency,
        follows_prices=is_billed_by_lines(state, catalog, now_ms)
        and (not is_subscribed(state, now_ms) or has_timed_price(state.overrides)),
    )


def has_paid_terms(state: CustomerState, status: Status | None, now_ms: int) -> bool:
    """Whether what a subscription sells beside its plan counts: it has begun, and it has not ended."""
    subscription = state.subscription
    has_begun = subscription is not None and subscription.has_begun_at(now_ms)
    return has_begun and status not in {*ENDED, _UNPAID}


def _with_features(plan: Plan, own: Mapping[str, bool], catalog: Catalog) -> Plan:
    """A plan with the features of one customer, as far as the plans file still has them."""
    if not own:
        return plan
    added = {name for name, has in own.items() if has} & catalog.features
    removed = {name for name, has in own.items() if not has}
    return replace(plan, features=(plan.features | added) - removed)


def plan_named(state: CustomerState, status: Status | None, now_ms: int) -> str | None:
    """The key of the plan that is active unless access is restricted; None: the default plan."""
    subscription = state.subscription
    if status in ENDED:
        # A value set after the end of a subscription is kept.
        was_over = subscription is not None and (
            subscription.status in ENDED or last_ms(state.terms, BY_HAND) >= subscription.ends_ms()
        )
        return state.plan if state.status is None and was_over else None
    is_unpaid = state.status == _UNPAID or subscription is None or not subscription.has_begun_at(now_ms)
    if state.plan is not None or subscription is None or is_unpaid:
        return state.plan
    return subscription.plan_at(now_ms)


def _counting_cycle(state: CustomerState, plan: Plan, catalog: Catalog, now_ms: int) -> CountingCycle:
    """Cycle of included quantities, by the subscription's own plan, even while access is restricted."""
    subscription = state.subscription
    if (
        subscription is None
        or subscription.status_at(now_ms) in ENDED
        or not subscription.has_begun_at(now_ms)
    ):
        return _COUNTING[counted_per(plan)]
    own = catalog.find_plan(subscription.plan_at(now_ms)) or plan
    before, after = catalog.find_plan(subscription.plan), catalog.find_plan(subscription.pending_plan)
    is_other = (
        before is not None
        and after is not None
        and after.price.interval != (base_interval(subscription.base_price) or before.price.interval)
    )
    per = counted_per(own)
    if own.price.included_per == "interval":  # A plan may have another interval in the file by now.
        per = subscription.interval_at(now_ms) or per
    return CountingCycle(per=per, anew_ms=subscription.pending_at_ms) if is_other else _COUNTING[per]


def counted_per(plan: Plan) -> Literal["month", "year"]:
    """The span over which the included quantities of a plan are counted."""
    return plan.price.interval if plan.price.included_per == "interval" else "month"


def with_subscription(
    state: CustomerState,
    subscription: SubscriptionState | None,
    plans: Collection[str] | None = None,
    addons: Collection[str] = (),
) -> CustomerState:
    """A state after its subscription was fetched from Stripe.

    A plan (a status) set by hand is kept until the subscription's own changes. A
    subscription that was never paid for, nor on trial, changes neither.

    Args:
        state: as it was.
        subscription: as Stripe shows it now; None: there is none.
        plans: the keys of the plans of the file that it was read by; None: the stored plan is one of them.
        addons: the keys of the add-ons of that file.
    """
    known = state.subscription
    is_same = known is not None and subscription is not None and known.id == subscription.id
    if is_same and known is not None and subscription is not None:
        subscription = with_former_start(subscription, known)
        subscription = subscription.with_known_meters(known)
        if plans is not None:
            subscription = subscription.with_known_plan(known, plans, addons)
    currency = "" if subscription is None else subscription.currency
    changed = replace(state, subscription=subscription, currency=currency or state.currency)
    before, after = _if_begun(known), _if_begun(subscription)
    has_only_signed_up = (
        after is None and subscription is not None and (before is None or before.status in ENDED)
    )
    if has_only_signed_up or (before is None and after is None):
        return changed
    if not is_same or before is None or after is None:
        return replace(changed, plan=None, status=None, status_since_ms=0)
    if before.status != after.status:
        changed = replace(changed, status=None, status_since_ms=0)
    has_ended = after.status in ENDED and before.status not in ENDED
    if before.plan != after.plan or has_ended:
        changed = replace(changed, plan=None)
    return changed


def _if_begun(subscription: SubscriptionState | None) -> SubscriptionState | None:
    """A subscription that was ever paid for, or on trial; None: there is none."""
    return subscription if subscription is not None and subscription.has_begun else None


def refusal_of(customer: str, effective: EffectivePlan, route: Route | None) -> Decision | None:
    """The refusal that follows from a customer's state alone; ``route`` is None off the request."""
    if route is None:
        return refusal_for_feature(customer, effective, None)
    if route.always:
        return None
    feature = route.feature
    if route.further_features:
        feature = route.first_feature_beyond(effective.plan.features)
    return refusal_for_feature(customer, effective, feature)


def refusal_for_feature(customer: str, effective: EffectivePlan, feature: str | None) -> Decision | None:
    """The refusal of a customer who is suspended, or whose plan does not have the feature."""
    reason: Reason | None = None
    if effective.access == "suspended":
        reason = "suspended"
    elif feature is not None and feature not in effective.plan.features:
        reason = "feature"
    if reason is None:
        return None
    return Decision(customer=customer, plan=effective.plan.key, allowed=False, reason=reason)


def bounds_of(state: CustomerState, counting: CountingCycle, at_ms: int) -> Bounds:
    """Period of an instant, and the next one, by the known subscription."""
    # An unpaid subscription begins no period: else requesting one would renew the included quantities.
    subscription = state.subscription
    if subscription is not None and subscription.has_begun_at(at_ms):
        bounds = subscription_bounds(subscription, counting, at_ms, state.terms)
        is_earlier = at_ms < subscription.made_ms
        return former_bounds(bounds, state.former_starts_ms, at_ms) if is_earlier else bounds
    bounds = bounds_at(at_ms, anchor_ms=state.anchor_ms, interval=counting.per)
    bounds = former_bounds(bounds, state.former_starts_ms, at_ms)
    trial_end_ms = subscription.trial_end_ms if subscription is not None else None
    if trial_end_ms is None or at_ms < trial_end_ms:
        return bounds
    # A trial is over, and what it requires has not come.
    return replace(bounds, start_ms=max(bounds.start_ms, trial_end_ms))


def with_learned_prices(before: CustomerState, after: CustomerState) -> CustomerState:
    """State with the item prices of a later reading, if the subscription has the same items.

    A price at Stripe never changes, but a plans file that renames a meter changes how it is read.
    """
    old, new = before.subscription, after.subscription
    if (
        old is None
        or new is None
        or old.prices == new.prices
        or not new.metered
        or (old.id, old.metered) != (new.id, new.metered)
    ):
        return before
    terms = rename(before.terms, (PRICES, old.prices), (PRICES, new.prices)) if old.prices else before.terms
    return replace(before, subscription=replace(old, prices=new.prices), terms=terms)
