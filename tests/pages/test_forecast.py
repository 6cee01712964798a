"""Where a period is heading, and what its usage costs on other plans."""
# Internals: pure tables of forecasts and days.

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.audit_database import AuditRow
from drivers.audited_kit import sqlite_in
from drivers.plans import plans_text
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.simulation.plan_costs import build_terms
from meterkit.pages.forecast import CreditBalance, forecast_usage
from meterkit.pages.other_plans import price_on_plans
from meterkit.pages.usage_figures import days_of

CATALOG = loads(plans_text("forecast"))
SMALL, CAPPED = ((plan, build_terms(CATALOG, plan, plan.entitlements, 0)) for plan in CATALOG.plans.values())


def counts(
    recorded: int, *, overage: int = 0, included: int | str = 100, granted: int = 0, over_cap: int = 0
) -> Any:
    classes = {"overage": overage, "included": included, "granted": granted, "over_cap": over_cap}
    return {"recorded": recorded, **classes}


@pytest.mark.parametrize(
    ("days", "used", "rest", "meter", "cents"),
    [
        # Steady: nothing varies.
        ([10, 10, 10], counts(30), 27, (300, 300, 300), (1_100, 1_100, 1_100)),
        # Two days that differ by 20: a standard deviation of 14.14, over four days twice that, times 1.28.
        ([0, 20], counts(20), 4, (60, 23, 97), (1_000, 1_000, 1_000)),
        # Only the last fourteen days count.
        ([1_000] + [1] * 14, counts(1_014, overage=914), 10, (1_024, 1_024, 1_024), (1_462, 1_462, 1_462)),
        # One day says nothing of how days vary: twice as much, or nothing.
        ([10], counts(10), 1, (20, 10, 33), (1_000, 1_000, 1_000)),
        # Grants have paid for units beyond what is included, and have 40 left.
        ([50, 50], counts(150, granted=90), 2, (250, 250, 250), (1_030, 1_030, 1_030)),
        # What was taken back lowers the mean, and what was used stays.
        ([-30, -30], counts(40), 2, (40, 40, 40), (1_000, 1_000, 1_000)),
    ],
)
def test_where_a_meter_is_heading(
    days: list[int], used: Any, rest: float, meter: tuple[int, int, int], cents: tuple[int, int, int]
) -> None:
    found = forecast_usage({"calls": days}, {"calls": used}, rest, SMALL[1])
    assert (found["meters"]["calls"], found["cost_cents"]) == (meter, cents)


def test_what_would_be_refused_is_not_expected() -> None:
    usage = {"tokens": counts(40, included=50, granted=5), "gone": counts(3, included=0)}
    found = forecast_usage({"tokens": [20, 20], "gone": [], "none": [1]}, usage, 10, SMALL[1])
    assert (found["meters"], found["cost_cents"]) == ({"tokens": (55, 55, 55)}, (1_000, 1_000, 1_000))


def test_credits_pay_for_usage_that_is_expected() -> None:
    balances = [CreditBalance(60_000_000, {"calls": 1_000_000, "tokens": 2_000_000})]
    usage = {"calls": counts(110), "tokens": counts(40, included=50)}
    days = {"calls": [10, 10], "tokens": [9, 9]}
    found = forecast_usage(days, usage, 10, SMALL[1], balances)
    # 60 credits pay for 60 of the 100 more calls, and alone for 30 tokens beyond those included.
    assert found["meters"] == {"calls": (210, 210, 210), "tokens": (80, 80, 80)}
    assert found["cost_cents"] == (1_020, 1_020, 1_020)


def test_other_plans_with_what_they_grant() -> None:
    # On `capped` credits pay for 30 tokens beyond 10, and a grant for 20 calls.
    within, beyond = {"calls": 140, "tokens": 40}, {"calls": 141, "tokens": 41}
    assert [
        (one["plan"], one["cost_cents"], one["refused"])
        for one in price_on_plans(CATALOG, [CAPPED, SMALL], within, SMALL[1], {})
    ] == [("small", 1_020, []), ("capped", 1_248, [])]
    assert price_on_plans(CATALOG, [CAPPED], beyond, SMALL[1], {}) == [
        {
            "plan": "capped",
            "name": "capped",
            "cost_cents": 1_248,
            "refused": ["calls", "tokens"],
            "unpriced": [],
        }
    ]


def test_on_other_plans_grants_given_once_pay_for_no_period() -> None:
    catalog = loads(plans_text("forecast").replace("every: period", "every: once"))
    plan = catalog.plans["capped"]
    offer = plan, build_terms(catalog, plan, plan.entitlements, 0)
    (one,) = price_on_plans(catalog, [offer], {"calls": 140, "tokens": 40}, SMALL[1], {})
    assert one["refused"] == ["calls", "tokens"]


def test_on_other_plans_grants_of_meters_pay_before_credits() -> None:
    catalog = loads(plans_text("forecast").replace("{tokens: 2 per 1}", "{calls: 1, tokens: 2 per 1}"))
    plan = catalog.plans["capped"]
    offer = plan, build_terms(catalog, plan, plan.entitlements, 0)
    (one,) = price_on_plans(catalog, [offer], {"calls": 20, "tokens": 40}, SMALL[1], {})
    assert (one["cost_cents"], one["refused"]) == (1_200, [])


def test_usage_over_a_cap_is_expected_to_cost_what_the_cap_costs() -> None:
    (small,) = price_on_plans(CATALOG, [CAPPED], {"calls": 5_000}, SMALL[1], {})
    assert (small["cost_cents"], small["refused"]) == (1_248, ["calls"])
    usage = {
        "calls": counts(5_000, included=0, overage=50, over_cap=4_950)
    }  # Of a plan before with a lower cap.
    assert forecast_usage({"calls": [300, 300]}, usage, 10, CAPPED[1])["cost_cents"] == (1_220, 1_220, 1_220)
    lower = counts(100, included=0, overage=50, over_cap=50)
    assert forecast_usage({"calls": [50, 50]}, {"calls": lower}, 10, CAPPED[1])["cost_cents"] == (1_228,) * 3


def test_units_of_a_derived_meter_have_its_price() -> None:
    """They had that of its source."""
    text = plans_text("derived_costs")
    catalog = loads(text.replace("LARGE", "{overage: {bill: {per: 1000, amount_cents: 6}}}"))
    (own, pro), (more, offer) = (
        (plan, build_terms(catalog, plan, plan.entitlements, 0)) for plan in [*catalog.plans.values()][1:]
    )
    assert (own.key, more.key) == ("pro", "more")
    usage = {
        "output_tokens": counts(200_000, overage=190_000, included=10_000),
        "large_output": counts(100_000, overage=100_000, included=0),
    }
    # So far 90,000 at 2 cents a thousand and 100,000 at 6; on another day the same without the included ones.
    days = {"output_tokens": [200_000], "large_output": [100_000]}
    found = forecast_usage(days, usage, 1, pro, overage_cents=780)
    assert found["cost_cents"].expected == 1_900 + 780 + 200 + 600
    used = {name: of["recorded"] for name, of in usage.items()}
    (other,) = price_on_plans(catalog, [(more, offer)], used, pro, {})
    assert (other["cost_cents"], other.get("estimated")) == (2_900 + 95 + 380, True)


def test_days_of_a_period_are_read_from_the_audit_log(tmp_path: Path) -> None:
    database, day = Database(sqlite_in(tmp_path)), 86_400_000
    assert database.days("acme", day) == {}
    # Name, kind, customer, period, recorded at, quantity, occurred at.
    written: list[tuple[str, str, str, int | None, int, int, int | None]] = [
        ("before it was deleted", "recorded", "acme", day, day + 1, 100, None),
        ("deletion", "deleted", "acme", None, day + 2, 0, None),
        ("first", "recorded", "acme", day, day + 3, 5, None),
        ("second", "summed", "acme", day, 2 * day - 1, 7, None),
        ("correction", "corrected", "acme", day, 2 * day, -2, None),
        ("told a day later", "recorded", "acme", day, 2 * day, 20, day + 9),
        ("of another period", "recorded", "acme", 31 * day, 2 * day, 1000, None),
        ("of another customer", "recorded", "other", day, 2 * day, 1000, None),
        ("not sent", "dropped", "acme", day, 2 * day, 1000, None),
    ]
    rows = [
        AuditRow(name, "tokens", kind, customer, period, recorded, quantity, occurred_at_ms=occurred)
        for name, kind, customer, period, recorded, quantity, occurred in written
    ]
    database.insert(rows)
    assert database.days("acme", day) == {(1, "tokens"): 32, (2, "tokens"): -2}


def test_days_are_laid_out_without_a_gap() -> None:
    day = 86_400_000
    sums = {(0, "b"): 1, (2, "a"): 5, (9, "a"): 2}
    found = days_of(sums, day + 5, 3 * day)
    assert found == {
        "days": ["1970-01-02", "1970-01-03", "1970-01-04"],
        "meters": {"a": [0, 5, 2], "b": [1, 0, 0]},
    }
