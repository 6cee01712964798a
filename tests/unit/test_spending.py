"""What units cost beyond what is included, and the budgets that bound it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from meterkit.catalog import loads
from meterkit.decisions.spending import UnitPrice, budgets_of, price_of

PLANS = """
schema: 1
currency: CURRENCY
default_plan: pro
meters:
  words: {unit: word, stripe: {event_name: words}}
  plain: {unit: item}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: 100, per: PER}
    meters: {words: {included: 5, overage: {bill: {per: N, amount_cents: M}}}}
"""


def price(per: int, amount_cents: int, currency: str = "usd") -> UnitPrice | None:
    text = PLANS.replace("CURRENCY", currency).replace("PER", "period")
    catalog = loads(text.replace("N,", f"{per},").replace("M}", f"{amount_cents}}}"))
    return price_of("words", catalog.plans["pro"].entitlements, catalog)


def test_a_price_is_in_millionths_of_the_currency() -> None:
    assert price(1000, 7) == UnitPrice(70, 1, is_all=0)
    assert price(7000, 3) == UnitPrice(30, 7, is_all=0)
    assert price(7000, 3, "jpy") == UnitPrice(3000, 7, is_all=0)
    assert price(7000, 3, "kwd") == UnitPrice(3, 7, is_all=0)
    assert price(1000, 0) is None


def test_a_price_that_scripts_can_compute_is_exact() -> None:
    assert price(3_000_001, 299_999) == UnitPrice(2_999_990_000, 3_000_001, is_all=0)
    assert price(90_000_000_001, 9) == UnitPrice(90_000, 90_000_000_001, is_all=0)


@pytest.mark.parametrize(
    ("per", "amount_cents"),
    [(3_000_001, 300_000), (999_999_937, 99_999_999_999), (10**12, 98_765_432_109), (10**12, 33_333_333_333)],
)
def test_a_price_that_scripts_cannot_compute_is_a_millionth_too_dear_at_most(
    per: int, amount_cents: int
) -> None:
    found = price(per, amount_cents)
    assert found is not None
    # 2^53 is the most that a product may come to there.
    assert found.micros * found.per < 2**53
    exact = Fraction(amount_cents * 10_000, per)
    assert exact < Fraction(found.micros, found.per) < exact * Fraction(1_000_001, 1_000_000)


def test_a_budget_has_a_policy_in_minor_units() -> None:
    found = list[tuple[str, str, int | None, int]]()
    for per in ("period", "day", "hour"):
        text = PLANS.replace("CURRENCY", "usd").replace("PER", per).replace("N,", "1,").replace("M}", "1}")
        catalog = loads(text)
        (budget,) = budgets_of(catalog.plans["pro"].entitlements, catalog)
        policy = budget.policy
        assert (policy.quota, policy.quota_unit, budget.micros, budget.unit) == (100, "cents", 10**6, 10**4)
        found.append((policy.name, policy.kind, policy.window_s, budget.window_ms))
    assert found == [
        ("spend-period", "period", None, 0),
        ("spend-1d", "rate", 86_400, 86_400_000),
        ("spend-1h", "rate", 3600, 3_600_000),
    ]
