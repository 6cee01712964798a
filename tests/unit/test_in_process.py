"""Rates counted in this process: clocks that go back, rates that change, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit.catalog import loads
from meterkit.decisions.asked import Demand
from meterkit.decisions.in_process import NOTHING_LEFT, Left, advance, left_by, left_where_allowed, weigh
from meterkit.decisions.policies import TOKEN_BUCKET
from meterkit.decisions.program import Program, compile_program

if TYPE_CHECKING:
    from meterkit.catalog import Catalog

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {unit: token}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      tokens: {included: 100, overage: deny, rate: 10/minute}
"""
CATALOG = loads(PLANS)
TWO_RATES = loads(PLANS.replace("10/minute", "[10/minute, 10/hour], concurrency: 3"))
BUCKET = loads(PLANS.replace("10/minute", "{limit: 6000/second, algorithm: token-bucket, burst: 10}"))
WITHOUT_RATES = loads(PLANS.replace(", rate: 10/minute", ""))
REFILL = 5  # Units in a hundred milliseconds.
WINDOW_MS = 100


def test_a_clock_that_goes_back_takes_nothing_from_a_bucket() -> None:
    found, used = advance(TOKEN_BUCKET, WINDOW_MS, REFILL, (10_000, 7, 0), 9_000)
    assert (found, used) == ((9_000, 7, 0), 7)


def test_a_rest_in_parts_of_another_rate_is_less_than_a_unit() -> None:
    found, used = advance(TOKEN_BUCKET, WINDOW_MS, REFILL, (10_000, 7, 9_999), 10_000)
    assert (found, used) == ((10_000, 7, WINDOW_MS - 1), 8)


@pytest.mark.parametrize(
    ("at", "now_ms", "expected", "used"),
    [
        ((10_000, 7, 0), 10_040, (10_040, 5, 0), 5),
        ((10_000, 7, 1), 10_000, (10_000, 7, 1), 8),
        ((10_000, 1, 0), 20_000, (20_000, 0, 0), 0),
    ],
    ids=["refills with time", "a rest uses a whole unit", "is never more than full"],
)
def test_a_bucket(at: tuple[int, int, int], now_ms: int, expected: tuple[int, int, int], used: int) -> None:
    assert advance(TOKEN_BUCKET, WINDOW_MS, REFILL, at, now_ms) == (expected, used)


def asking(quantity: int, catalog: Catalog = CATALOG, *, in_flight: bool = False) -> Program:
    demands = {"tokens": Demand.of(quantity)}
    return compile_program(catalog.plans["free"].entitlements, catalog, demands, in_flight=in_flight)


def test_what_asks_for_nothing_takes_nothing_and_is_refused_where_nothing_is_left() -> None:
    _, known = weigh(asking(0), {}, {}, 60_000)
    assert weigh(asking(10), known, {}, 60_000)[0][0] == 0
    _, known = weigh(asking(10), known, {}, 60_000)
    assert weigh(asking(0), known, {}, 60_000)[0][0] == 1


@pytest.mark.parametrize(
    ("algorithm", "now_ms", "counted"),
    [
        # Within the window, a quarter of which is over, in the next one, and in the one behind that.
        *(("sliding-window", 75_000, 2 + 7), ("sliding-window", 135_000, 2), ("sliding-window", 195_000, 0)),
        *(("fixed-window", 75_000, 2), ("fixed-window", 135_000, 0), ("fixed-window", 195_000, 0)),
    ],
)
def test_what_is_weighed_is_what_the_rate_comes_to(algorithm: str, now_ms: int, counted: int) -> None:
    catalog = loads(PLANS.replace("10/minute", f"{{limit: 10/minute, algorithm: {algorithm}}}"))
    entitlements = catalog.plans["free"].entitlements

    def asked(quantity: int) -> Program:
        demands = {"tokens": Demand.of(quantity)}
        return compile_program(entitlements, catalog, demands, in_flight=False)

    ((field, kind, window_ms, _, refill, _, _),) = asked(1).rate_terms
    known = {field: (1, 2, 9)}
    reply, counts = weigh(asked(10 - counted), known, {}, now_ms)
    assert (reply[0], reply[3]) == (0, 0)
    (slot, before, earlier), _ = advance(kind, window_ms, refill, known[field], now_ms)
    assert counts == {field: (slot, before + 10 - counted, earlier)}
    assert weigh(asked(11 - counted), known, {}, now_ms)[0][0] == 1


@pytest.mark.parametrize(("quantity", "now_ms", "is_refused"), [(5, 999, 0), (6, 999, 1), (6, 1_000, 0)])
def test_what_was_left_when_it_was_refused_is_what_there_is_until_the_period_ends(
    quantity: int, now_ms: int, is_refused: int
) -> None:
    (ceiling,) = left_by(asking(6), [1, 0, 1_000, 0, 0, 0, 5, 0, 0, 0], 9_000)
    left = {ceiling: Left(5, is_backed=False, until_ms=1_000)}
    assert weigh(asking(quantity), {}, left, now_ms)[0][0] == is_refused


@pytest.mark.parametrize(("ends_ms", "until_ms"), [(1_000, 1_000), (0, 9_000)])
def test_a_refusal_holds_until_the_period_ends_that_is_or_that_would_begin(
    ends_ms: int, until_ms: int
) -> None:
    reply = [1, 0, ends_ms, 0, 0, 0, 5, 0, 0, 1]
    assert list(left_by(asking(6), reply, 9_000).values()) == [Left(5, is_backed=True, until_ms=until_ms)]
    assert left_by(asking(5), reply, 9_000) == {}


def test_without_numbers_of_grants_none_stood_behind_a_ceiling() -> None:
    assert list(left_by(asking(6), [1, 0, 1_000, 0, 0, 0, 5, 0, 0], 9_000).values()) == [
        Left(5, is_backed=False, until_ms=1_000)
    ]


def test_a_request_that_is_allowed_lifts_the_ceilings_that_it_met() -> None:
    left = Left(0, is_backed=False, until_ms=9_000)
    assert left_where_allowed({"tokens-period": left, "pages-period": left}, asking(1)) == {
        "pages-period": left
    }
    assert left_where_allowed({"tokens-period": left}, asking(1)) is NOTHING_LEFT


def test_the_rate_nearest_to_its_limit_is_reported_and_of_two_the_first() -> None:
    program = asking(1, TWO_RATES)
    (minute, *_), (hour, *_) = program.rate_terms
    now_ms = 2 * 3_600_000
    assert weigh(program, {}, {}, now_ms)[0] == [0, now_ms, 1, 9, 0]
    assert weigh(program, {minute: (120, 3, 0)}, {}, now_ms)[0] == [0, now_ms, 1, 6, 0]
    assert weigh(program, {hour: (2, 3, 0)}, {}, now_ms)[0] == [0, now_ms, 2, 6, 0]
    assert weigh(asking(1, WITHOUT_RATES), {}, {}, now_ms) == ([0, now_ms, 0, 0, 0], {})


def test_a_bucket_counts_a_rest_of_another_rate_as_less_than_a_unit() -> None:
    program = asking(1, BUCKET)
    ((field, *_),) = program.rate_terms
    reply, counts = weigh(program, {field: (60_000, 3, 9)}, {}, 60_000)
    assert (reply, counts) == ([0, 60_000, 1, 6, 0], {field: (60_000, 4, 0)})


@pytest.mark.parametrize(
    ("known_left", "told"),
    [
        ({}, (100, 0, 0, 3, 0, 0, 0)),
        ({"tokens-period": Left(4, is_backed=False, until_ms=10**9)}, (4, 0, 0, 3, 0, 0, 0)),
        ({"tokens-period": Left(4, is_backed=True, until_ms=10**9)}, (4, 0, 0, 3, 0, 0, 1)),
        ({"pages-period": Left(4, is_backed=True, until_ms=10**9)}, (100, 0, 0, 3, 0, 0, 0)),
    ],
)
def test_a_refusal_has_the_form_of_the_scripts_reply(
    known_left: dict[str, Left], told: tuple[int, ...]
) -> None:
    program = asking(5, TWO_RATES, in_flight=True)
    (minute, *_), (hour, *_) = program.rate_terms
    now_ms = 2 * 3_600_000
    reply, counts = weigh(program, {minute: (119, 8, 1), hour: (2, 7, 2)}, known_left, now_ms)
    assert (reply, counts) == ([1, now_ms, 0, 0, 8, 0, 7, 2, 0, *told], {})
