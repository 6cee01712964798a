"""I3, I11: only the store's clock decides; one that is set back refuses no customer, and usage is kept."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import anyio
import pytest

from drivers.counters import put_head
from drivers.plans import free_plan
from drivers.sampled import whole
from faults.proxy import TcpProxy
from faults.refusals import eventually, kit_at, settle, settled, used
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = [pytest.mark.anyio]

INCLUDED: Final = "included: 1000, overage: deny"


def rated_plans(limits: str) -> str:
    """A plans file with limits of calls; one open stream at a time holds one of three."""
    open_streams = "{concurrency: 1, included: 3, overage: deny}"
    return free_plan(
        "{calls: {unit: call}, open: {unit: stream}}", f"{{calls: {{{limits}}}, open: {open_streams}}}"
    )


CUSTOMERS: Final = ("acme", "bolt", "core", "dune", "echo")


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port) as proxy:
        yield proxy


def ahead() -> Clock:
    """A clock of the store, in a month's first minute; set back, it is still ahead of the server's."""
    later = datetime.now(UTC) + timedelta(days=40)
    return Clock(later.replace(day=1, hour=0, minute=0, second=20, microsecond=0))


def rated(valkey: Server, clock: Clock, rate: str = "5/second") -> MeterKit:
    return MeterKit(
        loads(rated_plans(f"rate: {rate}, {INCLUDED}")), redis_url=valkey.url, shards=1, clock=clock
    )


async def admitted(kit: MeterKit) -> int:
    """How many of seven calls are admitted."""
    return [(await kit.consume("acme", "calls")).allowed for _ in range(7)].count(True)


@pytest.mark.parametrize(
    "rate",
    [
        "5/second",
        "{limit: 5/second, algorithm: fixed-window}",
        "{limit: 5/second, algorithm: token-bucket, burst: 5}",
    ],
)
async def test_i3_a_store_that_is_set_back_serves_on(valkey: Server, rate: str) -> None:
    # F-317: 0 of 165 were served until the clock had caught up.
    clock = ahead()
    async with rated(valkey, clock, rate) as kit:
        assert await admitted(kit) == 5
        clock.advance(timedelta(minutes=-5))
        assert await admitted(kit) == 5  # One window more than the rate.
        assert await admitted(kit) == 0
        refused = await kit.consume("acme", "calls")
        assert refused.retry_after is not None
        assert refused.retry_after < timedelta(seconds=2)
        clock.advance(timedelta(seconds=2))
        assert await admitted(kit) == 5


async def test_i3_time_stands_still_while_back_by_less_than_a_second(valkey: Server) -> None:
    clock = ahead()
    async with rated(valkey, clock) as kit:
        assert await admitted(kit) == 5
        clock.advance(timedelta(seconds=-1))
        assert await admitted(kit) == 0


async def test_i3_holds_outlive_a_clock_that_is_set_back(valkey: Server) -> None:
    clock = ahead()
    async with rated(valkey, clock) as kit:
        async with kit.reserve("acme", {"open": 2}):
            clock.advance(timedelta(minutes=-20))
            assert (await kit.usage("acme"))["meters"]["open"]["held"] == 2
            assert not (await kit.check("acme", "open", 2)).allowed
            await kit.record("acme", "open", 1)  # Its hold is in the slot of now from here on.
            assert not (await kit.check("acme", "open", 1)).allowed
        await settled(kit)
        shown = (await kit.usage("acme"))["meters"]["open"]
        assert (shown["held"], shown["recorded"]) == (0, 1)


async def test_i5_a_period_that_has_begun_goes_on_if_time_goes_back(valkey: Server) -> None:
    clock = ahead()
    async with rated(valkey, clock) as kit:
        clock.advance(timedelta(minutes=-1))
        await kit.record("acme", "calls", 7)
        clock.advance(timedelta(minutes=1))
        await kit.record("acme", "calls", 3)
        begun = (await kit.usage("acme"))["period"]
        clock.advance(timedelta(minutes=-1))
        assert (await kit.consume("acme", "calls")).allowed
        await kit.record("acme", "calls", 1)
        for minutes in (0, 1, 5):
            clock.advance(timedelta(minutes=minutes))
            found = await kit.usage("acme")
            assert (found["period"], found["meters"]["calls"]["recorded"]) == (begun, 5)


HOST: Final = """
import asyncio, json, logging, sys, time
real, ahead_s, (url, plans) = time.time, float(sys.argv[1]), sys.argv[2:]
time.time = lambda: real() + ahead_s
from meterkit import MeterKit
from meterkit.catalog import loads
lines = []
logging.getLogger("meterkit").addFilter(lambda record: True)
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("meterkit").addHandler(handler)

async def main():
    kit = MeterKit(loads(plans), redis_url=url, shards=1, spool_dir="")
    await kit.start()
    found = [(await kit.consume("acme", "calls")).allowed for _ in range(8)]
    while not any("this host's clock is" in line for line in lines):
        await asyncio.sleep(0.01)
    print(json.dumps([found.count(True), kit.store.now_ms() / 1000 - real(), lines]), flush=True)
    time.sleep(600)

asyncio.run(main())
"""


@pytest.mark.dear("a host with a clock of its own is a process of its own")
@pytest.mark.parametrize(("ahead_s", "said"), [(3600, "3600 s ahead of"), whole(-7200, "7200 s behind")])
async def test_i3_a_host_whose_clock_is_wrong_decides_by_the_store(
    valkey: Server, ahead_s: int, said: str
) -> None:
    # F-317: it decided without the store, and kept usage in memory only.
    plans = rated_plans("included: 5, overage: deny")
    async with await anyio.open_process(
        [sys.executable, "-c", HOST, str(ahead_s), valkey.url, plans], stderr=None
    ) as host:
        assert host.stdout is not None
        admitted, apart_s, lines = json.loads(await host.stdout.receive())
        host.kill()
    assert admitted == 5
    assert abs(apart_s) < 60
    assert [line for line in lines if f"this host's clock is {said} the store's" in line] != []
    async with MeterKit(loads(plans), redis_url=valkey.url, shards=1) as kit:
        assert (await kit.usage("acme"))["meters"]["calls"]["recorded"] == 5


async def test_a_stores_clock_that_differs_and_is_set_back_is_logged(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.redis.store_clock._MEASURE_EVERY_S", 0.02)
    proxy.time_ahead_s = 900
    async with kit_at(proxy.url) as kit:
        await eventually(lambda: "this host's clock is 900 s behind the store's" in caplog.text)
        assert abs(kit.store.now_ms() / 1000 - datetime.now(UTC).timestamp() - 900) < 60
        proxy.time_ahead_s = 600
        await eventually(lambda: "the store's clock went back by 300 s" in caplog.text)
        proxy.time_ahead_s = 0
        await eventually(lambda: "the store's clock went back by 600 s" in caplog.text)
        assert abs(kit.store.now_ms() / 1000 - datetime.now(UTC).timestamp()) < 60
    assert caplog.text.count("this host's clock is") == 1
    assert caplog.text.count("went back by") == 2


async def test_i3_the_stores_clock_stays_known_over_an_outage(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A host's clock that is ahead was right again by as much as the outage had lasted.
    monkeypatch.setattr("meterkit.redis.store_clock._MEASURE_EVERY_S", 0.02)
    monkeypatch.setattr("meterkit.redis.store_clock.CLOCK_APART_S", 0.2)
    proxy.time_ahead_s = -900
    async with kit_at(proxy.url) as kit:

        def off_s() -> float:
            return kit.store.now_ms() / 1000 + 900 - datetime.now(UTC).timestamp()

        await eventually(lambda: off_s() < 0.25)
        await proxy.set("refuse")
        await anyio.sleep(0.5)  # So long the outage lasts, and longer if it likes.
        monkeypatch.setattr("meterkit.redis.store_clock._MEASURE_EVERY_S", 600)
        before = proxy.times
        await proxy.set("pass")
        await eventually(lambda: proxy.times > before)
        await kit.consume("acme", "requests")
        assert off_s() < 0.25


async def test_i11_a_queue_that_cannot_be_spooled_stops_no_other(
    proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The others were never looked at again, and lost by a kill.
    once = pytest.MonkeyPatch()

    def fail(*_: object) -> None:
        once.undo()
        raise MemoryError

    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with kit_at(proxy.url, spool_dir=tmp_path, store_timeout=60.0) as kit:
        proxy.replies.clear()
        once.setattr("meterkit.redis.settlement_queue.SentRecord", fail)
        for customer in CUSTOMERS:  # Of several shards.
            settle(kit, customer, tokens=1)
        await eventually(lambda: len([*tmp_path.glob("*.spool")]) == 1)
        proxy.replies.set()
        await settled(kit)
        assert [await used(kit, customer, "tokens") for customer in CUSTOMERS] == [(1, 0)] * len(CUSTOMERS)
    assert "settlements could not be spooled" in caplog.text


async def test_i11_what_a_connected_store_does_not_apply_is_spooled(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-317: what waited for another reason than an outage was in memory, and lost by a kill.
    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        settle(kit, "acme", tokens=1)
        await settled(kit)
        keys, client = kit.store.keys.customer("acme"), (await kit.store.admin()).client
        await client.hset(keys.state, mapping={"rev": "9:9", "data": "no state"})
        put_head(valkey, keys.counters, r="9:9")
        settle(kit, "acme", times=3, tokens=1)
        await eventually(lambda: len([*tmp_path.glob("*.spool")]) == 1)
        await client.delete(keys.state)
        await settled(kit)
        assert await used(kit, "acme", "tokens") == (4, 0)


async def test_i11_what_a_slow_store_has_not_answered_is_spooled(
    proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with kit_at(proxy.url, spool_dir=tmp_path, store_timeout=60.0) as kit:
        settle(kit, "acme", tokens=1)
        await settled(kit)
        proxy.replies.clear()
        settle(kit, "acme", times=3, tokens=1)
        await eventually(lambda: len([*tmp_path.glob("*.spool")]) == 1)
        proxy.replies.set()
        await settled(kit)
        assert await used(kit, "acme", "tokens") == (4, 0)
