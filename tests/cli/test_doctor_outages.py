"""What the doctor says of outages: stores that do not serve, nodes and spools that are left alone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.command_line import Shell
from drivers.delivery import CATALOG
from drivers.spools import spool_with
from faults.proxy import TcpProxy
from faults.refusals import stopped
from meterkit import Finding, Health, MeterKit
from meterkit.testing import Clock
from servers.clusters import spawn_cluster, spawn_watched
from servers.stores import spawn_server

pytestmark = pytest.mark.anyio

NOBODY = 65_534


async def seen_at(url: str, **settings: Any) -> Health:
    settings.setdefault("deliver_without_persistence", True)
    kit = MeterKit(CATALOG, redis_url=url, flush=False, **settings)
    try:
        return await kit.health()
    finally:
        await kit.store.stop()


def of_check(check: str, found: Health) -> list[Finding]:
    return [finding for finding in found.findings if finding.check == check]


async def test_an_abandoned_spool_is_found_and_its_cure_sends_it(stored: Shell, tmp_path: Path) -> None:
    spools = tmp_path / "spools"
    stored.environment |= {
        "METERKIT_SPOOL_DIR": str(spools),
        "METERKIT_DELIVER_WITHOUT_PERSISTENCE": "on",
        "METERKIT_STRIPE_API_KEY": "sk_test_1",
        "METERKIT_STRIPE_API_BASE": "http://127.0.0.1:1",
    }
    kit = stored.kit()
    spool_with(kit, spools, "tokens", 7).close()
    done = stored.run("doctor", "--json")
    (finding,) = [one for one in done.json["findings"] if one["check"] == "spool"]
    assert finding["problem"].startswith(f"1 spool of a process that ended is in {spools}, ")
    assert "not billed, until it is sent" in finding["problem"]
    assert finding["cure"].startswith("run `meterkit flush --all` on this host")
    assert done.json["looked_at"]["spool"] == f"1 file in {spools} of this host"
    assert "settlements sent from" in stored.run("flush", "--all", "--timeout", "0.1").out
    done = stored.run("doctor", "--json")
    assert [one for one in done.json["findings"] if one["check"] == "spool"] == []


async def test_unsendable_spools_are_named_with_reason_and_cure(store_url: str, tmp_path: Path) -> None:
    kit = MeterKit(CATALOG, redis_url=store_url, flush=False)
    other = MeterKit(CATALOG, redis_url=store_url, flush=False, key_prefix="other")
    third = MeterKit(CATALOG, redis_url=store_url, flush=False, key_prefix="third")
    old = spool_with(kit, tmp_path, "tokens", 7, days=9)
    foreign = spool_with(other, tmp_path, "tokens", 7, days=1)
    of_third = spool_with(third, tmp_path, "tokens", 7)
    damaged = spool_with(kit, tmp_path, "tokens", 7, days=2)
    for spool in (old, foreign, of_third):
        spool.close()
    damaged.set_aside()
    found = of_check("spool", await seen_at(store_url, spool_dir=tmp_path))
    one, of_another_store, two, three = (finding.problem for finding in found)
    assert one.startswith(f"{foreign.path.name} in {tmp_path}: it belongs to another store: ")
    assert "prefix other" in one
    assert of_another_store.startswith(f"{of_third.path.name} in ")
    assert "prefix third" in of_another_store
    assert two.startswith(f"{old.path} is never sent: it was begun 9 days ago, and the store no longer knows")
    assert three.startswith(str(damaged.path.with_suffix(".damaged")))
    assert "METERKIT_KEY_PREFIX" in found[0].cure
    assert "if it has moved, let its old address lead to the new one" in found[0].cure
    assert found[2].cure.startswith("Check whether its usage is recorded")


async def test_a_process_with_an_old_spool_is_found(store_url: str, tmp_path: Path) -> None:
    kit = MeterKit(CATALOG, redis_url=store_url, flush=False)
    file = spool_with(kit, tmp_path, "tokens", 7)
    assert of_check("spool", await seen_at(store_url, spool_dir=tmp_path)) == []
    later = Clock(datetime.now(UTC) + timedelta(minutes=40))
    (finding,) = of_check("spool", await seen_at(store_url, spool_dir=tmp_path, clock=later))
    assert finding.problem.startswith("a process has a spool of up to 40 min, ")
    file.close()


async def test_an_unwritable_spool_directory_is_found(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for directory, why in ((file / "spools", "is no directory"), (open_to_all, "others may write in the")):
        (finding,) = of_check("spool", await seen_at(store_url, spool_dir=directory))
        assert why in finding.problem
        assert "METERKIT_REDIS_URL" not in finding.problem  # It blamed the setting of another directory.
        assert finding.problem.startswith(f"usage of an outage cannot be spooled to {directory}: ")
        assert finding.cure.startswith("set METERKIT_SPOOL_DIR")
    assert of_check("spool", await seen_at(store_url, spool_dir=tmp_path / "not" / "made")) == []


async def test_a_server_that_takes_no_writes_is_found_with_what_to_do() -> None:
    with spawn_server() as server:
        await seen_at(server.url)  # Nothing is written yet.
        async with MeterKit(CATALOG, redis_url=server.url, flush=False):
            pass
        server.command("CONFIG", "SET", "maxmemory", 1)
        found = await seen_at(server.url)
        (finding,) = of_check("breaker", found)
        assert "it refuses writes, so each process decides without it" in finding.problem
        assert finding.cure.startswith("raise maxmemory")
        (finding,) = of_check("memory", found)
        assert re.fullmatch(
            r"the server uses [\d,]+ bytes, more than its maxmemory of 1: it refuses writes, .*",
            finding.problem,
        )
        server.command("CONFIG", "SET", "maxmemory", 0)
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        (finding,) = of_check("breaker", await seen_at(server.url))
        assert finding.cure.startswith("start its replicas")


async def test_a_server_with_too_many_connections_is_told_apart() -> None:
    with spawn_server("--maxclients", "3") as server, ExitStack() as held:
        for _ in range(3):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        (finding,) = of_check("server", await seen_at(server.url))
        assert finding.problem.endswith("refuses to serve: ERR max number of clients reached")
        assert finding.cure.startswith("raise its maxclients")


async def test_a_server_slower_than_the_store_timeout_is_found() -> None:
    with spawn_server() as server:
        async with MeterKit(CATALOG, redis_url=server.url, flush=False):
            pass
        async with TcpProxy(server.port) as proxy:
            await proxy.set("delay", delay_s=0.08)
            found = await seen_at(proxy.url, store_timeout=0.15, start_timeout=0.3)
            (finding,) = of_check("breaker", found)
            assert "a request waits at most 0.15 s for it (METERKIT_STORE_TIMEOUT)" in finding.problem
            assert of_check("breaker", await seen_at(proxy.url, store_timeout=10.0)) == []


@pytest.mark.dear("servers are started")
async def test_the_servers_disk_and_replica_promises_are_tried() -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        found = await seen_at(watched.url)
        assert found.looked_at["durability"].startswith("WAITAOF and WAIT: on its disk and a replica within ")
        replica = next(server for server in watched.servers if server is not watched.master)
        with stopped(replica):
            (finding,) = of_check("durability", await seen_at(watched.url))
        assert "did not make a lease durable within 5 s: nothing is delivered" in finding.problem
        assert "INFO replication" in finding.cure


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_a_directory_of_somebody_else_is_found(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spools"
    directory.mkdir()
    await asyncio.to_thread(os.chown, directory, NOBODY, NOBODY)
    (finding,) = of_check("spool", await seen_at(store_url, spool_dir=directory))
    assert f"belongs to user {NOBODY}" in finding.problem
    # A volume of Kubernetes is like this at its mount: only an outage said so, when it was too late.
    async with MeterKit(CATALOG, redis_url=store_url, flush=False, spool_dir=directory):
        (logged,) = [one.getMessage() for one in caplog.records if "cannot be spooled" in one.getMessage()]
    assert logged == finding.problem
    hidden = tmp_path / "hidden" / "spools"
    hidden.mkdir(parents=True)
    hidden.parent.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        (finding,) = of_check("spool", await seen_at(store_url, spool_dir=hidden))
    finally:
        os.seteuid(0)
    assert f"spooled to {hidden}: {hidden}: Permission denied" in finding.problem


async def test_who_is_not_let_in_is_told_to_correct_the_password() -> None:
    with spawn_server() as server:
        server.ask("CONFIG", "SET", "requirepass", "right")
        for said in ("", ":wrong@", "nobody:right@"):
            found = await seen_at(f"redis://{said}127.0.0.1:{server.port}/0")
            (finding,) = of_check("server", found)
            assert finding.cure.startswith("correct user and password in METERKIT_REDIS_URL")
            assert "wrong" not in finding.problem


async def test_where_nobody_answers_tls_may_be_what_is_wrong() -> None:
    with spawn_server() as server:
        (finding,) = of_check("server", await seen_at(f"rediss://127.0.0.1:{server.port}/0", store_timeout=5))
        assert finding.cure.endswith("if it does not speak TLS, the URL begins with redis://")
        with stopped(server):
            (finding,) = of_check("server", await seen_at(server.url, store_timeout=5))
        assert finding.cure.endswith("if it expects TLS, the URL begins with rediss://")


def problems(found: Health) -> list[str]:
    return [f"{finding.check}: {finding.problem}" for finding in found.findings]


@pytest.mark.dear("a cluster is started")
async def test_each_node_of_a_cluster_is_looked_at() -> None:
    with spawn_cluster("--appendonly", "yes") as cluster:
        found = await seen_at(cluster.url, shards=16)
        assert problems(found) == []
        assert found.looked_at["slots"] == "3 nodes"
        for node in cluster.masters:
            assert f"at redis://127.0.0.1:{node.port}/0" in found.looked_at["server"]
        evicting, dead, _ = cluster.masters
        evicting.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        dead.signal(signal.SIGKILL)
        dead.process.wait()
        eviction, away = sorted(problems(await seen_at(cluster.url, shards=16)))
        assert eviction.startswith(f"eviction: redis://127.0.0.1:{evicting.port}/0: the server's maxmemory")
        assert away.startswith(f"server: the store at redis://127.0.0.1:{dead.port}/0 failed: ")


async def test_a_slot_that_nobody_has_is_named() -> None:
    with spawn_cluster("--appendonly", "yes", "--cluster-require-full-coverage", "no") as cluster:
        node = cluster.owner("mk:{3}:x")
        node.command("CLUSTER", "DELSLOTS", node.command("CLUSTER", "KEYSLOT", "{3}"))
        (problem,) = [
            text for text in problems(await seen_at(cluster.url, shards=16)) if text.startswith("slots: ")
        ]
        assert problem == "slots: no node serves the slots of mk:{3}:: commands for them are refused"


async def test_sentinels_and_a_replica_that_are_away_are_named() -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        found = await seen_at(watched.url, shards=16)
        assert problems(found) == []
        master = watched.master
        assert found.looked_at["sentinels"] == f"127.0.0.1:{master.port}"
        replica = next(server for server in watched.servers if server is not master)
        watched.sentinels[0].stop()
        with stopped(replica):
            master.command("CLIENT", "KILL", "TYPE", "replica")
            replication, sentinel = sorted(problems(await seen_at(watched.url, shards=16)))
        assert replication.startswith("replication: no replica follows the server")
        where = f"sentinels: the sentinel at 127.0.0.1:{watched.sentinels[0].port} names no master: "
        assert sentinel.startswith(where)
