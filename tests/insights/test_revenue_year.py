"""A year of forty customers by the clock: against a table worked by hand, and against SQL on the tables."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from books.revenue_shop import MICRO, YEARLY, books, on
from meterkit.insights.audit.draining import drainer_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from books.revenue_shop import Books

pytestmark = pytest.mark.anyio

Y: Final = YEARLY
BY_HAND: Final[Mapping[int, Mapping[str, int]]] = {
    # Ten on pro (10.00), ten on max (30.00).
    1: {"new": 40_000 * MICRO, "mrr": 40_000 * MICRO, "customers": 20},
    # Ten on yearly.
    2: {"new": 10 * Y, "mrr": 40_000 * MICRO + 10 * Y, "customers": 30},
    # Of ten on trial six stay.
    3: {"new": 6_000 * MICRO, "mrr": 46_000 * MICRO + 10 * Y, "customers": 36},
    # Five go from pro to max.
    4: {"expansion": 10_000 * MICRO, "mrr": 56_000 * MICRO + 10 * Y, "customers": 36},
    5: {"mrr": 56_000 * MICRO + 10 * Y, "customers": 36},
    # Three on max cancel, and have paid until July.
    6: {"mrr": 56_000 * MICRO + 10 * Y, "customers": 36},
    7: {"churn": 9_000 * MICRO, "mrr": 47_000 * MICRO + 10 * Y, "customers": 33},
    # Three ask for pro in place of max, from the next period on.
    8: {"mrr": 47_000 * MICRO + 10 * Y, "customers": 33},
    9: {"contraction": 6_000 * MICRO, "mrr": 41_000 * MICRO + 10 * Y, "customers": 33},
    # One comes back, for pro.
    10: {"reactivation": 1_000 * MICRO, "mrr": 42_000 * MICRO + 10 * Y, "customers": 34},
    # One on yearly leaves at once.
    11: {"churn": Y, "mrr": 42_000 * MICRO + 9 * Y, "customers": 33},
    12: {"mrr": 42_000 * MICRO + 9 * Y, "customers": 33},
}
_DAYS: Final = """
select day, mrr, customers, new, expansion, contraction, churn, reactivation
from meterkit_revenue_days where currency = 'usd' order by day
"""
_MOVED_BY_SQL: Final = """
with day as (select distinct day from meterkit_revenue_days),
     who as (select distinct customer from meterkit_revenue),
     line as (select who.customer, day.day, coalesce(paid.mrr, 0) as mrr
              from who cross join day left join meterkit_revenue as paid
              on paid.customer = who.customer and paid.day = day.day),
     step as (select day, mrr,
              coalesce(lag(mrr) over of_one, 0) as before,
              coalesce(max(mrr) over (of_one rows between unbounded preceding and 1 preceding), 0) as best
              from line window of_one as (partition by customer order by day))
select substr(day, 6, 2) as month,
       sum(case when before = 0 and best = 0 then mrr else 0 end),
       sum(case when before > 0 and mrr > before then mrr - before else 0 end),
       sum(case when mrr > 0 and mrr < before then before - mrr else 0 end),
       sum(case when mrr = 0 then before else 0 end),
       sum(case when before = 0 and best > 0 then mrr else 0 end)
from step group by month order by month
"""
_MOVES: Final = ("new", "expansion", "contraction", "churn", "reactivation")


async def leap(at: Books, to: datetime) -> None:
    """Go to an instant at once; webhooks of the time between come in their order."""
    at.at.clock.set(to)
    at.at.emulator.advance()
    await at.at.settle()


async def year(at: Books) -> AsyncGenerator[int]:
    """What forty customers do in a year; each month as it is over."""

    def ten(kind: str) -> list[str]:
        return [f"{kind}{nth}" for nth in range(10)]

    kit, deliver = at.kit.subscriptions, (at.kit.flush,)
    todo: dict[datetime, list[Any]] = {
        on(1, 1, 13): [(at.subscribe, name, "pro") for name in ten("a")]
        + [(at.subscribe, name, "max") for name in ten("b")],
        on(1, 2): [(at.revenue.snapshot,)],  # The first one; from then on each day gets one.
        on(1, 20): [(at.kit.record, "a1", "requests", 30), (at.kit.record, "a2", "requests", 9), deliver],
        on(1, 21): [deliver],
        on(2, 1, 14): [(at.subscribe, name, "yearly") for name in ten("d")],
        on(2, 10): [(at.kit.record, "a1", "requests", 13), (at.kit.record, "a9", "requests", 110), deliver],
        on(2, 11): [deliver],
        on(3, 1, 14): [(at.trial, name) for name in ten("c")],
        on(3, 10): [(kit.cancel, name) for name in ten("c")[:4]],
        on(4, 10): [(kit.change_plan, name, "max") for name in ten("a")[:5]],
        on(6, 15): [(kit.cancel, name) for name in ten("b")[:3]],
        on(8, 20): [(kit.change_plan, name, "pro") for name in ten("b")[3:6]],
        on(9, 1, 13): [],  # Stripe tells of it.
        on(10, 5): [(at.subscribe, "b0", "pro")],
        on(11, 11): [(at.leave, "d0")],
    }
    for month in range(1, 13):
        for instant in sorted(instant for instant in todo if instant.month == month):
            await leap(at, instant)
            for act, *how in todo[instant]:
                await act(*how)
            await at.at.settle()
        await leap(at, datetime(2031 + month // 12, month % 12 + 1, 1, 3, tzinfo=UTC))
        await at.revenue.snapshot()
        yield month


async def test_a_year_of_forty_customers(tmp_path: Path) -> None:
    async with books("memory://", tmp_path) as at:
        async for month in year(at):
            last = datetime.fromtimestamp(at.at.clock(), UTC).date() - timedelta(days=1)
            days = [day for day in at.rows(_DAYS) if day[0].startswith(f"2031-{month:02}-")]
            assert len(days) == last.day
            moved = dict(zip(_MOVES, map(sum, list(zip(*days, strict=True))[3:]), strict=True))
            found = {"mrr": days[-1][1], "customers": days[-1][2], **moved}
            assert {name: amount for name, amount in found.items() if amount} == BY_HAND[month], month
        by_sql = {int(month): dict(zip(_MOVES, sums, strict=True)) for month, *sums in at.rows(_MOVED_BY_SQL)}
        assert by_sql == {
            month: {name: known.get(name, 0) for name in _MOVES} for month, known in BY_HAND.items()
        }

        # Usage beyond the ten that are included costs 5 cents: 20 of a1 in January, 3 in February; 100 of a9.
        used = at.rows(
            "select day, customer, currency, amount from meterkit_revenue_usage order by day, customer"
        )
        assert used == [
            ("2031-02-01", "a1", "usd", 100 * MICRO),
            ("2031-03-01", "a1", "usd", 15 * MICRO),
            ("2031-03-01", "a9", "usd", 500 * MICRO),
        ]
        await drainer_of(at.kit.store, at.kit.settings).drain()
        logged = at.rows(
            "select customer, sum(overage) * 5 from meterkit_audit where meter = 'requests' and overage > 0"
            " group by customer, period_start_ms order by period_start_ms, customer"
        )
        assert logged == [(customer, amount // MICRO) for _, customer, _, amount in used]
        assert (await at.revenue.at(date(2031, 3, 1))).usage_revenue == {"usd": 515 * MICRO}
        assert (await at.revenue.at(date(2031, 3, 2))).usage_revenue == {"usd": 515 * MICRO}
        assert (await at.revenue.at(date(2031, 4, 1))).usage_revenue == {}

        # Of 36 customers and 560.00 + 10 yearly ones on 30 June three left.
        july = await at.revenue.at(date(2031, 7, 30))
        base = 56_000 * MICRO + 10 * Y
        assert july.customer_churn == {"usd": 3 / 36}
        assert july.gross_churn == july.net_churn == {"usd": 9_000 * MICRO / base}
        assert july.nrr == july.grr == {"usd": (base - 9_000 * MICRO) / base}
        april = await at.revenue.at(date(2031, 4, 30))
        before = 46_000 * MICRO + 10 * Y
        assert april.net_churn == {"usd": -10_000 * MICRO / before}
        assert april.nrr == {"usd": (before + 10_000 * MICRO) / before}

        # December: nothing in three months but October's 10.00 and the yearly one that left.
        december = await at.revenue.at(date(2031, 12, 31))
        assert december.forecast == {"usd": 42_000 * MICRO + 9 * Y + round((1_000 * MICRO - Y) / 3)}
        # From July on forecasts were off by 123.33 of 553.33, 30 of 553.33, 30 of 493.33, 60 of 503.33,
        # 8.33 of 495.00 and 19.44 of 495.00.
        assert december.forecast_error["usd"] == pytest.approx(0.08554, abs=0.00001)
