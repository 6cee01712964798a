"""How a rate is brought forward to an instant, case by case; and the policies that come of a plan."""

# Internals: the arithmetic of rates, in Lua and in Python.

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from drivers.plans import free_plan
from drivers.subscribed_customer import kit_of
from meterkit import Decision, MeterKit
from meterkit.catalog import Rate, loads
from meterkit.decisions import fallback_rules
from meterkit.decisions.limit_policies import policies_of, rate_numbers
from meterkit.errors import PlansError
from meterkit.redis import scripts
from meterkit.redis.connection import pack
from meterkit.testing import Clock
from servers.stores import Server
from store.script_wires import server_wire

Advance = Callable[..., list[int]]

SLIDING, FIXED, BUCKET = 1, 2, 3
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
QUANTITY_MAX = 10**15 - 1
CALL = """
local values = {}
for i = 1, #ARGV do values[i] = tonumber(ARGV[i]) end
return {advance_rate(unpack(values))}
"""
PROPERTY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def advance(valkey: Server) -> Iterator[Advance]:
    """``advance_rate(kind, window, refill, now, a, b, c)`` on the server."""
    text = scripts.load("decide").text
    function = text[
        text.index("local function advance_rate") : text.index("\nend\n", text.index("advance_rate(kind")) + 5
    ]
    with server_wire(valkey) as wire:
        sha = wire(pack("SCRIPT", "LOAD", function + CALL)).decode()
        yield lambda *values: wire(pack("EVALSHA", sha, 0, *values))


@PROPERTY
@given(
    window_s=st.one_of(st.integers(1, 90_001), st.integers(90_000, 366 * 86_400)),
    n=st.integers(10, 60),
    passed=st.integers(0, 366 * DAY_MS),
    counted=st.integers(0, 9 * 10**15),
    previous=st.integers(0, 9 * 10**15),
)
def test_a_sliding_window_is_exact(
    advance: Advance, window_s: int, n: int, passed: int, counted: int, previous: int
) -> None:
    window = window_s * 1000
    passed %= window
    left = window - passed if window <= 25 * HOUR_MS else -(-(window - passed) // 1000) * 1000
    used = counted + ceil(Fraction(previous * left, window))
    assume(used < 2**53)
    assert [n, counted, previous, used] == advance(
        SLIDING, window, 0, n * window + passed, n, counted, previous
    )


@PROPERTY
@given(
    limit=st.one_of(st.integers(1, 5000), st.integers(1, QUANTITY_MAX)),
    window_s=st.one_of(st.integers(1, 3600), st.integers(1, 366 * 86_400)),
    burst=st.one_of(st.integers(1, 5000), st.integers(1, QUANTITY_MAX)),
    share=st.fractions(0, 1),
    times=st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 366 * DAY_MS)), min_size=1, max_size=4),
)
def test_a_bucket_is_exact(
    advance: Advance, limit: int, window_s: int, burst: int, share: Fraction, times: list[int]
) -> None:
    rate = Rate(
        limit=limit, window_ms=window_s * 1000, algorithm="token-bucket", burst=burst, window=f"{window_s}s"
    )
    try:
        _, window, _, refill = rate_numbers(rate, "requests")
    except PlansError:
        assume(False)
        raise
    now, whole, rest = 1_800_000_000_000, floor(burst * share), 0
    owed = Fraction(whole)
    for passed in times:
        owed = max(Fraction(0), owed - Fraction(passed * refill, window))
        now, whole, rest, used = advance(BUCKET, window, refill, now + passed, now, whole, rest)
        assert (owed, ceil(owed)) == (whole + Fraction(rest, window), used)


@PROPERTY
@given(
    kind=st.sampled_from([SLIDING, FIXED, BUCKET]),
    window_ms=st.sampled_from([1000, 60_000, HOUR_MS, 30 * DAY_MS]),
    counts=st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
    before=st.integers(0, 1),
    passed_ms=st.integers(0, 70 * DAY_MS),
)
def test_rates_in_process_count_as_the_script_does(
    advance: Advance, kind: int, window_ms: int, counts: tuple[int, int, int], before: int, passed_ms: int
) -> None:
    refill, counted, previous = counts
    begun_ms = 1_800_000_000_000
    now_ms = begun_ms + passed_ms
    if kind == BUCKET:
        refill, slot, previous = min(refill, window_ms), begun_ms, previous % window_ms
    else:
        refill, slot = 0, begun_ms // window_ms - before
    expected = advance(kind, window_ms, refill, now_ms, slot, counted, previous)
    found, used = fallback_rules.advance(kind, window_ms, refill, (slot, counted, previous), now_ms)
    assert [*found, used] == expected


def test_a_sliding_window_admits_less_than_twice_its_limit(advance: Advance) -> None:
    """F-20h: at worst 199 of 100, as the documentation says."""
    limit, at_the_end_ms = 100, HOUR_MS - 1
    slot, *_ = advance(SLIDING, HOUR_MS, 0, at_the_end_ms, 0, 0, 0)
    # All of a slot at its last millisecond; the hour before `now` still has that millisecond.
    now_ms = 2 * HOUR_MS - 2
    *_, used = advance(SLIDING, HOUR_MS, 0, now_ms, slot, limit, 0)
    assert limit + (limit - used) == 199


@pytest.mark.parametrize(("limit", "admitted"), [(100, 99), (10, 9), (2, 1)])
def test_a_sliding_window_admits_even_traffic_one_short(limit: int, admitted: int) -> None:
    """As the documentation says: the estimate is rounded up."""
    state, found = (0, 0, 0), 0
    for number in range(10 * limit):
        now_ms = DAY_MS + number * HOUR_MS // limit
        (slot, counted, before), used = fallback_rules.advance(SLIDING, HOUR_MS, 0, state, now_ms)
        state = slot, counted + (used < limit), before
        if used < limit:
            found += number >= 2 * limit
    assert found == 8 * admitted


# What an allowed answer promises: after `reset_after` there is more; and what is shown of rates.


PLANS = free_plan("{units: {unit: unit, stripe: {event_name: units}}}", "{units: {rate: RATE}}")
# Each with its limit, and about how many seconds a limit's worth of units keeps counting.
RATES = {
    "{limit: 3/10 seconds}": (3, 10),
    "{limit: 50/minute}": (50, 60),
    "{limit: 1_000/26 hours}": (1_000, 93_600),
    "{limit: 20/minute, algorithm: fixed-window}": (20, 60),
    "{limit: 5/3 seconds, algorithm: token-bucket, burst: 9}": (9, 5),
    "{limit: 300/second, algorithm: token-bucket, burst: 40}": (40, 1),
}
MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.anyio
@pytest.mark.parametrize("rate", RATES)
async def test_after_it_a_unit_more_is_admitted(store_url: str, clock: Clock, rate: str) -> None:
    """F-61: of sliding windows it was the end of the window, which frees nothing by itself."""
    random = Random(0)  # noqa: S311 - repeatable
    (limit, span_s), promised = RATES[rate], 0
    async with kit_of(store_url, clock, PLANS.replace("RATE", rate)) as kit:
        for _ in range(60):
            quantity = min(limit, random.choice((1, 1, 2, random.randint(1, limit))))
            decision = await kit.consume("acme", "units", quantity)
            if decision.allowed and random.random() < 0.5:
                promised += 1
                await _check_promise(kit, clock, decision, quantity, limit)
            # Whole milliseconds, as the store counts.
            clock.advance(MILLISECOND * random.randrange(random.choice((1, 2, 100 * span_s, 700 * span_s))))
    assert promised > 5


async def _check_promise(kit: MeterKit, clock: Clock, decision: Decision, quantity: int, limit: int) -> None:
    assert decision.remaining is not None
    assert decision.reset_after is not None
    wanted = min(limit, max(decision.remaining + 1, quantity))
    clock.advance(decision.reset_after - MILLISECOND)
    assert not (await kit.check("acme", "units", wanted)).allowed, (decision, wanted)
    clock.advance(MILLISECOND)
    assert (await kit.check("acme", "units", wanted)).allowed, (decision, wanted)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "rate",
    [
        "20/minute",
        "{limit: 20/minute, algorithm: fixed-window}",
        "{limit: 7/minute, algorithm: token-bucket, burst: 20}",
    ],
)
async def test_it_is_what_a_decision_says_at_every_moment(store_url: str, clock: Clock, rate: str) -> None:
    plans = PLANS.replace("RATE", rate)
    plans += 'routes: [{match: "GET /slow", rate: 3/minute, consume: {units: 1}}]\n'
    async with kit_of(store_url, clock, plans) as kit:
        (unused, route) = await kit.rates("ada")
        assert (unused["limit"], unused["used"], unused["remaining"]) == (20, 0, 20)
        assert unused["reset_after"] == timedelta(0)
        assert ("route-1m", None, "GET /slow") == (route["policy"], route["meter"], route["route"])
        for step_s in (0, 1, 13, 40, 0, 29, 61, 200_000, 0.031, 7):
            clock.advance(timedelta(seconds=step_s))
            for quantity in (0, 6):  # As the last request has left it, and after another one.
                if quantity:
                    await kit.consume("ada", "units", quantity)
                decision = await kit.check("ada", "units")
                found = (await kit.rates("ada"))[0]
                said = (decision.limit, decision.remaining, decision.reset_after)
                assert said == (found["policy"], found["remaining"], found["reset_after"])
                assert found["used"] >= quantity


# The policies of a plan, in the order in which they are weighed.


def policies(unit: str, terms: str) -> list[tuple[Any, ...]]:
    plans = PLANS.replace("unit: unit", f"unit: {unit}").replace("{rate: RATE}", terms)
    catalog = loads(plans)
    found = policies_of(catalog.plans["free"].entitlements["units"], catalog.meters["units"])
    return [(one.name, one.kind, one.quota, one.window_s, one.quota_unit) for one in found]


def test_policies_are_rates_then_the_period_then_concurrency() -> None:
    terms = "{rate: [1000/hour, 20/second], included: 10_000, overage: deny, concurrency: 4}"
    assert policies("request", terms) == [
        ("units-1h", "rate", 1000, 3600, None),
        ("units-1s", "rate", 20, 1, None),
        ("units-period", "period", 10_000, None, None),
        ("units-concurrency", "concurrency", 4, None, "concurrent-requests"),
    ]
    # A unit that is not the request is named.
    assert policies("token", "{rate: 200_000/5 hours, included: 50_000, overage: deny}") == [
        ("units-5h", "rate", 200_000, 18_000, "token"),
        ("units-period", "period", 50_000, None, "token"),
    ]


@pytest.mark.parametrize(
    ("terms", "quotas"),
    [
        ("{included: unlimited}", []),
        ("{included: 0, overage: deny}", [0]),
        ("{included: 100, overage: bill}", []),
        ("{included: 100, overage: {bill: {cap: 50}}}", [150]),
        (f"{{included: {QUANTITY_MAX}, overage: {{bill: {{cap: {QUANTITY_MAX}}}}}}}", [QUANTITY_MAX]),
    ],
)
def test_a_period_admits_included_and_cap(terms: str, quotas: list[int]) -> None:
    assert [quota for _, _, quota, *_ in policies("request", terms)] == quotas
