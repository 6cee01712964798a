"""Seats, gauges, derived meters, rates, differences and reminders: each follows from its arguments alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.customers.drifts import Drift, DriftKind
from meterkit.decisions.binding import derived_from
from meterkit.decisions.customer_state import seat_meter, with_seats
from meterkit.decisions.gauges import GaugeLimit, Level, gauge_policy, shortage
from meterkit.decisions.packed import joined, unpack_field
from meterkit.decisions.policies import ceiling_of, keep_ms_of, rate_numbers
from meterkit.decisions.subscription import (
    NEVER_MS,
    Standing,
    next_reminder_ms,
    reminders_due,
    without_payment,
)

DAY_MS: Final = 86_400_000
NOW_MS: Final = 1_800_000_000_000
TEXT: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests:     {unit: request}
  tokens:       {unit: token, stripe: {event_name: t}}
  large_tokens:
    {unit: token, from: tokens, where: {model: "*-large*", provider: acme}, stripe: {event_name: l}}
  any_tokens:   {unit: token, from: tokens, where: {model: "*"}, stripe: {event_name: a}}
  storage:      {unit: byte, kind: gauge}
  members:      {unit: seat, kind: gauge}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests:
        rate: [100/hour, {limit: 20/second, algorithm: token-bucket, burst: 40}]
        included: 10
        overage: deny
      tokens:   {included: 10, overage: {bill: {cap: 5}}}
      storage:  {included: 101, overage: {percent: 5, grace: 7d}}
      members:  {included: 3, overage: deny}
"""
CATALOG: Final = loads(TEXT)
GIVEN: Final = CATALOG.plans["pro"].entitlements


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ({}, []),
        ({"model": "m-large-2", "provider": "acme"}, ["large_tokens", "any_tokens"]),
        ({"model": "m-large-2", "provider": "other"}, ["any_tokens"]),
        ({"model": "m-large-2"}, ["any_tokens"]),
        ({"model": "m-small", "provider": "acme"}, ["any_tokens"]),
        ({"provider": "acme"}, []),
    ],
)
def test_a_derived_meter_counts_what_matches_in_each_dimension(
    dimensions: dict[str, str], expected: list[str]
) -> None:
    assert [meter.name for meter in derived_from(CATALOG.meters, "tokens", dimensions)] == expected
    assert derived_from(CATALOG.meters, "requests", dimensions) == ()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ('{"a":1}', '{"b":2}', '{"a":1,"b":2}'),
        ("", '{"b":2}', '{"b":2}'),
        ('{"a":1}', "", '{"a":1}'),
        ("", "", ""),
    ],
)
def test_two_objects_become_one(first: str, second: str, expected: str) -> None:
    assert joined(first, second) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("seats", True), ("other_price", True), ("currency", False), ("draft_invoice", False)],
)
def test_what_a_person_must_decide_is_not_repaired(kind: DriftKind, *, expected: bool) -> None:
    drift = Drift(subscription="sub_1", kind=kind, message="4 for 5")
    assert drift.can_repair == expected
    assert Drift.of(drift.kept()) == drift


def test_seats_are_the_gauge_of_that_name_or_the_only_one_of_that_unit() -> None:
    assert seat_meter(CATALOG.meters) == "members"
    named = loads(
        TEXT.replace(
            "  storage:      {unit: byte, kind: gauge}",
            "  storage: {unit: byte, kind: gauge}\n  seats: {unit: chair, kind: gauge}",
        )
    )
    assert seat_meter(named.meters) == "seats"
    two = loads(
        TEXT.replace(
            "  storage:      {unit: byte, kind: gauge}",
            "  storage: {unit: byte, kind: gauge}\n  guests: {unit: seats, kind: gauge}",
        )
    )
    assert seat_meter(two.meters) is None


@pytest.mark.parametrize(("seats", "expected"), [(0, 3), (2, 3), (3, 3), (4, 4)])
def test_a_plan_gives_no_fewer_seats_than_are_paid_for(seats: int, expected: int) -> None:
    assert with_seats(GIVEN, CATALOG.meters, seats)["members"].included == expected
    assert with_seats(GIVEN, CATALOG.meters, seats)["storage"] == GIVEN["storage"]


def test_unlimited_seats_stay_unlimited() -> None:
    unlimited = {**GIVEN, "members": replace(GIVEN["members"], included=None)}
    assert with_seats(unlimited, CATALOG.meters, 4) == unlimited


def test_a_gauge_tolerates_some_percent_rounded_down() -> None:
    assert GaugeLimit.of(GIVEN["storage"]) == GaugeLimit(101, 106, 7 * DAY_MS, keeps=False)
    assert GaugeLimit.of(GIVEN["members"], keeps=True) == GaugeLimit(3, 3, 0, keeps=True)
    assert GaugeLimit.of(replace(GIVEN["members"], included=None)) is None
    assert GaugeLimit.of(replace(GIVEN["members"], included=300)) == GaugeLimit(300, 300, 0, keeps=False)
    most = GaugeLimit.of(replace(GIVEN["storage"], included=QUANTITY_MAX))
    assert most is not None
    assert most.most == QUANTITY_MAX


@pytest.mark.parametrize(
    ("level", "keeps", "expected"),
    [
        (Level(100), False, 106),
        (Level(101, NOW_MS - 8 * DAY_MS), False, 106),
        (Level(102, NOW_MS - 7 * DAY_MS + 1), False, 106),
        (Level(102, NOW_MS - 7 * DAY_MS), False, 101),
        (Level(102, 0), False, 106),
        # A change of plan has left it above.
        (Level(500, NOW_MS - 8 * DAY_MS, 900), False, 101),
        (Level(500, NOW_MS - 8 * DAY_MS, 900), True, 900),
        (Level(500, NOW_MS - 8 * DAY_MS, 50), True, 101),
        (Level(500, NOW_MS - 8 * DAY_MS, 0), True, 101),
        (Level(500, NOW_MS - 8 * DAY_MS, -1), True, QUANTITY_MAX),
        (Level(101, NOW_MS - 8 * DAY_MS, 900), True, 106),
    ],
)
def test_how_far_a_gauge_may_grow(level: Level, *, keeps: bool, expected: int) -> None:
    assert GaugeLimit(101, 106, 7 * DAY_MS, keeps).at(level, NOW_MS) == expected


@pytest.mark.parametrize(("meter", "reason"), [("storage", "storage"), ("members", "seats")])
def test_a_gauge_refuses_by_its_unit(meter: str, reason: str) -> None:
    limit = GaugeLimit.of(GIVEN[meter])
    assert limit is not None
    policy = gauge_policy(CATALOG.meters[meter], limit)
    assert (policy.name, policy.kind, policy.quota, policy.window_s) == (meter, "gauge", limit.most, None)
    found, level = shortage(policy, 7, 6, 2)
    assert (found, level.meter, level.limit, level.used, level.requested) == (reason, meter, 7, 6, 2)


@pytest.mark.parametrize(
    "damaged",
    [b"\xfd\xcd\x01", b"\xfd\xa2x", b"\xfd\xd9", b"\xfd\xc1", b"\x02"],
    ids=["number cut", "text cut", "size cut", "unknown kind", "no format"],
)
def test_a_field_that_is_cut_or_of_another_kind_is_not_read(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        unpack_field(damaged)


def test_nothing_kept_is_an_empty_level() -> None:
    assert Level.read(None) == (0, 0, 0)


def test_what_a_period_admits() -> None:
    assert [ceiling_of(GIVEN[name]) for name in ("requests", "tokens")] == [10, 15]
    overage = replace(GIVEN["tokens"].overage, cap=None)
    assert ceiling_of(replace(GIVEN["tokens"], overage=overage)) is None
    assert ceiling_of(replace(GIVEN["tokens"], included=None)) is None
    assert ceiling_of(replace(GIVEN["tokens"], included=QUANTITY_MAX)) == QUANTITY_MAX


def test_rates_as_the_scripts_take_them_and_how_long_they_matter() -> None:
    window, bucket = GIVEN["requests"].rates
    assert rate_numbers(window, "requests") == (1, 3_600_000, 100, 0)
    assert rate_numbers(bucket, "requests") == (3, 50, 40, 1)
    assert keep_ms_of(()) == 900_000
    assert keep_ms_of((window, bucket)) == 8_100_000
    assert keep_ms_of((replace(bucket, burst=401),)) == 900_000 + 20_050


REMIND: Final = replace(CATALOG.dunning, remind_ms=(DAY_MS, 6 * DAY_MS))


@pytest.mark.parametrize(
    ("after_ms", "due", "next_ms"),
    [
        (0, 0, DAY_MS),
        (DAY_MS - 1, 0, DAY_MS),
        (DAY_MS, 1, 6 * DAY_MS),
        (6 * DAY_MS - 1, 1, 6 * DAY_MS),
        (6 * DAY_MS, 2, None),
    ],
)
def test_reminders_are_due_at_their_spans_from_the_first_failure(
    after_ms: int, due: int, next_ms: int | None
) -> None:
    assert reminders_due(NOW_MS, REMIND, NOW_MS + after_ms) == due
    expected = NEVER_MS if next_ms is None else NOW_MS + next_ms
    assert next_reminder_ms(NOW_MS, REMIND, NOW_MS + after_ms) == expected


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ("full", "restricted"),
        ("grace", "restricted"),
        ("restricted", "restricted"),
        ("suspended", "suspended"),
    ],
)
def test_without_payment_access_is_restricted_at_most(access: Any, expected: str) -> None:
    assert without_payment(Standing(access, 7)) == (expected, 7)
