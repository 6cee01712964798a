"""Periods that are over are not rebuilt: what the log has more of is told, and what Stripe has of that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in
from drivers.delivery import PLANS
from meterkit.catalog import loads

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

JUNE: Final = datetime(2031, 6, 1, tzinfo=UTC)
JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)
PREPAID: Final = loads(PLANS.replace("routes:", "credits:\n  ai: {costs: {rows: 1}}\nroutes:"))


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


async def told(at: Audited, **more: Any) -> dict[tuple[str, datetime | None], Any]:
    return {(one.meter, one.period_start): one for one in await rebuild(at, **more)}


async def test_lost_periods_are_named_and_the_open_one_is_rebuilt(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await lost(at)
        found = await told(at)
        assert set(found) == {("tokens", JUNE), ("rows", JUNE), ("rows", JULY)}
        assert (found["rows", JULY].raised, found["rows", JULY].is_done) == (2, True)
        rows, tokens = found["rows", JUNE], found["tokens", JUNE]
        assert (rows.recorded, rows.audited, rows.raised, rows.is_done) == (0, 9, 0, True)
        assert (
            rows.advice == "the period is over, and is not rebuilt: nothing that is missing was to be billed"
        )
        assert (tokens.audited, tokens.delivered, tokens.is_done) == (150, 50, True)
        assert tokens.advice.endswith(": Stripe has all of it that was to be billed")
        # It is told again, as nothing of it was changed.
        assert set(await told(at)) == {("tokens", JUNE), ("rows", JUNE)}
        assert (await at.kit.outbox.list(), await at.desk.totals("acme")) == ([], {})


async def test_a_closed_periods_missing_units_are_left_to_a_person(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await lost(at, pending=7)
        tokens = (await told(at))["tokens", JUNE]
        assert (tokens.audited, tokens.delivered, tokens.is_done) == (157, 50, False)
        assert tokens.advice.endswith(
            "Stripe lacks 7 units that were to be billed: bill them by an invoice item"
        )
        alone = (await told(at, asks_stripe=False))["tokens", JUNE]
        assert (alone.delivered, alone.is_done) == (0, False)
        assert alone.advice.endswith("compare the 57 units that were to be billed with its invoice")


async def test_stripe_is_asked_of_old_periods_only_on_request(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await lost(at, pending=7)
        at.desk.clock.set(JULY + timedelta(days=70))
        await at.kit.record("acme", "rows", 1)
        before = len(at.desk.emulator.requests)
        tokens = (await told(at))["tokens", JUNE]
        assert (tokens.delivered, tokens.is_done) == (0, True)
        assert len(at.desk.emulator.requests) == before
        rows, tokens = await rebuild(at, at=JUNE + timedelta(days=3))
        assert (tokens.meter, tokens.delivered, tokens.is_done) == ("tokens", 50, False)
        assert (rows.meter, rows.period_start) == ("rows", JUNE)
        assert await rebuild(at, at=JUNE - timedelta(days=3)) == []


async def test_periods_of_which_nothing_was_lost_are_not_told(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
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


async def test_what_grants_have_left_is_told_not_to_be_rebuilt(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=PREPAID) as at:
        await at.kit.customers.override("acme", {"rows": {"included": 5, "overage": "deny"}})
        await at.kit.grants.add("acme", {"rows": 20}, grant_id="g")
        await at.kit.record("acme", "rows", 9)
        await at.kit.record("beta", "rows", 9)
        await at.drainer.drain()
        await lose_all(at)
        found = {one.customer: one for one in await rebuild(at)}
        assert (found["acme"].raised, found["acme"].is_done) == (9, True)
        assert found["acme"].advice.startswith("grants or credits paid for some of it")
        assert found["beta"].advice == ""
