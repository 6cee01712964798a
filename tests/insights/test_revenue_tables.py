"""The tables of revenue in each database."""
# Internals: the tables of revenue in each database.

from __future__ import annotations

from datetime import date

from meterkit.insights.audit.database import Database
from meterkit.insights.revenue.figures import Day, Paying, Used
from meterkit.insights.revenue.tables import RevenueTables

MUCH = 9 * 10**16
"""Micro-cents: sums of it need 64 bits."""
FIRST, SECOND, THIRD = date(2031, 1, 30), date(2031, 1, 31), date(2031, 2, 1)


def test_days_are_kept_and_summed(audit_url: str) -> None:
    tables = RevenueTables(Database(audit_url))
    assert not tables.look()
    assert (tables.last(THIRD), tables.missing(THIRD)) == (None, [THIRD])
    ada, bob = Paying("ada", "pro", "usd", MUCH), Paying("bob", "max", "usd", MUCH)
    eve = Paying("eve", "pro", "eur", 5)
    tables.write(FIRST, [ada], [])
    assert tables.missing(THIRD) == [SECOND, THIRD]
    tables.write(SECOND, [ada, bob, eve], [Used("ada", "usd", MUCH), Used("eve", "usd", 3)])
    tables.write(THIRD, [bob], [Used("ada", "usd", 7)])
    assert tables.look()
    assert (tables.last(THIRD), tables.last(SECOND), tables.missing(THIRD)) == (THIRD, SECOND, [])
    assert tables.paying(SECOND) == [ada, bob, eve]
    days = tables.days(SECOND, THIRD)
    assert days[SECOND]["usd"] == Day(mrr=2 * MUCH, new=MUCH, customers=2, new_customers=1)
    assert days[THIRD] == {
        "eur": Day(churn=5, churned_customers=1),
        "usd": Day(mrr=MUCH, churn=MUCH, customers=1, churned_customers=1),
    }
    assert tables.by_plan(SECOND) == {("pro", "usd"): MUCH, ("max", "usd"): MUCH, ("pro", "eur"): 5}
    assert (tables.usage(SECOND, THIRD), tables.usage(FIRST, FIRST)) == ({"usd": MUCH + 10}, {})
    tables.spend(FIRST, 10)
    tables.spend(FIRST, 30)
    tables.spend(THIRD, 5)
    assert (tables.spent(FIRST, THIRD), tables.spent(SECOND, SECOND)) == (35, 0)


def test_a_day_that_is_written_again_stays_as_it_was(audit_url: str) -> None:
    tables = RevenueTables(Database(audit_url))
    for day in (FIRST, SECOND):
        tables.write(day, [Paying("ada", "pro", "usd", 7)], [Used("ada", "usd", 3)])
    for _ in range(2):
        tables.write(SECOND, tables.paying(SECOND), tables.used(SECOND))
    assert tables.days(SECOND, SECOND) == {SECOND: {"usd": Day(mrr=7, customers=1)}}
    assert (tables.paying(SECOND), tables.used(SECOND)) == (
        [Paying("ada", "pro", "usd", 7)],
        [Used("ada", "usd", 3)],
    )
