"""Decisions: what a line asks for, refusals and how long they last: pure tables."""

# Internals: pure tables, and the script model, which is the specification.

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from fractions import Fraction
from hashlib import blake2b
from itertools import chain
from typing import Any, Final
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.plans import free_plan
from drivers.read_funds import funds_by_script
from drivers.sampled import few_examples, some
from meterkit import MeterKit
from meterkit.asgi.limit_fields import EXPOSE, LimitFields, limit_field, merge_headers
from meterkit.catalog import Catalog, Rate, loads
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions import refusal_reasons
from meterkit.decisions.compiled_decision import (
    BoundProgram,
    ModelPricing,
    Program,
    compile_program,
    demands_of,
    has_flat_price,
    reported_parts,
)
from meterkit.decisions.decision import Decision, GaugeLevel, SpendLevel
from meterkit.decisions.fallback_rules import (
    IN_DOUBT,
    RemainingQuantity,
    advance,
    decide_by_rates,
)
from meterkit.decisions.grants import Prepaid, grant_name
from meterkit.decisions.keys import (
    HOOKS_SHARD,
    Keys,
    check_tokens,
    concurrency_field,
    credit_hold_field,
    meter_field,
    rate_field,
    route_name,
    shard_of,
)
from meterkit.decisions.limit_policies import (
    CEILING,
    EXACT_WINDOW_MS_MAX,
    TOKEN_BUCKET,
    Demand,
    rate_numbers,
    weighted_count,
)
from meterkit.decisions.periods import Bounds
from meterkit.decisions.refusal_reasons import reset_ms
from meterkit.decisions.stored_grants import MovedGrant, find_moved_grants
from meterkit.decisions.subjects import SubjectHold, compile_subject, cost_of, renew_hold
from meterkit.errors import PlansError
from meterkit.redis.connection import pack, pack_each, unpack
from meterkit.store.views import CustomerView, PreparedDecision
from servers.stores import Server
from store.script_driver import World, life
from store.script_wires import load_texts, server_wire

PLANS = free_plan(
    "{requests: {unit: request, stripe: {event_name: r}}, tokens: {unit: token, stripe: {event_name: t}}}",
    """
      requests:
        rate:
          - 10/second
          - {limit: 60/minute, algorithm: fixed-window}
          - {limit: 7/3 seconds, algorithm: token-bucket, burst: 12}
        included: 100
        overage: deny
        concurrency: 2
      tokens: {rate: 1000/26 hours, included: 100, overage: {bill: {cap: 50}}}""",
)
CATALOG = loads(PLANS)
ENTITLEMENTS = CATALOG.plans["free"].entitlements
NOW_MS = 1_800_000_000_250
PERIOD_END_MS = NOW_MS + 5_000_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

# The policies of a request, and their numbers in a refusal: nothing used.
SECOND, MINUTE, BUCKET, PERIOD, CONCURRENCY = range(5)
POLICIES = [f"requests-{name}" for name in ("1s", "1m", "3s", "period", "concurrency")]
UNUSED = ((0, 0, 0), (0, 0, 0), (0, 0, 0), (100, 0, 0), (2, 0, 0))


def program(quantity: int = 1, meter: str = "requests") -> Program:
    return compile_program(ENTITLEMENTS, CATALOG, {meter: Demand(needed=quantity, taken=quantity)})


def refusal(
    used: dict[int, tuple[int, int, int]], quantity: int = 1, end_ms: int = PERIOD_END_MS
) -> Decision:
    numbers = [number for nth, unused in enumerate(UNUSED) for number in used.get(nth, unused)]
    return refusal_reasons.refused_decision(program(quantity), [1, NOW_MS, end_ms, *numbers], 0)


@pytest.mark.parametrize(
    ("nth", "numbers", "quantity", "wait_ms"),
    [
        pytest.param(SECOND, (10, 0, 0), 1, 750 + 100, id="a full window waits until enough has passed"),
        pytest.param(SECOND, (3, 10, 0), 7, 750, id="never sooner than the room that is needed"),
        pytest.param(MINUTE, (60, 0, 0), 1, 59_750, id="a fixed window waits for the next"),
        pytest.param(BUCKET, (12, 0, 0), 1, 429, id="a bucket waits for its refill"),
        pytest.param(BUCKET, (11, 1, 0), 1, 1, id="a rest counts as a unit"),
        pytest.param(PERIOD, (0, 0, 0), 1, 5_000_000, id="a ceiling waits for the next period"),
        pytest.param(PERIOD, (3, 1, 2), 1, 299_750, id="holds vanish with their slots, the old first"),
        pytest.param(PERIOD, (3, 3, 0), 3, 599_750, id="those of this slot with the next one's end"),
        pytest.param(CONCURRENCY, (2, 1, 1), 1, 1000, id="concurrency waits a second"),
    ],
)
def test_a_refusal_by_one_policy(
    nth: int, numbers: tuple[int, int, int], quantity: int, wait_ms: int
) -> None:
    found = refusal({nth: numbers}, quantity)
    wait, policy = timedelta(milliseconds=wait_ms), POLICIES[nth]
    assert (found.allowed, found.limit, found.remaining, found.violated) == (False, policy, 0, (policy,))
    assert (found.retry_after, found.reset_after) == (wait, wait)


def test_a_request_for_a_whole_bucket_waits_until_it_is_full() -> None:
    catalog = in_process("{limit: 7/3 seconds, algorithm: token-bucket, burst: 12}")
    found = refusal_reasons.refused_decision(
        asking(12, catalog), [1, NOW_MS, PERIOD_END_MS, 1, 0, 0, 100, 0, 0], PERIOD_END_MS
    )
    assert (found.remaining, found.retry_after) == (11, timedelta(milliseconds=429))


@pytest.mark.parametrize("rate", ["10/minute", "{limit: 10/minute, algorithm: fixed-window}"])
def test_more_than_a_rate_ever_admits_has_no_time(rate: str) -> None:
    for numbers, remaining in (((0, 0, 0), 10), ((4, 0, 0), 6), ((12, 0, 0), 0)):
        reply = [1, NOW_MS, PERIOD_END_MS, *numbers, 100, 0, 0]
        found = refusal_reasons.refused_decision(asking(11, in_process(rate)), reply, PERIOD_END_MS)
        assert (found.violated, found.remaining, found.retry_after) == (("tokens-1m",), remaining, None)
    # As much as it admits waits for the window's end, or until nothing of it counts.
    found = refusal_reasons.refused_decision(
        asking(10, in_process(rate)), [1, NOW_MS, PERIOD_END_MS, 1, 0, 0, 100, 0, 0], PERIOD_END_MS
    )
    assert found.retry_after == timedelta(milliseconds=59_750 + 60_000 * (rate == "10/minute"))


def test_a_policy_that_still_has_enough_is_not_violated() -> None:
    found = refusal({SECOND: (10, 0, 0), BUCKET: (11, 0, 0), PERIOD: (3, 1, 1)})
    assert found.violated == (POLICIES[SECOND],)


def test_a_repeat_is_refused_by_rates_and_concurrency_alone() -> None:
    numbers = [
        number for nth, unused in enumerate(UNUSED) for number in unused if nth not in {SECOND, PERIOD}
    ]
    reply = [8, NOW_MS, PERIOD_END_MS, *(10, 0, 0), *numbers[:6], *(0, 0, 0), *numbers[6:]]
    found = refusal_reasons.refused_decision(program(), reply, 0)
    assert (found.reason, found.violated) == ("rate", (POLICIES[SECOND],))
    demands = {"storage": one(20), "calls": one(1)}
    limited = compile_program(LIMITED.plans["free"].entitlements, LIMITED, demands)
    reply = [8, NOW_MS, PERIOD_END_MS, *(5, 0, 0), *(9, 0, 0), *(100, 100, 0)]
    found = refusal_reasons.refused_decision(limited, reply, 0)
    assert (found.reason, found.violated, found.gauge) == ("rate", ("calls-1m",), None)


def test_each_ceiling_tells_whether_grants_backed_it() -> None:
    both = compile_program(ENTITLEMENTS, CATALOG, {"requests": one(1), "tokens": one(1)})
    rates, concurrency = [0, 0, 0] * 4, [2, 0, 0]
    for requests, tokens, backed, reason in (
        (0, 9, [1, 0], "credits"),
        (0, 9, [0, 1], "included"),
        (9, 0, [1, 0], "cap"),
        (9, 0, [0, 1], "credits"),
        (0, 0, [0, 1], "included"),
        (9, 0, [], "cap"),
    ):
        ceilings = [requests, 0, 0, tokens, 0, 0]
        reply = [1, NOW_MS, PERIOD_END_MS, *rates, *ceilings, *concurrency, *backed]
        assert refusal_reasons.refused_decision(both, reply, 0).reason == reason, (requests, tokens, backed)


LIMITED_PLANS = free_plan(
    """
  words:   {unit: word, stripe: {event_name: words}}
  calls:   {unit: call}
  storage: {unit: byte, kind: gauge}
  seats:   {unit: seat, kind: gauge}""",
    """
      words:   {included: 0, overage: {bill: {per: 1, amount_cents: 1}}}
      calls:   {rate: 5/minute, included: 1000, overage: deny}
      storage: {included: 100, overage: deny}
      seats:   {included: 3, overage: deny}
    budget: {amount_cents: 200}
    subjects:
      team: {calls: {included: 100}}
      user: {calls: {rate: 5/minute}, words: {concurrency: 2}}""",
)
LIMITED = loads(LIMITED_PLANS)
HOURLY = loads(LIMITED_PLANS.replace("amount_cents: 200", "amount_cents: 200, per: hour"))
HOLDS_END_MS = 599_750
TEN_CALLS = {"calls": Demand(needed=10, taken=10)}


def limited_to(*kinds: str, demands: Mapping[str, Demand] = TEN_CALLS, **flags: Any) -> Program:
    """A program, with the demands on one subject of each kind."""
    plan = LIMITED.plans["free"]
    asked = [
        compile_subject(
            plan.subjects[kind], demands, plan.entitlements, LIMITED, in_flight=True, rates_only=False
        )
        for kind in kinds
    ]
    found = compile_program(plan.entitlements, LIMITED, demands, **flags)
    return found.with_subjects(tuple(asked)) if asked else found


@pytest.mark.parametrize(
    ("left", "held", "needed", "spent_cents", "wait_ms"),
    [
        pytest.param(0, 0, 30_000, 200, 5_000_000, id="nothing is left until the period ends"),
        pytest.param(50_000, 40_000, 30_000, 199, HOLDS_END_MS, id="holds may end"),
        pytest.param(30_000, 40_000, 30_000, 201, HOLDS_END_MS, id="holds are all of the rest, and more"),
        pytest.param(29_999, 0, 30_000, 198, 5_000_000, id="a part of a cent is spent as a whole one"),
        pytest.param(1_000_000, 0, 2_000_000, 100, 5_000_000, id="the whole budget is needed"),
        pytest.param(2_000_000, 0, 2_000_001, 0, None, id="no budget ever has as much"),
    ],
)
def test_a_budget_refuses_until_it_has_what_is_needed(
    left: int, held: int, needed: int, spent_cents: int, wait_ms: int | None
) -> None:
    after = None if wait_ms is None else timedelta(milliseconds=wait_ms)
    ceiling, budget = (10**9, 0, 0), (left, held, needed)
    for catalog, name in ((LIMITED, "spend-period"), (HOURLY, "spend-1h")):
        spending = compile_program(catalog.plans["free"].entitlements, catalog, {"words": one(3)})
        found = refusal_reasons.refused_decision(spending, [1, NOW_MS, PERIOD_END_MS, *ceiling, *budget], 0)
        assert (found.reason, found.limit, found.violated) == ("spend", name, (name,))
        assert found.spend == SpendLevel(limit_cents=200, spent_cents=spent_cents)
        assert found.remaining == max(0, 200 - spent_cents)
        is_hourly = name == "spend-1h" and wait_ms == 5_000_000
        expected = timedelta(milliseconds=3_599_750) if is_hourly else after
        assert (found.retry_after, found.reset_after) == (expected, expected)


def test_a_period_that_ends_before_holds_do_ends_the_wait() -> None:
    spending = limited_to(demands={"words": one(3)})
    reply = [1, NOW_MS, NOW_MS + 1000, *(10**9, 0, 0), *(50_000, 40_000, 30_000)]
    assert refusal_reasons.refused_decision(spending, reply, 0).retry_after == timedelta(seconds=1)


def test_what_costs_nothing_is_refused_by_no_budget() -> None:
    spending = limited_to(demands={"words": one(3), "calls": one(1)})
    reply = [1, NOW_MS, PERIOD_END_MS, *(5, 0, 0), *(10**9, 0, 0), *(9, 0, 0), *(-5, 0, 0)]
    found = refusal_reasons.refused_decision(spending, reply, 0)
    assert (found.reason, found.violated, found.spend) == ("rate", ("calls-1m",), None)


@pytest.mark.parametrize(
    ("grow", "storage", "seats", "reason", "told"),
    [
        pytest.param((20, 0), (90, 5), (3, 0), "storage", ("storage", "byte", 100, 95, 20, 5), id="storage"),
        pytest.param((20, 1), (78, 5), (2, 0), "storage", ("storage", "byte", 100, 83, 20, 17), id="holds"),
        pytest.param((20, 1), (80, 0), (3, 0), "seats", ("seats", "seat", 3, 3, 1, 0), id="only seats"),
        pytest.param((20, 1), (99, 0), (3, 0), "storage", ("storage", "byte", 100, 99, 20, 1), id="both"),
        pytest.param((20, 0), (110, 0), (0, 0), "storage", ("storage", "byte", 100, 110, 20, 0), id="over"),
    ],
)
def test_a_gauge_refuses_before_all_else_and_names_no_time(
    grow: tuple[int, int],
    storage: tuple[int, int],
    seats: tuple[int, int],
    reason: str,
    told: tuple[str, str, int, int, int, int],
) -> None:
    grown = {name: one(more) for name, more in zip(("seats", "storage"), grow[::-1], strict=True) if more}
    program = limited_to(demands={"calls": one(1), **grown})
    gauges = {"seats": (3, *seats), "storage": (100, *storage)}
    numbers = [number for name in grown for number in gauges[name]]
    found = refusal_reasons.refused_decision(
        program, [1, NOW_MS, PERIOD_END_MS, *(5, 0, 0), *(9, 0, 0), *numbers], 0
    )
    meter, unit, limit, used, requested, remaining = told
    level = GaugeLevel(meter=meter, unit=unit, limit=limit, used=used, requested=requested)
    assert found == Decision(
        allowed=False,
        reason=found.reason,
        limit=meter,
        remaining=remaining,
        violated=found.violated,
        gauge=level,
    )
    assert (found.reason, found.violated[0]) == (reason, "calls-1m")


@pytest.mark.parametrize(
    ("own", "of_team", "admitted", "wait_ms"),
    [
        pytest.param(0, 100, 4, 5_000_000, id="the next period admits as much"),
        pytest.param(0, 100, 3, None, id="the next period admits less"),
        pytest.param(1000, 0, 3, 5_000_000, id="a subject's limit stays as it is"),
    ],
)
def test_the_next_periods_limit_is_the_customers_own(
    own: int, of_team: int, admitted: int, wait_ms: int | None
) -> None:
    reply = [1, NOW_MS, PERIOD_END_MS, *(0, 0, 0), *(own, 0, 0), *(of_team, 0, 0)]
    after = None if wait_ms is None else timedelta(milliseconds=wait_ms)
    program = limited_to("team", demands={"calls": one(4)})
    found = refusal_reasons.refused_decision(program, reply, 0, lambda _, __: admitted)
    assert found.violated == ("calls-period" if own == 0 else "team:calls-period",)
    assert found.retry_after == after


def test_a_period_that_ends_before_holds_do_leaves_them() -> None:
    for numbers, quantity, wait_ms in (((0, 1, 2), 9, 1000), ((10, 1, 100), 10, 299_750)):
        found = refusal({PERIOD: numbers}, quantity, end_ms=NOW_MS + 1000)
        assert found.retry_after == timedelta(milliseconds=wait_ms)


def test_the_longest_wait_is_told_of_all_that_refuse() -> None:
    found = refusal({SECOND: (10, 0, 0), BUCKET: (12, 0, 0), PERIOD: (0, 0, 0)})
    assert found.violated == (POLICIES[SECOND], POLICIES[BUCKET], POLICIES[PERIOD])
    assert (found.limit, found.retry_after) == (POLICIES[PERIOD], timedelta(milliseconds=5_000_000))


def test_reasons_have_an_order() -> None:
    used = {CONCURRENCY: (2, 2, 0), MINUTE: (60, 0, 0), PERIOD: (0, 0, 0)}
    found = [refusal({nth: used[nth] for nth in [*used][at:]}).reason for at in range(3)]
    assert found == ["concurrency", "rate", "included"]


def test_a_decision_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(refusal({PERIOD: (0, 0, 0)}), "allowed", True)  # noqa: B010 - type checkers refuse the plain way


def test_a_billed_ceiling_is_a_cap() -> None:
    found = refusal_reasons.refused_decision(
        program(9, "tokens"), [1, NOW_MS, PERIOD_END_MS, 0, 0, 0, 8, 0, 0], 0
    )
    assert (found.reason, found.limit, found.remaining) == ("cap", "tokens-period", 8)


def test_an_admission_names_the_policy_nearest_to_exhaustion() -> None:
    for nth, told, wait_ms in (
        # Of 6 counted in this second one is forgotten when a sixth of the next one has passed.
        (SECOND, (4, 0), 750 + 167),
        # Of 10 counted in the last second 8 still count, and 7 once 300 ms of this one have passed.
        (SECOND, (2, 10), 50),
        # As much as was asked is left: one more is, when a ninth has passed of the nine counted.
        (SECOND, (-2, 0), 750 + 250),
        (MINUTE, (4, 0), 59_750),
        (SECOND, (10, 0), 0),  # More is never left.
        (BUCKET, (5, 1), 1),
        (BUCKET, (5, 0), 429),
        (PERIOD, (4, 0), 5_000_000),
        (CONCURRENCY, (1, 0), None),
    ):
        found = refusal_reasons.allowed_decision(program(), [0, NOW_MS, nth + 1, *told], PERIOD_END_MS)
        reset = None if wait_ms is None else timedelta(milliseconds=wait_ms)
        left = max(0, told[0])
        assert found == Decision(allowed=True, limit=POLICIES[nth], remaining=left, reset_after=reset)


@pytest.mark.parametrize(
    ("left", "wait_ms"),
    [
        pytest.param(4, 429, id="as much as was asked is left: one unit more"),
        pytest.param(5, 429, id="more is left: one unit more"),
        pytest.param(2, 858, id="less is left: as much as was asked"),
    ],
)
def test_a_bucket_resets_when_it_has_what_was_asked(left: int, wait_ms: int) -> None:
    found = refusal_reasons.allowed_decision(program(4), [0, NOW_MS, BUCKET + 1, left, 0], PERIOD_END_MS)
    assert (found.remaining, found.reset_after) == (left, timedelta(milliseconds=wait_ms))


def test_a_budget_resets_with_its_window_or_the_period() -> None:
    for catalog, wait_ms in ((LIMITED, 5_000_000), (HOURLY, 3_599_750)):
        spending = compile_program(catalog.plans["free"].entitlements, catalog, {"words": one(3)})
        found = refusal_reasons.allowed_decision(spending, [0, NOW_MS, 2, 150, 0], PERIOD_END_MS)
        assert (found.remaining, found.reset_after) == (150, timedelta(milliseconds=wait_ms))


def test_an_admission_without_policies_names_none() -> None:
    assert Decision(allowed=True) == refusal_reasons.allowed_decision(
        program(), [0, NOW_MS, 0, 0, 0], PERIOD_END_MS
    )


def test_a_window_of_25_hours_moves_by_the_millisecond() -> None:
    window_ms = EXACT_WINDOW_MS_MAX
    assert weighted_count(window_ms, 1, window_ms) == 1
    assert weighted_count(window_ms + 1000, 1, window_ms + 1000) == 1000


class Patient(World):
    """Tries every refused demand again, on a copy of the customer: just before its time, and at its time."""

    tried: int = 0
    hopeless: int = 0

    def refused(self, known: CustomerView, program: Program, reply: list[int]) -> None:
        now_ms, bounds = reply[1], known.effective.bounds
        end_ms = bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms
        decision = refusal_reasons.refused_decision(program, reply, end_ms)
        assert decision.reason is not None
        if any(name.endswith("-concurrency") for name in decision.violated):
            assert decision.retry_after is None or decision.retry_after >= timedelta(seconds=1)
            return
        self.wire(pack("DEL", *COPIES))
        for key, copy in zip((known.keys.counters, known.keys.totals), COPIES, strict=True):
            self.wire(pack("COPY", key, copy))
        what = f"{decision} of {reply}, period to {end_ms}"
        if decision.retry_after is None:
            self.hopeless += 1
            self.compare(what, 1, self.again(known, program, now_ms + 800 * 24 * HOUR_MS))
            return
        self.tried += 1
        wait_ms = decision.retry_after // timedelta(milliseconds=1)
        if decision.retry_after == timedelta(days=400):
            return
        assert wait_ms >= 1
        self.compare(f"before {what}", 1, self.again(known, program, now_ms + wait_ms - 1))
        self.compare(f"at {what}", 0, self.again(known, program, now_ms + wait_ms))

    def again(self, known: CustomerView, program: Program, at_ms: int) -> Any:
        parts = unpack(b"".join(known.pack_decide(program, "f")) + pack_each([at_ms]))
        counters, totals = COPIES
        parts[3], parts[5] = counters.encode(), totals.encode()
        return self.wire(pack(*parts))[0]


COPIES = ("mk:{0}:c:copy", "mk:{0}:t:copy")


@pytest.mark.dear("a life of the script model: each refusal is asked again")
@pytest.mark.parametrize("seed", some(range(3), [1]))
def test_a_refusal_tells_the_time_at_which_the_same_is_admitted(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        patient = Patient(wire, load_texts(), life(seed), anchors=False)
        for _ in range(1500):
            patient.step()
    assert patient.tried > 50
    assert patient.hopeless > 5


PROGRAM_PLANS = free_plan(
    """
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token, stripe: {event_name: tokens, report: usage}}
  silent: {unit: token, stripe: {event_name: silent, report: none}}
  plain: {unit: item}""",
    """
      requests:
        rate: [100/minute, {limit: 20/second, algorithm: token-bucket, burst: 40}]
        included: 1000
        overage: deny
        concurrency: 4
      tokens: {included: 500, overage: {bill: {cap: 100}}}
      silent: {included: 500, overage: bill}
      plain: {rate: 10/second}""",
)
PROGRAM_CATALOG = loads(PROGRAM_PLANS)
PROGRAM_ENTITLEMENTS = PROGRAM_CATALOG.plans["free"].entitlements


def compiled(demands: Mapping[str, Demand], **flags: Any) -> Program:
    return compile_program(PROGRAM_ENTITLEMENTS, PROGRAM_CATALOG, demands, **flags)


def one(needed: int, taken: int | None = None) -> Demand:
    return Demand(needed=needed, taken=needed if taken is None else taken)


def test_rates_precede_ceilings_concurrency_and_recording() -> None:
    found = compiled({"requests": one(2), "plain": one(3)}, billed_always=True)
    assert found.fields == (
        *(rate_field("requests", 60_000, "sliding-window"), rate_field("requests", 1000, "token-bucket")),
        rate_field("plain", 1000, "sliding-window"),
        *(meter_field("requests"), concurrency_field("requests"), meter_field("plain")),
    )
    rates = (3, 2, 1, 0), (1, 60_000, 100, 0, 2, 2), (3, 50, 40, 1, 2, 2), (1, 1000, 10, 0, 3, 3)
    ceilings, concurrency, recorded = (1000, -1, 2, 2), (4, -1, 1, 1), (3,)
    assert found.numbers == tuple(chain(*rates, ceilings, concurrency, recorded))
    names = ["requests-1m", "requests-1s", "plain-1s", "requests-period", "requests-concurrency"]
    assert [measure.policy.name for measure in found.measures] == names
    assert (found.held, found.concurrency, found.settled) == ({"requests": 2}, ("requests",), {"requests": 2})
    assert found.settles
    # A quantity that is bound later replaces what is needed, at least one, and what is taken.
    sliding, bucket, plain, ceiling = (8, 9), (14, 15), (20, 21), (24, 25)
    places = ((sliding, "requests"), (bucket, "requests"), (plain, "plain"), (ceiling, "requests"))
    assert found.quantity_places == tuple(
        (place, meter, least) for pair, meter in places for place, least in zip(pair, (1, 0), strict=True)
    )


def test_what_has_a_limit_of_units_or_requests_is_held() -> None:
    for demands, flags, holds in (
        ({"requests": one(1)}, {}, True),
        ({"requests": one(1)}, {"in_flight": False}, True),
        ({"requests": one(1, 0)}, {}, True),
        ({"requests": one(1, 0)}, {"in_flight": False}, False),
        ({"plain": one(1)}, {}, False),
        ({"tokens": one(1)}, {}, True),
        ({"tokens": one(1, 0)}, {}, False),
    ):
        assert compiled(demands, **flags).holds is holds, (demands, flags)


def test_a_cap_is_told_apart_from_included() -> None:
    found = compiled({"tokens": one(7, 0)})
    assert (found.numbers, found.fields) == ((0, 1, 0, 0, 500, 100, 7, 0), (meter_field("tokens"),))
    assert (found.held, found.concurrency, found.settled, found.settles) == ({}, (), {}, False)
    assert (found.measures[0].limit, found.measures[0].capped) == (600, True)


def test_overage_without_a_cap_has_no_ceiling_and_is_settled() -> None:
    found = compiled({"silent": one(7)}, billed_always=True)
    assert (found.numbers, found.fields) == ((0, 0, 0, 0), ())
    assert (found.held, found.settled) == ({}, {"silent": 7})


def test_an_always_route_is_decided_by_its_rates() -> None:
    found = compiled({"requests": one(2)}, rates_only=True, billed_always=True)
    assert found.numbers[:3] == (2, 0, 0)
    assert (found.held, found.concurrency, found.settled) == ({}, (), {"requests": 2})


def test_counters_live_two_windows_and_a_quarter_of_an_hour() -> None:
    expected = {"requests": 120_000 + 900_000, "plain": 2000 + 900_000, "tokens": 900_000}
    assert {meter: compiled({meter: one(1)}).keep_ms for meter in expected} == expected


def test_which_classes_go_to_stripe() -> None:
    expected = {"requests": (0, 0), "tokens": (1, 1), "silent": (0, 0), "plain": (0, 0)}
    entitlements, meters = PROGRAM_ENTITLEMENTS, PROGRAM_CATALOG.meters
    assert {name: reported_parts(entitlements[name], meters[name]) for name in expected} == expected


def test_a_refill_of_a_million_parts_is_the_least() -> None:
    def numbers(limit: int, window_ms: int, burst: int) -> tuple[int, ...]:
        rate = Rate(limit=limit, window_ms=window_ms, algorithm="token-bucket", burst=burst, window="1s")
        return tuple(rate_numbers(rate, "requests"))

    assert numbers(2_000_001, 2 * 10**9, 8_999_998) == (3, 10**9, 8_999_998, 10**6)
    # A bucket owes up to two units more than its burst, times its window: 9 * 10^15 is counted exactly.
    assert numbers(2_000_001, 1_999_999_999, 4_499_998) == (3, 1_999_999_999, 4_499_998, 2_000_001)
    assert numbers(2_000_001, 2 * 10**9, 4_499_999) == (3, 1_999_999_555, 4_499_999, 2_000_000)
    for inexact in ((1_999_999, 2 * 10**9, 8_999_998), (1, 30 * 86_400_000, QUANTITY_MAX)):
        with pytest.raises(PlansError, match="make the burst smaller or the rate faster"):
            numbers(*inexact)


def test_what_is_bound_is_asked_and_held_with_the_rest() -> None:
    program = compiled({"tokens": one(5), "requests": one(1)})
    binding = BoundProgram(program, {"tokens": 4})
    numbers = binding.numbers({"tokens": 70})
    changed = {place: number for place, number in enumerate(numbers) if number != program.numbers[place]}
    assert set(changed.values()) == {74}
    assert set(changed) == {place for place, meter, _ in program.quantity_places if meter == "tokens"}
    assert binding.numbers({}) == list(program.numbers)
    assert binding.held({"tokens": 70}) == {**program.held, "tokens": 74}
    assert binding.held({}) == dict(program.held)


def test_no_less_is_asked_than_the_least() -> None:
    program = compiled({"tokens": one(5)})
    least = {place: least for place, meter, least in program.quantity_places if meter == "tokens"}
    numbers = BoundProgram(program, {"tokens": 0}).numbers({"tokens": 0})
    assert {place: numbers[place] for place in least} == least


def test_what_is_recorded_besides_is_what_was_asked_besides() -> None:
    program = compiled({"tokens": one(5), "requests": one(1)})
    assert program.settled == {"tokens": 5, "requests": 1}
    some_bound, none_bound = (BoundProgram(program, {"tokens": quantity}) for quantity in (4, 0))
    assert (some_bound.recorded, none_bound.recorded) == ({"tokens": 4, "requests": 1}, {"requests": 1})
    assert none_bound.is_exact


PAID = loads(
    PROGRAM_PLANS.replace(
        "  plain: {unit: item}", "  plain: {unit: item}\n  other: {unit: item, stripe: {event_name: other}}"
    )
    .replace("plans:", "credits: {ai: {costs: {silent: 1 per 1000}}}\nplans:")
    .replace("      plain: {rate", "      other: {included: 5, overage: bill}\n      plain: {rate")
)


def test_what_credit_pays_is_held_without_a_ceiling() -> None:
    plan = PAID.plans["free"]
    demands = {name: one(2) for name in ("requests", "silent", "other")}
    program = compile_program(plan.entitlements, PAID, demands, prepaid=Prepaid.of(plan, PAID))
    assert program.held == {"requests": 2, "silent": 2}
    bound = [("requests",), ("silent",), ("requests", "silent")]
    exact = [BoundProgram(program, dict.fromkeys(names, 0)).is_exact for names in bound]
    assert exact == [True, False, False]


CREDITED = loads(
    free_plan(
        """
  calls:   {unit: call}
  tokens:  {unit: token}
  words:   {unit: word, stripe: {event_name: words}}
  notes:   {unit: note}
  pages:   {unit: page}
  storage: {unit: byte, kind: gauge}""",
        """
      calls:   {included: 1000, overage: deny}
      tokens:  {included: 10, overage: deny}
      words:   {included: 0, overage: {bill: {per: 1, amount_cents: 1}}}
      notes:   {included: 5, overage: deny}
      storage: {included: 100, overage: {percent: 5, grace: 7d}}""",
        """credits: {ai: {costs: {calls: 3 per 1000, tokens: prices.models, words: 1}}}
prices: {models: {unknown_model: free, models: {"big*": 9 per 1000}}}""",
    )
)
EVERY_COST = ["calls", "tokens", "words"]


@pytest.mark.parametrize(
    ("asked", "ceilings", "backed", "costs"),
    [
        pytest.param("calls", [["m:calls", 1]], EVERY_COST, {}, id="of one cost"),
        pytest.param("tokens", [["m:tokens", 2]], EVERY_COST, {"tokens": 9_000}, id="by model"),
        pytest.param("words", [], EVERY_COST, {}, id="without a ceiling"),
        pytest.param("notes", [["m:notes", 0]], [], {}, id="no credit pays for it"),
        pytest.param("pages", None, [], {}, id="without ceiling and credit"),
    ],
)
def test_what_may_back_a_ceiling_is_read_with_it(
    asked: str, ceilings: list[Any] | None, backed: list[str], costs: dict[str, int]
) -> None:
    plan = CREDITED.plans["free"]
    prepaid, demands = Prepaid.of(plan, CREDITED), {asked: one(3), "storage": one(20)}
    found = compile_program(plan.entitlements, CREDITED, demands, prepaid=prepaid)
    assert (found.held, found.costs) == (
        {"storage": 20} if asked == "pages" else {asked: 3, "storage": 20},
        costs,
    )
    terms = json.loads(found.extra_terms)
    # The first field has place 2.
    ((gauge, _, place, *limit),) = terms["levels"]
    assert (gauge, found.fields[place - 2], limit) == (
        "storage",
        meter_field("storage"),
        [100, 105, 604_800_000, False],
    )
    assert terms.get("asked") == ceilings
    lines = terms.get("backed", [])
    assert [line[3] for line in lines] == [f"m:{name}" for name in backed]
    for name, (_, _, _, _, at, quantity, *by_model) in zip(backed, lines, strict=True):
        assert found.fields[at - 2] == meter_field(name)
        assert quantity == (3 if asked == name == "words" else 0)
        assert [found.fields[at - 2] for at in by_model[:1]] == [credit_hold_field("tokens")] * (
            name == "tokens"
        )


def test_costs_of_models_count_where_credit_pays_alone() -> None:
    plan, at = CREDITED.plans["free"], ModelPricing({"tokens": 7})
    prepaid = Prepaid.of(plan, CREDITED)
    for paying, rates_only, costs in (
        (prepaid, False, {"tokens": 7}),
        (prepaid, True, {}),
        (None, False, {}),
    ):
        found = compile_program(
            plan.entitlements, CREDITED, {"tokens": one(3)}, prepaid=paying, at=at, rates_only=rates_only
        )
        assert found.costs == costs, rates_only


def test_holds_of_subjects_are_held_with_the_rest() -> None:
    """A subject's limit bounds nothing of the customer's."""
    for kinds, meter, holds in (
        (["user"], "calls", False),  # A rate holds nothing.
        (["user"], "words", True),
        (["team"], "calls", True),
        (["user", "team"], "calls", True),
    ):
        asked = limited_to(*kinds, demands={meter: one(1)}, rates_only=True)
        assert (asked.holds, asked.settles, asked.numbers[3]) == (holds, True, len(kinds)), (kinds, meter)
    own = limited_to("user", demands={"calls": one(1)})
    assert own.holds
    assert limited_to(demands={"calls": one(1)}, rates_only=True).holds is False


def test_a_subjects_ceiling_makes_no_number_exact() -> None:
    plan = PAID.plans["free"]
    paying = Prepaid.of(plan, PAID)
    program = compile_program(plan.entitlements, PAID, {"silent": one(2)}, prepaid=paying)
    limits = replace(LIMITED.plans["free"].subjects["team"], limits={"silent": plan.entitlements["requests"]})
    limits = replace(limits, limits={"silent": replace(limits.limits["silent"], meter="silent")})
    asked = compile_subject(
        limits, {"silent": one(2)}, plan.entitlements, PAID, in_flight=False, rates_only=False
    )
    assert [measure.kind for measure in asked.measures][-1:] == [CEILING]
    for bound in (program, program.with_subjects((asked,))):
        assert BoundProgram(bound, {"silent": 0}).is_exact is False


OWNED: Final = loads(
    free_plan(
        """
  calls:  {unit: call}
  pages:  {unit: page}
  words:  {unit: word, stripe: {event_name: words}}
  lines:  {unit: line, stripe: {event_name: lines}}
  tokens: {unit: token, stripe: {event_name: tokens}}""",
        """
      words:  {included: 100, overage: {bill: {per: 1000, amount_cents: 3}}}
      lines:  {included: 0, overage: {bill: {per: 3, amount_cents: 1}}}
      tokens: {included: 0, overage: {bill: {price: prices.out}}}
    subjects:
      user:
        calls:  {rate: {limit: 10/hour, algorithm: fixed-window}}
        pages:  {concurrency: 2}
        words:  {included: 90}
        budget: {amount_cents: 5, per: day}
      team:
        lines:  {included: 7}
        budget: {amount_cents: 2}
      bot:
        words:  {rate: 5/second, included: 8}""",
        'prices: {out: {default: 4 per 1000, models: {"big*": 9 per 1000, "mini*": 1 per 1000}}}',
    )
)
OWNED_PLAN: Final = OWNED.plans["free"]
MINI_ROW: Final = OWNED_PLAN.entitlements["tokens"].overage.rows.of("mini")  # type: ignore[union-attr]
# A word costs 30 micro-units, a line a third of 10,000, a token 90, 40 or 10.


@pytest.mark.parametrize(
    ("quantities", "model", "rows", "cost"),
    [
        pytest.param({}, "", {}, 0, id="nothing costs nothing"),
        pytest.param({"calls": 7}, "", {}, 0, id="what has no price costs nothing"),
        pytest.param({"words": 0, "lines": 0}, "", {}, 0, id="no units cost nothing"),
        pytest.param({"words": 1}, "", {}, 30, id="an included unit costs what one beyond costs"),
        pytest.param({"calls": 7, "words": 101}, "", {}, 3030, id="so many units so many times"),
        pytest.param({"lines": 2}, "", {}, Fraction(20_000, 3), id="parts of a micro-unit are kept"),
        pytest.param({"words": 2, "lines": 3}, "", {}, 10_060, id="prices of several meters add up"),
        pytest.param({"tokens": 2}, "", {}, 180, id="an unknown model costs the highest price"),
        pytest.param({"tokens": 2}, None, {}, 80, id="no model costs the default"),
        pytest.param({"tokens": 2}, "other", {}, 80, id="a model of no pattern costs the default"),
        pytest.param({"tokens": 2}, "mini-1", {}, 20, id="a model costs its own"),
        pytest.param({"tokens": 2, MINI_ROW: 2}, "mini-1", {}, 20, id="what is counted by model counts once"),
        pytest.param({MINI_ROW: 2}, "mini-1", {}, 0, id="what is counted by model alone counts not at all"),
        pytest.param({"tokens": 2}, "", {"tokens": MINI_ROW}, 20, id="a requested model costs its own"),
    ],
)
def test_every_unit_of_a_subject_costs_the_plans_price(
    quantities: dict[str, int], model: str | None, rows: dict[str, str], cost: Fraction
) -> None:
    assert cost_of(quantities, OWNED_PLAN.entitlements, OWNED, model, rows) == cost


CALLS, WORDS, LINES, PAGES, SPEND, SPEND_OF_DAY = (
    rate_field("calls", HOUR_MS, "fixed-window"),
    meter_field("words"),
    meter_field("lines"),
    concurrency_field("pages"),
    meter_field("spend"),
    rate_field("spend", DAY_MS, "fixed-window"),
)
WORDS_RATE: Final = rate_field("words", 1000, "sliding-window")
QUARTER_HOUR_MS: Final = 900_000
A_LOT: Final = {"calls": one(2), "words": one(3), "pages": one(1)}


@pytest.mark.parametrize(
    ("kind", "demands", "flags", "fields", "counts", "numbers", "policies", "hold"),
    [
        pytest.param(
            "user",
            A_LOT,
            {},
            (CALLS, WORDS, PAGES, SPEND, SPEND_OF_DAY),
            (2 * HOUR_MS, 1, 1, 1, 2),
            [(2, HOUR_MS, 10, 0, 2, 2), (90, -1, 3, 3), (2, -1, 1, 1), (DAY_MS, 50_000, 10_000, 90, 90)],
            "user:calls-1h user:words-period user:pages-concurrency user:spend-1d",
            SubjectHold({"words": 3}, ("pages",), 90, frozenset({CALLS})),
            id="a request is checked against each limit, then the budget of a day",
        ),
        pytest.param(
            "user",
            A_LOT,
            {"in_flight": False},
            (CALLS, WORDS, SPEND, SPEND_OF_DAY),
            (2 * HOUR_MS, 1, 1, 0, 2),
            [(2, HOUR_MS, 10, 0, 2, 2), (90, -1, 3, 3), (DAY_MS, 50_000, 10_000, 90, 90)],
            "user:calls-1h user:words-period user:spend-1d",
            SubjectHold({"words": 3}, (), 90, frozenset({CALLS})),
            id="what is no request is not in flight",
        ),
        pytest.param(
            "user",
            A_LOT,
            {"rates_only": True},
            (CALLS,),
            (2 * HOUR_MS, 1, 0, 0, 0),
            [(2, HOUR_MS, 10, 0, 2, 2)],
            "user:calls-1h",
            SubjectHold({}, (), 0, frozenset({CALLS})),
            id="a line that is always served is checked against rates alone",
        ),
        pytest.param(
            "user",
            {"words": one(1, 0)},
            {},
            (WORDS, SPEND, SPEND_OF_DAY),
            (0, 0, 1, 0, 2),
            [(90, -1, 1, 0), (DAY_MS, 50_000, 10_000, 30, 0)],
            "user:words-period user:spend-1d",
            SubjectHold(),
            id="what is asked for with 0 needs one, and holds nothing",
        ),
        pytest.param(
            "user",
            {"calls": one(1), "pages": one(1)},
            {},
            (CALLS, PAGES),
            (2 * HOUR_MS, 1, 0, 1, 0),
            [(2, HOUR_MS, 10, 0, 1, 1), (2, -1, 1, 1)],
            "user:calls-1h user:pages-concurrency",
            SubjectHold({}, ("pages",), 0, frozenset({CALLS})),
            id="what costs nothing spends no budget",
        ),
        pytest.param(
            "team",
            {"calls": one(1), "lines": one(4, 3)},
            {},
            (LINES, SPEND),
            (0, 0, 1, 0, 1),
            [(7, -1, 4, 3), (0, 20_000, 10_000, 13_334, 10_000)],
            "team:lines-period team:spend-period",
            SubjectHold({"lines": 3}, (), 10_000),
            id="the budget of a period has one field, and parts of a micro-unit count as one",
        ),
        pytest.param(
            "team",
            {"tokens": one(2), MINI_ROW: one(2)},
            {"rows": {"tokens": MINI_ROW}},
            (SPEND,),
            (0, 0, 0, 0, 1),
            [(0, 20_000, 10_000, 20, 20)],
            "team:spend-period",
            SubjectHold({}, (), 20),
            id="a requested model costs its own price",
        ),
        pytest.param(
            "team",
            {"tokens": one(2)},
            {},
            (SPEND,),
            (0, 0, 0, 0, 1),
            [(0, 20_000, 10_000, 180, 180)],
            "team:spend-period",
            SubjectHold({}, (), 180),
            id="an unknown model costs the highest",
        ),
        pytest.param(
            "bot",
            {"words": one(3)},
            {},
            (WORDS_RATE, WORDS),
            (2000, 1, 1, 0, 0),
            [(1, 1000, 5, 0, 3, 3), (8, -1, 3, 3)],
            "bot:words-1s bot:words-period",
            SubjectHold({"words": 3}, (), 0, frozenset({WORDS_RATE})),
            id="without a budget nothing is spent",
        ),
        pytest.param("bot", {"calls": one(1)}, {}, (), (0, 0, 0, 0, 0), [], "", SubjectHold(), id="no limit"),
    ],
)
def test_a_subject_is_checked_against_its_own_limits(
    kind: str,
    demands: dict[str, Demand],
    flags: dict[str, Any],
    fields: tuple[str, ...],
    counts: tuple[int, ...],
    numbers: list[tuple[int, ...]],
    policies: str,
    hold: SubjectHold,
) -> None:
    """The terms are those of check_subjects.lua; counters outlive two windows by a quarter of an hour."""
    given: dict[str, Any] = {"in_flight": True, "rates_only": False, **flags}
    found = compile_subject(OWNED_PLAN.subjects[kind], demands, OWNED_PLAN.entitlements, OWNED, **given)
    assert found.fields == fields
    keep_ms, *others = counts
    assert found.numbers == (QUARTER_HOUR_MS + keep_ms, *others, *chain.from_iterable(numbers))
    assert [measure.policy.name for measure in found.measures] == policies.split()
    assert (found.kind, found.hold) == (kind, hold)


@pytest.mark.parametrize(
    ("hold", "fields", "numbers"),
    [
        pytest.param(
            SubjectHold({"words": 3, "lines": 2}, ("pages",), 90, frozenset({CALLS})),
            (WORDS, LINES, PAGES, SPEND),
            (0, 2, 1, 1, *(0, -1, 0, 3), *(0, -1, 0, 2), *(0, -1, 0, 1), *(0, 0, 1, 0, 90)),
            id="as much as before, and in the rates nothing again",
        ),
        pytest.param(
            SubjectHold({"words": 3}),
            (WORDS,),
            (0, 1, 0, 0, *(0, -1, 0, 3)),
            id="one meter, which costs nothing",
        ),
        pytest.param(
            SubjectHold({}, ("pages", "calls")),
            (PAGES, concurrency_field("calls")),
            (0, 0, 2, 0, *(0, -1, 0, 1), *(0, -1, 0, 1)),
            id="a request in flight of each meter",
        ),
        pytest.param(
            SubjectHold({}, (), 90), (SPEND,), (0, 0, 0, 1, *(0, 0, 1, 0, 90)), id="what it may cost alone"
        ),
        pytest.param(SubjectHold(rates=frozenset({CALLS})), (), (0, 0, 0, 0), id="nothing"),
    ],
)
def test_a_renewed_hold_of_a_subject_repeats_what_it_holds(
    hold: SubjectHold, fields: tuple[str, ...], numbers: tuple[int, ...]
) -> None:
    """Nothing is needed, so that no limit can refuse it."""
    found = renew_hold("user", hold)
    assert (found.kind, found.fields, found.measures) == ("user", fields, ())
    assert found.numbers == (QUARTER_HOUR_MS, *numbers)
    assert found.hold == hold._replace(rates=frozenset())


def test_what_each_line_asks_for() -> None:
    meters = """
  requests:      {unit: request}
  images:        {unit: image}
  output_tokens: {unit: token}
  seats:         {unit: seat, kind: gauge}"""
    top = """credits: {usd: {unit: money, costs: {tokens: provider_prices, markup: MARKUP}}}
routes:
  - {match: "POST /members", grow: {seats: 2}, consume: {requests: 1}}
  - {match: "WS /live", consume: {requests: 1}, per_message: {images: 1}}
  - {match: "POST /draw", records: [images]}
  - {match: "POST /chat", usage: openai}"""
    for markup, is_charged in (("20%", True), ("-100%", False)):
        catalog = loads(free_plan(meters, top=top.replace("MARKUP", markup)))
        (money,) = (name for name, meter in catalog.meters.items() if meter.charges is not None)
        members, live, draw, chat = (demands_of(route, catalog) for route in catalog.routes)
        assert (members, live, draw) == (
            {"requests": one(1), "seats": one(2)},
            {"requests": one(1)},
            {"images": one(1, 0)},
        )
        tokens = {"output_tokens": one(1, 0)}
        assert chat == (tokens | {money: one(1, 0)} if is_charged else tokens)
        assert demands_of(catalog.routes[-1], catalog, free=[money]) == tokens


def test_only_a_flat_price_gets_overage_alone() -> None:
    meters, given = PROGRAM_CATALOG.meters, PROGRAM_ENTITLEMENTS["requests"]
    for meter, entitlement, is_flat in (
        ("requests", None, True),
        ("requests", given, True),
        ("requests", replace(given, sends_included=True), False),
        ("requests", replace(given, sends_included=False), True),
        ("tokens", None, False),
        ("tokens", replace(PROGRAM_ENTITLEMENTS["tokens"], sends_included=False), False),
        ("silent", None, False),
        ("plain", None, False),
    ):
        assert has_flat_price(entitlement, meters[meter]) is is_flat, (meter, entitlement)


def test_an_unknown_number_of_tokens_needs_something_left() -> None:
    meters = "{requests: {unit: request}, input_tokens: {unit: token}, output_tokens: {unit: token}}"
    routes = """routes:
  - {match: "POST /ask", consume: {requests: 2}, usage: openai}
  - {match: "*", consume: {requests: 1}}"""
    catalog = loads(free_plan(meters, top=routes))
    asked, rest = (demands_of(route, catalog) for route in catalog.routes)
    assert asked == {"requests": one(2), "input_tokens": one(1, 0), "output_tokens": one(1, 0)}
    assert rest == {"requests": one(1)}


# Rates counted in this process: clocks that go back, rates that change, and what is left.


IN_PROCESS_PLANS = free_plan(
    "{tokens: {unit: token}}", "{tokens: {included: 100, overage: deny, rate: 10/minute}}"
)


def in_process(rate: str) -> Catalog:
    return loads(IN_PROCESS_PLANS.replace("10/minute", rate))


IN_PROCESS_CATALOG = loads(IN_PROCESS_PLANS)
TWO_RATES = in_process("[10/minute, 10/hour], concurrency: 3")
IN_PROCESS_BUCKET = in_process("{limit: 6000/second, algorithm: token-bucket, burst: 10}")
WITHOUT_RATES = loads(IN_PROCESS_PLANS.replace(", rate: 10/minute", ""))
REFILL = 5  # Units in a hundred milliseconds.
WINDOW_MS = 100


def test_a_bucket_refills_with_time_and_is_never_more_than_full() -> None:
    for at, now_ms, expected, used in (
        ((10_000, 7, 0), 10_040, (10_040, 5, 0), 5),
        ((10_000, 7, 1), 10_000, (10_000, 7, 1), 8),  # A rest uses a whole unit.
        ((10_000, 1, 0), 20_000, (20_000, 0, 0), 0),
    ):
        assert advance(TOKEN_BUCKET, WINDOW_MS, REFILL, at, now_ms) == (expected, used)


PLENTY = {"tokens-period": RemainingQuantity(10**9, is_backed=False, is_known=True)}


def asking(quantity: int, catalog: Catalog = IN_PROCESS_CATALOG, *, in_flight: bool = False) -> Program:
    demands = {"tokens": Demand.of(quantity)}
    return compile_program(catalog.plans["free"].entitlements, catalog, demands, in_flight=in_flight)


def test_asking_for_nothing_is_refused_if_nothing_is_left() -> None:
    known: dict[str, Any] = {}
    for quantity, reply in ((0, 0), (10, 0), (0, 1)):
        (refused, *_), counts = decide_by_rates(asking(quantity), known, PLENTY, 60_000)
        assert refused == reply
        known = known | counts


@pytest.mark.parametrize("algorithm", ["sliding-window", "fixed-window"])
def test_what_is_weighed_is_what_the_rate_comes_to(algorithm: str) -> None:
    catalog = in_process(f"{{limit: 10/minute, algorithm: {algorithm}}}")
    ((field, kind, window_ms, _, refill, _, _),) = asking(1, catalog).rate_terms
    known, slides = {field: (1, 2, 9)}, algorithm == "sliding-window"
    # Within the window, of that a quarter is over, in the next one, and in the one behind it.
    for now_ms, counted in ((75_000, 2 + 7 * slides), (135_000, 2 * slides), (195_000, 0)):
        reply, counts = decide_by_rates(asking(10 - counted, catalog), known, PLENTY, now_ms)
        assert (reply[0], reply[3]) == (0, 0)
        (slot, before, earlier), _ = advance(kind, window_ms, refill, known[field], now_ms)
        assert counts == {field: (slot, before + 10 - counted, earlier)}
        assert decide_by_rates(asking(11 - counted, catalog), known, PLENTY, now_ms)[0][0] == 1


def test_a_ceiling_admits_what_is_left_of_it() -> None:
    for is_known, code in ((True, 1), (False, IN_DOUBT)):
        left = {"tokens-period": RemainingQuantity(5, is_backed=False, is_known=is_known)}
        for quantity, expected in ((5, 0), (6, code)):
            assert decide_by_rates(asking(quantity), {}, left, 0)[0][0] == expected


def test_the_rate_nearest_to_its_limit_is_reported() -> None:
    program, now_ms = asking(1, TWO_RATES), 2 * HOUR_MS
    (minute, *_), (hour, *_) = program.rate_terms
    for known, told in (({}, (1, 9)), ({minute: (120, 3, 0)}, (1, 6)), ({hour: (2, 3, 0)}, (2, 6))):
        assert decide_by_rates(program, known, PLENTY, now_ms)[0] == [0, now_ms, *told, 0]
    assert decide_by_rates(asking(1, WITHOUT_RATES), {}, PLENTY, now_ms) == ([0, now_ms, 0, 0, 0], {})


def test_a_rest_of_another_rate_is_less_than_a_unit_in_buckets() -> None:
    program = asking(1, IN_PROCESS_BUCKET)
    ((field, *_),) = program.rate_terms
    reply, counts = decide_by_rates(program, {field: (60_000, 3, 9)}, PLENTY, 60_000)
    assert (reply, counts) == ([0, 60_000, 1, 6, 0], {field: (60_000, 4, 0)})


def test_a_refusal_has_the_form_of_the_scripts_reply() -> None:
    program = asking(5, TWO_RATES, in_flight=True)
    (minute, *_), (hour, *_) = program.rate_terms
    now_ms = 2 * HOUR_MS
    for is_backed in (False, True):
        left = {"tokens-period": RemainingQuantity(4, is_backed=is_backed, is_known=True)}
        reply, counts = decide_by_rates(program, {minute: (119, 8, 1), hour: (2, 7, 2)}, left, now_ms)
        told = (4, 0, 0, 3, 0, 0, int(is_backed))
        assert (reply, counts) == ([1, now_ms, 0, 0, 8, 0, 7, 2, 0, *told], {})


def test_a_refusal_without_the_store_has_no_subjects_rates() -> None:
    program = limited_to("user", demands={"calls": one(1)})
    left = {"calls-period": RemainingQuantity(0, is_backed=False, is_known=True)}
    reply, _ = decide_by_rates(program, {}, left, 60_000)
    assert reply == [1, 60_000, 0, *(0, 0, 0), *(0, 0, 0), *(0, 0, 0), 0]


# Names of keys are a format: a process of the next release reads those of this one.


KEYS = Keys("mk", 128)


def test_keys_of_a_shard() -> None:
    found = (
        *(KEYS.shard(7, "outbox"), KEYS.producer(7, "p"), KEYS.correction(7, "d"), KEYS.totals(7, "ada")),
        *(KEYS.turns(7), KEYS.notices(7), KEYS.audit(7), KEYS.audit_sums(7), KEYS.hints(7, "due")),
    )
    names = ("outbox", "w:p", "r:d", "t:ada", "turns", "notices", "audit", "audit:sums", "hints:due")
    assert found == tuple(f"mk:{{7}}:{name}" for name in names)
    assert (HOOKS_SHARD, KEYS.hooks("due")) == (0, "mk:{0}:hooks:due")
    day = 23_000
    for now_ms in (day * DAY_MS, (day + 1) * DAY_MS - 1):
        kept = KEYS.delivered(7, now_ms), KEYS.batches(7, now_ms)
        assert kept == (f"mk:{{7}}:delivered:{day}", f"mk:{{7}}:batches:{day}")


def test_stripe_customers_events_and_jobs_have_keys_of_their_own() -> None:
    shard = crc32(b"cus_1") % 128
    found = (KEYS.link("cus_1"), KEYS.formers("cus_1"), KEYS.beginning("cus_1"))
    assert found == tuple(f"mk:{{{shard}}}:{letter}:cus_1" for letter in "lfb")
    digest = blake2b(b"job_1", digest_size=16).hexdigest()
    assert KEYS.job("job_1") == f"mk:{{{shard_of(digest, 128)}}}:o:{digest}"
    name = KEYS.event(7, "ada", "1")
    assert len(name.removeprefix("mk:{7}:e:")) == 32
    assert len({name, KEYS.event(7, "ada", "2"), KEYS.event(7, "bob", "1"), KEYS.event(7, "ad", "a1")}) == 4
    assert KEYS.job("\udc80") != KEYS.event(7, "ada", "\udc80")  # Bytes that are no UTF-8 are known, too.


def test_keys_of_a_customer() -> None:
    shard = f"mk:{{{crc32(b'ada') % 128}}}"
    names = ("state", "totals", "grants", "ledger", "levels", "marks", "history", "corrections")
    for anonymous, space, counters in ((False, "", "c"), (True, "a", "a")):
        found = KEYS.customer("ada", anonymous=anonymous)
        assert found.counters == f"{shard}:{counters}:ada"
        for name, letter in zip(names, "stgjvihk", strict=True):
            assert getattr(found, name) == f"{shard}:{space}{letter}:ada"
        assert (found.dirty, found.unlinked) == (f"{shard}:dirty", f"{shard}:unlinked")


def test_a_route_stands_for_its_method_and_path() -> None:
    routes = """routes:
  - {match: "POST /ask", consume: {requests: 1}, rate: 5/minute}
  - {match: "*", consume: {requests: 1}}"""
    asked, rest = loads(free_plan("{requests: {unit: request}}", top=routes)).routes
    assert route_name(asked) == "route POST /ask"
    assert route_name(rest).startswith("route * ")


@pytest.mark.parametrize(
    ("match", "name"),
    [
        pytest.param("tools/call search*", "tools/call search*", id="of some tools"),
        pytest.param("tools/call", "tools/call *", id="of every tool"),
        pytest.param("*", "* *", id="of every message"),
    ],
)
def test_a_route_of_messages_stands_for_its_method_and_tool(match: str, name: str) -> None:
    line = f'routes: [{{match: "MCP {match}", consume: {{requests: 1}}}}]'
    (route,) = loads(free_plan("{requests: {unit: request}}", top=line)).routes
    assert route_name(route).split() == ["route", "MCP", str(route.path), *name.split()]


@pytest.mark.parametrize("has_subjects", [True, False])
def test_what_subjects_spend_shares_a_field_with_no_meter(has_subjects: bool) -> None:
    """An override may give each subject a budget, even where the plan gives none."""
    meter = "m1213842"
    assert meter_field(meter) == meter_field("spend")
    limits = f"{{}}\n    subjects: {{user: {{{meter}: {{included: 5}}}}}}" if has_subjects else "{}"
    catalog = loads(free_plan(f"{{{meter}: {{unit: unit}}}}", limits))
    if has_subjects:
        with pytest.raises(PlansError, match=f"spend and the meter {meter} would be counted as one"):
            check_tokens(catalog)
    else:
        check_tokens(catalog)


# The short way gives clients the same fields as the long one.


LIMIT_FIELDS_NOW_MS = 1_790_000_000_000
ORIGIN = [(b"host", b"a"), (b"origin", b"https://b")]


def call_of(rate: str, needed: int = 1) -> PreparedDecision:
    """The decision about a request that takes so much of one meter with one rate."""
    routes = f'routes: [{{match: "*", consume: {{pages: {needed}}}}}]'
    plans = free_plan("{pages: {unit: page}}", f"{{pages: {{rate: [{rate}]}}}}", routes)
    kit = MeterKit(loads(plans), redis_url="memory://", flush=False)
    return kit.store.cache.get("acme").prepare(kit.catalog.routes[0])


RATES = [call_of(rate, needed) for rate in ("7/minute", "1000/day", "5/7 days") for needed in (1, 3)]
"""The last window is too long for the short way."""


# The window before weighs a whole unit, to the millisecond.
@example(RATES[0], 4, 2, (30_000 - LIMIT_FIELDS_NOW_MS) % 60_000)
@few_examples(30)
@given(st.sampled_from(RATES), st.integers(-3, 1000), st.integers(0, 3000), st.integers(0, 700_000_000))
def test_the_reset_of_a_sliding_window_is_the_same(
    call: PreparedDecision, left: int, before: int, later_ms: int
) -> None:
    (measure,) = call.program.measures
    now_ms = LIMIT_FIELDS_NOW_MS + later_ms
    rest = measure.window - now_ms % measure.window
    # The rest is left by this window and by the remainder of the one before.
    left = min(left, measure.limit - -(-before * rest // measure.window))
    reset = reset_ms(measure, left, before, now_ms, call.period_end_ms(now_ms))
    assert reset is not None
    expected = limit_field(measure.policy.name, max(0, left), (reset + 999) // 1000)
    told = LimitFields(call.program, "ietf").add([], call, [0, now_ms, 1, left, before], [])
    assert dict(told)[b"ratelimit"] == expected


def test_to_scripts_of_other_origins_the_fields_are_shown() -> None:
    call = RATES[0]
    for headers in (
        [(b"Access-Control-Expose-Headers", b"X-Own")],
        [(b"x", b"y"), (EXPOSE, b"a"), (EXPOSE, b"ratelimit")],
    ):
        told = LimitFields(call.program, "ietf").add(headers, call, [0, LIMIT_FIELDS_NOW_MS, 1, 4, 0], ORIGIN)
        ours = [pair for pair in told if pair[0] in {b"ratelimit", b"ratelimit-policy"}]
        assert len(ours) == 2
        assert told == merge_headers(headers, ours, expose=True)


GRANTS_CATALOG = loads(
    free_plan(
        "{pages: {unit: page}}",
        """{pages: {included: 0}}
    grants:
      - {id: plain, meter: pages, quantity: 5, every: period}
      - {id: rolls, meter: pages, quantity: 5, every: period, rollover: {at_most: 9, for: 2 periods}}
      - {id: lives, meter: pages, quantity: 5, every: period, expires: 90d}
      - {id: first, meter: pages, quantity: 5, every: once}""",
    )
)
GRANT_NAMES = {grant.key: grant_name(grant) for grant in GRANTS_CATALOG.plans["free"].grants}
PLAIN, ROLLS, LIVES, FIRST = GRANT_NAMES.values()
OLDER, BEGAN, ENDS = 10**9, 3 * 10**9, 5 * 10**9
LONG = 9 * 10**9
"""The end of a grant with a life of its own."""
KNOWN_PERIOD = Bounds(start_ms=BEGAN, end_ms=ENDS, next_end_ms=7 * 10**9)
ANOTHER, SAME = BEGAN + 120_000, BEGAN + 119_999


@pytest.mark.parametrize(
    ("name", "effective", "expires", "after", "expected"),
    [
        # Another period begins two minutes later or more: what ended with the known one ends there.
        pytest.param(f"{PLAIN} {BEGAN}", BEGAN, ENDS, (ANOTHER, ENDS), (ANOTHER, ENDS), id="ends-earlier"),
        pytest.param(f"{FIRST} {BEGAN}", BEGAN, ENDS, (ANOTHER, ENDS), (ANOTHER, ENDS), id="once-ends-too"),
        pytest.param(f"{ROLLS} {OLDER}", OLDER, ENDS, (ANOTHER, ENDS), (ANOTHER, ENDS), id="rolled-in-ends"),
        pytest.param(
            f"{ROLLS} {OLDER}", OLDER, ENDS + 1, (ANOTHER, ENDS), None, id="other-end-is-not-rolled"
        ),
        pytest.param(f"{ROLLS} {OLDER}", BEGAN, ENDS, (ANOTHER, ENDS), None, id="begun-with-it-not-rolled"),
        pytest.param(f"{PLAIN} {OLDER}", OLDER, ENDS, (ANOTHER, ENDS), None, id="plain-never-rolled"),
        pytest.param(f"{LIVES} {BEGAN}", BEGAN, LONG, (ANOTHER, ENDS), None, id="own-life-stays"),
        pytest.param(f"p m:pages gone {BEGAN}", BEGAN, ENDS, (ANOTHER, ENDS), None, id="no-longer-sold"),
        pytest.param(f"p m:pages gone {OLDER}", OLDER, ENDS, (ANOTHER, ENDS), None, id="nor-an-older-one"),
        pytest.param(f"a m:pages {BEGAN}", BEGAN, ENDS, (ANOTHER, ENDS), None, id="the-apps-own"),
        pytest.param(f"{PLAIN} {BEGAN}", BEGAN, ANOTHER, (ANOTHER, ENDS), None, id="over-by-then"),
        pytest.param(
            f"{PLAIN} {BEGAN}",
            BEGAN,
            ANOTHER + 1,
            (ANOTHER, ENDS),
            (ANOTHER, ANOTHER + 1),
            id="over-just-after",
        ),
        # Sooner than that, or earlier, the same period begins again: the plan would give it by the new start.
        pytest.param(
            f"{PLAIN} {BEGAN}",
            BEGAN,
            ENDS,
            (SAME, ENDS + 7),
            (ENDS + 7, ENDS + 7, f"{PLAIN} {SAME}"),
            id="same-period-is-given-once",
        ),
        pytest.param(
            f"{LIVES} {BEGAN}",
            BEGAN,
            LONG,
            (BEGAN - 1, ENDS),
            (LONG, LONG, f"{LIVES} {BEGAN - 1}"),
            id="begins-earlier",
        ),
        pytest.param(
            f"{FIRST} {BEGAN}", BEGAN, ENDS, (SAME, ENDS + 7), (ENDS + 7, ENDS + 7), id="once-is-once"
        ),
        pytest.param(f"{ROLLS} {OLDER}", OLDER, ENDS, (SAME, ENDS + 7), (ENDS + 7, ENDS + 7), id="rolled-in"),
        pytest.param(f"{LIVES} {SAME}", SAME, LONG, (SAME, ENDS), (LONG, LONG), id="given-already"),
        pytest.param(f"{PLAIN} {OLDER}", OLDER, ENDS, (SAME, ENDS), None, id="of-another-period"),
        # Prolonged: it lives as long; until then it stays in the store.
        pytest.param(
            f"{PLAIN} {BEGAN}", BEGAN, ENDS, (BEGAN, ENDS + 7), (ENDS + 7, ENDS + 7), id="prolonged"
        ),
        pytest.param(
            f"{LIVES} {BEGAN}",
            BEGAN,
            ENDS - 5,
            (BEGAN, ENDS + 7),
            (ENDS - 5, ENDS + 7),
            id="short-life-is-kept",
        ),
        pytest.param(f"{PLAIN} {BEGAN}", BEGAN, ENDS, (BEGAN, ENDS), None, id="nothing-moved"),
    ],
)
def test_which_grants_move_with_their_period(
    name: str, effective: int, expires: int, after: tuple[int, int], expected: tuple[Any, ...] | None
) -> None:
    fields = {name: f"m:pages 5 0 50 {effective} {expires} {effective} {expires}"}
    moved = Bounds(start_ms=after[0], end_ms=after[1], next_end_ms=KNOWN_PERIOD.next_end_ms)
    found = find_moved_grants(fields, GRANTS_CATALOG, KNOWN_PERIOD, moved)
    assert found == ([] if expected is None else [MovedGrant(name, *expected)])


@pytest.mark.parametrize(
    ("grants", "repaid", "owed"),
    [
        pytest.param({}, {}, 10, id="without-grants-all-is-owed"),
        pytest.param({"a": (4, 1, BEGAN, LONG)}, {"a": 3}, 7, id="what-is-left-of-one-repays"),
        pytest.param({"a": (30, 0, BEGAN, LONG)}, {"a": 10}, 0, id="no-more-than-is-owed"),
        pytest.param({"a": (30, 0, BEGAN + 1, LONG)}, {}, 10, id="not-one-that-begins-later"),
        pytest.param({"a": (30, 0, OLDER, OLDER + 5)}, {}, 10, id="not-one-that-had-ended"),
        pytest.param({"a": (30, 0, OLDER, OLDER + 6)}, {"a": 10}, 0, id="one-that-ended-just-after"),
        pytest.param(
            {"a": (30, 0, BEGAN, LONG), "b": (6, 0, OLDER, LONG)},
            {"a": 4, "b": 6},
            0,
            id="the-older-one-first",
        ),
    ],
)
def test_grants_repay_a_debt(
    grants: Mapping[str, tuple[int, int, int, int]], repaid: Mapping[str, int], owed: int
) -> None:
    fields = {
        f"a c:ai {name}": f"c:ai {quantity} {used} 50 {effective} {expires} {effective} {expires}"
        for name, (quantity, used, effective, expires) in grants.items()
    }
    funds = funds_by_script({**fields, "d c:ai": f"10 {OLDER + 5}"}, None, KNOWN_PERIOD, BEGAN)
    assert funds.unwritten == {f"repay a c:ai {name}": part for name, part in repaid.items()}
    assert funds.owed == ({"c:ai": owed} if owed else {})
    left = {one.name.rpartition(" ")[2]: one.left for one in funds.held}
    assert left == {name: given[0] - given[1] - repaid.get(name, 0) for name, given in grants.items()}
