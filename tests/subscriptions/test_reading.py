"""What is read off a subscription as Stripe shows it."""
# Internals: a pure table of subscriptions as Stripe shows them.

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drivers.webhooks import CATALOG
from meterkit.decisions.subscription import SubscriptionState
from meterkit.subscriptions.item_price_reading import PriceFacts
from meterkit.subscriptions.subscription_reading import (
    asks_for_payment_method,
    in_force,
    is_sold_here,
    read_subscription,
)

START = 1_938_816_000
END = START + 30 * 86_400


def item(price: str, quantity: int | None = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": f"si_{price}",
        "price": {"id": price},
        "quantity": quantity,
        "current_period_start": START,
        "current_period_end": END,
        **more,
    }


def shown(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "sub_1",
        "object": "subscription",
        "status": "active",
        "customer": "cus_1",
        "created": START - 5,
        "billing_cycle_anchor": START,
        "items": {"data": list(items or (item("price_pro"),))},
        **more,
    }


PRO = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=3,
    start_ms=START * 1000,
    end_ms=END * 1000,
    anchor_ms=START * 1000,
    created_ms=(START - 5) * 1000,
)


def read(*items: dict[str, Any], has_payment_method: bool = False, **more: Any) -> SubscriptionState:
    return read_subscription(shown(*items, **more), CATALOG, has_payment_method=has_payment_method)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((item("price_gone"),), replace(PRO, plan=None, seats=0)),
        # The period of the base price counts.
        ((item("price_other", current_period_end=END + 335 * 86_400), item("price_pro")), PRO),
        (({**item("price_pro"), "price": "price_pro"},), PRO),
    ],
)
def test_items_say_plan_and_period(items: tuple[Any, ...], expected: SubscriptionState) -> None:
    assert read(*items) == expected


def test_a_period_at_the_subscription_is_read_as_before_basil() -> None:
    old = {"id": "si_1", "price": {"id": "price_pro"}, "quantity": 1}
    assert read(old, current_period_start=START, current_period_end=END) == PRO


def test_seats_are_those_covered_and_those_paid_for() -> None:
    assert read(item("price_pro"), item("price_seat", 4)).seats == 7
    # The plan sells no seats.
    assert read(item("price_max"), item("price_seat", 4)) == replace(PRO, plan="max", seats=0)


def test_when_it_ends() -> None:
    assert read(cancel_at_period_end=True).cancel_at_ms == END * 1000
    assert read(cancel_at_period_end=True).cancel_at_period_end is True
    assert read(cancel_at=START + 99).cancel_at_ms == (START + 99) * 1000
    assert read(cancel_at=None, cancel_at_period_end=False).cancel_at_ms is None
    ended = read(status="canceled", ended_at=START + 7)
    assert (ended.status, ended.ended_at_ms) == ("canceled", (START + 7) * 1000)


@pytest.mark.parametrize(
    ("invoice", "more", "expected"),
    [
        ({"billing_reason": "subscription_create", "status": "open"}, {}, True),
        ({"billing_reason": "subscription_create", "status": "paid"}, {}, False),
        ({"billing_reason": "subscription_cycle", "status": "open"}, {}, False),
        ({"billing_reason": "subscription_create", "status": "open"}, {"trial_start": START}, False),
    ],
)
def test_whether_one_that_was_ended_had_ever_begun(
    invoice: dict[str, Any], more: dict[str, Any], expected: bool
) -> None:
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
    assert read(**trial, default_payment_method="pm_1").trial_end_action == "continue"
    assert read(**trial, default_payment_method={"id": "pm_1"}).trial_end_action == "continue"
    assert not asks_for_payment_method(shown(**{**trial, "status": "active"}))


def invoice(**more: Any) -> dict[str, Any]:
    transitions = {"finalized_at": START + 3_600}
    return {"id": "in_1", "status": "open", "attempt_count": 2, "status_transitions": transitions, **more}


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        (invoice(), (2, (START + 3_600) * 1000)),
        (invoice(status="paid"), (0, 0)),
        (invoice(attempt_count=0), (0, 0)),
        # It was sent to be paid in 30 days: nothing is owed before.
        (invoice(attempt_count=0, due_date=END), (0, END * 1000)),
        # The next one is a draft already, of a period that may be a year.
        (invoice(status="draft", attempt_count=0, created=END), (0, END * 1000)),
        (invoice(status_transitions=None), (2, 0)),
        (None, (0, 0)),
    ],
)
def test_failed_attempts_count_while_the_invoice_is_open(latest: object, expected: tuple[int, int]) -> None:
    found = read(status="past_due", latest_invoice=latest)
    assert (found.failures, found.failed_at_ms) == expected
    assert read(latest_invoice=invoice(status="draft", created=END)).failed_at_ms == 0


def schedule(*phases: dict[str, Any], status: str = "active") -> dict[str, Any]:
    return {
        "id": "sub_sched_1",
        "status": status,
        "current_phase": {"start_date": START, "end_date": END},
        "phases": list(phases),
    }


def test_what_is_scheduled() -> None:
    found = read(schedule=schedule(NOW_PHASE, NEXT_PHASE))
    assert (found.pending_plan, found.pending_at_ms, found.pending_seats) == ("max", END * 1000, 0)


NOW_PHASE = {"start_date": START, "end_date": END, "items": [{"price": "price_pro", "quantity": 1}]}
NEXT_PHASE = {"start_date": END, "end_date": END + 9, "items": [{"price": "price_max", "quantity": 1}]}


@pytest.mark.parametrize(
    "found",
    [
        schedule(NOW_PHASE),
        schedule(NOW_PHASE, {**NOW_PHASE, "start_date": END}),
        schedule(NOW_PHASE, NEXT_PHASE, status="released"),
        schedule(NOW_PHASE, {**NEXT_PHASE, "items": [{"price": "price_gone"}]}),
        "sub_sched_1",
        None,
    ],
)
def test_nothing_that_matters_is_scheduled(found: object) -> None:
    assert read(schedule=found) == PRO


@pytest.mark.parametrize(
    "broken", [{"status": "odd"}, {"status": None}, {"items": None}, {"items": {"data": []}}]
)
def test_what_is_no_subscription_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sub_1"):
        read_subscription({**shown(), **broken}, CATALOG)


def test_of_paid_subscriptions_the_best_plan_counts() -> None:
    # F-22a: the youngest one counted. One that is past due gives way to one that is paid.
    active_pro = shown(id="sub_a", created=1)
    rising = [
        shown(item("price_max"), id="sub_b", status="past_due", created=9),
        active_pro,
        shown(id="sub_c", status="trialing", created=2),
        shown(item("price_max"), id="sub_d", status="trialing", created=0),
        shown(item("price_max"), id="sub_e", created=1),
    ]
    for count in range(1, len(rising) + 1):
        for order in (rising[:count], rising[:count][::-1]):
            assert in_force(order, CATALOG) == rising[count - 1]
    # One whose price the plans file has lost is of no plan.
    lost = shown(item("price_gone"), id="sub_f", created=99)
    assert in_force([lost, active_pro], CATALOG, known="sub_f") == active_pro


def test_of_ended_subscriptions_the_one_that_ended_last_counts() -> None:
    """Its rank and its beginning count only where several ended at once, as by the customer's deletion."""
    rising = [
        shown(item("price_max"), id="sub_a", status="canceled", created=5, ended_at=10),
        shown(id="sub_b", status="canceled", created=9, ended_at=11),
        shown(id="sub_c", status="incomplete_expired", created=8, ended_at=12),
        shown(id="sub_d", status="canceled", created=1, ended_at=20),
        shown(item("price_max"), id="sub_e", status="canceled", created=0, ended_at=20),
        shown(id="sub_f", status="incomplete", created=0),
    ]
    for count in range(1, len(rising) + 1):
        for order in (rising[:count], rising[:count][::-1]):
            assert in_force(order, CATALOG) == rising[count - 1]


def test_a_foreign_subscription_is_ignored_unless_it_counted() -> None:
    other = shown(item("price_other"), id="sub_x", created=99)
    mine = shown(id="sub_y", status="canceled", created=1)
    assert (is_sold_here(other, CATALOG), is_sold_here(mine, CATALOG)) == (False, True)
    assert in_force([other], CATALOG) is None
    assert in_force([other, mine], CATALOG) == mine
    # The plans file has lost its price: it is still what the customer has.
    assert in_force([other, mine], CATALOG, known="sub_x") == other


METERED = {
    "id": "price_words",
    "currency": "usd",
    "unit_amount_decimal": "3",
    "recurring": {"meter": "mtr_1", "usage_type": "metered"},
}
FACTS = PriceFacts({"mtr_1": "api_words"}, {})


@pytest.mark.parametrize(("currency", "label"), [("usd", "1/3"), ("eur", "?it is in eur")])
def test_a_price_in_several_currencies_has_its_default_one(currency: str, label: str) -> None:
    # https://docs.stripe.com/payments/checkout/localize-prices/manual-currency-prices
    found = shown(item("price_pro"), item("price_words") | {"price": METERED}, currency=currency)
    (price,) = read_subscription(found, CATALOG, facts=FACTS).prices
    assert price.label == label
