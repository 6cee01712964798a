from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.catalog import loads
from meterkit.decisions.customer_overrides import with_overrides
from meterkit.decisions.customer_state import (
    CustomerState,
    EffectivePlan,
    effective_plan,
    refusal_of,
    refusal_without,
    with_subscription,
)
from meterkit.decisions.periods import bounds_at
from meterkit.decisions.subscription import NEVER_MS, Status, SubscriptionState

DAY_MS = 86_400_000
FAILED_MS = 1_800_000_000_000
PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 2900, interval: month}}
  yearly: {price: {amount_cents: 29000, interval: year, included_per: interval}}
  monthly_counts: {price: {amount_cents: 29000, interval: year}}
  lapsed: {price: {amount_cents: 0, interval: month}}
dunning: {grace: 2d, restrict_to: lapsed, suspend_after: 5d}
"""
CATALOG = loads(PLANS)


def standing(
    status: Status | None, after_ms: int = 0, *, plan: str | None = "pro", anchor_ms: int | None = None
) -> EffectivePlan:
    state = CustomerState(plan=plan, status=status, status_since_ms=FAILED_MS, anchor_ms=anchor_ms)
    return effective_plan(state, CATALOG, FAILED_MS + after_ms)


@pytest.mark.parametrize(
    ("status", "after_ms", "expected"),
    [
        (None, 0, ("pro", "full", NEVER_MS)),
        ("active", 0, ("pro", "full", NEVER_MS)),
        ("trialing", 90 * DAY_MS, ("pro", "full", NEVER_MS)),
        ("past_due", 0, ("pro", "grace", FAILED_MS + 2 * DAY_MS)),
        ("past_due", 2 * DAY_MS - 1, ("pro", "grace", FAILED_MS + 2 * DAY_MS)),
        ("past_due", 2 * DAY_MS, ("lapsed", "restricted", FAILED_MS + 5 * DAY_MS)),
        ("past_due", 5 * DAY_MS - 1, ("lapsed", "restricted", FAILED_MS + 5 * DAY_MS)),
        ("past_due", 5 * DAY_MS, ("pro", "suspended", NEVER_MS)),
        ("past_due", -1, ("pro", "grace", FAILED_MS + 2 * DAY_MS)),
        ("unpaid", 0, ("pro", "suspended", NEVER_MS)),
        ("paused", 0, ("lapsed", "restricted", NEVER_MS)),
        ("incomplete", 0, ("pro", "full", NEVER_MS)),  # F-22g: it is nothing but an unpaid sign-up.
        ("incomplete_expired", 0, ("free", "full", NEVER_MS)),
        ("canceled", 0, ("free", "full", NEVER_MS)),
    ],
)
def test_what_a_status_comes_to(status: Status | None, after_ms: int, expected: tuple[str, str, int]) -> None:
    found = standing(status, after_ms)
    assert expected == (found.plan.key, found.access, found.valid_until_ms)


@given(after_ms=st.integers(0, 10 * DAY_MS))
def test_a_standing_changes_at_the_instant_that_it_names_and_not_before(after_ms: int) -> None:
    found = standing("past_due", after_ms)
    if found.valid_until_ms == NEVER_MS:
        assert found.access == "suspended"
        return
    last = standing("past_due", found.valid_until_ms - 1 - FAILED_MS)
    assert (found.access, found.plan) == (last.access, last.plan)
    assert found.access != standing("past_due", found.valid_until_ms - FAILED_MS).access


@pytest.mark.parametrize(("after_ms", "access"), [(0, "grace"), (DAY_MS - 1, "grace"), (DAY_MS, "suspended")])
def test_a_suspension_ends_grace_where_grace_would_last_longer(after_ms: int, access: str) -> None:
    # The loader refuses this; a catalog made by hand need not.
    dunning = replace(CATALOG.dunning, grace_ms=9 * DAY_MS, suspend_after_ms=DAY_MS)
    state = CustomerState(plan="pro", status="past_due", status_since_ms=FAILED_MS)
    assert access == effective_plan(state, replace(CATALOG, dunning=dunning), FAILED_MS + after_ms).access


@pytest.mark.parametrize(
    ("plan", "expected"), [(None, "free"), ("pro", "pro"), ("removed", "free"), ("free", "free")]
)
def test_a_plan_that_is_not_set_or_no_longer_there_is_the_default_plan(
    plan: str | None, expected: str
) -> None:
    assert expected == standing(None, plan=plan).plan.key


@pytest.mark.parametrize(
    ("plan", "interval"), [("pro", "month"), ("yearly", "year"), ("monthly_counts", "month")]
)
def test_periods_go_by_the_span_that_included_is_per(plan: str, interval: str) -> None:
    anchor_ms = FAILED_MS - 45 * DAY_MS
    expected = bounds_at(FAILED_MS, anchor_ms=anchor_ms, interval="year" if interval == "year" else "month")
    assert expected == standing("active", plan=plan, anchor_ms=anchor_ms).bounds


@pytest.mark.parametrize(
    "state",
    [
        CustomerState(),
        CustomerState(plan="pro"),
        CustomerState(
            plan="pro",
            status="past_due",
            status_since_ms=FAILED_MS,
            stripe_customer="cus_1",
            anchor_ms=FAILED_MS,
            overrides={"requests": {"rate": "5/second"}},
        ),
    ],
)
def test_a_state_survives_storage(state: CustomerState) -> None:
    assert state == CustomerState.parse(state.dump()) == CustomerState.parse(state.dump().encode())


def test_only_what_was_set_is_stored() -> None:
    assert json.loads(CustomerState(plan="pro").dump()) == {"plan": "pro"}


@pytest.mark.parametrize("data", ["", b""])
def test_no_text_is_a_customer_never_seen_before(data: str | bytes) -> None:
    assert CustomerState() == CustomerState.parse(data)


SOLD: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  seats:    {unit: seat, kind: gauge}
features: [chat, export, support]
billing: {changes: {over_limit: allow}}
plans:
  free: {price: {amount_cents: 0, interval: month}, features: [chat]}
  pro: {price: {amount_cents: 2900, interval: month}, features: [chat, export]}
  yearly: {price: {amount_cents: 29000, interval: year, included_per: interval}}
dunning: {grace: 2d, restrict_to: free, suspend_after: 5d}
"""
SHOP: Final = loads(SOLD)
ACTIVE: Final = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=7,
    start_ms=FAILED_MS - 10 * DAY_MS,
    end_ms=FAILED_MS + 20 * DAY_MS,
    anchor_ms=FAILED_MS - 10 * DAY_MS,
)


def of_the_shop(state: CustomerState, after_ms: int = 0) -> EffectivePlan:
    return effective_plan(state, SHOP, FAILED_MS + after_ms)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"chat", "export"}),
        ({"support": True}, {"chat", "export", "support"}),
        ({"export": False}, {"chat"}),
        ({"support": True, "chat": False}, {"export", "support"}),
        ({"export": True}, {"chat", "export"}),
        ({"support": False}, {"chat", "export"}),
        ({"removed_from_the_file": True}, {"chat", "export"}),
    ],
)
def test_features_of_one_customer_are_added_to_the_plans_and_taken_from_them(
    own: dict[str, bool], expected: set[str]
) -> None:
    overrides = with_overrides({}, {}, own, until_ms=None, now_ms=FAILED_MS)
    found = of_the_shop(CustomerState(plan="pro", overrides=overrides))
    assert found.plan.features == expected


@pytest.mark.parametrize(
    ("state", "seats"),
    [
        (CustomerState(plan="pro"), 0),
        (CustomerState(subscription=ACTIVE), 7),
        (CustomerState(subscription=replace(ACTIVE, status="incomplete")), 0),
        (CustomerState(subscription=replace(ACTIVE, status="canceled")), 0),
        (CustomerState(subscription=replace(ACTIVE, status="paused")), 0),
        (CustomerState(subscription=ACTIVE, status="canceled"), 0),
        (CustomerState(subscription=replace(ACTIVE, status="past_due", failed_at_ms=FAILED_MS)), 7),
    ],
)
def test_seats_are_those_of_a_subscription_that_is_paid_for(state: CustomerState, seats: int) -> None:
    assert of_the_shop(state).seats == seats


@pytest.mark.parametrize(
    ("over_limit", "status", "expected"),
    [
        ("allow", "active", True),
        ("allow", "past_due", True),
        ("allow", "paused", False),
        ("block_growth", "active", False),
        ("block_growth", "paused", False),
    ],
)
def test_gauges_keep_earlier_limits_where_the_file_says_so_and_access_is_not_restricted(
    over_limit: str, status: Status, *, expected: bool
) -> None:
    catalog = loads(SOLD.replace("over_limit: allow", f"over_limit: {over_limit}"))
    state = CustomerState(plan="pro", status=status, status_since_ms=FAILED_MS)
    assert effective_plan(state, catalog, FAILED_MS).keeps_limits == expected


def test_a_status_set_by_hand_counts_as_one_failed_attempt() -> None:
    dunning = replace(SHOP.dunning, attempts=2)
    state = CustomerState(plan="pro", status="past_due", status_since_ms=FAILED_MS)
    assert effective_plan(state, replace(SHOP, dunning=dunning), FAILED_MS).access == "grace"
    dunning = replace(SHOP.dunning, attempts=1)
    assert effective_plan(state, replace(SHOP, dunning=dunning), FAILED_MS).access == "restricted"


@pytest.mark.parametrize(("by_hand", "access"), [(None, "restricted"), ("active", "full")])
def test_a_period_whose_invoice_is_voided_restricts_unless_a_status_was_set_by_hand(
    by_hand: Status | None, access: str
) -> None:
    subscription = replace(ACTIVE, void_from_ms=FAILED_MS)
    state = CustomerState(subscription=subscription, status=by_hand)
    assert of_the_shop(state, -1).access == "full"
    assert of_the_shop(state).access == access


@pytest.mark.parametrize(("status", "access"), [("past_due", "grace"), ("unpaid", "suspended")])
def test_a_status_set_by_hand_counts_beside_a_subscription_that_never_began(
    status: Status, access: str
) -> None:
    unpaid = replace(ACTIVE, status="incomplete")
    assert of_the_shop(CustomerState(subscription=unpaid)).access == "full"
    by_hand = CustomerState(subscription=unpaid, status=status, status_since_ms=FAILED_MS)
    assert of_the_shop(by_hand).access == access


@pytest.mark.parametrize(
    ("status", "per"),
    [("active", "year"), ("canceled", "month"), ("incomplete", "month"), ("incomplete_expired", "month")],
)
def test_periods_go_by_the_subscriptions_plan_while_it_lasts(status: Status, per: str) -> None:
    year = replace(ACTIVE, plan="yearly", status=status, end_ms=ACTIVE.start_ms + 365 * 86_400_000)
    assert of_the_shop(CustomerState(plan="pro", subscription=year)).counting.per == per


@pytest.mark.parametrize(
    ("pending", "anew"), [("yearly", True), ("free", False), ("removed", False), (None, False)]
)
def test_a_scheduled_plan_of_another_interval_begins_periods_anew(pending: str | None, *, anew: bool) -> None:
    at_ms = FAILED_MS + DAY_MS
    subscription = replace(ACTIVE, pending_plan=pending, pending_at_ms=at_ms)
    found = of_the_shop(CustomerState(subscription=subscription)).counting.anew_ms
    assert found == (at_ms if anew else None)


BY_HAND: Final = CustomerState(plan="yearly", status="past_due", status_since_ms=FAILED_MS)
SIGNED_UP: Final = replace(ACTIVE, id="sub_2", status="incomplete")


@pytest.mark.parametrize(
    ("known", "fetched", "kept"),
    [
        # Nothing changes what was set by hand where there is no subscription, or one not paid for yet.
        (None, None, ("yearly", "past_due")),
        (None, SIGNED_UP, ("yearly", "past_due")),
        (replace(ACTIVE, status="canceled"), SIGNED_UP, ("yearly", "past_due")),
        (SIGNED_UP, None, ("yearly", "past_due")),
        # One that begins, another one, and none any more do.
        (None, ACTIVE, (None, None)),
        (ACTIVE, replace(ACTIVE, id="sub_3"), (None, None)),
        (ACTIVE, None, (None, None)),
        (ACTIVE, SIGNED_UP, (None, None)),
        (SIGNED_UP, replace(SIGNED_UP, status="active"), (None, None)),
        # Of the same one only what is other than before.
        (ACTIVE, ACTIVE, ("yearly", "past_due")),
        (ACTIVE, replace(ACTIVE, plan="free"), (None, "past_due")),
        (ACTIVE, replace(ACTIVE, status="unpaid"), ("yearly", None)),
        (ACTIVE, replace(ACTIVE, status="canceled"), (None, None)),
        (replace(ACTIVE, status="canceled"), replace(ACTIVE, status="canceled"), ("yearly", "past_due")),
    ],
)
def test_what_was_set_by_hand_stands_until_the_subscriptions_own_changes(
    known: SubscriptionState | None, fetched: SubscriptionState | None, kept: tuple[str | None, str | None]
) -> None:
    found = with_subscription(replace(BY_HAND, subscription=known), fetched)
    assert (found.plan, found.status) == kept
    assert found.subscription == fetched
    assert found.status_since_ms == (FAILED_MS if found.status else 0)


def test_failures_add_up_over_invoices_of_one_subscription_and_not_over_two() -> None:
    owing = replace(ACTIVE, status="past_due", failures=3, failed_at_ms=FAILED_MS)
    fetched = replace(owing, failures=1, failed_at_ms=FAILED_MS + DAY_MS)
    kept = with_subscription(CustomerState(subscription=owing), fetched).subscription
    assert kept == owing
    other = replace(fetched, id="sub_2")
    assert with_subscription(CustomerState(subscription=owing), other).subscription == other


@pytest.mark.parametrize(
    ("access", "feature", "expected"),
    [
        ("active", None, None),
        ("active", "export", None),
        ("active", "support", "feature"),
        ("unpaid", None, "suspended"),
        ("unpaid", "support", "suspended"),
    ],
)
def test_a_state_refuses_who_is_suspended_and_who_lacks_the_feature(
    access: Status, feature: str | None, expected: str | None
) -> None:
    effective = of_the_shop(CustomerState(plan="pro", status=access, status_since_ms=FAILED_MS))
    found = refusal_without("ada", effective, feature)
    assert (found.reason if found else None) == expected
    if found:
        assert (found.customer, found.plan, found.allowed) == ("ada", "pro", False)


def test_a_line_that_is_always_served_is_refused_to_nobody_by_its_state() -> None:
    routes = """routes:
  - {match: "/billing", always: true}
  - {match: "/export", feature: support}
  - {match: "*", consume: {requests: 1}}
"""
    catalog = loads(SOLD.replace("plans:\n", f"{routes}plans:\n"))
    state = CustomerState(plan="pro", status="unpaid", status_since_ms=FAILED_MS)
    effective = effective_plan(state, catalog, FAILED_MS)
    found = [refusal_of("ada", effective, route) for route in (*catalog.routes, None)]
    assert [one and one.reason for one in found] == [None, "suspended", "suspended", "suspended"]
    fine = effective_plan(replace(state, status="active"), catalog, FAILED_MS)
    found = [refusal_of("ada", fine, route) for route in (*catalog.routes, None)]
    assert [one and one.reason for one in found] == [None, "feature", None, None]


def test_a_subscription_is_stored_without_its_defaults_and_keys_are_in_order() -> None:
    kept = CustomerState(plan="pro", anchor_ms=7, subscription=ACTIVE).dump()
    read = json.loads(kept)
    assert list(read) == sorted(read)
    assert set(read["subscription"]) == {"id", "status", "plan", "seats", "start_ms", "end_ms", "anchor_ms"}
    assert CustomerState.parse(kept).subscription == ACTIVE
