from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.catalog import loads
from meterkit.decisions import verdict
from meterkit.decisions.asked import Demand
from meterkit.decisions.decision import Decision, GaugeLevel
from meterkit.decisions.program import Program, compile_program
from meterkit.redis.connection import pack, pack_each, unpack
from store.script_driver import World, life
from store.script_wires import load_texts, server_wire

if TYPE_CHECKING:
    from meterkit.store.views import CustomerView
    from servers.stores import Server

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token, stripe: {event_name: tokens}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:
        rate:
          - 10/second
          - {limit: 60/minute, algorithm: fixed-window}
          - {limit: 7/3 seconds, algorithm: token-bucket, burst: 12}
        included: 100
        overage: deny
        concurrency: 2
      tokens: {rate: 1000/26 hours, included: 100, overage: {bill: {cap: 50}}}
"""  # fmt: skip
CATALOG = loads(PLANS)
ENTITLEMENTS = CATALOG.plans["free"].entitlements
NOW_MS = 1_800_000_000_250
PERIOD_END_MS = NOW_MS + 5_000_000
HOUR_MS = 3_600_000

# The policies of a request, and their numbers in a refusal: nothing used.
SECOND, MINUTE, BUCKET, PERIOD, CONCURRENCY = range(5)
UNUSED = ((0, 0, 0), (0, 0, 0), (0, 0, 0), (100, 0, 0), (2, 0, 0))


def program(quantity: int = 1, meter: str = "requests") -> Program:
    return compile_program(ENTITLEMENTS, CATALOG, {meter: Demand(needed=quantity, taken=quantity)})


def refusal(
    used: dict[int, tuple[int, int, int]],
    *,
    quantity: int = 1,
    now_ms: int = NOW_MS,
    end_ms: int = PERIOD_END_MS,
) -> Decision:
    numbers = [number for nth, unused in enumerate(UNUSED) for number in used.get(nth, unused)]
    return verdict.refused(program(quantity), [1, now_ms, end_ms, *numbers], 0)


@pytest.mark.parametrize(
    ("sentence", "nth", "numbers", "quantity", "policy", "remaining", "wait_ms"),
    [
        ("a full window waits until enough of it has passed",
         SECOND, (10, 0, 0), 1, "requests-1s", 0, 750 + 100),
        ("for all of it, until none of it counts any more", SECOND, (10, 0, 0), 10, "requests-1s", 0, 1750),
        ("the one before makes room sooner", SECOND, (3, 10, 0), 1, "requests-1s", 0, 150),
        ("never sooner than the room that is needed", SECOND, (3, 10, 0), 7, "requests-1s", 0, 750),
        ("a fixed window waits for the next", MINUTE, (60, 0, 0), 1, "requests-1m", 0, 59_750),
        ("and forgets the one before", MINUTE, (58, 60, 0), 3, "requests-1m", 2, 59_750),
        ("a bucket waits for its refill", BUCKET, (12, 0, 0), 1, "requests-3s", 0, 429),
        ("a rest counts as a unit", BUCKET, (11, 1, 0), 1, "requests-3s", 0, 1),
        ("and runs out with the others", BUCKET, (12, 0, 0), 10, "requests-3s", 0, 4286),
        ("a ceiling waits for the next period", PERIOD, (0, 0, 0), 1, "requests-period", 0, 5_000_000),
        ("even if it is overdrawn", PERIOD, (-7, 0, 0), 1, "requests-period", 0, 5_000_000),
        ("holds vanish with their slots, the old first", PERIOD, (3, 1, 2), 1, "requests-period", 0, 299_750),
        ("then the younger", PERIOD, (3, 1, 2), 3, "requests-period", 0, 599_750),
        ("concurrency waits a second", CONCURRENCY, (2, 1, 1), 1, "requests-concurrency", 0, 1000),
    ],
)  # fmt: skip
def test_a_refusal_by_one_policy(
    sentence: str,
    nth: int,
    numbers: tuple[int, int, int],
    quantity: int,
    policy: str,
    remaining: int,
    wait_ms: int,
) -> None:
    found = refusal({nth: numbers}, quantity=quantity)
    wait = timedelta(milliseconds=wait_ms)
    assert (policy, remaining, wait, wait) == (
        found.limit,
        found.remaining,
        found.retry_after,
        found.reset_after,
    ), sentence
    assert (policy,) == found.violated
    assert not found.allowed


def test_a_period_that_ends_before_holds_do_leaves_them() -> None:
    end_ms = NOW_MS + 1000
    assert timedelta(seconds=1) == refusal({PERIOD: (0, 1, 2)}, quantity=9, end_ms=end_ms).retry_after
    after = refusal({PERIOD: (10, 1, 100)}, quantity=10, end_ms=end_ms).retry_after
    assert timedelta(milliseconds=299_750) == after


def test_where_no_period_has_begun_the_next_one_counts() -> None:
    reply = [1, NOW_MS, 0, 0, 0, 0, 0, 0, 0]
    found = verdict.refused(program(1, "tokens"), reply, PERIOD_END_MS)
    assert timedelta(milliseconds=5_000_000) == found.retry_after


def test_a_bucket_that_owes_more_than_a_lifetime_says_400_days() -> None:
    assert timedelta(days=400) == refusal({BUCKET: (9 * 10**15, 0, 0)}).retry_after


def test_what_never_fits_has_no_time() -> None:
    found = refusal({}, quantity=101)
    assert found.retry_after is None
    assert found.reset_after is None
    assert found.violated == ("requests-1s", "requests-1m", "requests-3s", "requests-period")


def test_the_longest_wait_is_told_of_all_that_refuse() -> None:
    found = refusal({SECOND: (10, 0, 0), BUCKET: (12, 0, 0), PERIOD: (0, 0, 0)})
    assert found.violated == ("requests-1s", "requests-3s", "requests-period")
    assert found.limit == "requests-period"
    assert timedelta(milliseconds=5_000_000) == found.retry_after


@pytest.mark.parametrize(
    ("used", "reason"),
    [
        ({SECOND: (10, 0, 0), PERIOD: (0, 0, 0), CONCURRENCY: (2, 2, 0)}, "concurrency"),
        ({MINUTE: (60, 0, 0), PERIOD: (0, 0, 0)}, "rate"),
        ({BUCKET: (12, 0, 0)}, "rate"),
        ({PERIOD: (0, 0, 0)}, "included"),
    ],
)
def test_reasons_have_an_order(used: dict[int, tuple[int, int, int]], reason: str) -> None:
    assert reason == refusal(used).reason


def test_a_decision_does_not_change() -> None:
    found = refusal({PERIOD: (0, 0, 0)})
    with pytest.raises(FrozenInstanceError):
        setattr(found, "allowed", True)  # noqa: B010 - type checkers refuse the plain way


def test_a_billed_ceiling_is_a_cap() -> None:
    found = verdict.refused(program(9, "tokens"), [1, NOW_MS, PERIOD_END_MS, 0, 0, 0, 8, 0, 0], 0)
    assert (found.reason, found.limit, found.remaining) == ("cap", "tokens-period", 8)


def test_a_window_beyond_a_day_moves_by_the_second() -> None:
    window_ms = 26 * HOUR_MS
    turn_ms = NOW_MS - NOW_MS % window_ms
    reply = [1, turn_ms + 1, 0, 0, 1000, 0, 150, 0, 0]
    found = verdict.refused(program(1, "tokens"), reply, PERIOD_END_MS)
    # 1 of 1,000 has passed after 93.6 s; then another one fits. It is told in whole seconds of the window.
    assert timedelta(milliseconds=94_000 - 1) == found.retry_after


@pytest.mark.parametrize(
    ("nth", "told", "policy", "reset_ms"),
    [
        # Of 6 counted in this second one is forgotten when a sixth of the next one has passed.
        (1, (4, 0), "requests-1s", 750 + 167),
        # Of 10 counted in the last second 8 still count, and 7 once 300 ms of this one have passed.
        (1, (2, 10), "requests-1s", 50),
        # As much as was asked is left: one more is, when a ninth has passed of the nine counted.
        (1, (1, 0), "requests-1s", 750 + 112),
        (1, (10, 0), "requests-1s", 0),
        (1, (-2, 0), "requests-1s", 750 + 250),
        (2, (4, 0), "requests-1m", 59_750),
        (3, (5, 0), "requests-3s", 429),
        (3, (5, 1), "requests-3s", 1),
        (4, (4, 0), "requests-period", 5_000_000),
        (5, (1, 0), "requests-concurrency", None),
    ],
)
def test_an_admission_names_the_policy_nearest_to_exhaustion(
    nth: int, told: tuple[int, int], policy: str, reset_ms: int | None
) -> None:
    found = verdict.allowed(program(), [0, NOW_MS, nth, *told], PERIOD_END_MS)
    left = max(0, told[0])
    reset = None if reset_ms is None else timedelta(milliseconds=reset_ms)
    assert Decision(allowed=True, limit=policy, remaining=left, reset_after=reset) == found


def test_an_admission_without_policies_names_none() -> None:
    assert Decision(allowed=True) == verdict.allowed(program(), [0, NOW_MS, 0, 0, 0], PERIOD_END_MS)


def test_what_is_overdrawn_has_nothing_left() -> None:
    assert verdict.allowed(program(), [0, NOW_MS, 4, -3, 0], PERIOD_END_MS).remaining == 0


def test_a_window_of_25_hours_moves_by_the_millisecond() -> None:
    window_ms = verdict.EXACT_WINDOW_MS_MAX
    assert verdict.weighted(window_ms, 1, window_ms) == 1
    assert verdict.weighted(window_ms + 1000, 1, window_ms + 1000) == 1000


FILLED = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  storage:  {unit: byte, kind: gauge}
  members:  {unit: seat, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 10/second, included: 100, overage: deny}
      storage:  {included: 100, overage: deny}
      members:  {included: 3, overage: deny}
""")
# A rate, a ceiling, then gauges: limit, level, held. What stands behind the ceiling comes last.
FREE = ((0, 0, 0), (100, 0, 0), (100, 60, 30), (3, 1, 1))


def filled(
    changed: dict[int, tuple[int, int, int]],
    *backed: int,
    verdict_of: int = 1,
    order: tuple[str, ...] = ("requests", "storage", "members"),
) -> Decision:
    """A refusal of ten bytes, two seats and a request."""
    asked = {"requests": 1, "storage": 10, "members": 1}
    demands = {name: Demand.of(asked[name]) for name in order}
    whole = compile_program(FILLED.plans["free"].entitlements, FILLED, demands)
    numbers = [number for nth, free in enumerate(FREE) for number in changed.get(nth, free)]
    return verdict.refused(whole, [verdict_of, NOW_MS, PERIOD_END_MS, *numbers, *backed], 0)


def test_a_gauge_says_how_full_it_is_with_what_is_held() -> None:
    found = filled({2: (100, 60, 35)})
    assert (found.reason, found.limit, found.remaining, found.violated) == (
        "storage",
        "storage",
        5,
        ("storage",),
    )
    assert found.gauge == GaugeLevel(meter="storage", unit="byte", limit=100, used=95, requested=10)
    assert filled({2: (100, 110, 1)}).remaining == 0


def test_of_two_gauges_storage_is_told_before_seats() -> None:
    full = {2: (100, 95, 0), 3: (3, 3, 0)}
    assert (filled(full).reason, filled(full).violated) == ("storage", ("storage", "members"))
    seats = {2: (3, 3, 0), 3: (100, 95, 0)}
    found = filled(seats, order=("requests", "members", "storage"))
    assert (found.reason, found.violated) == ("storage", ("members", "storage"))


def test_a_gauge_is_told_before_a_rate() -> None:
    found = filled({0: (10, 0, 0), 3: (3, 3, 0)})
    assert (found.reason, found.violated) == ("seats", ("requests-1s", "members"))


def test_of_a_repeat_neither_ceilings_nor_gauges_ask() -> None:
    spent = {0: (10, 0, 0), 1: (0, 0, 0), 2: (100, 100, 0), 3: (3, 3, 0)}
    found = filled(spent, verdict_of=8)
    assert (found.reason, found.violated) == ("rate", ("requests-1s",))
    assert filled(spent).violated == ("requests-1s", "requests-period", "storage", "members")


@pytest.mark.parametrize(("backed", "reason"), [((), "included"), ((0,), "included"), ((1,), "credits")])
def test_a_ceiling_behind_which_credits_stand_is_used_up_as_credits(
    backed: tuple[int, ...], reason: str
) -> None:
    assert filled({0: (3, 0, 0), 1: (0, 0, 0)}, *backed).reason == reason


def test_a_bucket_without_a_rest_has_all_that_it_does_not_owe() -> None:
    assert refusal({BUCKET: (11, 0, 0), PERIOD: (0, 0, 0)}).violated == ("requests-period",)


def test_where_one_request_less_than_the_most_is_in_flight_concurrency_does_not_refuse() -> None:
    assert refusal({CONCURRENCY: (2, 1, 0), PERIOD: (0, 0, 0)}).violated == ("requests-period",)


def test_a_request_that_is_in_flight_is_refused_for_a_second() -> None:
    found = verdict.IN_FLIGHT
    assert (found.allowed, found.reason, found.retry_after) == (False, "in_flight", timedelta(seconds=1))


class Patient(World):
    """Tries every refused demand again, on a copy of the customer: just before its time, and at its time."""

    tried: int = 0
    hopeless: int = 0

    def refused(self, known: CustomerView, program: Program, reply: list[int]) -> None:
        now_ms, bounds = reply[1], known.effective.bounds
        end_ms = bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms
        decision = verdict.refused(program, reply, end_ms)
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


@pytest.mark.parametrize("seed", range(3))
def test_a_refusal_tells_the_time_at_which_the_same_is_admitted(valkey: Server, seed: int) -> None:
    with server_wire(valkey) as wire:
        patient = Patient(wire, load_texts(), life(seed), anchors=False)
        for _ in range(3000):
            patient.step()
    assert patient.tried > 100
    assert patient.hopeless > 10
