"""A kit with an audit log, and what stands in its database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, select, update

from drivers.delivery import Desk, desk, summaries_of
from meterkit import MeterKit
from meterkit.insights.audit.database import TABLE, Database
from meterkit.insights.audit.draining import AuditDrainer, read_shard_backlogs
from meterkit.insights.audit.entries import CLASSES, AuditRow
from meterkit.insights.audit.rebuild_results import RebuildResult
from meterkit.insights.audit.rebuilding import CounterRebuilder
from meterkit.store.event_names import remember_meters

COUNTED: Final = ("recorded", "summed", "corrected")


def rows_in(url: str) -> list[dict[str, Any]]:
    engine = create_engine(url)
    try:
        TABLE.metadata.create_all(engine)
        with engine.connect() as connection:
            found = connection.execute(select(TABLE).order_by(TABLE.c.recorded_at_ms, TABLE.c.event))
            return [dict(row) for row in found.mappings()]
    finally:
        engine.dispose()


def sums_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, int]]:
    """By customer, meter and period the units of each class."""
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    for row in rows:
        if row["kind"] in COUNTED:
            place = (row["customer"], row["meter"], row["period_start_ms"])
            sums = found.setdefault(place, dict.fromkeys((*CLASSES, "quantity"), 0))
            for name in sums:
                sums[name] += row[name]
    return found


def row_of(nth: int, customer: str = "acme", **more: Any) -> AuditRow:
    return AuditRow(f"0/p/{nth}", "tokens", "recorded", customer, 0, nth, 3, overage=3)._replace(**more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    desk: Desk
    url: str
    drainer: AuditDrainer

    @property
    def kit(self) -> MeterKit:
        return self.desk.kit

    async def rows(self) -> list[dict[str, Any]]:
        assert await self.drainer.drain() == 0
        return await asyncio.to_thread(rows_in, self.url)

    async def fold(self, most: int) -> None:
        """Have entries of shards with more than so many added up."""
        await self.drainer.fold(await read_shard_backlogs(self.kit.store), most)

    async def move(self, period_start_ms: int) -> None:
        await asyncio.to_thread(_move, self.url, period_start_ms)


def _move(url: str, period_start_ms: int) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(period_start_ms=period_start_ms))
    engine.dispose()


def sqlite_in(directory: Path) -> str:
    return f"sqlite:///{directory}/audit.db"


@asynccontextmanager
async def audited(store_url: str, url: str, **more: Any) -> AsyncGenerator[Audited]:
    """A desk whose kit keeps an audit log, which is drained when the test says so."""
    async with desk(store_url, audit_url=url, **more) as at:
        yield Audited(desk=at, url=url, drainer=AuditDrainer(at.kit.store, Database(url), least_age_ms=0))


def audited_of(kit: MeterKit, at: Audited) -> Audited:
    """The same audit log, drained by another kit of the same store."""
    drainer = AuditDrainer(kit.store, Database(at.url), least_age_ms=0)
    return replace(at, desk=replace(at.desk, kit=kit), drainer=drainer)


async def restart_meters(kit: MeterKit) -> None:
    """Have the store know the meters of a kit's plans file again, as after its restart."""
    await remember_meters(await kit.store.admin(), kit.store.keys, kit.store.catalog)


async def rebuild(log: Audited, *, asks_stripe: bool = True, **more: Any) -> Sequence[RebuildResult]:
    """Rebuild counters, with what Stripe says or without."""
    async with summaries_of(log.kit) as summaries:
        asked = summaries if asks_stripe else None
        return await CounterRebuilder(log.kit.store, log.drainer, asked).rebuild(**more)


def drainer_of(kit: MeterKit) -> AuditDrainer:
    """A drainer by the settings of a kit that takes the newest entries, too."""
    assert kit.settings.audit_url is not None
    return AuditDrainer(kit.store, Database(kit.settings.audit_url.get_secret_value()), least_age_ms=0)


async def drain_all_of(kit: MeterKit) -> None:
    assert await drainer_of(kit).drain() == 0


async def rebuild_of(kit: MeterKit) -> Sequence[RebuildResult]:
    """Rebuild counters by the settings of a kit."""
    async with summaries_of(kit) as summaries:
        return await CounterRebuilder(kit.store, drainer_of(kit), summaries).rebuild()


async def lose_all(at: Audited) -> None:
    """The store is emptied, and whoever holds the app's own records sets the customer up again."""
    await lose_all_of(at.kit)


async def lose_all_of(kit: MeterKit) -> None:
    admin: Any = await kit.store.admin()
    await admin.client.flushall()
    kit.store.use(kit.store.catalog)
