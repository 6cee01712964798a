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

from drivers.plans import free_plan
from drivers.sampled import few_examples
from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.decision import Policy
from meterkit.decisions.limit_policies import (
    CONCURRENCY,
    Demand,
    billed_most,
    ceiling_of,
    counter_terms,
    route_policies,
)
from meterkit.decisions.periods import (
    Bounds,
    bounds_at,
    from_ms,
    occurred_ms,
    period_ms,
    stamped_span_s,
    to_ms,
)
from meterkit.decisions.spending import UNCAPPED, SpendingTerms, UnitPrice
from meterkit.decisions.subscription import NEVER_MS, SubscriptionState
from meterkit.decisions.subscription_periods import (
    CountingCycle,
    Renewals,
    former_bounds,
    is_cut_short,
    is_final,
    is_provisional,
    renewals_of,
    shown_period,
    stops_billing_ms,
    subscription_bounds,
    with_former_start,
)
from meterkit.decisions.told_terms import with_former_starts
from meterkit.errors import MeterkitError
from meterkit.terms.rows import FREE, Row

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
    not_typed: Any = "2031-06-10"
    with pytest.raises(MeterkitError, match="occurred_at: found '2031-06-10'; allowed is an aware datetime"):
        occurred_ms(not_typed, ms("2031-06-11"))


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
    bounds = subscription_bounds(found, counting, moment, ())
    for _ in range(60):
        assert subscription_bounds(found, counting, bounds.start_ms, ()) == bounds
        assert subscription_bounds(found, counting, bounds.end_ms - 1, ()) == bounds
        after = subscription_bounds(found, counting, bounds.end_ms, ())
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
        earlier = subscription_bounds(found, CountingCycle(per="month"), found.start_ms - 1, ())
        assert (earlier.start_ms, earlier.end_ms) == (ms(f"2031-{expected}"), found.start_ms)


def test_a_period_beyond_the_longest_is_cut_at_the_anchor() -> None:
    # 31 days are a month, from wherever they go; 32 are not: months go by the anchor then.
    for start, end in (("2031-01-05", "2031-02-05"), ("2031-01-10", "2031-02-06")):
        found = subscription("2031-01-05", end, anchor="2030-01-10")
        bounds = subscription_bounds(found, CountingCycle(per="month"), ms("2031-01-20"), ())
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
    renewals = renewals_of(found, ms(f"2031-{now}"), ())
    assert renewals == (expected and tuple(map(ms, expected)))


def test_a_draft_takes_usage_until_five_minutes_before_its_end() -> None:
    made_ms, hour_ms = ms("2031-05-01"), 3_600_000
    for held_ms, last_ms in ((0, hour_ms), (made_ms + 5 * hour_ms, 5 * hour_ms)):
        for after_ms, expected in ((last_ms - 300_001, False), (last_ms - 300_000, True)):
            found = is_final(made_ms, final_ms=0, held_ms=held_ms, now_ms=made_ms + after_ms)
            assert found == expected
    assert is_final(made_ms, final_ms=1, held_ms=made_ms + 5 * hour_ms, now_ms=made_ms)


UNTIL_15: Final = {"cancel_at_ms": "2031-05-15"}


@pytest.mark.parametrize(
    ("changed", "at", "expected"),
    [
        pytest.param({}, "05-15", True, id="amid its period"),
        pytest.param({"status": "past_due"}, "05-15", True, id="though it owes"),
        pytest.param({"status": "unpaid"}, "05-15", True, id="though it was given up"),
        pytest.param({}, "05-01", False, id="not at the start of its period"),
        pytest.param(
            {"start_ms": "2031-05-10"}, "05-10", False, id="nor where another price began amid the month"
        ),
        pytest.param({}, "05-01T00:00:01", True, id="a second after that"),
        pytest.param({}, "05-31T23:59:59", True, id="a second before its renewal"),
        pytest.param({}, "06-01", False, id="not at its renewal"),
        pytest.param({}, "07-01", False, id="not at the renewal after that"),
        pytest.param(UNTIL_15, "05-15", False, id="not at its known end, which has an invoice"),
        pytest.param(UNTIL_15, "05-14", True, id="before its known end"),
        pytest.param(
            {"status": "trialing", "trial_end_ms": "2031-05-20"}, "05-15", False, id="not in a trial"
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": "2031-05-15"}, "05-15", False, id="nor at its end"
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": "2031-05-14T23:59:59.999"},
            "05-15",
            True,
            id="after a trial",
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": "2031-05-15T00:00:00.001"},
            "05-15",
            False,
            id="as a trial ends",
        ),
        pytest.param({"status": "paused"}, "05-15", False, id="not in a pause"),
        pytest.param({"status": "incomplete"}, "05-15", False, id="not before it is paid for"),
        pytest.param({"status": "canceled"}, "05-15", False, id="not after it has ended"),
        pytest.param(
            {"usage_start_ms": "2031-05-10", "usage_end_ms": "2031-06-10", "anchor_ms": "2031-05-10"},
            *("05-10", False),
            id="by the period of its metered prices",
        ),
    ],
)
def test_usage_was_billed_at_an_instant_without_a_renewal(
    changed: dict[str, Any], at: str, expected: bool
) -> None:
    dates: dict[str, Any] = {"anchor": "2031-02-01", "created_ms": "2031-02-01"}
    known = subscription("2031-05-01", "2031-06-01", **dates | changed)
    assert is_cut_short(known, ms(f"2031-{at}")) is expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"status": "incomplete"}, None, id="never paid for"),
        pytest.param({"status": "paused"}, None, id="paused"),
        pytest.param(
            {"trial_end_ms": ms("2031-04-10")},
            ("2031-04-10", "2031-04-10", "2031-05-01"),
            id="since its trial, which has no invoice with usage",
        ),
        pytest.param(
            {"status": "canceled", "ended_at_ms": ms("2031-05-21")},
            ("2031-02-01", "2031-05-01", "2031-05-21"),
            id="ended by a clock that is ahead of ours",
        ),
    ],
)
def test_which_invoices_a_subscription_has(
    changed: dict[str, Any], expected: tuple[str, str, str] | None
) -> None:
    renewals = renewals_of(replace(MONTHLY, **changed), ms("2031-05-20"), ())
    assert renewals == (expected and tuple(map(ms, expected)))


def test_the_invoice_that_has_the_usage_of_an_instant() -> None:
    renewals = Renewals(since_ms=10, before_ms=20, latest_ms=30)
    found = {at_ms: renewals.invoiced_ms(at_ms, 15) for at_ms in (9, 10, 19, 20, 29, 30)}
    assert found == {9: None, 10: 15, 19: 15, 20: 30, 29: 30, 30: None}
    assert renewals_of(None, 0, ()) is None


def test_usage_is_billed_until_a_pause_or_the_end() -> None:
    usage = replace(MONTHLY, **USAGE_BY_MONTH | {"usage_end_ms": 7})
    found = [stops_billing_ms(one) for one in (replace(usage, status="paused"), usage)]
    assert found == [7, NEVER_MS]
    assert stops_billing_ms(replace(MONTHLY, cancel_at_ms=9)) == 9


@pytest.mark.parametrize(
    ("starts", "at_ms", "expected"),
    [
        pytest.param((), 150, (100, 200), id="none is kept: the month"),
        pytest.param((120, 150), 119, (100, 120), id="before the first, until that"),
        pytest.param((120, 150), 120, (120, 150), id="from the first one on"),
        pytest.param((120, 150), 149, (120, 150), id="until the second one"),
        pytest.param((120, 150), 150, (150, 200), id="from the last one on, until the month ends"),
        pytest.param((50,), 150, (100, 200), id="a month after the last one"),
        pytest.param((250,), 150, (100, 200), id="a month before the first one"),
        pytest.param((50, 400), 150, (50, 400), id="a year"),
    ],
)
def test_periods_of_former_subscriptions_stay(
    starts: tuple[int, ...], at_ms: int, expected: tuple[int, int]
) -> None:
    found = former_bounds(Bounds(start_ms=100, end_ms=200, next_end_ms=300), starts, at_ms)
    assert (found.start_ms, found.end_ms) == expected
    assert found.next_end_ms == max(300, expected[1])


@pytest.mark.parametrize(
    ("known", "changed", "expected"),
    [
        pytest.param("2031-06-04T23:58:00.001", {}, 7, id="goes on within two minutes"),
        pytest.param("2031-06-04T23:58", {}, "2031-06-04T23:58", id="ends after two minutes"),
        pytest.param("2031-05-05", {}, 0, id="of a month of 31 days: the anchor says it"),
        pytest.param("2031-05-06", {}, "2031-05-06", id="of a day less: kept"),
        pytest.param("2030-06-05", {}, 0, id="of a year: the anchor says it"),
        pytest.param("2031-05-04", {}, "2031-05-04", id="of 32 days: less than a year"),
        pytest.param("2031-05-20", {"created_ms": ms("2031-05-20")}, 0, id="the first: its making says it"),
    ],
)
def test_where_a_period_that_was_cut_short_began(
    known: str, changed: dict[str, Any], expected: str | int
) -> None:
    """One that ends on 5 June, when the next one begins."""
    made: dict[str, Any] = {"created_ms": ms("2029-05-05"), **changed}
    before = replace(subscription(known, "2031-06-05", anchor="2031-06-05"), former_start_ms=7, **made)
    after = replace(subscription("2031-06-05", "2031-07-05"), **made)
    found = with_former_start(after, before).former_start_ms
    assert found == (ms(expected) if isinstance(expected, str) else expected)


BY_THE_YEAR: Final = CountingCycle(per="year")
BY_THE_MONTH: Final = CountingCycle(per="month")
ANEW: Final = CountingCycle(per="year", anew_ms=ms("2031-07-10"))
PAUSED: Final = tuple(
    Row(ms(f"2031-{at}"), ms("2031-05-20"), "stripe", ((FREE, why),))
    for at, why in (("04-10", "pause"), ("05-10", None), ("01-02", "pause"), ("01-09", None))
)


@pytest.mark.parametrize(
    ("changed", "counting", "now", "expected"),
    [
        # A period whose end the anchor says began with that month.
        pytest.param({}, BY_THE_MONTH, "05-20", ("2031-05-01", "2031-06-01"), id="a month"),
        pytest.param(
            {"start_ms": ms("2031-05-10")},
            *(BY_THE_MONTH, "05-20", ("2031-05-01", "2031-06-01")),
            id="another price amid the month begins none",
        ),
        pytest.param(
            {"start_ms": ms("2031-05-10"), "created_ms": ms("2031-05-04")},
            *(BY_THE_MONTH, "05-20", ("2031-05-04", "2031-06-01")),
            id="nor before the subscription was made",
        ),
        pytest.param(
            {"start_ms": ms("2031-05-10"), "end_ms": ms("2031-05-25")},
            *(BY_THE_MONTH, "05-20", ("2031-05-10", "2031-05-25")),
            id="one that ends before its month is one",
        ),
        pytest.param(
            {"former_start_ms": ms("2031-04-10")},
            *(BY_THE_MONTH, "04-20", ("2031-04-10", "2031-05-01")),
            id="the one before, where it is kept",
        ),
        pytest.param(
            {"former_start_ms": ms("2031-03-31")},
            *(BY_THE_MONTH, "03-31T12:00", ("2031-03-31", "2031-05-01")),
            id="the one before, of 31 days, is one",
        ),
        pytest.param(
            {"former_start_ms": ms("2031-03-30")},
            *(BY_THE_MONTH, "03-31", ("2031-03-30", "2031-04-01")),
            id="the one before, of 32 days, is cut by the anchor",
        ),
        pytest.param(
            {"former_start_ms": ms("2031-06-09")},
            *(BY_THE_MONTH, "04-20", ("2031-04-01", "2031-05-01")),
            id="none is before that began later",
        ),
        pytest.param(
            {"created_ms": ms("2031-04-12"), "former_start_ms": ms("2031-04-02")},
            *(BY_THE_MONTH, "04-20", ("2031-04-12", "2031-05-01")),
            id="none began before the subscription was made",
        ),
        pytest.param(
            {"end_ms": ms("2031-05-30")},
            ANEW,
            "06-10",
            ("2031-05-30", "2031-07-10"),
            id="until it begins anew",
        ),
        pytest.param({}, ANEW, "07-10", ("2031-07-10", "2032-07-10"), id="a year from where it begins anew"),
        pytest.param(
            {"end_ms": ms("2031-07-20")},
            ANEW,
            "07-25",
            ("2031-07-20", "2032-07-10"),
            id="its period was longer",
        ),
        pytest.param(
            {"cancel_at_ms": ms("2031-04-20")},
            *(BY_THE_MONTH, "04-19", ("2031-04-01", "2031-04-20")),
            id="it ended before the period that is known",
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": ms("2031-05-12"), "anchor_ms": ms("2031-05-12")},
            *(BY_THE_MONTH, "05-12", ("2031-05-12", "2031-06-12")),
            id="the trial's end ends a period",
        ),
        pytest.param(
            {"trial_end_ms": ms("2031-05-12")},
            *(BY_THE_MONTH, "05-12", ("2031-05-01", "2031-06-01")),
            id="one of a trial that is over does not",
        ),
    ],
)
def test_a_period_by_all_that_is_known(
    changed: dict[str, Any], counting: CountingCycle, now: str, expected: tuple[str, str]
) -> None:
    bounds = subscription_bounds(replace(MONTHLY, **changed), counting, ms(f"2031-{now}"), ())
    assert (written(bounds.start_ms), written(bounds.end_ms)) == expected


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param("2031-05-10", ("2031-05-10", "2031-06-01"), id="the end of a pause begins one"),
        pytest.param("2031-05-11", ("2031-05-01", "2031-06-01"), id="what comes a day after it does not"),
    ],
)
def test_a_period_after_a_pause(start: str, expected: tuple[str, str]) -> None:
    found = replace(MONTHLY, start_ms=ms(start))
    bounds = subscription_bounds(found, BY_THE_MONTH, ms("2031-05-20"), PAUSED)
    assert (written(bounds.start_ms), written(bounds.end_ms)) == expected
    renewals = renewals_of(found, ms("2031-05-20"), PAUSED)
    assert renewals is not None
    assert written(renewals.latest_ms) == expected[0]


def test_a_month_and_a_year_that_are_one_period() -> None:
    """The longest month and year are one period, wherever the anchor is; a day more is not."""
    cases: tuple[tuple[Interval, int, bool], ...] = (
        ("month", 31, True),
        ("month", 32, False),
        ("year", 366, True),
        ("year", 367, False),
    )
    for per, days, is_one in cases:
        counting = CountingCycle(per=per)
        end_ms = MONTHLY.start_ms + days * DAY_MS
        found = subscription_bounds(
            replace(MONTHLY, end_ms=end_ms, anchor_ms=0), counting, MONTHLY.start_ms, ()
        )
        assert ((found.start_ms, found.end_ms) == (MONTHLY.start_ms, end_ms)) is is_one, (per, days)


def test_a_period_is_provisional_by_the_end_that_counts() -> None:
    trial = replace(MONTHLY, status="trialing", trial_end_ms=MONTHLY.start_ms + DAY_MS)
    ending = replace(MONTHLY, cancel_at_ms=MONTHLY.end_ms + DAY_MS)
    for found, expected in (
        (MONTHLY, [False, False, True, True]),
        (trial, [True, True, True, True]),
        (ending, [False, False, True, False]),
        (replace(MONTHLY, status="incomplete"), [False, False, False, False]),
    ):
        instants = (
            MONTHLY.start_ms + DAY_MS,
            MONTHLY.end_ms - 1,
            MONTHLY.end_ms,
            MONTHLY.end_ms + DAY_MS,
        )
        assert [is_provisional(found, at_ms) for at_ms in instants] == expected, found
    # The clock that made a trial may be ahead of ours: it is not over before it began.
    odd = replace(trial, trial_end_ms=MONTHLY.start_ms - DAY_MS)
    assert [is_provisional(odd, MONTHLY.start_ms + after_ms) for after_ms in (-1, 0)] == [False, True]


def test_a_state_keeps_where_its_last_25_periods_began() -> None:
    """Grants look back 24 of them, from the one that follows."""
    old = subscription("2031-05-01", "2031-06-01", anchor="2028-02-01", created_ms="2028-02-01")
    before, now_ms = CustomerState(subscription=old), ms("2031-05-20")
    after = with_former_starts(before, CustomerState(), BY_THE_MONTH, now_ms)
    assert (len(after.former_starts_ms), written(after.former_starts_ms[0])) == (25, "2029-05-01")


@pytest.mark.parametrize(
    ("now", "anchor", "interval", "expected"),
    [
        pytest.param(
            "2026-10-31T23:59:59",
            None,
            "month",
            ("2026-10-01", "2026-11-01", "2026-12-01"),
            id="last-second-of-a-month",
        ),
        pytest.param(
            "2026-11-01", None, "month", ("2026-11-01", "2026-12-01", "2027-01-01"), id="first-of-a-month"
        ),
        pytest.param(
            "2027-01-01", None, "year", ("2027-01-01", "2028-01-01", "2029-01-01"), id="calendar-year"
        ),
        pytest.param(
            "2026-05-15",
            "2026-01-15",
            "month",
            ("2026-05-15", "2026-06-15", "2026-07-15"),
            id="at-its-renewal",
        ),
        pytest.param(
            "2026-05-14T23:59:59",
            "2026-01-15",
            "month",
            ("2026-04-15", "2026-05-15", "2026-06-15"),
            id="a-second-before-its-renewal",
        ),
        pytest.param(
            "2027-02-28", "2026-12-31", "month", ("2027-02-28", "2027-03-31", "2027-04-30"), id="the-31st"
        ),
        pytest.param(
            "2027-03-01", "2026-12-29", "month", ("2027-02-28", "2027-03-29", "2027-04-29"), id="the-29th"
        ),
        pytest.param(
            "2027-03-01", "2026-12-28", "month", ("2027-02-28", "2027-03-28", "2027-04-28"), id="the-28th"
        ),
        pytest.param(
            "2027-03-01", "2024-02-29", "year", ("2027-02-28", "2028-02-29", "2029-02-28"), id="a-leap-day"
        ),
        pytest.param(
            "2027-01-05",
            "2025-12-10",
            "month",
            ("2026-12-10", "2027-01-10", "2027-02-10"),
            id="over-new-year",
        ),
    ],
)
def test_a_periods_edges(
    now: str, anchor: str | None, interval: Interval, expected: tuple[str, str, str]
) -> None:
    assert bounds(now, anchor, interval) == expected


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        pytest.param("1970-01-01", "1970-01-01", id="the-first-day-there-is"),
        pytest.param("2026-10", "2026-10-01", id="a-month-is-its-first-day"),
        pytest.param("2026-10-01T02:00:00+02:00", "2026-10-01", id="an-instant-with-a-zone"),
        pytest.param("9989-12-31T23:59:59", "9989-12-31T23:59:59", id="the-last-second-there-is"),
        pytest.param(datetime(2026, 10, 5, tzinfo=UTC), "2026-10-05", id="an-aware-instant"),
        pytest.param("9990-01-01", None, id="the-first-instant-too-late"),
        pytest.param("1969-12-31T23:59:59.999", None, id="a-millisecond-too-early"),
        pytest.param(datetime(2026, 10, 5), None, id="a-naive-instant"),  # noqa: DTZ001
        pytest.param(7, None, id="a-number"),
    ],
)
def test_what_names_a_period(period: object, expected: str | None) -> None:
    if expected is not None:
        assert period_ms(period) == ms(expected)
        return
    with pytest.raises(MeterkitError, match="period: found"):
        period_ms(period)


@pytest.mark.parametrize(
    ("terms", "ceiling", "billed", "numbers"),
    [
        pytest.param("{included: 9, overage: deny}", 9, None, (9, -1, 3, 2), id="denied-beyond-included"),
        pytest.param("{included: 9}", 9, None, (9, -1, 3, 2), id="included-alone-denies"),
        pytest.param("{included: 0}", 0, None, (0, -1, 3, 2), id="nothing-included"),
        pytest.param("{included: 9, overage: bill}", None, None, None, id="billed-without-a-cap"),
        pytest.param(
            "{included: 9, overage: {bill: {cap: 4}}}", 13, 4, (9, 4, 3, 2), id="billed-up-to-a-cap"
        ),
        pytest.param("{included: 9, overage: {bill: {cap: 0}}}", 9, 0, (9, 0, 3, 2), id="a-cap-of-nothing"),
        pytest.param(
            "{included: 9, overage: {bill: {cap: 999_999_999_999_999}}}",
            10**15 - 1,
            10**15 - 1,
            (9, 10**15 - 10, 3, 2),
            id="no-more-than-the-largest-quantity",
        ),
        pytest.param("{included: unlimited}", None, None, None, id="unlimited"),
    ],
)
def test_the_ceiling_of_a_period(
    terms: str, ceiling: int | None, billed: int | None, numbers: tuple[int, ...] | None
) -> None:
    catalog = loads(
        free_plan(
            "{pages: {unit: page, stripe: {event_name: p}}, seats: {unit: seat, kind: gauge}}",
            f"{{pages: {terms}}}",
        )
    )
    entitlements = catalog.plans["free"].entitlements
    assert (ceiling_of(entitlements["pages"]), billed_most(entitlements["pages"])) == (ceiling, billed)
    demands = {"pages": Demand.of(2, spare=1), "seats": Demand.of(1)}
    rates, ceilings, concurrency = counter_terms(
        entitlements, catalog, demands, SpendingTerms((), {}), in_flight=True
    )
    assert [one.numbers for one in ceilings] == ([] if numbers is None else [numbers])
    capped = numbers is not None and numbers[1] >= 0
    assert [(one.measure.limit, one.measure.capped) for one in ceilings] == (
        [] if numbers is None else [(ceiling, capped)]
    )
    assert (rates, concurrency) == ([], [])


@pytest.mark.parametrize(
    ("quantity", "spare", "needed"),
    [
        pytest.param(0, 0, 1, id="of-nothing-something-must-be-left"),
        pytest.param(1, 0, 1, id="of-one"),
        pytest.param(2, 0, 2, id="of-two"),
        pytest.param(2, 3, 5, id="with-some-to-spare"),
    ],
)
def test_what_a_demand_needs(quantity: int, spare: int, needed: int) -> None:
    assert Demand.of(quantity, spare) == Demand(needed=needed, taken=quantity)


@pytest.mark.parametrize(
    ("terms", "priced", "numbers"),
    [
        pytest.param("{included: 9, overage: BILL}", True, (9, UNCAPPED, 3, 2), id="a-price-without-a-cap"),
        pytest.param("{included: 0, overage: BILL}", True, (0, UNCAPPED, 3, 2), id="billed-from-the-first"),
        pytest.param("{included: 9, overage: BILL}", False, None, id="without-a-budget-nothing-is-held"),
        pytest.param("{included: 9, overage: deny}", True, (9, -1, 3, 2), id="a-ceiling-is-one-already"),
    ],
)
def test_under_a_budget_what_has_a_price_is_held(
    terms: str, priced: bool, numbers: tuple[int, ...] | None
) -> None:
    written = terms.replace("BILL", "{bill: {per: 1, amount_cents: 1}}")
    catalog = loads(free_plan("{pages: {unit: page, stripe: {event_name: p}}}", f"{{pages: {written}}}"))
    spending = SpendingTerms((), {"pages": UnitPrice(10_000, 1, is_all=0)} if priced else {})
    _, ceilings, _ = counter_terms(
        catalog.plans["free"].entitlements,
        catalog,
        {"pages": Demand.of(2, spare=1)},
        spending,
        in_flight=True,
    )
    assert [one.numbers for one in ceilings] == ([] if numbers is None else [numbers])
    if numbers is not None:
        included, beyond, needed, _ = numbers
        measure = ceilings[0].measure
        assert (measure.limit, measure.needed) == (UNCAPPED if beyond == UNCAPPED else included, needed)
        assert measure.capped is (beyond >= 0)


@pytest.mark.parametrize("in_flight", [True, False])
def test_a_request_takes_one_place_whatever_it_consumes(in_flight: bool) -> None:
    catalog = loads(free_plan("{pages: {unit: page}}", "{pages: {concurrency: 4}}"))
    given, asked = catalog.plans["free"].entitlements, {"pages": Demand.of(7)}
    _, _, found = counter_terms(given, catalog, asked, SpendingTerms((), {}), in_flight=in_flight)
    assert [one.numbers for one in found] == [(4, -1, 1, 1)] * in_flight
    shown = [(one.measure.kind, one.measure.limit, one.measure.needed) for one in found]
    assert shown == [(CONCURRENCY, 4, 1)] * in_flight


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        pytest.param("", [], id="none"),
        pytest.param("5/second", [("route-1s", 5, 1)], id="one"),
        pytest.param(
            "[5/second, {limit: 7/90 minutes, algorithm: fixed-window}]",
            [("route-1s", 5, 1), ("route-90m", 7, 5400)],
            id="the-second-of-two-by-its-own-window",
        ),
    ],
)
def test_a_lines_own_rates_are_policies_in_requests(rates: str, expected: list[tuple[str, int, int]]) -> None:
    line = f'routes: [{{match: "*"{f", rate: {rates}" * bool(rates)}, consume: {{pages: 1}}}}]'
    (route,) = loads(free_plan("{pages: {unit: page}}", top=line)).routes
    assert route_policies(route) == tuple(
        Policy(name=name, meter="", kind="rate", quota=limit, window_s=window_s)
        for name, limit, window_s in expected
    )
