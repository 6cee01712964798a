from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meterkit.catalog import Rate, loads
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.asked import Demand
from meterkit.decisions.at_model import AtModel
from meterkit.decisions.binding import Binding
from meterkit.decisions.grants import Prepaid, target_of
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field, route_name
from meterkit.decisions.policies import rate_numbers
from meterkit.decisions.program import Program, compile_program, demands_of, reported_parts
from meterkit.errors import PlansError

if TYPE_CHECKING:
    from collections.abc import Mapping

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token, stripe: {event_name: tokens, report: usage}}
  silent: {unit: token, stripe: {event_name: silent, report: none}}
  plain: {unit: item}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:
        rate: [100/minute, {limit: 20/second, algorithm: token-bucket, burst: 40}]
        included: 1000
        overage: deny
        concurrency: 4
      tokens: {included: 500, overage: {bill: {cap: 100}}}
      silent: {included: 500, overage: bill}
      plain: {rate: 10/second}
"""
CATALOG = loads(PLANS)
ENTITLEMENTS = CATALOG.plans["free"].entitlements
MINUTE, SECOND = (
    rate_field("requests", 60_000, "sliding-window"),
    rate_field("requests", 1000, "token-bucket"),
)
PLAIN_RATE = rate_field("plain", 1000, "sliding-window")


def bucket(limit: int, window_ms: int, burst: int) -> Rate:
    return Rate(limit=limit, window_ms=window_ms, algorithm="token-bucket", burst=burst, window="1s")


def compiled(demands: Mapping[str, Demand], **flags: Any) -> Program:
    return compile_program(ENTITLEMENTS, CATALOG, demands, **flags)


def one(needed: int, taken: int | None = None) -> Demand:
    return Demand(needed=needed, taken=needed if taken is None else taken)


def test_rates_come_first_then_ceilings_then_concurrency_then_what_is_recorded() -> None:
    found = compiled({"requests": one(2), "plain": one(3)}, billed_always=True)
    assert found.fields == (
        *(MINUTE, SECOND, PLAIN_RATE),
        *(meter_field("requests"), concurrency_field("requests"), meter_field("plain")),
    )
    assert found.numbers == (
        *(3, 2, 1, 0),
        *(1, 60_000, 100, 0, 2, 2),
        *(3, 50, 40, 1, 2, 2),
        *(1, 1000, 10, 0, 3, 3),
        *(1000, -1, 2, 2),
        *(4, -1, 1, 1),
        3,
    )
    assert [measure.policy.name for measure in found.measures] == [
        "requests-1m",
        "requests-1s",
        "plain-1s",
        "requests-period",
        "requests-concurrency",
    ]
    assert (found.held, found.concurrency, found.settled) == ({"requests": 2}, ("requests",), {"requests": 2})
    assert found.settles


def test_a_cap_is_told_apart_from_included() -> None:
    found = compiled({"tokens": one(7, 0)})
    assert found.numbers == (0, 1, 0, 0, 500, 100, 7, 0)
    assert found.fields == (meter_field("tokens"),)
    assert (found.held, found.concurrency, found.settled) == ({}, (), {})
    assert not found.settles
    assert (found.measures[0].limit, found.measures[0].capped) == (600, True)


def test_overage_without_a_cap_has_no_ceiling_and_is_settled() -> None:
    found = compiled({"silent": one(7)}, billed_always=True)
    assert found.numbers == (0, 0, 0, 0)
    assert found.fields == ()
    assert (found.held, found.settled) == ({}, {"silent": 7})


def test_what_is_not_billed_always_is_settled() -> None:
    found = compiled({"plain": one(3)})
    assert found.numbers[:3] == (1, 0, 0)
    assert found.settled == {"plain": 3}


def test_a_route_that_is_always_served_is_decided_by_its_rates_and_settled() -> None:
    found = compiled({"requests": one(2)}, rates_only=True, billed_always=True)
    assert found.numbers[:3] == (2, 0, 0)
    assert (found.held, found.concurrency, found.settled) == ({}, (), {"requests": 2})


@pytest.mark.parametrize(
    ("meter", "keep_ms"), [("requests", 120_000 + 900_000), ("plain", 2000 + 900_000), ("tokens", 900_000)]
)
def test_counters_live_two_windows_and_a_quarter_of_an_hour(meter: str, keep_ms: int) -> None:
    assert keep_ms == compiled({meter: one(1)}).keep_ms


def test_counters_outlive_a_full_bucket() -> None:
    text = PLANS.replace(
        "20/second, algorithm: token-bucket, burst: 40", "1/hour, algorithm: token-bucket, burst: 1_000"
    )
    catalog = loads(text)
    found = compile_program(catalog.plans["free"].entitlements, catalog, {"requests": one(1)})
    assert found.keep_ms == 1000 * 3_600_000 + 900_000


@pytest.mark.parametrize(
    ("meter", "expected"), [("requests", (0, 0)), ("tokens", (1, 1)), ("silent", (0, 0)), ("plain", (0, 0))]
)
def test_which_classes_go_to_stripe(meter: str, expected: tuple[int, int]) -> None:
    assert expected == reported_parts(ENTITLEMENTS[meter], CATALOG.meters[meter])


def test_overage_that_is_billed_goes_to_stripe() -> None:
    catalog = loads(PLANS.replace("        overage: deny", "        overage: bill"))
    entitlements, meters = catalog.plans["free"].entitlements, catalog.meters
    assert reported_parts(entitlements["requests"], meters["requests"]) == (0, 1)


def test_a_bucket_may_need_all_that_a_number_can_hold() -> None:
    # (burst + 2) windows are exactly 9 x 10^15, then one more; what follows is rounded down by a little.
    assert rate_numbers(bucket(1_000_003, 9_000_000, 999_999_998), "requests") == (
        *(3, 9_000_000, 999_999_998, 1_000_003),
    )
    assert rate_numbers(bucket(1_000_003, 9_000_000, 999_999_999), "requests") == (
        *(3, 8_999_999, 999_999_999, 1_000_002),
    )
    year_ms = 366 * 86_400_000
    assert rate_numbers(bucket(1_000_003, year_ms, 284_606), "requests") == (3, year_ms, 284_606, 1_000_003)


@pytest.mark.parametrize(("algorithm", "kind"), [("sliding-window", 1), ("fixed-window", 2)])
def test_a_window_is_told_by_its_length_and_limit(
    algorithm: Literal["sliding-window", "fixed-window"], kind: int
) -> None:
    rate = Rate(limit=100, window_ms=60_000, algorithm=algorithm, burst=100, window="1m")
    assert (kind, 60_000, 100, 0) == rate_numbers(rate, "requests")


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (bucket(20, 1000, 40), (3, 50, 40, 1)),
        (bucket(7, 3000, 12), (3, 3000, 12, 7)),
        (bucket(5001, 1000, 5001), (3, 1000, 5001, 5001)),
        (bucket(6000, 1000, 1), (3, 1, 1, 6)),
    ],
)
def test_a_bucket_is_told_by_its_burst_and_its_refill_in_lowest_terms(
    rate: Rate, expected: tuple[int, int, int, int]
) -> None:
    assert expected == rate_numbers(rate, "requests")


@given(
    limit=st.integers(1, QUANTITY_MAX),
    window_s=st.integers(1, 366 * 86_400),
    burst=st.integers(1, QUANTITY_MAX),
)
def test_a_refill_is_exact_or_slower_by_less_than_a_millionth(limit: int, window_s: int, burst: int) -> None:
    try:
        _, window, told, refill = rate_numbers(bucket(limit, window_s * 1000, burst), "requests")
    except PlansError:
        assume(False)
        raise
    asked = Fraction(limit, window_s * 1000)
    assert burst == told
    assert (burst + 2) * window <= 9 * 10**15
    assert asked * (1 - Fraction(1, 10**6)) < Fraction(refill, window) <= asked


@pytest.mark.parametrize(
    ("limit", "expected"), [(2_000_001, (3, 10**9, 8_999_998, 10**6)), (1_999_999, None)]
)
def test_a_refill_of_a_million_parts_is_the_least(
    limit: int, expected: tuple[int, int, int, int] | None
) -> None:
    rate = bucket(limit, 2 * 10**9, 8_999_998)
    if expected is None:
        with pytest.raises(PlansError):
            rate_numbers(rate, "requests")
    else:
        assert rate_numbers(rate, "requests") == expected


def test_a_bucket_that_cannot_be_counted_exactly_is_refused_with_its_cure() -> None:
    rate = bucket(1, 30 * 86_400_000, QUANTITY_MAX)
    with pytest.raises(PlansError, match="make the burst smaller or the rate faster"):
        rate_numbers(rate, "requests")


def test_what_is_bound_is_asked_and_held_together_with_what_is_asked_besides() -> None:
    program = compiled({"tokens": one(5), "requests": one(1)})
    binding = Binding(program, {"tokens": 4})
    numbers = binding.numbers({"tokens": 70})
    changed = {place: number for place, number in enumerate(numbers) if number != program.numbers[place]}
    assert set(changed.values()) == {74}
    assert set(changed) == {place for place, meter, _ in program.asked if meter == "tokens"}
    assert binding.numbers({}) == list(program.numbers)
    assert binding.held({"tokens": 70}) == {**program.held, "tokens": 74}
    assert binding.held({}) == dict(program.held)


def test_no_less_is_asked_than_the_least() -> None:
    program = compiled({"tokens": one(5)})
    least = {place: least for place, meter, least in program.asked if meter == "tokens"}
    numbers = Binding(program, {"tokens": 0}).numbers({"tokens": 0})
    assert {place: numbers[place] for place in least} == least


def test_what_is_recorded_besides_is_what_was_asked_besides() -> None:
    program = compiled({"tokens": one(5), "requests": one(1)})
    assert program.settled == {"tokens": 5, "requests": 1}
    assert Binding(program, {"tokens": 4}).recorded == {"tokens": 4, "requests": 1}
    assert Binding(program, {"tokens": 0}).recorded == {"requests": 1}
    assert Binding(program, {"tokens": 0}).is_exact


PAID = loads(
    PLANS.replace(
        "  plain: {unit: item}", "  plain: {unit: item}\n  other: {unit: item, stripe: {event_name: other}}"
    )
    .replace("plans:", "credits: {ai: {costs: {silent: 1 per 1000}}}\nplans:")
    .replace("      plain: {rate", "      other: {included: 5, overage: bill}\n      plain: {rate")
)


def test_what_is_paid_with_credit_is_held_without_a_ceiling_and_stands_beside_the_numbers() -> None:
    plan = PAID.plans["free"]
    demands = {name: one(2) for name in ("requests", "silent", "other")}
    program = compile_program(plan.entitlements, PAID, demands, prepaid=Prepaid.of(plan, PAID))
    assert program.held == {"requests": 2, "silent": 2}
    bound = [("requests",), ("silent",), ("requests", "silent")]
    exact = [Binding(program, dict.fromkeys(names, 0)).is_exact for names in bound]
    assert exact == [True, False, False]


def test_of_tokens_whose_number_is_not_known_yet_something_must_be_left() -> None:
    catalog = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
  images:        {unit: image}
routes:
  - {match: "POST /ask", consume: {requests: 2}, usage: openai}
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
""")
    asked, rest = (demands_of(route, catalog) for route in catalog.routes)
    assert asked == {"requests": one(2), "input_tokens": one(1, 0), "output_tokens": one(1, 0)}
    assert rest == {"requests": one(1)}


GAUGED = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  storage:  {unit: byte, kind: gauge}
  files:    {unit: file, kind: gauge}
routes:
  - {match: "PUT /files/{name}", grow: {storage: 10, files: 0}, consume: {requests: 1}, rate: 5/second}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 10/second, included: 100, overage: {bill: {cap: 0}}}
      storage:  {included: 1000, overage: {percent: 10, grace: 1d}}
""")


def test_gauges_that_grow_are_held_and_stand_beside_the_numbers() -> None:
    route, plan = GAUGED.routes[0], GAUGED.plans["free"]
    demands = demands_of(route, GAUGED)
    assert demands == {"requests": one(1), "storage": one(10)}
    found = compile_program(plan.entitlements, GAUGED, demands, route=route)
    assert found.numbers == (
        *(2, 1, 0, 0),
        *(1, 1000, 5, 0, 1, 1),
        *(1, 1000, 10, 0, 1, 1),
        *(100, 0, 1, 1),
        *(10, 10),
    )
    assert found.fields == (
        rate_field(route_name(route), 1000, "sliding-window"),
        rate_field("requests", 1000, "sliding-window"),
        *(meter_field("requests"), meter_field("storage")),
    )
    # The fifth that the script reads; then its limits.
    gauge = ["storage", meter_field("storage"), 5, 1000, 1100, 86_400_000, False]
    assert json.loads(found.further) == {"levels": [gauge]}
    assert (found.gauges, found.held) == (True, {"requests": 1, "storage": 10})
    assert found.measures[2].capped
    assert found.asked == (
        *((8, "", 1), (9, "", 0)),
        *((14, "requests", 1), (15, "requests", 0)),
        *((18, "requests", 1), (19, "requests", 0)),
        *((20, "storage", 1), (21, "storage", 0)),
    )


PREPAID = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token}
  images:   {unit: image}
credits:
  ai:   {costs: {tokens: 1 per 1000}, low_balance: 20%}
  arts: {costs: {images: 3}, low_balance: 10%}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    grants:
      - {credit: ai, quantity: 5, every: period}
      - {meter: requests, quantity: 7, every: period, expires: 30d}
""")


def test_what_grants_and_credits_stand_behind_is_told_in_full() -> None:
    plan = PREPAID.plans["free"]
    prepaid = Prepaid.of(plan, PREPAID)
    ai, requests, tokens, images = (
        target_of("credit", "ai"),
        *(target_of("meter", name) for name in ("requests", "tokens", "images")),
    )
    # The one that ends sooner is spent first.
    assert [grant[1] for grant in prepaid.recurring] == [requests, ai]
    assert sorted(grant[1:] for grant in prepaid.recurring) == sorted(
        [(ai, 5_000_000, prepaid.recurring[0][3], 0), (requests, 7, prepaid.recurring[1][3], 30 * 86_400_000)]
    )
    paying = json.loads(prepaid.paying([("tokens", True), ("images", False), ("requests", True)], {}))
    assert paying["paying"] == [
        ["tokens", tokens, ai, 1000],
        ["images", "", "", 0],
        ["requests", requests, "", 0],
    ]
    assert paying["low"] == {ai: [20, 0]}
    behind = json.loads(prepaid.behind(["requests", "tokens"], {}, {"tokens": 4}, {}, {}, plan.entitlements))
    assert behind["asked"] == [[requests, 0], [tokens, 1]]
    assert behind["backed"] == [[ai, 1000, None, tokens, 4, 0]]
    assert images not in json.dumps(behind)


def test_grants_that_are_alike_are_spent_in_the_order_of_their_ids() -> None:
    text = """
schema: 1
currency: usd
default_plan: free
meters: {tokens: {unit: token}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    grants:
      - {meter: tokens, quantity: 5, every: period, id: second}
      - {meter: tokens, quantity: 7, every: period, id: first}
"""
    catalog = loads(text)
    assert [grant[2] for grant in Prepaid.of(catalog.plans["free"], catalog).recurring] == [7, 5]


def test_units_are_held_at_costs_that_the_plans_file_has_by_model() -> None:
    text = """
schema: 1
currency: usd
default_plan: free
meters: {out: {unit: token}, asked: {unit: token}, flat: {unit: token}}
prices:
  out: {default: 4, models: {mini: 1, opus: 20}}
  asked: {default: 2, models: {opus: 9}}
credits: {ai: {costs: {out: prices.out, asked: prices.asked, flat: 3}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {out: {included: 0, overage: deny}}}
"""
    catalog = loads(text)
    plan = catalog.plans["free"]
    prepaid = Prepaid.of(plan, catalog)
    micro = 10**6
    assert prepaid.costs_of("mini") == {"out": micro, "asked": 2 * micro}
    assert prepaid.costs_of(None) == {"out": 4 * micro, "asked": 2 * micro}
    assert prepaid.held_costs(None) == prepaid.costs_of("") == {"out": 20 * micro, "asked": 9 * micro}

    def held_at(costs: dict[str, int] | None) -> dict[str, int]:
        demands = {"out": Demand.of(5), "flat": Demand.of(5)}
        program = compile_program(plan.entitlements, catalog, demands, prepaid=prepaid, at=AtModel(costs))
        return dict(program.costs)

    assert held_at(None) == {"out": 20 * micro}
    assert held_at(prepaid.costs_of("mini")) == {"out": micro}
    # Known under another plans file, by which another meter's cost depended on the model.
    assert held_at({"flat": 7 * micro}) == {"out": 20 * micro}
