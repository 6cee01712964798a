"""The log has each event once, whoever dies; its sums are the counters, whatever a customer's life was."""
# Internals: a drainer, killed or hanging at a named step.

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from drivers.audit_database import Row, to_ms
from drivers.audited_kit import audited, rebuild, rows_in, sqlite_in, sums_of
from drivers.delivery import PLANS
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.periods import from_ms
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer, waiting_shards

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

CUSTOMERS: Final = ("acme", "umbrella", "x" * 256)
LIFE: Final = loads(
    PLANS.replace("routes:", "credits:\n  ai: {costs: {tokens: 2}}\nroutes:").replace(
        "rows:     {unit: row}", "large: {unit: token, from: tokens, where: {model: '*-large'}}"
    )
)


async def test_one_entry_that_waits_is_logged_in_the_singular(
    store_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "rows", 1)
        with caplog.at_level(logging.WARNING, logger="meterkit.audit"):
            await at.fold(0)
    assert "audit log: 1 entry waits in shard" in caplog.text


class Life:
    """What may happen to customers, in an order that a number fixes."""

    def __init__(self, at: Audited, seed: int) -> None:
        self.at = at
        self.random = Random(seed)  # noqa: S311 - the same life each time
        self.nth = 0

    async def step(self) -> None:
        self.nth += 1
        name = self.random.choice(CUSTOMERS)
        steps = (self.record, self.consume, self.reserve, self.correct, self.settle_outbox, self.wait)
        weights = (8, 4, 4, 2, 2, 1)
        (step,) = self.random.choices(steps, weights)
        await step(name)

    async def record(self, name: str) -> None:
        kit, now = self.at.kit, self.at.desk.clock.now()
        late = now - timedelta(days=self.random.choice((0, 0, 3)))
        nth = self.random.randrange(30) if self.random.random() < 0.3 else None
        event_id, quantity = None if nth is None else f"e{nth}", self.random.randrange(60)
        quantity = quantity if nth is None else 2 * nth
        await kit.record(name, "tokens", quantity, event_id=event_id, occurred_at=late)

    async def consume(self, name: str) -> None:
        await self.at.kit.consume(name, "requests", self.random.randrange(1, 400))

    async def reserve(self, name: str) -> None:
        async with self.at.kit.reserve(name, {"tokens": 50}) as held:
            if self.random.random() < 0.7:
                model = self.random.choice(("m-large", "m-small"))
                await held.capture({"tokens": self.random.randrange(90)}, model=model)

    async def correct(self, name: str) -> None:
        meter = self.random.choice(("tokens", "requests"))
        asked = {meter: self.random.randrange(1, 80)}
        await self.at.kit.correct(name, asked, reason="r", correction_id=f"c{self.nth}", by="ada")

    async def settle_outbox(self, name: str) -> None:
        at = self.at
        await at.kit.grants.add(name, {"tokens": 20}, grant_id=f"g{self.nth}")
        if self.random.random() < 0.4:
            at.desk.emulator.fail_next("error", status=400, code="invalid_value")
        await at.desk.flush(everything=True, timeout_s=0.0)
        for intent in await at.kit.outbox.list(state="dead"):
            await at.kit.outbox.drop(intent.identifier, reason="r", by="ada")

    async def wait(self, _: str) -> None:
        self.at.desk.clock.advance(timedelta(days=self.random.choice((1, 1, 9))))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.whole)])
async def test_sums_are_the_counters_after_any_life(store_url: str, tmp_path: Path, seed: int) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=LIFE) as at:
        await at.desk.link("acme", "umbrella")
        life = Life(at, seed)
        for _ in range(120):
            await life.step()
            if life.nth % 40 == 0:
                await at.fold(5)
                await at.drainer.drain()
        rows = await at.rows()
        sums = sums_of(rows)
        kinds = {row["kind"] for row in rows}
        assert {"recorded", "corrected", "summed"} <= kinds
        seen = 0
        for (customer, meter, period_ms), units in sums.items():
            now = await at.kit.usage(customer)
            is_open = to_ms(now["period"]["start"]) == period_ms
            when = None if is_open else to_ms(from_ms(period_ms) + timedelta(hours=1))
            (usage,) = await at.kit.store.usage_of_many([customer], at_ms=when)
            counts: dict[str, Any] = dict(usage["meters"][meter])
            assert units["quantity"] == counts["recorded"], (customer, meter, period_ms)
            assert units["overage"] == counts["overage"]
            places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
            assert units["reported"] == sum(counts[place] for place in places)
            seen += 1
        assert seen > 5
        assert await rebuild(at, dry_run=True) == []


class Hanging(Database):
    """Takes rows once it is let."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.may = Event(), Event()

    def insert(self, rows: Sequence[Row]) -> Sequence[Row]:
        self.asked.set()
        assert self.may.wait(60)
        return super().insert(rows)


async def test_a_hanging_database_holds_up_nothing(store_url: str, tmp_path: Path) -> None:
    database = Hanging(sqlite_in(tmp_path))
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await asyncio.gather(*(at.kit.record("acme", "rows", nth + 1) for nth in range(700)))
        drainer = Drainer(at.kit.store, database, least_age_ms=0)
        draining = asyncio.create_task(drainer.once())
        try:
            assert await asyncio.to_thread(database.asked.wait, 60)
            assert (await at.kit.consume("acme", "rows", 1)).allowed
            await drainer.fold(await waiting_shards(at.kit.store), 520)
            (shard,) = await entries_of(at)
            assert shard == 520
        finally:
            database.may.set()
            await draining
        sums = sums_of(await at.rows())
        (units,) = sums.values()
        assert units["quantity"] == (await at.kit.usage("acme"))["meters"]["rows"]["recorded"] == 245_351


async def entries_of(at: Audited) -> list[int]:
    """How many entries wait, by shard."""
    admin: Any = await at.kit.store.admin()
    keys = at.kit.store.keys
    lengths = [await admin.client.xlen(keys.audit(shard)) for shard in range(keys.shards)]
    return [length for length in lengths if length]


async def test_an_app_drains_by_itself_what_it_counts(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with MeterKit(loads(PLANS), redis_url=store_url, shards=4, audit_url=url) as kit:
        await kit.record("acme", "rows", 3)
        with anyio.fail_after(240):
            while not await asyncio.to_thread(rows_in, url):  # noqa: ASYNC110 - a thread of the kit's does it
                await anyio.sleep(0.1)
