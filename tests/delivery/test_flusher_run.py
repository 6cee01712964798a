"""A flusher that runs until it is stopped: no error of the store's ends it, and none ends it in silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import anyio
import pytest

from drivers.delivery import desk, until
from faults.inner_steps import replaced, wrapped
from meterkit import StoreError

pytestmark = pytest.mark.anyio


async def test_i9_a_flusher_unsure_of_the_store_delivers_later(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R6: what went wrong before the first pass ended it.
    async def fail(_: object) -> None:
        raise RuntimeError("INFO cannot be read")

    replaced(monkeypatch, "the store is asked whether to deliver", fail)
    async with desk(store_url, flush_interval=0.05) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        at.clock.advance(timedelta(seconds=1))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: at.accepted("acme") == 6)
        at.flusher.stop()
        await running
    assert "INFO cannot be read" in caplog.text


async def test_an_error_of_the_callback_ends_the_flusher(store_url: str) -> None:
    # R6: who reads the reports is gone; whoever started it must hear of that.
    def close(_: object) -> None:
        raise BrokenPipeError

    async with desk(store_url) as at:
        with anyio.fail_after(240), pytest.raises(BrokenPipeError):
            await at.flusher.run(every_s=0.01, told=close)


async def test_a_store_that_stays_down_is_logged_once_a_time(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Every process passes each five seconds: an outage of an hour would be 720 lines of each.
    passes, is_away = 0, True

    def count(work: Any) -> Any:
        async def counted(outbox: Any, *, due_ms: int | None) -> Any:
            nonlocal passes
            passes += 1
            if is_away:
                raise StoreError("the store is away")
            return await work(outbox, due_ms=due_ms)

        return counted

    wrapped(monkeypatch, "a flush lists its work", count)
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


@pytest.mark.usefixtures("valkey")
async def test_a_restarted_store_is_logged_once_for_all_shards(
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
