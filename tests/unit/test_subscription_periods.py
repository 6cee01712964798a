"""Billing periods of subscriptions: they follow one another from the anchor, whatever is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.periods import bounds_at, from_ms, to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.decisions.subscription_periods import Counting, is_provisional, subscription_bounds

Interval = Literal["month", "year"]

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


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


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
        ("one that nobody has paid for begins none", replace(JANUARY, status="incomplete"), "2026-02-11",
         ("2026-02-01", "2026-03-01")),
        ("nor does its end", replace(JANUARY, status="incomplete_expired"), "2026-03-11",
         ("2026-03-01", "2026-04-01")),
        ("nor where somebody has ended it before",
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
def test_a_period(sentence: str, found: SubscriptionState, now: str, expected: tuple[str, str]) -> None:
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


def test_a_trial_that_has_ended_and_is_not_confirmed_is_provisional() -> None:
    assert not is_provisional(TRIAL, ms("2026-02-02T23:59"))
    assert is_provisional(TRIAL, ms("2026-02-03"))


MOMENTS: Final = st.integers(ms("2023-06-01") // 1000, ms("2029-06-01") // 1000).map(lambda s: s * 1000)
INTERVALS: Final[Any] = st.sampled_from(("month", "year"))


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


@given(found=subscriptions(), per=INTERVALS, moment=MOMENTS)
def test_every_instant_is_in_its_period(found: SubscriptionState, per: Interval, moment: int) -> None:
    bounds = subscription_bounds(found, Counting(per=per), moment)
    assert bounds.start_ms <= moment < bounds.end_ms < bounds.next_end_ms


@given(found=subscriptions(), per=INTERVALS, moment=MOMENTS)
def test_periods_follow_one_another_over_years_without_gap_or_overlap(
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


@given(found=subscriptions(), per=INTERVALS, months=st.integers(0, 60))
def test_while_it_lives_every_edge_is_on_the_anchors_grid_or_where_the_subscription_turns(
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


@given(found=subscriptions(), per=INTERVALS)
def test_the_known_period_is_one_where_quantities_are_counted_over_no_less(
    found: SubscriptionState, per: Interval
) -> None:
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
def test_a_period_that_is_longer_than_the_longest_is_cut_at_the_anchor(
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
