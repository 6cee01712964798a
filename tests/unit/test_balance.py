from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_state import NO_STATE, CustomerState, effective_plan
from meterkit.decisions.grants import MICRO, Prepaid, prepaid_by_plan, prepaid_of
from meterkit.decisions.holdings import Balance, Holding, holdings_of
from meterkit.decisions.periods import Bounds

DAY_MS: Final = 86_400_000
START_MS: Final = 1_800_000_000_000
END_MS: Final = START_MS + 30 * DAY_MS
BOUNDS: Final = Bounds(start_ms=START_MS, end_ms=END_MS, next_end_ms=END_MS + 31 * DAY_MS)
NOW_MS: Final = START_MS + DAY_MS
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: pro
meters:
  asked:    {unit: token}
  answered: {unit: token}
  pages:    {unit: page}
credits: {ai: {costs: {asked: 1 per 1000, answered: 4 per 1000}}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      asked:    {included: 100, overage: deny}
      answered: {included: 50, overage: deny}
      pages:    {included: 10, overage: deny}
    grants:
      - {credit: ai, quantity: 500, every: period, priority: 10}
      - {meter: pages, quantity: 20, every: period, priority: 5, expires: 90d}
  plain: {price: {amount_cents: 0, interval: month}}
""")
PRO: Final = CATALOG.plans["pro"]
PREPAID: Final = Prepaid.of(PRO, CATALOG)
NAMES: Final = {target: name for name, target, *_ in PREPAID.recurring}


def holding(name: str, target: str, quantity: int, *, used: int = 0, expires_ms: int = END_MS) -> Holding:
    return Holding(
        name=name,
        target=target,
        quantity=quantity,
        used=used,
        priority=50,
        effective_ms=START_MS,
        expires_ms=expires_ms,
        created_ms=START_MS,
        until_ms=expires_ms,
    )


def fields(*holdings: Holding) -> dict[str, str]:
    return {
        one.name: f"{one.target} {one.quantity} {one.used} {one.priority} {one.effective_ms}"
        f" {one.expires_ms} {one.created_ms} {one.until_ms}"
        for one in holdings
    }


def given(*on_file: Holding, now_ms: int = NOW_MS, prepaid: Prepaid | None = PREPAID) -> list[Holding]:
    return holdings_of(fields(*on_file), prepaid, BOUNDS, now_ms)


def test_a_plan_gives_its_grants_in_the_order_of_their_priority() -> None:
    pages, credit = given()
    assert (pages.target, pages.quantity, pages.used, pages.priority) == ("m:pages", 20, 0, 5)
    assert (credit.target, credit.quantity, credit.used, credit.priority) == ("c:ai", 500 * MICRO, 0, 10)
    for one, expires_ms in ((pages, START_MS + 90 * DAY_MS), (credit, END_MS)):
        assert (one.effective_ms, one.created_ms) == (START_MS, START_MS)
        assert (one.expires_ms, one.until_ms) == (expires_ms, expires_ms)


@pytest.mark.parametrize(
    ("now_ms", "start_ms", "end_ms"),
    [
        (START_MS, START_MS, END_MS),
        (END_MS - 1, START_MS, END_MS),
        (END_MS, END_MS, BOUNDS.next_end_ms),
    ],
)
def test_a_plan_gives_what_is_due_in_the_period_of_the_instant(
    now_ms: int, start_ms: int, end_ms: int
) -> None:
    credit = given(now_ms=now_ms)[1]
    assert (credit.effective_ms, credit.expires_ms) == (start_ms, end_ms)
    assert credit.name == f"{NAMES['c:ai']} {start_ms}"


def test_a_grant_that_lives_shorter_than_its_period_is_kept_until_the_period_ends() -> None:
    grants = tuple(replace(grant, expires_ms=DAY_MS) for grant in PRO.grants)
    for one in given(prepaid=Prepaid.of(replace(PRO, grants=grants), CATALOG)):
        assert (one.expires_ms, one.until_ms) == (START_MS + DAY_MS, END_MS)


@pytest.mark.parametrize("now_ms", [NOW_MS, END_MS - 1])
def test_what_is_on_file_is_given_once(now_ms: int) -> None:
    on_file = holding(f"{NAMES['c:ai']} {START_MS}", "c:ai", 500 * MICRO, used=3)
    assert [one for one in given(on_file, now_ms=now_ms) if one.target == "c:ai"] == [on_file]


def test_a_more_generous_plan_adds_what_is_missing_to_what_is_on_file() -> None:
    on_file = holding(f"{NAMES['c:ai']} {START_MS}", "c:ai", 200 * MICRO, used=3)
    (credit,) = (one for one in given(on_file) if one.target == "c:ai")
    assert credit == replace(on_file, quantity=500 * MICRO)


def test_a_plan_gives_no_more_of_a_target_than_is_missing_of_it() -> None:
    other = holding(f"p c:ai other {START_MS}", "c:ai", 450 * MICRO)
    found = {one.name: one.quantity for one in given(other) if one.target == "c:ai"}
    assert found == {other.name: 450 * MICRO, f"{NAMES['c:ai']} {START_MS}": 50 * MICRO}
    all_of_it = replace(other, quantity=500 * MICRO)
    assert [one for one in given(all_of_it) if one.target == "c:ai"] == [all_of_it]


def test_two_grants_of_one_target_are_given_whole_or_what_is_missing_of_both() -> None:
    pages = next(grant for grant in PRO.grants if grant.name == "pages")
    both = replace(PRO, grants=(pages, replace(pages, quantity=3, priority=6)))
    prepaid = Prepaid.of(both, CATALOG)
    assert [one.quantity for one in given(prepaid=prepaid)] == [20, 3]
    first, second = (f"{name} {START_MS}" for name, *_ in prepaid.recurring)
    for on_file, expected in (
        ((holding(first, "m:pages", 19),), {first: 20, second: 3}),
        ((holding(first, "m:pages", 23),), {first: 23}),
        ((holding(first, "m:pages", 22),), {first: 22, second: 1}),
        ((holding(f"p m:pages other {START_MS}", "m:pages", 21),), {first: 2}),
        ((holding(first, "m:pages", 5), holding(second, "m:pages", 1)), {first: 20, second: 3}),
    ):
        found = {one.name: one.quantity for one in given(*on_file, prepaid=prepaid)}
        found.pop(f"p m:pages other {START_MS}", None)
        assert found == expected


@pytest.mark.parametrize("name", ["p c:ai other 17", f"a c:ai {START_MS}"])
def test_what_came_from_another_period_or_from_the_app_lessens_nothing(name: str) -> None:
    found = [one.quantity for one in given(holding(name, "c:ai", 450 * MICRO)) if one.target == "c:ai"]
    assert sorted(found) == [450 * MICRO, 500 * MICRO]


@pytest.mark.parametrize(
    ("expires_ms", "now_ms", "expected"),
    [
        (NOW_MS + 1, NOW_MS, END_MS),  # Alive: it lives as long as the longer of both.
        (END_MS + 9, NOW_MS, END_MS + 9),
        (NOW_MS, NOW_MS, NOW_MS),  # Over: it stays so.
    ],
)
def test_what_is_added_to_makes_a_grant_live_longer_only_while_it_lives(
    expires_ms: int, now_ms: int, expected: int
) -> None:
    on_file = holding(f"{NAMES['c:ai']} {START_MS}", "c:ai", MICRO, expires_ms=expires_ms)
    on_file = replace(on_file, until_ms=END_MS + 9)
    (credit,) = (one for one in given(on_file, now_ms=now_ms) if one.target == "c:ai")
    assert credit.expires_ms == expected


def test_a_grant_that_has_left_the_store_by_the_clock_is_shown_and_counts_for_nothing() -> None:
    ended = replace(holding(f"{NAMES['c:ai']} {START_MS}", "c:ai", 7), until_ms=NOW_MS)
    found = [one.quantity for one in given(ended) if one.target == "c:ai"]
    assert sorted(found) == [7, 500 * MICRO]
    kept = replace(ended, until_ms=NOW_MS + 1)
    assert [one.quantity for one in given(kept) if one.target == "c:ai"] == [500 * MICRO]


def test_without_prepaid_only_what_is_on_file_is_there_and_other_fields_are_none_of_it() -> None:
    on_file = holding("a c:ai one", "c:ai", 7)
    assert holdings_of({**fields(on_file), "x": "y"}, None, BOUNDS, NOW_MS) == [on_file]


@pytest.mark.parametrize(
    ("now_ms", "left"), [(START_MS - 1, 0), (START_MS, 15), (END_MS - 1, 15), (END_MS, 0)]
)
def test_grants_count_from_their_beginning_to_their_end(now_ms: int, left: int) -> None:
    both = (holding("a m:pages one", "m:pages", 10, used=3), holding("a m:pages two", "m:pages", 8))
    balance = Balance(both, PREPAID, now_ms)
    assert (balance.of("m:pages"), balance.of("c:ai")) == (left, 0)


def more(meter: str, *holdings: Holding, counted: int = 0, held: int = 0, prepaid: bool = True) -> int:
    """With ``counted`` paid for by what is included, and ``held`` held, of each other meter."""
    balance = Balance(holdings, PREPAID if prepaid else None, NOW_MS)
    return balance.more(
        meter,
        PRO.entitlements,
        lambda other: counted if other != meter else 10**6,
        lambda other: held if other != meter else 10**6,
        lambda _: 0,
    )


CREDIT: Final = holding("a c:ai one", "c:ai", 2 * MICRO, used=MICRO)
"""One credit is left: 1,000 tokens that are asked with, 250 that are answered with."""


@pytest.mark.parametrize(
    ("meter", "counted", "held", "expected"),
    [
        ("asked", 0, 0, 1_000),
        ("answered", 0, 0, 250),
        ("pages", 0, 0, 0),
        # What is held of the other beyond what is included claims credit, at its cost.
        ("asked", 0, 50, 1_000),
        ("asked", 0, 51, 996),
        ("asked", 40, 20, 960),
        ("asked", 60, 20, 920),
        ("answered", 0, 101, 249),
        ("asked", 0, 10_000, 0),
    ],
)
def test_credit_adds_what_it_pays_for_less_what_is_held_of_other_meters(
    meter: str, counted: int, held: int, expected: int
) -> None:
    assert more(meter, CREDIT, counted=counted, held=held) == expected


def test_grants_of_a_meter_come_before_credit() -> None:
    pages, answered = (holding(f"a m:{name} one", f"m:{name}", 30) for name in ("pages", "answered"))
    assert more("pages", pages, CREDIT) == 30
    assert more("answered", answered, CREDIT) == 280
    # What is held of the other is covered by its own grant.
    assert more("asked", answered, CREDIT, held=80) == 1_000
    assert more("asked", answered, CREDIT, held=81) == 996
    assert more("pages", pages, prepaid=False) == 30
    assert more("asked", replace(CREDIT, used=0, quantity=1), held=51) == 0


def test_without_credit_the_cheapest_meter_gets_nothing() -> None:
    cheapest = replace(PREPAID, paid_with={"asked": ("c:ai", 1)})
    balance = Balance((), cheapest, NOW_MS)
    nothing = balance.more("asked", PRO.entitlements, lambda _: 0, lambda _: 0, lambda _: 0)
    assert nothing == 0


def test_the_settlement_script_is_told_what_pays_for_which_meter() -> None:
    told = json.loads(PREPAID.paying([("asked", True), ("pages", True), ("answered", False)], {}))
    assert told["paying"] == [
        ["asked", "m:asked", "c:ai", 1_000],
        ["pages", "m:pages", "", 0],
        ["answered", "", "", 0],
    ]


@pytest.mark.parametrize(
    ("rev", "plan", "expected"),
    [(NO_STATE, "plain", False), ("2:1", "plain", True), (NO_STATE, "pro", True), ("2:1", "pro", True)],
)
def test_a_customer_with_a_state_may_have_grants_of_a_plan_before(
    rev: str, plan: str, *, expected: bool
) -> None:
    by_plan = prepaid_by_plan(CATALOG)
    found = prepaid_of(rev, CustomerState(), effective_plan(CustomerState(plan=plan), CATALOG, 0), by_plan)
    assert found == (by_plan[plan] if expected else None)


def test_processes_of_two_releases_name_the_same_grants_alike() -> None:
    assert Prepaid.of(PRO, CATALOG).mark == "1359bb68de77"
