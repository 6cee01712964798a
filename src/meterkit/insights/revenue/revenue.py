"""Recurring revenue by day (``kit.revenue``): make daily snapshots and compute figures from them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cached_property, partial
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.catalog.value_parsers import rounded_cents
from meterkit.customers.billed_usage import sum_overage
from meterkit.customers.history import read_states_and_histories
from meterkit.customers.sorted_customers import TemporaryTables
from meterkit.customers.states import list_customer_pages
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.grants import MICRO
from meterkit.decisions.keys import HEAD_FIELD, HOOKS_SHARD
from meterkit.decisions.packed import CounterHead
from meterkit.decisions.periods import to_ms
from meterkit.decisions.transitions import TERM_TEXTS, TermsInForce, parse_mrr
from meterkit.errors import MeterkitError
from meterkit.insights.audit.async_database import open_database
from meterkit.insights.revenue.revenue_formulas import (
    CHURN_MONTHS,
    FORECAST_MONTHS,
    ChurnShares,
    CustomerPayment,
    DayFigures,
    MonthlyChurn,
    OverageAmount,
    RetentionShares,
    churn_of,
    forecast_revenue,
    lifetime_value,
    months_before,
    retention_of,
    sum_days,
)
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.concurrent_calls import run_together
from meterkit.store.input_checks import shown
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.history import HistoryEntry
    from meterkit.insights.revenue.revenue_formulas import RevenueForecast
    from meterkit.insights.revenue.tables import RevenueTables
    from meterkit.settings import Settings
    from meterkit.store.store import Store


_PAGE: Final = 25
_CALLS_AT_ONCE: Final = 8


async def read_payments(store: Store, customers: Sequence[str], at_ms: int) -> list[CustomerPayment]:
    """Recurring payments of some customers at a past instant.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: the record of a customer cannot be read, without which the sum would be wrong.
    """
    kept = (await read_states_and_histories(store, customers)).items()
    paying = (payment_at(who, state, ledger, store.catalog, at_ms) for who, (state, ledger) in kept)
    return [one for one in paying if one is not None]


async def read_overage(
    store: Store, customers: Sequence[str], since_ms: int, until_ms: int
) -> list[OverageAmount]:
    """Overage of linked customers among some, in the periods that ended in a span.

    Raises:
        StoreError: the store does not answer.
    """

    async def read(customer: str, state: CustomerState, begins_ms: int) -> OverageAmount:
        charged = await _sum_charges(store, customer, state, begins_ms, since_ms, until_ms)
        currency = store.catalog.in_currency(state.currency).currency
        return OverageAmount(customer, currency, round(charged * MICRO))

    ended = await _list_ended_periods(store, customers, since_ms, until_ms)
    found = await run_together([partial(read, *one) for one in ended], at_once=_CALLS_AT_ONCE)
    return [one for one in found if one.amount]


async def _list_ended_periods(
    store: Store, customers: Sequence[str], since_ms: int, until_ms: int
) -> list[tuple[str, CustomerState, int]]:
    """List linked customers with a period that may have ended in the span, and its start (ms)."""
    admin = (await store.admin()).for_delivery()
    replies = await admin.ask_all(
        ("hget", key, field)
        for keys in map(store.keys.customer, customers)
        for key, field in ((keys.state, "data"), (keys.counters, HEAD_FIELD))
    )
    found: list[tuple[str, CustomerState, int]] = []
    for customer, data, packed in zip(customers, replies[::2], replies[1::2], strict=True):
        state, head = CustomerState.parse(data or b""), CounterHead.read(packed)
        is_asked = packed is not None and state.stripe_customer is not None
        if is_asked and (head.begins_ms >= since_ms or since_ms < head.ends_ms <= until_ms):
            found.append((customer, state, head.begins_ms))
    return found


async def _sum_charges(
    store: Store, customer: str, state: CustomerState, begins_ms: int, since_ms: int, until_ms: int
) -> int:
    """Sum the overage of a customer's periods that ended in a span, in minor units."""
    admin = (await store.admin()).for_delivery()
    totals: Any = await admin.ask(admin.client.hgetall(store.keys.customer(customer).totals))
    ends = {int(name[:-2]): int(end) for name, end in totals.items() if name.endswith(b"|e")}
    total = 0
    for start_ms in sorted(
        {begins_ms, *(start for start, end in ends.items() if since_ms < end <= until_ms)}
    ):
        usage = await store.usage(customer, at_ms=start_ms)
        if since_ms < to_ms(usage["period"]["end"]) <= until_ms:
            total += await sum_overage(store, usage, state)
    return total


def payment_at(
    customer: str, state: CustomerState, ledger: Sequence[HistoryEntry], catalog: Catalog, at_ms: int
) -> CustomerPayment | None:
    """Recurring payment of a customer at an instant; None: none.

    While access is restricted, or a plan was set by hand, the payment is for the subscription's own.

    Args:
        customer: its id.
        state: as it is now.
        ledger: what has changed, the oldest first.
        catalog: what is sold.
        at_ms: the instant.
    """
    later: dict[str, str] = {}
    for entry in ledger:
        if to_ms(entry.at) >= at_ms:
            later.setdefault(entry.kind, entry.before or "")
    now = TermsInForce.of(state, catalog, at_ms)
    mrr, currency, paid_plan = parse_mrr(later.get("mrr", TERM_TEXTS["mrr"](now)))
    if not mrr:
        return None
    return CustomerPayment(customer, paid_plan or later.get("plan") or now.plan, currency, mrr)


_T = TypeVar("_T")

_EVERY_S: Final = 600.0
_LEASE_MS: Final = 60_000
_DAY: Final = timedelta(days=1)
_NOT_RETAINED: Final = RetentionShares(None, None)
_NO_CHURN: Final = ChurnShares(None, None, None)
_SETTLES: Final = timedelta(hours=2)
"""After midnight: usage of a period that ended a moment before is counted, and may still be corrected."""
_DAYS_BACK: Final = 400
"""A ledger that is older may be cut: it has the last thousand changes of a customer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevenueDay:
    """Recurring revenue at the end of a day (UTC), by currency. Money is in micro-cents.

    ``new + expansion + reactivation - contraction - churn`` is the change of ``mrr`` on that day, exactly.

    Attributes:
        day: which.
        mrr: monthly recurring revenue: prices by the month, of subscriptions that are active or past due.
            Trials, usage, taxes and coupons that end are no part of it.
        new: of customers who never paid before.
        expansion: of those who pay more.
        contraction: of customers who pay less.
        churn: of those who pay nothing any more.
        reactivation: of those who had left.
        customers: how many pay.
        arpa: ``mrr`` per paying customer; None: no customer pays.
        nrr: what the customers of a month before pay now, as a share of what they paid then; None: there were
            none, or there is no snapshot of that day.
        grr: the same, each customer counted with at most what they paid then.
        ltv: what a customer brings until it leaves: ``arpa``, by the share of customers who left in a month,
            on average over the six calendar months before; None: no customer left.
        customer_churn: which share of the customers of a month before left since; None: there was none.
        gross_churn: which share of the revenue of a month before was lost since, by churn and contraction.
        net_churn: the same, less what expansion and reactivation brought; it may be below 0.
        usage_revenue: what usage beyond the included costs, of periods that ended in the month until that
            day. No part of ``mrr``.
        forecast: what ``mrr`` is expected to be a month later, if it changes as it did in the three months
            before; None: there is no snapshot of a month before.
        forecast_error: how far such forecasts were off in the last six months, on average, as a share.
        cac: what was spent in the month until that day per new customer (cents, in the first currency of the
            plans file, with its new customers); None: nothing was spent, or no customer was new.
    """

    day: date
    mrr: Mapping[str, int]
    new: Mapping[str, int]
    expansion: Mapping[str, int]
    contraction: Mapping[str, int]
    churn: Mapping[str, int]
    reactivation: Mapping[str, int]
    customers: Mapping[str, int]
    arpa: Mapping[str, int | None]
    nrr: Mapping[str, float | None]
    grr: Mapping[str, float | None]
    ltv: Mapping[str, int | None]
    customer_churn: Mapping[str, float | None]
    gross_churn: Mapping[str, float | None]
    net_churn: Mapping[str, float | None]
    usage_revenue: Mapping[str, int]
    forecast: Mapping[str, int | None]
    forecast_error: Mapping[str, float | None]
    cac: int | None


class Revenue:
    """Snapshots of revenue, in tables beside the audit log.

    Each method raises :class:`~meterkit.errors.SettingsError` where no audit log is set or it cannot be
    used, and :class:`~meterkit.errors.MeterkitError` where its database fails.

    Args:
        store: of the customers.
        settings: name the database.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._by_plan: Mapping[tuple[str, str], int] = {}
        self._by_plan_until_s = 0.0
        self._lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, "revenue:lease"), lasts_ms=_LEASE_MS)

    async def at(self, day: date | None = None) -> RevenueDay:
        """The figures of a day that is over; default: the last one with a snapshot.

        Raises:
            MeterkitError: there is no snapshot of that day, or it is no date.
        """
        tables = await self._opened()
        asked_day = self._yesterday() if day is None else _check_day(day)
        found = await in_thread(tables.last, asked_day)
        if found is None or day not in {None, found}:
            asked = "any day" if day is None else f"{day}"
            raise MeterkitError(
                f"revenue: found no snapshot of {asked}; `meterkit worker`, or an app that delivers, makes"
                " one of each day that is over"
            )
        return await in_thread(_build_revenue_day, tables, found, self._store.catalog.currency)

    async def run(self) -> None:
        """Make the snapshots that are missing, again and again; one process at a time does.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            async with self._lease.held() as is_held:
                if is_held:
                    await self.snapshot()
            await asyncio.sleep(_EVERY_S)

    async def spend(self, day: date, cents: int) -> None:
        """Say what was spent on a day to win customers, in cents of the plans file's first currency.

        Said again, the last word counts.

        Raises:
            MeterkitError: ``day`` is no date, or ``cents`` no integer from 0.
        """
        if type(cents) is not int or cents < 0:
            raise MeterkitError(f"spend: found {cents!r:.40} cents; allowed is a whole number from 0")
        await in_thread((await self._opened()).spend, _check_day(day), cents)

    async def by_plan(self) -> Mapping[tuple[str, str], int]:
        """Recurring revenue (micro-cents) by plan and currency, by the last snapshot.

        The database is asked once in ten minutes: this is read with each scrape of metrics.
        """
        if monotonic() >= self._by_plan_until_s:
            tables = await self._opened()
            last = await in_thread(tables.last, self._yesterday())
            self._by_plan = {} if last is None else await in_thread(tables.by_plan, last)
            self._by_plan_until_s = monotonic() + _EVERY_S
        return self._by_plan

    async def look(self) -> tuple[date | None, Sequence[date]]:
        """The last day with a snapshot, and days before yesterday without one. Nothing is made."""
        tables, yesterday = await self._opened(), self._yesterday()
        last = await in_thread(tables.last, yesterday) if await in_thread(tables.has_snapshots) else None
        if last is None:
            return None, []
        return last, [day for day in await in_thread(tables.missing, yesterday) if day < yesterday]

    async def days(self, first: date, last: date) -> Sequence[date]:
        """The days with a snapshot, from the first to the last."""
        return list(await in_thread((await self._opened()).days, _check_day(first), _check_day(last)))

    async def snapshot(self) -> Sequence[date]:
        """Make the snapshots that are missing, the oldest first; the days that were made.

        Of a day that was never made while later ones were, too: what it was is in the customers' ledgers.

        Raises:
            StoreError: the store does not answer.
        """
        tables = await self._opened()
        yesterday = self._yesterday()
        missing = await in_thread(tables.missing, yesterday)
        for day in missing[-_DAYS_BACK:]:
            await self._write_day(tables, day)
            if day < yesterday and day + _DAY not in missing:
                # The movements of the next day were computed against the last day before the gap.
                await in_thread(tables.compute, day + _DAY)
        return missing[-_DAYS_BACK:]

    async def _write_day(self, tables: RevenueTables, day: date) -> None:
        """Read a day of all customers, a page at a time, and write it at once."""
        store, since_ms, until_ms = self._store, _end_ms(day - _DAY), _end_ms(day)
        admin = (await store.admin()).for_delivery()
        async with _DayRows() as rows, aclosing(list_customer_pages(admin, store.keys, _PAGE)) as pages:
            async for page in pages:
                await rows.insert(_ADD_PAYMENT, await read_payments(store, page, until_ms))
                await rows.insert(_ADD_OVERAGE, await read_overage(store, page, since_ms, until_ms))
                await self._lease.renew()  # A day of many customers takes longer than it lasts.
            await rows.write(tables, day)

    def _yesterday(self) -> date:
        return (datetime.fromtimestamp(self._store.now_ms() // 1000, UTC) - _SETTLES).date() - _DAY

    async def _opened(self) -> RevenueTables:
        return await in_thread(lambda: self._tables)  # SQLAlchemy takes a while to import.

    @cached_property
    def _tables(self) -> RevenueTables:
        database = open_database(self._settings, "revenue is")
        tables: type[RevenueTables] = import_module("meterkit.insights.revenue.tables").RevenueTables
        return tables(database)


def _check_day(day: object) -> date:
    """Refuse a datetime, which is a date to Python and to type checkers, and names no day in the tables."""
    if isinstance(day, datetime) or not isinstance(day, date):
        raise MeterkitError(f"day: found {shown(day)}; allowed is a date, such as date(2026, 10, 1)")
    return day


_ROWS: Final = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -2048;
CREATE TABLE paying (customer PRIMARY KEY, plan, currency, mrr) WITHOUT ROWID;
CREATE TABLE used (customer PRIMARY KEY, currency, amount) WITHOUT ROWID;
BEGIN;
"""
_ADD_PAYMENT: Final = "INSERT INTO paying VALUES (?, ?, ?, ?)"
_ADD_OVERAGE: Final = "INSERT INTO used VALUES (?, ?, ?)"


class _DayRows(TemporaryTables):
    """Payments and overage of a day while it is read: in the thread, and on disk if they are many."""

    def __init__(self) -> None:
        super().__init__(_ROWS, "the revenue of a day")

    async def write(self, tables: RevenueTables, day: date) -> None:
        """Write them as the snapshot of the day."""
        select = self._database.execute
        await self.call(
            lambda: tables.write(
                day,
                map(CustomerPayment._make, select("SELECT * FROM paying ORDER BY customer")),
                map(OverageAmount._make, select("SELECT * FROM used ORDER BY customer")),
            )
        )


def _build_revenue_day(tables: RevenueTables, day: date, currency: str) -> RevenueDay:
    figures, before = tables.days(day, day)[day], months_before(day, 1)
    retained = {name: retention_of(sums) for name, sums in tables.retained(before, day).items()}
    starts, months = tables.days(before, before).get(before), _read_monthly_churn(tables, day)
    moved = sum_days(tables.days(before + _DAY, day).values())
    spent, won = tables.spent(before + _DAY, day), moved.get(currency, DayFigures()).new_customers
    usage, expected = tables.usage(before + _DAY, day), _forecast_reader(tables, day)

    # A currency that brings nothing any more has lost what it brought in the month.
    names = sorted({*figures, *retained, *moved})

    def by_currency(value: Callable[[str, DayFigures], _T]) -> dict[str, _T]:
        return {name: value(name, figures.get(name, DayFigures())) for name in names}

    lost = {name: churn_of(starts.get(name), moved.get(name)) for name in names} if starts is not None else {}
    return RevenueDay(
        day=day,
        mrr=by_currency(lambda _, of: of.mrr),
        new=by_currency(lambda _, of: of.new),
        expansion=by_currency(lambda _, of: of.expansion),
        contraction=by_currency(lambda _, of: of.contraction),
        churn=by_currency(lambda _, of: of.churn),
        reactivation=by_currency(lambda _, of: of.reactivation),
        customers=by_currency(lambda _, of: of.customers),
        arpa=by_currency(lambda _, of: round(Fraction(of.mrr, of.customers)) if of.customers else None),
        nrr=by_currency(lambda name, _: retained.get(name, _NOT_RETAINED).net),
        grr=by_currency(lambda name, _: retained.get(name, _NOT_RETAINED).gross),
        customer_churn=by_currency(lambda name, _: lost.get(name, _NO_CHURN).customers),
        gross_churn=by_currency(lambda name, _: lost.get(name, _NO_CHURN).gross),
        net_churn=by_currency(lambda name, _: lost.get(name, _NO_CHURN).net),
        ltv=by_currency(lambda name, of: lifetime_value(of.mrr, of.customers, months(name))),
        usage_revenue=usage,
        forecast=by_currency(lambda name, _: None if (found := expected(name)) is None else found.mrr),
        forecast_error=by_currency(
            lambda name, _: None if (found := expected(name)) is None else found.error
        ),
        cac=rounded_cents(Fraction(spent, won)) if spent and won else None,
    )


def _forecast_reader(tables: RevenueTables, day: date) -> Callable[[str], RevenueForecast | None]:
    """The revenue expected a month after a day, by currency, from the same days of the months before."""
    known: list[Mapping[str, DayFigures]] = []
    for nth in range(FORECAST_MONTHS):
        at = months_before(day, nth)
        found = tables.days(at, at).get(at)
        if found is None:
            break
        known.insert(0, found)
    return lambda currency: forecast_revenue([of.get(currency, DayFigures()).mrr for of in known])


def _read_monthly_churn(tables: RevenueTables, day: date) -> Callable[[str], list[MonthlyChurn]]:
    """The customers of the six calendar months before that of a day, by currency."""
    spans: list[tuple[date, Mapping[date, Mapping[str, DayFigures]]]] = []
    first = day.replace(day=1)
    for _ in range(CHURN_MONTHS):
        last = first - _DAY
        first = last.replace(day=1)
        spans.append((first, tables.days(first - _DAY, last)))

    def of(currency: str) -> list[MonthlyChurn]:
        found: list[MonthlyChurn] = []
        for first, days in spans:
            start = days.get(first - _DAY, {}).get(currency)
            left = sum(
                figures[currency].churned_customers
                for at, figures in days.items()
                if at >= first and currency in figures
            )
            found.append(MonthlyChurn(0 if start is None else start.customers, left))
        return found

    return of


def _end_ms(day: date) -> int:
    """The first instant after a day (UTC)."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + 86_400) * 1000
