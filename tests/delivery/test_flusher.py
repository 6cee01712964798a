"""From recorded usage to what Stripe has counted: over HTTP, with the official SDK, on a real store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.delivery import EVENTS, NOW, RunningClock, delivered, desk, kit_for, until
from drivers.near_stripe import served
from faults.inner_steps import wrapped
from meterkit import StoreError
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

JUNE = datetime(2031, 6, 1, tzinfo=UTC)
JULY = datetime(2031, 7, 1, tzinfo=UTC)


def minutes(emulator: StripeEmulator) -> list[datetime]:
    """The timestamps of all accepted events."""
    return [datetime.fromtimestamp(event.timestamp, UTC) for event in emulator.events]


@pytest.mark.each_store
async def test_what_is_recorded_is_delivered_to_the_unit(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        for meter, quantity in {"requests": 7, "tokens": 130, "pages": 5, "rows": 3}.items():
            await at.kit.record("acme", meter, quantity)
        report = await at.kit.flush(everything=True)
        usage = (await at.kit.usage("acme"))["meters"]
    assert (report.sealed, report.delivered, report.retried, report.left) == (2, 2, 0, 0)
    assert {event: at.accepted("acme", event) for event in EVENTS} == {
        "api_requests": 7,  # report: usage
        "ai_tokens": 30,  # report: overage
        "pdf_pages": 0,  # report: none
    }
    assert (usage["requests"]["recorded"], usage["requests"]["delivered"]) == (7, 7)
    assert (usage["tokens"]["recorded"], usage["tokens"]["delivered"]) == (130, 30)
    assert (usage["pages"]["recorded"], usage["pages"]["delivered"]) == (5, 0)
    assert [meter["pending"] + meter["queued"] + meter["leased"] for meter in usage.values()] == [0] * 4


async def test_each_minute_names_one_intent_at_most_3_minutes_ahead(
    store_url: str,
) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        # F-51: three, and a clock may be one off: Stripe refuses what lies more than five ahead.
        for _ in range(5):
            await at.kit.record("acme", "requests", 1)
            await at.flush(everything=True, timeout_s=0)
        begin = NOW.replace(second=0)
        # The fourth lies 2 min 30 s ahead; the fifth would lie 3 min 30 s ahead.
        assert minutes(at.emulator) == [begin + timedelta(minutes=n) for n in range(4)]
        usage = await at.kit.usage("acme")
        assert (usage["meters"]["requests"]["pending"], usage["meters"]["requests"]["delivered"]) == (1, 4)
        at.clock.advance(timedelta(minutes=1))
        await at.flush()
        assert minutes(at.emulator)[4:] == [begin + timedelta(minutes=4)]


async def test_values_have_15_digits_at_most_and_lose_nothing(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        most = 10**15 - 1
        for _ in range(3):
            await at.kit.record("acme", "requests", most)
        await at.flush(everything=True)
    assert [int(event.value) for event in at.emulator.events] == [most] * 3
    assert at.accepted("acme") == 3 * most


async def test_usage_waits_for_a_link(store_url: str) -> None:
    async with desk(store_url) as at:
        await at.kit.record("acme", "requests", 4)
        report = await at.flush(everything=True)
        assert (report.sealed, report.left, report.unlinked) == (0, 0, ["acme"])
        assert (await at.kit.usage("acme"))["meters"]["requests"]["unlinked"] == 4
        at.clock.set(JULY + timedelta(days=3))
        await at.kit.record("acme", "requests", 2)
        await at.link("acme")
        assert (await at.kit.usage("acme"))["meters"]["requests"]["pending"] == 2
        report = await at.flush(everything=True)
        assert (report.delivered, report.left, report.unlinked) == (2, 0, [])
    assert at.accepted("acme") == 6
    assert minutes(at.emulator)[0] in {JULY - timedelta(minutes=1), JULY + timedelta(days=3)}


@pytest.mark.each_store
async def test_a_closed_period_is_delivered_in_its_last_whole_minute(store_url: str) -> None:
    async with desk(store_url, clock=Clock(JULY - timedelta(minutes=10))) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 5)
        await at.kit.record("acme", "tokens", 101)
        at.clock.set(JULY + timedelta(minutes=5))
        await at.kit.record("acme", "requests", 2)
        await at.flush(everything=True)
        totals = await at.totals("acme")
        usage = (await at.kit.usage("acme"))["meters"]["requests"]
    june = [event for event in at.emulator.events if event.timestamp < JULY.timestamp()]
    assert {(event.event_name, int(event.value)) for event in june} == {("api_requests", 5), ("ai_tokens", 1)}
    assert {event.timestamp for event in june} == {(JULY - timedelta(minutes=1)).timestamp()}
    assert [int(event.value) for event in at.emulator.events if event not in june] == [2]
    assert (delivered(totals, JUNE, "requests"), delivered(totals, JULY, "requests")) == (5, 2)
    assert (usage["recorded"], usage["delivered"]) == (2, 2)


async def test_the_flusher_runs_until_stopped_despite_failures(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [StoreError("the store is away"), RuntimeError("nobody thought of this")]

    def fails_twice(work: Any) -> Any:
        async def listed(outbox: Any, *, due_ms: int | None) -> Any:
            if failures:
                raise failures.pop()
            return await work(outbox, due_ms=due_ms)

        return listed

    wrapped(monkeypatch, "a flush lists its work", fails_twice)
    clock = RunningClock()
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    async with served(emulator) as url:
        async with kit_for(store_url, url, clock=clock, flush=None, flush_interval=0.05) as kit:
            await kit.customers.link("acme", "cus_acme", force=True)
            await kit.record("acme", "requests", 3)
            await until(lambda: bool(emulator.events))
            assert [task for task in asyncio.all_tasks() if task.get_name() == "meterkit flush"]
            await kit.record("acme", "requests", 4)
            await until(lambda: len(emulator.events) == 2)
        async with kit_for(store_url, url, clock=clock, flush=False, flush_interval=0.05) as kit:
            assert kit.settings.flushes is False
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "meterkit flush"]
    assert emulator.accepted("cus_acme", "api_requests") == 7
    failed = [record for record in caplog.records if "the next one goes on" in record.getMessage()]
    assert [record.exc_info is not None for record in failed] == [True, False]


async def test_stopping_in_the_middle_of_a_delivery_loses_nothing(store_url: str) -> None:
    clock = RunningClock()
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("api_requests")
    emulator.add_customer("cus_acme")
    async with served(emulator) as url:
        emulator.fail_next("delay", when="after", delay_s=0.5)
        async with kit_for(store_url, url, clock=clock, flush=None, flush_interval=0.05) as kit:
            await kit.customers.link("acme", "cus_acme", force=True)
            await kit.record("acme", "requests", 3)
            await until(lambda: bool(emulator.events))
        async with kit_for(store_url, url, clock=clock) as kit:
            assert (await kit.usage("acme"))["meters"]["requests"]["leased"] == 3
            report = await kit.flush(everything=True)
            assert (report.delivered, report.left) == (1, 0)
            assert (await kit.usage("acme"))["meters"]["requests"]["delivered"] == 3
    assert emulator.accepted("cus_acme", "api_requests") == 3
    assert len(emulator.events) == 1


async def test_a_customer_deleted_and_relinked_has_its_own_minutes(store_url: str) -> None:
    # F-127: two intents had one minute, and Stripe gives one sum for both.
    async with desk(store_url, shards=1) as at:
        await at.link("acme")
        for _ in range(2):
            await at.kit.record("acme", "requests", 6)
            assert (await at.flush(everything=True)).delivered == 1
            await at.kit.customers.delete("acme")
            await at.kit.customers.link("acme", "cus_acme", force=True)
        assert len(set(minutes(at.emulator))) == 2
        # Where the intents are is kept, and not whose they were.
        admin, key = await at.kit.store.admin(), at.kit.store.keys.formers("cus_acme")
        assert await admin.ask(admin.client.hkeys(key)) == [b"\n0"]
