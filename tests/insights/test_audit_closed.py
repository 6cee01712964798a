"""Periods that are over are not rebuilt: what the log has more of is told, and what Stripe has of that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

JUNE: Final = datetime(2031, 6, 1, tzinfo=UTC)
JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)


async def lost(at: Audited, *, pending: int = 0) -> None:
    """In June 50 tokens were delivered, and some are pending when the store is lost in July."""
    await at.desk.link("acme")
    await at.kit.record("acme", "tokens", 150)
    await at.kit.record("acme", "rows", 9)
    assert (await at.desk.flush(everything=True)).is_complete
    if pending:
        await at.kit.record("acme", "tokens", pending)
    at.desk.clock.set(JULY + timedelta(minutes=20))
    await at.kit.record("acme", "rows", 2)
    await at.drainer.drain()
    await lose_all(at)
    await at.kit.customers.link("acme", "cus_acme", force=True)


async def test_periods_of_which_nothing_was_lost_are_not_told(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        for month in (JUNE, JULY, datetime(2031, 10, 1, tzinfo=UTC)):
            at.desk.clock.set(max(at.desk.clock.now(), month))
            await at.kit.record("acme", "tokens", 130)
            await at.kit.correct("acme", {"tokens": 10}, reason="r", correction_id=f"{month}", by="ada")
        assert await rebuild(at) == []
        assert await rebuild(at, at=JUNE + timedelta(days=20)) == []


async def test_a_period_of_a_customers_own_is_compared_whole(store_url: str, tmp_path: Path) -> None:
    """It begins in mid-month by the log, and the store has forgotten why."""
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await lost(at)
        mid_june = JUNE + timedelta(days=9)
        await at.move(int(mid_june.timestamp() * 1000))
        at.desk.clock.set(JULY + timedelta(days=31))
        found = await rebuild(at, at=JULY + timedelta(days=5))
        assert {(one.meter, one.period_start, one.delivered) for one in found} == {
            ("tokens", mid_june, 50),
            ("rows", mid_june, 0),
        }
