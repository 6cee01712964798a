"""The spool: usage of an outage waits on disk and is sent once, whoever is killed when."""

# Internals: spools that are cut and sent by parts.

# pyright: reportPrivateUsage=false
# A few tests cut what is not finished, which nothing shows.

from __future__ import annotations

import asyncio
import os
import re
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree
from threading import Event
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import rows_in
from drivers.spools import spool_with
from faults.proxy import TcpProxy
from faults.refusals import PLANS, ask, eventually, kit_at, lane_of, settle, settled, used
from faults.small_disk import run_on_a_small_disk
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import StoreError
from meterkit.redis import settlement_queue
from meterkit.store import settlement_spool, spool_file
from meterkit.store.spool_file import SpoolFile
from meterkit.store.spool_replay import SpoolReplay
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = [pytest.mark.anyio]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup is shorter here."""
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 0.05)


def spools(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in spools(directory))


def kit_on(proxy: TcpProxy, directory: Path, **settings: Any) -> MeterKit:
    """A kit whose store can be taken away."""
    return kit_at(proxy.url, store_timeout=0.1, spool_dir=directory, **settings)


async def away(kit: MeterKit, proxy: TcpProxy) -> None:
    await proxy.set("refuse")
    await eventually(lambda: lane_of(kit).is_down)


async def back(kit: MeterKit, proxy: TcpProxy) -> None:
    await proxy.set("pass")
    await settled(kit)


async def test_i9_usage_of_an_outage_is_spooled_and_sent_once(proxy: TcpProxy, tmp_path: Path) -> None:
    async with kit_on(proxy, tmp_path) as kit:
        assert await ask(kit, "acme") == 200
        await settled(kit)
        await away(kit, proxy)
        for n in range(50):
            assert await ask(kit, f"customer-{n % 7}") == 200
        await eventually(lambda: _size(tmp_path) > 3000)
        # The writer goes on: so many bytes are not yet all of them.
        await eventually(lambda: all(queue.unsettled == 0 for queue in lane_of(kit).queues))
        assert lane_of(kit).unsettled == 50
        await back(kit, proxy)
        assert sum([(await used(kit, f"customer-{n}"))[0] for n in range(7)]) == 50
        assert await used(kit, "acme") == (1, 0)
        await eventually(lambda: spools(tmp_path) == [])
        assert lane_of(kit).lost == 0


async def test_i9_usage_in_flight_at_an_outage_is_counted_once(proxy: TcpProxy, tmp_path: Path) -> None:
    for mode in ("drop_reply", "blackhole", "cut"):
        async with kit_on(proxy, tmp_path) as kit:
            customer = f"of-{mode}"
            await kit.record(customer, "tokens", 1)
            await proxy.set(mode, cut_after=5)
            settle(kit, customer, times=20, tokens=10)
            await asyncio.sleep(0)
            lane = lane_of(kit)
            await eventually(lambda lane=lane: not lane.connected)  # type: ignore[misc]
            await proxy.set("refuse")
            settle(kit, customer, times=20, tokens=100)
            await eventually(lambda lane=lane: not any(one.unsettled for one in lane.queues))  # type: ignore[misc]
            await eventually(lambda: len(spools(tmp_path)) == 1)
            await back(kit, proxy)
            assert await used(kit, customer, "tokens") == (1 + 200 + 2000, 0)
            assert lane_of(kit).lost == 0


async def test_i9_a_short_hiccup_touches_no_disk(
    proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 30.0)
    async with kit_on(proxy, tmp_path) as kit:
        await away(kit, proxy)
        settle(kit, "acme", times=20, tokens=1)
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (20, 0)
        assert spools(tmp_path) == []


async def test_i11_usage_of_an_outage_is_on_disk_before_it_is_told(
    proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "state" / "meterkit"
    async with kit_on(proxy, directory) as kit:
        await away(kit, proxy)
        await kit.record("acme", "tokens", 7, event_id="once")
        (file,) = spools(directory)
        assert file.read_bytes().startswith(b"meterkit spool 1\n")
        assert b'"recorded":{"tokens":7}' in file.read_bytes()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700  # Its user alone may read it.
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        await kit.record("acme", "tokens", 7, event_id="once")
        assert "has not acknowledged" not in caplog.text
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (7, 0)


@pytest.mark.parametrize("spill_after_s", [0.05, 60.0])
async def test_i11_a_kit_stopped_in_an_outage_leaves_a_spool(
    proxy: TcpProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spill_after_s: float,
) -> None:
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", spill_after_s)  # Or just before the stop.
    async with kit_on(proxy, tmp_path) as kit:
        await away(kit, proxy)
        for n in range(30):
            settle(kit, f"customer-{n % 3}", tokens=5)
        await kit.record("acme", "tokens", 1)
    (file,) = spools(tmp_path)
    assert f"settlements waiting in {file}: 31;" in caplog.text or spill_after_s > 1
    assert "settlements lost" not in caplog.text
    # The next one reaches the store by the same address.
    async with next_start(proxy, tmp_path) as kit:
        await eventually(lambda: spools(tmp_path) == [])
        sums = [(await used(kit, f"customer-{n}", "tokens"))[0] for n in range(3)]
        assert sums == [50] * 3
        assert await used(kit, "acme", "tokens") == (1, 0)
    assert f"settlements sent that were left in {file}: 31" in caplog.text


async def test_i11_a_spool_directory_that_is_removed_is_made_again(proxy: TcpProxy, tmp_path: Path) -> None:
    directory = tmp_path / "spools"
    async with kit_on(proxy, directory) as kit:
        await away(kit, proxy)
        await kit.record("acme", "tokens", 5)
        rmtree(directory)
        await kit.record("acme", "tokens", 3)
        rmtree(directory)
    async with next_start(proxy, directory) as kit:
        assert await kit.store.send_spools() == (2, ())
        assert await used(kit, "acme", "tokens") == (8, 0)
    assert spools(directory) == []


# Periods, and states that have changed meanwhile.


@pytest.mark.parametrize("late_usage", ["next_period", "dead_letter"])
async def test_spooled_usage_belongs_to_the_period_in_which_it_ended(
    proxy: TcpProxy, tmp_path: Path, late_usage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(datetime(2031, 6, 30, 23, 50, tzinfo=UTC))
    plans = loads(f"{PLANS}\nbilling: {{late_usage: {late_usage}}}\n")
    async with kit_on(proxy, tmp_path, clock=clock, plans=plans) as kit:
        await kit.record("acme", "tokens", 1)
        await kit.record("early", "tokens", 1)
        await away(kit, proxy)
        await kit.record("acme", "tokens", 10)
        await kit.record("early", "tokens", 20)
        # One is sent while its period goes on, the other one once that is over.
        await back(kit, proxy)
        assert (await used(kit, "early", "tokens"))[0] == 21
        await away(kit, proxy)
        await kit.record("acme", "tokens", 300)
        clock.advance(timedelta(minutes=20))
        await kit.record("acme", "tokens", 4000)
        await back(kit, proxy)
        july = (await kit.usage("acme"))["meters"]["tokens"]["recorded"]
        assert july == (4300 if late_usage == "next_period" else 4000)
        assert "2031-06-01" in caplog.text


# Files that are not as they should be.


async def spooled(proxy: TcpProxy, directory: Path, records: int = 6) -> Path:
    """The spool of a process that is gone."""
    async with kit_on(proxy, directory) as kit:
        await away(kit, proxy)
        for _ in range(records):
            await kit.record("acme", "tokens", 5)
    (file,) = spools(directory)
    return file


@asynccontextmanager
async def next_start(proxy: TcpProxy, directory: Path, **settings: Any) -> AsyncGenerator[MeterKit]:
    """A kit that reaches the store as the one before did."""
    await proxy.set("pass")
    async with kit_at(proxy.url, spool_dir=directory, **settings) as kit:
        await eventually(lambda: lane_of(kit).connected)
        yield kit


@pytest.mark.parametrize("damage", ["torn", "changed"])
async def test_a_torn_end_is_left_out_and_told_of(
    proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = await spooled(proxy, tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(file.read_bytes()[:-7] if damage == "torn" else content)
    async with next_start(proxy, tmp_path) as kit:
        sent, _ = await kit.store.send_spools()
        assert sent == 5 if damage == "torn" else 0 < sent < 6
        assert await used(kit, "acme", "tokens") == (5 * sent, 0)
    words = {"torn": "are no whole record; they are left out", "changed": "are damaged"}
    assert f"bytes at its end {words[damage]}" in caplog.text
    assert spools(tmp_path) == []
    assert file.with_suffix(".damaged").exists() == (damage == "changed")


async def test_i11_a_spool_that_cannot_be_removed_blocks_no_other(
    proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = await spooled(proxy, tmp_path, records=2)
    first = SpoolFile.claim(file)
    assert first is not None
    (record, _), _ = first.read(first.begins)
    first.close()
    other = SpoolFile.create(tmp_path, replace(first.header, producer="other"))
    other.append(spool_file.frame(record))
    other.close()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    os.utime(file, (1, 1))  # It is sent first; and the name that it is put aside under is taken.
    file.with_suffix(".damaged").mkdir()
    async with next_start(proxy, tmp_path) as kit:
        await eventually(lambda: spools(tmp_path) == [file])
        _, (refused,) = await kit.store.send_spools()
        assert refused.startswith(f"{file}: it cannot be read to its end, or not be removed: [Errno 21]")
        assert await used(kit, "acme", "tokens") == (5 + 5, 0)
    assert "spooled usage is sent later" not in caplog.text


async def test_a_flush_says_that_spools_cannot_be_read(proxy: TcpProxy, tmp_path: Path) -> None:
    directory = tmp_path / "spools"
    directory.touch()
    async with kit_on(proxy, directory) as kit:
        report = await kit.flush(everything=True)
    assert report.spools_left == [f"{directory}: it cannot be read: Not a directory"]
    assert not report.is_complete


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"meterkit spool 2\n", "it is of format 2, and this release reads up to 1; upgrade this process"),
        (b"#!/bin/sh\n", "it does not begin as a spool does"),
        (b"meterkit spool 1\nxx", "its header is damaged"),
        (None, "it was begun 8 days ago.*remove the file"),
    ],
)
async def test_i12_a_file_that_cannot_be_read_is_left_and_named(
    proxy: TcpProxy, tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = await spooled(proxy, tmp_path)
    clock = Clock(datetime.now(UTC) + timedelta(days=8 * (content is None)))
    file.write_bytes(content or file.read_bytes())
    async with next_start(proxy, tmp_path, clock=clock) as kit:
        _, (refused,) = await kit.store.send_spools()
        assert re.match(rf"{re.escape(str(file))}: .*{why}", refused)
    assert spools(tmp_path) == [file]


async def test_a_removed_meter_loses_its_records_and_no_others(
    proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(datetime(2031, 6, 10, tzinfo=UTC))
    async with kit_on(proxy, tmp_path, clock=clock) as kit:
        await away(kit, proxy)
        await kit.record("acme", "tokens", 5)
        await kit.record("acme", "requests", 2)
    plans = PLANS.replace("tokens", "words")
    clock.advance(timedelta(days=1))
    async with next_start(proxy, tmp_path, plans=loads(plans), clock=clock) as kit:
        assert await kit.store.send_spools() == (2, ())
        assert await used(kit, "acme", "requests") == (2, 0)
        assert lane_of(kit).lost == 1
    assert "{'tokens': 5} of 'acme', used at " in caplog.text
    assert "has no such counter; once it has one, record this by hand" in caplog.text


@pytest.mark.parametrize("tokens", ["words: {unit: word}", "tokens: {unit: token, kind: gauge}"])
async def test_i11_a_removed_meter_loses_no_usage_of_others(
    proxy: TcpProxy, tmp_path: Path, tokens: str
) -> None:
    clock = Clock(datetime(2031, 6, 10, tzinfo=UTC))
    async with kit_on(proxy, tmp_path, clock=clock) as kit:
        await away(kit, proxy)
        await kit.record("acme", {"tokens": 5, "requests": 2}, event_id="both")
    plans = f"""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {{unit: request}}
  {tokens}
plans: {{free: {{price: {{amount_cents: 0, interval: month}}}}}}
"""
    clock.advance(timedelta(days=1))
    async with next_start(proxy, tmp_path, plans=loads(plans), clock=clock) as kit:
        assert await kit.store.send_spools() == (1, ())
        assert await used(kit, "acme", "requests") == (2, 0)
        assert lane_of(kit).lost == 1
    async with kit_on(proxy, tmp_path, clock=clock) as kit:
        await kit.record("acme", {"tokens": 5, "requests": 2}, event_id="both")
        assert await used(kit, "acme", "tokens") == (5, 0)
        assert await used(kit, "acme", "requests") == (2, 0)


async def test_i11_a_spool_waits_a_day_for_a_process_with_its_meters(proxy: TcpProxy, tmp_path: Path) -> None:
    clock = Clock(datetime(2031, 6, 10, tzinfo=UTC))
    async with kit_on(proxy, tmp_path, clock=clock) as kit:
        await away(kit, proxy)
        await kit.record("acme", "tokens", 5)
    (file,) = spools(tmp_path)
    other = loads(PLANS.replace("tokens", "words"))
    async with next_start(proxy, tmp_path, plans=other, clock=clock) as kit:
        sent, (refused,) = await kit.store.send_spools()
        assert sent == 0
        assert refused.startswith(
            f"{file}: it has usage of tokens, and this process's plans file has no such"
        )
    async with next_start(proxy, tmp_path, clock=clock) as kit:
        assert await kit.store.send_spools() == (1, ())
        assert await used(kit, "acme", "tokens") == (5, 0)


# A store that has forgotten what it had applied.


async def test_i11_a_spool_without_a_record_sends_the_rest(
    valkey: Server, proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = await spooled(proxy, tmp_path)
    async with next_start(proxy, tmp_path / "none") as kit:
        found, replay, records = half_sent_of(kit, file)
        await replay.send(records[:3])
        for key in valkey.command("KEYS", f"*:w:{found.header.producer}"):
            valkey.command("DEL", key)  # As volatile-lru does: the counters stay.
        await replay.send(records[3:])
        assert replay.lost == 3
        assert await used(kit, "acme", "tokens") == (30, 0)
        found.remove()
    assert "the store has no record any more of what it had applied" in caplog.text


@pytest.mark.parametrize("is_audited", [False, True])
async def test_f_341_an_emptied_store_gets_the_rest_at_once(
    valkey: Server,
    proxy: TcpProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_audited: bool,
) -> None:
    """An empty settlement was sent for each that was lost, all at once: requests beside them failed."""
    url = f"sqlite:///{tmp_path}/audit.db"
    async with kit_on(proxy, tmp_path) as kit:
        await away(kit, proxy)
        settle(kit, "acme", times=150, tokens=10)
        await eventually(lambda: not any(queue.unsettled for queue in lane_of(kit).queues))
    (file,) = spools(tmp_path)
    posted: list[int] = []
    post = SpoolReplay._post

    def posting(self: SpoolReplay, transfer: Any) -> None:
        posted.append(transfer.number)
        post(self, transfer)

    monkeypatch.setattr(SpoolReplay, "_post", posting)
    audit_url = url if is_audited else None
    async with next_start(proxy, tmp_path / "none", audit_url=audit_url, flush=False) as kit:
        found, replay, records = half_sent_of(kit, file)
        await replay.send(records[:140])
        valkey.command("FLUSHALL")
        posted.clear()
        await replay.send(records[140:145])
        assert posted == [*range(141, 146), *range(141, 146)]
        assert (replay.lost, (await used(kit, "acme", "tokens"))[0]) == (140, 50)
        valkey.command("FLUSHALL")
        await replay.send(records[145:])
        assert (replay.lost, (await used(kit, "acme", "tokens"))[0]) == (145, 50)
        again = replace(replay, counted_losses=replay.counted_losses)
        await again.send(records)  # As after another outage: nothing is applied or counted twice.
        assert (again.lost, (await used(kit, "acme", "tokens"))[0]) == (0, 50)
        if is_audited:
            await drain_all(kit, url)
            numbers = [int(row["event"].rpartition("/")[2]) for row in rows_in(url)]
            assert sorted(numbers) == [*range(146, 151)]
        found.remove()
    assert "settlements of a spool lost: 5: the store has no record any more" in caplog.text


async def test_f_341_a_loss_is_counted_once(valkey: Server, proxy: TcpProxy, tmp_path: Path) -> None:
    """What could never be recorded was counted again where the store lost its record."""
    file = await spooled(proxy, tmp_path)
    async with next_start(proxy, tmp_path / "none") as kit:
        found, replay, records = half_sent_of(kit, file)
        broken = records[1].replace(b'"c":"acme"', b'"c":"acme","held":[1]')
        await replay.send([records[0], broken, records[2]])
        assert replay.lost == 1
        valkey.command("FLUSHALL")
        await replay.send(records[3:])
        assert replay.lost == 3
        found.remove()


async def test_i11_a_store_that_falls_behind_gets_the_spool_again(
    valkey: Server, proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "_READ_BYTES", 200)  # Two records or so at a time.
    send, sent = SpoolReplay.send, list[int]()

    async def sending(self: SpoolReplay, records: Sequence[bytes]) -> None:
        await send(self, records)
        sent.append(len(records))
        if len(sent) == 2:
            (file,) = spools(tmp_path)
            header, _ = spool_file.SpoolHeader.read(file.read_bytes())
            (key,) = valkey.command("KEYS", f"*:w:{header.producer}")
            valkey.command("SET", key, 1, "PX", 10_000)  # As after a failover, but for the counters.

    async with kit_on(proxy, tmp_path) as kit:
        await kit.record("acme", "tokens", 1)
        await away(kit, proxy)
        settle(kit, "acme", times=8, tokens=10)
        lane = lane_of(kit)
        await eventually(lambda: lane.unsettled == 8 and not any(one.unsettled for one in lane.queues))
        monkeypatch.setattr(SpoolReplay, "send", sending)
        await back(kit, proxy)
        before = sent[0] + sent[1]
        assert sum(sent[2:]) == 8
        assert await used(kit, "acme", "tokens") == (1 + 80 + 10 * (before - 1), 0)
        assert lane.lost == 0


def half_sent_of(kit: MeterKit, file: Path) -> tuple[SpoolFile, SpoolReplay, list[bytes]]:
    """A spool that a test sends by parts."""
    found = SpoolFile.claim(file)
    assert found is not None
    parts: dict[str, Any] = {
        "lane_of": lane_of(kit).lane_of,
        "cache": kit.store.cache,
        "keys": kit.store.keys,
    }
    replay = SpoolReplay(found.header.producer, **parts)
    return found, replay, found.read(found.begins)[0]


async def test_a_spool_that_is_full_counts_what_it_cannot_keep(
    proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settlement_spool, "SPOOL_BYTES_MAX", 600)
    async with kit_on(proxy, tmp_path) as kit:
        await away(kit, proxy)
        kept = 0
        while spools(tmp_path) == [] or _size(tmp_path) <= 600:
            await kit.record("acme", "tokens", 1)
            kept += 1
        with pytest.raises(StoreError, match="the spool is full"):
            await kit.record("acme", "tokens", 1)
        assert lane_of(kit).lost == 1
        assert "is full, and usage is lost (settlements so far: 1)" in caplog.text
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (kept, 0)


ON_A_FULL_DISK: Final = """
import asyncio, logging, sys
sys.path[:0] = [TESTS]
from faults.refusals import Client, eventually, kit_at, metered, settled, used
from meterkit.redis import settlement_queue
from meterkit.store import settlement_spool
from faults.proxy import TcpProxy

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
settlement_queue._SPILL_AFTER_S = 0.05
settlement_spool._WRITTEN_AT_ONCE_MAX = 30

def spooled():
    return sum(path.stat().st_size for path in Path("spools").glob("*.spool"))

async def main():
    given = {"store_timeout": 0.1, "spool_dir": Path("spools")}
    async with TcpProxy(PORT) as proxy, kit_at(proxy.url, **given) as kit:
        app, lane = metered(kit), await kit.store.lane()
        assert await Client(app).get("acme") == 200
        await settled(kit)
        fill()
        await proxy.set("refuse")
        await eventually(lambda: lane.is_down)
        print({await Client(app).get("acme") for _ in range(200)})
        await asyncio.sleep(0.5)
        print("spooled", spooled(), "waiting", lane.unsettled, "lost", lane.lost)
        FILLED.unlink()
        await eventually(lambda: spooled() > 5_000)
        print("on disk")
        await proxy.set("pass")
        await settled(kit)
        print("recorded", (await used(kit, "acme"))[0], "lost", lane.lost)
        await eventually(lambda: not spooled())
        # Once more, and the store is back before there is room.
        fill()
        await proxy.set("refuse")
        await eventually(lambda: lane.is_down)
        print({await Client(app).get("acme") for _ in range(50)})
        await asyncio.sleep(0.3)
        await proxy.set("pass")
        await settled(kit)
        print("recorded", (await used(kit, "acme"))[0], "lost", lane.lost)

asyncio.run(main())
"""


@pytest.mark.dear("a process on a disk of its own")
def test_i9_i11_a_full_disk_costs_no_request_and_no_unit(valkey: Server) -> None:
    given = f"TESTS, PORT = {str(Path(__file__).parents[1])!r}, {valkey.port}\n"
    # A path that is not short would be shortened through a folder that is not there.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        lines = run_on_a_small_disk(Path(folder), given + ON_A_FULL_DISK)
    said = [line for line in lines if not line.startswith(("WARNING", "ERROR"))]
    assert said[:3] == ["{200}", "spooled 0 waiting 200 lost 0", "on disk"]
    assert said[3:] == ["recorded 201 lost 0", "{200}", "recorded 251 lost 0"]
    (told, *_) = [line for line in lines if "usage cannot be written to" in line]
    assert told.startswith("WARNING usage cannot be written to spools and waits in memory: ")
    assert "No space left on device" in told


class SlowDisk(ThreadPoolExecutor):
    """The thread of a spool, on a disk that takes a while for all that is asked of it."""

    asked: Event

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        def slowly() -> Any:
            self.asked.set()
            time.sleep(0.1)
            return work(*arguments, **named)

        return super().submit(slowly)


class BusyDisk(ThreadPoolExecutor):
    """One on which other work comes before the removal of a spool."""

    asked: Event

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        if work.__name__ == "remove":
            super().submit(time.sleep, 0.1)
            self.asked.set()
        return super().submit(work, *arguments, **named)


def test_i11_a_loop_that_ends_leaves_no_spool_locked(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its removal was cancelled before it began: no flush of this process could send the file any more."""
    monkeypatch.setattr(BusyDisk, "asked", Event(), raising=False)
    monkeypatch.setattr(settlement_spool, "ThreadPoolExecutor", BusyDisk)
    spool_with(kit_at(valkey.url), tmp_path, "tokens", 7).close()

    async def send() -> tuple[int, int]:
        async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
            await eventually(BusyDisk.asked.is_set)
            return await used(kit, "acme", "tokens")

    assert (asyncio.run(send()), spools(tmp_path)) == ((7, 0), [])


def test_i11_a_loop_that_ends_loses_nothing_on_its_way_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was being created was locked, and could not be written at the end."""
    monkeypatch.setattr(SlowDisk, "asked", Event(), raising=False)
    monkeypatch.setattr(settlement_spool, "ThreadPoolExecutor", SlowDisk)

    async def serve() -> None:
        kit = kit_at("redis://127.0.0.1:1/0", spool_dir=tmp_path, store_timeout=0.1, start_timeout=0)
        await kit.start()
        await eventually(lambda: lane_of(kit).is_down)
        settle(kit, "acme", tokens=5)
        await eventually(SlowDisk.asked.is_set)

    asyncio.run(serve())  # The app never stops its kit, as where a server runs no lifespan.
    (path,) = spools(tmp_path)
    file = SpoolFile.claim(path)
    assert file is not None
    assert b'"recorded":{"tokens":5}' in b"".join(file.read(file.begins)[0])
    file.close()
