"""``meterkit doctor`` where the store is several servers: each is looked at, and what holds them together."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import CATALOG
from faults.refusals import stopped
from meterkit import MeterKit
from servers.clusters import spawn_cluster, spawn_watched

if TYPE_CHECKING:
    from meterkit import Health

pytestmark = pytest.mark.anyio


async def seen_at(url: str) -> Health:
    kit = MeterKit(CATALOG, redis_url=url, shards=16, flush=False)
    try:
        return await kit.health()
    finally:
        await kit.store.stop()


def problems(found: Health) -> list[str]:
    return [f"{finding.check}: {finding.problem}" for finding in found.findings]


@pytest.mark.dear("a cluster is started")
async def test_each_node_of_a_cluster_is_looked_at() -> None:
    with spawn_cluster("--appendonly", "yes") as cluster:
        found = await seen_at(cluster.url)
        assert problems(found) == []
        assert found.looked_at["slots"] == "3 nodes"
        for node in cluster.masters:
            assert f"at redis://127.0.0.1:{node.port}/0" in found.looked_at["server"]
        evicting, dead, _ = cluster.masters
        evicting.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        dead.signal(signal.SIGKILL)
        dead.process.wait()
        eviction, away = sorted(problems(await seen_at(cluster.url)))
        assert eviction.startswith(f"eviction: redis://127.0.0.1:{evicting.port}/0: the server's maxmemory")
        assert away.startswith(f"server: the store at redis://127.0.0.1:{dead.port}/0 failed: ")


async def test_a_slot_that_nobody_has_is_named() -> None:
    with spawn_cluster("--appendonly", "yes", "--cluster-require-full-coverage", "no") as cluster:
        node = cluster.owner("mk:{3}:x")
        node.command("CLUSTER", "DELSLOTS", node.command("CLUSTER", "KEYSLOT", "{3}"))
        (problem,) = [text for text in problems(await seen_at(cluster.url)) if text.startswith("slots: ")]
        assert problem == "slots: no node has the slots of mk:{3}:: what is asked of them is refused"


async def test_sentinels_and_a_replica_that_are_away_are_named() -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        found = await seen_at(watched.url)
        assert problems(found) == []
        master = watched.master
        assert found.looked_at["sentinels"] == f"127.0.0.1:{master.port}"
        replica = next(server for server in watched.servers if server is not master)
        watched.sentinels[0].stop()
        with stopped(replica):
            master.command("CLIENT", "KILL", "TYPE", "replica")
            replication, sentinel = sorted(problems(await seen_at(watched.url)))
        assert replication.startswith("replication: no replica follows the server")
        where = f"sentinels: the sentinel at 127.0.0.1:{watched.sentinels[0].port} names no master: "
        assert sentinel.startswith(where)
