"""Periods, renewals and the ends of spans: pure tables."""

# Internals: pure tables of instants; a seam would show each as one amount.

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.periods import (
    Bounds,
    bounds_at,
    from_ms,
    occurred_ms,
    period_ms,
    stamped_span_s,
    to_ms,
)
from meterkit.decisions.subscription import SubscriptionState
from meterkit.decisions.subscription_periods import (
    CountingCycle,
    is_final,
    is_provisional,
    renewals_of,
    subscription_bounds,
)
from meterkit.errors import MeterkitError

Interval = Literal["month", "year"]

INTERVALS: Final[Any] = st.sampled_from(("month", "year"))


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def written(at_ms: int) -> str:
    return from_ms(at_ms).strftime("%Y-%m-%dT%H:%M:%S").removesuffix("T00:00:00").removesuffix(":00")


def bounds(now: str, anchor: str | None = None, interval: Interval = "month") -> tuple[str, str, str]:
    found = bounds_at(ms(now), anchor_ms=None if anchor is None else ms(anchor), interval=interval)
    return written(found.start_ms), written(found.end_ms), written(found.next_end_ms)


@pytest.mark.parametrize(
    ("sentence", "now", "anchor", "interval", "expected"),
    [
        ("without an anchor a period is a calendar month", "2026-11-20", None, "month",
         ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("its last instant, too", "2026-11-30T23:59:59.999", None, "month",
         ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("31 January leads to 28 February", "2026-01-31", "2026-01-31", "month",
         ("2026-01-31", "2026-02-28", "2026-03-31")),
        ("and then to 31 March, not to the 28th", "2026-03-01", "2026-01-31", "month",
         ("2026-02-28", "2026-03-31", "2026-04-30")),
        ("in a leap year to 29 February", "2028-02-28T12:00:00", "2026-01-31", "month",
         ("2028-01-31", "2028-02-29", "2028-03-31")),
        ("a year from 29 February ends on the 28th", "2028-06-01", "2028-02-29", "year",
         ("2028-02-29", "2029-02-28", "2030-02-28")),
        ("2100 is no leap year", "2100-02-28T01:00:00", "2096-02-29", "year",
         ("2100-02-28", "2101-02-28", "2102-02-28")),
        ("the time of day is the anchor's", "2026-05-15T10:29:59", "2026-01-15T10:30:00", "month",
         ("2026-04-15T10:30", "2026-05-15T10:30", "2026-06-15T10:30")),
        ("an anchor may lie ahead", "2026-01-20", "2026-03-31", "month",
         ("2025-12-31", "2026-01-31", "2026-02-28")),
    ],
)  # fmt: skip
def test_a_period(
    sentence: str, now: str, anchor: str | None, interval: Interval, expected: tuple[str, str, str]
) -> None:
    assert expected == bounds(now, anchor, interval), sentence


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


def test_a_period_is_named_by_a_month_a_day_or_an_instant() -> None:
    assert period_ms("2026-10") == ms("2026-10-01")
    assert period_ms(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert period_ms("2026-10-05") == period_ms(datetime(2026, 10, 5, tzinfo=UTC)) == ms("2026-10-05")
    assert period_ms("2026-10-05T14:00:00+02:00") == ms("2026-10-05T12:00:00")


@pytest.mark.parametrize("period", ["October", "1969-12", 7])
def test_what_names_no_period_is_refused(period: object) -> None:
    with pytest.raises(MeterkitError, match="period: found"):
        period_ms(period)


def test_an_instant_without_a_zone_is_refused_in_words() -> None:
    naive = datetime(2031, 6, 10)  # noqa: DTZ001 - it is to be refused
    with pytest.raises(MeterkitError, match="occurred_at: found a naive datetime"):
        occurred_ms(naive, ms("2031-06-11"))
    with pytest.raises(MeterkitError, match="period: found a naive datetime"):
        period_ms(naive)


# Billing periods of subscriptions: they follow one another from the anchor, whatever is known.


DAY_MS: Final = 86_400_000
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free:      {price: {amount_cents: 0, interval: month}}
  pro:       {price: {amount_cents: 2900, interval: month}}
  yearly:    {price: {amount_cents: 29000, interval: year}}
  by_year:   {price: {amount_cents: 29000, interval: year, included_per: interval}}
""")


def subscription(start: str, end: str, *, anchor: str | None = None, **changed: Any) -> SubscriptionState:
    given = {"status": "active", "plan": "pro", "created_ms": start, "start_ms": start, "end_ms": end}
    given |= {"anchor_ms": anchor or start} | changed
    fields: Any = {name: ms(value) if name.endswith("_ms") else value for name, value in given.items()}
    return SubscriptionState(id="sub_1", **fields)


def period(known: SubscriptionState, now: str) -> tuple[str, str]:
    state = CustomerState(subscription=known)
    found = effective_plan(state, CATALOG, ms(now)).bounds
    return written(found.start_ms), written(found.end_ms)


JANUARY: Final = subscription("2026-01-31T10:00", "2026-02-28T10:00")
TRIAL, LONG_TRIAL = (
    subscription("2026-01-20", end, anchor=end, status="trialing", trial_end_ms=end)
    for end in ("2026-02-03", "2026-03-21")
)
TURNED: Final[dict[str, str]] = {"anchor": "2026-02-14", "created_ms": "2026-01-31"}
TURNED_YEARLY: Final = subscription("2026-05-01", "2027-02-14", plan="yearly", **TURNED)
TURNED_MONTHLY: Final = subscription("2026-05-01", "2026-05-14", **TURNED)
YEAR: Final = subscription("2026-01-31", "2027-01-31", plan="yearly")


@pytest.mark.parametrize(
    ("sentence", "found", "now", "expected"),
    [
        ("the period is the subscription's own", JANUARY, "2026-02-01",
         ("2026-01-31T10:00", "2026-02-28T10:00")),
        ("the next one goes by the anchor, not by the end of the last", JANUARY, "2026-03-01",
         ("2026-02-28T10:00", "2026-03-31T10:00")),
        ("before it was made it is the calendar's, until then", JANUARY, "2026-01-15",
         ("2026-01-01", "2026-01-31T10:00")),
        ("a trial is one period", TRIAL, "2026-02-02", ("2026-01-20", "2026-02-03")),
        ("a trial is one period however long", LONG_TRIAL, "2026-03-20", ("2026-01-20", "2026-03-21")),
        ("a price of another interval does not begin a period anew", TURNED_YEARLY, "2026-05-02",
         ("2026-04-14", "2026-05-14")),
        ("nor does one of a month", TURNED_MONTHLY, "2026-05-02", ("2026-04-14", "2026-05-14")),
        ("a yearly price includes by the month", YEAR, "2026-02-28", ("2026-02-28", "2026-03-31")),
        ("from the anchor", YEAR, "2026-12-31", ("2026-12-31", "2027-01-31")),
        ("unless it says by the interval", replace(YEAR, plan="by_year"), "2026-12-31",
         ("2026-01-31", "2027-01-31")),
        ("restricted access leaves the period as it is", replace(YEAR, plan="by_year", status="paused"),
         "2026-12-31", ("2026-01-31", "2027-01-31")),
        ("a first period that is cut short by the anchor is one",
         subscription("2026-01-20", "2026-02-01", anchor="2026-02-01"), "2026-01-25",
         ("2026-01-20", "2026-02-01")),
        ("a cancellation ends its period",
         subscription("2026-01-31", "2026-02-28", cancel_at_ms="2026-02-10T12:00"), "2026-02-05",
         ("2026-01-31", "2026-02-10T12:00")),
        ("and begins one of the calendar",
         subscription("2026-01-31", "2026-02-28", cancel_at_ms="2026-02-10T12:00"), "2026-02-11",
         ("2026-02-10T12:00", "2026-03-01")),
        ("one without a payment begins none", replace(JANUARY, status="incomplete"), "2026-02-11",
         ("2026-02-01", "2026-03-01")),
        ("an earlier period of the subscription goes by the anchor",
         subscription("2026-03-31", "2026-04-30", anchor="2026-01-31", created_ms="2026-01-31"), "2026-03-01",
         ("2026-02-28", "2026-03-31")),
        ("where a change to a yearly price is scheduled, the year begins with it",
         subscription("2026-01-31", "2026-02-28", pending_plan="by_year", pending_at_ms="2026-02-28"),
         "2026-03-11", ("2026-02-28", "2027-02-28")),
        ("a period of two months is counted by the month",
         subscription("2026-01-15", "2026-03-15"), "2026-02-20", ("2026-02-15", "2026-03-15")),
    ],
)  # fmt: skip
def test_a_period_of_a_subscription(
    sentence: str, found: SubscriptionState, now: str, expected: tuple[str, str]
) -> None:
    assert period(found, now) == expected, sentence


def test_a_period_is_provisional_until_its_renewal_is_known() -> None:
    assert not is_provisional(JANUARY, ms("2026-02-28T09:59"))
    end_ms = ms("2026-02-28T10:00")
    assert is_provisional(JANUARY, end_ms)
    assert not is_provisional(replace(JANUARY, cancel_at_ms=end_ms), end_ms)
    assert not is_provisional(replace(JANUARY, status="canceled", ended_at_ms=end_ms), end_ms)


SECONDS: Final = st.integers(ms("2023-06-01") // 1000, ms("2029-06-01") // 1000)
MOMENTS: Final = SECONDS.map(lambda s: s * 1000)


@st.composite
def subscriptions(draw: st.DrawFn) -> SubscriptionState:
    """Any that Stripe may tell of: renewed often or never, in trial, ending soon, before its anchor."""
    made_ms = draw(MOMENTS)
    trial_ms = draw(st.sampled_from((0, 0, DAY_MS, 14 * DAY_MS, 60 * DAY_MS)))
    anchor_ms = made_ms + (trial_ms or draw(st.sampled_from((0, 0, 0, 5 * DAY_MS))))
    interval: Interval = draw(INTERVALS)
    renewals = draw(st.integers(0, 40))
    start_ms, end_ms = made_ms, anchor_ms
    if renewals or made_ms == anchor_ms:
        start_ms = anchor_ms
        for _ in range(renewals):
            start_ms = bounds_at(start_ms, anchor_ms=anchor_ms, interval=interval).end_ms
        end_ms = bounds_at(start_ms, anchor_ms=anchor_ms, interval=interval).end_ms
    is_trial = trial_ms > 0 and start_ms < anchor_ms
    ends = draw(st.sampled_from((None, None, end_ms, end_ms - DAY_MS // 3, end_ms + 400 * DAY_MS)))
    return replace(
        JANUARY,
        status="trialing" if is_trial else draw(st.sampled_from(("active", "past_due", "canceled"))),
        start_ms=start_ms,
        end_ms=end_ms,
        anchor_ms=anchor_ms,
        created_ms=made_ms,
        trial_end_ms=anchor_ms if is_trial else None,
        trial_end_action=draw(st.sampled_from(("continue", "cancel", "pause"))),
        cancel_at_ms=ends,
    )


@few_examples(30)
@given(found=subscriptions(), per=INTERVALS, moment=MOMENTS)
def test_periods_follow_each_other_without_gap_or_overlap(
    found: SubscriptionState, per: Interval, moment: int
) -> None:
    counting = CountingCycle(per=per)
    bounds = subscription_bounds(found, counting, moment)
    for _ in range(60):
        assert subscription_bounds(found, counting, bounds.start_ms) == bounds
        assert subscription_bounds(found, counting, bounds.end_ms - 1) == bounds
        after = subscription_bounds(found, counting, bounds.end_ms)
        assert (bounds.end_ms, bounds.next_end_ms) == (after.start_ms, after.end_ms)
        bounds = after


def test_a_period_beyond_the_longest_is_cut_at_the_anchor() -> None:
    # 31 days are a month, from wherever they go; 32 are not: months go by the anchor then.
    for start, end in (("2031-01-05", "2031-02-05"), ("2031-01-10", "2031-02-06")):
        found = subscription("2031-01-05", end, anchor="2030-01-10")
        bounds = subscription_bounds(found, CountingCycle(per="month"), ms("2031-01-20"))
        assert (bounds.start_ms, bounds.end_ms) == (ms(start), ms(end))


def day(month: int, day: int, *, year: int = 2031) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1_000)


HOUR_MS: Final = 3_600_000
MONTHLY: Final = subscription("2031-05-01", "2031-06-01", anchor="2031-02-01", created_ms="2031-02-01")


BEGUN: Final[dict[str, Any]] = {"created_ms": day(4, 10)}
ENDING: Final[dict[str, Any]] = {"cancel_at_ms": day(5, 15)}
YEARLY: Final[dict[str, Any]] = {
    "start_ms": day(5, 1, year=2030),
    "end_ms": day(5, 1),
    **dict.fromkeys(("anchor_ms", "created_ms"), day(5, 1, year=2029)),
}
USAGE_BY_MONTH: Final[dict[str, Any]] = {
    "start_ms": day(4, 10),
    "end_ms": day(2, 1, year=2032),
    "usage_start_ms": day(5, 1),
    "usage_end_ms": day(6, 1),
}


@pytest.mark.parametrize(
    ("changed", "now_ms", "expected"),
    [
        pytest.param({}, day(5, 20), (day(2, 1), day(4, 1), day(5, 1)), id="within its period"),
        pytest.param({}, day(6, 1), (day(2, 1), day(5, 1), day(6, 1)), id="renewed by the clock"),
        pytest.param(BEGUN, day(5, 20), (day(4, 10), day(4, 10), day(5, 1)), id="its first"),
        pytest.param({"created_ms": day(5, 1)}, day(5, 20), None, id="none yet"),
        pytest.param(ENDING, day(5, 15), (day(2, 1), day(5, 1), day(5, 15)), id="it ends"),
        pytest.param(YEARLY, day(3, 1), (*[day(5, 1, year=2029)] * 2, day(5, 1, year=2030)), id="a year"),
        pytest.param(USAGE_BY_MONTH, day(5, 20), (day(2, 1), day(4, 1), day(5, 1)), id="a yearly base price"),
    ],
)
def test_the_latest_two_renewals(
    changed: dict[str, Any], now_ms: int, expected: tuple[int, int, int] | None
) -> None:
    assert renewals_of(replace(MONTHLY, **changed), now_ms) == expected


def test_a_draft_takes_usage_until_five_minutes_before_its_end() -> None:
    made_ms = day(5, 1)
    for held_ms, last_ms in ((0, HOUR_MS), (made_ms + 5 * HOUR_MS, 5 * HOUR_MS)):
        for after_ms, expected in ((last_ms - 300_001, False), (last_ms - 300_000, True)):
            found = is_final(made_ms, final_ms=0, held_ms=held_ms, now_ms=made_ms + after_ms)
            assert found == expected
    assert is_final(made_ms, final_ms=1, held_ms=made_ms + 5 * HOUR_MS, now_ms=made_ms)
