"""I6: after a restore the journal of deliveries settles parked usage without a person, and nothing twice."""
# Internals: the lease that a person and a flusher take in turn.

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW
from drivers.emulated_account import unpaced
from drivers.restorable_kit import (
    drained,
    elsewhere_sent,
    hours_later,
    house_at,
    linked,
    recover,
    settings_of,
)
from meterkit.store.tasks import TaskLease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.restorable_kit import House
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the emulator as fast as it answers, not 20 times in a second."""
    unpaced(monkeypatch)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_at(tmp_path, NOW) as made:
        yield made


@asynccontextmanager
async def audited(house: House) -> AsyncGenerator[MeterKit]:
    """A kit whose journal of deliveries is in the audit database beside the store."""
    async with house.open(**settings_of(house.data.parent, audited=True)) as (kit, _):
        yield kit


async def back_up(house: House, pending: int = 100) -> None:
    """Have a backup in which units of acme's are pending, in the middle of a life with deliveries."""
    async with audited(house) as kit:
        await linked(kit)
        await kit.record("acme", "requests", 10)
        assert (await kit.flush(everything=True)).delivered == 1
        house.clock.advance(timedelta(minutes=5))
        await kit.flush()  # It notes when it delivers.
        await kit.record("acme", "requests", pending)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))


@pytest.mark.dear("twenty customers, as the finding has them")
async def test_i6_f_22a_a_journal_settles_usage_of_twenty_customers(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
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
        house.clock.advance(timedelta(minutes=50))
    house.restore()
    async with audited(house) as kit:
        report = await house.settle(kit)
        assert (report.undelivered, await kit.outbox.list()) == ([], [])
        assert {house.billed(customer) for customer in customers} == {150}
        # The log names what only the counters lack, with the command that mends it.
        assert caplog.text.count("Stripe has 100, and 0 are sent; the counters lack 50 units more") == 20
        assert caplog.text.count("`meterkit recover` takes them from the audit log") == 20
        recovered, rebuilt = await recover(kit)
        assert (recovered, [(one.raised, one.delivered) for one in rebuilt]) == ([], [(50, 50)] * 20)
        await hours_later(house, kit)
        assert {house.billed(customer) for customer in customers} == {150}


async def test_i6_units_missing_in_a_journal_and_at_stripe_are_sent(house: House) -> None:
    # Of 100 pending units Stripe got 40 after the backup, as the customer's other units were corrected.
    async with audited(house) as kit:
        await linked(kit)
        await kit.record("acme", "requests", 100)
        house.back_up()
        house.clock.advance(timedelta(minutes=5))
        await kit.correct("acme", {"requests": 60}, reason="counted twice", correction_id="one")
        assert (await kit.flush(everything=True)).delivered == 1
        assert house.billed("acme") == 40
        house.clock.advance(timedelta(minutes=5))
    house.restore()
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
    house.clock.advance(timedelta(minutes=30))
    house.restore()
    async with audited(house) as kit:
        report = await house.settle(kit)
        (kept,) = report.undelivered
        assert (kept.quantity, kept.state, house.billed("acme")) == (40, "parked", 10 + 40 + 60)
        assert "Stripe has 40 more of api_requests than the store knows of" in kept.why
        assert "`meterkit recover` settles" in kept.why
        (one,) = (await recover(kit)).recovered
        assert (one.parked, one.billed, one.sent) == (40, 40, 0)
        assert one.advice.startswith("40 of the billed units are not in the journal")
        await hours_later(house, kit)
        assert (house.billed("acme"), await kit.outbox.list()) == (110, [])


@pytest.mark.parametrize("statement", ["DELETE FROM meterkit_deliveries", "DROP TABLE meterkit_deliveries"])
async def test_i6_a_journal_younger_than_the_backup_proves_nothing(house: House, statement: str) -> None:
    await back_up(house)
    with closing(sqlite3.connect(house.data.parent / "audit.db")) as database:
        database.execute(statement)
        database.commit()
    await elsewhere_sent(house, 40)
    house.restore()
    async with audited(house) as kit:
        (kept,) = (await house.settle(kit)).undelivered
        assert (kept.quantity, kept.state, house.billed("acme")) == (100, "parked", 50)


async def test_i6_a_database_down_at_the_restore_settles_later(house: House) -> None:
    await back_up(house)
    async with audited(house) as kit:
        assert (await kit.flush(everything=True, timeout_s=0)).delivered == 0
        house.clock.advance(timedelta(minutes=10))
        assert (await kit.flush(everything=True)).delivered == 1
    assert house.billed("acme") == 110
    house.clock.advance(timedelta(minutes=5))
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
    async with audited(house) as kit:
        assert (await kit.flush(everything=True, timeout_s=0)).delivered == 0
        house.clock.advance(timedelta(minutes=10))
        assert (await kit.flush(everything=True)).delivered == 1
    house.clock.advance(timedelta(minutes=5))
    house.restore()
    async with audited(house) as kit:
        key = kit.store.keys.shard(0, "recover:lease")
        async with TaskLease(kit.store, key, lasts_ms=60_000).held() as is_held:
            assert is_held
            assert [kept.state for kept in (await house.settle(kit)).undelivered] == ["parked"]
        assert (await house.settle(kit)).undelivered == []
    assert house.billed("acme") == 110
