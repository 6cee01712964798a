"""A year of customers by the clock: against a table worked by hand, and against SQL on the tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from books.revenue_shop import MICRO, YEARLY, books, on
from drivers.audit_database import drain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from books.revenue_shop import Books

pytestmark = pytest.mark.anyio

Y: Final = YEARLY
DOLLARS_10: Final = 1_000 * MICRO


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a year, by hand, of as many customers as are in each of four groups."""

    size: int

    @property
    def staying(self) -> int:
        """Of those on trial."""
        return self.size - self.size * 2 // 5

    @property
    def upgraded(self) -> int:
        return self.size // 2

    @property
    def left(self) -> int:
        """Of those on max; as many ask for pro in place of it."""
        return max(1, self.size * 3 // 10)

    def months(self) -> Mapping[int, Mapping[str, int]]:
        """By month what was moved, and what there is at its end."""
        moved: dict[int, dict[str, int]] = {
            1: {"new": self.size * 4 * DOLLARS_10},  # One group on pro (10.00), one on max (30.00).
            2: {"new": self.size * Y},
            3: {"new": self.staying * DOLLARS_10},
            4: {"expansion": self.upgraded * 2 * DOLLARS_10},
            # Those on max cancel in June, and have paid until July.
            7: {"churn": self.left * 3 * DOLLARS_10},
            # They ask in August for pro in place of max, from the next period on.
            9: {"contraction": self.left * 2 * DOLLARS_10},
            10: {"reactivation": DOLLARS_10},  # One comes back, for pro.
            11: {"churn": Y},  # One on yearly leaves at once.
        }
        came = {1: 2 * self.size, 2: self.size, 3: self.staying, 7: -self.left, 10: 1, 11: -1}
        found: dict[int, dict[str, int]] = {}
        mrr = customers = 0
        for month in range(1, 13):
            of_month = moved.get(month, {})
            lost = sum(of_month.get(name, 0) for name in ("contraction", "churn"))
            mrr += sum(of_month.values()) - 2 * lost
            customers += came.get(month, 0)
            found[month] = {**of_month, "mrr": mrr, "customers": customers}
        return found


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


async def year(at: Books, table: Table) -> AsyncGenerator[int]:
    """What customers do in a year; each month as it is over."""

    def group(kind: str) -> list[str]:
        return [f"{kind}{nth}" for nth in range(table.size)]

    kit, deliver = at.kit.subscriptions, (at.kit.flush,)
    todo: dict[datetime, list[Any]] = {
        on(1, 1, 13): [(at.subscribe, name, "pro") for name in group("a")]
        + [(at.subscribe, name, "max") for name in group("b")],
        on(1, 2): [(at.revenue.snapshot,)],  # The first one; from then on each day gets one.
        on(1, 20): [(at.kit.record, "a1", "requests", 30), (at.kit.record, "a2", "requests", 9), deliver],
        on(1, 21): [deliver],
        on(2, 1, 14): [(at.subscribe, name, "yearly") for name in group("d")],
        on(2, 10): [
            (at.kit.record, "a1", "requests", 13),
            (at.kit.record, group("a")[-1], "requests", 110),
            deliver,
        ],
        on(2, 11): [deliver],
        on(3, 1, 14): [(at.trial, name) for name in group("c")],
        on(3, 10): [(kit.cancel, name) for name in group("c")[table.staying :]],
        on(4, 10): [(kit.change_plan, name, "max") for name in group("a")[: table.upgraded]],
        on(6, 15): [(kit.cancel, name) for name in group("b")[: table.left]],
        on(8, 20): [(kit.change_plan, name, "pro") for name in group("b")[table.left : 2 * table.left]],
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


@pytest.mark.parametrize("size", [3, pytest.param(10, marks=pytest.mark.whole)])
@pytest.mark.dear("each day of a year is kept, and each renewal is billed")
async def test_a_year_by_the_clock(tmp_path: Path, size: int) -> None:
    table = Table(size)
    by_hand = table.months()
    async with books("memory://", tmp_path) as at:
        async for month in year(at, table):
            last = datetime.fromtimestamp(at.at.clock(), UTC).date() - timedelta(days=1)
            days = [day for day in at.rows(_DAYS) if day[0].startswith(f"2031-{month:02}-")]
            assert len(days) == last.day
            moved = dict(zip(_MOVES, map(sum, list(zip(*days, strict=True))[3:]), strict=True))
            found = {"mrr": days[-1][1], "customers": days[-1][2], **moved}
            assert {name: amount for name, amount in found.items() if amount} == by_hand[month], month
        by_sql = {int(month): dict(zip(_MOVES, sums, strict=True)) for month, *sums in at.rows(_MOVED_BY_SQL)}
        assert by_sql == {
            month: {name: known.get(name, 0) for name in _MOVES} for month, known in by_hand.items()
        }

        # Usage beyond the ten that are included costs 5 cents: 20 and 3 of a1, 100 of the last.
        used = at.rows(
            "select day, customer, currency, amount from meterkit_revenue_usage order by day, customer"
        )
        assert used == [
            ("2031-02-01", "a1", "usd", 100 * MICRO),
            ("2031-03-01", "a1", "usd", 15 * MICRO),
            ("2031-03-01", f"a{size - 1}", "usd", 500 * MICRO),
        ]
        await drain(at.kit)
        logged = at.rows(
            "select customer, sum(overage) * 5 from meterkit_audit where meter = 'requests' and overage > 0"
            " group by customer, period_start_ms order by period_start_ms, customer"
        )
        assert logged == [(customer, amount // MICRO) for _, customer, _, amount in used]
        assert (await at.revenue.at(date(2031, 3, 1))).usage_revenue == {"usd": 515 * MICRO}
        assert (await at.revenue.at(date(2031, 3, 2))).usage_revenue == {"usd": 515 * MICRO}
        assert (await at.revenue.at(date(2031, 4, 1))).usage_revenue == {}

        # Of the customers of 30 June some left.
        july = await at.revenue.at(date(2031, 7, 30))
        base, lost = by_hand[6]["mrr"], by_hand[7]["churn"]
        assert july.customer_churn == {"usd": table.left / by_hand[6]["customers"]}
        assert july.gross_churn == july.net_churn == {"usd": lost / base}
        assert july.nrr == july.grr == {"usd": (base - lost) / base}
        april = await at.revenue.at(date(2031, 4, 30))
        before, more = by_hand[3]["mrr"], by_hand[4]["expansion"]
        assert april.net_churn == {"usd": -more / before}
        assert april.nrr == {"usd": (before + more) / before}

        # December: nothing in three months but October's 10.00 and the yearly one that left.
        december = await at.revenue.at(date(2031, 12, 31))
        assert december.forecast == {"usd": by_hand[12]["mrr"] + round((DOLLARS_10 - Y) / 3)}
        # From July on forecasts of forty were off by 123.33 of 553.33, 30 of 553.33, 30 of 493.33,
        # 60 of 503.33, 8.33 of 495.00 and 19.44 of 495.00.
        if size == 10:
            assert december.forecast_error["usd"] == pytest.approx(0.08554, abs=0.00001)
