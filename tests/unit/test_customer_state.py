from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.catalog import loads
from meterkit.decisions.customer_state import NEVER_MS, CustomerState, EffectivePlan, Status, effective_plan
from meterkit.decisions.periods import bounds_at

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
        ("incomplete", 0, ("lapsed", "restricted", NEVER_MS)),
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
    from dataclasses import replace

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
