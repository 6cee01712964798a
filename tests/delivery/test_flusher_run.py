"""Running flushers: no error ends one, a death bills nothing twice, and what the disk must have first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from drivers.delivery import NOW, Desk, WatchedTransport, desk, flusher_of, until
from drivers.sampled import whole
from drivers.workers import workers
from faults.inner_steps import replaced
from faults.refusals import stopped
from meterkit import StoreError
from servers.stores import Server, redis_binary, spawn_server

pytestmark = pytest.mark.anyio


async def test_i9_a_flusher_unsure_of_the_store_delivers_later(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R6: what went wrong before the first pass ended it.
    async def fail(_: object) -> None:
        raise RuntimeError("INFO cannot be read")

    replaced(monkeypatch, "the store is asked whether to deliver", fail)
    async with desk(store_url, flush_interval=0.05) as at:
        await at.use("acme", requests=6)
        at.clock.advance(timedelta(seconds=1))
        running = asyncio.create_task(at.flusher.run(every_s=0.01))
        await until(lambda: at.accepted("acme") == 6)
        at.flusher.stop()
        await running
    assert "INFO cannot be read" in caplog.text


async def test_an_error_of_the_callback_ends_the_flusher(at: Desk) -> None:
    # R6: who reads the reports is gone; whoever started it must hear of that.
    def close(_: object) -> None:
        raise BrokenPipeError

    with anyio.fail_after(240), pytest.raises(BrokenPipeError):
        await at.flusher.run(every_s=0.01, told=close)


@pytest.mark.usefixtures("valkey")
async def test_a_restart_is_logged_once_for_all_shards(at: Desk, caplog: pytest.LogCaptureFixture) -> None:
    customers = [f"c{number}" for number in range(12)]
    await at.link(*customers)
    await at.flush()
    admin = await at.kit.store.admin()
    for shard in range(at.kit.store.keys.shards):
        await admin.ask(admin.client.hset(at.kit.store.keys.shard(shard, "life"), "known", "another"))
    for customer in customers:
        await at.kit.record(customer, "requests", 6)
    await at.flush(after=timedelta(minutes=5))
    assert caplog.text.count("has started since the last delivery") == 1
    at.emulator.fail_next("error", status=401, times=None, path="*")
    at.clock.advance(timedelta(minutes=10))
    for _ in range(3):
        await at.flush()
    assert caplog.text.count("because Stripe cannot be compared") == 1
    at.emulator.clear_faults()
    await at.flush(everything=True)
    assert [at.accepted(customer) for customer in customers] == [6] * len(customers)


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("transport", ["v1", "v2-stream"])
@pytest.mark.parametrize("point", [whole("leased"), "sent", whole("acknowledged")])
async def test_i6_the_next_process_delivers_a_killed_ones_rest_once(
    valkey: Server, store_url: str, point: str, transport: str
) -> None:
    settings: dict[str, Any] = {"shards": 1, "stripe_transport": transport}
    async with desk(store_url, **settings) as at:
        used = {"acme": 5, "zeta": 6}
        for customer, quantity in used.items():
            await at.use(customer, requests=quantity)
        options = {"store": store_url, "stripe": at.url, "now": NOW.isoformat(), "settings": settings}
        async with workers(1, **options, crash=point) as (doomed,):
            with pytest.raises(EOFError, match="-9"):
                await doomed.ask("flush")
        leased = sum([(await at.kit.usage(name))["meters"]["requests"]["leased"] for name in used])
        # The first call of a process is alone.
        assert leased == 0 if point == "acknowledged" else leased in {5, 6}

        # Its lease outlives it, for at most a minute.
        assert 0 < valkey.command("PTTL", "mk:{0}:lease") <= 60_000
        before = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
        assert len(at.emulator.requests) == before
        valkey.command("PEXPIRE", "mk:{0}:lease", 1)
        await until(lambda: valkey.command("EXISTS", "mk:{0}:lease") == 0)

        assert (await at.flush(everything=True)).left == 0
        usage = [(await at.kit.usage(name))["meters"]["requests"]["delivered"] for name in used]
        assert usage == [5, 6]
    assert ({name: at.accepted(name) for name in used}, len(at.emulator.events)) == (used, 2)


async def two_to_send(at: Desk, sleep: timedelta) -> Any:
    """One that Stripe certainly does not have, and behind it one that it has, as no reply has said.

    The machine is suspended before the next call of the flusher.
    """
    way = WatchedTransport(at.transport, lambda _: None)
    flusher = flusher_of(at.kit, way, calls_at_once=1)
    await at.link("acme", "zeta")
    await at.use("mira", requests=1)
    assert (await flusher.flush(everything=True)).delivered == 1
    at.emulator.fail_next("error", when="after", status=500, customer="cus_acme")
    at.emulator.fail_next("error", status=429, customer="cus_acme")  # Else it is sent after all others.
    at.emulator.fail_next("error", status=429, customer="cus_zeta")
    await at.kit.record("acme", "requests", 6)
    await flusher.flush(everything=True, timeout_s=0)
    at.clock.advance(timedelta(seconds=30))
    # The second try waits longer for the third than a first one for the second.
    await at.kit.record("zeta", "requests", 2)
    await flusher.flush(everything=True, timeout_s=0)
    assert at.emulator.faults == ()
    at.clock.advance(timedelta(minutes=1))

    def awake(_: object) -> None: ...

    def sleep_once(_: object) -> None:
        way.before = awake
        at.clock.advance(sleep)

    way.before = sleep_once
    return flusher


async def test_i6_a_lease_before_a_day_of_sleep_sends_nothing(store_url: str) -> None:
    # R7, F-58: the monotonic clock stands still meanwhile, and Stripe forgets the identifier.
    async with desk(store_url, shards=1) as at:
        flusher = await two_to_send(at, timedelta(hours=25))
        report = await flusher.flush(everything=True)
        assert (report.delivered, report.parked) == (1, 1)
    assert (at.accepted("zeta"), at.accepted("acme")) == (2, 6)


async def test_i6_a_lease_before_a_minute_of_sleep_is_left(store_url: str) -> None:
    # Nobody has the lease now; somebody may have had it, and have sent the other one meanwhile.
    async with desk(store_url, shards=1) as at:
        flusher = await two_to_send(at, timedelta(minutes=1))
        before = len(at.emulator.requests)
        await flusher.flush()
        assert len(at.emulator.requests) == before + 1
        await flusher.flush()
        assert len(at.emulator.requests) == before + 2
    assert (at.accepted("zeta"), at.accepted("acme")) == (2, 6)


@asynccontextmanager
async def desk_on(*options: str, binary: Path | None = None) -> AsyncGenerator[tuple[Server, Desk]]:
    """A server with these options, and a desk on it where acme has used 6 requests."""
    with spawn_server(*options, binary=binary) as server:
        async with desk(server.url) as at:
            await at.use("acme", requests=6)
            yield server, at


async def test_where_the_disk_does_not_get_it_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    # F-14: the cause is named.
    monkeypatch.setattr("meterkit.redis.durability._WAIT_MS", 50)
    async with desk_on("--appendonly", "yes", "--appendfsync", "no") as (server, at):
        with pytest.raises(StoreError, match=r"appendfsync no: .*set appendfsync everysec"):
            await at.flush(everything=True)
        assert at.emulator.requests == ()
        assert (await at.kit.usage("acme"))["meters"]["requests"]["leased"] == 6
        server.command("CONFIG", "SET", "appendfsync", "always")
        await at.flush(everything=True)
        assert at.accepted("acme") == 6


async def test_two_seconds_pass_though_the_kits_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    # F-127: nothing was ever delivered, and `flush(everything=True)` waited for 300 s.
    monkeypatch.setattr("meterkit.outbox.outbox.SURELY_ON_DISK_MS", 20)
    async with desk_on("--appendonly", "yes") as (server, at):
        server.command("ACL", "SETUSER", "default", "-waitaof")
        report = await at.flush(everything=True)
        assert (report.sealed, report.delivered, report.left, at.accepted("acme")) == (1, 1, 0, 6)


async def test_one_flush_waits_until_what_it_finds_is_surely_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.outbox.outbox.SURELY_ON_DISK_MS", 500)
    monkeypatch.setattr("meterkit.delivery.flusher._YOUNG_S", 0.6)
    async with desk_on("--appendonly", "yes") as (server, at):
        server.command("ACL", "SETUSER", "default", "-waitaof")
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.sealed, report.delivered) == (1, 0)
        await at.flush()
        assert at.accepted("acme") == 6


async def test_what_waits_for_a_retry_is_tried_at_once_there_too() -> None:
    # F-5d: its age went by when it was due, which lies ahead of a retry: nothing was ever tried.
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH")
    async with desk_on("--appendonly", "yes", binary=binary) as (server, at):
        if not server.command("INFO", "server")["redis_version"].startswith("7.0"):
            pytest.skip("this redis-server knows WAITAOF")
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.sealed, report.delivered) == (1, 0)  # It may not be on disk.
        at.clock.advance(timedelta(seconds=3))
        at.emulator.fail_next("error", status=429)
        assert (await at.flush()).retried == 1
        report = await at.flush()
        assert (report.retried, report.delivered) == (0, 0)  # It is not due.
        report = await at.flush(everything=True, timeout_s=0)
        assert (report.delivered, report.left, at.accepted("acme")) == (1, 0, 6)


@pytest.mark.parametrize(
    "options", [(), ("--appendonly", "yes", "--appendfsync", "always")], ids=["no file", "a file, too"]
)
async def test_i6_nothing_is_sent_before_the_replica_has_its_lease(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    # F-87: a lease that a failover forgets is a bill that may be sent twice. F-140: nor is a file enough.
    async with desk_on(*options) as (master, at):
        with spawn_server("--replicaof", f"127.0.0.1 {master.port}") as replica:
            await until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
            await until(lambda: master.command("INFO", "replication")["connected_slaves"] == 1)
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
