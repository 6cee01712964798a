"""Overview for operators: snapshots of all customers, made in the background on a page's request.

It is made when a page asks for it. On a timer it would keep a tenth of a core busy for a page that is open
for an hour a day.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.sorted_customers import customers_with_counts
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import from_ms
from meterkit.insights.audit.async_database import open_database
from meterkit.insights.overview.rows import CustomerRow, OverviewTotals, UsageRow, build_row
from meterkit.insights.refusing_limits import find_refusing_limits
from meterkit.insights.revenue.revenue import Revenue
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.task_lease import TaskLease
from meterkit.store.unreadable_data import read_each

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import date

    from meterkit.customers.sorted_customers import SortedCustomers
    from meterkit.insights.audit.database import Database
    from meterkit.insights.overview.rows import DailyActivity, OverviewFigures, RevenueFigures
    from meterkit.insights.overview.tables import OverviewSnapshot, OverviewTables
    from meterkit.insights.revenue.tables import RevenueLists, RevenueTables
    from meterkit.settings import Settings
    from meterkit.store.store import Store

_DAYS: Final = 30
_NOT_BY_CURRENCY: Final = frozenset({"day", "cac"})


async def revenue_figures(store: Store, settings: Settings, database: Database) -> RevenueFigures | None:
    """Revenue of the last day with a snapshot of it; None: there is none.

    Raises:
        MeterkitError: the database fails.
    """
    revenue = Revenue(store, settings)
    last, _ = await revenue.look()
    if last is None:
        return None
    found = await revenue.at(last)
    tables: Any = import_module("meterkit.insights.revenue.tables")
    plans, growth = await in_thread(_read_plans_and_growth, tables.RevenueTables(database), last)
    return {
        "day": last.isoformat(),
        "figures": {name: dict(of) for name, of in asdict(found).items() if name not in _NOT_BY_CURRENCY},
        "cac": found.cac,
        "plans": plans,
        "growth": growth,
    }


def _read_plans_and_growth(
    tables: RevenueTables, last: date
) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, dict[str, int]]]]:
    plans = [(plan, currency, mrr) for (plan, currency), mrr in sorted(tables.by_plan(last).items())]
    days = tables.days(last - timedelta(days=_DAYS - 1), last)
    growth = [
        (day.isoformat(), currency, asdict(of)) for day, all_ in days.items() for currency, of in all_.items()
    ]
    return plans, growth


_LOOK_EVERY_S: Final = 5.0
_FRESH_MS: Final = 300_000
_ASKED_MS: Final = 3_600_000
_LEASE_MS: Final = 60_000
_PAGE: Final = 100
_WRITTEN_AT_ONCE: Final = 2_000


class CustomerOverview:
    """Snapshots of all customers, in tables beside the audit log.

    Each method raises :class:`~meterkit.errors.SettingsError` where no audit log is set or it cannot be used,
    :class:`~meterkit.errors.MeterkitError` where its database fails, and
    :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: of the customers.
        settings: name the database.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._asked = store.keys.shard(HOOKS_SHARD, "overview:asked")
        self._lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, "overview:lease"), lasts_ms=_LEASE_MS)

    async def last(self) -> OverviewSnapshot | None:
        """The last snapshot; None: there is none yet. One that is older than five minutes is made anew."""
        made = await in_thread(self.tables().last)
        if made is None or self._store.now_ms() - made.at_ms > _FRESH_MS:
            await self._store.ask("set", self._asked, b"1", px=_ASKED_MS)
        return made

    async def run(self) -> None:
        """Make a snapshot whenever a page has asked for one, until cancelled."""
        while True:
            await self.snapshot_if_requested()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def snapshot_if_requested(self) -> bool:
        """Make a snapshot if a page requested one and no other process makes it; whether it was made."""
        admin = await self._store.admin()
        if not await admin.ask(admin.client.exists(self._asked)):
            return False
        async with self._lease.held() as is_held:
            if is_held:
                # Before the snapshot: a page that asks from now on wants a later one.
                await admin.ask(admin.client.delete(self._asked))
                await self.snapshot()
        return is_held

    async def snapshot(self) -> OverviewFigures:
        """Make a snapshot of all customers now; its figures."""
        tables, store = self.tables(), self._store
        known = await in_thread(tables.last)
        at_ms = max(store.now_ms(), 0 if known is None else known.at_ms + 1)  # It names the snapshot.
        totals = OverviewTotals(
            {name for name, meter in store.catalog.meters.items() if meter.stripe is not None}
        )
        rows, of_meters = list[CustomerRow](), list[UsageRow]()
        skip = partial(store.log_unreadable, "figures on operator pages")
        async with self._list_all() as customers:
            async for names in customers.names(_PAGE):
                for usage, rates in await read_each(names, store.usage_and_rates_of_many, skip):
                    refusing = find_refusing_limits(store.catalog, usage, rates, from_ms(store.now_ms()))
                    row = build_row(usage, store.catalog, refusing)
                    of_meters += totals.add(row, usage)
                    rows.append(row)
                if len(rows) >= _WRITTEN_AT_ONCE:
                    await in_thread(tables.write, at_ms, rows, of_meters)
                    await self._lease.acquire()  # A snapshot of many customers takes longer than it lasts.
                    rows, of_meters = [], []
        await in_thread(tables.write, at_ms, rows, of_meters)
        figures: OverviewFigures = {
            "customers": totals.figures(),
            "revenue": await revenue_figures(self._store, self._settings, self._database),
            "activity": await self._read_activity(at_ms, known),
        }
        await in_thread(tables.finish, at_ms, figures)
        return figures

    async def _read_activity(self, at_ms: int, known: OverviewSnapshot | None) -> DailyActivity:
        read: Any = import_module("meterkit.insights.overview.daily_activity").read_daily_activity
        before = None if known is None else known.figures["activity"]
        found: DailyActivity = await in_thread(
            read, self._database, at_ms, before, 0 if known is None else known.at_ms
        )
        return found

    @asynccontextmanager
    async def _list_all(self) -> AsyncGenerator[SortedCustomers]:
        """All customers that were set up or used something, sorted."""
        admin = (await self._store.admin()).for_delivery()
        async with customers_with_counts(self._store) as found:
            await found.add_set_up(admin, self._store.keys)
            yield found

    def lists(self) -> RevenueLists:
        """Paged lists of payments and of their changes; each call blocks."""
        database = self._database
        lists: type[RevenueLists] = import_module("meterkit.insights.revenue.tables").RevenueLists
        return lists(database)

    @cached_property
    def _database(self) -> Database:
        return open_database(self._settings, "figures over all customers are")

    def tables(self) -> OverviewTables:
        """The tables of the snapshots; each call blocks."""
        database = self._database
        tables: type[OverviewTables] = import_module("meterkit.insights.overview.tables").OverviewTables
        return tables(database)
