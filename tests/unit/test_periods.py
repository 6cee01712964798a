from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.decisions.periods import (
    Bounds,
    bounds_at,
    from_ms,
    occurred_ms,
    period_ms,
    stamped_span_s,
    to_ms,
)
from meterkit.errors import MeterkitError

Interval = Literal["month", "year"]

YEARS = (datetime(1971, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 - hypothesis wants the zone apart
MOMENTS = st.datetimes(*YEARS, timezones=st.just(UTC)).map(to_ms)
INTERVALS = st.sampled_from(("month", "year"))


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def bounds(now: str, anchor: str | None = None, interval: Interval = "month") -> tuple[str, str, str]:
    found = bounds_at(ms(now), anchor_ms=None if anchor is None else ms(anchor), interval=interval)
    edges = (found.start_ms, found.end_ms, found.next_end_ms)
    start, end, after = (
        from_ms(edge).strftime("%Y-%m-%dT%H:%M:%S").removesuffix("T00:00:00") for edge in edges
    )
    return start, end, after


@pytest.mark.parametrize(
    ("sentence", "now", "anchor", "interval", "expected"),
    [
        ("without an anchor a period is a calendar month", "2026-11-20", None, "month",
         ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("its first instant is in it", "2026-11-01", None, "month",
         ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("its last instant, too", "2026-11-30T23:59:59.999", None, "month",
         ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("December is followed by January", "2026-12-31", None, "month",
         ("2026-12-01", "2027-01-01", "2027-02-01")),
        ("without an anchor a year is a calendar year", "2026-11-20", None, "year",
         ("2026-01-01", "2027-01-01", "2028-01-01")),
        ("31 January leads to 28 February", "2026-01-31", "2026-01-31", "month",
         ("2026-01-31", "2026-02-28", "2026-03-31")),
        ("and then to 31 March, not to the 28th", "2026-03-01", "2026-01-31", "month",
         ("2026-02-28", "2026-03-31", "2026-04-30")),
        ("in a leap year to 29 February", "2028-02-28T12:00:00", "2026-01-31", "month",
         ("2028-01-31", "2028-02-29", "2028-03-31")),
        ("29 February itself begins a period then", "2028-02-29", "2026-01-31", "month",
         ("2028-02-29", "2028-03-31", "2028-04-30")),
        ("a year from 29 February ends on the 28th", "2028-06-01", "2028-02-29", "year",
         ("2028-02-29", "2029-02-28", "2030-02-28")),
        ("and is on the 29th again after four", "2031-06-01", "2028-02-29", "year",
         ("2031-02-28", "2032-02-29", "2033-02-28")),
        ("2100 is no leap year", "2100-02-28T01:00:00", "2096-02-29", "year",
         ("2100-02-28", "2101-02-28", "2102-02-28")),
        ("the time of day is the anchor's", "2026-05-15T10:29:59", "2026-01-15T10:30:00", "month",
         ("2026-04-15T10:30:00", "2026-05-15T10:30:00", "2026-06-15T10:30:00")),
        ("to the second", "2026-05-15T10:30:00", "2026-01-15T10:30:00", "month",
         ("2026-05-15T10:30:00", "2026-06-15T10:30:00", "2026-07-15T10:30:00")),
        ("an anchor may lie ahead", "2026-01-20", "2026-03-31", "month",
         ("2025-12-31", "2026-01-31", "2026-02-28")),
        ("years ahead, too", "2026-01-20", "2029-03-31", "year", ("2025-03-31", "2026-03-31", "2027-03-31")),
    ],
)  # fmt: skip
def test_a_period(
    sentence: str, now: str, anchor: str | None, interval: Interval, expected: tuple[str, str, str]
) -> None:
    assert expected == bounds(now, anchor, interval), sentence


@given(now_ms=MOMENTS, anchor_ms=st.none() | MOMENTS, interval=INTERVALS)
def test_every_instant_is_in_its_period(now_ms: int, anchor_ms: int | None, interval: Interval) -> None:
    found = bounds_at(now_ms, anchor_ms=anchor_ms, interval=interval)
    assert found.start_ms <= now_ms < found.end_ms < found.next_end_ms


@given(now_ms=MOMENTS, anchor_ms=st.none() | MOMENTS, interval=INTERVALS)
def test_periods_follow_one_another_without_gap(
    now_ms: int, anchor_ms: int | None, interval: Interval
) -> None:
    found = bounds_at(now_ms, anchor_ms=anchor_ms, interval=interval)
    after = bounds_at(found.end_ms, anchor_ms=anchor_ms, interval=interval)
    before = bounds_at(found.start_ms - 1, anchor_ms=anchor_ms, interval=interval)
    assert (found.end_ms, found.next_end_ms) == (after.start_ms, after.end_ms)
    assert (found.start_ms, found.end_ms) == (before.end_ms, before.next_end_ms)
    assert found == bounds_at(found.end_ms - 1, anchor_ms=anchor_ms, interval=interval)


@given(anchor_ms=MOMENTS, interval=INTERVALS)
def test_an_anchor_begins_a_period(anchor_ms: int, interval: Interval) -> None:
    assert anchor_ms == bounds_at(anchor_ms, anchor_ms=anchor_ms, interval=interval).start_ms


@given(moment=st.integers(-(10**12), 10**13))
def test_milliseconds_survive_the_way_there_and_back(moment: int) -> None:
    assert moment == to_ms(from_ms(moment))


def test_an_instant_of_another_zone_is_the_same_instant() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    assert ms("2026-11-20") == to_ms(datetime(2026, 11, 20, 5, 30, tzinfo=zone))


def test_part_of_a_millisecond_is_left_out() -> None:
    assert to_ms(datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)) == 1
    assert Bounds(start_ms=0, end_ms=31 * 86_400_000, next_end_ms=59 * 86_400_000) == bounds_at(0)


@pytest.mark.parametrize(
    ("sentence", "start", "now", "end", "expected"),
    [
        ("three minutes ahead of this one, all of it", "2026-11-01T00:00:00", "2026-11-20T12:00:59", None,
         ("2026-11-01T00:00:00", "2026-11-20T12:04:00")),
        ("no minute that begins before the period", "2026-11-01T00:00:01", "2026-11-20T12:00:00", None,
         ("2026-11-01T00:01:00", "2026-11-20T12:04:00")),
        ("nor one that ends behind it", "2026-11-01T00:00:00", "2026-11-20T12:00:00", "2026-11-20T12:02:59",
         ("2026-11-01T00:00:00", "2026-11-20T12:02:00")),
        ("all of one that is over", "2026-11-01T00:00:00", "2027-01-05T00:00:00", "2026-12-01T00:00:00",
         ("2026-11-01T00:00:00", "2026-12-01T00:00:00")),
    ],
)  # fmt: skip
def test_the_minutes_that_intents_can_have(
    sentence: str, start: str, now: str, end: str | None, expected: tuple[str, str]
) -> None:
    span_s = stamped_span_s(ms(start), ms(now), end_ms=None if end is None else ms(end))
    assert span_s == tuple(ms(edge) // 1000 for edge in expected), sentence


def test_usage_may_have_happened_from_1970_to_a_minute_from_now() -> None:
    now_ms = ms("2026-10-05T12:00:00")
    for allowed in (0, now_ms, now_ms + 60_000):
        assert occurred_ms(from_ms(allowed), now_ms) == allowed
    for refused in (-1, now_ms + 60_001):
        with pytest.raises(MeterkitError, match="occurred_at"):
            occurred_ms(from_ms(refused), now_ms)


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("2026-10", "2026-10-01"),
        ("2026-10-05", "2026-10-05"),
        ("2026-10-05T14:00:00+02:00", "2026-10-05T12:00:00"),
        (datetime(2026, 10, 5, tzinfo=UTC), "2026-10-05"),
        (datetime(1970, 1, 1, tzinfo=UTC), "1970-01-01"),
    ],
)
def test_a_period_is_named_by_a_month_a_day_or_an_instant(period: object, expected: str) -> None:
    assert period_ms(period) == ms(expected)


@pytest.mark.parametrize(
    "period", ["", "October", "1969-12", "9990-01", 7, None, datetime(1969, 12, 31, tzinfo=UTC)]
)
def test_what_names_no_period_is_refused(period: object) -> None:
    with pytest.raises(MeterkitError, match="period: found"):
        period_ms(period)


def test_each_period_that_can_be_named_has_an_end() -> None:
    last_ms = period_ms("9989-12-31")
    assert bounds_at(last_ms, interval="year").next_end_ms == ms("9991-01-01")


def test_an_instant_without_a_zone_is_refused_in_words() -> None:
    naive = datetime(2031, 6, 10)  # noqa: DTZ001 - it is to be refused
    with pytest.raises(MeterkitError, match="occurred_at: found a naive datetime"):
        occurred_ms(naive, ms("2031-06-11"))
    with pytest.raises(MeterkitError, match="period: found a naive datetime"):
        period_ms(naive)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (7, "found a int;"),
        ("June", "found 'June';"),
        (datetime(1969, 1, 1, tzinfo=UTC), "found datetime.datetime(1969"),
    ],
)
def test_what_is_no_period_is_shown(wrong: object, shown: str) -> None:
    with pytest.raises(MeterkitError) as refused:
        period_ms(wrong)
    assert shown in str(refused.value)
