"""F-30d: units of a month that is over are taken back from the invoice of a year that is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from drivers.audited_kit import rows_in, sqlite_in
from drivers.period_ends import JUNE, MAY, MINUTE, Ending, paying
from drivers.plans import plans_text
from meterkit import Corrected, Reconciled
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

APRIL: Final = datetime(2031, 4, 10, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)
PRICES: Final = ("price_pro", "price_pro_requests", "price_pro_words")
YEARLY: Final = plans_text("statement").replace("1000, interval: month", "1000, interval: year")


async def correct(at: Ending, units: int, *, is_dry: bool = False) -> Corrected:
    (found,) = await at.kit.correct(
        "acme", {"words": units}, reason="a loop", correction_id=f"c-{units}", dry_run=is_dry
    )
    return found


async def agreed(at: Ending, when: datetime) -> Reconciled:
    (found,) = await at.kit.reconcile("acme", at=when)
    assert (found.advice, found.difference) == ("", 0)
    return found


async def test_f_30d_a_month_of_a_paid_year_is_corrected(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with paying(store_url, YEARLY, clock=Clock(APRIL), prices=PRICES, audit_url=url) as at:
        await at.kit.record("acme", "words", 130)
        await at.flush()
        await at.reach(MAY + DAY)
        await at.kit.record("acme", "words", 107)
        await at.flush()
        at.clock.advance(DAY)
        tried, found = await correct(at, 132, is_dry=True), await correct(at, 132)
        assert (found.taken_back, found.overage, found.included, found.sent_back) == (132, 32, 100, 32)
        assert (found.beyond, found.by_hand, found.granted_next, found.never_billed) == (0, 0, 0, 0)
        assert tried == found
        again = await correct(at, 132)
        assert (again.is_repeated, again.taken_back) == (True, 132)
        await at.flush()
        at.clock.advance(10 * MINUTE)
        april, may = await agreed(at, APRIL), await agreed(at, MAY)
        assert [(one.recorded, one.delivered, one.taking_back) for one in (april, may)] == [
            (105, 5, 0),
            (0, 0, 0),
        ]
        rest = await correct(at, 9)
        assert (rest.overage, rest.beyond) == (5, 4)
        await at.flush()
        await at.drain()
        rows = [row for row in rows_in(url) if row["kind"] == "corrected" and row["overage"]]
        assert sorted((row["period_start_ms"], row["overage"], row["reported"]) for row in rows) == [
            (int(APRIL.timestamp()) * 1000, -25, -25),
            (int(APRIL.timestamp()) * 1000, -5, -5),
            (int(MAY.timestamp()) * 1000, -7, -7),
        ]
        await at.reach(APRIL.replace(year=2032) + timedelta(minutes=2))
        await at.close()
        billed = [line for one in at.invoices() for line in one["lines"]["data"] if line["amount"]]
        assert [line["amount"] for line in billed if line["quantity"] > 1] == []


async def test_f_30d_units_of_over_35_days_ago_stay(store_url: str) -> None:
    async with paying(store_url, YEARLY, clock=Clock(APRIL), prices=PRICES) as at:
        await at.kit.record("acme", "words", 130)
        await at.flush()
        await at.reach(JUNE + 6 * DAY)
        found = await correct(at, 9)
        assert (found.taken_back, found.beyond) == (0, 9)
