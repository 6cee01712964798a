"""Handlers of the app are told what has happened to customers: each event at least once, in one process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import pytest

from drivers.app import hello
from drivers.plans import plans_text
from faults.refusals import Client, eventually
from meterkit import CreditsLow, MeterKit, MeterkitError, MeterMiddleware, UsageThreshold, identify
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
PLANS = plans_text("events")


class Event(str, Enum):  # noqa: UP042 - a StrEnum is formatted by its value
    """Events of an app that writes each once."""

    THRESHOLD = "usage.threshold"


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not acknowledged is told again at once."""
    monkeypatch.setattr("meterkit.store.customer_notices.AGAIN_AFTER_MS", 50)
    monkeypatch.setattr("meterkit.notify.event_dispatcher._POLL_S", 0.01)


def kit_of(url: str, clock: Clock | None = None) -> MeterKit:
    return MeterKit(
        loads(PLANS), clock=clock or Clock(NOW), redis_url=url, flush=False, shards=4, store_timeout=10.0
    )


@asynccontextmanager
async def told_on(url: str, clock: Clock | None = None) -> AsyncGenerator[tuple[MeterKit, list[Any]]]:
    told: list[Any] = []
    async with kit_of(url, clock) as kit:
        kit.on(Event.THRESHOLD)(told.append)
        kit.on("credits.low")(told.append)
        yield kit, told


def shares(told: list[Any]) -> list[tuple[str, int, int]]:
    return sorted((event.customer, event.percent, event.used) for event in told)


async def test_each_threshold_is_told_once_a_period(any_store_url: str) -> None:
    clock = Clock(NOW)
    async with told_on(any_store_url, clock) as (kit, told):
        await kit.record("acme", "words", 799)
        await kit.record("acme", "words", 1)
        await eventually(lambda: len(told) == 1)
        event = told[0]
        assert event == UsageThreshold(
            id=event.id,
            customer="acme",
            meter="words",
            percent=80,
            used=800,
            included=1000,
            period_start=datetime(2031, 6, 1, tzinfo=UTC),
            period_end=datetime(2031, 7, 1, tzinfo=UTC),
            at=NOW,
        )
        await kit.record("acme", "words", 150)
        await kit.record("globex", "words", 1500)
        await eventually(lambda: len(told) == 4)
        assert shares(told[1:]) == [("globex", 80, 1500), ("globex", 100, 1500), ("globex", 150, 1500)]
        assert len({event.id for event in told}) == 4
        clock.advance(timedelta(days=30))
        await kit.record("acme", "words", 800)
        await eventually(lambda: len(told) == 5)
        assert told[4].period_start == datetime(2031, 7, 1, tzinfo=UTC)
    assert len(told) == 5


async def test_a_level_that_rises_to_a_threshold_is_told_of_each_time(any_store_url: str) -> None:
    async with told_on(any_store_url) as (kit, told):
        await kit.gauges.set("acme", "storage", 4_000_000)
        for change in (1, -2, 1_000_001):
            await kit.gauges.adjust("acme", "storage", change)
    assert {event.meter for event in told} == {"storage"}
    levels = [(event.percent, event.used) for event in told]
    assert levels == [(80, 4_000_000), (80, 5_000_000), (100, 5_000_000)]


async def test_a_level_is_told_of_by_the_limit_of_its_time(any_store_url: str) -> None:
    """Only the clock has ended the higher limit: no other change has reached this process."""
    clock, hour = Clock(NOW), timedelta(hours=1)
    async with told_on(any_store_url, clock) as (kit, told):
        await kit.customers.override("acme", {"storage": {"included": 50_000_000}}, until=NOW + hour)
        await kit.gauges.set("acme", "storage", 1)
        clock.advance(hour)
        await kit.gauges.set("acme", "storage", 4_500_000)
    assert [(event.percent, event.included) for event in told] == [(80, 5_000_000)]


async def test_a_request_that_reaches_a_threshold_is_told_of(any_store_url: str) -> None:
    async with told_on(any_store_url) as (kit, told):
        client = Client(MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id")))
        assert (await client.get("acme"), await client.get("acme")) == (200, 200)
        await eventually(lambda: len(told) == 1)
        assert (await client.get("acme"), await client.get("acme")) == (200, 429)
        await eventually(lambda: len(told) == 2)
        assert shares(told) == [("acme", 34, 2), ("acme", 100, 3)]


@pytest.mark.usefixtures("quickly")
async def test_who_has_no_handler_leaves_it_to_others(valkey: Server) -> None:
    async with kit_of(valkey.url) as kit:
        low: list[CreditsLow] = []
        kit.on("credits.low")(low.append)
        await kit.record("acme", "words", 800)
        await kit.grants.add("acme", {"ai": 10}, grant_id="g1")
        await kit.record("acme", "pages", 100 + 2250)
        await eventually(lambda: len(low) == 1)
    async with told_on(valkey.url) as (_, told):
        await eventually(lambda: len(told) == 1)
        assert shares(told) == [("acme", 80, 800)]


KILLED = """
import asyncio, os, signal, sys
from meterkit import MeterKit

async def main():
    async with MeterKit(sys.argv[1], redis_url=sys.argv[2], flush=False, shards=4) as kit:
        @kit.on("usage.threshold")
        def dies(event):
            print(event.id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        await kit.record("acme", "words", 800)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.usefixtures("quickly")
@pytest.mark.dear("a process is killed")
async def test_what_a_killed_process_was_told_is_told_again(valkey: Server, tmp_path: Any) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text(PLANS)
    words = [sys.executable, "-c", KILLED, str(plans), valkey.url]
    killed = await asyncio.to_thread(
        subprocess.run, words, capture_output=True, text=True, check=False, timeout=120
    )
    assert killed.returncode == -9, killed.stderr
    async with told_on(valkey.url, Clock()) as (_, told):
        await eventually(lambda: len(told) == 1)
        assert (told[0].id, told[0].customer) == (killed.stdout.strip(), "acme")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            {"customer": "acme", "of": "abcd", "numbers": "1 2 3"},
            "'acme' is dropped after 2 attempts: the event cannot be read",
        ),
        ({"customer": "acme", "of": "abcd", "numbers": "1 2 x"}, "of shard 0 is given up: it cannot be read"),
        ({"who": "acme"}, "of shard 0 is given up: it cannot be read"),
    ],
)
async def test_an_unreadable_notice_is_given_up_alone(
    any_store_url: str,
    written: dict[str, bytes | str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("meterkit.store.customer_notices.TIMES_MOST", 2)
    async with told_on(any_store_url) as (kit, told):
        client: Any = (await kit.store.admin()).client
        key = kit.store.keys.notices(0)
        await client.xadd(key, {"kind": "usage.threshold", **written})
        await client.pexpire(key, 60_000)
        own = next(name for name in map(str, range(99)) if kit.store.keys.customer(name).shard == 0)
        await kit.record(own, "words", 800)
        await eventually(lambda: said in caplog.text)
        await eventually(lambda: shares(told) == [(own, 80, 800)])
        assert (await client.xpending(key, "usage.threshold"))["pending"] == 0
    # Where the machine is slow, it is tried, and given up, once more before that is acknowledged.
    assert {
        said in message for message in caplog.messages if "is given up" in message or "is dropped" in message
    } == {True}
    assert not kit.store.task_failures


async def test_a_handler_that_takes_too_long_is_cancelled(
    any_store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.notify.event_handlers._PATIENCE_S", 0.01)
    async with kit_of(any_store_url) as kit:

        @kit.on("usage.threshold")
        async def hangs(_: UsageThreshold) -> None:
            await asyncio.Event().wait()

        await kit.record("acme", "words", 800)
        await eventually(lambda: "a handler of usage.threshold was cancelled" in caplog.text)


async def test_i7_what_is_kept_to_be_told_is_bounded_and_ends(valkey: Server) -> None:
    async with kit_of(valkey.url) as kit:
        await asyncio.gather(*(kit.record(f"c{nth}", "words", 1500) for nth in range(2000)))
        for shard in range(4):
            key = kit.store.keys.notices(shard)
            assert valkey.command("XLEN", key) <= 1100
            assert 0 < valkey.command("PTTL", key) <= 7 * 86_400_000


async def test_low_credits_are_told_once_a_crossing(any_store_url: str) -> None:
    async with kit_of(any_store_url) as kit:
        told: list[tuple[str, str]] = []

        @kit.on("credits.low")
        def low(event: Any) -> None:
            told.append((event.customer, event.credit))

        await kit.grants.add("acme", {"ai": 10}, grant_id="g1")
        await kit.record("acme", "pages", 100 + 2000)  # 2 of 10 are left, that is 20 %.
        assert told == []
        for _ in range(3):
            await kit.record("acme", "pages", 1)
        await eventually(lambda: bool(told))
        assert told == [("acme", "ai")]
        await kit.grants.add("acme", {"ai": 10}, grant_id="g2")
        await kit.record("acme", "pages", 2500)
    assert told == [("acme", "ai")] * 2


@pytest.mark.usefixtures("quickly")
async def test_an_event_that_one_handler_failed_goes_to_both_again() -> None:
    async with told_on("memory://") as (kit, told):
        tries: list[Any] = []

        @kit.on("usage.threshold")
        def fails_once(event: UsageThreshold) -> None:
            tries.append(event)
            if len(tries) == 1:
                raise LookupError("not yet")

        await kit.record("acme", "words", 800)
        await eventually(lambda: len(tries) == 2)
        await eventually(lambda: len(told) == 2)
    assert [event.id for event in tries] == [event.id for event in told]


async def test_a_hanging_handler_does_not_keep_the_kit_running(
    any_store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.assembly._HANDLERS_S", 0.05)
    begun = asyncio.Event()
    async with kit_of(any_store_url) as kit:

        @kit.on("credits.low")
        async def low(event: Any) -> None:
            assert event.customer == "acme"
            begun.set()
            await asyncio.Event().wait()

        await kit.grants.add("acme", {"ai": 1}, grant_id="g1")
        await kit.record("acme", "pages", 100 + 249)
        await begun.wait()
    assert "event handlers were cancelled when the kit stopped: 1" in caplog.text


async def test_slow_or_bad_handlers_harm_nobody(any_store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    async with kit_of(any_store_url) as kit:
        go = asyncio.Event()

        @kit.on("credits.low")
        def fails(_: Any) -> None:
            raise LookupError("at once")

        @kit.on("credits.low")
        async def fails_later(_: Any) -> None:
            raise LookupError("later")

        @kit.on("credits.low")
        async def takes_long(event: Any) -> None:
            await go.wait()
            told.append(event.customer)

        await kit.grants.add("acme", {"ai": 1}, grant_id="g1")
        await kit.record("acme", "pages", 100 + 249)
        assert told == []
        go.set()
    assert told == ["acme"]
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in failures] == ["a handler of credits.low failed"] * 2
    assert [str(record.exc_info[1]) for record in failures if record.exc_info] == ["at once", "later"]
    refusal = r"event: found 'credits\.high'; allowed are credits\.low, usage\.threshold"
    with pytest.raises(MeterkitError, match=refusal):
        kit.on("credits.high")
    without_parentheses: Any = fails  # `@kit.on` alone: it was never called, and nothing said so.
    with pytest.raises(MeterkitError, match=r"event: found <function .*; allowed are credits\.low"):
        kit.on(without_parentheses)
