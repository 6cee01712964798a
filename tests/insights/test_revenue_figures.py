"""Figures of recurring revenue: each movement, exactly, and shares that have nothing to be taken of."""
# Internals: a pure table of revenue, day by day.

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.insights.audit.database import Database
from meterkit.insights.revenue.figures import (
    Churn,
    Day,
    Month,
    Paying,
    Used,
    churn_of,
    days_of,
    forecast_of,
    lifetime_value,
    retention_of,
)
from meterkit.insights.revenue.tables import RevenueTables

if TYPE_CHECKING:
    from collections.abc import Mapping

MICRO: Final = 1_000_000


def paying(currency: str = "usd", /, **mrr: int) -> list[Paying]:
    return [Paying(customer, "pro", currency, amount) for customer, amount in mrr.items()]


def day(**figures: int) -> Day:
    return Day(**figures)


@pytest.mark.parametrize(
    ("before", "after", "former", "expected"),
    [
        ({}, {"a": 29}, set[str](), day(mrr=29, new=29, customers=1, new_customers=1)),
        ({}, {"a": 29}, {"a"}, day(mrr=29, reactivation=29, customers=1)),
        ({"a": 29}, {"a": 99}, {"a"}, day(mrr=99, expansion=70, customers=1)),
        ({"a": 99}, {"a": 29}, {"a"}, day(mrr=29, contraction=70, customers=1)),
        ({"a": 29}, {}, {"a"}, day(churn=29, churned_customers=1)),
    ],
)
def test_each_movement_has_its_name(
    before: Mapping[str, int], after: Mapping[str, int], former: set[str], expected: Day
) -> None:
    known = {(customer, "usd") for customer in former}
    assert days_of(paying(**before), paying(**after), known) == {"usd": expected}


def test_currencies_are_never_added() -> None:
    found = days_of(paying(a=10), [*paying("eur", a=9), *paying(b=5)], {("a", "usd")})
    assert found == {
        "eur": day(mrr=9, new=9, customers=1, new_customers=1),
        "usd": day(mrr=5, new=5, churn=10, customers=1, new_customers=1, churned_customers=1),
    }


def test_retention_is_of_those_who_were_there_at_the_beginning() -> None:
    start, end = paying(a=100, b=100, c=100), paying(a=150, b=40, d=500)
    found = retention_of(start, end)["usd"]
    assert (found.net, found.gross) == (190 / 300, 140 / 300)
    assert retention_of(start, start)["usd"] == (1.0, 1.0)
    assert retention_of([], end) == {}


@pytest.mark.parametrize(
    ("mrr", "customers", "months", "expected"),
    [
        # The example of ChartMogul's page: 100 a customer, of whom 5 % leave in a month.
        (10_000 * MICRO, 1, [Month(100, 5)], 200_000 * MICRO),
        (300, 3, [Month(10, 1), Month(10, 3), Month(0, 0)], 500),
        (300, 3, [Month(10, 0)], None),
        (0, 0, [Month(10, 1)], None),
    ],
)
def test_lifetime_value(mrr: int, customers: int, months: list[Month], expected: int | None) -> None:
    assert lifetime_value(mrr, customers, months) == expected


def test_churn_is_a_share_of_the_revenue_at_the_start() -> None:
    # The example of ChartMogul's page: of 100 ten churn, ten are contraction, and ten expansion.
    moved = day(churn=10, contraction=10, expansion=10, new=99, churned_customers=1)
    assert churn_of(day(mrr=100, customers=4), moved) == Churn(1 / 4, 0.2, 0.1)
    assert churn_of(day(mrr=100, customers=4), day(reactivation=10)) == Churn(0.0, 0.0, -0.1)
    assert churn_of(day(mrr=100, customers=4), None) == Churn(0.0, 0.0, 0.0)
    assert churn_of(None, moved) == Churn(None, None, None)


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
    found = forecast_of(mrr)
    assert (None if found is None else found.mrr) == (None if expected is None else expected[0])
    if found is not None and expected is not None and len(mrr) < 5:
        assert found.error == expected[1]


def test_forecast_error_is_the_average_of_the_last_six() -> None:
    found = forecast_of([900, *[100] * 7, 200, 400, 800])
    assert found is not None
    # Expected was 100 four times (three changes of 0), then 233 and 500.
    assert found.error == (0 + 0 + 0 + 100 / 200 + 167 / 400 + 300 / 800) / 6


def test_a_day_that_is_written_again_stays_as_it_was(audit_url: str) -> None:
    tables, first, second = RevenueTables(Database(audit_url)), date(2031, 1, 30), date(2031, 1, 31)
    for written in (first, second):
        tables.write(written, [Paying("ada", "pro", "usd", 7)], [Used("ada", "usd", 3)])
    for _ in range(2):
        tables.write(second, tables.paying(second), tables.used(second))
    assert tables.days(second, second) == {second: {"usd": day(mrr=7, customers=1)}}
    assert (tables.paying(second), tables.used(second)) == (
        [Paying("ada", "pro", "usd", 7)],
        [Used("ada", "usd", 3)],
    )
