"""The compiled catalog: everything that follows from the plans file alone, computed once per process."""

from __future__ import annotations

import logging
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.catalog import BILLED_ON_ATTEMPT, override
from meterkit.catalog.errors import find_mistakes, listed
from meterkit.catalog.meters import counters_of
from meterkit.catalog.notes import SHOWN_MAX
from meterkit.catalog.routes_by_model import tables_without_default
from meterkit.decisions.call_costs import make_call_costs
from meterkit.decisions.compiled_decision import compile_program, demands_of
from meterkit.decisions.customer_state import NO_STATE, entitlements_of
from meterkit.decisions.grants import PrepaidPlans
from meterkit.decisions.item_prices import NO_PRICES
from meterkit.decisions.keys import check_tokens
from meterkit.decisions.model_charges import ChargeRemainders, ModelCharges, UnpricedLog
from meterkit.decisions.periods import from_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.rollover import grant_reach
from meterkit.store.learned_routes import LearnedRoutes
from meterkit.store.replies import LIVE_SUBJECTS_MOST
from meterkit.store.script_arguments import pack_tail
from meterkit.terms.cuts import spent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from llm_usage import CallUsage
    from meterkit.catalog import Catalog, Entitlement, Route
    from meterkit.decisions.call_costs import CallCosts
    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.customer_state import CustomerState, EffectivePlan
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.keys import Keys
    from meterkit.metric_tallies import Tallies
    from meterkit.redis.scripts import Script
    from meterkit.store.daily_counts import UnpricedCalls
    from meterkit.store.script_arguments import Subjects

_T = TypeVar("_T")

_logger = logging.getLogger("meterkit")
_LOGGED_MAX: Final = 10_000
_SHARED_MAX: Final = 1024
CUSTOMERS_KEPT: Final = 10_000
"""Default of ``customers_kept``: number of customers in a process's cache."""


class CatalogAlarms:
    """Conditions that are logged once per process and subject; after ten thousand, again."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._logged: set[tuple[str, ...]] = set()

    def log_missing_plan(self, customer: str, plan: str) -> bool:
        """Log a customer on a plan that this process's plans file lacks; whether its terms are not known."""
        if not self._is_new("plan", plan):
            return False
        if self._catalog.find_plan(plan) is not None:
            _logger.warning(
                "plan %r, which customer %r is on, is not in %s of this process: they keep its terms, as the"
                " store has them; give every process the same plans file, or move them by `meterkit plans"
                " migrate`; logged once for this plan",
                plan,
                customer,
                self._catalog.source,
            )
            return False
        _logger.error(
            "plan %r, which customer %r is on, is neither in %s nor known from the store: they get the"
            " default plan %r until it is, and what they use now is counted so for good; put it back into"
            " the plans file; logged once for this plan",
            plan,
            customer,
            self._catalog.source,
            self._catalog.default_plan,
        )
        return True

    def is_new_plan(self, plan: str) -> bool:
        """Whether this process looks for this plan for the first time."""
        return self._is_new("asked", plan)

    def log_ignored_overrides(self, customer: str, effective: EffectivePlan) -> None:
        """Log overrides that this plans file refuses, another than the one they were written for."""
        catalog = self._catalog.in_currency(effective.currency)
        laid = partial(override, catalog, effective.plan, effective.overrides, strict=True)
        for problem in find_mistakes(laid):
            if self._is_new("override", problem):
                _logger.error(
                    "an override of customer %r has no effect, as %s is now, and the plan's terms hold: %s;"
                    " override it anew, or take it back by `meterkit customers override CUSTOMER METER"
                    " --clear`; logged once for this mistake",
                    customer,
                    self._catalog.source,
                    problem,
                )

    def log_undeclared_subjects(self, subjects: Subjects, plan: str) -> None:
        """Log subjects of kinds that the plan lacks. Call it only once the plan is known."""
        if len(subjects.limits) == len(subjects.given):
            return
        for kind in {kind for kind, _ in subjects.given} - subjects.limits.keys():
            if self._is_new("subject", kind, plan):
                _logger.warning(
                    "plan %r of %s declares no subjects of the kind %r: they are ignored; write `subjects:"
                    " {%s: {…}}` in the plan, or leave them out of Caller; logged once for this plan",
                    plan,
                    self._catalog.source,
                    kind,
                    kind,
                )

    def log_full_subjects(self, customer: str) -> None:
        """Log a customer with so many live subjects that new ones are not limited by themselves."""
        if self._is_new("no room", customer):
            _logger.error(
                "customer %r has %s subjects with live counters, which is the most: new ones are decided"
                " by the customer's limits alone; name fewer subjects, or limit them by shorter windows; said"
                " once for this customer",
                customer,
                f"{LIVE_SUBJECTS_MOST:,}",
            )

    def log_backdated_usage(
        self, customer: str, recorded: Mapping[str, int], period_ms: int, *, is_free: bool = False
    ) -> None:
        """Log usage of a closed period; ``is_free``: it was one of a trial or a pause."""
        if self._is_new("late", customer, str(period_ms)):
            is_dead = self._catalog.billing.late_usage == "dead_letter"
            fate = "is not billed" if is_dead else "is billed in this one"
            fate = "costs nothing, as its period did" if is_free else fate
            _logger.warning(
                "customer %r: %s came late: the period that began %s is closed, and what comes for it now %s "
                "(billing.late_usage: %s); logged once for this customer and period",
                customer,
                ", ".join(f"{quantity} of {meter}" for meter, quantity in recorded.items() if quantity),
                from_ms(period_ms).isoformat(),
                fate,
                self._catalog.billing.late_usage,
            )

    def log_total_alone(self) -> None:
        """Log tokens without a price: only the total of input and output is known."""
        if self._is_new("total alone"):
            _logger.error(
                "nothing is charged for total_tokens alone: input and output have different prices; give"
                " input_tokens and output_tokens; logged once"
            )

    def log_unmetered_usage(self, names: Iterable[str]) -> None:
        """Log usage of a model call that no meter of the plans file counts.

        Args:
            names: the meters that would count it.
        """
        found = sorted(names)
        if not found or not self._is_new("unmetered", *found):
            return
        total = "total_tokens, or input_tokens and output_tokens"
        _logger.warning(
            "no meter counts the usage of a model call: its figures are %s, and the meters of %s that can"
            " count are %s; usage counts only on a meter with the name of a figure: call one %s; logged once"
            " for these figures",
            listed(found, SHOWN_MAX),
            self._catalog.source,
            listed(sorted(counters_of(self._catalog.meters)), SHOWN_MAX),
            total if "total_tokens" in found else found[0],
        )

    def log_consumed_tokens(self, meter: str) -> None:
        """Log consumed tokens, which have no model and so no price."""
        if self._is_new("consumed", meter):
            _logger.error(
                "consume() of %s charges no money: it has no model; reserve the money and capture the"
                " response, or give the response to record_usage(); logged once for this meter",
                meter,
            )

    def _is_new(self, *what: str) -> bool:
        if what in self._logged:
            return False
        if len(self._logged) >= _LOGGED_MAX:
            self._logged.clear()
        self._logged.add(what)
        return True


class CompiledCatalog:
    """Programs, entitlements and prices of one plans file, shared by all customers.

    Args:
        catalog: the plans file.
        keys: names of keys.
        decide: the decision script.
        settle: the settle script.
        settle_audited: the settle script that also writes audit entries; None: no audit log.
        seal_delay_ms: delay before pending usage is sealed.
        now_ms: this process's clock.
        on_unclaimed: called with an allowed decision whose waiter was cancelled, and its time (ms).
        on_notice: called with a shard that has a new notice for the app's handlers.
        on_unknown_plan: called once for each plan of a customer that no known file has.
        customers_kept: number of cached customers, and of anonymous ones.
        allot: the allotment script; None: each request is decided by itself.
        former_routes: routes of the plans file before; None: there was none.

    Attributes:
        prepaid: grants and credits of plans.
        owes: whether usage beyond a balance in money is a debt; not in shadow mode: it would be refused.
        routes: routes of the plans file, with the meters that the app has recorded on each.
        counters: meters that can be counted on: no gauges, and no derived meters.
        derives: whether there are derived meters.
        has_rows: whether a plan has overage prices by model.
        holds_rows: whether a budget, of customers or subjects, counts these at once.
        has_model_prices: whether credit costs or overage prices depend on the model.
        allots: whether some requests may be admitted by allotments.
        by_model: whether usage is separated by model and provider.
        charges: charges for calls of language models, by the meter that counts them.
        remainders: fractions of charges that are not counted yet.
        tallies: counts costs for metrics; None: no metrics.
        unpriced: counts calls of models without a price; None: nothing does.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        keys: Keys,
        decide: Script,
        settle: Script,
        seal_delay_ms: int,
        now_ms: Callable[[], int],
        on_unclaimed: Callable[[Any, int], None],
        on_notice: Callable[[int], None] = lambda _shard: None,
        on_unknown_plan: Callable[[], None] = lambda: None,
        settle_audited: Script | None = None,
        customers_kept: int = CUSTOMERS_KEPT,
        allot: Script | None = None,
        former_routes: LearnedRoutes | None = None,
    ) -> None:
        self.catalog = catalog
        self.keys = keys
        self.decide = decide
        self.settle = settle
        self.settle_audited = settle_audited
        self.allot = allot
        self.seal_delay_ms = seal_delay_ms
        self.now_ms = now_ms
        self.on_unclaimed = on_unclaimed
        self.on_notice = on_notice
        self._on_unknown_plan = on_unknown_plan
        self.customers_kept = customers_kept
        self._tails: dict[tuple[object, ...], tuple[bytes, bytes]] = {}
        self._shapes: dict[tuple[object, ...], Any] = {}
        self._effective: dict[tuple[object, ...], EffectivePlan] = {}
        self._entitlements = _of_plans(catalog)
        self._shared = {id(given) for given in self._entitlements.values()}
        self._routes: list[Route] = []
        self._programs: dict[tuple[int, int, bool, bool, tuple[str, ...]], Program] = {}
        self._asked: dict[tuple[object, ...], Program] = {}
        self._keys: dict[tuple[object, ...], tuple[object, ...]] = {}
        self.prepaid = PrepaidPlans(catalog)
        self.owes = catalog.enforcement == "on"
        self.alarms = CatalogAlarms(catalog)
        self.routes = LearnedRoutes(catalog, former_routes)
        self.counters = counters_of(catalog.meters)
        self.derives = any(meter.source is not None and not meter.is_row for meter in catalog.meters.values())
        self.has_rows = any(meter.is_row for meter in catalog.meters.values())
        self.holds_rows = self.has_rows and (catalog.counts_spend or catalog.has_subjects)
        self.has_model_prices = self.has_rows or any(credit.by_model for credit in catalog.credits.values())
        self.by_model = self.derives or self.has_model_prices or settle_audited is not None
        plans, routes = (
            (one.allotment for one in catalog.all_plans),
            (one.allotment for one in catalog.routes),
        )
        self.allots = allot is not None and "250ms" in {catalog.allotment, *routes, *plans}
        self.charges = {
            name: ModelCharges(meter.charges)
            for name, meter in catalog.meters.items()
            if meter.charges is not None
        }
        self.remainders = ChargeRemainders()
        self.tallies: Tallies | None = None
        self.unpriced: UnpricedCalls | None = None
        self._incomplete = tables_without_default(catalog)
        check_tokens(catalog)
        # An impossible program is refused now, not at the first request.
        for plan in catalog.plans.values():
            for route in catalog.routes:
                prepaid = self.prepaid.of(plan, catalog.currency)
                has_any = plan.grants or prepaid.money
                self.compile_route(plan.entitlements, route, prepaid if has_any else None)

    def note_missing_plan(self, customer: str, plan: str) -> None:
        """Log a customer on a plan that the plans file lacks; have an unknown one read from the store."""
        if self.alarms.log_missing_plan(customer, plan):
            self._on_unknown_plan()

    @cached_property
    def _grants_live_on(self) -> bool:
        return any(grant_reach(self.catalog))

    @cached_property
    def _unpriced_log(self) -> UnpricedLog:
        return UnpricedLog()

    def lacks_price(self, call: CallUsage) -> bool:
        """Whether a price table by model lacks the model of a call; logs it."""
        model, quantities = call.model, call.quantities() if self._incomplete else {}
        for meter, tables in self._incomplete.items():
            if model and quantities.get(meter) and not all(table.has_price(model) for table in tables):
                cure = "add it to `models` of the table in `prices`, or give that a `default`"
                self._unpriced_log.log(model, cure, what=meter)
                return True
        return False

    @property
    def sells_models(self) -> bool:
        """Whether a model may lack a price."""
        return bool(self.charges or self._incomplete)

    def has_price(self, model: str, at: datetime) -> bool:
        """Whether a model has all prices of this plans file, at any provider."""
        tables = (table for found in self._incomplete.values() for table in found)
        return all(one.has_price(model, "auto", at) for one in self.charges.values()) and all(
            table.has_price(model) for table in tables
        )

    def call_costs(self) -> CallCosts | None:
        """Costs of calls; None: not needed, or ``genai-prices`` is not installed."""
        wants = self.charges or self.settle_audited is not None or self.tallies is not None
        return self._costs if wants else None

    @cached_property
    def _costs(self) -> CallCosts | None:
        return make_call_costs(self.charges, self.counters, f"plans/{self.catalog.content_hash}")

    def resolve_plan(self, state: CustomerState, now_ms: int) -> EffectivePlan:
        """Plan, access and period of a state at an instant; shared without a subscription and overrides.

        The latest changes count even if this host's clock is behind the store's.
        """
        now_ms = max([now_ms, *(row.since_ms for row in state.terms)])
        if state.subscription or state.overrides or spent_of(state.terms):
            return effective_terms(state, self.catalog, now_ms)
        terms = state.terms if self._grants_live_on else ()
        prices = state.plan and state.prices_on(state.plan, now_ms)
        by_hand = (state.plan, prices, state.status, state.status_since_ms)
        key = (*by_hand, state.anchor_ms, terms, state.former_starts_ms, state.currency)
        known = self._effective.get(key)
        if known is None or not _is_valid_at(known, now_ms):
            if len(self._effective) >= _SHARED_MAX:
                self._effective.clear()
            known = self._effective[key] = effective_terms(state, self.catalog, now_ms)
        return known

    def resolve_entitlements(self, effective: EffectivePlan) -> Mapping[str, Entitlement]:
        """Entitlement of each meter; shared by customers with equal seats, add-ons, prices and currency.

        Programs compiled for them are found by their identity: they have the prices of one currency, and the
        grants of some add-ons.
        """
        allowance, plan, currency = effective.allowance, effective.plan, effective.currency
        is_plain = not plan.bought and currency == self.catalog.currency
        if effective.overrides or (allowance is not None and allowance.grants is not None):
            own = entitlements_of(effective, self.catalog)
            return own if is_plain else {**own}
        key = (plan.key, effective.seats, effective.prices, allowance, plan.bought, currency)
        found = self._entitlements.get(key)
        if found is None:
            found = entitlements_of(effective, self.catalog)
            found = found if is_plain else {**found}
            if len(self._entitlements) < len(self.catalog.plans) + _SHARED_MAX:
                self._entitlements[key] = found
                self._shared.add(id(found))
        return found

    def is_shared(self, entitlements: Mapping[str, Entitlement]) -> bool:
        """Whether customers share these entitlements, as long as the catalog is active."""
        return id(entitlements) in self._shared

    def pack_tail(self, program: Program, mode: str, rev: str) -> tuple[bytes, bytes]:
        """See :func:`meterkit.store.script_arguments.pack_tail`; cached, as customers share programs."""
        return _memoize_value(
            self._tails, (program, mode, rev == NO_STATE), lambda: pack_tail(program, mode, rev)
        )

    def compile_route(
        self,
        entitlements: Mapping[str, Entitlement],
        route: Route,
        prepaid: Prepaid | None,
        *,
        keeps: bool = False,
        subjects: Subjects | None = None,
        catalog: Catalog | None = None,
    ) -> Program:
        """Compile a route by entitlements; cached for shared entitlements.

        Args:
            entitlements: one for every meter.
            route: the route.
            prepaid: grants and credits of the customer.
            keeps: whether gauges above their limits keep the limits of before.
            subjects: of the customer; None: none.
            catalog: in the customer's currency; None: in the first one.
        """
        kinds = () if subjects is None else tuple(subjects.limits)
        key = (id(entitlements), id(route), prepaid is not None, keeps, kinds)
        is_plain = not kinds or (subjects is not None and subjects.is_plain)
        program = self._programs.get(key) if is_plain else None
        if program is None:
            demands = demands_of(route, self.catalog)
            # Usage recorded by decisions reaches neither the audit log nor subjects.
            is_recorded = route.charge_on == BILLED_ON_ATTEMPT and self.settle_audited is None and not kinds
            program = compile_program(
                entitlements,
                catalog or self.catalog,
                demands,
                billed_always=is_recorded,
                rates_only=route.always,
                prepaid=prepaid,
                route=route,
                keeps=keeps,
            )
            if subjects is not None:
                program = subjects.extend(program, demands, in_flight=True, rates_only=route.always)
            if is_plain and self.is_shared(entitlements):
                self._programs[key] = program
                self._routes.append(route)  # Keeps the route alive, whose id is a key.
        return program

    def cache_shape(self, key: tuple[object, ...], make: Callable[[], _T]) -> _T:
        """Shape of settlements, shared by customers with the same entitlements."""
        found: _T = _memoize_value(self._shapes, key, make)
        return found

    def cache_asked(self, key: tuple[object, ...], make: Callable[[], Program]) -> Program:
        """Program of an app's own demands, shared by customers with the same entitlements."""
        return _memoize_value(self._asked, key, make)

    def share_key(self, key: tuple[object, ...]) -> tuple[object, ...]:
        """One object of equal keys, for what each customer's view caches."""
        return _memoize_value(self._keys, key, lambda: key)


def _of_plans(catalog: Catalog) -> dict[tuple[object, ...], Mapping[str, Entitlement]]:
    shared = (0, NO_PRICES, None, (), catalog.currency)
    return {(key, *shared): plan.entitlements for key, plan in catalog.plans.items()}


def _memoize_value(
    known: dict[tuple[object, ...], _T], key: tuple[object, ...], make: Callable[[], _T]
) -> _T:
    """Cached value of a key; a full cache is cleared."""
    found = known.get(key)
    if found is None:
        if len(known) >= _SHARED_MAX:
            known.clear()
        found = known[key] = make()
    return found


def _is_valid_at(effective: EffectivePlan, now_ms: int) -> bool:
    """Whether a resolved plan is valid at another instant, too."""
    return effective.bounds.start_ms <= now_ms < min(effective.bounds.end_ms, effective.valid_until_ms)
