"""Drain the streams of the audit log into its database, each entry once; read the backlog.

A consumer group is not needed: rows are unique by their names, so two processes that drain at once do no
harm. The newest entries of a too long stream are summed: the oldest may be on their way into the
database.
"""

from __future__ import annotations

import asyncio
import logging
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.decisions.keys import HOOKS_SHARD, meter_token
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.audit.async_database import database_at
from meterkit.insights.audit.entries import AuditRow, parse_rows
from meterkit.redis.daemon_thread import in_thread
from meterkit.redis.server import is_key_error
from meterkit.store.event_names import read_meters
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.insights.audit.database import Database
    from meterkit.settings import Settings
    from meterkit.store.store import Store

_noted: Final[WeakKeyDictionary[Store, Backlog]] = WeakKeyDictionary()


class ShardBacklog(NamedTuple):
    """Entries that wait in a shard.

    Attributes:
        is_full: whether the newest are summed beside them; see fold_audit.lua.
        trouble: why their number is unknown; empty: it is known.
    """

    shard: int
    entries: int
    is_full: bool
    trouble: str = ""


class Backlog(NamedTuple):
    """The waiting entries of all shards.

    Attributes:
        entries: how many.
        since_ms: when the oldest was entered; None: none waits.
        full_shards: number of shards in which the newest are summed, as too many wait.
    """

    entries: int
    since_ms: int | None
    full_shards: int

    def age_s(self, now_ms: int) -> float:
        """Age of the oldest entry in seconds; 0: none waits."""
        return 0.0 if self.since_ms is None else max(0.0, (now_ms - self.since_ms) / 1000)


async def read_shard_backlogs(store: Store) -> Sequence[ShardBacklog]:
    """The shards in which something waits, in one round trip.

    One whose stream is none, as something else has written there, is among them with why: the others go on.

    Raises:
        StoreError: the store does not answer.
    """
    found = await (await store.admin()).ask_each(
        command
        for shard in range(store.keys.shards)
        for command in (("xlen", store.keys.audit(shard)), ("exists", store.keys.audit_sums(shard)))
    )
    waiting: list[ShardBacklog] = []
    for shard, (entries, sums) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if isinstance(entries, Exception):
            waiting.append(ShardBacklog(shard, 0, is_full=False, trouble=str(entries)))
        elif entries or sums:
            waiting.append(ShardBacklog(shard, entries, bool(sums)))
    return waiting


async def sum_backlogs(store: Store, waiting: Sequence[ShardBacklog]) -> Backlog:
    """Sum the backlogs of shards; one more round trip reads the age of the oldest entry.

    Raises:
        StoreError: the store does not answer.
    """
    shards = [one.shard for one in waiting if one.entries]
    since_ms: int | None = None
    if shards:
        admin = await store.admin()
        pages = await admin.ask_all(("xrange", store.keys.audit(shard), "-", "+", 1) for shard in shards)
        since_ms = min(
            (_entered_ms(name.decode(), fields) for page in pages for name, fields in page), default=None
        )
    return Backlog(sum(one.entries for one in waiting), since_ms, sum(one.is_full for one in waiting))


async def read_backlog(store: Store) -> Backlog:
    """Read the backlog in two round trips.

    Raises:
        StoreError: the store does not answer.
    """
    return await sum_backlogs(store, await read_shard_backlogs(store))


def note_backlog(store: Store, backlog: Backlog) -> None:
    """Note a reading for OpenTelemetry's callbacks, which cannot ask the store."""
    _noted[store] = backlog


def noted_backlogs(stores: Iterable[Store]) -> Mapping[Store, Backlog]:
    """Last noted reading of each store."""
    found = ((store, _noted.get(store)) for store in stores)
    return {store: backlog for store, backlog in found if backlog is not None}


def _entered_ms(name: str, fields: Mapping[bytes, Any]) -> int:
    """Time of an entry (ms): its own, else that of its name in the stream."""
    try:
        return parse_rows(0, name, fields, str)[0].recorded_at_ms
    except (ValueError, LookupError, TypeError, AttributeError):
        return int(name.partition("-")[0])


T = TypeVar("T")
_logger = logging.getLogger("meterkit.audit")
_EVERY_S: Final = 2.0
_PAGE: Final = 500
_ROOT_POLL_S: Final = 0.5
FOLD_BEYOND_ENTRIES: Final = 50_000
"""Entries that wait in a shard one by one; far more than a page."""
_LEASE_MS: Final = 30_000
# The store may lose younger entries, which then come again under another name.
_LEAST_AGE_MS: Final = 2_000


def open_drainer(store: Store, settings: Settings) -> AuditDrainer:
    """Open the drainer of a store's audit log, by the settings.

    Raises:
        SettingsError: there is no audit log, or its database cannot be used.
        ImportError: SQLAlchemy is not installed.
    """
    url = "" if settings.audit_url is None else settings.audit_url.get_secret_value()
    return AuditDrainer(store, database_at(url))


class AuditDrainer:
    """Moves entries from the streams into the database.

    Of all processes one drains at a time; where two did, each row would still be inserted once.

    Args:
        store: where the streams are.
        database: where the entries go.
        least_age_ms: how old an entry is to be before :meth:`once` takes it.
    """

    def __init__(self, store: Store, database: Database, *, least_age_ms: int = _LEAST_AGE_MS) -> None:
        self._least_age_ms = least_age_ms
        self._store = store
        self.database = database
        self.lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, "audit:lease"), lasts_ms=_LEASE_MS)
        self._unread: set[str] = set()
        self._has_failed = self._is_full = False

    async def run(self) -> None:
        """Drain every two seconds until cancelled."""
        while True:
            await self.drain_under_lease()
            await asyncio.sleep(_EVERY_S)

    async def fold_full_streams(self) -> None:
        """Fold streams that grow too long, until cancelled.

        Whether or not the database answers: so it waits for nothing but the store. What waits is noted for
        metrics.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await asyncio.sleep(_EVERY_S)
            waiting = await read_shard_backlogs(self._store)
            note_backlog(self._store, await sum_backlogs(self._store, waiting))
            await self.fold(waiting, FOLD_BEYOND_ENTRIES)

    async def drain_under_lease(self) -> None:
        """Drain entries of some age if no other process does; failures are logged."""
        try:
            async with self.lease.held() as is_held:
                if is_held:
                    await self.drain(least_age_ms=self._least_age_ms)
        except MeterkitError as error:
            if not self._has_failed:
                _logger.warning(
                    "the audit log is not drained; what is recorded waits in the store: %s", error
                )
            self._has_failed = True
        else:
            if self._has_failed and is_held:
                _logger.warning("the audit log is drained again")
                self._has_failed = False

    async def fold(self, waiting: Sequence[ShardBacklog], most: int = FOLD_BEYOND_ENTRIES) -> None:
        """Merge the entries of a shard beyond ``most`` into sums: single events are lost.

        Raises:
            StoreError: the store does not answer.
        """
        store, admin = self._store, await self._store.admin()
        full = [one for one in waiting if one.entries > most]
        if full and not self._is_full:
            first = max(full, key=lambda one: one.entries)
            count = "1 entry waits" if first.entries == 1 else f"{first.entries} entries wait"
            _logger.warning(
                "audit log: %s in shard %d, and those beyond %d are added up", count, first.shard, most
            )
        self._is_full = bool(full)
        for one in full:
            keys = [store.keys.audit(one.shard), store.keys.audit_sums(one.shard)]
            while await admin.run(store.scripts["fold_audit"], keys, most):
                pass

    async def drain(self, *, least_age_ms: int = 0) -> int:
        """Drain all shards once; how many entries are left.

        A shard with unreadable entries is skipped, and logged once.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database does not.
        """
        left = 0
        for one in await read_shard_backlogs(self._store):
            try:
                left += await self.drain_shard(one.shard, least_age_ms=least_age_ms)
            except StoreError as error:
                if not is_key_error(error.__cause__):
                    raise
                self._log_unreadable_shard(one.shard, error)
        return left

    def _log_unreadable_shard(self, shard: int, error: StoreError) -> None:
        if f"{shard}" not in self._unread:
            self._unread.add(f"{shard}")
            _logger.error("shard %d of the audit log is left, as it cannot be read: %s", shard, error)

    async def drain_shard(self, shard: int, *, least_age_ms: int = 0) -> int:
        """Drain one shard; how many entries are left in it.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database does not.
        """
        store, admin = self._store, await self._store.admin()
        stream, sums, client = store.keys.audit(shard), store.keys.audit_sums(shard), admin.client
        last, most = "-", f"{int(time() * 1000) - least_age_ms}"
        names: Mapping[str, str] = {}
        while True:
            page: list[Any] = await admin.ask(client.xrange(stream, min=last, max=most, count=_PAGE))
            if page and not names:
                names = await self._read_meter_names()
            rows: list[AuditRow] = []
            done = [
                name for name, fields in page if self._parse_entry(shard, name.decode(), fields, names, rows)
            ]
            if done:
                await self._tally(await in_thread(self.database.insert, rows))
                await admin.ask(client.xdel(stream, *done))
                await self.lease.renew()
            if len(page) == _PAGE:
                last = f"({page[-1][0].decode()}"
            elif await admin.ask(client.exists(sums)):
                await admin.run(store.scripts["unfold_audit"], [stream, sums])
                last, most = "-", "+"
            else:
                return int(await admin.ask(client.xlen(stream)))

    async def _tally(self, rows: Sequence[AuditRow]) -> None:
        """Count the revenue of new rows for metrics; corrections are left out, as counters only grow."""
        tallies, catalog = self._store.tallies, self._store.catalog
        earning = [row for row in rows if row.revenue > 0]
        if tallies is None or not earning:
            return
        currencies = await self._read_currencies({row.customer for row in earning})
        for row in earning:
            currency, meter = currencies.get(row.customer), catalog.meters.get(row.meter)
            if currency is None and len(catalog.currencies) > 1:
                continue  # The customer's state cannot be read.
            if currency is not None and meter is not None and meter.charges is not None:
                currency = BALANCE_CURRENCY
            tallies.count_revenue(row.model, row.provider, row.revenue, currency)

    async def _read_currencies(self, customers: set[str]) -> Mapping[str, str]:
        """Read the currencies of customers whose state can be read; empty if the plans file has only one."""
        store, catalog, admin = self._store, self._store.catalog, await self._store.admin()
        if len(catalog.currencies) == 1:
            return {}
        from meterkit.customers.states import read_states  # noqa: PLC0415 - few have several currencies

        states = await read_states(admin, store.keys, sorted(customers))
        return {name: catalog.in_currency(state.currency).currency for name, state in states.items()}

    async def root_of(self, customer: str) -> tuple[int, str] | None:
        """Drain the customer's shard; length and root of its chain then. None: no chain.

        It waits while older entries wait; ``delivery/audit_root.py`` limits that.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database does not.
        """
        store, admin = self._store, await self._store.admin()
        shard, before = store.keys.customer(customer).shard, int(time() * 1000) - self._least_age_ms
        stream, sums = store.keys.audit(shard), store.keys.audit_sums(shard)
        while True:
            async with self.lease.held() as is_held:
                if is_held:
                    await self.drain_shard(shard, least_age_ms=self._least_age_ms)
            waiting = await admin.ask(admin.client.xrange(stream, max=f"{before}", count=1))
            if not waiting and not await admin.ask(admin.client.exists(sums)):
                return await in_thread(self.database.root, customer)
            await asyncio.sleep(_ROOT_POLL_S)

    def _parse_entry(
        self,
        shard: int,
        name: str,
        fields: Mapping[bytes, bytes],
        names: Mapping[str, str],
        rows: list[AuditRow],
    ) -> bool:
        try:
            rows += parse_rows(shard, name, fields, lambda token: names.get(token, token))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if name not in self._unread:
                self._unread.add(name)
                _logger.error("entry %s of shard %d of the audit log is left: %r", name, shard, error)  # noqa: TRY400 - where it was tells nothing
            return False
        return True

    async def _read_meter_names(self) -> Mapping[str, str]:
        store = self._store
        known = await read_meters(await store.admin(), store.keys, store.catalog)
        return {token: one.meter for token, one in known.items()} | {
            meter_token(name): name for name in store.catalog.meters
        }
