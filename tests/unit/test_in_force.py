"""What the clock and the plans file change of a customer, and what handlers and the ledger say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.subscription import NEVER_MS, SubscriptionState
from meterkit.decisions.transitions import (
    BY_CLOCK,
    BY_PLANS_FILE,
    InForce,
    Step,
    entries_of,
    follow,
    hand_entries,
    notices_of,
    reminders_of,
)

DAY_MS: Final = 86_400_000
NOW_MS: Final = 1_800_000_000_000
END_MS: Final = NOW_MS + 10 * DAY_MS
TEXT: Final = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 2900, interval: month}}
  top: {price: {amount_cents: 9900, interval: month}}
dunning: {grace: 7d, suspend_after: 14d, remind: [1d, 6d], attempts: null}
"""
CATALOG: Final = loads(TEXT)
ACTIVE: Final = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=3,
    start_ms=END_MS - 30 * DAY_MS,
    end_ms=END_MS,
    anchor_ms=END_MS,
)


def state(**changed: Any) -> CustomerState:
    return CustomerState(subscription=replace(ACTIVE, **changed))


def in_force(of: CustomerState, at_ms: int = NOW_MS, before: InForce | None = None) -> InForce:
    return InForce.of(of, CATALOG, at_ms, before)


def test_of_a_customer_without_a_subscription_only_the_plan_is_in_force() -> None:
    assert in_force(CustomerState()) == InForce(plan="free", at_ms=NOW_MS)
    assert in_force(CustomerState(plan="gone")).missing_plan == "gone"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"cancel_at_ms": END_MS}, {"cancel_at_ms": END_MS}),
        (
            {"pending_plan": "top", "pending_seats": 5, "pending_at_ms": END_MS},
            {"pending_plan": "top", "pending_seats": 5, "pending_at_ms": END_MS},
        ),
        # It has come by now.
        ({"pending_plan": "top", "pending_seats": 5, "pending_at_ms": NOW_MS}, {"plan": "top", "seats": 5}),
    ],
)
def test_what_is_scheduled_is_shown_while_it_is_ahead(
    changed: dict[str, Any], expected: dict[str, Any]
) -> None:
    base = InForce(plan="pro", status="active", seats=3, subscription="sub_1", at_ms=NOW_MS)
    assert in_force(state(**changed)) == replace(base, **expected)


@pytest.mark.parametrize(
    ("asked", "expected"), [("top", ("top", NOW_MS - 5)), ("pro", (None, None)), (None, (None, None))]
)
def test_a_plan_that_was_asked_for_is_to_come_until_stripe_has_it(
    asked: str | None, expected: tuple[str | None, int | None]
) -> None:
    found = in_force(replace(state(), asked_plan=asked, asked_ms=NOW_MS - 5))
    assert (found.pending_plan, found.pending_at_ms) == expected


def test_of_a_subscription_that_has_ended_nothing_is_to_come() -> None:
    found = in_force(state(status="canceled", cancel_at_ms=END_MS, pending_plan="top", pending_at_ms=END_MS))
    assert (found.plan, found.status, found.seats, found.subscription) == ("free", "canceled", 0, "sub_1")
    assert (found.cancel_at_ms, found.pending_plan, found.pending_at_ms) == (None, None, None)


def test_access_that_stays_as_it_was_keeps_its_beginning() -> None:
    first = in_force(state())
    assert first.since_ms == 0
    later = in_force(state(plan="top"), NOW_MS + 1, replace(first, since_ms=7))
    assert later.since_ms == 7
    paused = in_force(state(status="paused"), NOW_MS + 2, later)
    assert (paused.access, paused.since_ms) == ("restricted", NOW_MS + 2)


def test_reminders_count_from_the_first_failure_and_are_turns_of_the_clock() -> None:
    owing = state(status="past_due", failed_at_ms=NOW_MS)
    found = [in_force(owing, NOW_MS + days * DAY_MS) for days in (0, 1, 6)]
    assert [(one.reminded, (one.turn_ms - NOW_MS) // DAY_MS) for one in found] == [(0, 1), (1, 6), (2, 7)]
    assert in_force(replace(owing, status="active"), NOW_MS + 2 * DAY_MS).reminded == 0


def test_what_is_in_force_survives_storage() -> None:
    for one in (in_force(CustomerState()), in_force(state(cancel_at_ms=END_MS))):
        kept = InForce.parse(one.dump())
        assert kept == one
        assert kept is not None
        assert (kept.at_ms, kept.since_ms, kept.turn_ms) == (one.at_ms, one.since_ms, one.turn_ms)
        assert list(json.loads(one.dump())) == sorted(json.loads(one.dump()))
    assert InForce.parse("") is None
    assert '"seats"' not in in_force(CustomerState()).dump()
    assert InForce.parse('{"plan":"pro","at_ms":5,"newer":1}') == InForce(plan="pro", at_ms=5)


def test_the_clock_changes_things_step_by_step_each_at_its_instant() -> None:
    owing = state(status="past_due", failed_at_ms=NOW_MS)
    known = in_force(owing)
    steps, now = follow(known, owing, CATALOG, NOW_MS + 14 * DAY_MS)
    found = [
        ((step.after.at_ms - NOW_MS) // DAY_MS, step.after.access, step.after.reminded, step.cause)
        for step in steps
    ]
    assert found == [
        (1, "grace", 1, BY_CLOCK),
        (6, "grace", 2, BY_CLOCK),
        (7, "restricted", 2, BY_CLOCK),
        (14, "suspended", 2, BY_CLOCK),
    ]
    assert [step.before for step in steps] == [known, *(step.after for step in steps[:-1])]
    assert (now, now.turn_ms) == (steps[-1].after, NEVER_MS)
    early, _ = follow(known, owing, CATALOG, NOW_MS + 14 * DAY_MS - 1)
    assert list(early) == list(steps[:-1])


def test_a_turn_that_changes_nothing_to_be_told_is_no_step() -> None:
    known = in_force(CustomerState(subscription=replace(ACTIVE, void_from_ms=NOW_MS + 5), status="active"))
    assert known.turn_ms == NOW_MS + 5
    again = CustomerState(subscription=replace(ACTIVE, void_from_ms=NOW_MS + 5), status="active")
    steps, now = follow(known, again, CATALOG, NOW_MS + 5)
    assert (list(steps), now.at_ms, now.turn_ms) == ([], NOW_MS + 5, NEVER_MS)


def test_another_plans_file_is_one_step_at_the_instant_that_somebody_looks() -> None:
    known = in_force(CustomerState(plan="pro"))
    assert follow(None, CustomerState(plan="pro"), CATALOG, NOW_MS) == ((), known)
    other = loads(TEXT.replace("  pro: {price: {amount_cents: 2900, interval: month}}\n", ""))
    for now_ms, at_ms in ((NOW_MS + 9, NOW_MS + 9), (NOW_MS - 9, NOW_MS)):
        ((step,), now) = follow(known, CustomerState(plan="pro"), other, now_ms)
        assert (step.before, step.after, step.cause) == (known, now, BY_PLANS_FILE)
        assert (now.plan, now.missing_plan, now.at_ms) == ("free", "pro", at_ms)


BEFORE: Final = InForce(plan="free", at_ms=NOW_MS - 1)
AFTER: Final = InForce(
    plan="pro",
    status="active",
    seats=3,
    subscription="sub_1",
    cancel_at_ms=1_800_000_000_000,
    pending_plan="top",
    pending_seats=5,
    pending_at_ms=1_800_000_000_000,
    at_ms=NOW_MS,
)


def test_the_ledger_has_a_line_for_each_thing_that_has_changed() -> None:
    found = list(entries_of(Step(BEFORE, AFTER, "webhook")))
    assert [(one.kind, one.before, one.after) for one in found] == [
        ("subscription", "", "sub_1"),
        ("status", "", "active"),
        ("plan", "free", "pro"),
        ("seats", "", "3"),
        ("cancellation", "", "2027-01-15T08:00:00Z"),
        ("scheduled", "", "top with 5 seats from 2027-01-15T08:00:00Z"),
    ]
    assert {(one.at_ms, one.cause) for one in found} == {(NOW_MS, "webhook")}
    assert list(entries_of(Step(AFTER, AFTER, "webhook"))) == []
    seats = replace(AFTER, pending_plan=None)
    (line,) = entries_of(Step(AFTER, seats, "webhook"))
    assert line.after == "5 seats from 2027-01-15T08:00:00Z"


def test_the_ledger_has_links_and_overrides() -> None:
    linked = CustomerState(stripe_customer="cus_1", overrides={"requests": {"included": 5}})
    found = list(hand_entries(CustomerState(), linked, NOW_MS, "hand"))
    assert [(one.kind, one.before, one.after, one.at_ms, one.cause) for one in found] == [
        ("link", "", "cus_1", NOW_MS, "hand"),
        ("overrides", "", '{"requests": {"included": 5}}', NOW_MS, "hand"),
    ]
    assert list(hand_entries(linked, linked, NOW_MS, "hand")) == []


def notices(before: InForce, after: InForce) -> list[str]:
    return [notice.kind for notice in notices_of("ada", Step(before, after, "webhook"))]


def test_handlers_are_told_of_a_subscription_and_of_access() -> None:
    assert notices(BEFORE, AFTER) == ["subscription.changed"]
    assert notices(AFTER, replace(AFTER, at_ms=NOW_MS + 1)) == []
    assert notices(AFTER, replace(AFTER, access="suspended")) == ["access.changed"]
    assert notices(AFTER, replace(AFTER, status="unpaid", access="suspended")) == [
        "subscription.changed",
        "access.changed",
    ]
    # Without a subscription there is none that could change.
    assert notices(BEFORE, replace(BEFORE, plan="pro")) == []
    assert notices(AFTER, replace(BEFORE, status=None)) == ["subscription.changed"]


def test_a_notice_says_what_was_and_is_and_its_id_tells_a_repeat() -> None:
    (told,) = notices_of("ada", Step(BEFORE, AFTER, "webhook"))
    (again,) = notices_of("ada", Step(BEFORE, AFTER, "webhook"))
    (other,) = notices_of("bob", Step(BEFORE, AFTER, "webhook"))
    assert told == again
    assert told.data["id"] != other.data["id"]
    told_of = {name: told.data[name] for name in ("plan", "plan_before", "status", "status_before", "seats")}
    assert told_of == {
        "plan": "pro",
        "plan_before": "free",
        "status": "active",
        "status_before": None,
        "seats": 3,
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0, 1, DAY_MS), (0, 2, 6 * DAY_MS), (1, 2, 6 * DAY_MS), (1, 1, None), (2, 1, None)],
)
def test_the_last_reminder_that_is_due_is_told_once(before: int, after: int, expected: int | None) -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=NOW_MS, failures=2)
    was = replace(AFTER, status="past_due", access="grace", reminded=before)
    step = Step(was, replace(was, reminded=after, at_ms=NOW_MS + 2 * DAY_MS), BY_CLOCK)
    found = list(reminders_of("ada", step, owing, CATALOG.dunning))
    assert [one.data["after_ms"] for one in found] == ([] if expected is None else [expected])
    for one in found:
        assert (one.kind, one.data["failures"], one.data["failed_at_ms"]) == ("dunning.reminder", 2, NOW_MS)
        assert one.data["until_ms"] == NOW_MS + 7 * DAY_MS
    assert list(reminders_of("ada", step, None, CATALOG.dunning)) == []


def test_reminders_of_another_subscription_begin_anew() -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=NOW_MS)
    was = replace(AFTER, status="past_due", access="grace", reminded=2, subscription="sub_0")
    now = replace(was, subscription="sub_1", reminded=1, at_ms=NOW_MS + DAY_MS)
    (told,) = reminders_of("ada", Step(was, now, BY_CLOCK), owing, CATALOG.dunning)
    assert told.data["after_ms"] == DAY_MS


def test_overrides_in_another_order_are_the_same() -> None:
    first = CustomerState(overrides={"a": {"included": 1}, "b": {"included": 2}})
    other = CustomerState(overrides={"b": {"included": 2}, "a": {"included": 1}})
    assert list(hand_entries(first, other, NOW_MS, "api")) == []


def test_a_notice_is_named_by_what_has_happened() -> None:
    """An id that another release makes otherwise would tell the same twice."""
    before, after = in_force(state()), in_force(state(status="unpaid"))
    changed, access = notices_of("acme", Step(before, after, "evt_1"))
    assert [one.data["id"] for one in (changed, access)] == [
        "7a8cf9a02e3db180d87451a8154d5d6a",
        "50879eee406a96dff0665918479115ce",
    ]
    (again, _) = notices_of("acme", Step(before, after, "evt_2"))
    assert again.data["id"] != changed.data["id"]


def test_a_reminder_is_named_by_its_failure_and_its_span_whoever_notices_first() -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=NOW_MS, failures=2)
    was = replace(AFTER, status="past_due", access="grace", reminded=0)
    ids = [
        one.data["id"]
        for late_ms, cause in ((0, BY_CLOCK), (9, "evt_1"))
        for one in reminders_of(
            "ada",
            Step(was, replace(was, reminded=1, at_ms=NOW_MS + DAY_MS + late_ms), cause),
            owing,
            CATALOG.dunning,
        )
    ]
    assert len(ids) == 2
    assert len(set(ids)) == 1
