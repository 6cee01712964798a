from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_overrides import with_overrides
from meterkit.decisions.customer_state import CustomerState, entitlements_on
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import (
    Segment,
    ended_labels,
    label_of,
    overage_cents,
    segments_of,
)

if TYPE_CHECKING:
    from meterkit.catalog import Plan

NOW_MS: Final = 1_800_000_000_000
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  tokens:  {unit: token, stripe: {event_name: ai_tokens}}
  pages:   {unit: page, stripe: {event_name: ai_pages}}
  storage: {unit: byte, kind: gauge}
features: [chat]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {tokens: {included: 5, overage: deny}, pages: {included: 5, overage: bill}}
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      tokens:  {included: 5, overage: {bill: {per: 1_000, amount_cents: 12}}}
      pages:   {included: 5, overage: bill}
      storage: {included: 5MB, overage: {percent: 5, grace: 7d}}
  top:
    extends: pro
    meters: {tokens: {included: 5, overage: {bill: {per: 1, amount_cents: 12}}}}
""")
FREE, PRO, TOP = (CATALOG.plans[name] for name in ("free", "pro", "top"))
TOKENS: Final = meter_token("tokens")
OWN: Final = {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 2}}}}


def state(overrides: dict[str, Any], until_ms: int | None = None) -> CustomerState:
    return CustomerState(overrides=with_overrides({}, overrides, {}, until_ms=until_ms, now_ms=NOW_MS - 1))


def test_a_price_is_named_by_quantity_and_amount() -> None:
    assert [label_of(plan.entitlements["tokens"]) for plan in (FREE, PRO, TOP)] == ["-", "1000/12", "1/12"]
    assert label_of(PRO.entitlements["pages"]) == "-"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (FREE, PRO, {TOKENS: "0"}),
        (PRO, FREE, {TOKENS: "1000/12"}),
        (PRO, TOP, {TOKENS: "1000/12"}),
        (PRO, replace(PRO, key="same"), {}),
        (PRO, replace(TOP, key="pro"), {TOKENS: "1000/12"}),
    ],
)
def test_a_price_ends_where_the_plans_differ_in_it(
    before: Plan, after: Plan, expected: dict[str, str]
) -> None:
    assert ended_labels(before.entitlements, after.entitlements, CATALOG) == expected


@pytest.mark.parametrize(
    ("until_ms", "expected"),
    [
        (None, {}),
        (NOW_MS + 1, {}),
        (NOW_MS, {TOKENS: "1/2"}),
    ],
)
def test_a_customers_own_price_lasts_over_a_change_of_plan_until_its_end(
    until_ms: int | None, expected: dict[str, str]
) -> None:
    """The price of an override that ends was not seen: units were booked at the plan's."""
    own = state(OWN, until_ms)
    before, after = (
        entitlements_on(plan, own, CATALOG, at_ms) for plan, at_ms in ((PRO, NOW_MS - 1), (TOP, NOW_MS))
    )
    assert ended_labels(before, after, CATALOG) == expected


@pytest.mark.parametrize(
    ("marks", "sealed", "overage", "expected"),
    [
        ("", 7, 9, [("now", 7, 9)]),
        ("1/5 3 4", 7, 9, [("1/5", 3, 4), ("now", 4, 5)]),
        ("1/5 3 4;1/3 5 9", 7, 9, [("1/5", 3, 4), ("1/3", 2, 5), ("now", 2, 0)]),
        # A correction took back units of segments that have ended.
        ("1/5 3 4;1/3 5 9", 4, 6, [("1/5", 3, 4), ("1/3", 1, 2), ("now", 0, 0)]),
        ("1/5 3 4;1/3 5 9", 2, 1, [("1/5", 2, 1), ("1/3", 0, 0), ("now", 0, 0)]),
        ("1/5 3 4;1/3 2 2", 7, 9, [("1/5", 3, 4), ("1/3", 0, 0), ("now", 4, 5)]),
        ("1/5 0 0", 0, 0, [("1/5", 0, 0), ("now", 0, 0)]),
    ],
)
def test_each_unit_is_of_the_segment_in_which_it_was_counted(
    marks: str, sealed: int, overage: int, expected: list[tuple[str, int, int]]
) -> None:
    assert segments_of(marks, label="now", sealed=sealed, overage=overage) == expected


def test_what_a_unit_costs_is_exact() -> None:
    assert Segment("1000/12", 0, 0).unit_cents == Fraction(12, 1_000)
    assert Segment("-", 0, 0).unit_cents is None


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([("1/5", 0, 3), ("1/3", 0, 2)], 21),
        ([("1000/12", 0, 125)], 2),  # 1.5: half up.
        ([("1000/12", 0, 375)], 5),  # 4.5
        ([("1000/1", 0, 500), ("1000/2", 0, 250)], 2),  # Half a cent each: each has a line.
        ([("1/5", 0, 3), ("-", 0, 2)], None),
        ([("-", 0, 2), ("1/5", 0, 3)], None),
        ([("-", 9, 0), ("1/5", 0, 3)], 15),
        ([("1/5", 0, 3), ("-", 0, 0)], 15),
        ([("-", 0, 0)], None),
        ([("0", 0, 3)], None),
        ([("0", 0, 2), ("1/5", 0, 3), ("0", 0, 4)], 15),
        ([], 0),
    ],
)
def test_overage_costs_what_its_segments_cost(
    segments: list[tuple[str, int, int]], expected: int | None
) -> None:
    assert overage_cents([Segment(*one) for one in segments]) == expected
