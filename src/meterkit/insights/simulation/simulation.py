"""Simulation of a past period under another plans file."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.meters import CHARGED
from meterkit.catalog.overage_prices import is_row
from meterkit.catalog.value_parsers import rounded_cents
from meterkit.customers.billed_usage import usage_of_all
from meterkit.decisions.periods import from_ms, to_ms
from meterkit.errors import MeterkitError
from meterkit.insights.simulation.plan_costs import PlanOffers, read_given_once, read_tenures
from meterkit.insights.simulation.plan_replay import TrialResult, UsageReplay, refuse_beyond

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.insights.audit.database import Database
    from meterkit.insights.simulation.plan_costs import PlanTenure, TrialTerms
    from meterkit.insights.simulation.usage_log import LoggedEvent, UsageLog, UsageSums
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

_AT_ONCE: Final = 200
_CENT: Final = 10_000
"""Millionths of a dollar in a cent: balances in money are in dollars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCustomer:
    """One customer in a period, as it was and as it would have been.

    Attributes:
        customer: the id.
        plan: the key of the plan.
        currency: of ``now_cents``, ``then_cents`` and margins: the customer's.
        now_cents, then_cents: the price of the period, its seats and its overage, under either plans file.
        refused: meter to the units that were served and would have been refused.
        refused_first_at: when the first of them was.
        estimates: why the figures are estimates; empty: they are exact.
        now_margin_cents, then_margin_cents: what is left when the units served are paid; None: no costs are
            given, or the customer's currency is not the first of the current file.
        now_charged_cents, then_charged_cents: what calls took from a balance in money, and would have taken,
            in US cents; None: the current file has no such balance.
    """

    customer: str
    plan: str
    currency: str
    now_cents: int
    then_cents: int
    refused: Mapping[str, int]
    refused_first_at: datetime | None
    estimates: tuple[str, ...] = ()
    now_margin_cents: int | None = None
    then_margin_cents: int | None = None
    now_charged_cents: int | None = None
    then_charged_cents: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The usage of a period under another plans file.

    Attributes:
        customers: all, by name.
        missing_meters: meters of the log that the other file lacks, and their units.
        missing_plans: plans that the other file lacks, and how many customers have one.
        not_logged: meters, and their units of the period that the store has and the audit log lacks.
        unpriced: meters with overage at a price that one of the files does not name.
        left_out: what of the files is not tried, as sentences.
        checked: customers who were gone through twice, by sums and by the scripts.
        disagreeing: those for whom the two disagree; there should be none.
    """

    customers: Sequence[SimulatedCustomer]
    missing_meters: Mapping[str, int] = field(default_factory=dict[str, int])
    missing_plans: Mapping[str, int] = field(default_factory=dict[str, int])
    not_logged: Mapping[str, int] = field(default_factory=dict[str, int])
    unpriced: Sequence[str] = ()
    left_out: Sequence[str] = ()
    checked: int = 0
    disagreeing: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _CustomerCase:
    tenure: PlanTenure
    sums: UsageSums | None
    now: TrialTerms
    then: TrialTerms

    @property
    def units(self) -> Mapping[str, int]:
        return {} if self.sums is None else self.sums.units


async def simulate(
    store: Store,
    database: Database,
    catalog: Catalog,
    at_ms: int,
    *,
    customer: str | None = None,
    costs: Mapping[str, Fraction] | None = None,
    sample: int = 20,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Simulation:
    """Try the usage of the period that an instant lies in under another plans file.

    Sums decide where nothing is refused and nothing prepaid pays. Where only ceilings are passed, the events
    are gone through one by one; where a rate may have been, a grant or credit may pay, or subjects have
    limits, a store of its own serves them again.

    Args:
        store: where the customers are, started.
        database: of the audit log.
        catalog: the other plans file.
        at_ms: the instant.
        customer: the only one to look at; None: all.
        costs: meter to what one unit costs the seller, in minor units of the current file's first currency.
        sample: how many customers are gone through both ways, and compared.
        progress: called with how many customers are done, of how many that are gone through.

    Raises:
        MeterkitError: the database or the store does not answer, or the other file lacks a currency.
        ImportError: DuckDB or the server of the extra ``embedded`` is missing.
    """
    catalog = _with_currencies(store.catalog, catalog)
    logs: Any = import_module("meterkit.insights.simulation.usage_log")  # DuckDB takes a while to import.
    with (
        TemporaryDirectory(prefix="meterkit-", ignore_cleanup_errors=True) as name,
        closing(logs.UsageLog(Path(name))) as log,
    ):
        await asyncio.to_thread(log.copy, database, at_ms, customer, spends=store.catalog.counts_spend)
        charged = await asyncio.to_thread(_scale_charges, log, store.catalog, catalog)
        sums = await asyncio.to_thread(log.sums)
        started = {who: of.start_ms for who, of in sums.items()}
        now, then = PlanOffers(store.catalog, own_prices=True), PlanOffers(catalog)
        skipped: dict[str, str] = {}
        had = await read_tenures(store, at_ms, started, customer=customer, skipped=skipped)
        cases = {
            who: _CustomerCase(
                tenure=tenure,
                sums=sums.get(who) if started.get(who) == tenure.start_ms else None,
                now=now.to(tenure),
                then=then.to(tenure),
            )
            for who, tenure in had.items()
        }
        trial = _SimulationTrial(store, log, catalog, cases, progress)
        tried = await trial.tried()
        twice = _sampled([who for who in cases if cases[who].sums and who not in trial.replayed], sample)
        again = await trial.replay(twice)
    found = [
        _build_customer(who, case, tried[who], costs, charged, store.catalog) for who, case in cases.items()
    ]
    return Simulation(
        customers=found,
        missing_meters=_missing_meters(cases.values(), catalog),
        missing_plans=_missing_plans(cases.values(), catalog),
        not_logged=await _count_not_logged(store, cases, at_ms, customer),
        unpriced=_unpriced(cases, tried),
        left_out=_describe_left_out(store.catalog, catalog, trial.unnamed, skipped),
        checked=len(twice),
        disagreeing=[who for who in twice if _without_zeros(again[who]) != _without_zeros(tried[who])],
    )


def _with_currencies(now: Catalog, then: Catalog) -> Catalog:
    """The other plans file with the first currency of the current one, which customers without one have.

    Raises:
        MeterkitError: it lacks a currency of the current one.
    """
    if missing := [one for one in now.currencies if one not in then.currencies]:
        raise MeterkitError(
            f"the plans file to try has the currency {', '.join(then.currencies)}, the plans file of now has"
            f" {', '.join(now.currencies)}; give it {', '.join(missing)}, too: amounts of two currencies are"
            " not compared"
        )
    if then.currency == now.currency:
        return then
    others = {one: then.in_currency(one) for one in then.currencies if one != now.currency}
    return replace(then.in_currency(now.currency), other_currencies=others)


def _charged_meter(catalog: Catalog) -> str | None:
    """The meter of what calls take from a balance in money; a file has one at most."""
    return next((name for name, meter in catalog.meters.items() if meter.charges is not None), None)


def _other_markup(now: Catalog, then: Catalog, name: str) -> Fraction | None:
    """Ratio of the new markup to the old one; None: unknown."""
    before, meter = now.meters[name].charges, then.meters.get(name)
    after = None if meter is None else meter.charges
    if before is None or after is None or before.models != after.models:
        return None
    of, by = 100 + after.markup_percent, 100 + before.markup_percent
    return Fraction(of, by) if by else Fraction(1) if of == by else None


class _ChargedUnits(NamedTuple):
    """Charges of calls to a balance in money: the meter that counts them, and the amount by customer."""

    meter: str
    of: Mapping[str, int]


def _scale_charges(log: UsageLog, now: Catalog, then: Catalog) -> _ChargedUnits | None:
    """Read the charges of calls, then scale those in the log to the other markup."""
    meter = _charged_meter(now)
    if meter is None:
        return None
    charged, ratio = log.charged(meter), _other_markup(now, then, meter)
    if ratio is not None and ratio != 1:
        log.scale(meter, ratio)
    return _ChargedUnits(meter, charged)


def _describe_left_out(
    now: Catalog, then: Catalog, unnamed: Mapping[str, int], skipped: Mapping[str, str]
) -> list[str]:
    found: list[str] = []
    meter = _charged_meter(now)
    if meter is not None and _other_markup(now, then, meter) is None:
        found.append(
            f"what calls took from {meter.removesuffix(CHARGED)} is that of the log: other prices under"
            " `models`, and a markup beside them or in place of -100%, are not tried"
        )
    for kind, customers in sorted(unnamed.items()):
        found.append(
            f"limits of each {kind} are not tried for {customers:,} customers: none of their usage in the"
            f" audit log names one, which takes `subjects: {kind}` in the plan when it is recorded"
        )
    if sold := {of[0] for each in (now, then) if (of := find_top_ups(each.credits)) is not None}:
        found.append(
            f"top-ups of {', '.join(sorted(sold))} are not bought: what they paid for is tried without them,"
            " and may be shown as refused"
        )
    for customer, why in skipped.items():
        found.append(f"customer {customer!r} is not tried: the record cannot be read: {why}")
    return found


@dataclass(slots=True)
class _SimulationTrial:
    """Tries each customer under the other terms."""

    store: Store
    log: UsageLog
    catalog: Catalog
    cases: Mapping[str, _CustomerCase]
    progress: Callable[[int, int], None]
    replayed: set[str] = field(default_factory=set[str])
    unnamed: Counter[str] = field(default_factory=Counter[str])
    """Kinds of subjects with limits, and how many customers with usage name none of the kind."""

    async def tried(self) -> dict[str, TrialResult]:
        """Result of each customer, by the cheapest exact way."""
        used = {who: case.then for who, case in self.cases.items() if case.sums is not None}
        await asyncio.to_thread(self.log.try_terms, used)
        beyond = set(await asyncio.to_thread(self.log.beyond))
        self.replayed = await asyncio.to_thread(self.log.faster)
        self.replayed |= {
            who
            for who, terms in used.items()
            if (terms.has_grants or terms.has_budget or terms.price_rows)
            and any(terms.beyond(self.cases[who].units).values())
        }
        self.replayed |= await asyncio.to_thread(self._naming, used)
        by_events = sorted(beyond - self.replayed)
        found = {
            who: TrialResult(case.then.overage(case.units), {}, None)
            for who, case in self.cases.items()
            if who not in self.replayed
        }
        found |= await asyncio.to_thread(self._refused, by_events)
        return found | await self.replay(sorted(self.replayed))

    def _naming(self, used: Mapping[str, TrialTerms]) -> set[str]:
        """Customers who have usage of subjects with limits."""
        found = set[str]()
        for kind in {kind for terms in used.values() for kind in terms.subjects}:
            limited = {who for who, terms in used.items() if kind in terms.subjects}
            naming = limited & self.log.naming(kind)
            found |= naming
            if limited - naming:
                self.unnamed[kind] = len(limited - naming)
        return found

    def _refused(self, customers: Sequence[str]) -> dict[str, TrialResult]:
        found: dict[str, TrialResult] = {}
        for first in range(0, len(customers), _AT_ONCE):
            for who, events in self._events(customers[first : first + _AT_ONCE]):
                found[who] = refuse_beyond(self.cases[who].then, events)
        return found

    def _events(self, customers: Sequence[str]) -> list[tuple[str, list[LoggedEvent]]]:
        return list(self.log.events(customers, self.catalog.meters))

    async def replay(self, customers: Sequence[str]) -> dict[str, TrialResult]:
        """Replay all events of some customers on a store."""
        found: dict[str, TrialResult] = {}
        if not customers:
            return found
        with TemporaryDirectory(prefix="meterkit-", ignore_cleanup_errors=True) as name:
            async with UsageReplay.under(self.catalog, Path(name)) as replay:
                for first in range(0, len(customers), _AT_ONCE):
                    page = customers[first : first + _AT_ONCE]
                    events = await asyncio.to_thread(self._events, page)
                    tenures = {who: self.cases[who].tenure for who in page}
                    given = await read_given_once(self.store, self.catalog, tenures)
                    for who, of in events:
                        case = self.cases[who]
                        found[who] = await replay.serve(who, case.then, case.tenure, of, given[who])
                        self.progress(len(found), len(customers))
        return found


def _missing_meters(cases: Iterable[_CustomerCase], catalog: Catalog) -> dict[str, int]:
    found = Counter[str]()
    for case in cases:
        found.update(
            {
                meter: units
                for meter, units in case.units.items()
                if meter not in catalog.meters and not is_row(meter)
            }
        )
    return dict(found)


async def _count_not_logged(
    store: Store, cases: Mapping[str, _CustomerCase], at_ms: int, customer: str | None
) -> dict[str, int]:
    """Count the units that the store has recorded in the period and the audit log lacks, by plain meter."""
    found = Counter[str]()
    meters = [
        name
        for name, meter in store.catalog.meters.items()
        if meter.kind == "counter" and meter.source is None and not meter.is_spend
    ]
    async with aclosing(_read_usage(store, at_ms, customer)) as pages:
        async for usage in pages:
            case = cases.get(usage["customer"])
            sums = None if case is None else case.sums
            if sums is not None and sums.start_ms != to_ms(usage["period"]["start"]):
                continue
            logged: Mapping[str, int] = {} if sums is None else sums.units
            lacks = {name: usage["meters"][name]["recorded"] - logged.get(name, 0) for name in meters}
            found.update({name: units for name, units in lacks.items() if units > 0})
    return dict(found)


async def _read_usage(store: Store, at_ms: int, customer: str | None) -> AsyncGenerator[CustomerUsage]:
    if customer is not None:
        yield (await store.usage_of_many([customer], at_ms=at_ms))[0]
        return
    async with aclosing(usage_of_all(store, at_ms=at_ms)) as pages:
        async for page in pages:
            for usage in page:
                yield usage


def _unpriced(cases: Mapping[str, _CustomerCase], tried: Mapping[str, TrialResult]) -> list[str]:
    found = set[str]()
    for who, case in cases.items():
        found |= case.then.unpriced(tried[who].overage) | case.now.unpriced(_overage(case))
    return sorted(found)


def _missing_plans(cases: Iterable[_CustomerCase], catalog: Catalog) -> dict[str, int]:
    return Counter(case.tenure.plan for case in cases if case.tenure.plan not in catalog.plans)


def _sampled(customers: Sequence[str], most: int) -> list[str]:
    """Some customers, the same ones each time."""
    return sorted(sorted(customers, key=lambda who: blake2b(who.encode(), digest_size=8).digest())[:most])


def _without_zeros(tried: TrialResult) -> TrialResult:
    return TrialResult(
        {meter: units for meter, units in tried.overage.items() if units}, dict(tried.refused), tried.first_ms
    )


def _overage(case: _CustomerCase) -> Mapping[str, int]:
    return {} if case.sums is None else case.sums.overage


def _build_customer(
    who: str,
    case: _CustomerCase,
    tried: TrialResult,
    costs: Mapping[str, Fraction] | None,
    charged: _ChargedUnits | None,
    catalog: Catalog,
) -> SimulatedCustomer:
    currency = catalog.in_currency(case.tenure.currency).currency
    costs = costs if currency == catalog.currency else None
    now, then = case.now.charge(_overage(case)), case.then.charge(tried.overage)
    if case.tenure.is_usage_unpaid:
        now, then = case.now.fixed_cents, case.then.fixed_cents
    if case.tenure.is_unpaid:
        now = then = Fraction(0)
    served = {meter: units - tried.refused.get(meter, 0) for meter, units in case.units.items()}
    return SimulatedCustomer(
        customer=who,
        plan=case.tenure.plan,
        currency=currency,
        now_cents=rounded_cents(now),
        then_cents=rounded_cents(then),
        refused=tried.refused,
        refused_first_at=None if tried.first_ms is None else from_ms(tried.first_ms),
        estimates=tuple(_explain_estimates(case)),
        now_margin_cents=None if costs is None else rounded_cents(now - _cost(case.units, costs)),
        then_margin_cents=None if costs is None else rounded_cents(then - _cost(served, costs)),
        now_charged_cents=None if charged is None else _charged_cents(charged.of.get(who, 0)),
        then_charged_cents=None if charged is None else _charged_cents(served.get(charged.meter, 0)),
    )


def _charged_cents(micros: int) -> int:
    return rounded_cents(Fraction(micros, _CENT))


def _cost(units: Mapping[str, int], costs: Mapping[str, Fraction]) -> Fraction:
    return sum((quantity * costs[meter] for meter, quantity in units.items() if meter in costs), Fraction(0))


def _explain_estimates(case: _CustomerCase) -> list[str]:
    changed = "plan, seats, add-ons, overrides or prices changed within the period"
    found = [changed] if case.tenure.is_changed else []
    if case.tenure.is_credited:
        found.append("the rest of the period was credited")
    if case.sums is None:
        return found
    if case.sums.is_summed:
        found.append("the order of some events is not known")
    if case.tenure.is_granted:
        found.append("grants that the app gave are left out")
    if case.then.grants_outlive:
        found.append("grants of earlier periods are left out")
    if (case.now.sources | case.then.sources) & case.units.keys():
        found.append("derived meters are priced as their source")
    return found
