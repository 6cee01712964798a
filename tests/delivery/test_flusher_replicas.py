"""A store that has a replica, with a file or without one: what is sent is known there before."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk, until
from faults.refusals import stopped
from meterkit import StoreError
from servers.stores import spawn_server

if TYPE_CHECKING:
    from collections.abc import Generator

    from servers.stores import Server

pytestmark = pytest.mark.anyio


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
