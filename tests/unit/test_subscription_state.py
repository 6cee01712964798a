from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_state import (
    CustomerState,
    EffectivePlan,
    effective_plan,
    entitlements_of,
    with_subscription,
)
from meterkit.decisions.item_prices import ItemPrice
from meterkit.decisions.known_prices import add_former_prices
from meterkit.decisions.subscription import NEVER_MS, SubscriptionState, switched_by_others
from meterkit.decisions.transitions import InForce

DAY_MS: Final = 86_400_000
NOW_MS: Final = 1_800_000_000_000
END_MS: Final = NOW_MS + 10 * DAY_MS
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  seats:    {unit: seat, kind: gauge}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {seats: {included: 3, overage: deny}}}
  pro: {price: {amount_cents: 2900, interval: month}, meters: {seats: {included: 10, overage: deny}}}
  top: {price: {amount_cents: 9900, interval: month}, meters: {seats: {included: unlimited}}}
""")
ACTIVE: Final = SubscriptionState(
    id="sub_1", status="active", plan="pro", start_ms=END_MS - 30 * DAY_MS, end_ms=END_MS, anchor_ms=END_MS
)
STATE: Final = CustomerState(stripe_customer="cus_1", subscription=ACTIVE)


def at(now_ms: int, *, by_hand: dict[str, Any] | None = None, **changed: Any) -> EffectivePlan:
    state = replace(STATE, subscription=replace(ACTIVE, **changed), **by_hand or {})
    return effective_plan(state, CATALOG, now_ms)


def shown(found: EffectivePlan) -> tuple[str, str | None, str]:
    return found.plan.key, found.status, found.access


@pytest.mark.parametrize(
    ("changed", "before", "after"),
    [
        pytest.param(
            {"cancel_at_ms": END_MS, "cancel_at_period_end": True},
            ("pro", "active", "full"),
            ("free", "canceled", "full"),
            id="a cancellation",
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": END_MS},
            ("pro", "trialing", "full"),
            ("pro", "active", "full"),
            id="a trial that goes on",
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": END_MS, "trial_end_action": "cancel"},
            ("pro", "trialing", "full"),
            ("free", "canceled", "full"),
            id="a trial that ends the subscription",
        ),
        pytest.param(
            {"status": "trialing", "trial_end_ms": END_MS, "trial_end_action": "pause"},
            ("pro", "trialing", "full"),
            ("free", "paused", "restricted"),
            id="a trial that pauses it",
        ),
        pytest.param(
            {"pending_plan": "top", "pending_at_ms": END_MS},
            ("pro", "active", "full"),
            ("top", "active", "full"),
            id="a scheduled plan",
        ),
        pytest.param(
            {"pending_plan": "free", "pending_at_ms": END_MS, "cancel_at_ms": END_MS + DAY_MS},
            ("pro", "active", "full"),
            ("free", "active", "full"),
            id="the earlier of two",
        ),
    ],
)
def test_what_is_scheduled_binds_at_its_millisecond(
    changed: dict[str, Any], before: tuple[str, str, str], after: tuple[str, str, str]
) -> None:
    found = at(NOW_MS, **changed)
    assert (shown(found), found.valid_until_ms) == (before, END_MS)
    assert shown(at(END_MS - 1, **changed)) == before
    assert shown(at(END_MS, **changed)) == after


def test_what_has_happened_is_no_turn_any_more() -> None:
    past: dict[str, Any] = {"pending_plan": "top", "pending_at_ms": END_MS, "cancel_at_ms": END_MS + DAY_MS}
    assert at(END_MS, **past).valid_until_ms == END_MS + DAY_MS
    assert at(END_MS + DAY_MS, **past).valid_until_ms == NEVER_MS
    assert at(END_MS, status="active", trial_end_ms=END_MS + DAY_MS).valid_until_ms == NEVER_MS


def test_a_subscription_that_was_paid_has_its_plan() -> None:
    assert shown(at(NOW_MS)) == ("pro", "active", "full")
    assert at(NOW_MS).valid_until_ms == NEVER_MS


@pytest.mark.parametrize(("plan", "missing"), [(None, None), ("gone", "gone"), ("pro", None)])
def test_a_plan_that_the_file_does_not_have_is_the_default_plan(
    plan: str | None, missing: str | None
) -> None:
    found = at(NOW_MS, plan=plan)
    assert (found.plan.key, found.missing_plan) == ("pro" if plan == "pro" else "free", missing)


def test_a_plan_set_by_hand_stands_until_the_subscriptions_own_changes() -> None:
    state = replace(STATE, plan="top")
    assert effective_plan(state, CATALOG, NOW_MS).plan.key == "top"
    renewed = replace(ACTIVE, start_ms=END_MS, end_ms=END_MS + 30 * DAY_MS, failures=1, status="past_due")
    assert with_subscription(state, renewed).plan == "top"
    assert with_subscription(state, replace(ACTIVE, plan="free")).plan is None
    assert with_subscription(state, replace(ACTIVE, id="sub_2")).plan is None
    assert with_subscription(state, replace(ACTIVE, status="canceled")).plan is None
    assert with_subscription(state, None).plan is None


def test_a_status_set_by_hand_stands_until_the_subscriptions_own_changes() -> None:
    state = replace(STATE, status="unpaid", status_since_ms=NOW_MS)
    assert effective_plan(state, CATALOG, NOW_MS).access == "suspended"
    assert with_subscription(state, replace(ACTIVE, plan="top", seats=4)).status == "unpaid"
    changed = with_subscription(state, replace(ACTIVE, status="past_due"))
    assert (changed.status, changed.status_since_ms) == (None, 0)


def test_failures_count_since_it_was_paid_last() -> None:
    owing = replace(ACTIVE, status="past_due", failures=3, failed_at_ms=NOW_MS)
    known = replace(STATE, subscription=owing)
    next_draft = replace(owing, failures=0, failed_at_ms=0, start_ms=END_MS, end_ms=END_MS + 30 * DAY_MS)
    for found in (next_draft, replace(next_draft, failures=1, failed_at_ms=END_MS)):
        kept = with_subscription(known, found).subscription
        assert kept == replace(found, failures=3, failed_at_ms=NOW_MS)
    given_up = with_subscription(known, replace(next_draft, status="unpaid"))
    assert with_subscription(given_up, next_draft).subscription == replace(
        next_draft, failures=3, failed_at_ms=NOW_MS
    )
    paid = with_subscription(known, replace(ACTIVE, start_ms=END_MS, end_ms=END_MS + 30 * DAY_MS))
    fails_again = replace(next_draft, failures=1, failed_at_ms=END_MS + DAY_MS)
    assert with_subscription(paid, fails_again).subscription == fails_again
    another = replace(fails_again, id="sub_2")
    assert with_subscription(known, another).subscription == another


def test_a_plan_set_by_hand_after_the_end_of_a_subscription_stands() -> None:
    ended = with_subscription(replace(STATE, plan="top"), replace(ACTIVE, status="canceled"))
    assert effective_plan(ended, CATALOG, NOW_MS).plan.key == "free"
    assert effective_plan(replace(ended, plan="top"), CATALOG, NOW_MS).plan.key == "top"
    assert effective_plan(replace(ended, plan="top", status="canceled"), CATALOG, NOW_MS).plan.key == "free"


def test_a_cancellation_by_the_clock_ends_a_plan_set_by_hand_before_it() -> None:
    assert at(END_MS, cancel_at_ms=END_MS, by_hand={"plan": "top"}).plan.key == "free"


def test_what_is_fetched_again_changes_nothing() -> None:
    state = replace(STATE, plan="top", status="unpaid", status_since_ms=NOW_MS)
    assert with_subscription(state, ACTIVE) == state
    assert with_subscription(CustomerState(plan="pro"), None) == CustomerState(plan="pro")


def test_the_first_subscription_counts_whatever_was_set_by_hand() -> None:
    state = CustomerState(plan="top", status="unpaid", status_since_ms=NOW_MS)
    assert with_subscription(state, ACTIVE) == CustomerState(subscription=ACTIVE)


@pytest.mark.parametrize(
    ("changed", "by_hand", "included"),
    [
        pytest.param({}, {}, 10, id="no seat price"),
        pytest.param({"seats": 25}, {}, 25, id="more than the base price covers"),
        pytest.param({"seats": 4}, {}, 10, id="fewer"),
        pytest.param({"seats": 25, "plan": "top"}, {}, None, id="a plan without a limit"),
        pytest.param({"seats": 25}, {"plan": "free"}, 25, id="a plan set by hand"),
        pytest.param({"seats": 25}, {"overrides": {"seats": {"included": 40}}}, 40, id="a larger override"),
        pytest.param({"seats": 25}, {"overrides": {"seats": {"included": 7}}}, 25, id="a smaller override"),
        pytest.param({"seats": 25, "status": "paused"}, {}, 3, id="restricted to the default plan"),
        pytest.param({"seats": 25, "status": "canceled"}, {}, 3, id="ended"),
    ],
)
def test_the_gauge_of_seats_may_grow_to_the_seats_that_are_paid_for(
    changed: dict[str, Any], by_hand: dict[str, Any], included: int | None
) -> None:
    state = replace(STATE, subscription=replace(ACTIVE, **changed), **by_hand)
    found = entitlements_of(effective_plan(state, CATALOG, NOW_MS), CATALOG)
    assert found["seats"].included == included


def test_scheduled_seats_bind_at_their_time() -> None:
    changed: dict[str, Any] = {"seats": 25, "pending_seats": 12, "pending_at_ms": END_MS}
    assert (at(END_MS - 1, **changed).seats, at(END_MS, **changed).seats) == (25, 12)
    assert at(END_MS, **changed).plan.key == "pro"


WHOLE: Final = SubscriptionState(
    id="sub_1",
    status="trialing",
    plan=None,
    seats=12,
    start_ms=1,
    end_ms=2,
    anchor_ms=3,
    cancel_at_ms=4,
    cancel_at_period_end=True,
    trial_end_ms=5,
    trial_end_action="pause",
    pending_plan="pro",
    pending_at_ms=6,
    pending_seats=7,
    failures=8,
    failed_at_ms=9,
    ended_at_ms=10,
    created_ms=11,
)


@pytest.mark.parametrize("subscription", [ACTIVE, WHOLE])
def test_a_subscription_survives_storage(subscription: SubscriptionState) -> None:
    state = replace(STATE, subscription=subscription)
    assert state == CustomerState.parse(state.dump())


def test_only_what_is_no_default_is_stored_and_a_newer_field_is_passed_over() -> None:
    data = json.loads(STATE.dump())
    assert set(data["subscription"]) == {"id", "status", "plan", "start_ms", "end_ms", "anchor_ms"}
    data["subscription"]["mood"] = "bright"
    assert CustomerState.parse(json.dumps(data)) == STATE


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, NEVER_MS),
        ({"cancel_at_ms": END_MS}, END_MS),
        ({"trial_end_ms": END_MS, "trial_end_action": "cancel"}, NEVER_MS),  # The trial is over.
        ({"status": "trialing", "trial_end_ms": END_MS}, NEVER_MS),
        ({"status": "trialing", "trial_end_ms": END_MS, "trial_end_action": "cancel"}, END_MS),
        (
            {"status": "trialing", "trial_end_ms": END_MS, "trial_end_action": "cancel"}
            | {"cancel_at_ms": END_MS + 1},
            END_MS,
        ),
        (
            {"status": "trialing", "trial_end_ms": END_MS, "trial_end_action": "cancel"}
            | {"cancel_at_ms": END_MS - 1},
            END_MS - 1,
        ),
        ({"status": "canceled", "ended_at_ms": NOW_MS, "cancel_at_ms": END_MS}, NOW_MS),
        ({"status": "canceled", "cancel_at_ms": NOW_MS}, NOW_MS),
        ({"status": "canceled"}, END_MS),
    ],
)
def test_when_a_subscription_ends_by_what_is_known(changed: dict[str, Any], expected: int) -> None:
    assert replace(ACTIVE, **changed).ends_ms() == expected


@pytest.mark.parametrize(
    ("changed", "unpaid"),
    [
        ({}, False),
        ({"void_from_ms": NOW_MS}, True),
        ({"void_from_ms": NOW_MS + 1}, False),
        ({"void_from_ms": NOW_MS - 9, "void_until_ms": NOW_MS}, False),
        ({"void_from_ms": NOW_MS - 9, "void_until_ms": NOW_MS + 1}, True),
        # What never began, or has ended, has no period that is paid for.
        ({"void_from_ms": NOW_MS, "never_began": True}, False),
        ({"void_from_ms": NOW_MS, "status": "incomplete"}, False),
        ({"void_from_ms": NOW_MS, "status": "canceled", "ended_at_ms": NOW_MS}, False),
    ],
)
def test_while_collection_is_paused_nothing_is_paid_for(changed: dict[str, Any], unpaid: bool) -> None:
    assert replace(ACTIVE, **changed).is_unpaid_at(NOW_MS) is unpaid


PRICED: Final = replace(ACTIVE, metered="mtr_1=price_1 mtr_2=price_2", mark="first")


@pytest.mark.parametrize(
    ("known", "found", "meters"),
    [
        ({}, {}, set[str]()),
        ({}, {"metered": "mtr_1=price_1 mtr_2=price_9"}, {"mtr_2"}),
        ({}, {"metered": "mtr_1=price_1"}, {"mtr_2"}),
        ({}, {"metered": ""}, {"mtr_1", "mtr_2"}),
        ({"metered": ""}, {}, set[str]()),
        ({}, {"metered": "", "id": "sub_2"}, set[str]()),
        ({}, {"metered": "", "mark": "second"}, set[str]()),
        ({}, {"metered": "", "status": "canceled"}, set[str]()),
        ({"pending_plan": "top", "pending_at_ms": NOW_MS}, {"metered": ""}, set[str]()),
        ({"pending_plan": "top", "pending_at_ms": NOW_MS + 1}, {"metered": ""}, {"mtr_1", "mtr_2"}),
    ],
)
def test_prices_that_others_have_changed_are_known_by_what_nobody_here_asked_for(
    known: dict[str, Any], found: dict[str, Any], meters: set[str]
) -> None:
    assert switched_by_others(replace(PRICED, **known), replace(PRICED, **found), NOW_MS) == meters


def test_of_no_subscription_no_prices_have_changed() -> None:
    assert switched_by_others(None, PRICED, NOW_MS) == frozenset()
    assert switched_by_others(PRICED, None, NOW_MS) == frozenset()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 2900),
        ({"status": "past_due"}, 2900),
        ({"status": "trialing", "trial_end_ms": NOW_MS + 1}, 0),
        ({"status": "trialing", "trial_end_ms": NOW_MS}, 2900),
        ({"status": "unpaid"}, 0),
        ({"status": "incomplete"}, 0),
        ({"never_began": True}, 0),
        ({"cancel_at_ms": NOW_MS}, 0),
    ],
)
def test_only_a_subscription_that_is_paid_for_brings_something(
    changed: dict[str, Any], expected: int
) -> None:
    sold = replace(ACTIVE, mrr=2900, currency="usd", **changed)
    assert sold.mrr_at(NOW_MS) == expected
    state = replace(STATE, subscription=sold)
    force = InForce.of(state, CATALOG, NOW_MS)
    assert (force.mrr, force.currency) == ((expected, "usd") if expected else (0, ""))


@pytest.mark.parametrize("next_label", ["1/5", "1/3"])
def test_prices_of_an_earlier_subscription_are_known_for_its_time(next_label: str) -> None:
    # The plans file may have another price by now; its periods are closed and compared after its end.
    first_prices, next_prices = ((ItemPrice("words", "api_words", label),) for label in ("1/3", next_label))
    first = replace(ACTIVE, created_ms=NOW_MS, metered="mtr_1=price_1", prices=first_prices)
    ended = replace(first, status="canceled", ended_at_ms=NOW_MS + DAY_MS)
    began_ms = NOW_MS + 3 * DAY_MS
    after = replace(ACTIVE, id="sub_2", created_ms=began_ms, metered="mtr_1=price_2", prices=next_prices)
    known = SubscriptionState.of(add_former_prices(ended, after, began_ms + DAY_MS).kept())
    assert known.prices_at(NOW_MS - 1) == ()
    assert known.prices_at(NOW_MS + DAY_MS - 1) == first_prices
    assert known.prices_at(NOW_MS + 2 * DAY_MS) == ()
    assert known.prices_at(began_ms) == next_prices
    # A change of the second one's own price is kept beside it.
    again = replace(after, metered="mtr_1=price_3", prices=())
    changed = add_former_prices(known, again, began_ms + 2 * DAY_MS)
    assert changed.prices_at(NOW_MS) == first_prices
    assert changed.prices_at(NOW_MS + 2 * DAY_MS) == ()
    assert changed.prices_at(began_ms + DAY_MS) == next_prices
