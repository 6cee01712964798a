"""The audit log's streams are drained into its database, in batches, each entry into it once."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.decisions.keys import HOOKS_SHARD, meter_token
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.audit.backlog import backlog_of, note, waiting_shards
from meterkit.insights.audit.entries import Row, rows_of
from meterkit.redis.daemon_thread import in_thread
from meterkit.redis.refusals import is_of_a_key
from meterkit.store.event_names import read_meters
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.insights.audit.backlog import Waiting
    from meterkit.insights.audit.database import Database
    from meterkit.settings import Settings
    from meterkit.store.store import Store

__all__ = ["MOST", "Drainer", "drainer_of"]

T = TypeVar("T")

_logger = logging.getLogger("meterkit.audit")

_EVERY_S: Final = 2.0
_PAGE: Final = 500
MOST: Final = 50_000
"""Entries that wait in a shard one by one; far more than a page."""
_LEASE_MS: Final = 30_000
# What is younger may be lost by the store that has it, and come again under another name.
_LEAST_AGE_MS: Final = 2_000


def drainer_of(store: Store, settings: Settings) -> Drainer:
    """What drains a store's audit log, by the settings.

    Raises:
        SettingsError: none is asked for, or its database cannot be used.
        ImportError: SQLAlchemy is not installed.
    """
    # SQLAlchemy takes a while to import, and is wanted by few.
    database: type[Database] = import_module("meterkit.insights.audit.database").Database
    return Drainer(
        store, database("" if settings.audit_url is None else settings.audit_url.get_secret_value())
    )


class Drainer:
    """Takes entries out of the streams once they are in the database.

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
        """Drain what comes, beside the running event loop, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(_EVERY_S)

    async def keep_bound(self) -> None:
        """Keep the streams from growing too long, beside the running event loop, until cancelled.

        Whether or not the database answers: so it waits for nothing but the store. What waits is noted for
        metrics.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await asyncio.sleep(_EVERY_S)
            waiting = await waiting_shards(self._store)
            note(self._store, await backlog_of(self._store, waiting))
            await self._fold(waiting, MOST)

    async def once(self) -> None:
        """Drain what has waited for a while, unless another process does; where that fails, it is logged."""
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

    async def fold(self, most: int = MOST) -> None:
        """Add up what is beyond ``most`` entries of a shard: of these single events are not told apart.

        Raises:
            StoreError: the store does not answer.
        """
        await self._fold(await waiting_shards(self._store), most)

    async def _fold(self, waiting: Sequence[Waiting], most: int) -> None:
        store, admin = self._store, await self._store.admin()
        full = [one for one in waiting if one.entries > most]
        if full and not self._is_full:
            first = max(full, key=lambda one: one.entries)
            _logger.warning(
                "%d entries of the audit log wait in shard %d: some are added up", first.entries, first.shard
            )
        self._is_full = bool(full)
        for one in full:
            keys = [store.keys.audit(one.shard), store.keys.audit_sums(one.shard)]
            while await admin.run(store.scripts["fold"], keys, most):
                pass

    async def drain(self, *, least_age_ms: int = 0) -> int:
        """Drain all shards once; how many entries are left.

        A shard of which the store keeps what cannot be read is left, and said once.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database does not.
        """
        left = 0
        for one in await waiting_shards(self._store):
            try:
                left += await self.drain_shard(one.shard, least_age_ms=least_age_ms)
            except StoreError as error:
                if not is_of_a_key(error.__cause__):
                    raise
                self._say_left(one.shard, error)
        return left

    def _say_left(self, shard: int, error: StoreError) -> None:
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
                names = await self._meters()
            rows: list[Row] = []
            done = [name for name, fields in page if self._read(shard, name.decode(), fields, names, rows)]
            if done:
                await in_thread(self.database.insert, rows)
                await admin.ask(client.xdel(stream, *done))
                await self.lease.take()
            if len(page) == _PAGE:
                last = f"({page[-1][0].decode()}"
            elif await admin.ask(client.exists(sums)):
                await admin.run(store.scripts["unfold"], [stream, sums])
                last, most = "-", "+"
            else:
                return int(await admin.ask(client.xlen(stream)))

    def _read(
        self, shard: int, name: str, fields: Mapping[bytes, bytes], names: Mapping[str, str], rows: list[Row]
    ) -> bool:
        try:
            rows += rows_of(shard, name, fields, lambda token: names.get(token, token))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if name not in self._unread:
                self._unread.add(name)
                _logger.error("entry %s of shard %d of the audit log is left: %r", name, shard, error)  # noqa: TRY400 - where it was tells nothing
            return False
        return True

    async def _meters(self) -> Mapping[str, str]:
        store = self._store
        known = await read_meters(await store.admin(), store.keys, store.catalog)
        return {token: one.meter for token, one in known.items()} | {
            meter_token(name): name for name in store.catalog.meters
        }
