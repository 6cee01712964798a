"""I6, I11: a store that comes back without the last of what it knew bills nothing twice, and tells of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from drivers.delivery import Caplog, kit_for
from drivers.restorable_kit import CUSTOMERS, House, linked
from faults.proxy import TcpProxy
from faults.refusals import eventually
from meterkit import StoreError
from servers.stores import spawn_server

pytestmark = pytest.mark.anyio


async def test_i6_usage_pending_in_a_backup_is_not_billed_again(house: House, caplog: Caplog) -> None:
    async with house.open(100) as (kit, _):
        await house.deliver_after_back_up(kit, 50)
    house.restore(after=timedelta(hours=1))
    async with house.open() as (kit, _):
        await kit.record("zeta", "requests", 7)
        report = await house.settle(kit)
        assert (house.billed("acme"), house.billed("zeta")) == (150, 7)
        # What was lost is told as a number, and what may be among it waits for a person.
        (kept,) = report.undelivered
        assert (kept.customer, kept.quantity, kept.state) == ("acme", 100, "parked")
        assert "Stripe has 150 units of api_requests more" in kept.why
        assert "has lost records of customer 'acme': Stripe has 150 units of api_requests more" in caplog.text
        (entry,) = [entry for entry in await kit.customers.history("acme") if entry.kind == "intent"]
        assert entry.cause == "reconcile"
        # What comes from now on is billed as ever.
        await kit.record("acme", "requests", 30)
        await house.settle(kit)
    assert house.billed("acme") == 180


@pytest.mark.parametrize("hours", [1, 30])
async def test_i6_usage_sealed_in_a_backup_is_not_billed_again(house: House, hours: int) -> None:
    async with house.open(100) as (kit, _):
        house.emulator.fail_next("error", status=401)  # Refused for certain: it counts as never tried.
        await kit.flush(everything=True, timeout_s=0)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))
        assert (await kit.flush(everything=True)).delivered == 1
    house.restore(after=timedelta(hours=hours))
    async with house.open() as (kit, _):
        # Its minute says what it is: nobody need look at it.
        report = await house.settle(kit)
        assert (report.left, report.undelivered) == (0, [])
        assert (await kit.usage("acme"))["meters"]["requests"]["delivered"] == 100
    assert house.billed("acme") == 100


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
async def test_i6_a_truncated_append_only_file_bills_nothing_twice(house: House, part: float) -> None:
    async with house.open(100) as (kit, _):
        before = house.written()
        assert (await kit.flush(everything=True)).delivered == 1
    house.cut(before + int((house.written() - before) * part))
    house.clock.advance(timedelta(hours=25))
    async with house.open() as (kit, _):
        await kit.record("zeta", "requests", 7)
        for _ in range(2):
            await house.settle(kit)
            house.clock.advance(timedelta(hours=27))
    assert (house.billed("acme"), house.billed("zeta")) == (100, 7)


async def test_i6_a_lossless_restart_delays_delivery_by_two_minutes(house: House) -> None:
    async with house.open(100) as (kit, _):
        house.emulator.fail_next("drop", when="after")
        await kit.flush(everything=True, timeout_s=0)
        await kit.record("zeta", "requests", 7)
    async with house.open() as (kit, _):
        # Stripe counts an identifier once: what was tried before need not wait.
        report = await kit.flush(everything=True, timeout_s=0)
        assert (report.delivered, report.left) == (1, 1)
        house.clock.advance(timedelta(seconds=60))
        assert (await kit.flush(everything=True, timeout_s=0)).delivered == 0
        house.clock.advance(timedelta(seconds=60))
        report = await kit.flush(everything=True, timeout_s=0)
        assert (report.delivered, report.left, report.undelivered) == (1, 0, [])
        await kit.record("zeta", "requests", 8)
        assert (await kit.flush(everything=True, timeout_s=0)).delivered == 1
    assert (house.billed("acme"), house.billed("zeta")) == (100, 15)


async def test_i6_a_restart_delays_a_busy_customer_five_minutes(house: House) -> None:
    async with house.open(100):
        pass
    async with house.open() as (kit, _):
        # More than a minute can take is always pending.
        for _ in range(32):
            await kit.record("acme", "requests", 1)
            await kit.flush(everything=True, timeout_s=0)
            house.clock.advance(timedelta(seconds=10))
        assert house.billed("acme") > 100
        await house.settle(kit)
    assert house.billed("acme") == 132


async def test_i6_a_customer_unknown_to_stripe_delays_no_other(house: House) -> None:
    async with house.open() as (kit, _):
        await linked(kit)
        for customer in CUSTOMERS:
            await kit.record(customer, "requests", 5)
    async with house.open() as (kit, server):
        await kit.customers.link("zeno", "cus_zeno", force=True)
        await kit.record("zeno", "requests", 5)
        server.ask("HSET", kit.store.keys.customer("zeno").totals, "damaged|e", "x")
        await kit.flush()
        house.clock.advance(timedelta(minutes=2))
        path = f"/v1/billing/meters/{house.meters[0]}/event_summaries"
        house.emulator.fail_next("error", status=400, path=path)
        report = await house.settle(kit)
        (kept,) = report.undelivered
        assert (kept.quantity, kept.state) == (5, "parked")
        assert "Stripe does not say whether it has this" in kept.why
        assert [one.customer for one in report.unsealed] == ["zeno"]
    assert sorted(map(house.billed, CUSTOMERS)) == [0, 5]


async def test_i6_without_stripes_summaries_nothing_new_is_sent(house: House) -> None:
    async with house.open(100):
        pass
    async with house.open() as (kit, _):
        house.emulator.fail_next("error", status=403, path="/v1/billing/meters", times=None)
        assert ((await house.settle(kit)).left, house.billed("acme")) == (1, 0)
        house.emulator.clear_faults()
        assert (await house.settle(kit)).left == 0
    assert house.billed("acme") == 100


async def test_i6_i11_a_replica_promoted_in_a_partition_bills_once(house: House, caplog: Caplog) -> None:
    with spawn_server() as master, spawn_server("--replicaof", f"127.0.0.1 {master.port}") as replica:
        await eventually(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
        async with (
            TcpProxy(master.port) as address,
            kit_for(address.url, house.stripe, clock=house.clock) as kit,
        ):
            await linked(kit)
            await kit.record("acme", "requests", 100)
            assert master.command("WAIT", 1, 5_000) == 1
            # From here on they know nothing of each other; the app and the flusher are with the old one.
            replica.command("REPLICAOF", "NO", "ONE")
            await kit.record("acme", "requests", 20)
            assert (await kit.flush(everything=True)).delivered == 1
            vars(address)["_target_port"] = replica.port
            await address.set("reset")
            await address.set("pass")
            await kit.record("zeta", "requests", 7)
            with suppress(StoreError):  # By a connection that was reset.
                await kit.flush()
            report = await house.settle(kit)
            await kit.record("acme", "requests", 5)  # The writer reappears.
            await house.settle(kit)
            lost = kit.store.lanes[asyncio.get_running_loop()].lost
    assert (house.billed("acme"), house.billed("zeta")) == (125, 7)
    assert [(kept.customer, kept.quantity) for kept in report.undelivered] == [("acme", 100)]
    assert (lost, "settlements lost: 1 " in caplog.text) == (1, True)


async def test_i6_i11_an_emptied_store_bills_once_and_reports_the_loss(house: House, caplog: Caplog) -> None:
    async with house.open(100) as (kit, server):
        assert (await kit.flush(everything=True)).delivered == 1
        await kit.record("acme", "requests", 20)
        server.ask("FLUSHALL")
        house.clock.advance(timedelta(minutes=5))
        # The writer reappears; the store has no record of it any more.
        await kit.record("acme", "requests", 30)
        lost = kit.store.lanes[asyncio.get_running_loop()].lost
        await linked(kit)
        await kit.record("acme", "requests", 7)
        assert (await house.settle(kit)).left == 0
    # 20 are lost; of the 100 nobody bills anything again.
    assert (house.billed("acme"), lost, "settlements lost: 2 " in caplog.text) == (137, 2, True)
