"""Access, plans and reminders of a customer, by its state and the clock: pure tables."""

# Internals: pure tables of states and instants.

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any, Final, get_args

import pytest

from meterkit.catalog import Catalog, loads
from meterkit.catalog.models import Bought
from meterkit.decisions.customer_overrides import with_overrides
from meterkit.decisions.customer_state import (
    CustomerState,
    EffectivePlan,
    bounds_of,
    effective_plan,
    entitlements_of,
    refusal_for_feature,
    with_learned_prices,
    with_subscription,
)
from meterkit.decisions.gauges import GaugeLimit, StoredLevel, add_gauge_terms, presigned_bytes_at
from meterkit.decisions.item_prices import ItemPrice, ItemPrices
from meterkit.decisions.keys import meter_field
from meterkit.decisions.periods import bounds_at, to_ms
from meterkit.decisions.subscription import (
    NEVER_MS,
    Access,
    Status,
    SubscriptionState,
    meters_switched_by_others,
)
from meterkit.decisions.subscription_periods import CountingCycle
from meterkit.decisions.told_terms import with_former_starts
from meterkit.decisions.transitions import (
    BY_CLOCK,
    BY_PLANS_FILE,
    TermsInForce,
    Transition,
    addons_text,
    find_transitions,
    manual_entries,
    notices_of,
    parse_addons,
    parse_mrr,
    reminders_of,
    transition_entries,
)
from meterkit.terms.rows import PLAN_BY_HAND, PRICES, PRICES_BY_HAND, Row

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
    status: Status | None,
    after_ms: int = 0,
    *,
    plan: str | None = "pro",
    anchor_ms: int | None = None,
    catalog: Catalog = CATALOG,
) -> EffectivePlan:
    state = CustomerState(plan=plan, status=status, status_since_ms=FAILED_MS, anchor_ms=anchor_ms)
    return effective_plan(state, catalog, FAILED_MS + after_ms)


def test_what_a_status_comes_to() -> None:
    cases: tuple[tuple[Status, int, tuple[str, str, int]], ...] = (
        ("past_due", 0, ("pro", "grace", FAILED_MS + 2 * DAY_MS)),
        ("past_due", 2 * DAY_MS, ("lapsed", "restricted", FAILED_MS + 5 * DAY_MS)),
        ("past_due", 5 * DAY_MS, ("pro", "suspended", NEVER_MS)),
        ("paused", 0, ("lapsed", "restricted", NEVER_MS)),
        ("incomplete", 0, ("pro", "full", NEVER_MS)),  # F-22g: it is nothing but an unpaid sign-up.
        ("incomplete_expired", 0, ("free", "full", NEVER_MS)),
    )
    for status, after_ms, expected in cases:
        found = standing(status, after_ms)
        assert (found.plan.key, found.access, found.valid_until_ms) == expected, (status, after_ms)


def test_a_suspension_ends_grace_where_grace_would_last_longer() -> None:
    # The loader refuses this; a catalog made by hand need not.
    catalog = replace(CATALOG, dunning=replace(CATALOG.dunning, grace_ms=9 * DAY_MS, suspend_after_ms=DAY_MS))
    found = [standing("past_due", after_ms, catalog=catalog).access for after_ms in (0, DAY_MS - 1, DAY_MS)]
    assert found == ["grace", "grace", "suspended"]


def test_a_missing_plan_is_the_default_plan() -> None:
    assert [standing(None, plan=plan).plan.key for plan in (None, "removed")] == ["free", "free"]


def test_periods_go_by_the_span_that_included_is_per() -> None:
    anchor_ms = FAILED_MS - 45 * DAY_MS
    by_month, by_year = (bounds_at(FAILED_MS, anchor_ms=anchor_ms, interval=per) for per in ("month", "year"))
    expected = {"pro": by_month, "yearly": by_year, "monthly_counts": by_month}
    assert {key: standing("active", plan=key, anchor_ms=anchor_ms).bounds for key in expected} == expected


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
  free:
    price: {amount_cents: 0, interval: month}
    features: [chat]
    meters: {seats: {included: 3, overage: deny}}
  pro:
    price: {amount_cents: 2900, interval: month}
    features: [chat, export]
    meters: {seats: {included: 10, overage: deny}}
  top: {price: {amount_cents: 9900, interval: month}, meters: {seats: {included: unlimited}}}
  yearly: {price: {amount_cents: 29000, interval: year, included_per: interval}}
dunning: {grace: 2d, restrict_to: free, suspend_after: 5d}
"""
SHOP: Final = loads(SOLD)
NOW_MS: Final = FAILED_MS
END_MS: Final = NOW_MS + 10 * DAY_MS
ACTIVE: Final = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=3,
    start_ms=END_MS - 30 * DAY_MS,
    end_ms=END_MS,
    anchor_ms=END_MS,
)
STATE: Final = CustomerState(stripe_customer="cus_1", subscription=ACTIVE)


def of_the_shop(state: CustomerState, after_ms: int = 0) -> EffectivePlan:
    return effective_plan(state, SHOP, FAILED_MS + after_ms)


def test_a_customers_features_are_added_and_removed() -> None:
    for own, expected in (
        ({"support": True}, {"chat", "export", "support"}),
        ({"export": False}, {"chat"}),
        ({"removed_from_the_file": True}, {"chat", "export"}),
    ):
        overrides = with_overrides({}, {}, own, until_ms=None, now_ms=FAILED_MS)
        assert of_the_shop(CustomerState(plan="pro", overrides=overrides)).plan.features == expected


def test_seats_are_those_of_a_subscription_that_is_paid_for() -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=FAILED_MS)
    sold = [ACTIVE, owing, replace(ACTIVE, status="incomplete"), replace(ACTIVE, status="paused")]
    assert [of_the_shop(CustomerState(subscription=one)).seats for one in sold] == [3, 3, 0, 0]
    by_hand: tuple[Status, ...] = ("active", "incomplete", "canceled")
    for state in (
        CustomerState(plan="pro"),
        # Of a sign-up that is not paid for, nothing counts, whatever is set by hand.
        *(CustomerState(status=one, subscription=replace(ACTIVE, status="incomplete")) for one in by_hand),
        *(CustomerState(status=one, subscription=ACTIVE) for one in by_hand[1:]),
    ):
        assert of_the_shop(state).seats == 0, state
    more = of_the_shop(CustomerState(subscription=replace(ACTIVE, seats=25)))
    assert entitlements_of(more, SHOP)["seats"].included == 25


def test_gauges_keep_limits_unless_access_is_restricted() -> None:
    blocking = loads(SOLD.replace("over_limit: allow", "over_limit: block_growth"))
    restricted = (
        standing("paused", catalog=SHOP).keeps_limits,
        standing("active", catalog=blocking).keeps_limits,
    )
    assert (standing("past_due", catalog=SHOP).keeps_limits, *restricted) == (True, False, False)


def test_a_voided_invoice_restricts_unless_set_by_hand() -> None:
    state = CustomerState(subscription=replace(ACTIVE, void_from_ms=FAILED_MS))
    by_hand = replace(state, status="active")
    found = [of_the_shop(one, after_ms).access for one in (state, by_hand) for after_ms in (-1, 0)]
    assert found == ["full", "restricted", "full", "full"]


def test_periods_go_by_the_subscriptions_plan_while_it_lasts() -> None:
    year = replace(ACTIVE, plan="yearly", end_ms=ACTIVE.start_ms + 365 * DAY_MS)
    for subscription, per in ((year, "year"), (replace(year, status="incomplete"), "month")):
        assert of_the_shop(CustomerState(plan="pro", subscription=subscription)).counting.per == per
    # The plans file has it by the year by now; this customer still pays by the month.
    older = replace(year, base_price="2900 usd month")
    trial = replace(older, status="trialing", trial_end_ms=END_MS)  # Nothing is paid yet.
    for subscription, per in ((older, "month"), (trial, "year")):
        assert of_the_shop(CustomerState(subscription=subscription)).counting.per == per


def test_a_scheduled_plan_of_another_interval_restarts_periods() -> None:
    at_ms = FAILED_MS + DAY_MS
    for pending, anew_ms in (("yearly", at_ms), ("free", None)):
        subscription = replace(ACTIVE, pending_plan=pending, pending_at_ms=at_ms)
        assert of_the_shop(CustomerState(subscription=subscription)).counting.anew_ms == anew_ms


BY_HAND: Final = CustomerState(plan="yearly", status="past_due", status_since_ms=FAILED_MS)
SIGNED_UP: Final = replace(ACTIVE, id="sub_2", status="incomplete")


def test_settings_by_hand_stand_until_the_subscription_changes() -> None:
    for known, fetched, kept in (
        # Nothing changes what was set by hand where there is no subscription, or one not paid for yet.
        (None, SIGNED_UP, ("yearly", "past_due", FAILED_MS)),
        (replace(ACTIVE, status="canceled"), SIGNED_UP, ("yearly", "past_due", FAILED_MS)),
        # One that begins, another one, and none any more do.
        (None, ACTIVE, (None, None, 0)),
        (ACTIVE, replace(ACTIVE, id="sub_3"), (None, None, 0)),
        (ACTIVE, None, (None, None, 0)),
        # Of the same one only what is other than before.
        (ACTIVE, replace(ACTIVE, plan="free"), (None, "past_due", FAILED_MS)),
        (ACTIVE, replace(ACTIVE, status="unpaid"), ("yearly", None, 0)),
        (ACTIVE, replace(ACTIVE, status="canceled"), (None, None, 0)),
        # An entry that was set after its end stays.
        *[(replace(ACTIVE, status="canceled"),) * 2 + (("yearly", "past_due", FAILED_MS),)],
    ):
        found = with_subscription(replace(BY_HAND, subscription=known), fetched)
        assert (found.plan, found.status, found.status_since_ms) == kept, (known, fetched)
        assert found.subscription == fetched
    by_hand = of_the_shop(replace(BY_HAND, subscription=ACTIVE))
    assert (by_hand.plan.key, by_hand.access) == ("yearly", "grace")
    ended = replace(STATE, plan="top", subscription=replace(ACTIVE, cancel_at_ms=END_MS))
    assert [effective_plan(ended, SHOP, at_ms).plan.key for at_ms in (NOW_MS, END_MS)] == ["top", "free"]


def test_a_state_refuses_suspension_and_missing_features() -> None:
    fine, unpaid = standing("active", catalog=SHOP), standing("unpaid", catalog=SHOP)
    assert refusal_for_feature("ada", fine, None) is None
    for effective, reason in ((fine, "feature"), (unpaid, "suspended")):
        found = refusal_for_feature("ada", effective, "support")
        assert found is not None
        assert (found.reason, found.customer, found.plan, found.allowed) == (reason, "ada", "pro", False)


def test_a_subscription_is_stored_without_its_defaults() -> None:
    kept = CustomerState(plan="pro", anchor_ms=7, subscription=ACTIVE).dump()
    read = json.loads(kept)
    assert list(read) == sorted(read)
    assert set(read["subscription"]) == {"id", "status", "plan", "seats", "start_ms", "end_ms", "anchor_ms"}
    assert CustomerState.parse(kept).subscription == ACTIVE


def at(now_ms: int, **changed: Any) -> EffectivePlan:
    return effective_plan(replace(STATE, subscription=replace(ACTIVE, **changed)), SHOP, now_ms)


def shown(found: EffectivePlan) -> tuple[str, str | None, str]:
    return found.plan.key, found.status, found.access


TRIAL: Final[dict[str, Any]] = {"status": "trialing", "trial_end_ms": END_MS}


@pytest.mark.parametrize(
    ("changed", "after"),
    [
        pytest.param({"cancel_at_ms": END_MS}, ("free", "canceled", "full"), id="a cancellation"),
        pytest.param(TRIAL, ("pro", "active", "full"), id="a trial that goes on"),
        pytest.param(TRIAL | {"trial_end_action": "cancel"}, ("free", "canceled", "full"), id="that ends it"),
        pytest.param(TRIAL | {"trial_end_action": "pause"}, ("free", "paused", "restricted"), id="pauses it"),
        pytest.param(
            {"pending_plan": "top", "pending_at_ms": END_MS, "cancel_at_ms": END_MS + DAY_MS},
            ("top", "active", "full"),
            id="the earlier of two",
        ),
    ],
)
def test_what_is_scheduled_binds_at_its_millisecond(
    changed: dict[str, Any], after: tuple[str, str, str]
) -> None:
    before = ("pro", changed.get("status", "active"), "full")
    found = at(NOW_MS, **changed)
    assert (shown(found), found.valid_until_ms) == (before, END_MS)
    assert shown(at(END_MS - 1, **changed)) == before
    assert shown(at(END_MS, **changed)) == after


def test_an_older_plans_file_takes_no_addons_away() -> None:
    known = replace(ACTIVE, addons=(("gone", 1), ("pack", 2)), mrr=7)
    read = replace(known, addons=(("pack", 3),))
    for plans, addons, mrr, expected in (
        ({"pro"}, {"pack"}, 7, (("gone", 1), ("pack", 3))),
        ({"pro"}, {"pack", "gone"}, 7, (("pack", 3),)),
        ({"pro"}, {"pack"}, 8, (("pack", 3),)),  # They may have been given up.
        ({"free"}, {"pack"}, 7, known.addons),
    ):
        found = with_subscription(CustomerState(subscription=known), replace(read, mrr=mrr), plans, addons)
        assert found.subscription is not None
        assert found.subscription.addons == expected, (plans, addons, mrr)
    assert SubscriptionState.of(json.loads(json.dumps(known.kept()))) == known


def test_a_currency_outlives_its_subscription() -> None:
    state = with_subscription(CustomerState(), replace(ACTIVE, currency="eur"))
    for found in (replace(ACTIVE, currency=""), replace(ACTIVE, currency="eur", status="canceled"), None):
        state = CustomerState.parse(with_subscription(state, found).dump())
        assert state.currency == "eur"
    assert with_subscription(state, replace(ACTIVE, currency="jpy")).currency == "jpy"


def test_when_a_subscription_ends_by_what_is_known() -> None:
    cases: tuple[tuple[dict[str, Any], int], ...] = (
        ({"cancel_at_ms": END_MS}, END_MS),
        (TRIAL | {"trial_end_action": "cancel", "cancel_at_ms": END_MS + 1}, END_MS),
        (TRIAL | {"trial_end_action": "cancel", "cancel_at_ms": END_MS - 1}, END_MS - 1),
        ({"status": "canceled", "ended_at_ms": NOW_MS, "cancel_at_ms": END_MS}, NOW_MS),
        ({"status": "canceled"}, END_MS),
    )
    assert [replace(ACTIVE, **changed).ends_ms() for changed, _ in cases] == [ends_ms for _, ends_ms in cases]


PRICED: Final = replace(ACTIVE, metered="mtr_1=price_1 mtr_2=price_2", mark="first")


def test_prices_changed_by_others_are_known_as_unrequested() -> None:
    def switched(known: SubscriptionState, **changed: Any) -> frozenset[str]:
        return meters_switched_by_others(known, replace(known, **changed), NOW_MS)

    assert switched(PRICED, metered="mtr_1=price_1 mtr_2=price_9") == {"mtr_2"}
    assert switched(PRICED, metered="mtr_1=price_1") == {"mtr_2"}
    assert switched(PRICED, metered="", mark="second") == frozenset()
    due = replace(PRICED, pending_plan="top", pending_at_ms=NOW_MS)
    assert switched(due, metered="") == frozenset()
    assert switched(replace(due, pending_at_ms=NOW_MS + 1), metered="") == {"mtr_1", "mtr_2"}


A_PRICE, OTHER_PRICE = ((ItemPrice("words", "api_words", label),) for label in ("1/3", "1/5"))
SOLD_MS: Final = NOW_MS - 9 * DAY_MS
SELLING: Final = replace(ACTIVE, created_ms=SOLD_MS, metered="mtr_1=price_1", prices=A_PRICE)


@pytest.mark.parametrize(
    ("known", "new", "is_learnt"),
    [
        pytest.param({}, {}, True, id="of the same items"),
        pytest.param({}, {"metered": "mtr_1=price_2"}, False, id="of other items"),
        pytest.param({"metered": ""}, {"metered": ""}, False, id="of none"),
        pytest.param({}, {"id": "sub_2"}, False, id="of another subscription"),
    ],
)
def test_prices_that_a_later_reading_tells_are_learnt(
    known: dict[str, Any], new: dict[str, Any], is_learnt: bool
) -> None:
    before = replace(STATE, plan="top", subscription=replace(SELLING, **known))
    after = replace(STATE, subscription=replace(SELLING, prices=OTHER_PRICE, seats=9, **new))
    learnt = replace(before, subscription=replace(SELLING, prices=OTHER_PRICE))
    assert with_learned_prices(before, after) == (learnt if is_learnt else before)
    rows = [(Row(SOLD_MS, SOLD_MS, "stripe", ((PRICES, of),)),) for of in (A_PRICE, OTHER_PRICE)]
    found = with_learned_prices(replace(before, terms=rows[0]), after)
    assert found.terms == rows[is_learnt]
    assert with_learned_prices(before, CustomerState()) == before


def told_by_hand(prices: ItemPrices, subscription: SubscriptionState | None) -> CustomerState:
    """A customer with a plan that is set by hand now, at some prices."""
    row = Row(NOW_MS, NOW_MS, "operator", ((PLAN_BY_HAND, "top"), (PRICES_BY_HAND, prices)))
    return CustomerState(plan="top", subscription=subscription, terms=(row,))


def test_a_plan_set_by_hand_has_prices_that_items_lack() -> None:
    calls, words = ItemPrice("calls", "api_calls", "1/9"), ItemPrice("words", "api_words", "1/7")
    dropped = ItemPrice("words", "api_words", "1/2", is_dropped=True)
    for sold, by_hand, plan, expected in (
        (A_PRICE, (words, calls), "top", (*A_PRICE, calls)),
        (A_PRICE, (words, calls), "pro", A_PRICE),
        ((dropped,), (words,), "top", (dropped, words)),
        (A_PRICE, (), "top", A_PRICE),
    ):
        of = told_by_hand(by_hand, replace(SELLING, prices=sold))
        assert of.prices_on(plan, NOW_MS) == expected
    alone = told_by_hand(A_PRICE, None)
    assert [alone.prices_on(plan, NOW_MS) for plan in ("top", "pro")] == [A_PRICE, ()]
    assert alone.prices_on("top", NOW_MS - 1) == ()


def of_day(year: int, month: int, day: int) -> int:
    return to_ms(datetime(year, month, day, tzinfo=UTC))


MONTHLY: Final = CountingCycle(per="month")
LEFT: Final = replace(
    ACTIVE,
    start_ms=of_day(2031, 3, 10),
    end_ms=of_day(2031, 4, 10),
    anchor_ms=of_day(2031, 1, 10),
    created_ms=of_day(2031, 1, 10),
)
EACH_PERIOD: Final = tuple(of_day(2031, month, 10) for month in (1, 2, 3))


@pytest.mark.parametrize(
    ("known", "earlier", "follower", "expected"),
    [
        pytest.param({}, (), "sub_2", EACH_PERIOD, id="another one follows"),
        pytest.param({}, (), None, EACH_PERIOD, id="none follows"),
        pytest.param(
            {},
            (of_day(2030, 12, 3), EACH_PERIOD[0]),
            "sub_2",
            (of_day(2030, 12, 3), *EACH_PERIOD),
            id="those of the one before stay",
        ),
        pytest.param({}, (7,), "sub_1", (7,), id="the same one goes on"),
        pytest.param({"status": "incomplete"}, (7,), "sub_2", (7,), id="it was never paid for"),
        pytest.param(
            {"created_ms": of_day(2028, 1, 10)},
            (7,),
            "sub_2",
            tuple(of_day(2029 + month // 12, month % 12 + 1, 10) for month in range(2, 27)),
            id="of many the last 25",
        ),
    ],
)
def test_periods_of_a_subscription_outlive_it(
    known: dict[str, Any], earlier: tuple[int, ...], follower: str | None, expected: tuple[int, ...]
) -> None:
    before = CustomerState(subscription=replace(LEFT, **known), former_starts_ms=earlier)
    next_one = None if follower is None else replace(LEFT, id=follower)
    found = with_former_starts(before, replace(before, subscription=next_one), MONTHLY, of_day(2031, 3, 20))
    assert found == replace(before, subscription=next_one, former_starts_ms=expected)


def test_a_backdated_subscription_has_its_first_instant() -> None:
    state = CustomerState(subscription=LEFT, former_starts_ms=(of_day(2030, 12, 3), of_day(2031, 1, 20)))
    found = bounds_of(state, MONTHLY, LEFT.created_ms)
    assert (found.start_ms, found.end_ms) == EACH_PERIOD[:2]


def test_a_trial_without_its_payment_method_ends_its_period() -> None:
    ends_ms, april_ms, may_ms = of_day(2031, 3, 20), of_day(2031, 4, 1), of_day(2031, 5, 1)
    begun_ms = of_day(2031, 3, 6)
    trial = replace(LEFT, status="trialing", trial_end_ms=ends_ms, awaits_payment_method=True)
    of = CustomerState(
        subscription=replace(trial, start_ms=begun_ms, end_ms=ends_ms, created_ms=begun_ms, anchor_ms=ends_ms)
    )
    for at_ms, start_ms, end_ms in (
        (ends_ms - 1, begun_ms, ends_ms),
        (ends_ms, ends_ms, april_ms),
        (april_ms - 1, ends_ms, april_ms),
        (april_ms, april_ms, may_ms),
    ):
        found = bounds_of(of, MONTHLY, at_ms)
        assert (found.start_ms, found.end_ms) == (start_ms, end_ms), at_ms


# What the clock and the plans file change of a customer, and what handlers and the ledger say of it.


SPANS: Final[dict[str, Any]] = {"grace_ms": 7 * DAY_MS, "suspend_after_ms": 14 * DAY_MS, "attempts": None}
IN_FORCE_CATALOG: Final = replace(
    SHOP, dunning=replace(SHOP.dunning, remind_ms=(DAY_MS, 6 * DAY_MS), **SPANS)
)


def state(**changed: Any) -> CustomerState:
    return CustomerState(subscription=replace(ACTIVE, **changed))


def in_force(of: CustomerState, at_ms: int = NOW_MS, before: TermsInForce | None = None) -> TermsInForce:
    return TermsInForce.of(of, IN_FORCE_CATALOG, at_ms, before)


def test_what_is_scheduled_is_shown_while_it_is_ahead() -> None:
    base = TermsInForce(plan="pro", status="active", seats=3, subscription="sub_1", at_ms=NOW_MS)
    ahead: dict[str, Any] = {"pending_plan": "top", "pending_seats": 5, "pending_at_ms": END_MS}
    assert in_force(state(**ahead)) == replace(base, **ahead)
    # It has come by now.
    assert in_force(state(**ahead | {"pending_at_ms": NOW_MS})) == replace(base, plan="top", seats=5)


def test_access_that_stays_as_it_was_keeps_its_beginning() -> None:
    first = in_force(state())
    assert first.since_ms == 0
    later = in_force(state(plan="top"), NOW_MS + 1, replace(first, since_ms=7))
    assert later.since_ms == 7
    paused = in_force(state(status="paused"), NOW_MS + 2, later)
    assert (paused.access, paused.since_ms) == ("restricted", NOW_MS + 2)


def test_reminders_count_from_the_first_failure() -> None:
    owing = state(status="past_due", failed_at_ms=NOW_MS)
    found = [in_force(owing, NOW_MS + days * DAY_MS) for days in (0, 1, 6)]
    assert [(one.reminded, (one.turn_ms - NOW_MS) // DAY_MS) for one in found] == [(0, 1), (1, 6), (2, 7)]
    assert in_force(replace(owing, status="active"), NOW_MS + 2 * DAY_MS).reminded == 0


def test_what_is_in_force_survives_storage() -> None:
    for one in (in_force(CustomerState()), in_force(state(cancel_at_ms=END_MS))):
        kept = TermsInForce.parse(one.dump())
        assert kept == one
        assert kept is not None
        assert (kept.at_ms, kept.since_ms, kept.turn_ms) == (one.at_ms, one.since_ms, one.turn_ms)
        assert list(json.loads(one.dump())) == sorted(json.loads(one.dump()))
    assert TermsInForce.parse("") is None
    assert '"seats"' not in in_force(CustomerState()).dump()
    assert TermsInForce.parse('{"plan":"pro","at_ms":5,"newer":1}') == TermsInForce(plan="pro", at_ms=5)


def test_the_clock_changes_things_each_at_its_instant() -> None:
    owing = state(status="past_due", failed_at_ms=NOW_MS)
    known = in_force(owing)
    steps, now = find_transitions(known, owing, IN_FORCE_CATALOG, NOW_MS + 14 * DAY_MS)
    found = [
        ((after.at_ms - NOW_MS) // DAY_MS, after.access, after.reminded)
        for after in (step.after for step in steps)
    ]
    assert found == [(1, "grace", 1), (6, "grace", 2), (7, "restricted", 2), (14, "suspended", 2)]
    assert {step.cause for step in steps} == {BY_CLOCK}
    assert [step.before for step in steps] == [known, *(step.after for step in steps[:-1])]
    assert (now, now.turn_ms) == (steps[-1].after, NEVER_MS)
    early, _ = find_transitions(known, owing, IN_FORCE_CATALOG, NOW_MS + 14 * DAY_MS - 1)
    assert list(early) == list(steps[:-1])


def test_a_turn_that_changes_nothing_to_be_told_is_no_step() -> None:
    unpaid = replace(state(void_from_ms=NOW_MS + 5), status="active")
    known = in_force(unpaid)
    assert known.turn_ms == NOW_MS + 5
    steps, now = find_transitions(known, unpaid, IN_FORCE_CATALOG, NOW_MS + 5)
    assert (list(steps), now.at_ms, now.turn_ms) == ([], NOW_MS + 5, NEVER_MS)


BEFORE: Final = TermsInForce(plan="free", at_ms=NOW_MS - 1)
SCHEDULED: Final[dict[str, Any]] = {"pending_plan": "top", "pending_seats": 5, "pending_at_ms": NOW_MS}
AFTER: Final = TermsInForce(
    plan="pro", status="active", seats=3, subscription="sub_1", cancel_at_ms=NOW_MS, at_ms=NOW_MS, **SCHEDULED
)


def test_the_ledger_has_a_line_for_each_thing_that_has_changed() -> None:
    found = list(transition_entries(Transition(BEFORE, AFTER, "webhook")))
    assert [(one.kind, one.before, one.after) for one in found] == [
        ("subscription", "", "sub_1"),
        ("status", "", "active"),
        ("plan", "free", "pro"),
        ("seats", "", "3"),
        ("cancellation", "", "2027-01-15T08:00:00Z"),
        ("scheduled", "", "top with 5 seats from 2027-01-15T08:00:00Z"),
    ]
    assert {(one.at_ms, one.cause) for one in found} == {(NOW_MS, "webhook")}
    assert list(transition_entries(Transition(AFTER, AFTER, "webhook"))) == []
    extras = replace(AFTER, addons=(("pack", 2),), pending_addons=(("pack", 1), ("words", 3)))
    assert TermsInForce.parse(extras.dump()) == extras
    bought, scheduled = transition_entries(Transition(AFTER, extras, "webhook"))
    assert (bought.kind, bought.before, bought.after) == ("addons", "", "2 pack")
    assert scheduled.after == "top with 5 seats and 1 pack, 3 words from 2027-01-15T08:00:00Z"
    same = replace(AFTER, pending_addons=())
    assert list(transition_entries(Transition(AFTER, same, "webhook"))) == []
    assert list(notices_of("ada", Transition(AFTER, same, "webhook"))) == []
    seats = replace(AFTER, pending_plan=None)
    (line,) = transition_entries(Transition(AFTER, seats, "webhook"))
    assert line.after == "5 seats from 2027-01-15T08:00:00Z"


def test_a_notice_says_what_was_and_is_and_its_id_tells_a_repeat() -> None:
    (told,) = notices_of("ada", Transition(BEFORE, AFTER, "webhook"))
    (again,) = notices_of("ada", Transition(BEFORE, AFTER, "webhook"))
    (other,) = notices_of("bob", Transition(BEFORE, AFTER, "webhook"))
    assert told == again
    assert told.data["id"] != other.data["id"]
    names = ("plan", "plan_before", "status", "status_before", "seats")
    assert [told.data[name] for name in names] == ["pro", "free", "active", None, 3]


@pytest.mark.parametrize(("before", "after", "expected"), [(0, 1, DAY_MS), (0, 2, 6 * DAY_MS), (2, 1, None)])
def test_the_last_reminder_that_is_due_is_told_once(before: int, after: int, expected: int | None) -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=NOW_MS, failures=2)
    was = replace(AFTER, status="past_due", access="grace", reminded=before)
    step = Transition(was, replace(was, reminded=after, at_ms=NOW_MS + 2 * DAY_MS), BY_CLOCK)
    found = list(reminders_of("ada", step, owing, IN_FORCE_CATALOG.dunning))
    assert [one.data["after_ms"] for one in found] == ([] if expected is None else [expected])
    for one in found:
        assert (one.kind, one.data["failures"], one.data["failed_at_ms"]) == ("dunning.reminder", 2, NOW_MS)
        assert one.data["until_ms"] == NOW_MS + 7 * DAY_MS
    assert list(reminders_of("ada", step, None, IN_FORCE_CATALOG.dunning)) == []
    # It is named by its failure and span: a repeat at another time is known.
    later = Transition(was, replace(step.after, at_ms=step.after.at_ms + 9), "evt_1")
    repeated = reminders_of("ada", later, owing, IN_FORCE_CATALOG.dunning)
    assert [one.data["id"] for one in repeated] == [one.data["id"] for one in found]


def test_a_notice_is_named_by_what_has_happened() -> None:
    """An id that another release makes otherwise would tell the same twice."""
    before, after = in_force(state()), in_force(state(status="unpaid"))
    changed, access = notices_of("acme", Transition(before, after, "evt_1"))
    assert changed.data["id"] == "01d7d91e1bd91b2dd1427a8a05b7a58b"
    assert access.data["id"] == "6c31d298314864d9faf371b3b1f8bec9"
    (again, _) = notices_of("acme", Transition(before, after, "evt_2"))
    assert again.data["id"] != changed.data["id"]


# What the dunning policy says, written down apart from the code: status, failed attempts (from, to), days
# since the first one (from, to), what the customer may do, and the plan that is in force then.
TABLE: Final[tuple[tuple[str, tuple[int, int], tuple[float, float], Access, str], ...]] = (
    ("active", (0, 9), (-1, 99), "full", "pro"),
    ("trialing", (0, 9), (-1, 99), "full", "pro"),
    ("past_due", (0, 2), (-1, 2), "grace", "pro"),
    ("past_due", (3, 9), (-1, 2), "restricted", "lapsed"),
    ("past_due", (0, 9), (2, 5), "restricted", "lapsed"),
    ("past_due", (0, 9), (5, 99), "suspended", "pro"),
    ("unpaid", (0, 9), (-1, 99), "suspended", "pro"),
    ("paused", (0, 9), (-1, 99), "restricted", "lapsed"),
    ("incomplete", (0, 9), (-1, 99), "full", "free"),
    ("incomplete_expired", (0, 9), (-1, 99), "full", "free"),
    ("canceled", (0, 9), (-1, 99), "full", "free"),
)
DAYS: Final = (-0.5, 0, 1, 2 - 1e-8, 2, 2 + 1e-8, 4, 5 - 1e-8, 5, 5 + 1e-8, 30)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


def written(status: str, failures: int, days: float) -> tuple[Access, str]:
    """What the table says."""
    found: list[tuple[Access, str]] = [
        (access, plan)
        for name, (least, most), (begin, end), access, plan in TABLE
        if name == status and least <= failures <= most and begin <= days < end
    ]
    assert len(found) == 1
    return found[0]


def owing(status: Status, failures: int = 0) -> SubscriptionState:
    return replace(ACTIVE, status=status, failures=failures, failed_at_ms=FAILED_MS)


def test_access_is_what_the_table_says_in_every_case() -> None:
    seen: set[Access] = set()
    for status, failures, days, by_hand in product(STATUSES, range(6), DAYS, (None, *STATUSES)):
        subscription = owing(status, failures)
        state = CustomerState(subscription=subscription, status=by_hand, status_since_ms=FAILED_MS)
        found = effective_plan(state, CATALOG, FAILED_MS + round(days * DAY_MS))
        expected = written(status, failures, days) if by_hand is None else written(by_hand, 1, days)
        if status in {"incomplete", "incomplete_expired"}:  # It gives no plan.
            unpaid: tuple[Access, str] = ("full", "free")
            access, plan = unpaid if by_hand is None else expected
            expected = (access, "free" if plan == "pro" else plan)
        assert (found.access, found.plan.key) == expected, (status, failures, days, by_hand)
        assert found.status == (by_hand or status)
        seen.add(found.access)
    assert seen == set(get_args(Access))


def test_grace_counts_from_the_owed_period_if_no_failure_known() -> None:
    owed = replace(owing("past_due", 1), failed_at_ms=0)
    for before_ms, access in ((1, "grace"), (0, "restricted")):
        at_ms = owed.start_ms + 2 * DAY_MS - before_ms
        assert effective_plan(CustomerState(subscription=owed), CATALOG, at_ms).access == access


def test_the_plans_file_says_how_many_attempts_end_grace() -> None:
    """F-115: daily retries ended seven days of grace on the third day."""
    for attempts, failures, expected in (("null", 9, "grace"), ("5", 4, "grace"), ("5", 5, "restricted")):
        catalog = loads(f"{PLANS.rstrip()[:-1]}, attempts: {attempts}}}")
        state = CustomerState(subscription=owing("past_due", failures))
        at_ms = [FAILED_MS + days * DAY_MS for days in (0, 2, 5)]
        found = [effective_plan(state, catalog, one).access for one in at_ms]
        assert found == [expected, "restricted", "suspended"], (attempts, failures)
    # A status set by hand stands for one failed attempt.
    for attempts, expected in (("1", "restricted"), ("2", "grace")):
        catalog = loads(f"{PLANS.rstrip()[:-1]}, attempts: {attempts}}}")
        assert standing("past_due", catalog=catalog).access == expected


# A subscription by the clock: each of its answers one millisecond before an instant, and at it.


BUNDLE: Final = (("pack", 2),)
TOLD: Final = (ItemPrice("words", "api_words", "1/3"),)
TO_COME: Final = (ItemPrice("words", "api_words", "1/5"),)
AT_END: Final[dict[str, Any]] = {"pending_at_ms": END_MS}
ENDS: Final[dict[str, Any]] = {"cancel_at_ms": END_MS}
UNSAVED: Final[dict[str, Any]] = TRIAL | {"awaits_payment_method": True}
OVER: Final[dict[str, Any]] = {"status": "canceled", "ended_at_ms": NOW_MS}


@pytest.mark.parametrize(
    ("asked", "changed", "expected"),
    [
        pytest.param("status_at", {}, ("active", "active"), id="nothing is scheduled"),
        pytest.param("status_at", ENDS, ("active", "canceled"), id="its cancellation"),
        pytest.param("status_at", ENDS | OVER, ("canceled", "canceled"), id="it has ended before"),
        pytest.param(
            *("status_at", ENDS | {"status": "incomplete_expired"}, ("incomplete_expired",) * 2),
            id="it was never paid for",
        ),
        pytest.param("status_at", TRIAL, ("trialing", "active"), id="its trial ends"),
        pytest.param("status_at", TRIAL | ENDS, ("trialing", "canceled"), id="its trial ends with it"),
        pytest.param("status_at", UNSAVED, ("trialing", "incomplete"), id="its trial ends without a card"),
        pytest.param(
            *("status_at", {"status": "trialing"}, ("trialing", "trialing")), id="a trial without a known end"
        ),
        pytest.param(
            "status_at", TRIAL | {"status": "past_due"}, ("past_due", "past_due"), id="its trial is over"
        ),
        pytest.param("has_begun_at", {}, (True, True), id="it is paid for"),
        pytest.param("has_begun_at", {"status": "incomplete"}, (False, False), id="it is not paid for"),
        pytest.param("has_begun_at", OVER, (True, True), id="it was paid for"),
        pytest.param("has_begun_at", OVER | {"never_began": True}, (False, False), id="it never began"),
        pytest.param("has_begun_at", TRIAL, (True, True), id="a trial goes on"),
        pytest.param("has_begun_at", UNSAVED, (True, False), id="a trial ends without the card it requires"),
        pytest.param(
            "has_begun_at", UNSAVED | {"status": "active"}, (True, True), id="it is paid for without a card"
        ),
        pytest.param("plan_at", AT_END | {"pending_plan": "top"}, ("pro", "top"), id="a scheduled plan"),
        pytest.param("plan_at", {"pending_plan": "top"}, ("pro", "pro"), id="a plan without an instant"),
        pytest.param("plan_at", AT_END | {"pending_seats": 5}, ("pro", "pro"), id="a plan beside seats"),
        pytest.param("seats_at", AT_END | {"pending_seats": 5}, (3, 5), id="scheduled seats"),
        pytest.param("seats_at", AT_END | {"pending_seats": 0}, (3, 0), id="no seats any more"),
        pytest.param("seats_at", AT_END | {"pending_plan": "top"}, (3, 3), id="seats beside a plan"),
        pytest.param("seats_at", {"pending_seats": 5}, (3, 3), id="seats without an instant"),
        pytest.param("seats_at", ENDS, (3, 0), id="seats end with it"),
        pytest.param("addons_at", {"addons": BUNDLE}, (BUNDLE, BUNDLE), id="add-ons"),
        pytest.param(
            *("addons_at", AT_END | {"addons": BUNDLE, "pending_addons": ()}, (BUNDLE, ())),
            id="they are given up",
        ),
        pytest.param("addons_at", AT_END | {"pending_addons": BUNDLE}, ((), BUNDLE), id="the first ones"),
        pytest.param(
            *("addons_at", AT_END | {"addons": BUNDLE, "pending_plan": "top"}, (BUNDLE, BUNDLE)),
            id="add-ons beside a plan",
        ),
        pytest.param("addons_at", {"pending_addons": BUNDLE}, ((), ()), id="add-ons without an instant"),
        pytest.param("addons_at", ENDS | {"addons": BUNDLE}, (BUNDLE, ()), id="they end with it"),
        pytest.param("addons_at", {}, ((), ()), id="no add-ons"),
        pytest.param("interval_at", {}, ("month", "month"), id="by the length of its period"),
        pytest.param(
            "interval_at",
            {"base_price": "1 usd year"},
            ("year", "year"),
            id="by its price, whatever the length",
        ),
        pytest.param("interval_at", AT_END, ("month", None), id="of what is scheduled it is not known"),
        pytest.param("interval_at", TRIAL, (None, None), id="of a trial it is not known"),
        pytest.param("interval_at", {"status": "incomplete"}, (None, None), id="nothing is paid for"),
        pytest.param("mrr_at", ENDS, (7, 0), id="revenue until it ends"),
        pytest.param("mrr_at", TRIAL, (0, 7), id="revenue from the end of a trial on"),
        pytest.param("mrr_at", UNSAVED, (0, 0), id="no revenue without a card"),
        pytest.param("mrr_at", {"status": "past_due"}, (7, 7), id="revenue that is owed"),
        pytest.param("mrr_at", {"status": "unpaid"}, (0, 0), id="none that was given up"),
        pytest.param("mrr_at", OVER | {"never_began": True}, (0, 0), id="none of what never began"),
        pytest.param("is_unpaid_at", {}, (False, False), id="collection is not paused"),
        pytest.param("is_unpaid_at", {"void_from_ms": END_MS}, (False, True), id="collection is paused"),
        pytest.param(
            *("is_unpaid_at", {"void_from_ms": NOW_MS, "void_until_ms": END_MS}, (True, False)),
            id="collection resumes",
        ),
        pytest.param(
            "is_unpaid_at",
            {"void_from_ms": NOW_MS} | ENDS,
            (True, False),
            id="it ends, its collection paused",
        ),
        pytest.param(
            *("is_unpaid_at", {"void_from_ms": NOW_MS, "status": "incomplete"}, (False, False)),
            id="there is nothing to collect yet",
        ),
        pytest.param("prices_at", {"prices": TOLD}, (TOLD, TOLD), id="prices"),
        pytest.param("prices_at", {"prices": TOLD} | ENDS, (TOLD, ()), id="they end with it"),
        pytest.param(
            "prices_at", {"prices": TOLD, "created_ms": END_MS}, ((), TOLD), id="they begin with it"
        ),
        pytest.param("prices_at", {"prices": TOLD, "status": "incomplete"}, ((), ()), id="none before that"),
        pytest.param("prices_at", UNSAVED | {"prices": TOLD}, (TOLD, ()), id="none without a card"),
        pytest.param(
            *("prices_at", AT_END | {"prices": TOLD, "pending_prices": TO_COME}, (TOLD, TO_COME)),
            id="scheduled prices",
        ),
        pytest.param(
            *("prices_at", AT_END | {"prices": TOLD, "pending_seats": 5}, (TOLD, TOLD)),
            id="prices stay where only seats change",
        ),
        pytest.param(
            *("prices_at", AT_END | {"prices": TOLD, "pending_plan": "pro"}, (TOLD, TOLD)),
            id="prices stay where the plan does",
        ),
        pytest.param(
            *("prices_at", AT_END | {"prices": TOLD, "pending_plan": "top"}, (TOLD, ())),
            id="another plan's are not known",
        ),
        pytest.param("next_change_ms", {}, (NEVER_MS, NEVER_MS), id="no change"),
        pytest.param("next_change_ms", TRIAL, (END_MS, NEVER_MS), id="a trial's end changes it"),
        pytest.param(
            "next_change_ms",
            {"trial_end_ms": END_MS},
            (NEVER_MS, NEVER_MS),
            id="but not that of one that is over",
        ),
        pytest.param("next_change_ms", ENDS | AT_END, (END_MS, NEVER_MS), id="two changes at once"),
        pytest.param(
            *("next_change_ms", AT_END | {"cancel_at_ms": END_MS + 9}, (END_MS, END_MS + 9)),
            id="two changes, one by one",
        ),
        pytest.param(
            *("next_change_ms", {"void_from_ms": END_MS, "void_until_ms": END_MS + 9}, (END_MS, END_MS + 9)),
            id="collection is paused and resumes",
        ),
        pytest.param(
            "next_change_ms", OVER | AT_END, (NEVER_MS, NEVER_MS), id="what has ended never changes"
        ),
    ],
)
def test_a_subscription_by_the_clock(
    asked: str, changed: dict[str, Any], expected: tuple[object, object]
) -> None:
    found = replace(ACTIVE, mrr=7, **changed)
    assert tuple(getattr(found, asked)(at_ms) for at_ms in (END_MS - 1, END_MS)) == expected


def test_since_when_a_subscription_is_and_owes() -> None:
    start_ms = ACTIVE.start_ms
    made = [replace(ACTIVE, created_ms=at_ms).made_ms for at_ms in (0, start_ms - 1, start_ms + 1)]
    assert made == [start_ms, start_ms - 1, start_ms]
    assert [replace(ACTIVE, failed_at_ms=at_ms).failed_since_ms() for at_ms in (0, 5)] == [start_ms, 5]
    by_usage = replace(ACTIVE, usage_start_ms=0, usage_end_ms=9)
    assert [one.usage_period for one in (ACTIVE, by_usage)] == [(start_ms, END_MS), (0, 9)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, NEVER_MS, id="it goes on"),
        pytest.param({"status": "canceled", "cancel_at_ms": 5}, 5, id="its end was scheduled"),
        pytest.param({"status": "canceled", "ended_at_ms": 4, "cancel_at_ms": 5}, 4, id="it ended earlier"),
        pytest.param(TRIAL, NEVER_MS, id="after its trial it goes on"),
        pytest.param(TRIAL | {"trial_end_action": "pause"}, NEVER_MS, id="after its trial it is paused"),
        pytest.param(TRIAL | {"trial_end_action": "cancel"}, END_MS, id="it ends with its trial"),
        pytest.param(
            TRIAL | {"trial_end_action": "cancel", "status": "active"}, NEVER_MS, id="its trial is over"
        ),
        pytest.param(
            {"status": "trialing", "trial_end_action": "cancel"}, NEVER_MS, id="its trial has no known end"
        ),
    ],
)
def test_the_end_of_a_subscription(changed: dict[str, Any], expected: int) -> None:
    assert replace(ACTIVE, **changed).ends_ms() == expected


GONE: Final = replace(
    ACTIVE, plan="gone", seats=9, addons=(("more", 1),), metered="m=1", mrr=5, currency="eur"
)
READ: Final = replace(GONE, plan="pro", seats=3, addons=(("pack", 2),))
"""As a plans file without its plan and add-on reads it."""


@pytest.mark.parametrize(
    ("known", "read", "expected"),
    [
        pytest.param(GONE, READ, ("gone", 9, GONE.addons), id="all of a plan that this file lacks"),
        pytest.param(
            GONE, replace(READ, plan=None, mrr=6), ("gone", 9, GONE.addons), id="no plan of this file"
        ),
        pytest.param(
            GONE, replace(READ, metered="m=2"), ("pro", 3, READ.addons), id="its usage's price is new"
        ),
        pytest.param(GONE, replace(READ, mrr=6), ("pro", 3, READ.addons), id="its revenue is another"),
        pytest.param(
            GONE, replace(READ, currency="usd"), ("pro", 3, READ.addons), id="its currency is another"
        ),
        pytest.param(replace(GONE, id="sub_0"), READ, ("pro", 3, READ.addons), id="another subscription"),
        pytest.param(
            replace(GONE, plan="top"), READ, ("pro", 3, (("more", 1), ("pack", 2))), id="an add-on it lacks"
        ),
        pytest.param(
            *(replace(GONE, plan="top"), replace(READ, mrr=6), ("pro", 3, READ.addons)),
            id="an add-on that may be given up",
        ),
        pytest.param(
            *(replace(GONE, plan=None), replace(READ, plan=None), (None, 3, (("more", 1), ("pack", 2)))),
            id="no plan before, either",
        ),
        pytest.param(
            replace(GONE, plan="top", addons=(("pack", 7),)),
            READ,
            ("pro", 3, READ.addons),
            id="all are known",
        ),
    ],
)
def test_an_older_plans_file_reads_a_subscription(
    known: SubscriptionState, read: SubscriptionState, expected: tuple[str | None, int, Bought]
) -> None:
    found = read.with_known_plan(known, {"pro", "top"}, {"pack"})
    assert (found.plan, found.seats, found.addons) == expected


MOMENTS: Final = tuple(field.name for field in fields(SubscriptionState) if field.name.endswith("_ms"))


def test_all_of_a_subscription_survives_storage() -> None:
    prices = (ItemPrice("words", "api_words", "1/3", free=4),)
    given: dict[str, Any] = {name: place for place, name in enumerate(MOMENTS, 1)}
    given |= {name: f"a {name}" for name in ("id", "base_price", "seat_price", "mark", "currency", "metered")}
    given |= {"status": "past_due", "plan": None, "trial_end_action": "pause", "pending_plan": "top"}
    given |= {"cancel_at_period_end": True, "never_began": True, "awaits_payment_method": True}
    given |= {"seats": 2, "covered_seats": 1, "pending_seats": 0, "failures": 1, "mrr": 5, "addons": BUNDLE}
    given |= {"pending_addons": (("more", 1), ("pack", 3)), "addon_prices": (("pack", "2 usd month"),)}
    given |= {"prices": prices, "pending_prices": TO_COME}
    given |= {"by_lines": True}
    full = SubscriptionState(**given)
    stored = json.loads(CustomerState(subscription=full).dump())
    kept = stored["subscription"]
    assert set(kept) == {field.name for field in fields(full)}
    long, short = [["words", "api_words", "1/3", 4]], [["words", "api_words", "1/5"]]
    assert [stored["prices"][kept[name]] for name in ("prices", "pending_prices")] == [long, short]
    kept["of_a_later_release"] = 1
    read = CustomerState.parse(json.dumps(stored)).subscription
    assert read == full
    # A process has one text of it for all customers.
    assert read is not None
    assert read.status is full.status
    # An empty list gives up all add-ons; none at all leaves them as they are.
    for pending in (None, ()):
        one = replace(ACTIVE, pending_addons=pending)
        assert SubscriptionState.of(json.loads(json.dumps(one.kept()))) == one


@pytest.mark.parametrize(
    ("known", "found", "expected"),
    [
        pytest.param({}, {}, set[str](), id="none: the same prices"),
        pytest.param({}, {"metered": "a=1 b=3"}, {"b"}, id="another price"),
        pytest.param({}, {"metered": "a=1"}, {"b"}, id="one that is gone"),
        pytest.param({}, {"metered": "a=1 b=2 c=3"}, {"c"}, id="one that has come"),
        pytest.param({}, {"metered": "a=2 b=1"}, {"a", "b"}, id="two"),
        pytest.param({"metered": ""}, {"metered": "a=1"}, set[str](), id="none where none was known"),
        pytest.param({}, {"id": "sub_2", "metered": ""}, set[str](), id="none of another subscription"),
        pytest.param({}, {"mark": "later", "metered": ""}, set[str](), id="none that meterkit has changed"),
        pytest.param({}, {"status": "canceled", "metered": ""}, set[str](), id="none of what has ended"),
        pytest.param(
            {"pending_plan": "top", "pending_at_ms": NOW_MS},
            {"metered": ""},
            set[str](),
            id="none by schedule",
        ),
        pytest.param(
            {"pending_lines_ms": END_MS},
            {"metered": "", "start_ms": END_MS},
            set[str](),
            id="none by lines now",
        ),
        pytest.param(
            *({"by_lines": True}, {"metered": "", "start_ms": END_MS}, {"a", "b"}),
            id="both where lines billed before",
        ),
    ],
)
def test_metered_prices_that_others_have_changed(
    known: dict[str, Any], found: dict[str, Any], expected: set[str]
) -> None:
    before = (
        replace(ACTIVE, metered="a=1 b=2", **known) if "metered" not in known else replace(ACTIVE, **known)
    )
    assert meters_switched_by_others(before, replace(before, **found), NOW_MS) == expected
    assert meters_switched_by_others(before, None, NOW_MS) == set()
    assert meters_switched_by_others(None, before, NOW_MS) == set()


def test_words_of_the_ledger_are_read_back() -> None:
    bought = (("words", 2), ("backups", 1))
    assert (addons_text(bought), parse_addons("2 words, 1 backups")) == ("2 words, 1 backups", bought)
    assert (addons_text(()), parse_addons("")) == ("", ())
    found = [parse_mrr(text) for text in ("2900 usd pro", "2900 usd", "")]
    assert found == [(2900, "usd", "pro"), (2900, "usd", ""), (0, "", "")]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"mrr": 5, "currency": "usd"}, ("mrr", "5 usd"), id="what it brings"),
        pytest.param({"mrr": 5, "currency": "usd", "paid_plan": "top"}, ("mrr", "5 usd top"), id="paid for"),
        pytest.param(
            {"addons": (("pack", 2),), "pending_addons": ()},
            ("scheduled", "top with 5 seats and no add-ons from 2027-01-15T08:00:00Z"),
            id="none is left",
        ),
    ],
)
def test_a_line_of_the_ledger_says(changed: dict[str, Any], expected: tuple[str, str]) -> None:
    found = list(transition_entries(Transition(AFTER, replace(AFTER, **changed), "webhook")))
    assert (found[-1].kind, found[-1].after) == expected


def test_the_ledger_has_links_and_overrides_set_by_hand() -> None:
    linked = CustomerState(stripe_customer="cus_1", overrides={"b": {"included": 1}, "a": {}})
    found = list(manual_entries(CustomerState(), linked, 5, "app"))
    assert [(one.kind, one.before, one.after, one.at_ms) for one in found] == [
        ("link", "", "cus_1", 5),
        ("overrides", "", '{"a": {}, "b": {"included": 1}}', 5),
    ]
    assert [one.after for one in manual_entries(linked, CustomerState(), 5, "app")] == ["", ""]
    assert list(manual_entries(linked, linked, 5, "app")) == []


def test_another_subscription_is_reminded_from_its_first() -> None:
    owing = replace(ACTIVE, status="past_due", failed_at_ms=NOW_MS, failures=1)
    was = replace(AFTER, subscription="sub_0", status="past_due", reminded=1)
    step = Transition(was, replace(was, subscription="sub_1"), "webhook")
    (told,) = reminders_of("ada", step, owing, IN_FORCE_CATALOG.dunning)
    assert (told.data["after_ms"], len(told.data["id"])) == (DAY_MS, 32)
    same = Transition(was, replace(was, at_ms=NOW_MS + 1), "webhook")
    assert list(reminders_of("ada", same, owing, IN_FORCE_CATALOG.dunning)) == []


@pytest.mark.parametrize("late_ms", [-5, 0, 5])
def test_another_plans_file_changes_all_in_one_step(late_ms: int) -> None:
    known = in_force(state(plan="top"))
    (step,), after = find_transitions(known, state(), IN_FORCE_CATALOG, NOW_MS + late_ms)
    assert (step.before, step.after, step.cause) == (known, after, BY_PLANS_FILE)
    assert (after.plan, after.at_ms) == ("pro", max(NOW_MS, NOW_MS + late_ms))


LIMIT: Final = GaugeLimit(100, 105, 10)


@pytest.mark.parametrize(
    ("limit", "level", "now_ms", "expected"),
    [
        pytest.param(LIMIT, StoredLevel(100, 0, 100), 99, 105, id="not above what is included"),
        pytest.param(LIMIT, StoredLevel(101, 50, 100), 59, 105, id="grace lasts"),
        pytest.param(LIMIT, StoredLevel(101, 50, 100), 60, 100, id="grace ends"),
        pytest.param(LIMIT, StoredLevel(101, 0, 100), 60, 105, id="its instant is not known"),
        pytest.param(LIMIT._replace(keeps=True), StoredLevel(101, 50, 120), 60, 120, id="it keeps its limit"),
        pytest.param(LIMIT._replace(keeps=True), StoredLevel(101, 50, 0), 60, 100, id="it had none included"),
        pytest.param(
            LIMIT._replace(keeps=True), StoredLevel(101, 50, -1), 60, 10**15 - 1, id="was unlimited"
        ),
        pytest.param(LIMIT._replace(keeps=True), StoredLevel(100, 50, -1), 60, 105, id="it fits again"),
    ],
)
def test_the_limit_of_a_gauge(limit: GaugeLimit, level: StoredLevel, now_ms: int, expected: int) -> None:
    assert limit.at(level, now_ms) == expected


SLOT_5_MS: Final = 5 * 300_000
PACKED: Final = b"\xfd"  # The format; behind it small numbers are their own bytes.


@pytest.mark.parametrize(
    ("packed", "now_ms", "held"),
    [
        pytest.param(None, SLOT_5_MS, 0, id="none was ever presigned"),
        pytest.param(PACKED, SLOT_5_MS, 0, id="none is left"),
        pytest.param(PACKED + b"\x06\x0a", SLOT_5_MS, 10, id="one holds from the first instant of its slots"),
        pytest.param(PACKED + b"\x06\x0a", SLOT_5_MS + 299_999, 10, id="to the last"),
        pytest.param(PACKED + b"\x06\x0a", SLOT_5_MS + 300_000, 0, id="and no longer"),
        pytest.param(PACKED + b"\x06\x0a\x07\x14\x09\x03", SLOT_5_MS, 33, id="several add up"),
        pytest.param(PACKED + b"\x06\x0a\x07\x14\x09\x03", SLOT_5_MS + 300_000, 23, id="the first has ended"),
        pytest.param(PACKED + b"\x06", SLOT_5_MS, None, id="a damaged one without a quantity"),
        pytest.param(PACKED + b"\x06\xa1x", SLOT_5_MS, None, id="a damaged quantity"),
    ],
)
def test_presigned_uploads_hold_until_their_slot_begins(
    packed: bytes | None, now_ms: int, held: int | None
) -> None:
    if held is None:
        with pytest.raises(ValueError, match="not the holds of presigned uploads"):
            presigned_bytes_at(packed, now_ms)
    else:
        assert presigned_bytes_at(packed, now_ms) == held


@pytest.mark.parametrize(
    ("further", "gauges", "expected"),
    [
        pytest.param("", {}, "", id="none is to grow"),
        pytest.param('{"a":1}', {}, '{"a":1}', id="none is to grow behind other terms"),
        pytest.param(
            "", {"seats": GaugeLimit(3, 3, 0)}, '{"levels":[["seats","SEATS",4,3,3,0,false]]}', id="one"
        ),
        pytest.param(
            '{"a":1}',
            {"storage": LIMIT, "seats": GaugeLimit(3, 3, 0, keeps=True)},
            '{"a":1,"levels":[["storage","STORAGE",4,100,105,10,false],["seats","SEATS",5,3,3,0,true]]}',
            id="the second of two is read behind the first",
        ),
    ],
)
def test_the_script_gets_each_gauge_that_is_to_grow(
    further: str, gauges: dict[str, GaugeLimit], expected: str
) -> None:
    for name in gauges:
        expected = expected.replace(name.upper(), meter_field(name))
    assert add_gauge_terms(further, gauges, first=4) == expected


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        pytest.param({}, (500, "eur", ""), id="an active one, for its plan"),
        pytest.param({"mrr": 0}, (0, "", ""), id="nothing, in no currency"),
        pytest.param({"status": "trialing"}, (0, "", ""), id="a trial brings nothing"),
        pytest.param({"status": "past_due", "failed_at_ms": NOW_MS}, (500, "eur", ""), id="in grace"),
        pytest.param(
            {"status": "past_due", "failed_at_ms": NOW_MS - 7 * DAY_MS},
            (500, "eur", "pro"),
            id="restricted to another plan, for its own",
        ),
        pytest.param(
            {"status": "past_due", "failed_at_ms": NOW_MS - 14 * DAY_MS}, (500, "eur", ""), id="suspended"
        ),
        pytest.param(
            {"status": "past_due", "failed_at_ms": NOW_MS - 7 * DAY_MS, "plan": None},
            (500, "eur", ""),
            id="restricted, of a plan that is not known",
        ),
    ],
)
def test_what_a_subscription_brings_in_a_month(changed: dict[str, Any], told: tuple[int, str, str]) -> None:
    found = in_force(state(**{"mrr": 500, "currency": "eur"} | changed))
    assert (found.mrr, found.currency, found.paid_plan) == told
