"""Periods, renewals and the ends of spans: pure tables."""

# Internals: pure tables of instants; a seam would show each as one amount.

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.catalog import loads
from meterkit.customers.history import HistoryEntry, until
from meterkit.customers.links import minutes_taken_ms, pending_minutes_ms
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
    Counting,
    Renewals,
    is_cut_short,
    is_final,
    is_provisional,
    renewals_of,
    subscription_bounds,
)
from meterkit.delivery.summaries import _begun_s
from meterkit.errors import MeterkitError
from meterkit.outbox.late_terms import late_class

Interval = Literal["month", "year"]

YEARS = (datetime(1971, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 - hypothesis wants the zone apart
MOMENTS = st.datetimes(*YEARS, timezones=st.just(UTC)).map(to_ms)
INTERVALS: Final[Any] = st.sampled_from(("month", "year"))


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


@few_examples(30)
@given(now_ms=MOMENTS, anchor_ms=st.none() | MOMENTS, interval=INTERVALS)
def test_every_instant_is_in_its_period(now_ms: int, anchor_ms: int | None, interval: Interval) -> None:
    found = bounds_at(now_ms, anchor_ms=anchor_ms, interval=interval)
    assert found.start_ms <= now_ms < found.end_ms < found.next_end_ms


@few_examples(30)
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


@few_examples(30)
@given(anchor_ms=MOMENTS, interval=INTERVALS)
def test_an_anchor_begins_a_period(anchor_ms: int, interval: Interval) -> None:
    assert anchor_ms == bounds_at(anchor_ms, anchor_ms=anchor_ms, interval=interval).start_ms


@few_examples(30)
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
    given: dict[str, Any] = {"status": "active", "plan": "pro", "created_ms": ms(start)}
    given |= {name: ms(value) if name.endswith("_ms") else value for name, value in changed.items()}
    return SubscriptionState(
        id="sub_1",
        start_ms=ms(start),
        end_ms=ms(end),
        anchor_ms=ms(anchor or start),
        **given,
    )


def period(found: SubscriptionState, now: str, **by_hand: Any) -> tuple[str, str]:
    state = CustomerState(subscription=found, **by_hand)
    bounds = effective_plan(state, CATALOG, ms(now)).bounds
    first, last = (
        from_ms(edge).strftime("%Y-%m-%dT%H:%M").removesuffix("T00:00")
        for edge in (bounds.start_ms, bounds.end_ms)
    )
    return first, last


JANUARY: Final = subscription("2026-01-31T10:00", "2026-02-28T10:00")
TRIAL: Final = subscription(
    "2026-01-20", "2026-02-03", anchor="2026-02-03", status="trialing", trial_end_ms="2026-02-03"
)
LONG_TRIAL: Final = subscription(
    "2026-01-20", "2026-03-21", anchor="2026-03-21", status="trialing", trial_end_ms="2026-03-21"
)
TURNED_YEARLY: Final = subscription(
    "2026-05-01", "2027-02-14", anchor="2026-02-14", plan="yearly", created_ms="2026-01-31"
)
TURNED_MONTHLY: Final = subscription("2026-05-01", "2026-05-14", anchor="2026-02-14", created_ms="2026-01-31")
YEAR: Final = subscription("2026-01-31", "2027-01-31", plan="yearly")


@pytest.mark.parametrize(
    ("sentence", "found", "now", "expected"),
    [
        ("the period is the subscription's own", JANUARY, "2026-02-01",
         ("2026-01-31T10:00", "2026-02-28T10:00")),
        ("the next one goes by the anchor, not by the end of the last", JANUARY, "2026-03-01",
         ("2026-02-28T10:00", "2026-03-31T10:00")),
        ("and so does the one behind it", JANUARY, "2026-04-01", ("2026-03-31T10:00", "2026-04-30T10:00")),
        ("before it was made it is the calendar's, until then", JANUARY, "2026-01-15",
         ("2026-01-01", "2026-01-31T10:00")),
        ("a trial is one period", TRIAL, "2026-02-02", ("2026-01-20", "2026-02-03")),
        ("its end begins the first month", TRIAL, "2026-02-03", ("2026-02-03", "2026-03-03")),
        ("a trial is one period however long", LONG_TRIAL, "2026-03-20", ("2026-01-20", "2026-03-21")),
        ("a price of another interval does not begin a period anew", TURNED_YEARLY, "2026-05-02",
         ("2026-04-14", "2026-05-14")),
        ("nor does one of a month", TURNED_MONTHLY, "2026-05-02", ("2026-04-14", "2026-05-14")),
        ("before it, too", TURNED_MONTHLY, "2026-04-20", ("2026-04-14", "2026-05-14")),
        ("a yearly price includes by the month", YEAR, "2026-02-28", ("2026-02-28", "2026-03-31")),
        ("from the anchor", YEAR, "2026-12-31", ("2026-12-31", "2027-01-31")),
        ("unless it says by the interval", replace(YEAR, plan="by_year"), "2026-12-31",
         ("2026-01-31", "2027-01-31")),
        ("by the interval also behind the year that is known", replace(YEAR, plan="by_year"), "2027-06-01",
         ("2027-01-31", "2028-01-31")),
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
        ("which goes on as the calendar does",
         subscription("2026-01-31", "2026-02-28", status="canceled", ended_at_ms="2026-02-10T12:00"),
         "2026-03-11", ("2026-03-01", "2026-04-01")),
        ("one without a payment begins none", replace(JANUARY, status="incomplete"), "2026-02-11",
         ("2026-02-01", "2026-03-01")),
        ("nor does its end", replace(JANUARY, status="incomplete_expired"), "2026-03-11",
         ("2026-03-01", "2026-04-01")),
        ("nor where it was ended before",
         replace(JANUARY, status="canceled", never_began=True, ended_at_ms=ms("2026-02-10T12:00")),
         "2026-02-11", ("2026-02-01", "2026-03-01")),
        ("an earlier period of the subscription goes by the anchor",
         subscription("2026-03-31", "2026-04-30", anchor="2026-01-31", created_ms="2026-01-31"), "2026-03-01",
         ("2026-02-28", "2026-03-31")),
        ("where a change to a yearly price is scheduled, the year begins with it",
         subscription("2026-01-31", "2026-02-28", pending_plan="by_year", pending_at_ms="2026-02-28"),
         "2026-03-11", ("2026-02-28", "2027-02-28")),
        ("and its months, where it includes by the month",
         subscription("2026-01-31", "2026-02-28", pending_plan="yearly", pending_at_ms="2026-02-28"),
         "2026-03-29", ("2026-03-28", "2026-04-28")),
        ("a period of two months is counted by the month",
         subscription("2026-01-15", "2026-03-15"), "2026-02-20", ("2026-02-15", "2026-03-15")),
    ],
)  # fmt: skip
def test_a_period_of_a_subscription(
    sentence: str, found: SubscriptionState, now: str, expected: tuple[str, str]
) -> None:
    assert period(found, now) == expected, sentence


@pytest.mark.parametrize(
    ("now", "changed", "expected"),
    [
        ("2026-02-28T09:59", {}, False),
        ("2026-02-28T10:00", {}, True),
        ("2026-02-28T10:00", {"cancel_at_ms": ms("2026-02-28T10:00")}, False),
        ("2026-02-28T10:00", {"status": "canceled", "ended_at_ms": ms("2026-02-28T10:00")}, False),
    ],
)
def test_a_period_is_provisional_until_its_renewal_is_known(
    now: str, changed: dict[str, Any], *, expected: bool
) -> None:
    assert is_provisional(replace(JANUARY, **changed), ms(now)) is expected


def test_an_ended_unconfirmed_trial_is_provisional() -> None:
    assert not is_provisional(TRIAL, ms("2026-02-02T23:59"))
    assert is_provisional(TRIAL, ms("2026-02-03"))


SUBSCRIPTION_PERIODS_MOMENTS: Final = st.integers(ms("2023-06-01") // 1000, ms("2029-06-01") // 1000).map(
    lambda s: s * 1000
)


@st.composite
def subscriptions(draw: st.DrawFn) -> SubscriptionState:
    """Any that Stripe may tell of: renewed often or never, in trial, ending soon, before its anchor."""
    made_ms = draw(SUBSCRIPTION_PERIODS_MOMENTS)
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
    return SubscriptionState(
        id="sub_1",
        status="trialing" if is_trial else draw(st.sampled_from(("active", "past_due", "canceled"))),
        plan="pro",
        start_ms=start_ms,
        end_ms=end_ms,
        anchor_ms=anchor_ms,
        created_ms=made_ms,
        trial_end_ms=anchor_ms if is_trial else None,
        trial_end_action=draw(st.sampled_from(("continue", "cancel", "pause"))),
        cancel_at_ms=ends,
    )


@few_examples(30)
@given(found=subscriptions(), per=INTERVALS, moment=SUBSCRIPTION_PERIODS_MOMENTS)
def test_each_instant_lies_in_a_subscription_period(
    found: SubscriptionState, per: Interval, moment: int
) -> None:
    bounds = subscription_bounds(found, Counting(per=per), moment)
    assert bounds.start_ms <= moment < bounds.end_ms < bounds.next_end_ms


@few_examples(30)
@given(found=subscriptions(), per=INTERVALS, moment=SUBSCRIPTION_PERIODS_MOMENTS)
def test_periods_follow_each_other_without_gap_or_overlap(
    found: SubscriptionState, per: Interval, moment: int
) -> None:
    counting = Counting(per=per)
    bounds = subscription_bounds(found, counting, moment)
    for _ in range(60):
        assert subscription_bounds(found, counting, bounds.start_ms) == bounds
        assert subscription_bounds(found, counting, bounds.end_ms - 1) == bounds
        after = subscription_bounds(found, counting, bounds.end_ms)
        assert (bounds.end_ms, bounds.next_end_ms) == (after.start_ms, after.end_ms)
        bounds = after


@few_examples(30)
@given(found=subscriptions(), per=INTERVALS, months=st.integers(0, 60))
def test_each_edge_is_on_the_anchors_grid_or_a_turn(
    found: SubscriptionState, per: Interval, months: int
) -> None:
    made_ms, ends_ms = min(found.created_ms, found.start_ms), found.ends_ms()
    at_ms = bounds_at(made_ms, anchor_ms=found.anchor_ms).start_ms + months * 30 * DAY_MS
    if not made_ms <= at_ms < ends_ms:
        return
    turns = {made_ms, found.start_ms, found.end_ms, ends_ms}
    bounds = subscription_bounds(found, Counting(per=per), at_ms)
    for edge_ms in (bounds.start_ms, bounds.end_ms):
        grid = bounds_at(edge_ms, anchor_ms=found.anchor_ms, interval=per)
        assert edge_ms == grid.start_ms or edge_ms in turns


@few_examples(30)
@given(found=subscriptions(), per=INTERVALS)
def test_the_known_period_counts_unless_quantities_span_more(found: SubscriptionState, per: Interval) -> None:
    bounds = subscription_bounds(found, Counting(per=per), found.start_ms)
    grid = bounds_at(found.start_ms, anchor_ms=found.anchor_ms, interval=per)
    starts_ms = {found.start_ms}
    if (
        grid.end_ms == found.end_ms and found.status != "trialing"
    ):  # A price of another interval has begun in it.
        starts_ms.add(max(grid.start_ms, min(found.created_ms, found.start_ms)))
    assert bounds.start_ms in starts_ms or found.ends_ms() <= found.start_ms
    if found.end_ms - found.start_ms <= 31 * DAY_MS or found.status == "trialing":
        assert bounds.end_ms == min(found.end_ms, found.ends_ms()) or found.ends_ms() <= found.start_ms


@pytest.mark.parametrize(
    ("per", "end", "expected"),
    [
        # 31 days are a month, from wherever they go; 32 are not: months go by the anchor then.
        ("month", "2031-02-05", ("2031-01-05", "2031-02-05")),
        ("month", "2031-02-06", ("2031-01-10", "2031-02-06")),
        ("year", "2032-01-06", ("2031-01-05", "2032-01-06")),
        ("year", "2032-01-07", ("2031-01-10", "2032-01-07")),
    ],
)
def test_a_period_beyond_the_longest_is_cut_at_the_anchor(
    per: Interval, end: str, expected: tuple[str, str]
) -> None:
    found = subscription("2031-01-05", end, anchor="2030-01-10")
    bounds = subscription_bounds(found, Counting(per=per), ms("2031-01-20"))
    assert (bounds.start_ms, bounds.end_ms) == (ms(expected[0]), ms(expected[1]))


def test_a_trial_of_long_ago_ends_no_period() -> None:
    found = subscription("2031-05-01", "2031-06-01", trial_end_ms="2031-04-01")
    assert not is_provisional(found, ms("2031-05-31"))
    assert is_provisional(found, ms("2031-06-01"))
    on_trial = subscription("2031-05-01", "2031-06-01", trial_end_ms="2031-05-15", status="trialing")
    assert [is_provisional(on_trial, ms(day)) for day in ("2031-05-14", "2031-05-15")] == [False, True]


def test_periods_that_begin_anew_within_a_period_do_so_after_it() -> None:
    found = subscription("2031-05-01", "2031-06-01")
    anew = Counting(per="month", anew_ms=ms("2031-05-20"))
    bounds = subscription_bounds(found, anew, ms("2031-06-02"))
    assert (bounds.start_ms, bounds.end_ms) == (ms("2031-06-01"), ms("2031-06-20"))


def finality_ms(month: int, day: int, *, year: int = 2031) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1_000)


HOUR_MS: Final = 3_600_000
MONTHLY: Final = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    start_ms=finality_ms(5, 1),
    end_ms=finality_ms(6, 1),
    anchor_ms=finality_ms(2, 1),
    created_ms=finality_ms(2, 1),
)


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        (99, None),
        (100, 777),
        (199, 777),
        (200, 300),
        (299, 300),
        (300, None),
    ],
)
def test_usage_is_on_the_invoice_of_the_renewal_behind_it(at_ms: int, expected: int | None) -> None:
    assert Renewals(100, 200, 300).invoiced_ms(at_ms, 777) == expected


@pytest.mark.parametrize(
    ("changed", "now_ms", "expected"),
    [
        pytest.param(
            {},
            finality_ms(5, 20),
            (finality_ms(2, 1), finality_ms(4, 1), finality_ms(5, 1)),
            id="within its period",
        ),
        pytest.param(
            {},
            finality_ms(6, 1) - 1,
            (finality_ms(2, 1), finality_ms(4, 1), finality_ms(5, 1)),
            id="just before its renewal",
        ),
        pytest.param(
            {},
            finality_ms(6, 1),
            (finality_ms(2, 1), finality_ms(5, 1), finality_ms(6, 1)),
            id="renewed by the clock",
        ),
        pytest.param(
            {},
            finality_ms(7, 2),
            (finality_ms(2, 1), finality_ms(6, 1), finality_ms(7, 1)),
            id="a renewal later",
        ),
        pytest.param(
            {"created_ms": finality_ms(4, 10)},
            finality_ms(5, 20),
            (finality_ms(4, 10), finality_ms(4, 10), finality_ms(5, 1)),
            id="its first",
        ),
        pytest.param({"created_ms": finality_ms(5, 1)}, finality_ms(5, 20), None, id="none yet"),
        pytest.param({"created_ms": 0}, finality_ms(5, 20), None, id="not known when it was made"),
        pytest.param(
            {"trial_end_ms": finality_ms(4, 20)},
            finality_ms(5, 20),
            (finality_ms(4, 20), finality_ms(4, 20), finality_ms(5, 1)),
            id="after a trial",
        ),
        pytest.param({"trial_end_ms": finality_ms(5, 1)}, finality_ms(5, 20), None, id="a trial until now"),
        pytest.param(
            {"cancel_at_ms": finality_ms(5, 15)},
            finality_ms(5, 15),
            (finality_ms(2, 1), finality_ms(5, 1), finality_ms(5, 15)),
            id="it ends",
        ),
        pytest.param(
            {"cancel_at_ms": finality_ms(5, 15)},
            finality_ms(5, 15) - 1,
            (finality_ms(2, 1), finality_ms(4, 1), finality_ms(5, 1)),
            id="it is to end",
        ),
        pytest.param(
            {"status": "canceled", "ended_at_ms": finality_ms(5, 10)},
            finality_ms(5, 5),
            (finality_ms(2, 1), finality_ms(5, 1), finality_ms(5, 10)),
            id="it has ended, by a clock that is ahead",
        ),
        pytest.param({"status": "paused"}, finality_ms(5, 20), None, id="paused"),
        pytest.param({"status": "incomplete"}, finality_ms(5, 20), None, id="not paid for yet"),
        pytest.param(
            {
                "start_ms": finality_ms(5, 1, year=2030),
                "end_ms": finality_ms(5, 1),
                "anchor_ms": finality_ms(5, 1, year=2029),
            }
            | {"created_ms": finality_ms(5, 1, year=2029)},
            finality_ms(3, 1),
            (finality_ms(5, 1, year=2029), finality_ms(5, 1, year=2029), finality_ms(5, 1, year=2030)),
            id="a year",
        ),
        pytest.param(
            {"start_ms": finality_ms(4, 10), "end_ms": finality_ms(2, 1, year=2032)}
            | {"usage_start_ms": finality_ms(5, 1), "usage_end_ms": finality_ms(6, 1)},
            finality_ms(5, 20),
            (finality_ms(2, 1), finality_ms(4, 1), finality_ms(5, 1)),
            id="a yearly base price, and usage by the month",
        ),
    ],
)
def test_the_latest_two_renewals(
    changed: dict[str, Any], now_ms: int, expected: tuple[int, int, int] | None
) -> None:
    assert renewals_of(replace(MONTHLY, **changed), now_ms) == expected


def test_without_a_subscription_there_are_none() -> None:
    assert renewals_of(None, finality_ms(5, 20)) is None


@pytest.mark.parametrize(
    ("final_ms", "held_ms", "after_ms", "expected"),
    [
        (0, 0, HOUR_MS - 300_001, False),
        (0, 0, HOUR_MS - 300_000, True),
        (0, 5 * HOUR_MS, 5 * HOUR_MS - 300_001, False),
        (0, 5 * HOUR_MS, 5 * HOUR_MS - 300_000, True),
        (0, 1, HOUR_MS - 300_001, False),
        (1, 5 * HOUR_MS, 0, True),
    ],
)
def test_a_draft_takes_usage_until_five_minutes_before_its_end(
    final_ms: int, held_ms: int, after_ms: int, *, expected: bool
) -> None:
    made_ms = finality_ms(5, 1)
    held = made_ms + held_ms if held_ms else 0
    assert is_final(made_ms, final_ms=final_ms, held_ms=held, now_ms=made_ms + after_ms) == expected


@pytest.mark.parametrize(
    ("changed", "at_ms", "expected"),
    [
        pytest.param({}, finality_ms(5, 20), True, id="amid its period"),
        pytest.param({}, finality_ms(6, 1), False, id="at its end"),
        pytest.param({}, finality_ms(7, 1), False, id="a renewal later"),
        pytest.param({}, finality_ms(6, 20), True, id="amid the next period"),
        pytest.param({}, finality_ms(5, 1), False, id="at its start"),
        pytest.param(
            {"trial_end_ms": finality_ms(6, 1), "status": "trialing"},
            finality_ms(5, 20),
            False,
            id="in a trial",
        ),
        pytest.param(
            {"trial_end_ms": finality_ms(5, 10), "status": "trialing"},
            finality_ms(5, 20),
            True,
            id="after a trial",
        ),
        pytest.param({"status": "paused"}, finality_ms(5, 20), False, id="paused"),
        pytest.param({"status": "incomplete"}, finality_ms(5, 20), False, id="not paid for yet"),
        pytest.param({"status": "past_due"}, finality_ms(5, 20), True, id="past due"),
        pytest.param(
            {"cancel_at_ms": finality_ms(5, 20)}, finality_ms(5, 20), False, id="when it was to end"
        ),
    ],
)
def test_a_billed_period_is_cut_short_where_no_renewal_was_due(
    changed: dict[str, Any], at_ms: int, expected: bool
) -> None:
    assert is_cut_short(replace(MONTHLY, **changed), at_ms) == expected


# What counts at the very end of a span: the last change before it, the minute that has begun.


END: Final = datetime(2031, 6, 1, tzinfo=UTC)
SPANS_CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  kept:  {unit: one}
  over:  {unit: one, stripe: {event_name: over}}
  whole: {unit: one, stripe: {event_name: whole, report: usage}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      over:  {included: 5, overage: bill}
      whole: {included: 5, overage: deny}
""")


@pytest.mark.parametrize(("after", "found"), [(-1, None), (0, "free"), (1, "free")])
def test_a_change_at_the_end_of_a_span_does_not_count_in_it(after: int, found: str | None) -> None:
    at = END + timedelta(seconds=after)
    change = HistoryEntry(kind="plan", at=at, before="free", after="pro", cause="api")
    assert until([change], "plan", END) == found


@pytest.mark.parametrize(("meter", "expected"), [("kept", ""), ("over", "overage"), ("whole", "included")])
def test_late_usage_is_of_the_class_that_stripe_is_sent(meter: str, expected: str) -> None:
    own = SPANS_CATALOG.plans["free"].entitlements[meter]
    assert late_class(own, SPANS_CATALOG.meters[meter]) == expected
    assert late_class(None, SPANS_CATALOG.meters[meter]) == ""


@pytest.mark.parametrize(("now_s", "begun_s"), [(121, 120), (122, 180), (180, 180), (181, 180), (182, 240)])
def test_a_minute_begins_when_its_first_second_is_over(now_s: int, begun_s: int) -> None:
    store: Any = SimpleNamespace(now_ms=lambda: now_s * 1000 + 999)
    assert _begun_s(store) == begun_s


# Which minutes of a Stripe customer's former customer the next one's intents may not have.


MINUTE = 60_000
NOW = 30_000_000 * MINUTE
RELINKING_END = NOW - 10_000 * MINUTE


@pytest.mark.parametrize(
    ("used", "closing", "taken"),
    [
        # Usage of open periods is stamped from the present minute on.
        ({-2, -1, 0, 3}, (), {-1, 0, 3}),
        # That of a closed period has its last minute, or the first before it that is free.
        ({-50}, (-50,), {-50}),
        ({-50, -51, -52, -54}, (-50,), {-50, -51, -52}),
        ({-51}, (-50,), set[int]()),
        ({-50, -70, 2}, (-50, -70), {-50, -70, 2}),
    ],
)
def test_minutes_that_the_next_ones_intents_could_come_to_lie_in(
    used: set[int], closing: tuple[int, ...], taken: set[int]
) -> None:
    found = minutes_taken_ms(
        {NOW + minute * MINUTE for minute in used}, [NOW + minute * MINUTE for minute in closing], NOW
    )
    assert found == tuple(sorted(NOW + minute * MINUTE for minute in taken))


@pytest.mark.parametrize(
    ("totals", "minutes"),
    [
        ({"1|requp": "5", "1|e": f"{RELINKING_END}"}, {RELINKING_END - MINUTE}),
        # The last minute that is whole.
        ({"1|requp": "5", "1|e": f"{RELINKING_END + 59_999}"}, {RELINKING_END - MINUTE}),
        (
            {"1|requp": "5", "1|e": f"{RELINKING_END}", "2|tokep": "1", "2|e": f"{NOW}"},
            {RELINKING_END - MINUTE, NOW - MINUTE},
        ),
        # Nothing is to be sealed of it; or it is not over.
        ({"1|requp": "0", "1|requd": "7", "1|e": f"{RELINKING_END}"}, set[int]()),
        ({"1|requp": "5"}, set[int]()),
    ],
)
def test_minutes_of_pending_usage_of_closed_periods(totals: dict[str, str], minutes: set[int]) -> None:
    assert pending_minutes_ms(totals) == minutes
