"""What the store must have on disk before anything is sent; other makes of server."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk
from meterkit import StoreError
from servers.stores import redis_binary, spawn_server

if TYPE_CHECKING:
    from collections.abc import Iterator

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
