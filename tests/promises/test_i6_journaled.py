"""I6: after a restore the journal of deliveries settles parked usage without a person, and nothing twice."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from datetime import timedelta

import pytest

from drivers.delivery import Caplog, until
from drivers.restorable_kit import House, drained, elsewhere_sent, hours_later, recover, settings_of
from meterkit import MeterKit

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def audited(house: House, requests: int | None = None) -> AsyncGenerator[MeterKit]:
    """A kit whose journal of deliveries is in the audit database beside the store."""
    async with house.open(requests, **settings_of(house.data.parent, audited=True)) as (kit, _):
        yield kit


EMPTY = "DELETE FROM meterkit_deliveries"
with_and_without = pytest.mark.parametrize("has_journal", [True, False])


def change_journal(house: House, statement: str) -> None:
    with closing(sqlite3.connect(house.data.parent / "audit.db")) as database:
        database.execute(statement)
        database.commit()


async def back_up(house: House) -> None:
    """Have a backup in which 100 units of acme are pending, in the middle of a life with deliveries."""
    async with audited(house, 10) as kit:
        assert (await kit.flush(everything=True)).delivered == 1
        house.clock.advance(timedelta(minutes=5))
        await kit.flush()  # It notes when it delivers.
        await kit.record("acme", "requests", 100)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))


async def deliver_after_backup(house: House) -> None:
    async with audited(house) as kit:
        assert (await kit.flush(everything=True, timeout_s=0)).delivered == 0
        house.clock.advance(timedelta(minutes=10))
        assert (await kit.flush(everything=True)).delivered == 1
    assert house.billed("acme") == 110
    house.clock.advance(timedelta(minutes=5))


@pytest.mark.dear("twenty customers, as the finding has them")
async def test_i6_f_22a_a_journal_settles_usage_of_twenty_customers(house: House, caplog: Caplog) -> None:
    customers = [f"customer{number}" for number in range(20)]
    async with audited(house) as kit:
        for customer in customers:
            house.emulator.add_customer(f"cus_{customer}")
            await kit.customers.link(customer, f"cus_{customer}", force=True)
        await kit.flush()
        for customer in customers:
            await kit.record(customer, "requests", 100)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))
        for customer in customers:
            await kit.record(customer, "requests", 50)
        assert (await kit.flush(everything=True)).delivered == 20
        await drained(kit)
    house.restore(after=timedelta(minutes=50))
    async with audited(house) as kit:
        assert ((await house.settle(kit)).undelivered, await kit.outbox.list()) == ([], [])
        assert {house.billed(customer) for customer in customers} == {150}
        # The log names what only the counters lack, with the command that mends it.
        assert caplog.text.count("Stripe has 100, and 0 are sent; the counters lack 50 units more") == 20
        assert caplog.text.count("`meterkit recover` restores them from the audit log") == 20
        recovered, rebuilt = await recover(kit)
        assert (recovered, [(one.raised, one.delivered) for one in rebuilt]) == ([], [(50, 50)] * 20)
        await hours_later(house, kit)
        assert {house.billed(customer) for customer in customers} == {150}


async def test_i6_units_missing_in_a_journal_and_at_stripe_are_sent(house: House) -> None:
    # Of 100 pending units Stripe got 40 after the backup, as the customer's other units were corrected.
    async with audited(house, 100) as kit:
        house.back_up()
        house.clock.advance(timedelta(minutes=5))
        await kit.correct("acme", {"requests": 60}, reason="counted twice", correction_id="one")
        assert ((await kit.flush(everything=True)).delivered, house.billed("acme")) == (1, 40)
    house.restore(after=timedelta(minutes=5))
    async with audited(house) as kit:
        assert (await house.settle(kit)).undelivered == []
        # The correction is younger than the backup: correct again with the same id.
        assert house.billed("acme") == 100
        await kit.correct("acme", {"requests": 60}, reason="counted twice", correction_id="one")
        house.clock.advance(timedelta(minutes=5))
        await house.settle(kit)
        assert house.billed("acme") == 40


async def test_i6_units_of_another_sender_are_left_to_an_operator(house: House) -> None:
    await back_up(house)
    await elsewhere_sent(house, 40)
    house.restore(after=timedelta(minutes=30))
    async with audited(house) as kit:
        (kept,) = (await house.settle(kit)).undelivered
        assert (kept.quantity, kept.state, house.billed("acme")) == (40, "parked", 10 + 40 + 60)
        assert "Stripe has 40 units of api_requests more than the store knows of" in kept.why
        assert "`meterkit recover` settles" in kept.why
        (one,) = (await recover(kit)).recovered
        assert (one.parked, one.billed, one.sent) == (40, 40, 0)
        assert one.advice.startswith("40 of the billed units are not in the journal")
        await hours_later(house, kit)
        assert (house.billed("acme"), await kit.outbox.list()) == (110, [])


@pytest.mark.parametrize("statement", [EMPTY, "DROP TABLE meterkit_deliveries"])
async def test_i6_a_journal_younger_than_the_backup_proves_nothing(house: House, statement: str) -> None:
    await back_up(house)
    change_journal(house, statement)
    await elsewhere_sent(house, 40)
    house.restore()
    async with audited(house) as kit:
        (kept,) = (await house.settle(kit)).undelivered
        assert (kept.quantity, kept.state, house.billed("acme")) == (100, "parked", 50)


async def test_i6_a_database_down_at_the_restore_settles_later(house: House) -> None:
    await back_up(house)
    await deliver_after_backup(house)
    house.restore()
    database = house.data.parent / "audit.db"
    database.rename(aside := database.with_suffix(".aside"))
    database.mkdir()
    async with audited(house) as kit:
        (kept,) = (await house.settle(kit)).undelivered
        assert (kept.quantity, kept.state) == (100, "parked")
        database.rmdir()
        aside.rename(database)
        house.clock.advance(timedelta(minutes=10))
        assert (await house.settle(kit)).undelivered == []
    assert house.billed("acme") == 110


async def test_i6_recovery_by_hand_and_a_flusher_take_turns(house: House) -> None:
    await back_up(house)
    await deliver_after_backup(house)
    house.restore()
    async with audited(house) as kit:
        key, admin = kit.store.keys.shard(0, "recover:lease"), await kit.store.admin()
        await admin.client.set(key, "a command's", px=60_000)
        assert [kept.state for kept in (await house.settle(kit)).undelivered] == ["parked"]
        await admin.client.delete(key)
        assert (await house.settle(kit)).undelivered == []
    assert house.billed("acme") == 110


# What Stripe's sums decide without a journal.


def rows_in_journal(house: House) -> int:
    """How many rows there are; none before the first write makes the table."""
    with closing(sqlite3.connect(house.data.parent / "audit.db")) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meterkit_deliveries'").fetchone():
            return 0
        found: tuple[int] = database.execute("SELECT count(*) FROM meterkit_deliveries").fetchone()
        return found[0]


async def flushed(house: House, kit: MeterKit) -> None:
    """Deliver what is due, some minutes later, and wait for its row, which the end of a flush may not."""
    before = rows_in_journal(house)
    house.clock.advance(timedelta(minutes=5))
    assert (await kit.flush(everything=True)).delivered == 1
    await until(lambda: rows_in_journal(house) > before)


@pytest.mark.dear("a store is restored, and a day of deliveries compared")
@with_and_without
async def test_i6_units_taken_back_within_an_hour_of_a_long_gap(house: House, has_journal: bool) -> None:
    async with audited(house, 100) as kit:
        await flushed(house, kit)
        await kit.record("acme", "requests", 30)
        house.back_up()
        await flushed(house, kit)
        await kit.correct("acme", {"requests": 30}, reason="counted twice", correction_id="one")
        await flushed(house, kit)
        await drained(kit)
        assert house.billed("acme") == 100
    if not has_journal:  # As where the database was away.
        change_journal(house, EMPTY)
    house.restore(after=timedelta(hours=10))
    async with audited(house) as kit:
        await house.settle(kit)
        # Over hours, +30 and -30 are nothing: the 30 of the backup are sent again.
        assert house.billed("acme") == (100 if has_journal else 130)
        await recover(kit)
        await hours_later(house, kit)
        assert (house.billed("acme"), await kit.outbox.list()) == ((100 if has_journal else 130), [])


@with_and_without
async def test_i6_a_customer_who_was_billed_by_two_stripe_customers(house: House, has_journal: bool) -> None:
    async with house.open(100, **settings_of(house.data.parent, audited=True)) as (kit, server):
        await flushed(house, kit)
        await kit.customers.unlink("acme")
        house.emulator.add_customer("cus_new")
        await kit.customers.link("acme", "cus_new", force=True)
        await kit.record("acme", "requests", 20)
        await flushed(house, kit)
        await kit.record("acme", "requests", 3)
        await drained(kit)
        if not has_journal:  # As where the database was away.
            change_journal(house, EMPTY)
        server.ask("FLUSHALL")
        house.clock.advance(timedelta(minutes=5))
        await kit.customers.link("acme", "cus_new", force=True)
        await recover(kit)
        await hours_later(house, kit)
        # Stripe's sums are of one Stripe customer: of the other's 100 units it has nothing.
        assert (house.billed("acme"), house.billed("new")) == (100, (23 if has_journal else 123))


@with_and_without
async def test_i6_units_that_something_else_has_sent(house: House, has_journal: bool) -> None:
    async with audited(house, 100) as kit:
        await flushed(house, kit)
        await kit.flush()  # It notes when it delivers.
        await kit.record("acme", "requests", 30)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))
        await elsewhere_sent(house, 40)
    if not has_journal:  # As where the database was away.
        change_journal(house, EMPTY)
    house.restore(after=timedelta(minutes=30))
    async with audited(house) as kit:
        await house.settle(kit)
        (one,) = (await recover(kit)).recovered
        # By sums, Stripe may have the 30. The advice names what to bill where another system has sent.
        assert (one.parked, one.unknown, one.billed, one.sent) == (30, 40, 30, 0)
        assert one.advice.startswith("30 of the billed units are not in the journal") == has_journal
        await hours_later(house, kit)
        assert house.billed("acme") == 140
