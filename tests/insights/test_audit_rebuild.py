"""Counters are rebuilt from the audit log; nothing is lowered, and nothing is billed twice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in
from meterkit import MeterkitError

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio


async def tokens(at: Audited, customer: str = "acme") -> dict[str, Any]:
    found: dict[str, Any] = dict((await at.kit.usage(customer))["meters"]["tokens"])
    places = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "dead")
    assert found["overage"] == sum(found[place] for place in places)
    return found


async def test_lost_units_are_raised_and_stripes_are_delivered(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
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
