"""Tables of subscriptions as Stripe shows them: state, monthly amount, differences from the plans file."""
# Internals: a pure table of subscriptions as Stripe shows them.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import shop
from drivers.webhooks import CATALOG
from meterkit.customers.drift_records import Drift
from meterkit.decisions.subscription import SubscriptionState
from meterkit.errors import StripeError
from meterkit.subscriptions.drift_comparison import (
    compare_customer,
    compare_subscription,
    paid_seats_in,
    plan_in,
)
from meterkit.subscriptions.item_changes import PlanPrices, items_of, updates
from meterkit.subscriptions.metered_prices import PriceFacts
from meterkit.subscriptions.monthly_amount import NOTHING, MonthlyAmount, is_free, monthly_amount_of
from meterkit.subscriptions.subscription_reading import (
    asks_for_payment_method,
    choose_subscription,
    is_sold_here,
    read_subscription,
)

START = 1_938_816_000
END = START + 30 * 86_400


def item(price: str, quantity: int | None = 1, **more: Any) -> dict[str, Any]:
    period = {"current_period_start": START, "current_period_end": END}
    return {"id": f"si_{price}", "price": {"id": price}, "quantity": quantity, **period, **more}


def shown(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {"id": "sub_1", "object": "subscription", "customer": "cus_1", "currency": "usd"}
    timed = {"status": "active", "created": START - 5, "billing_cycle_anchor": START}
    return {**named, **timed, "items": {"data": list(items or (item("price_pro"),))}, **more}


PRO = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=3,
    covered_seats=3,
    start_ms=START * 1000,
    end_ms=END * 1000,
    anchor_ms=START * 1000,
    created_ms=(START - 5) * 1000,
    currency="usd",
)


def read(*items: dict[str, Any], has_payment_method: bool = False, **more: Any) -> SubscriptionState:
    return read_subscription(shown(*items, **more), CATALOG, has_payment_method=has_payment_method)


def test_items_say_plan_period_and_seats() -> None:
    assert read(item("price_gone")) == replace(PRO, plan=None, seats=0, covered_seats=-1)
    # The period of the base price counts.
    assert read(item("price_other", current_period_end=END + 335 * 86_400), item("price_pro")) == PRO
    assert read(item("price_pro") | {"price": "price_pro"}) == PRO
    # Before basil the period stood at the subscription.
    old = {"id": "si_1", "price": {"id": "price_pro"}, "quantity": 1}
    assert read(old, current_period_start=START, current_period_end=END) == PRO
    # Seats are those covered and those paid for.
    assert read(item("price_pro"), item("price_seat", 4)).seats == 7
    # The plan sells no seats.
    none = replace(PRO, plan="max", seats=0, covered_seats=-1)
    assert read(item("price_max"), item("price_seat", 4)) == none


def test_an_item_replaced_in_a_trial_begins_no_period() -> None:
    trial: dict[str, Any] = {"status": "trialing", "trial_start": START, "trial_end": END}
    replaced = item("price_pro", current_period_start=START + 9)
    assert read(replaced, **trial).start_ms == read(**trial).start_ms == START * 1000
    assert read(replaced, trial_start=START, trial_end=START + 9).start_ms == (START + 9) * 1000


def test_when_it_ends() -> None:
    assert read(cancel_at_period_end=True).cancel_at_ms == END * 1000
    assert read(cancel_at_period_end=True).cancel_at_period_end is True
    assert read(cancel_at=START + 99).cancel_at_ms == (START + 99) * 1000
    assert read(cancel_at=None, cancel_at_period_end=False).cancel_at_ms is None
    phases = [{"start_date": START, "end_date": END}, {"start_date": END, "end_date": END + 99}]
    for status, behavior, expected in (
        ("active", "cancel", (END + 99) * 1000),
        ("active", "release", None),
        ("completed", "cancel", None),
    ):
        planned = {"status": status, "end_behavior": behavior, "phases": phases}
        assert read(schedule=planned).cancel_at_ms == expected
    # A schedule's word on its own phases counts, and another end that stands beside it does.
    released = {"status": "active", "end_behavior": "release", "phases": phases}
    assert read(schedule=released, cancel_at=END + 99).cancel_at_ms is None
    assert read(schedule=released, cancel_at=END + 7).cancel_at_ms == (END + 7) * 1000
    assert read(schedule=released, cancel_at_period_end=True).cancel_at_ms == END * 1000
    ended = read(status="canceled", ended_at=START + 7)
    assert (ended.status, ended.ended_at_ms) == ("canceled", (START + 7) * 1000)


@pytest.mark.parametrize(
    ("reason", "status", "more", "expected"),
    [
        ("subscription_create", "open", {}, True),
        ("subscription_create", "paid", {}, False),
        ("subscription_cycle", "open", {}, False),
        ("subscription_create", "open", {"trial_start": START}, False),
        ("subscription_create", "open", {"collection_method": "send_invoice"}, False),
    ],
)
def test_whether_an_ended_one_began(reason: str, status: str, more: dict[str, Any], expected: bool) -> None:
    invoice = {"billing_reason": reason, "status": status}
    ended = read(status="canceled", ended_at=START + 7, latest_invoice=invoice, **more)
    assert (ended.never_began, ended.has_begun) == (expected, not expected)
    assert not read(status="incomplete", latest_invoice=invoice).has_begun
    assert read(status="past_due", latest_invoice=invoice).has_begun


@pytest.mark.parametrize(
    ("behavior", "expected"),
    [("create_invoice", "continue"), ("cancel", "cancel"), ("pause", "pause"), ("else", "continue")],
)
def test_what_a_trial_ends_in_without_a_payment_method(behavior: str, expected: str) -> None:
    trial: dict[str, Any] = {
        "status": "trialing",
        "trial_end": END,
        "trial_settings": {"end_behavior": {"missing_payment_method": behavior}},
    }
    found = read(**trial)
    assert (found.trial_end_ms, found.trial_end_action) == (END * 1000, expected)
    assert asks_for_payment_method(shown(**trial)) is (expected != "continue")
    assert read(**trial, has_payment_method=True).trial_end_action == "continue"
    for card in ("pm_1", {"id": "pm_1"}):
        assert read(**trial, default_payment_method=card).trial_end_action == "continue"
    assert not asks_for_payment_method(shown(**{**trial, "status": "active"}))


def invoice(**more: Any) -> dict[str, Any]:
    transitions = {"finalized_at": START + 3_600}
    return {"id": "in_1", "status": "open", "attempt_count": 2, "status_transitions": transitions, **more}


@pytest.mark.parametrize(
    ("latest", "failures", "failed_at_s"),
    [
        (invoice(), 2, START + 3_600),
        (invoice(status="paid"), 0, 0),
        (invoice(attempt_count=0), 0, 0),
        # It was sent to be paid in 30 days: nothing is owed before.
        (invoice(attempt_count=0, due_date=END), 0, END),
        # The next one is a draft already, of a period that may be a year.
        (invoice(status="draft", attempt_count=0, created=END), 0, END),
        (invoice(status_transitions=None), 2, 0),
        (None, 0, 0),
    ],
)
def test_failures_count_while_the_invoice_is_open(latest: object, failures: int, failed_at_s: int) -> None:
    found = read(status="past_due", latest_invoice=latest)
    assert (found.failures, found.failed_at_ms) == (failures, failed_at_s * 1000)
    assert read(latest_invoice=invoice(status="draft", created=END)).failed_at_ms == 0


NOW_PHASE = {"start_date": START, "end_date": END, "items": [{"price": "price_pro", "quantity": 1}]}
NEXT_PHASE = {"start_date": END, "end_date": END + 9, "items": [{"price": "price_max", "quantity": 1}]}


def schedule(*phases: dict[str, Any], status: str = "active") -> dict[str, Any]:
    current = {"start_date": START, "end_date": END}
    return {"id": "sub_sched_1", "status": status, "current_phase": current, "phases": list(phases)}


def test_what_is_scheduled() -> None:
    found = read(schedule=schedule(NOW_PHASE, NEXT_PHASE))
    assert (found.pending_plan, found.pending_at_ms, found.pending_seats) == ("max", END * 1000, 0)
    for without in (
        schedule(NOW_PHASE),
        schedule(NOW_PHASE, {**NOW_PHASE, "start_date": END}),
        schedule(NOW_PHASE, NEXT_PHASE, status="released"),
        schedule(NOW_PHASE, {**NEXT_PHASE, "items": [{"price": "price_gone"}]}),
        "sub_sched_1",
        None,
    ):
        assert read(schedule=without) == PRO, without


@pytest.mark.parametrize(
    "broken", [{"status": "odd"}, {"status": None}, {"items": None}, {"items": {"data": []}}]
)
def test_what_is_no_subscription_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(StripeError, match="sub_1"):
        read_subscription({**shown(), **broken}, CATALOG)


MAX = item("price_max")


@pytest.mark.parametrize(
    "rising",
    [
        pytest.param(
            # F-22a: the youngest one counted. One that is past due gives way to one that is paid.
            [
                shown(MAX, id="sub_b", status="past_due", created=9),
                shown(id="sub_a", created=1),
                shown(id="sub_c", status="trialing", created=2),
                shown(MAX, id="sub_d", status="trialing", created=0),
                shown(MAX, id="sub_e", created=1),
            ],
            id="of_paid_ones_the_best_plan",
        ),
        pytest.param(
            # Rank and beginning count only where several ended at once, as by the customer's deletion.
            [
                shown(MAX, id="sub_a", status="canceled", created=5, ended_at=10),
                shown(id="sub_b", status="canceled", created=9, ended_at=11),
                shown(id="sub_c", status="incomplete_expired", created=8, ended_at=12),
                shown(id="sub_d", status="canceled", created=1, ended_at=20),
                shown(MAX, id="sub_e", status="canceled", created=0, ended_at=20),
                shown(id="sub_f", status="incomplete", created=0),
            ],
            id="of_ended_ones_the_last",
        ),
    ],
)
def test_one_of_several_subscriptions_counts(rising: list[dict[str, Any]]) -> None:
    for count in range(1, len(rising) + 1):
        for order in (rising[:count], rising[:count][::-1]):
            assert choose_subscription(order, CATALOG) == rising[count - 1]


def test_a_foreign_subscription_is_ignored_unless_it_counted() -> None:
    other = shown(item("price_other"), id="sub_x", created=99)
    mine = shown(id="sub_y", status="canceled", created=1)
    assert (is_sold_here(other, CATALOG), is_sold_here(mine, CATALOG)) == (False, True)
    assert choose_subscription([other], CATALOG) is None
    assert choose_subscription([other, mine], CATALOG) == mine
    # The plans file has lost its price: it is still what the customer has, unless one of a plan is active.
    assert choose_subscription([other, mine], CATALOG, known="sub_x") == other
    assert (
        choose_subscription([other, active := shown(id="sub_a", created=1)], CATALOG, known="sub_x") == active
    )


@pytest.mark.parametrize(("currency", "label"), [("usd", "1/3"), ("eur", "?it is in usd")])
def test_a_price_in_several_currencies_has_its_default_one(currency: str, label: str) -> None:
    # https://docs.stripe.com/payments/checkout/localize-prices/manual-currency-prices
    recurring = {"meter": "mtr_1", "usage_type": "metered"}
    words = {"id": "price_words", "currency": "usd", "unit_amount_decimal": "3", "recurring": recurring}
    found = shown(item("price_pro"), item("price_words") | {"price": words}, currency=currency)
    (price,) = read_subscription(found, CATALOG, facts=PriceFacts({"mtr_1": "api_words"}, {})).prices
    assert price.label == label


MICRO = 1_000_000


def price(amount: object = 2900, interval: str = "month", count: int = 1, **more: Any) -> dict[str, Any]:
    recurring = {"interval": interval, "interval_count": count, "usage_type": "licensed"}
    return {"unit_amount": amount, "recurring": recurring, **more}


def coupon(duration: str = "forever", **off: object) -> dict[str, Any]:
    return {"source": {"type": "coupon", "coupon": {"duration": duration, **off}}}


def monthly(*items: dict[str, Any], discounts: Sequence[Any] = ()) -> int:
    found = monthly_amount_of(
        {"items": {"data": list(items)}, "discounts": list(discounts), "currency": "usd"}
    )
    assert found == (MonthlyAmount(found.micro_cents, "usd") if found.micro_cents else NOTHING)
    return found.micro_cents


@pytest.mark.parametrize(
    ("price", "quantity", "micro_cents"),
    [
        (price(), 1, 2900 * MICRO),
        (price(), 3, 8700 * MICRO),
        (price(1000, "year"), 1, 83_333_333),
        (price(1200, "month", 3), 1, 400 * MICRO),
        (price(300, "week"), 1, 1300 * MICRO),
        # https://docs.stripe.com/api/prices/object#price_object-unit_amount_decimal: of a fraction of a cent.
        (price(None, unit_amount_decimal="0.05"), 100, 5 * MICRO),
        (price(100, transform_quantity={"divide_by": 10, "round": "up"}), 11, 200 * MICRO),
        (price(100, transform_quantity={"divide_by": 10, "round": "down"}), 19, 100 * MICRO),
        (price(None, billing_scheme="tiered"), 1, 0),
        ({"unit_amount": 5, "recurring": {"interval": "month", "usage_type": "metered"}}, 1, 0),
        ("price_1", 1, 0),
        (price("9" * 100), 1, 0),
        (price(None, unit_amount_decimal="1e999999999"), 1, 0),
    ],
)
def test_an_item_counts_by_the_month(price: object, quantity: int, micro_cents: int) -> None:
    assert monthly({"price": price, "quantity": quantity}) == micro_cents
    if quantity == 1:
        assert monthly({"price": price}) == micro_cents


@pytest.mark.parametrize(
    ("discounts", "cents"),
    [
        ([coupon(percent_off=50)], 500),
        ([coupon(percent_off=33.3)], 667),
        ([coupon(amount_off=250)], 750),
        ([coupon(amount_off=1250)], 0),
        ([coupon(percent_off=10), coupon(percent_off=10)], 810),
        # In their order, as on invoices.
        ([coupon(percent_off=20), coupon(amount_off=100)], 700),
        ([coupon(amount_off=100), coupon(percent_off=20)], 720),
        ([coupon("once", percent_off=50)], 1000),
        (["di_1"], 1000),
        # As the API shows it before 2025-09-30.clover.
        ([{"coupon": {"duration": "forever", "percent_off": 20}}], 800),
    ],
)
def test_a_coupon_that_lasts_is_taken_off_the_whole_or_its_item(discounts: list[Any], cents: int) -> None:
    one: dict[str, Any] = {"price": price(1000)}
    assert monthly(one, discounts=discounts) == cents * MICRO
    # F-22a: one of an item was taken off the other item, too.
    assert monthly(one | {"discounts": discounts}, one) == (cents + 1000) * MICRO
    # An amount is taken off each invoice, of which a yearly price has one.
    assert monthly({"price": price(12_000, "year")}, discounts=[coupon(amount_off=1200)]) == 900 * MICRO


def test_amounts_of_another_currency_are_left_out() -> None:
    dollars = {"price": {**price(2900), "currency": "usd"}}
    euros = {"price": {**price(500), "currency": "eur"}}
    off = [coupon(amount_off=100, currency="usd"), coupon(amount_off=50, currency="eur")]
    found = {"items": {"data": [dollars, euros]}, "discounts": off, "currency": "eur"}
    assert monthly_amount_of(found) == MonthlyAmount(450 * MICRO, "eur")
    assert not is_free(found)
    assert is_free({**found, "items": {"data": []}})


# Differences of a subscription from the plans file (F-105).
METERED = {
    "price_team_ai_tokens": "mtr_tokens",
    "price_pro_ai_tokens": "mtr_tokens",
    "price_mine": "mtr_mine",
}
LICENSED = ("price_team", "price_pro", "price_team_seat", "price_pro_seat", "price_addon")
PRICES = {
    plan: PlanPrices(
        plan=plan,
        base=f"price_{plan}",
        seat=f"price_{plan}_seat",
        metered={f"price_{plan}_ai_tokens": "mtr_tokens"},
        meters={"mtr_tokens": "ai_tokens"},
    )
    for plan in ("team", "pro")
}


def sold(price: str, quantity: int | None = 1, **recurring: Any) -> dict[str, Any]:
    metered = {"usage_type": "metered", "meter": METERED[price]} if price in METERED else {}
    every = {"interval": "month", "interval_count": 1, **metered, **recurring}
    found = item(price, quantity) | {"price": {"id": price, "product": f"prod_{price}", "recurring": every}}
    if metered:
        del found["quantity"]
    return found


WHOLE = (sold("price_team"), sold("price_team_ai_tokens"))


def kinds(found: tuple[Drift, ...]) -> list[str]:
    return [drift.kind for drift in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (shown(*WHOLE), []),
        (shown(*WHOLE, sold("price_addon", 9), sold("price_mine")), []),
        (shown(*WHOLE, billing_mode={"type": "flexible"}, pause_collection=None), []),
        (shown(sold("price_addon")), ["unknown_price"]),
        (shown(sold("price_team", 0), WHOLE[1]), ["base_quantity"]),
        (shown(sold("price_team")), ["missing_meter"]),
        (shown(sold("price_team"), sold("price_pro_ai_tokens")), ["other_price"]),
        (shown(*WHOLE, sold("price_pro_ai_tokens")), ["metered_twice"]),
        (shown(*WHOLE, sold("price_pro_seat")), ["seats"]),
        (shown(*WHOLE, sold("price_pro")), ["two_plans", "other_price"]),
        (shown(*WHOLE, currency="eur"), ["currency"]),
        (shown(sold("price_team", interval="year"), WHOLE[1]), ["interval"]),
        (shown(sold("price_team", interval_count=3), WHOLE[1]), ["interval"]),
        (shown(*WHOLE, billing_mode={"type": "classic"}), ["billing_mode"]),
        (shown(*WHOLE, pause_collection={"behavior": "void"}), ["collection_paused"]),
    ],
)
def test_each_difference_has_its_kind(found: dict[str, Any], expected: list[str]) -> None:
    plan = plan_in(items_of(found), shop.CATALOG)
    drifts = compare_subscription(found, shop.CATALOG, PRICES[plan.key] if plan else None)
    assert kinds(drifts) == expected
    assert all(drift.subscription == "sub_1" and drift.message for drift in drifts)
    assert [Drift.of(drift.kept()) for drift in drifts] == list(drifts)


@given(
    items=st.lists(
        st.one_of(
            st.builds(sold, st.sampled_from(LICENSED), st.integers(0, 9)),
            st.sampled_from(sorted(METERED)).map(sold),
        ),
        max_size=6,
        unique_by=lambda one: str(one["id"]),
    )
)
def test_what_is_found_is_what_a_repair_changes(items: list[dict[str, Any]]) -> None:
    found = shown() | {"items": {"data": items}}
    have = items_of(found)
    plan = plan_in(have, shop.CATALOG)
    if plan is None:
        assert kinds(compare_subscription(found, shop.CATALOG, None)) == ["unknown_price"]
        return
    drifts = compare_subscription(found, shop.CATALOG, PRICES[plan.key])
    changes = updates(have, shop.CATALOG, PRICES[plan.key], paid_seats_in(have, plan, shop.CATALOG))
    assert bool(changes) == any(drift.can_repair for drift in drifts)
    assert read_subscription(found, shop.CATALOG).plan == plan.key


@pytest.mark.parametrize(
    ("items", "status", "differs"),
    [
        (WHOLE, "past_due", True),
        ((sold("price_team_ai_tokens"),), "past_due", True),
        ((sold("price_pro"),), "active", True),
        (WHOLE, "canceled", False),
        (WHOLE, "incomplete", False),
        ((sold("price_addon"), sold("price_mine")), "active", False),
    ],
)
def test_a_second_paid_subscription_differs(items: tuple[Any, ...], status: str, differs: bool) -> None:
    chosen, other = shown(*WHOLE), shown(*items, id="sub_2", status=status)
    found = compare_customer([chosen, other], chosen, shop.CATALOG, PRICES["team"])
    assert kinds(found) == ["two_subscriptions"] * differs
    assert all("sub_1, sub_2" in one.message and not one.can_repair for one in found)


def test_a_draft_that_an_end_has_left_is_never_collected() -> None:
    for status, advances, expected in (
        ("draft", False, ["draft_invoice"]),
        ("draft", True, []),
        ("paid", False, []),
        (None, None, []),
    ):
        invoice = {"id": "in_1", "status": status, "auto_advance": advances} if status else None
        ended = shown(*WHOLE, status="canceled", latest_invoice=invoice)
        assert kinds(compare_customer([ended], ended, shop.CATALOG, PRICES["team"])) == expected


def test_a_paying_customer_without_a_plan_is_named() -> None:
    for status, expected in (("active", ["unknown_price"]), ("canceled", [])):
        stranger = shown(sold("price_addon"), status=status)
        assert kinds(compare_customer([stranger], None, shop.CATALOG, None)) == expected
    assert compare_customer([], None, shop.CATALOG, None) == ()
