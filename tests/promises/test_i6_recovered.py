"""I6, I11: after a loss `recover` ends with the truth where there is an audit log, and never beyond it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from drivers.delivery import kit_for
from drivers.restorable_kit import House, Told, drained, hours_later, linked, recover, settings_of
from drivers.sampled import whole
from faults.proxy import TcpProxy
from faults.refusals import eventually
from meterkit import StoreError
from servers.stores import spawn_server

pytestmark = pytest.mark.anyio
with_and_without = pytest.mark.parametrize("audited", [False, True])
audited_or_whole = pytest.mark.parametrize("audited", [True, whole(False)])


def settled(told: Told) -> list[tuple[int, int | None, int, int, int]]:
    """Parked units that `recover` has settled; with an audit database the flusher has settled them before."""
    return [(one.parked, one.unknown, one.billed, one.sent, one.lost) for one in told.recovered]


@with_and_without
async def test_i6_i11_a_backup_one_hour_old(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    async with house.open(100, **settings) as (kit, _):
        await house.deliver_after_back_up(kit, 50)
        await kit.correct("acme", {"requests": 20}, reason="counted twice", correction_id="one")
        house.clock.advance(timedelta(minutes=5))
        assert (await kit.flush(everything=True)).delivered == 1
        await kit.record("acme", "requests", 7)
        await drained(kit)
    house.restore(after=timedelta(minutes=50))
    async with house.open(**settings) as (kit, _):
        await kit.record("zeta", "requests", 9)
        await house.settle(kit)
        assert (house.billed("acme"), house.billed("zeta")) == (130, 9)
        told = await recover(kit)
        # 100 of the 150 that Stripe has had were pending in the backup, and 50 came after it.
        assert settled(told) == [(100, 150, 100, 0, 50)] * (not audited)
        await hours_later(house, kit)
        assert house.billed("acme") == (137 if audited else 130)
        assert [(one.delivered, one.parked) for one in told.rebuilt] == [(30, 7)] * audited
        assert (await kit.outbox.list(), await recover(kit)) == ([], (([], []) if audited else ([], ())))


@audited_or_whole
async def test_i6_i11_usage_of_a_backup_sealed_with_later_usage(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    async with house.open(100, **settings) as (kit, _):
        # Another 60 units are delivered, and what was pending with them is: 160 in one intent.
        await house.deliver_after_back_up(kit, 60)
        house.clock.advance(timedelta(minutes=55))
        await drained(kit)
    house.restore()
    async with house.open(**settings) as (kit, _):
        await house.settle(kit)
        await kit.record("acme", "requests", 30)
        assert settled(await recover(kit)) == [(100, 160, 100, 0, 60)] * (not audited)
        await hours_later(house, kit)
        # What came after the restore is sent with no person's help, whatever was parked.
        assert (house.billed("acme"), await kit.outbox.list()) == (190, [])


@audited_or_whole
async def test_i6_i11_usage_between_restart_and_first_flush(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    async with house.open(100, **settings) as (kit, _):
        await house.deliver_after_back_up(kit, 50)
        await kit.record("acme", "requests", 7)
        await drained(kit)
    house.restore(after=timedelta(minutes=50))
    async with house.open(**settings) as (kit, _):
        await kit.record("acme", "requests", 9)  # It is sealed with the 100 of the backup.
        await house.settle(kit)
        assert settled(await recover(kit)) == [(109, 150, 109, 0, 41)] * (not audited)
        await hours_later(house, kit)
        assert (house.billed("acme"), await kit.outbox.list()) == ((166 if audited else 150), [])


@audited_or_whole
async def test_i6_i11_a_store_that_is_emptied(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    async with house.open(100, **settings) as (kit, server):
        assert (await kit.flush(everything=True)).delivered == 1
        await kit.record("acme", "requests", 20)
        await drained(kit)
        server.ask("FLUSHALL")
        house.clock.advance(timedelta(minutes=5))
        await linked(kit)
        told = await recover(kit)
        assert [(one.delivered, one.parked) for one in told.rebuilt] == [(100, 20)] * audited
        await hours_later(house, kit)
        await kit.record("acme", "requests", 7)
        await house.settle(kit)
        assert house.billed("acme") == (127 if audited else 107)


@with_and_without
async def test_i6_i11_a_backup_across_a_periods_end(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    house.clock.set(datetime(2031, 6, 30, 23, 0, 30, tzinfo=UTC))
    async with house.open(100, **settings) as (kit, _):
        house.back_up()
        house.clock.advance(timedelta(minutes=30))
        await kit.record("acme", "requests", 10)
        assert (await kit.flush(everything=True)).delivered == 1
        house.clock.set(datetime(2031, 7, 1, 1, 0, 30, tzinfo=UTC))
        await kit.record("acme", "requests", 50)
        assert (await kit.flush(everything=True)).delivered == 1
        await kit.record("acme", "requests", 5)
        await drained(kit)
    house.restore(after=timedelta(hours=1))
    async with house.open(**settings) as (kit, _):
        await kit.flush()  # As each process that delivers does when it starts.
        house.clock.advance(timedelta(seconds=1))
        await kit.record("acme", "requests", 3)
        await house.settle(kit)
        assert house.billed("acme") <= 168
        told = await recover(kit)
        assert sum(one.sent for one in told.recovered) == 0
        await hours_later(house, kit)
        assert (house.billed("acme"), await kit.outbox.list()) == ((168 if audited else 163), [])


@audited_or_whole
async def test_i6_i11_a_stale_replica_that_is_promoted(house: House, audited: bool) -> None:
    settings = settings_of(house.data.parent, audited=audited)
    with spawn_server() as master, spawn_server("--replicaof", f"127.0.0.1 {master.port}") as replica:
        await eventually(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
        async with (
            TcpProxy(master.port) as address,
            kit_for(address.url, house.stripe, clock=house.clock, **settings) as kit,
        ):
            await linked(kit)
            await kit.record("acme", "requests", 100)
            assert master.command("WAIT", 1, 5_000) == 1
            replica.command("REPLICAOF", "NO", "ONE")
            await kit.record("acme", "requests", 20)
            assert (await kit.flush(everything=True)).delivered == 1
            await kit.record("acme", "requests", 7)
            await drained(kit)
            vars(address)["_target_port"] = replica.port
            await address.set("reset")
            await address.set("pass")
            lane = kit.store.lanes[asyncio.get_running_loop()]
            await eventually(lambda: lane.connected and lane.lost == 2)  # Nothing was recorded since.
            with suppress(StoreError):  # By a connection that was reset.
                await kit.flush()
            await house.settle(kit)
            assert house.billed("acme") == 120
            told = await recover(kit)
            assert settled(told) == [(100, 120, 100, 0, 20)] * (not audited)
            await hours_later(house, kit)
            assert [(one.delivered, one.parked) for one in told.rebuilt] == [(20, 7)] * audited
            assert (house.billed("acme"), await kit.outbox.list()) == ((127 if audited else 120), [])
