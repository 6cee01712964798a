"""Revenue and growth on the operator pages: each figure is the sum of the list that it opens."""
# Internals: tables of revenue, filled by hand.

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from httpx import AsyncClient

from drivers.audited_kit import sqlite_in
from drivers.operator_pages import JSON, figures_on, make_snapshot, overview_of
from meterkit import MeterKit
from meterkit.insights.audit.database import Database
from meterkit.insights.revenue import tables as revenue_tables
from meterkit.insights.revenue.revenue_formulas import MOVES, CustomerPayment, OverageAmount
from meterkit.insights.revenue.tables import PaymentMovePage, RevenueLists, RevenueTables

pytestmark = pytest.mark.anyio

LAST: Final = date(2031, 5, 30)
DAYS: Final[tuple[dict[str, tuple[str, str, int]], ...]] = (
    {"ada": ("pro", "usd", 1000), "bob": ("pro", "usd", 2000), "eve": ("pro", "eur", 3000)},
    {"ada": ("pro", "usd", 1500), "eve": ("pro", "eur", 2000), "kim": ("free", "usd", 70)},
    {"ada": ("pro", "eur", 1500), "bob": ("pro", "usd", 2500), "kim": ("free", "usd", 70)},
)
"""What each customer brought on the last three days: plan, currency, micro-cents."""
MOVED: Final[dict[tuple[str, str, str], dict[str, int]]] = {
    ("2031-05-28", "usd", "new"): {"ada": 1000, "bob": 2000},
    ("2031-05-28", "eur", "new"): {"eve": 3000},
    ("2031-05-29", "usd", "expansion"): {"ada": 500},
    ("2031-05-29", "usd", "churn"): {"bob": 2000},
    ("2031-05-29", "usd", "new"): {"kim": 70},
    ("2031-05-29", "eur", "contraction"): {"eve": 1000},
    ("2031-05-30", "usd", "churn"): {"ada": 1500},
    ("2031-05-30", "usd", "reactivation"): {"bob": 2500},
    ("2031-05-30", "eur", "new"): {"ada": 1500},
    ("2031-05-30", "eur", "churn"): {"eve": 2000},
}
USED: Final = (
    OverageAmount("ada", "usd", 40),
    OverageAmount("bob", "usd", 2),
    OverageAmount("eve", "eur", 9),
)


@pytest.fixture
async def sold(kit: MeterKit, tmp_path: Path) -> None:
    """Three days of revenue, and a snapshot of all customers."""
    tables = RevenueTables(Database(sqlite_in(tmp_path)))
    for nth, paid in enumerate(DAYS):
        day = LAST - timedelta(days=len(DAYS) - 1 - nth)
        tables.write(day, [CustomerPayment(name, *of) for name, of in paid.items()], USED)
    tables.write(date(2031, 4, 30), [], [OverageAmount("old", "usd", 1000)])
    await make_snapshot(kit)


async def rows_of(client: AsyncClient, path: str, of: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/{path}.json", params={"of": of})).json()
    return found


@pytest.mark.usefixtures("sold")
async def test_each_movement_is_the_sum_of_its_list(client: AsyncClient) -> None:
    figures = (await client.get("/", headers=JSON)).json()
    page = (await client.get("/")).text
    shown = figures_on(page)
    for currency in ("usd", "eur"):
        growth = figures[f"growth_{currency}"]
        for day, of in growth.items():
            for move in ("new", "expansion", "reactivation", "contraction", "churn"):
                rows = await rows_of(client, "moves", f"{day} {currency} {move}")
                assert {row["customer"]: row["change"] for row in rows} == MOVED.get(
                    (day, currency, move), {}
                )
                assert sum(row["change"] for row in rows) == of[move]
                assert (f'href="moves?of={day}%20{currency}%20{move}"' in page) == bool(rows)
        assert {name: n for name, n in shown.items() if name.startswith(f"growth_{currency}:")} == {
            f"growth_{currency}:{day}:{name}": n for day, of in growth.items() for name, n in of.items()
        }
    for of in ("none", "2031-13-01 usd new", "2031-05-30 usd none", "' OR 1=1 -- usd new"):
        assert await rows_of(client, "moves", of) == []


@pytest.mark.usefixtures("sold")
async def test_amounts_are_the_sums_of_who_pays_and_what_is_used(kit: MeterKit, client: AsyncClient) -> None:
    figures = (await client.get("/", headers=JSON)).json()
    last = await kit.revenue.at()
    for currency in ("usd", "eur"):
        revenue = figures[f"revenue_{currency}"]
        for name in ("mrr", "customers", "arpa", "ltv", "nrr", "grr", "customer_churn", "forecast"):
            assert revenue[name] == getattr(last, name).get(currency), name
        paying = await rows_of(client, "paying", currency)
        assert (sum(row["mrr"] for row in paying), len(paying)) == (revenue["mrr"], revenue["customers"])
        for plan, mrr in figures[f"plans_{currency}"].items():
            rows = await rows_of(client, "paying", f"{currency} {plan}")
            assert (sum(row["mrr"] for row in rows), {row["plan"] for row in rows}) == (mrr, {plan})
        charged = await rows_of(client, "usage", currency)
        assert sum(row["amount"] for row in charged) == revenue["usage_revenue"] > 0
    assert await rows_of(client, "paying", "gbp") == []
    # What customers cost is known in the first currency alone.
    assert [currency for currency in ("usd", "eur") if "cac" in figures[f"revenue_{currency}"]] == ["usd"]
    shown = figures_on((await client.get("/")).text)
    assert (shown["revenue_usd:mrr"], shown["plans_eur:pro"]) == (2570, 1500)


async def test_half_a_cent_is_rounded_up(kit: MeterKit, client: AsyncClient, tmp_path: Path) -> None:
    tables = RevenueTables(Database(sqlite_in(tmp_path)))
    tables.write(LAST, [CustomerPayment("ada", "pro", "usd", 1_000_500_000)], [])
    await make_snapshot(kit)
    for path in ("/", "/paying?of=usd"):
        page = (await client.get(path)).text
        assert ("$10.01" in page, "$10.00" in page) == (True, False)


@pytest.mark.dear("each day of a month is kept")
async def test_monthly_shares_match_the_lists_that_they_open(
    kit: MeterKit, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, month_before = RevenueTables(Database(sqlite_in(tmp_path))), date(2031, 4, 30)
    paid: dict[date, dict[str, int]] = {}
    for back in range(33):
        day = LAST - timedelta(days=32 - back)
        paid[day] = {
            f"c{nth}": 1000 * (1 + nth * back % 3) for nth in range(3 + back // 3) if (nth * 5 + back) % 11
        }
        tables.write(day, [CustomerPayment(name, "pro", "usd", mrr) for name, mrr in paid[day].items()], [])
    tables.spend(LAST, 700)
    await make_snapshot(kit)
    revenue = (await client.get("/", headers=JSON)).json()["revenue_usd"]
    then, now = paid[month_before], paid[LAST]
    start = sum(then.values())
    kept = await rows_of(client, "kept", "usd")
    assert {row["customer"]: (row["before"], row["after"]) for row in kept} == {
        name: (mrr, now.get(name, 0)) for name, mrr in then.items()
    }
    assert revenue["nrr"] == sum(row["after"] for row in kept) / start
    assert revenue["grr"] == sum(min(row["before"], row["after"]) for row in kept) / start

    lists = {
        of: await rows_of(client, "changes", f"usd {of}")
        for of in ("churn", "churn contraction", "expansion reactivation", "new")
    }
    assert all(lists.values())
    sums = {of: sum(row["change"] for row in rows) for of, rows in lists.items()}
    assert revenue["customer_churn"] == len(lists["churn"]) / len(then)
    assert revenue["gross_churn"] == sums["churn contraction"] / start
    assert revenue["net_churn"] == (sums["churn contraction"] - sums["expansion reactivation"]) / start
    assert revenue["cac"] == round(700 / len(lists["new"]))
    assert await rows_of(client, "changes", "usd none") == []
    for name, opens in re.findall(
        r'data-figure="revenue_usd:(\w+)">\s*<a href="([^"]*)"', (await client.get("/")).text
    ):
        listed = (await client.get(f"/{opens}", headers=JSON)).json()["rows"]
        assert bool(listed) == (name != "usage_revenue"), name

    everything = await rows_of(client, "changes", f"usd {' '.join(MOVES)}")
    places = [(row["day"], row["move"], row["customer"]) for row in everything]
    assert places == sorted(places)
    lists_of = RevenueLists(Database(sqlite_in(tmp_path)))
    for compared, most in ((200_000, 7), (1, 7), (20, 1000)):
        monkeypatch.setattr(revenue_tables, "_COMPARED_MOST", compared)
        seen, page = list[tuple[str, str, str]](), PaymentMovePage([], ("", "", ""))
        while page.after:
            page = lists_of.changes(LAST, "usd", MOVES, after=page.after, most=most)
            assert len(page.rows) <= most
            seen += [(at, one.move, one.customer) for at, one in page.rows]
        assert seen == places
    for day, of in paid.items():
        if day < month_before:
            continue
        who = await rows_of(client, "paying", f"{day} usd")
        assert {row["customer"]: row["mrr"] for row in who} == of


async def test_before_the_first_day_there_is_no_revenue(kit: MeterKit, client: AsyncClient) -> None:
    await make_snapshot(kit)
    assert "There is no snapshot of revenue yet." in (await client.get("/")).text
    for path, of in (("paying", "usd"), ("usage", "usd"), ("moves", "2031-01-01 usd new")):
        assert await rows_of(client, path, of) == []


async def test_without_paying_customers_no_section_is_empty(
    kit: MeterKit, client: AsyncClient, tmp_path: Path
) -> None:
    RevenueTables(Database(sqlite_in(tmp_path))).write(LAST, [], [])
    await make_snapshot(kit)
    page = (await client.get("/")).text
    for note in ("No plan has paying customers.", "There was no revenue in the last thirty days."):
        assert note in page


@pytest.mark.usefixtures("sold")
async def test_lists_of_revenue_are_read_page_by_page(kit: MeterKit) -> None:
    lists = overview_of(kit).lists()
    first = lists.payments(LAST, "usd", "", after="", most=1)
    second = lists.payments(LAST, "usd", "", after="bob", most=1)
    assert [one.customer for one in (*first, *second)] == ["bob", "kim"]
    begun = date(2031, 5, 28)
    assert [one.customer for one in lists.moves(begun, "usd", "new", after="ada", most=5)] == ["bob"]
    charged = lists.usage(LAST, "usd", after=("ada", "2031-05-29"), most=2)
    assert [(one.customer, one.day) for one in charged] == [("ada", "2031-05-30"), ("bob", "2031-05-28")]
