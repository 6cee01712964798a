"""Counters are rebuilt from the audit log; nothing is lowered, and nothing is billed twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in
from drivers.delivery import have_at_stripe
from meterkit import MeterkitError

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

MAY_ENDS = datetime(2031, 6, 1, tzinfo=UTC)


async def tokens(at: Audited, customer: str = "acme") -> dict[str, Any]:
    found: dict[str, Any] = dict((await at.kit.usage(customer))["meters"]["tokens"])
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    assert found["overage"] == sum(found[place] for place in places)
    return found


async def test_there_is_nothing_to_do_where_nothing_was_lost(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 150)
        await at.desk.flush(everything=True)
        await at.kit.record("acme", "tokens", 7)
        before = await tokens(at)
        assert await rebuild(at) == []
        assert await tokens(at) == before


async def test_lost_units_are_raised_and_stripes_are_delivered(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 150)
        assert (await at.desk.flush(everything=True)).is_complete
        await at.kit.record("acme", "rows", 3)
        await at.kit.record("acme", "tokens", 7)
        await at.drainer.drain()
        await lose_all(at)
        await at.kit.customers.link("acme", "cus_acme", force=True)
        await at.kit.record("acme", "tokens", 2)
        would = {one.meter: one for one in await rebuild(at, dry_run=True)}
        assert (await tokens(at))["recorded"] == 2
        done = {one.meter: one for one in await rebuild(at)}
        assert done == would
        assert (done["rows"].raised, done["tokens"].raised, done["tokens"].recorded) == (3, 157, 2)
        assert (done["tokens"].delivered, done["tokens"].parked) == (50, 7)
        after = await tokens(at)
        assert (after["recorded"], after["included"], after["overage"]) == (159, 100, 57)
        assert (after["delivered"], after["parked"], after["pending"]) == (50, 7, 0)
        assert (await at.kit.customers.history("acme"))[-1].kind == "rebuilt"
        assert await rebuild(at) == []
        # What is parked is not sent before Stripe was asked twice.
        (parked,) = await at.kit.outbox.list(state="parked")
        await at.kit.outbox.redrive(parked.identifier)
        await at.desk.flush(everything=True, timeout_s=0)
        assert at.desk.accepted("acme", "ai_tokens") == 50
        for minutes in (121, 11, 1):
            at.desk.clock.advance(timedelta(minutes=minutes))
            await at.desk.flush(everything=True)
        assert at.desk.accepted("acme", "ai_tokens") == 57
        after = await tokens(at)
        assert (after["delivered"], after["parked"]) == (57, 0)


async def test_what_stripe_counts_later_is_not_sent_again(store_url: str, tmp_path: Path) -> None:
    """Nobody could be asked when it was rebuilt: all of it is parked, and Stripe turns out to have it."""
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 150)
        assert (await at.desk.flush(everything=True)).is_complete
        await at.drainer.drain()
        await lose_all(at)
        at.desk.clock.advance(timedelta(minutes=2))
        await at.kit.customers.link("acme", "cus_acme", force=True)
        (done,) = await rebuild(at, asks_stripe=False)
        assert (done.delivered, done.parked, done.is_done) == (0, 50, True)
        # Of the period before.
        await have_at_stripe(at.desk, 8, minute=MAY_ENDS - timedelta(minutes=1), event_name="ai_tokens")
        await at.kit.record("acme", "tokens", 4)
        for minutes in (121, 11, 1):
            at.desk.clock.advance(timedelta(minutes=minutes))
            await at.desk.flush(everything=True)
        assert at.desk.accepted("acme", "ai_tokens") == 54 + 8
        after = await tokens(at)
        assert (after["delivered"], after["parked"], after["overage"]) == (54, 0, 54)


async def test_what_goes_to_stripe_waits_for_the_link(any_store_url: str, tmp_path: Path) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "tokens", 150)
        await at.kit.record("acme", "rows", 5)
        await at.drainer.drain()
        await lose_all(at)
        done = {one.meter: one for one in await rebuild(at)}
        assert (done["rows"].raised, done["rows"].is_done) == (5, True)
        assert (done["tokens"].raised, done["tokens"].is_done) == (0, False)
        assert "not linked" in done["tokens"].advice
        assert (await tokens(at))["recorded"] == 0
        await at.desk.link("acme")
        (done_then,) = await rebuild(at)
        assert (done_then.raised, done_then.parked) == (150, 50)


async def test_corrections_stay_and_deleted_customers_do_not_come_back(
    any_store_url: str, tmp_path: Path
) -> None:
    async with audited(any_store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "rows", 9)
        await at.kit.correct("acme", {"rows": 4}, reason="a loop", correction_id="t", by="ada")
        await at.kit.record("gone", "rows", 9)
        await at.kit.customers.delete("gone")
        await at.drainer.drain()
        await lose_all(at)
        (done,) = await rebuild(at)
        assert (done.customer, done.raised, done.audited) == ("acme", 5, 5)


async def test_nothing_is_rebuilt_while_the_database_is_away(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path / "away")) as at:
        await at.kit.record("acme", "rows", 9)
        with pytest.raises(MeterkitError, match="the database of the audit log failed"):
            await rebuild(at)


async def test_a_period_that_the_store_does_not_know_is_told(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "rows", 9)
        rows = await at.rows()
        moved = rows[0]["period_start_ms"] + 3_600_000
        await at.move(moved)
        (one,) = await rebuild(at)
        assert (one.raised, one.is_done) == (0, False)
        assert "have its subscription or plan known again first" in one.advice
