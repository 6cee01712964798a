"""I6: what a journal of deliveries decides after a restore, and what Stripe's sums decide without it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW, until
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

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.restorable_kit import House
    from meterkit import MeterKit

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("has_journal", [True, False]),
]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the emulator as fast as it answers, not 20 times in a second."""
    unpaced(monkeypatch)


def lose_journal(tmp_path: Path) -> None:
    """Have no row in the journal, as where the database was away."""
    with closing(sqlite3.connect(tmp_path / "audit.db")) as database:
        database.execute("DELETE FROM meterkit_deliveries")
        database.commit()


def rows_in_journal(tmp_path: Path) -> int:
    """How many rows there are; none before the first write makes the table."""
    with closing(sqlite3.connect(tmp_path / "audit.db")) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meterkit_deliveries'").fetchone():
            return 0
        found: tuple[int] = database.execute("SELECT count(*) FROM meterkit_deliveries").fetchone()
        return found[0]


async def flushed(house: House, kit: MeterKit) -> None:
    """Deliver what is due, some minutes later, and wait for its row, which the end of a flush may not."""
    tmp_path = house.data.parent
    before = rows_in_journal(tmp_path)
    house.clock.advance(timedelta(minutes=5))
    assert (await kit.flush(everything=True)).delivered == 1
    await until(lambda: rows_in_journal(tmp_path) > before)


@pytest.mark.dear("a store is restored, and a day of deliveries compared")
async def test_i6_units_taken_back_within_an_hour_of_a_long_gap(tmp_path: Path, has_journal: bool) -> None:
    settings = settings_of(tmp_path, audited=True)
    async with house_at(tmp_path, NOW) as house:
        async with house.open(**settings) as (kit, _):
            await linked(kit)
            await kit.record("acme", "requests", 100)
            await flushed(house, kit)
            await kit.record("acme", "requests", 30)
            house.back_up()
            await flushed(house, kit)
            await kit.correct("acme", {"requests": 30}, reason="counted twice", correction_id="one")
            await flushed(house, kit)
            await drained(kit)
            assert house.billed("acme") == 100
        if not has_journal:
            lose_journal(tmp_path)
        house.clock.advance(timedelta(hours=10))
        house.restore()
        async with house.open(**settings) as (kit, _):
            await house.settle(kit)
            # Over hours, +30 and -30 are nothing: the 30 of the backup are sent again.
            assert house.billed("acme") == (100 if has_journal else 130)
            await recover(kit)
            await hours_later(house, kit)
            assert house.billed("acme") == (100 if has_journal else 130)
            assert await kit.outbox.list() == []


async def test_i6_a_customer_who_was_billed_by_two_stripe_customers(
    tmp_path: Path, has_journal: bool
) -> None:
    settings = settings_of(tmp_path, audited=True)
    async with (
        house_at(tmp_path, NOW) as house,
        house.open(**settings) as (kit, server),
    ):
        await linked(kit)
        await kit.record("acme", "requests", 100)
        await flushed(house, kit)
        await kit.customers.unlink("acme")
        house.emulator.add_customer("cus_new")
        await kit.customers.link("acme", "cus_new", force=True)
        await kit.record("acme", "requests", 20)
        await flushed(house, kit)
        await kit.record("acme", "requests", 3)
        await drained(kit)
        if not has_journal:
            lose_journal(tmp_path)
        server.ask("FLUSHALL")
        house.clock.advance(timedelta(minutes=5))
        await kit.customers.link("acme", "cus_new", force=True)
        await recover(kit)
        await hours_later(house, kit)
        # Stripe's sums are of one Stripe customer: of the other's 100 units it has nothing.
        assert house.billed("acme") == 100
        assert house.billed("new") == (23 if has_journal else 123)


async def test_i6_units_that_something_else_has_sent(tmp_path: Path, has_journal: bool) -> None:
    settings = settings_of(tmp_path, audited=True)
    async with house_at(tmp_path, NOW) as house:
        async with house.open(**settings) as (kit, _):
            await linked(kit)
            await kit.record("acme", "requests", 100)
            await flushed(house, kit)
            await kit.flush()  # It notes when it delivers.
            await kit.record("acme", "requests", 30)
            house.back_up()
            house.clock.advance(timedelta(minutes=5))
            await elsewhere_sent(house, 40)
        if not has_journal:
            lose_journal(tmp_path)
        house.clock.advance(timedelta(minutes=30))
        house.restore()
        async with house.open(**settings) as (kit, _):
            await house.settle(kit)
            (one,) = (await recover(kit)).recovered
            # By sums, Stripe may have the 30. The advice names what to bill where another system has sent.
            assert (one.parked, one.unknown, one.billed, one.sent) == (30, 40, 30, 0)
            assert one.advice.startswith("30 of the billed units are not in the journal") == has_journal
            await hours_later(house, kit)
            assert house.billed("acme") == 140
