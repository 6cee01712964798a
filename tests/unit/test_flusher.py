"""What a flush counts, and when a flusher in the background flushes and compares."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from delivering import NOW, kit_for
from keeping import STAMP_S, keep
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.outcomes import Outcome
from meterkit.testing import Clock
from stripe_objects import Counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import FlushReport, MeterKit
    from meterkit.store.intents import Sealed

pytestmark = pytest.mark.anyio


class Takes:
    """A transport by which Stripe takes everything."""

    most = 1

    async def ready(self) -> Outcome | None:
        return None

    async def send(self, *intents: Sealed) -> Outcome:
        assert intents
        return Outcome(kind="delivered", detail="")

    async def close(self) -> None:
        pass


@asynccontextmanager
async def flushing() -> AsyncGenerator[tuple[MeterKit, Flusher]]:
    async with kit_for("memory://", "http://127.0.0.1:9", clock=Clock(NOW), shards=1) as kit:
        await kit.customers.link("acme", "cus_acme")
        yield kit, Flusher(kit.store, Takes(), summaries=Counted({}))


async def test_what_is_sealed_and_delivered_is_counted() -> None:
    async with flushing() as (kit, flusher):
        await kit.record("acme", "requests", 5)
        report = await flusher.flush(everything=True, timeout_s=0)
        assert (report.sealed, report.delivered, report.left) == (1, 1, 0)


async def test_a_flusher_in_the_background_compares_at_once_and_pauses_between_passes() -> None:
    async with flushing() as (kit, flusher):
        kept = await keep(kit, "one", 5, restored=f"{STAMP_S * 1000}-{STAMP_S * 1000 + 60_000}")
        admin, reports, is_told = await kit.store.admin(), list[object](), asyncio.Event()
        await admin.ask(admin.client.zadd(kit.store.keys.shard(0, "compare"), {kept.identifier: 1}))

        def told(report: FlushReport) -> None:
            reports.append(report)
            is_told.set()

        running = asyncio.create_task(flusher.run(every_s=60, told=told))
        async with asyncio.timeout(60):
            await is_told.wait()
        await asyncio.sleep(0.05)
        flusher.stop()
        await running
        assert (len(reports), [one.state for one in await kit.outbox.list()]) == (1, [])
