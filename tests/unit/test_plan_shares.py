"""F-223: what each plan of a period gives by its share of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.subscribed_customer import subscription
from meterkit.catalog import loads
from meterkit.decisions.allowance import PlanChange
from meterkit.decisions.customer_state import INITIAL_STATE, CustomerState, entitlements_of, with_subscription
from meterkit.decisions.periods import to_ms
from meterkit.decisions.plan_history import with_plan_changes
from meterkit.decisions.plan_shares import effective_terms

if TYPE_CHECKING:
    from meterkit.catalog import Catalog
    from meterkit.decisions.allowance import Allowance

START: Final = datetime(2031, 6, 1, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
HALF: Final = datetime(2031, 6, 16, tzinfo=UTC)
DAY: Final = timedelta(days=1)
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  calls: {unit: call}
  tiers: {unit: tier, stripe: {event_name: tiers, report: usage}}
  disk:  {unit: byte, kind: gauge}
credits: {ai: {costs: {calls: 1 per 1}}}
dunning: {grace: 7d}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {calls: {included: 10, overage: deny}}}
  a:
    rank: 1
    price: {amount_cents: 100, interval: month}
    meters: {calls: {included: 100, overage: deny}, disk: {included: 1GB}, tiers: {included: 5}}
    grants:
      - {credit: ai, quantity: 7, every: period}
      - {meter: calls, quantity: 3, every: period, priority: 1}
  b:
    rank: 2
    price: {amount_cents: 200, interval: month}
    meters: {calls: {included: 1_000, overage: deny}, disk: {included: 2GB}, tiers: {included: 50}}
    grants: [{credit: ai, quantity: 70, every: period, priority: 9}]
  endless: {rank: 3, price: {amount_cents: 300, interval: month}, meters: {calls: {included: unlimited}}}
  yearly:
    rank: 4
    price: {amount_cents: 1000, interval: year}
    meters: {calls: {included: 500, overage: deny}}
  annual:
    rank: 5
    price: {amount_cents: 1000, interval: year, included_per: interval}
    meters: {calls: {included: 12_000, overage: deny}}
"""
CATALOG: Final = loads(PLANS)
WHOLE: Final = loads(PLANS + "billing: {changes: {allowance: whole}}\n")


def paid(plan: str, **changed: Any) -> CustomerState:
    """A customer with a subscription from the beginning of June."""
    given = {"start_ms": START, "end_ms": END, "anchor_ms": START, "created_ms": START, **changed}
    return CustomerState(subscription=subscription(plan=plan, **given))


def moved(state: CustomerState, plan: str, at: datetime, **changed: Any) -> CustomerState:
    """The same after its subscription changed to another plan."""
    assert state.subscription is not None
    after = with_subscription(state, replace(state.subscription, plan=plan, **changed))
    return with_plan_changes(state, after, CATALOG, to_ms(at))


def calls_of(state: CustomerState, at: datetime, catalog: Catalog = CATALOG) -> int | None:
    return entitlements_of(effective_terms(state, catalog, to_ms(at)), catalog)["calls"].included


def allowance_of(state: CustomerState, at: datetime) -> Allowance | None:
    return effective_terms(state, CATALOG, to_ms(at)).allowance


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], 100),
        ([("b", HALF)], 550),
        ([("b", END - timedelta(seconds=1))], 101),  # Rounded up.
        ([("b", START)], 1_000),
        ([("b", START + timedelta(seconds=59))], 1_000),
        ([("b", START + timedelta(minutes=2))], 1_000),  # 999.96
        ([("b", START + 15 * DAY), ("a", START + 16 * DAY)], 130),
        ([("b", START + 10 * DAY), ("a", START + 20 * DAY), ("b", START + 25 * DAY)], 550),
        ([("b", HALF), ("b", HALF + DAY)], 550),
        ([("endless", HALF)], None),
        ([("endless", HALF), ("b", HALF + 6 * DAY)], 350),  # 15 days of a, 9 of b.
    ],
)
def test_each_plan_counts_for_its_time(changes: list[tuple[str, datetime]], expected: int | None) -> None:
    state = paid("a")
    for plan, at in changes:
        state = moved(state, plan, at)
    assert calls_of(state, END - timedelta(milliseconds=1)) == expected
    assert calls_of(CustomerState.parse(state.dump()), END - timedelta(milliseconds=1)) == expected
    last = state.subscription.plan if state.subscription else None
    assert calls_of(state, END) == {"a": 100, "b": 1_000, "endless": None}[str(last)]


def test_no_sum_of_changes_gives_more_than_the_most_generous_plan() -> None:
    state = paid("a")
    for hour in range(1, 60):
        state = moved(state, "ab"[hour % 2], START + timedelta(hours=hour))
        found = calls_of(state, START + timedelta(hours=hour))
        assert found is not None
        assert found <= 1_000
    assert calls_of(state, END - DAY) == 100 + 900 * (30 * 24 - 30) // (30 * 24) + 1


def test_changes_that_are_forgotten_give_nothing() -> None:
    state = paid("a")
    for hour in range(1, 101):
        state = moved(state, "ab"[hour % 2], START + timedelta(hours=hour))
    assert len(state.plan_changes) == 64
    # The time before the 64 latest changes counts for nothing: 651 hours of a and 32 of b are known.
    assert calls_of(state, END - DAY) == -(-(651 * 100 + 32 * 1_000) // 720)


def test_the_whole_is_given_where_the_plans_file_says_so() -> None:
    state = moved(paid("a"), "b", HALF)
    assert calls_of(state, END - DAY, WHOLE) == 1_000
    assert effective_terms(state, WHOLE, to_ms(HALF)).allowance is None


def test_grants_are_whole_credits_and_no_more_than_the_rounded_sum_of_their_target() -> None:
    found = allowance_of(moved(paid("a"), "b", START + 10 * DAY), HALF)
    assert found is not None
    assert found.grants is not None
    # A third of 7 is 2.33, two thirds of 70 are 46.67, together 49; a third of 3 units is 1.
    assert {name: quantity for name, _, quantity, _, _ in found.grants.lines} == {
        "p m:calls 1-period": 1,
        "p c:ai 50-period": 3_000_000,
        "p c:ai 9-period": 47_000_000,
    }
    assert dict(found.grants.limits) == {"c:ai": 49_000_000, "m:calls": 1}


def test_units_of_a_plan_that_lasted_seconds_are_taken_back() -> None:
    state = paid("a")
    for plan, second in (("b", 20), ("a", 50)):
        state = moved(state, plan, START + timedelta(seconds=second))
    found = allowance_of(state, HALF)
    assert calls_of(state, HALF) == 100
    assert found is not None
    assert found.grants is not None
    assert dict(found.grants.limits) == {"c:ai": 7_000_000, "m:calls": 3}


def test_gauges_and_tiers_at_stripe_are_those_of_the_plan_alone() -> None:
    state = moved(paid("a"), "b", HALF)
    found = entitlements_of(effective_terms(state, CATALOG, to_ms(HALF)), CATALOG)
    assert (found["disk"].included, found["tiers"].included) == (2 * 10**9, 50)


def test_a_scheduled_change_amid_a_period_counts_from_its_millisecond_and_stays_so() -> None:
    state = paid("a", pending_plan="b", pending_at_ms=HALF)
    assert calls_of(state, HALF - timedelta(milliseconds=1)) == 100
    assert calls_of(state, HALF) == 550
    assert (
        calls_of(moved(state, "b", HALF + 5 * DAY, pending_plan=None, pending_at_ms=None), END - DAY) == 550
    )


def test_a_trial_is_a_period_of_its_own() -> None:
    trial = paid("a", status="trialing", trial_end_ms=START + 14 * DAY, end_ms=START + 14 * DAY)
    state = moved(trial, "b", START + 7 * DAY)
    assert calls_of(state, START + 13 * DAY) == 550
    assert calls_of(state, START + 14 * DAY) == 1_000


def test_a_plan_by_the_year_is_prorated_within_its_month() -> None:
    year = {"end_ms": START.replace(year=2032)}
    assert calls_of(moved(paid("yearly", **year), "b", HALF), END - DAY) == 750
    # A year of 12,000 gives half a month 500.
    assert calls_of(moved(paid("annual", **year), "b", HALF, end_ms=to_ms(END)), END - DAY) == 1_000


@pytest.mark.parametrize("days", [16, 40])
def test_a_cancellation_leaves_the_default_plan_all_of_its_quantity(days: int) -> None:
    at = START + days * DAY
    state = moved(moved(paid("a"), "b", HALF), "b", at, status="canceled", ended_at_ms=to_ms(at))
    assert calls_of(state, at) == 10


def test_restricted_access_gives_what_the_plans_file_says() -> None:
    owing = {"status": "past_due", "failures": 1, "failed_at_ms": to_ms(HALF)}
    state = moved(paid("a"), "b", HALF, **owing)
    assert calls_of(state, HALF + DAY) == 550
    assert calls_of(state, HALF + 8 * DAY) == 10
    assert (
        calls_of(moved(state, "b", HALF + 9 * DAY, status="active", failures=0, failed_at_ms=0), END - DAY)
        == 550
    )


def test_a_plan_set_by_hand_gives_all_and_the_subscriptions_own_goes_on_by_time() -> None:
    state = moved(paid("a"), "b", START + 10 * DAY)
    by_hand = with_plan_changes(state, replace(state, plan="a"), CATALOG, to_ms(HALF))
    assert calls_of(by_hand, HALF) == 100
    assert calls_of(moved(by_hand, "endless", HALF + DAY), HALF + 2 * DAY) is None
    # The plan that was set by hand stands for the 16 days before: 53.33 calls, and 233.33 of 500.
    assert calls_of(moved(by_hand, "yearly", HALF + DAY), END - DAY) == 287


def test_a_subscription_that_begins_is_whole_whenever_it_is_heard_of() -> None:
    late = START + 3 * DAY
    found = paid("b").subscription
    state = with_plan_changes(INITIAL_STATE, with_subscription(INITIAL_STATE, found), CATALOG, to_ms(late))
    assert state.plan_changes == (PlanChange("free", to_ms(late), is_priced=False),)
    assert calls_of(state, late) == 1_000


def test_a_change_before_the_beginning_was_heard_of_is_no_change_of_the_plan_before() -> None:
    begun = with_plan_changes(
        INITIAL_STATE, with_subscription(INITIAL_STATE, paid("a").subscription), CATALOG, to_ms(HALF)
    )
    for at in (HALF, HALF - DAY):
        state = moved(begun, "b", at)
        assert state.plan_changes == (PlanChange("free", to_ms(at), is_priced=False),)
        assert calls_of(state, HALF) == 1_000


def test_a_view_of_a_changed_plan_ends_with_its_period() -> None:
    state = moved(paid("a"), "b", HALF)
    assert effective_terms(state, CATALOG, to_ms(HALF)).valid_until_ms == to_ms(END)


def test_a_state_of_a_release_without_plan_changes_gives_all_of_the_plan() -> None:
    older = CustomerState.parse(paid("b").dump())
    assert older.plan_changes == ()
    assert calls_of(older, HALF) == 1_000
