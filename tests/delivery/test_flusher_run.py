"""A flusher that runs until it is stopped: no error of the store's ends it, and none ends it in silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from drivers.delivery import desk, until
from meterkit import StoreError
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from meterkit.delivery.flusher import FlushReport
    from meterkit.outbox.intents import Work

pytestmark = pytest.mark.anyio


async def test_i9_a_flusher_that_cannot_ask_about_the_store_at_its_start_delivers_later(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R6: what went wrong before the first pass ended it.
    async def fail(_: Outbox) -> None:
        raise RuntimeError("INFO cannot be read")

    monkeypatch.setattr(Outbox, "refusal", fail)
    async with desk(store_url, flush_interval=0.05) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.clock.advance(timedelta(seconds=1))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: at.accepted("acme") == 6)
        at.flusher.stop()
        await running
    assert "INFO cannot be read" in caplog.text


async def test_an_error_of_whom_it_tells_of_a_pass_ends_it_with_that_error(store_url: str) -> None:
    # R6: who reads the reports is gone; whoever started it must hear of that.
    def close(_: FlushReport) -> None:
        raise BrokenPipeError

    async with desk(store_url) as at:
        with anyio.fail_after(240), pytest.raises(BrokenPipeError):
            await at.flusher.run(every_s=0.01, told=close)


async def test_a_flusher_that_runs_compares_what_is_due(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.emulator.fail_next("drop", when="before")
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(hours=24))
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(hours=3))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))

        def is_delivered() -> bool:
            at.clock.advance(timedelta(minutes=1))
            return at.accepted("acme") == 6

        await until(is_delivered)
        at.flusher.stop()
        await running


async def test_a_store_that_stays_away_is_said_once_and_again_after_a_pass(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Every process passes each five seconds: an outage of an hour would be 720 lines of each.
    passes, is_away = 0, True
    work = Outbox.work

    async def count(outbox: Outbox, *, due_ms: int | None) -> list[Work]:
        nonlocal passes
        passes += 1
        if is_away:
            raise StoreError("the store is away")
        return await work(outbox, due_ms=due_ms)

    monkeypatch.setattr(Outbox, "work", count)
    async with desk(store_url) as at:
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: passes > 5)
        assert caplog.text.count("this flush failed") == 1
        is_away, so_far = False, passes
        await until(lambda: passes > so_far + 1)
        is_away, so_far = True, passes
        await until(lambda: passes > so_far + 5)
        at.flusher.stop()
        await running
    assert caplog.text.count("this flush failed") == 2


async def test_a_store_that_has_begun_anew_is_said_once_of_all_its_shards(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    customers = [f"c{number}" for number in range(12)]
    async with desk(store_url) as at:
        await at.link(*customers)
        await at.flush()
        admin = await at.kit.store.admin()
        for shard in range(at.kit.store.keys.shards):
            await admin.ask(admin.client.hset(at.kit.store.keys.shard(shard, "life"), "known", "another"))
        for customer in customers:
            await at.kit.record(customer, "requests", 6)
        at.clock.advance(timedelta(minutes=5))
        await at.flush()
        assert caplog.text.count("was restarted, restored or taken over") == 1
        at.emulator.fail_next("error", status=401, times=None, path="*")
        at.clock.advance(timedelta(minutes=10))
        for _ in range(3):
            await at.flush()
        assert caplog.text.count("as Stripe does not say what it has") == 1
        at.emulator.clear_faults()
        await at.flush(everything=True)
        assert [at.accepted(customer) for customer in customers] == [6] * len(customers)
