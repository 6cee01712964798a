"""What the disk and the replica of the store must have before anything is sent."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk, until
from faults.refusals import stopped
from meterkit import StoreError
from servers.stores import redis_binary, spawn_server

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from servers.stores import Server

pytestmark = pytest.mark.anyio


async def test_where_the_disk_does_not_get_it_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    # F-14: the cause is named.
    monkeypatch.setattr("meterkit.redis.durability._WAIT_MS", 50)
    with spawn_server("--appendonly", "yes", "--appendfsync", "no") as server:
        async with desk(server.url) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            with pytest.raises(StoreError, match=r"appendfsync no: .*set appendfsync everysec"):
                await at.flush(everything=True)
            assert at.emulator.requests == ()
            assert (await at.kit.usage("acme"))["meters"]["requests"]["leased"] == 6
            server.command("CONFIG", "SET", "appendfsync", "always")
            await at.flush(everything=True)
        assert at.accepted("acme") == 6


@pytest.fixture
def redis_70() -> Iterator[Server]:
    """A server with an append-only file that cannot say what of it is on disk."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH")
    with spawn_server("--appendonly", "yes", binary=binary) as server:
        if not server.command("INFO", "server")["redis_version"].startswith("7.0"):
            pytest.skip("this redis-server knows WAITAOF")
        yield server


async def test_two_seconds_pass_though_the_kits_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # F-127: nothing was ever delivered, and `flush(everything=True)` waited for 300 s.
    monkeypatch.setattr("meterkit.outbox.outbox._SURELY_ON_DISK_MS", 20)
    with spawn_server("--appendonly", "yes") as server:
        server.command("ACL", "SETUSER", "default", "-waitaof")
        async with desk(server.url) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            report = await at.flush(everything=True)
            assert (report.sealed, report.delivered, report.left) == (1, 1, 0)
        assert at.accepted("acme") == 6


async def test_one_flush_waits_until_what_it_finds_is_surely_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.outbox.outbox._SURELY_ON_DISK_MS", 500)
    monkeypatch.setattr("meterkit.delivery.flusher._YOUNG_S", 0.6)
    with spawn_server("--appendonly", "yes") as server:
        server.command("ACL", "SETUSER", "default", "-waitaof")
        async with desk(server.url) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            await at.flush(everything=True, timeout_s=0)
            await at.flush()
        assert at.accepted("acme") == 6


async def test_what_waits_for_a_retry_is_tried_at_once_there_too(redis_70: Server) -> None:
    # F-5d: its age went by when it was due, which lies ahead of a retry: nothing was ever tried.
    async with desk(redis_70.url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.sealed, report.delivered) == (1, 0)  # It may not be on disk.
        at.clock.advance(timedelta(seconds=3))
        at.emulator.fail_next("error", status=429)
        assert (await at.flush()).retried == 1
        report = await at.flush()
        assert (report.retried, report.delivered) == (0, 0)  # It is not due.
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.delivered, report.left) == (1, 0)
    assert at.accepted("acme") == 6


@contextmanager
def replicated(*options: str) -> Generator[tuple[Server, Server]]:
    """A server that has these options, and its replica."""
    with spawn_server(*options) as master, spawn_server("--replicaof", f"127.0.0.1 {master.port}") as replica:
        yield master, replica


@pytest.mark.parametrize(
    "options", [(), ("--appendonly", "yes", "--appendfsync", "always")], ids=["no file", "a file, too"]
)
async def test_i6_nothing_is_sent_before_the_replica_has_its_lease(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    # F-87: a lease that a failover forgets is a bill that may be sent twice. F-140: nor is a file enough.
    with replicated(*options) as (master, replica):
        await until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
        await until(lambda: master.command("INFO", "replication")["connected_slaves"] == 1)
        async with desk(master.url) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            assert (await at.flush(everything=True)).delivered == 1
            await at.kit.record("acme", "requests", 8)
            with stopped(replica), monkeypatch.context() as hurried:
                hurried.setattr("meterkit.redis.durability._WAIT_MS", 300)
                with pytest.raises(StoreError, match=r"did not make a lease durable within 0\.3 s"):
                    await at.flush(everything=True, timeout_s=0)
                # The link to a replica that hangs stands: it is not for want of one that nothing is sent.
                assert master.command("INFO", "replication")["connected_slaves"] == 1
                assert (len(at.emulator.requests), at.accepted("acme")) == (1, 6)
            report = await at.flush(everything=True)
            assert (report.delivered, report.left) == (1, 0)
        assert (len(at.emulator.requests), at.accepted("acme")) == (2, 14)
