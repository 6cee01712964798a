"""The spool: usage of an outage waits on disk and is sent once, whoever is killed when."""

# Internals: spools that are cut and sent by parts.

# pyright: reportPrivateUsage=false
# A few tests cut what is not finished, which nothing shows.

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import pytest

from faults.proxy import TcpProxy
from faults.refusals import (
    PLANS,
    Client,
    catalog,
    eventually,
    kit_at,
    lane_of,
    metered,
    settle,
    settled,
    used,
)
from meterkit.errors import StoreError
from meterkit.redis import producer
from meterkit.spool import spool_file
from meterkit.spool.spool_file import SpoolFile
from meterkit.store import spool
from meterkit.store.replay import Replay
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from meterkit import MeterKit
    from servers.stores import Server

pytestmark = [pytest.mark.anyio]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup is shorter here."""
    monkeypatch.setattr(producer, "_SPILL_AFTER_S", 0.05)


def spools(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in spools(directory))


@asynccontextmanager
async def outage(
    server: Server, directory: Path, **settings: Any
) -> AsyncGenerator[tuple[MeterKit, TcpProxy]]:
    """A kit whose store can be taken away."""
    async with (
        TcpProxy(server.port) as proxy,
        kit_at(proxy.url, store_timeout=0.1, spool_dir=directory, **settings) as kit,
    ):
        yield kit, proxy


async def away(kit: MeterKit, proxy: TcpProxy) -> None:
    await proxy.set("refuse")
    await eventually(lambda: lane_of(kit).is_away)


async def back(kit: MeterKit, proxy: TcpProxy) -> None:
    await proxy.set("pass")
    await settled(kit)


async def test_i9_usage_of_an_outage_is_spooled_and_sent_once(valkey: Server, tmp_path: Path) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        app = metered(kit)
        assert await Client(app).get("acme") == 200
        await settled(kit)
        await away(kit, proxy)
        for n in range(50):
            assert await Client(app).get(f"customer-{n % 7}") == 200
        await eventually(lambda: _size(tmp_path) > 3000)
        assert all(queue.unsettled == 0 for queue in lane_of(kit).queues)
        assert lane_of(kit).unsettled == 50
        await back(kit, proxy)
        assert sum([(await used(kit, f"customer-{n}"))[0] for n in range(7)]) == 50
        assert await used(kit, "acme") == (1, 0)
        await eventually(lambda: spools(tmp_path) == [])
        assert lane_of(kit).lost == 0


async def test_i9_usage_in_flight_at_an_outage_is_counted_once(valkey: Server, tmp_path: Path) -> None:
    for mode in ("drop_reply", "blackhole", "cut"):
        async with outage(valkey, tmp_path) as (kit, proxy):
            customer = f"of-{mode}"
            await kit.record(customer, "tokens", 1)
            await proxy.set(mode, cut_after=5)
            for _ in range(20):
                settle(kit, customer, tokens=10)
            await asyncio.sleep(0)
            lane = lane_of(kit)
            await eventually(lambda lane=lane: not lane.connected)  # type: ignore[misc]
            await proxy.set("refuse")
            for _ in range(20):
                settle(kit, customer, tokens=100)
            await eventually(lambda lane=lane: not any(one.unsettled for one in lane.queues))  # type: ignore[misc]
            await eventually(lambda: len(spools(tmp_path)) == 1)
            await back(kit, proxy)
            assert await used(kit, customer, "tokens") == (1 + 200 + 2000, 0)
            assert lane_of(kit).lost == 0


async def test_i9_a_short_hiccup_touches_no_disk(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "_SPILL_AFTER_S", 30.0)
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        for _ in range(20):
            settle(kit, "acme", tokens=1)
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (20, 0)
        assert spools(tmp_path) == []


async def test_i11_usage_of_an_outage_is_on_disk_before_it_is_told(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "state" / "meterkit"
    async with outage(valkey, directory) as (kit, proxy):
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


async def test_i11_a_kit_stopped_in_an_outage_leaves_a_spool(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        for n in range(30):
            settle(kit, f"customer-{n % 3}", tokens=5)
        await kit.record("acme", "tokens", 1)
        port = proxy.port
    (file,) = spools(tmp_path)
    assert f"31 settlements wait in {file}" in caplog.text
    assert "are lost" not in caplog.text
    # The next one reaches the store by the same address.
    proxy = TcpProxy(valkey.port)
    proxy.port = port
    async with proxy, kit_at(proxy.url, spool_dir=tmp_path) as kit:
        await eventually(lambda: spools(tmp_path) == [])
        sums = [(await used(kit, f"customer-{n}", "tokens"))[0] for n in range(3)]
        assert sums == [50] * 3
        assert await used(kit, "acme", "tokens") == (1, 0)
    assert "31 settlements of a process that is gone are sent" in caplog.text


async def test_i11_a_spool_directory_that_is_removed_is_made_again(valkey: Server, tmp_path: Path) -> None:
    directory = tmp_path / "spools"
    async with outage(valkey, directory) as (kit, proxy):
        await away(kit, proxy)
        await kit.record("acme", "tokens", 5)
        rmtree(directory)
        await kit.record("acme", "tokens", 3)
        rmtree(directory)
        port = proxy.port
    async with next_start(valkey, directory, port) as kit:
        assert await kit.store.send_spools() == (2, ())
        assert await used(kit, "acme", "tokens") == (8, 0)
    assert spools(directory) == []


async def test_i11_usage_just_before_a_stop_in_an_outage_is_on_disk(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(producer, "_SPILL_AFTER_S", 60.0)
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        for n in range(3):
            settle(kit, f"customer-{n}", tokens=5)
        port = proxy.port
    assert "are lost" not in caplog.text
    async with next_start(valkey, tmp_path, port) as kit:
        await kit.store.send_spools()
        assert [(await used(kit, f"customer-{n}", "tokens"))[0] for n in range(3)] == [5] * 3


# Periods, and states that have changed meanwhile.


@pytest.mark.parametrize("late_usage", ["next_period", "dead_letter"])
async def test_spooled_usage_belongs_to_the_period_in_which_it_ended(
    valkey: Server, tmp_path: Path, late_usage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(datetime(2031, 6, 30, 23, 50, tzinfo=UTC))
    plans = catalog(f"{PLANS}\nbilling: {{late_usage: {late_usage}}}\n")
    async with outage(valkey, tmp_path, clock=clock, plans=plans) as (kit, proxy):
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


async def spooled(server: Server, directory: Path, records: int = 6) -> tuple[Path, int]:
    """The spool of a process that is gone, and the port by which its store was reached."""
    async with outage(server, directory) as (kit, proxy):
        await away(kit, proxy)
        for _ in range(records):
            await kit.record("acme", "tokens", 5)
        port = proxy.port
    (file,) = spools(directory)
    return file, port


@asynccontextmanager
async def next_start(server: Server, directory: Path, port: int, **settings: Any) -> AsyncGenerator[MeterKit]:
    """A kit that reaches the store as the one before did."""
    proxy = TcpProxy(server.port)
    proxy.port = port
    async with proxy, kit_at(proxy.url, spool_dir=directory, **settings) as kit:
        await eventually(lambda: lane_of(kit).connected)
        yield kit


@pytest.mark.parametrize("damage", ["torn", "changed"])
async def test_a_torn_end_is_left_out_and_told_of(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file, port = await spooled(valkey, tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(file.read_bytes()[:-7] if damage == "torn" else content)
    async with next_start(valkey, tmp_path, port) as kit:
        sent, _ = await kit.store.send_spools()
        assert sent == 5 if damage == "torn" else 0 < sent < 6
        assert await used(kit, "acme", "tokens") == (5 * sent, 0)
    words = {"torn": "are no whole record; they are left out", "changed": "are damaged"}
    assert f"bytes at its end {words[damage]}" in caplog.text
    assert spools(tmp_path) == []
    assert file.with_suffix(".damaged").exists() == (damage == "changed")


async def test_i11_a_spool_that_cannot_be_removed_blocks_no_other(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, port = await spooled(valkey, tmp_path, records=2)
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
    async with next_start(valkey, tmp_path, port) as kit:
        await eventually(lambda: spools(tmp_path) == [file])
        _, (refused,) = await kit.store.send_spools()
        assert refused.startswith(f"{file}: it cannot be read to its end, or not be removed: [Errno 21]")
        assert await used(kit, "acme", "tokens") == (5 + 5, 0)
    assert "what is spooled is sent later" not in caplog.text


async def test_a_spool_that_is_too_old_is_refused_with_words(valkey: Server, tmp_path: Path) -> None:
    file, port = await spooled(valkey, tmp_path)
    clock = Clock(datetime.now(UTC) + timedelta(days=8))
    async with next_start(valkey, tmp_path, port, clock=clock) as kit:
        _, (refused,) = await kit.store.send_spools()
        assert refused.startswith(f"{file}: it was begun 8 days ago")
        assert "remove the file" in refused
    assert spools(tmp_path) == [file]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"meterkit spool 2\n", "it is of format 2, and this release reads up to 1; upgrade this process"),
        (b"#!/bin/sh\n", "it does not begin as a spool does"),
        (b"meterkit spool 1\nxx", "its header is damaged"),
    ],
)
async def test_i12_a_file_that_cannot_be_read_is_left_and_named(
    valkey: Server, tmp_path: Path, content: bytes, why: str
) -> None:
    file, port = await spooled(valkey, tmp_path)
    file.write_bytes(content)
    async with next_start(valkey, tmp_path, port) as kit:
        _, (refused,) = await kit.store.send_spools()
        assert why in refused
    assert spools(tmp_path) == [file]


async def test_a_removed_meter_loses_its_records_and_no_others(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        await kit.record("acme", "tokens", 5)
        await kit.record("acme", "requests", 2)
        port = proxy.port
    plans = PLANS.replace("tokens", "words")
    async with next_start(valkey, tmp_path, port, plans=catalog(plans)) as kit:
        assert await kit.store.send_spools() == (2, ())
        assert await used(kit, "acme", "requests") == (2, 0)
        assert lane_of(kit).lost == 1
    assert "that of 'acme' cannot be packed: KeyError('tokens')" in caplog.text


# A store that has forgotten what it had applied.


async def test_i11_a_spool_without_a_record_sends_the_rest(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, port = await spooled(valkey, tmp_path)
    async with next_start(valkey, tmp_path / "none", port) as kit:
        found, replay, records = half_sent_of(kit, file)
        await replay.send(records[:3])
        for key in valkey.command("KEYS", f"*:w:{found.header.producer}"):
            valkey.command("DEL", key)  # As volatile-lru does: the counters stay.
        await replay.send(records[3:])
        assert replay.lost == 3
        assert await used(kit, "acme", "tokens") == (30, 0)
        found.remove()
    assert "the store has no record any more of what it had applied" in caplog.text


async def test_i11_a_store_that_falls_behind_gets_the_spool_again(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "_READ_BYTES", 200)  # Two records or so at a time.
    send, sent = Replay.send, list[int]()

    async def sending(self: Replay, records: Sequence[bytes]) -> None:
        await send(self, records)
        sent.append(len(records))
        if len(sent) == 2:
            (file,) = spools(tmp_path)
            header, _ = spool_file.Header.read(file.read_bytes())
            (key,) = valkey.command("KEYS", f"*:w:{header.producer}")
            valkey.command("SET", key, 1, "PX", 10_000)  # As after a failover, but for the counters.

    async with outage(valkey, tmp_path) as (kit, proxy):
        await kit.record("acme", "tokens", 1)
        await away(kit, proxy)
        for _ in range(8):
            settle(kit, "acme", tokens=10)
        lane = lane_of(kit)
        await eventually(lambda: lane.unsettled == 8 and not any(one.unsettled for one in lane.queues))
        monkeypatch.setattr(Replay, "send", sending)
        await back(kit, proxy)
        before = sent[0] + sent[1]
        assert sum(sent[2:]) == 8
        assert await used(kit, "acme", "tokens") == (1 + 80 + 10 * (before - 1), 0)
        assert lane.lost == 0


def half_sent_of(kit: MeterKit, file: Path) -> tuple[SpoolFile, Replay, list[bytes]]:
    """A spool that a test sends by parts."""
    found = SpoolFile.claim(file)
    assert found is not None
    store = kit.store
    replay = Replay(found.header.producer, lane_of=lane_of(kit).lane_of, cache=store.cache, keys=store.keys)
    return found, replay, found.read(found.begins)[0]


async def test_a_spool_that_is_full_counts_what_it_cannot_keep(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "SPOOL_BYTES_MAX", 600)
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        kept = 0
        while spools(tmp_path) == [] or _size(tmp_path) <= 600:
            await kit.record("acme", "tokens", 1)
            kept += 1
        with pytest.raises(StoreError, match="the spool is full"):
            await kit.record("acme", "tokens", 1)
        assert lane_of(kit).lost == 1
        assert "is full, and usage is lost (1 settlements so far)" in caplog.text
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (kept, 0)
