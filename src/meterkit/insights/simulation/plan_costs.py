"""Terms of a simulation: the price, limits and rates of a plan; the plan of each customer in a period."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog import override
from meterkit.catalog.addons import with_addons
from meterkit.catalog.entitlements import ceiling
from meterkit.customers.history import read_states_and_histories
from meterkit.customers.states import list_customers
from meterkit.decisions.compiled_decision import demands_of
from meterkit.decisions.customer_overrides import has_end_within, overrides_at
from meterkit.decisions.customer_state import INITIAL_STATE, effective_plan, item_prices_at, seat_meter
from meterkit.decisions.free_usage import is_usage_free_of
from meterkit.decisions.grants import ONCE_GIVEN, once_field, sold_grants
from meterkit.decisions.item_prices import (
    NO_FIXED_PRICES,
    NO_PRICES,
    FixedPrice,
    FixedPrices,
    with_item_prices,
)
from meterkit.decisions.limit_policies import billed_most
from meterkit.decisions.periods import DAY_MS, to_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.price_segments import label_of, overage_cents, parts_of, segments_of, sent_label
from meterkit.decisions.spending import budgets_of
from meterkit.decisions.transitions import parse_addons
from meterkit.terms.cuts import cuts_of
from meterkit.terms.rows import PRICES, ended_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.catalog.model_prices import PriceRows
    from meterkit.catalog.models import Bought, Rate, SubjectPlan
    from meterkit.customers.history import HistoryEntry
    from meterkit.decisions.customer_overrides import Stored
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store


_MONTHS: Final = 12


class AddonCost(NamedTuple):
    """Cost of an add-on for an interval.

    Attributes:
        key: in the plans file.
        name: as customers see it.
        price: of one.
        quantity: how many are paid for.
    """

    key: str
    name: str
    price: FixedPrice
    quantity: int

    @property
    def cents(self) -> int:
        """The price of all of them, in minor units."""
        return self.price.cents(self.quantity)


class PlanCost(NamedTuple):
    """Cost of a plan with its seats and add-ons for an interval.

    Attributes:
        base: the price of the plan.
        seat: that of one seat beyond those that the plan includes; None: it sells none.
        paid_seats: how many are paid for.
        addons: what is bought beside it.
    """

    base: FixedPrice
    seat: FixedPrice | None
    paid_seats: int
    addons: tuple[AddonCost, ...] = ()

    @property
    def seats_cents(self) -> int:
        """The price of all seats that are paid for, in minor units."""
        return 0 if self.seat is None else self.seat.cents(self.paid_seats)

    @property
    def addons_cents(self) -> int:
        """The price of all add-ons, in minor units."""
        return sum(addon.cents for addon in self.addons)

    def per_period(self, plan: Plan) -> Fraction:
        """The price of a period that quantities are included for, in minor units."""
        fixed = self.base.cents() + self.seats_cents + self.addons_cents
        return period_share(fixed, self.base.interval, plan)


def period_share(cents: int, interval: str, plan: Plan) -> Fraction:
    """The part of a fixed price that belongs to a period that quantities are included for.

    Args:
        cents: the price of an interval, in minor units.
        interval: that the customer pays for, which the plans file may have changed since.
        plan: says which span included quantities are counted over.
    """
    is_shared = interval == "year" and plan.price.included_per != "interval"
    return Fraction(cents, _MONTHS if is_shared else 1)


def plan_cost(
    catalog: Catalog, plan: Plan, seats: int, own: FixedPrices = NO_FIXED_PRICES, bought: Bought = ()
) -> PlanCost:
    """The price of a plan with so many seats in all, and with add-ons.

    Args:
        catalog: has the prices, where those of the items are not known.
        plan: which, with or without its add-ons.
        seats: in all, those that the plan and its add-ons include too.
        own: the prices of the customer's own items.
        bought: add-ons; without prices of items only those that the plan lists count.
    """
    file, currency = plan.price, catalog.currency
    of_file = FixedPrice(Fraction(file.amount_cents), currency, file.interval)
    base, seat = FixedPrice.parse(own.base) or of_file, FixedPrice.parse(own.seat)
    if seat is None and plan.seat_price is not None:
        seat = FixedPrice(Fraction(plan.seat_price.amount_cents), currency, file.interval)
    addons = tuple(_addon_costs(catalog, plan, own, bought))
    return PlanCost(base, seat, _seats_beyond(catalog, plan, seats, bought), addons)


def _seats_beyond(catalog: Catalog, plan: Plan, seats: int, bought: Bought) -> int:
    """The seats that a plan with add-ons does not include."""
    meter = seat_meter(catalog.meters)
    composed = with_addons(catalog.find_plan(plan.key) or plan, bought, catalog)
    return 0 if meter is None else max(0, seats - (composed.entitlements[meter].included or 0))


def _addon_costs(catalog: Catalog, plan: Plan, own: FixedPrices, bought: Bought) -> Iterator[AddonCost]:
    known = dict(own.addons)
    for key, quantity in bought:
        addon, price = catalog.find_addon(key), FixedPrice.parse(known.get(key, ""))
        if price is None and addon is not None and key in plan.addons:
            price = FixedPrice(Fraction(addon.price.amount_cents), catalog.currency, addon.price.interval)
        if price is not None:
            yield AddonCost(key, key if addon is None else addon.name, price, quantity)


def fixed_prices_at(subscription: SubscriptionState | None, plan: str, at_ms: int) -> FixedPrices:
    """Prices that a customer pays for a plan, seats and add-ons; empty if the subscription has another plan.

    Args:
        subscription: of the customer; None: there is none.
        plan: the key of the active plan.
        at_ms: the instant. The prices of a plan that a schedule has brought are not known yet.
    """
    if subscription is None or plan != subscription.plan or subscription.plan_at(at_ms) != plan:
        return NO_FIXED_PRICES
    return FixedPrices(subscription.base_price, subscription.seat_price, subscription.addon_prices)


def _paid_seats_at(subscription: SubscriptionState | None, at_ms: int) -> int:
    """Seats that a customer pays for, also while access is restricted; none before it has begun."""
    return subscription.seats_at(at_ms) if subscription and subscription.has_begun_at(at_ms) else 0


def paid_addons_at(subscription: SubscriptionState | None, at_ms: int) -> Bought:
    """Add-ons that a customer pays for; none before the subscription has begun."""
    return subscription.addons_at(at_ms) if subscription and subscription.has_begun_at(at_ms) else ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialTerms:
    """Entitlements and prices of one customer of a plan. Of derived meters, only prices are here.

    Attributes:
        plan: its key.
        fixed_cents: the price of a period, of seats beyond those included, and of add-ons, in minor units.
        included: meter to the quantity that the price covers; meters without such a bound are left out.
        caps: meter to the overage that is billed at most.
        ceilings: meter to the quantity beyond which a request is refused unless a grant or credit pays.
        labels: meter to the price of its overage; see :func:`~meterkit.decisions.price_segments.label_of`.
        rates: meter to its rates.
        subjects: kinds of subjects to what each of them gets.
        consumed: meters that a line of ``routes`` asks for by their quantity; of any other, something must be
            left.
        has_grants: whether the plan grants something with each period.
        has_budget: whether the plan, or an override, bounds what is spent.
        price_rows: meter to its prices by model, where the price of its overage depends on the model.
        parts: meter to the meters derived from it under whose events Stripe gets a part of its units.
        grants_outlive: whether some of that is left when the period ends.
        sources: meters that others are derived from.
        lines: of ``routes``, what each consumes, and all meters that it asks for, in its order.
    """

    plan: str
    fixed_cents: Fraction
    included: Mapping[str, int]
    caps: Mapping[str, int]
    ceilings: Mapping[str, int]
    labels: Mapping[str, str]
    rates: Mapping[str, tuple[Rate, ...]]
    subjects: Mapping[str, SubjectPlan]
    consumed: frozenset[str]
    has_grants: bool
    has_budget: bool
    price_rows: Mapping[str, PriceRows]
    parts: Mapping[str, tuple[str, ...]]
    grants_outlive: bool
    sources: frozenset[str]
    lines: tuple[tuple[Mapping[str, int], tuple[str, ...]], ...]

    def needed(self, meter: str, units: int) -> int:
        """Units that must be left for a request that used some units of a meter."""
        return units if meter in self.consumed else 1

    def windows_ms(self) -> frozenset[int]:
        """The windows of its rates, and those of its subjects: their budgets are of a day or less."""
        limited = [of for one in self.subjects.values() for of in one.limits.values()]
        rates = (*self.rates.values(), *(of.rates for of in limited))
        found = frozenset(rate.window_ms for each in rates for rate in each)
        return found | {DAY_MS} if self.subjects else found

    def in_order(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """Sort quantities by the line of ``routes`` that consumes most of just these meters.

        Where meters share a credit, the first ones get the rest of it.
        """
        matching = [
            (len(consume), meters)
            for consume, meters in self.lines
            if all(quantities.get(meter) == units for meter, units in consume.items())
        ]
        _, first = max(matching, key=itemgetter(0), default=(0, ()))
        return {
            meter: quantities[meter] for meter in dict.fromkeys((*first, *quantities)) if meter in quantities
        }

    def overage(self, used: Mapping[str, int]) -> dict[str, int]:
        """Units beyond what is included, up to the cap, by meter, where neither grants nor credits pay."""
        return self.within_caps(self.beyond(used))

    def beyond(self, used: Mapping[str, int]) -> dict[str, int]:
        """Units beyond what is included, by meter, whatever pays for them."""
        return {
            meter: max(0, units - self.included[meter])
            for meter, units in used.items()
            if meter in self.included
        }

    def within_caps(self, beyond: Mapping[str, int]) -> dict[str, int]:
        """The overage among units that nothing else pays for: no more than the caps."""
        return {meter: min(units, self.caps.get(meter, units)) for meter, units in beyond.items()}

    def charge(self, overage: Mapping[str, int]) -> Fraction:
        """Price of a period in minor units; overage without a price costs nothing here.

        Each meter's overage is rounded by itself, half up, as the line of it on an invoice is.
        """
        lines = (
            overage_cents(segments_of("", label=self.labels[meter], sealed=0, overage=units)) or 0
            for meter, units in overage.items()
            if meter in self.labels
        )
        return self.fixed_cents + sum(lines)

    def unpriced(self, overage: Mapping[str, int]) -> frozenset[str]:
        """Meters whose overage is billed at a price that the plans file does not name."""
        return frozenset(meter for meter, units in overage.items() if units and self.labels.get(meter) == "-")


def build_terms(
    catalog: Catalog,
    plan: Plan,
    given: Mapping[str, Entitlement],
    seats: int,
    own: FixedPrices = NO_FIXED_PRICES,
    bought: Bought = (),
    *,
    charged: Plan | None = None,
) -> TrialTerms:
    """The terms of a plan.

    Args:
        catalog: where the plan is.
        plan: which, with its add-ons.
        given: its entitlements, the customer's overrides laid over them.
        seats: that the subscription pays for, those that the price covers included.
        own: the prices of the plan, its seats and add-ons that the subscription has.
        bought: all add-ons that the subscription has.
        charged: the plan that the subscription charges; None: ``plan``.
    """
    meters = catalog.meters
    counters = {
        name: of
        for name, of in given.items()
        if meters[name].kind == "counter" and meters[name].source is None and not meters[name].is_spend
    }
    rows = {name: of for name, of in given.items() if meters[name].is_row}
    billed = {name: of for name, of in (counters | rows).items() if of.overage.mode == "bill"}
    flat = [name for name, of in billed.items() if name in counters and of.overage.rows is None]
    parts = {name: found for name in flat if (found := parts_of(name, meters))}
    part_labels = {name: sent_label(name, given, meters) for of in parts.values() for name in of}
    ceilings = {name: ceiling(of) for name, of in counters.items()}
    return TrialTerms(
        plan=plan.key,
        fixed_cents=_plan_cost_of(catalog, charged or plan, seats, own, bought).per_period(plan),
        included={name: of.included for name, of in counters.items() if of.included is not None},
        caps={name: most for name, of in counters.items() if (most := billed_most(of)) is not None},
        ceilings={name: most for name, most in ceilings.items() if most is not None},
        labels={name: label_of(of) for name, of in billed.items()} | part_labels,
        rates={name: of.rates for name, of in given.items() if of.rates and meters[name].source is None},
        subjects=plan.subjects,
        consumed=frozenset(name for route in catalog.routes for name in route.consume),
        has_grants=bool(plan.grants),
        has_budget=bool(budgets_of(given, catalog)),
        price_rows={name: prices for name, of in counters.items() if (prices := of.overage.rows) is not None},
        parts=parts,
        grants_outlive=any(grant.expires_ms or grant.rollover for grant in plan.grants),
        sources=frozenset(
            meter.source for meter in meters.values() if meter.source is not None and not meter.is_row
        ),
        lines=tuple((route.consume, tuple(demands_of(route, catalog))) for route in catalog.routes),
    )


def _plan_cost_of(catalog: Catalog, plan: Plan, seats: int, own: FixedPrices, bought: Bought) -> PlanCost:
    """The price of a plan in the currency of the plans file; of an item in another one the file's."""
    cost = plan_cost(catalog, plan, seats, own, bought)
    currencies = {cost.base.currency, *(addon.price.currency for addon in cost.addons)}
    if currencies != {catalog.currency}:
        cost = plan_cost(catalog, plan, seats, bought=bought)
    return cost


_PAGE: Final = 500
_PRICED_KINDS: Final = frozenset({"plan", "seats", "addons", "overrides"})
"""Kinds of ledger entries that change the price of a period."""
_SOLD_KINDS: Final = frozenset({"plan", "subscription"})
"""Kinds of ledger entries after which the plan that a subscription charged before is not known."""
_CHARGED: Final = frozenset({"active", "trialing", "past_due"})
"""Statuses in which Stripe invoices the next period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTenure:
    """Plan, overrides and prices of a customer in a period.

    Attributes:
        start_ms, end_ms: the period's first instant, and the first after it.
        plan: the key of the plan that was active when the period ended, or is by now.
        charged_plan: that of the plan that the subscription charges: another one where ``plan`` was set by
            hand, or access is restricted.
        is_changed: whether plan, seats, add-ons, overrides or the prices of usage were others before that, in
            the same period.
        is_credited: whether the period was cut short, and its rest credited.
        is_granted: whether the app ever granted the customer something.
        is_unpaid: whether nothing is paid for the period, as it is a trial, or a pause that voids invoices.
        is_usage_unpaid: whether that holds for its usage: its invoice is made when it ends.
        seats, addons: that the subscription paid for, likewise.
        paid_seats: those that the plan and its add-ons did not include.
        overrides: meter to an entitlement in the notation of the plans file, laid over the plan's.
        subject_overrides: ``KIND:ID`` to limits of that subject, likewise.
        currency: that Stripe bills the customer in; empty: none yet, or not known.
        prices: of the subscription's metered items when the period ended, or now.
        fixed: what the subscription pays for the plan and its seats.
    """

    start_ms: int
    end_ms: int
    plan: str
    charged_plan: str
    is_changed: bool
    is_credited: bool
    is_granted: bool
    is_unpaid: bool
    is_usage_unpaid: bool
    seats: int
    paid_seats: int
    overrides: Mapping[str, Mapping[str, object]]
    subject_overrides: Mapping[str, Mapping[str, object]]
    currency: str = ""
    prices: ItemPrices = NO_PRICES
    fixed: FixedPrices = NO_FIXED_PRICES
    addons: Bought = ()

    def on(self, plan: Plan) -> PlanTenure:
        """Move the tenure to another plan, at its list price. What a change of plan leaves stays.

        That is the overrides, and the prices of add-ons that the plan lists.
        """
        kept = tuple((addon, price) for addon, price in self.fixed.addons if addon in plan.addons)
        fixed = FixedPrices(addons=kept)
        return replace(self, plan=plan.key, charged_plan=plan.key, prices=NO_PRICES, fixed=fixed)


class PlanOffers:
    """The terms of a plans file, made once for all customers who have the same.

    Args:
        catalog: what is sold.
        own_prices: whether a plan, its seats and overage cost what a customer's subscription items charge,
            rather than what ``catalog`` says.
    """

    def __init__(self, catalog: Catalog, *, own_prices: bool = False) -> None:
        self._catalog = catalog
        self._own_prices = own_prices
        self._known: dict[tuple[object, ...], TrialTerms] = {}

    def to(self, tenure: PlanTenure) -> TrialTerms:
        """Terms of a customer; the default plan replaces one that the file lacks."""
        catalog, overrides = self._catalog.in_currency(tenure.currency), tenure.overrides
        prices = tenure.prices if self._own_prices else NO_PRICES
        fixed = tenure.fixed if self._own_prices else NO_FIXED_PRICES
        text = json.dumps(overrides, sort_keys=True) if overrides else ""
        plans = (tenure.plan, tenure.charged_plan)
        sold = tenure.seats, tenure.paid_seats, tenure.addons
        key = (catalog.currency, *plans, *sold, text, prices, fixed)
        if key not in self._known:
            plan = catalog.plan_or_default(tenure.plan)
            charged = catalog.find_plan(tenure.charged_plan) or plan
            plan = with_addons(plan, tenure.addons, catalog) if tenure.addons else plan
            given = with_item_prices(override(catalog, plan, overrides), prices, catalog)
            seats = tenure.seats if self._own_prices else self._carry_seats(tenure, charged)
            self._known[key] = build_terms(catalog, plan, given, seats, fixed, tenure.addons, charged=charged)
        return self._known[key]

    def _carry_seats(self, tenure: PlanTenure, plan: Plan) -> int:
        """Seats under this file: as with a change of plan, included ones do not become bought ones."""
        meter = seat_meter(self._catalog.meters)
        if meter is not None and plan.entitlements[meter].is_unlimited:
            return 0
        beyond = _seats_beyond(self._catalog, plan, tenure.seats, tenure.addons)
        return tenure.seats - max(0, beyond - tenure.paid_seats)


async def read_tenures(
    store: Store,
    at_ms: int,
    started: Mapping[str, int],
    *,
    customer: str | None = None,
    skipped: dict[str, str] | None = None,
) -> dict[str, PlanTenure]:
    """Read each customer's tenure in the period of an instant, by name.

    Args:
        store: where customers are kept.
        at_ms: the instant.
        started: customers with usage, and when the period of it began; if that period had ended by the
            instant, it is another one.
        customer: the only one to look at; None: all. Without a state and usage it is left out.
        skipped: gets the customers whose record cannot be read, which are left out, and why.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: the record of one cannot be read, and ``skipped`` is not given.
    """
    names = {customer} if customer is not None else set(started)
    if customer is None:
        names.update([name async for name in list_customers(await store.admin(), store.keys)])
    ordered = sorted(names)
    found: dict[str, PlanTenure] = {}
    for first in range(0, len(ordered), _PAGE):
        page = ordered[first : first + _PAGE]
        for name, (state, ledger) in (await read_states_and_histories(store, page, skipped)).items():
            if state is INITIAL_STATE and name not in started:
                continue  # Nothing is known of this customer: the name may be a typo.
            found[name] = _build_tenure(
                state, ledger, store.catalog, at_ms, started.get(name), store.now_ms()
            )
    return found


async def read_given_once(
    store: Store, catalog: Catalog, tenures: Mapping[str, PlanTenure]
) -> dict[str, set[str]]:
    """Read which grants customers had got for once and all when a period began, as the store names them.

    Args:
        store: where customers are kept.
        catalog: the plans file to try.
        tenures: the period of each customer, by name.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: the record of one cannot be read.
    """
    given = {name: set[str]() for name in tenures}
    if not any(grant.every == "once" for grant in sold_grants(catalog)):
        return given
    admin = await store.admin()
    states = await read_states_and_histories(store, tenures)
    replies = await admin.ask_each(("hgetall", store.keys.customer(name).grants) for name in tenures)
    for name, reply in zip(tenures, replies, strict=True):
        start_ms = tenures[name].start_ms
        fields: dict[bytes, bytes] = {} if isinstance(reply, Exception) else reply
        given[name].update(
            field.decode()
            for field, since_ms in fields.items()
            if field.startswith(ONCE_GIVEN.encode()) and since_ms < b"%d" % start_ms
        )
        # The plan gave it, though nothing was used by then.
        allowance = effective_terms(states[name][0], catalog, start_ms).allowance
        once = () if allowance is None or allowance.once is None else allowance.once
        given[name].update(once_field(grant.line[0]) for grant in once if grant.start_ms is not None)
    return given


def _build_tenure(
    state: CustomerState,
    ledger: Sequence[HistoryEntry],
    catalog: Catalog,
    at_ms: int,
    started_ms: int | None,
    now_ms: int,
) -> PlanTenure:
    start_ms = at_ms if started_ms is None else started_ms
    bounds = effective_plan(state, catalog, start_ms).bounds
    if is_over := bounds.end_ms <= at_ms:
        bounds = effective_plan(state, catalog, at_ms).bounds
    if is_over or started_ms is None:
        start_ms = bounds.start_ms
    end_ms = bounds.end_ms
    last_ms = min(end_ms - 1, now_ms)
    given, subscription = effective_plan(state, catalog, last_ms), state.subscription
    was = _replaced_since(ledger, last_ms)
    plan = was.get("plan") or given.missing_plan or given.plan.key
    stored = _overrides_of(state, was)
    own = overrides_at(stored, last_ms)
    # The present ones lack a price that no subscription bills; with restricted access they lack all.
    is_kept = "overrides" not in was and was.get("status") not in _CHARGED and given.access != "restricted"
    overrides = given.overrides if is_kept else own.meters
    charged = (was.keys().isdisjoint(_SOLD_KINDS) and _charged_plan_at(subscription, last_ms)) or plan
    seats = int(was["seats"] or 0) if "seats" in was else _paid_seats_at(subscription, last_ms)
    addons = parse_addons(was["addons"]) if "addons" in was else paid_addons_at(subscription, last_ms)
    sold = catalog.plan_or_default(charged)
    changes_ms = [to_ms(entry.at) for entry in ledger if entry.kind in _PRICED_KINDS]
    changes_ms += [until_ms for until_ms, _ in ended_values(state.terms, PRICES)]
    return PlanTenure(
        start_ms=start_ms,
        end_ms=end_ms,
        plan=plan,
        charged_plan=charged,
        is_changed=has_end_within(stored, start_ms, last_ms)
        or any(start_ms < change_ms <= last_ms for change_ms in changes_ms),
        is_credited=any(not cut.is_paid and start_ms < cut.cut_ms <= end_ms for cut in cuts_of(state.terms)),
        is_granted=state.granted,
        is_unpaid=is_usage_free_of(state, start_ms),
        is_usage_unpaid=is_usage_free_of(state, start_ms, end_ms),
        seats=seats,
        paid_seats=_seats_beyond(catalog, sold, seats, addons),
        overrides=overrides,
        subject_overrides=own.subjects,
        currency=state.currency,
        prices=item_prices_at(state, catalog, overrides, last_ms),
        fixed=fixed_prices_at(subscription, charged, last_ms),
        addons=addons,
    )


def _charged_plan_at(subscription: SubscriptionState | None, at_ms: int) -> str | None:
    """Plan that a subscription charges at an instant; None: it charges none, or one that the file lacks."""
    if subscription is None or not subscription.has_begun_at(at_ms):
        return None
    return subscription.plan_at(at_ms) if subscription.status_at(at_ms) in _CHARGED else None


def _replaced_since(ledger: Sequence[HistoryEntry], at_ms: int) -> Mapping[str, str]:
    """Values that the ledger says were replaced after an instant, by its kinds; the others still hold."""
    return {entry.kind: entry.before or "" for entry in reversed(ledger) if to_ms(entry.at) > at_ms}


def _overrides_of(state: CustomerState, was: Mapping[str, str]) -> Stored:
    found: Stored = json.loads(was["overrides"] or "{}") if "overrides" in was else state.overrides
    return found
