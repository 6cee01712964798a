"""Recurring revenue: a snapshot of each day, figures worked by hand, and the tables."""
# Internals: pure tables of revenue, day by day, and of invoice lines.

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import AsyncGenerator, Mapping, Sequence, Sized
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from books.revenue_shop import CATALOG, MICRO, YEARLY, Books, books, on
from drivers.health_findings import findings, looked_at
from drivers.many_customers import copy_customer
from drivers.webhooks import hooked
from meterkit import MeterKit, Revenue, metrics_app
from meterkit.customers.history import read_states_and_histories
from meterkit.errors import MeterkitError, SettingsError
from meterkit.insights.audit.database import Database
from meterkit.insights.revenue.revenue_formulas import (
    ChurnShares,
    CustomerPayment,
    DayFigures,
    MonthlyChurn,
    OverageAmount,
    churn_of,
    forecast_revenue,
    lifetime_value,
    retention_of,
)
from meterkit.insights.revenue.tables import RevenueTables
from meterkit.insights.statement.lines import invoice_lines

pytestmark = pytest.mark.anyio


@pytest.fixture
async def at(store_url: str, tmp_path: Path) -> AsyncGenerator[Books]:
    async with books(store_url, tmp_path) as opened:
        yield opened


@pytest.mark.dear("each day of a quarter is kept")
async def test_movements_of_a_quarter_by_the_clock(at: Books) -> None:
    await at.subscribe("ada", "pro", seats=1, trial_period_days=14)
    await at.subscribe("bob", "yearly")
    await at.subscribe("eve", "max")
    await at.go(on(1, 2))
    # Ada is on trial; bob and eve pay.
    assert await at.moved(date(2031, 1, 1)) == {
        "mrr": YEARLY + 3000 * MICRO,
        "new": YEARLY + 3000 * MICRO,
        "customers": 2,
    }
    await at.go(on(1, 16))
    assert await at.moved(date(2031, 1, 15)) == {
        "mrr": YEARLY + (3000 + 1300) * MICRO,
        "new": 1300 * MICRO,
        "customers": 3,
    }
    await at.kit.subscriptions.change_plan("ada", "max")
    await at.go(on(1, 17))
    assert (await at.moved(date(2031, 1, 16)))["expansion"] == 1700 * MICRO
    await at.kit.subscriptions.cancel("eve")
    await at.go(on(2, 2))
    # Canceled in January, and paid for until the period ends.
    assert "churn" not in await at.moved(date(2031, 1, 31))
    assert await at.moved(date(2031, 2, 1)) == {
        "mrr": YEARLY + 3000 * MICRO,
        "churn": 3000 * MICRO,
        "customers": 2,
    }
    await at.go(on(2, 20))
    await at.subscribe("eve", "yearly")
    await at.go(on(2, 21))
    assert (await at.moved(date(2031, 2, 20)))["reactivation"] == YEARLY
    found = await at.revenue.at(date(2031, 2, 20))
    # Of those who paid on 20 January: bob, eve (who came back for less) and ada.
    base = YEARLY + 6000 * MICRO
    assert (found.nrr, found.grr) == ({"usd": (2 * YEARLY + 3000 * MICRO) / base}, found.nrr)
    assert (found.arpa, found.ltv) == ({"usd": round((2 * YEARLY + 3000 * MICRO) / 3)}, {"usd": None})
    await at.go(on(3, 2))
    # In February one of the three left who were there when it began.
    found = await at.revenue.at()
    assert (found.day, found.ltv) == (date(2031, 3, 1), {"usd": 2 * YEARLY + 3000 * MICRO})


async def test_a_lasting_coupon_lowers_revenue_even_once_deleted(at: Books) -> None:
    client = at.at.client
    coupon = await client.v1.coupons.create_async({"percent_off": 25, "duration": "forever"})
    await at.subscribe("ada", "max")
    (found,) = (await client.v1.subscriptions.list_async()).data
    await client.v1.subscriptions.update_async(found.id, {"discounts": [{"coupon": coupon.id}]})
    await client.v1.coupons.delete_async(coupon.id)
    await at.at.settle()
    await at.go(on(1, 2))
    assert await at.moved(date(2031, 1, 1)) == {"mrr": 2250 * MICRO, "new": 2250 * MICRO, "customers": 1}


async def test_a_coupon_of_an_item_is_taken_off_its_monthly_price(at: Books) -> None:
    # F-22a: MRR was that of the full price.
    client = at.at.client
    coupon = await client.v1.coupons.create_async({"percent_off": 25, "duration": "forever"})
    at.at.customer("ada")
    items = [{"price": "price_max", "discounts": [{"coupon": coupon.id}]}, {"price": "price_seat"}]
    await at.at.subscribe("ada", items=items)
    await at.at.settle()
    await at.go(on(1, 2))
    assert (await at.moved(date(2031, 1, 1)))["mrr"] == 2550 * MICRO


async def test_deleted_snapshots_are_made_again_identically(at: Books) -> None:
    await at.subscribe("ada", "pro", trial_period_days=14)
    await at.subscribe("bob", "max")
    await at.go(on(1, 17))
    await at.kit.subscriptions.change_plan("ada", "max")
    await at.kit.subscriptions.cancel("bob", immediately=True)
    await at.go(on(1, 20))
    await at.subscribe("bob", "yearly")
    await at.go(on(1, 25))
    kept = at.kept()
    assert len(kept[0]) > 30
    days = [date(2031, 1, day) for day in (15, 17, 18, 20, 24)]
    with sqlite3.connect(at.path) as database:
        for day in days:
            database.execute("delete from meterkit_revenue where day = ?", (day.isoformat(),))
            database.execute("delete from meterkit_revenue_days where day = ?", (day.isoformat(),))
    assert at.kept() != kept
    assert (await at.revenue.snapshot(), at.kept()) == (days, kept)
    # By SQL, on the rows of customers alone.
    sums = at.rows("select day, sum(mrr), count(*) from meterkit_revenue group by day order by day")
    figures = "select day, mrr, customers from meterkit_revenue_days where currency = 'usd' and mrr > 0"
    assert sums == at.rows(f"{figures} order by day")


async def test_revenue_of_the_restricted_is_that_of_their_plan(at: Books) -> None:
    await at.subscribe("ada", "max")
    await at.go(on(1, 2))
    at.at.emulator.fail_payments("cus_ada")
    at.at.clock.set(on(1, 31))
    await at.go(on(2, 12))
    assert (await at.kit.usage("ada"))["access"] == "restricted"
    assert (await at.kit.usage("ada"))["plan"] == "free"
    rows = at.rows("select distinct plan, mrr from meterkit_revenue")
    assert rows == [("max", 3000 * MICRO)]
    # A plan change at Stripe, as a migration makes it, while access stays restricted.
    (sold,) = (await at.at.client.v1.subscriptions.list_async({"customer": "cus_ada"})).data
    items: Any = [{"id": sold["items"].data[0].id, "price": "price_pro"}]
    change: Any = {"items": items, "proration_behavior": "none"}
    await at.at.client.v1.subscriptions.update_async(sold.id, change)
    await at.go(on(2, 14))
    assert (await at.kit.usage("ada"))["access"] == "restricted"
    by_day = "select plan, mrr, count(*) from meterkit_revenue group by 1, 2 order by min(day)"
    rows = at.rows(by_day)
    assert [plan for plan, _, _ in rows] == ["max", "pro"]
    await at.go(on(2, 20))  # Suspended, then canceled.
    rows = at.rows(by_day)
    with sqlite3.connect(at.path) as database:
        for day in ("2031-02-10", "2031-02-12", "2031-02-13"):
            for table in ("meterkit_revenue", "meterkit_revenue_days"):
                database.execute(f"delete from {table} where day = ?", (day,))  # noqa: S608 - names of ours
    await at.revenue.snapshot()
    assert at.rows(by_day) == rows


async def test_revenue_beside_a_plan_set_by_hand_is_its_subscriptions(at: Books) -> None:
    """It was that of the free plan, as the operator pages and metrics showed it."""
    await at.subscribe("ada", "max")
    await at.go(on(1, 3))
    await at.kit.customers.set_plan("ada", "free")
    await at.go(on(1, 5))
    assert at.rows("select distinct plan, mrr from meterkit_revenue") == [("max", 3000 * MICRO)]
    assert await at.kit.revenue.by_plan() == {("max", "usd"): 3000 * MICRO}
    await at.kit.customers.set_plan("ada", None)
    await at.go(on(1, 6))
    with sqlite3.connect(at.path) as database:
        for table in ("meterkit_revenue", "meterkit_revenue_days"):
            database.execute(f"delete from {table} where day > '2031-01-01'")  # noqa: S608 - names of ours
    await at.revenue.snapshot()
    rows = at.rows("select plan, count(*), sum(mrr) from meterkit_revenue group by 1")
    assert rows == [("max", 5, 5 * 3000 * MICRO)]


async def test_a_damaged_record_is_named_and_its_days_follow(at: Books) -> None:
    for customer in ("ada", "bob"):
        await at.subscribe(customer, "max")
    admin, key = await at.kit.store.admin(), at.kit.store.keys.customer("bob").state
    kept = await admin.client.hget(key, "data")
    await admin.client.hset(key, "data", b"{")
    at.at.clock.set(on(1, 2))
    with pytest.raises(MeterkitError, match="the record of customer 'bob' cannot be read"):
        await at.revenue.snapshot()
    await admin.client.hset(key, "data", kept)
    assert await at.revenue.snapshot() == [date(2031, 1, 1)]
    assert (await at.moved(date(2031, 1, 1)))["customers"] == 2


async def test_f_340_a_snapshot_holds_a_page_at_once(at: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """All payers were held at once, and sorted on the event loop of the app."""
    await at.subscribe("ada", "max")
    await copy_customer(at.kit, "ada", 120)
    held: list[int] = []
    write = RevenueTables.write

    async def reading(store: Any, customers: Sequence[str]) -> Any:
        held.append(len(customers))
        return await read_states_and_histories(store, customers)

    def writing(tables: RevenueTables, day: date, *rows: Any) -> None:
        held.extend(len(one) for one in rows if isinstance(one, Sized))
        write(tables, day, *rows)

    monkeypatch.setattr("meterkit.insights.revenue.revenue.read_states_and_histories", reading)
    monkeypatch.setattr(RevenueTables, "write", writing)
    at.at.clock.set(on(1, 2))
    await at.revenue.snapshot()
    assert (sum(held), max(held) <= 25) == (121, True)
    assert (await at.moved(date(2031, 1, 1)))["customers"] == 121


@pytest.mark.whole
@pytest.mark.dear("a snapshot of 20,000 customers")
async def test_f_340_memory_of_a_snapshot_stays(at: Books) -> None:
    await at.subscribe("ada", "max")
    await at.go(on(1, 2))
    await copy_customer(at.kit, "ada", 20_000)
    at.at.clock.set(on(1, 3))
    tracemalloc.start()
    try:
        await at.revenue.snapshot()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (await at.moved(date(2031, 1, 2)))["customers"] == 20_001
    assert most < 4_000_000


async def test_a_currency_whose_customers_all_left_keeps_its_shares(at: Books) -> None:
    tables, usd, eur = RevenueTables(Database(f"sqlite:///{at.path}")), paying(ada=8), paying("eur", bob=5)
    for day, found in (((1, 1), usd + eur), ((1, 2), usd + eur), ((1, 3), usd), ((2, 1), usd)):
        tables.write(date(2031, *day), found, [])
    last = await at.revenue.at(date(2031, 2, 1))
    assert (last.mrr, last.customers) == ({"eur": 0, "usd": 8}, {"eur": 0, "usd": 1})
    assert (last.nrr, last.grr) == ({"eur": 0.0, "usd": 1.0}, last.nrr)
    assert (last.customer_churn, last.gross_churn) == ({"eur": 1.0, "usd": 0.0}, last.customer_churn)


async def test_without_an_audit_log_the_setting_is_named(store_url: str) -> None:
    async with hooked(store_url, catalog=CATALOG) as at:
        with pytest.raises(SettingsError, match="METERKIT_AUDIT_URL"):
            await at.kit.revenue.at()


async def test_acquisition_cost_is_spend_by_new_customers(at: Books) -> None:
    await at.subscribe("ada", "max")
    await at.subscribe("bob", "max")
    await at.go(on(1, 2))
    assert (await at.revenue.at()).cac is None
    await at.revenue.spend(date(2031, 1, 1), 7000)
    await at.revenue.spend(date(2031, 1, 1), 5000)
    await at.revenue.spend(date(2030, 12, 25), 1001)
    await at.revenue.spend(date(2030, 11, 30), 99_999)
    assert (await at.revenue.at()).cac == 3001  # Half a cent is rounded up.
    wrong: Any
    for wrong in (-1, 1.5, True):
        with pytest.raises(MeterkitError, match=f"found {wrong} cents"):
            await at.revenue.spend(date(2031, 1, 1), wrong)
    instant = datetime(2030, 12, 25, 9, tzinfo=UTC)
    for refused in (
        at.revenue.spend(instant, 1001),
        at.revenue.at(instant),
        at.revenue.days(instant, instant),
    ):
        with pytest.raises(MeterkitError, match="day: found a value of type datetime"):
            await refused


@pytest.mark.dear("two months at Stripe")
async def test_usage_revenue_has_late_usage_once_and_at_its_own_price(at: Books) -> None:
    client = at.at.client
    for customer in ("ada", "bob", "eve"):
        await at.subscribe(customer, "pro")
        # Ten are included; each of the others costs 5 cents.
        await at.kit.record(customer, "requests", 30)
    at.at.clock.set(on(1, 31))
    # Max sells no overage: an invoice item bills what is late of bob and of eve.
    await at.kit.subscriptions.change_plan("bob", "max")
    await at.go(on(2, 1))
    at.at.clock.set(on(2, 1, 15))
    at.at.emulator.advance()
    # Eve's plan becomes another one before anybody looks.
    (sold,) = (await client.v1.subscriptions.list_async({"customer": "cus_eve"})).data
    items: Any = [{"id": sold["items"].data[0].id, "price": "price_max"}]
    await client.v1.subscriptions.update_async(sold.id, {"items": items})
    await at.at.settle()
    for customer in ("ada", "bob", "eve"):
        assert (await at.kit.usage(customer, period=on(1, 2)))["meters"]["requests"]["late"] == 20
    for hour in (16, 17):  # The first flush of a store that it meets only looks.
        at.at.clock.set(on(2, 1, hour))
        await at.kit.flush()
    at.at.clock.set(on(3, 1))
    at.at.emulator.advance()
    await at.at.settle()
    await at.go(on(3, 3))
    assert at.rows("select day, customer, amount from meterkit_revenue_usage order by day, customer") == [
        ("2031-02-01", "bob", 100 * MICRO),
        ("2031-02-01", "eve", 100 * MICRO),
        ("2031-03-01", "ada", 100 * MICRO),  # The invoice of February has it.
    ]


async def test_revenue_by_plan_is_a_metric(at: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.subscribe("ada", "max")
    await at.subscribe("bob", "yearly")
    await at.go(on(1, 2))
    lines = await scraped(at.kit)
    assert lines["meterkit_mrr_cents", "max", "usd"] == 3000
    assert lines["meterkit_mrr_cents", "yearly", "usd"] == pytest.approx(10_000 / 12)
    at.path.write_bytes(b"no database")
    # A process shows what it has read; one that could read nothing leaves it out.
    assert await scraped(at.kit) == lines
    monkeypatch.setitem(vars(at.kit), "revenue", Revenue(at.kit.store, at.kit.settings))
    assert await scraped(at.kit) == {}


async def test_days_without_a_snapshot_are_found(at: Books) -> None:
    assert await looked_at(at.kit, "revenue") == ("no snapshot yet: each past day gets one", [])
    assert at.tables() == []
    await at.go(on(1, 5))
    assert await looked_at(at.kit, "revenue") == ("the last snapshot is of 2031-01-04", [])
    # The day that has just ended is still to be made.
    at.at.clock.set(on(1, 6))
    assert await findings(at.kit, "revenue") == []
    at.at.clock.set(on(1, 8))
    _, (finding,) = await looked_at(at.kit, "revenue")
    assert finding.problem.startswith("revenue has no snapshot of 2 days, the first 2031-01-05: ")
    await at.revenue.snapshot()
    assert await findings(at.kit, "revenue") == []
    with sqlite3.connect(at.path) as database:
        database.execute("delete from meterkit_revenue_days where day = '2031-01-03'")
    assert [one.problem for one in await findings(at.kit, "revenue")] == [
        "revenue has no snapshot of 2031-01-03: `meterkit revenue` lacks the changes of those days"
    ]


async def test_no_day_before_the_first_snapshot_is_missed(at: Books) -> None:
    at.at.clock.set(on(1, 5))
    await at.revenue.snapshot()
    assert await looked_at(at.kit, "revenue") == ("the last snapshot is of 2031-01-04", [])


async def scraped(kit: MeterKit) -> dict[tuple[str, ...], float]:
    transport = httpx.ASGITransport(metrics_app(kit))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        text = (await client.get("/")).text
    return {
        (sample.name, sample.labels["plan"], sample.labels["currency"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "meterkit_mrr_cents"
    }


def paying(currency: str = "usd", /, **mrr: int) -> list[CustomerPayment]:
    return [CustomerPayment(customer, "pro", currency, amount) for customer, amount in mrr.items()]


@pytest.mark.parametrize(
    ("before", "after", "former", "expected"),
    [
        ({}, {"a": 29}, set[str](), DayFigures(mrr=29, new=29, customers=1, new_customers=1)),
        ({}, {"a": 29}, {"a"}, DayFigures(mrr=29, reactivation=29, customers=1)),
        ({"a": 29}, {"a": 99}, {"a"}, DayFigures(mrr=99, expansion=70, customers=1)),
        ({"a": 99}, {"a": 29}, {"a"}, DayFigures(mrr=29, contraction=70, customers=1)),
        ({"a": 29}, {}, {"a"}, DayFigures(churn=29, churned_customers=1)),
    ],
)
def test_each_movement_has_its_name(
    tmp_path: Path,
    before: Mapping[str, int],
    after: Mapping[str, int],
    former: set[str],
    expected: DayFigures,
) -> None:
    _, last = written(f"sqlite:///{tmp_path}/audit.db", paying(**dict.fromkeys(former, 7)), before, after)
    assert last == {"usd": expected}


def test_currencies_are_never_added(audit_url: str) -> None:
    _, last = written(audit_url, [], paying(a=10), [*paying("eur", a=9), *paying(b=5)])
    assert last == {
        "eur": DayFigures(mrr=9, new=9, customers=1, new_customers=1),
        "usd": DayFigures(mrr=5, new=5, churn=10, customers=1, new_customers=1, churned_customers=1),
    }


def test_retention_is_of_those_who_were_there_at_the_beginning(audit_url: str) -> None:
    tables, _ = written(audit_url, paying(a=100, b=100, c=100), [], paying(a=150, b=40, d=500))
    found = tables.retained(START, START + timedelta(days=2))
    assert found == {"usd": (300, 190, 140)}
    assert retention_of(found["usd"]) == (190 / 300, 140 / 300)
    assert tables.retained(START, START) == {"usd": (300, 300, 300)}
    assert tables.retained(START + timedelta(days=1), START) == {}


START: Final = date(2031, 1, 1)


def written(
    url: str, *days: Mapping[str, int] | Sequence[CustomerPayment]
) -> tuple[RevenueTables, Mapping[str, DayFigures]]:
    """Tables with some days, one after the other, and the figures of the last one."""
    tables, last = RevenueTables(Database(url)), START + timedelta(days=len(days) - 1)
    for nth, found in enumerate(days):
        paid = found if isinstance(found, Sequence) else paying(**found)
        tables.write(START + timedelta(days=nth), paid, [])
    return tables, tables.days(last, last)[last]


@pytest.mark.parametrize(
    ("mrr", "customers", "months", "expected"),
    [
        # The example of ChartMogul's page: 100 a customer, of whom 5 % leave in a month.
        (10_000 * MICRO, 1, [MonthlyChurn(100, 5)], 200_000 * MICRO),
        (300, 3, [MonthlyChurn(10, 1), MonthlyChurn(10, 3), MonthlyChurn(0, 0)], 500),
        (300, 3, [MonthlyChurn(10, 0)], None),
        (0, 0, [MonthlyChurn(10, 1)], None),
    ],
)
def test_lifetime_value(mrr: int, customers: int, months: list[MonthlyChurn], expected: int | None) -> None:
    assert lifetime_value(mrr, customers, months) == expected


def test_churn_is_a_share_of_the_revenue_at_the_start() -> None:
    # The example of ChartMogul's page: of 100 ten churn, ten are contraction, and ten expansion.
    moved = DayFigures(churn=10, contraction=10, expansion=10, new=99, churned_customers=1)
    assert churn_of(DayFigures(mrr=100, customers=4), moved) == ChurnShares(1 / 4, 0.2, 0.1)
    assert churn_of(DayFigures(mrr=100, customers=4), DayFigures(reactivation=10)) == ChurnShares(
        0.0, 0.0, -0.1
    )
    assert churn_of(DayFigures(mrr=100, customers=4), None) == ChurnShares(0.0, 0.0, 0.0)
    assert churn_of(None, moved) == ChurnShares(None, None, None)


@pytest.mark.parametrize(
    ("mrr", "expected"),
    [
        ([100], None),
        ([100, 110, 121], (132, 1 / 121)),
        # Three changes count: 30, 30 and 0.
        ([500, 100, 130, 160, 160], (180, None)),
        ([10, 0], (0, None)),
    ],
)
def test_a_forecast_goes_on_as_the_last_three_months_did(
    mrr: list[int], expected: tuple[int, float | None] | None
) -> None:
    found = forecast_revenue(mrr)
    assert (None if found is None else found.mrr) == (None if expected is None else expected[0])
    if found is not None and expected is not None and len(mrr) < 5:
        assert found.error == expected[1]


def test_forecast_error_is_the_average_of_the_last_six() -> None:
    found = forecast_revenue([900, *[100] * 7, 200, 400, 800])
    assert found is not None
    # Expected was 100 four times (three changes of 0), then 233 and 500.
    assert found.error == (0 + 0 + 0 + 100 / 200 + 167 / 400 + 300 / 800) / 6


def test_a_day_that_is_written_again_stays_as_it_was(audit_url: str) -> None:
    tables, first, second = RevenueTables(Database(audit_url)), date(2031, 1, 30), date(2031, 1, 31)
    for written in (first, second):
        tables.write(written, [CustomerPayment("ada", "pro", "usd", 7)], [OverageAmount("ada", "usd", 3)])
    for _ in range(2):
        tables.write(second, [CustomerPayment("ada", "pro", "usd", 7)], [OverageAmount("ada", "usd", 3)])
    tables.compute(second)
    assert tables.days(second, second) == {second: {"usd": DayFigures(mrr=7, customers=1)}}
    assert tables.by_plan(second) == {("pro", "usd"): 7}
    assert tables.usage(first, second) == {"usd": 6}


def invoice(total: int, **more: Any) -> dict[str, Any]:
    line = {"id": "il_1", "amount": 1_000, "quantity": 1}
    return {"id": "in_1", "created": 1, "status": "paid", "total": total, "lines": {"data": [line]}, **more}


@pytest.mark.parametrize(
    ("total", "more", "expected"),
    [
        (1_000, {}, []),
        # https://docs.stripe.com/api/invoices/object: inclusive tax is within the amounts of lines.
        (1_000, {"total_taxes": [{"amount": 160, "tax_behavior": "inclusive"}]}, []),
        (1_200, {"total_taxes": [{"amount": 200, "tax_behavior": "exclusive"}]}, [("tax", 200)]),
        (
            1_080,
            {
                "total_discount_amounts": [{"amount": 60}, {"amount": 40}],
                "total_taxes": [{"amount": 180, "tax_behavior": "exclusive"}],
            },
            [("discount", -100), ("tax", 180)],
        ),
        (950, {"total_discount_amounts": [{"amount": 60}]}, [("discount", -60), ("difference", 10)]),
        (0, {}, [("difference", -1_000)]),
    ],
)
async def test_rest_of_an_invoice(total: int, more: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    lines = invoice_lines(invoice(total, **more), {}, ())
    assert [(line.kind, line.amount_cents) for line in lines[1:]] == expected
    assert sum(line.amount_cents for line in lines) == total
