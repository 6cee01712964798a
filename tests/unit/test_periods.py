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
from meterkit.decisions.invoice_deadlines import is_final, renewals_of
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
    is_provisional,
    shown_period,
    subscription_bounds,
    with_former_start,
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
    ("now", "anchor", "interval", "expected"),
    [
        ("2026-11-20", None, "month", ("2026-11-01", "2026-12-01", "2027-01-01")),
        ("2026-11-30T23:59:59.999", None, "month", ("2026-11-01", "2026-12-01", "2027-01-01")),
        # 31 January leads to 28 February, and then to 31 March, not to the 28th.
        ("2026-01-31", "2026-01-31", "month", ("2026-01-31", "2026-02-28", "2026-03-31")),
        ("2026-03-01", "2026-01-31", "month", ("2026-02-28", "2026-03-31", "2026-04-30")),
        # In a leap year to 29 February; a year from there ends on the 28th; 2100 is no leap year.
        ("2028-02-28T12:00:00", "2026-01-31", "month", ("2028-01-31", "2028-02-29", "2028-03-31")),
        ("2028-06-01", "2028-02-29", "year", ("2028-02-29", "2029-02-28", "2030-02-28")),
        ("2100-02-28T01:00:00", "2096-02-29", "year", ("2100-02-28", "2101-02-28", "2102-02-28")),
        # The time of day is the anchor's, and an anchor may lie ahead.
        (
            *("2026-05-15T10:29:59", "2026-01-15T10:30:00", "month"),
            ("2026-04-15T10:30", "2026-05-15T10:30", "2026-06-15T10:30"),
        ),
        ("2026-01-20", "2026-03-31", "month", ("2025-12-31", "2026-01-31", "2026-02-28")),
    ],
)
def test_a_period(now: str, anchor: str | None, interval: Interval, expected: tuple[str, str, str]) -> None:
    assert bounds(now, anchor, interval) == expected


def test_part_of_a_millisecond_is_left_out() -> None:
    assert to_ms(datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)) == 1
    assert Bounds(start_ms=0, end_ms=31 * 86_400_000, next_end_ms=59 * 86_400_000) == bounds_at(0)


def test_the_minutes_that_intents_can_have() -> None:
    cases: tuple[tuple[str, str, str | None, tuple[str, str]], ...] = (
        # Three minutes ahead of this one, all of it; none that begins before the period, or ends behind it.
        ("2026-11-01T00:00:00", "2026-11-20T12:00:59", None, ("2026-11-01", "2026-11-20T12:04:00")),
        ("2026-11-01T00:00:01", "2026-11-20T12:00:00", None, ("2026-11-01T00:01:00", "2026-11-20T12:04:00")),
        ("2026-11-01", "2026-11-20T12:00:00", "2026-11-20T12:02:59", ("2026-11-01", "2026-11-20T12:02:00")),
        # All of one that is over.
        ("2026-11-01", "2027-01-05", "2026-12-01", ("2026-11-01", "2026-12-01")),
    )
    for start, now, end, expected in cases:
        span_s = stamped_span_s(ms(start), ms(now), end_ms=None if end is None else ms(end))
        assert span_s == tuple(ms(edge) // 1000 for edge in expected), (start, now, end)


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


def test_what_names_no_period_is_refused() -> None:
    for period in ("October", "1969-12", 7):
        with pytest.raises(MeterkitError, match="period: found"):
            period_ms(period)
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


ENDING_SOON: Final = subscription("2026-01-31", "2026-02-28", cancel_at_ms="2026-02-10T12:00")
CUT_SHORT: Final = subscription("2026-01-20", "2026-02-01", anchor="2026-02-01")
OLDER: Final = subscription("2026-03-31", "2026-04-30", anchor="2026-01-31", created_ms="2026-01-31")
TO_YEARLY: Final[dict[str, str]] = {"pending_plan": "by_year", "pending_at_ms": "2026-02-28"}
BY_YEAR: Final = replace(YEAR, plan="by_year")


@pytest.mark.parametrize(
    ("found", "now", "expected"),
    [
        # The period is the subscription's own; the next one goes by the anchor, not by the end of the last.
        (JANUARY, "2026-02-01", ("2026-01-31T10:00", "2026-02-28T10:00")),
        (JANUARY, "2026-03-01", ("2026-02-28T10:00", "2026-03-31T10:00")),
        # Before it was made it is the calendar's, until then.
        (JANUARY, "2026-01-15", ("2026-01-01", "2026-01-31T10:00")),
        # A trial is one period however long.
        (TRIAL, "2026-02-02", ("2026-01-20", "2026-02-03")),
        (LONG_TRIAL, "2026-03-20", ("2026-01-20", "2026-03-21")),
        # A price of another interval does not begin a period anew, nor does one of a month.
        (TURNED_YEARLY, "2026-05-02", ("2026-04-14", "2026-05-14")),
        (TURNED_MONTHLY, "2026-05-02", ("2026-04-14", "2026-05-14")),
        # A yearly price includes by the month from the anchor, unless it says by the interval.
        (YEAR, "2026-02-28", ("2026-02-28", "2026-03-31")),
        (YEAR, "2026-12-31", ("2026-12-31", "2027-01-31")),
        (BY_YEAR, "2026-12-31", ("2026-01-31", "2027-01-31")),
        # Restricted access leaves the period as it is.
        (replace(BY_YEAR, status="paused"), "2026-12-31", ("2026-01-31", "2027-01-31")),
        # A first period that is cut short by the anchor is one.
        (CUT_SHORT, "2026-01-25", ("2026-01-20", "2026-02-01")),
        # A cancellation ends its period, and begins one of the calendar.
        (ENDING_SOON, "2026-02-05", ("2026-01-31", "2026-02-10T12:00")),
        (ENDING_SOON, "2026-02-11", ("2026-02-10T12:00", "2026-03-01")),
        # One without a payment begins none.
        (replace(JANUARY, status="incomplete"), "2026-02-11", ("2026-02-01", "2026-03-01")),
        # An earlier period of the subscription goes by the anchor.
        (OLDER, "2026-03-01", ("2026-02-28", "2026-03-31")),
        # Where a change to a yearly price is scheduled, the year begins with it.
        (subscription("2026-01-31", "2026-02-28", **TO_YEARLY), "2026-03-11", ("2026-02-28", "2027-02-28")),
        # A period of two months is counted by the month.
        (subscription("2026-01-15", "2026-03-15"), "2026-02-20", ("2026-02-15", "2026-03-15")),
    ],
)
def test_a_period_of_a_subscription(found: SubscriptionState, now: str, expected: tuple[str, str]) -> None:
    assert period(found, now) == expected


def test_a_period_is_provisional_until_its_renewal_is_known() -> None:
    end_ms = ms("2026-02-28T10:00")
    ending = replace(JANUARY, cancel_at_ms=end_ms), replace(JANUARY, status="canceled", ended_at_ms=end_ms)
    assert [is_provisional(one, end_ms) for one in (JANUARY, *ending)] == [True, False, False]
    assert not is_provisional(JANUARY, ms("2026-02-28T09:59"))


TWO_MONTHS: Final = subscription("2026-01-15", "2026-03-15", base_price="2900 usd month")
YEARLY_TRIAL: Final = replace(TRIAL, plan="yearly")


@pytest.mark.parametrize(
    ("found", "now", "expected"),
    [
        # As Stripe shows it, to its end; then by the anchor, each over the interval that is paid for.
        (TWO_MONTHS, "2026-01-15", ("2026-01-15", "2026-03-15")),
        (TWO_MONTHS, "2026-02-20", ("2026-01-15", "2026-03-15")),
        (TWO_MONTHS, "2026-03-15", ("2026-03-15", "2026-04-15")),
        (replace(TWO_MONTHS, plan="yearly"), "2026-03-15", ("2026-03-15", "2026-04-15")),
        # Of a trial nothing is paid yet: the plan says the interval.
        (YEARLY_TRIAL, "2026-02-04", ("2026-02-03", "2027-02-03")),
        # The last one stays, as does one of an unknown plan.
        (
            replace(JANUARY, cancel_at_ms=ms("2026-02-28T10:00")),
            "2026-02-28T10:00",
            period(JANUARY, "2026-02-01"),
        ),
        (replace(JANUARY, plan=None), "2026-03-01", period(JANUARY, "2026-02-01")),
    ],
)
def test_customers_see_the_period_before_its_renewal(
    found: SubscriptionState, now: str, expected: tuple[str, str]
) -> None:
    start_ms, end_ms = shown_period(found, CATALOG.plans.get(found.plan or ""), ms(now))
    assert (written(start_ms), written(end_ms)) == expected


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
        former_start_ms=draw(st.sampled_from((0, 0, start_ms - 10 * DAY_MS, start_ms - 50 * DAY_MS))),
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


@pytest.mark.parametrize(
    ("known", "new", "expected"),
    [
        # A person gives a trial until 30 June, which cuts the period of 5 June short.
        (("06-05", "07-05", "01-05"), ("06-17", "06-30", "06-30"), "06-05"),
        # It ends: a month before is 30 May, and the trial began on the 17th.
        (("06-17", "06-30", "06-30"), ("06-30", "07-30", "06-30"), "06-17"),
        # A renewal, which the anchor tells of; one that was not heard of; one that goes on at once.
        (("06-05", "07-05", "01-05"), ("07-05", "08-05", "01-05"), None),
        (("06-05", "07-05", "01-05"), ("08-17", "09-17", "08-17"), None),
        (("06-05", "07-05", "01-05"), ("06-05T00:01", "07-05T00:01", "06-05T00:01"), None),
    ],
)
def test_where_the_period_before_began(
    known: tuple[str, str, str], new: tuple[str, str, str], expected: str | None
) -> None:
    before, after = (
        subscription(f"2031-{start}", f"2031-{end}", anchor=f"2031-{anchor}")
        for start, end, anchor in (known, new)
    )
    made_ms = ms("2031-01-05")
    after = replace(after, created_ms=made_ms, trial_end_ms=ms("2031-06-30"))
    after = replace(after, status="trialing" if after.end_ms == after.trial_end_ms else "active")
    found = with_former_start(after, replace(before, created_ms=made_ms))
    assert found.former_start_ms == (0 if expected is None else ms(f"2031-{expected}"))
    if expected is not None:
        earlier = subscription_bounds(found, CountingCycle(per="month"), found.start_ms - 1)
        assert (earlier.start_ms, earlier.end_ms) == (ms(f"2031-{expected}"), found.start_ms)


def test_a_period_beyond_the_longest_is_cut_at_the_anchor() -> None:
    # 31 days are a month, from wherever they go; 32 are not: months go by the anchor then.
    for start, end in (("2031-01-05", "2031-02-05"), ("2031-01-10", "2031-02-06")):
        found = subscription("2031-01-05", end, anchor="2030-01-10")
        bounds = subscription_bounds(found, CountingCycle(per="month"), ms("2031-01-20"))
        assert (bounds.start_ms, bounds.end_ms) == (ms(start), ms(end))


MONTHLY: Final = subscription("2031-05-01", "2031-06-01", anchor="2031-02-01", created_ms="2031-02-01")
YEARLY: Final = subscription("2030-05-01", "2031-05-01", anchor="2029-05-01", created_ms="2029-05-01")
USAGE_BY_MONTH: Final[dict[str, Any]] = {"usage_start_ms": ms("2031-05-01"), "usage_end_ms": ms("2031-06-01")}


@pytest.mark.parametrize(
    ("found", "now", "expected"),
    [
        pytest.param(MONTHLY, "05-20", ("2031-02-01", "2031-04-01", "2031-05-01"), id="within its period"),
        pytest.param(MONTHLY, "06-01", ("2031-02-01", "2031-05-01", "2031-06-01"), id="renewed by the clock"),
        pytest.param(
            replace(MONTHLY, created_ms=ms("2031-04-10")),
            *("05-20", ("2031-04-10", "2031-04-10", "2031-05-01")),
            id="its first",
        ),
        pytest.param(replace(MONTHLY, created_ms=ms("2031-05-01")), "05-20", None, id="none yet"),
        pytest.param(
            replace(MONTHLY, cancel_at_ms=ms("2031-05-15")),
            *("05-15", ("2031-02-01", "2031-05-01", "2031-05-15")),
            id="it ends",
        ),
        pytest.param(YEARLY, "03-01", ("2029-05-01", "2029-05-01", "2030-05-01"), id="a year"),
        pytest.param(
            replace(MONTHLY, start_ms=ms("2031-04-10"), end_ms=ms("2032-02-01"), **USAGE_BY_MONTH),
            *("05-20", ("2031-02-01", "2031-04-01", "2031-05-01")),
            id="a yearly base price",
        ),
    ],
)
def test_the_latest_two_renewals(
    found: SubscriptionState, now: str, expected: tuple[str, str, str] | None
) -> None:
    renewals = renewals_of(found, ms(f"2031-{now}"))
    assert renewals == (expected and tuple(map(ms, expected)))


def test_a_draft_takes_usage_until_five_minutes_before_its_end() -> None:
    made_ms, hour_ms = ms("2031-05-01"), 3_600_000
    for held_ms, last_ms in ((0, hour_ms), (made_ms + 5 * hour_ms, 5 * hour_ms)):
        for after_ms, expected in ((last_ms - 300_001, False), (last_ms - 300_000, True)):
            found = is_final(made_ms, final_ms=0, held_ms=held_ms, now_ms=made_ms + after_ms)
            assert found == expected
    assert is_final(made_ms, final_ms=1, held_ms=made_ms + 5 * hour_ms, now_ms=made_ms)
