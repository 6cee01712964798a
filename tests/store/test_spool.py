"""The spool: usage of an outage waits on disk and is sent once, whoever is killed when."""

# pyright: reportPrivateUsage=false
# A few tests cut what is not finished, which nothing shows.

from __future__ import annotations

import asyncio
import json
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from faults import Client, eventually, kit_at, metered, settled, used
from meterkit.redis import producer
from meterkit.store import frames
from meterkit.store.settlement import Settlement
from meterkit.store.used import Used
from proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from meterkit import MeterKit
    from meterkit.redis.lane import Lane
    from servers import Server

pytestmark = [pytest.mark.anyio]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup is shorter here."""
    monkeypatch.setattr(producer, "_SPILL_AFTER_S", 0.05)


def lane_of(kit: MeterKit) -> Lane:
    return kit.store.lanes[asyncio.get_running_loop()]


def spools(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def settle(kit: MeterKit, customer: str, quantity: int) -> None:
    """Record without waiting, as the end of a request does."""
    view = kit.store.cache.get(customer)
    kit.store.settle(lane_of(kit), Settlement(view, used=Used(recorded={"tokens": quantity})))


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


async def test_i9_usage_of_an_outage_goes_to_the_spool_and_is_sent_once(
    valkey: Server, tmp_path: Path
) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        app = metered(kit)
        assert await Client(app).get("acme") == 200
        await settled(kit)
        await away(kit, proxy)
        for n in range(50):
            assert await Client(app).get(f"customer-{n % 7}") == 200
        await eventually(lambda: sum(path.stat().st_size for path in spools(tmp_path)) > 3000)
        assert all(queue.unsettled == 0 for queue in lane_of(kit).queues)
        assert lane_of(kit).unsettled == 50
        await back(kit, proxy)
        assert sum([(await used(kit, f"customer-{n}"))[0] for n in range(7)]) == 50
        assert await used(kit, "acme") == (1, 0)
        await eventually(lambda: spools(tmp_path) == [])
        assert lane_of(kit).lost == 0


async def test_i9_what_was_on_its_way_when_the_store_went_is_sent_once_whether_it_was_applied_or_not(
    valkey: Server, tmp_path: Path
) -> None:
    for mode in ("drop_reply", "blackhole", "cut"):
        async with outage(valkey, tmp_path) as (kit, proxy):
            customer = f"of-{mode}"
            await kit.record(customer, "tokens", 1)
            await proxy.set(mode, cut_after=5)
            for _ in range(20):
                settle(kit, customer, 10)
            await asyncio.sleep(0)
            lane = lane_of(kit)
            await eventually(lambda lane=lane: not lane.connected)  # type: ignore[misc]
            await proxy.set("refuse")
            for _ in range(20):
                settle(kit, customer, 100)
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
            settle(kit, "acme", 1)
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (20, 0)
        assert spools(tmp_path) == []


async def test_i11_what_is_recorded_while_the_store_is_away_is_on_disk_before_that_is_told(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        await kit.record("acme", "tokens", 7, event_id="once")
        (file,) = spools(tmp_path)
        assert b'"recorded":{"tokens":7}' in file.read_bytes()
        await kit.record("acme", "tokens", 7, event_id="once")
        assert "has not acknowledged" not in caplog.text
        await back(kit, proxy)
        assert await used(kit, "acme", "tokens") == (7, 0)


async def test_i11_a_kit_that_stops_without_its_store_leaves_what_waits_to_the_next(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(valkey, tmp_path) as (kit, proxy):
        await away(kit, proxy)
        for n in range(30):
            settle(kit, f"customer-{n % 3}", 5)
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


async def test_a_spool_is_this_users_alone_and_says_nothing_that_it_need_not(
    valkey: Server, tmp_path: Path
) -> None:
    directory = tmp_path / "state" / "meterkit"
    async with outage(valkey, directory) as (kit, proxy):
        await away(kit, proxy)
        await kit.record("acme", "tokens", 7)
        (file,) = spools(directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_bytes().startswith(b"meterkit spool 1\n")
        (record,) = frames.split(file.read_bytes()[_begins(file) :])[0]
        found = json.loads(record)
        assert found.keys() == {"n", "c", "at", "recorded", "rated"}
        await back(kit, proxy)


def _begins(file: Path) -> int:
    return frames.Header.read(file.read_bytes())[1]
