"""What a process tells of a store that is away and of what waits for it, as it happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from drivers.process_metrics import told
from faults.proxy import TcpProxy
from faults.refusals import eventually, kit_at, settled
from servers.clusters import spawn_watched
from servers.stores import spawn_server

if TYPE_CHECKING:
    from pathlib import Path

    from servers.clusters import Cluster
    from servers.stores import Server

pytestmark = pytest.mark.anyio


def spools(directory: Path) -> list[Path]:
    return list(directory.glob("*.spool"))


async def test_an_outage_is_told_as_it_comes_and_goes(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.producer._SPILL_AFTER_S", 0.05)
    async with (
        TcpProxy(valkey.port) as proxy,
        kit_at(proxy.url, store_timeout=5, spool_dir=tmp_path) as kit,
    ):
        lane = await kit.store.lane()
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (0, 0)
        assert (found["spool_files held"], found["spool_bytes held"]) == (0, 0)
        await proxy.set("refuse")
        await eventually(lambda: lane.is_away)
        await kit.record("acme", "tokens", 7)
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (1, 1)
        assert (found["settlements_waiting"], found["settlements_lost_total"]) == (1, 0)
        assert found["spool_files held"] == 1
        assert found["spool_bytes held"] == sum(path.stat().st_size for path in spools(tmp_path))
        assert "store_replicas" not in found
        await proxy.set("pass")
        await settled(kit)
        await eventually(lambda: not spools(tmp_path))
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (0, 1)
        assert (found["settlements_waiting"], found["spool_files held"]) == (0, 0)


@pytest.mark.dear("two servers are started")
async def test_how_the_store_keeps_what_it_is_told_is_a_number() -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        async with kit_at(watched.url) as kit:
            found = await told(kit)
            assert (found["store_durability WAITAOF and WAIT"], found["store_replicas"]) == (1, 1)
            replica = next(server for server in watched.servers if server is not watched.master)
            replica.stop()
            await asyncio.to_thread(watched.wait_until, lambda: not _replicas(watched.master))
            found = await told(kit)
            assert (found["store_durability WAITAOF"], found["store_replicas"]) == (1, 0)
    with spawn_server("--appendonly", "yes", "--appendfsync", "no") as server:
        async with kit_at(server.url) as kit:
            found = await told(kit)
            # What is never known to be on the disk counts as kept by nobody once it is waited for.
            assert found["store_durability WAITAOF"] + found["store_durability none"] == 1


def _replicas(server: Server) -> int:
    return int(server.command("INFO", "replication")["connected_slaves"])


async def test_each_node_of_a_cluster_counts(cluster: Cluster) -> None:
    async with kit_at(cluster.url) as kit:
        found = await told(kit)
        assert (found["store_durability none"], found["store_replicas"]) == (3, 0)
        assert found["store_breaker_opened_total"] == 0
