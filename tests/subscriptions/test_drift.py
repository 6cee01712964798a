"""How a subscription differs from the plans file, by what Stripe shows of it (F-105)."""
# Internals: a pure table of differences between a subscription and its plan.

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.shop import CATALOG
from meterkit.customers.drifts import Drift
from meterkit.subscriptions.drift import drift_of, drift_of_customer, paid_in, plan_in
from meterkit.subscriptions.item_changes import PlanPrices, items_of, updates
from meterkit.subscriptions.subscription_reading import read_subscription

TEAM = PlanPrices(
    plan="team",
    base="price_team",
    seat="price_team_seat",
    metered={"price_team_ai_tokens": "mtr_tokens"},
    meters={"mtr_tokens": "ai_tokens"},
)
PRICES = {
    "team": TEAM,
    "pro": PlanPrices(
        plan="pro",
        base="price_pro",
        seat="price_pro_seat",
        metered={"price_pro_ai_tokens": "mtr_tokens"},
        meters=TEAM.meters,
    ),
}
METERED = {
    "price_team_ai_tokens": "mtr_tokens",
    "price_pro_ai_tokens": "mtr_tokens",
    "price_mine": "mtr_mine",
}
LICENSED = ("price_team", "price_pro", "price_team_seat", "price_pro_seat", "price_addon")


def item(price: str, quantity: int | None = 1, **recurring: Any) -> dict[str, Any]:
    metered = {"usage_type": "metered", "meter": METERED[price]} if price in METERED else {}
    shown: dict[str, Any] = {
        "id": f"si_{price}",
        "price": {
            "id": price,
            "product": f"prod_{price}",
            "recurring": {"interval": "month", "interval_count": 1, **metered, **recurring},
        },
        "current_period_start": 0,
        "current_period_end": 2_592_000,
    }
    return shown if metered else {**shown, "quantity": quantity}


def subscription(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "sub_1",
        "status": "active",
        "currency": "usd",
        "created": 1,
        "customer": "cus_1",
        "items": {"data": list(items)},
        **more,
    }


WHOLE = (item("price_team"), item("price_team_ai_tokens"))


def kinds(found: tuple[Drift, ...]) -> list[str]:
    return [drift.kind for drift in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (subscription(*WHOLE), []),
        (subscription(*WHOLE, item("price_addon", 9), item("price_mine")), []),
        (subscription(*WHOLE, billing_mode={"type": "flexible"}, pause_collection=None), []),
        (subscription(item("price_addon")), ["unknown_price"]),
        (subscription(item("price_team", 0), WHOLE[1]), ["base_quantity"]),
        (subscription(item("price_team")), ["missing_meter"]),
        (subscription(item("price_team"), item("price_pro_ai_tokens")), ["other_price"]),
        (subscription(*WHOLE, item("price_pro_ai_tokens")), ["metered_twice"]),
        (subscription(*WHOLE, item("price_pro_seat")), ["seats"]),
        (subscription(*WHOLE, item("price_pro")), ["two_plans", "other_price"]),
        (subscription(*WHOLE, currency="eur"), ["currency"]),
        (subscription(item("price_team", interval="year"), WHOLE[1]), ["interval"]),
        (subscription(*WHOLE, billing_mode={"type": "classic"}), ["billing_mode"]),
        (subscription(*WHOLE, pause_collection={"behavior": "void"}), ["collection_paused"]),
    ],
)
def test_each_difference_has_its_kind(found: dict[str, Any], expected: list[str]) -> None:
    plan = plan_in(items_of(found), CATALOG)
    drifts = drift_of(found, CATALOG, PRICES[plan.key] if plan else None)
    assert kinds(drifts) == expected
    assert all(drift.subscription == "sub_1" and drift.message for drift in drifts)
    assert [Drift.of(drift.kept()) for drift in drifts] == list(drifts)


@given(
    items=st.lists(
        st.one_of(
            st.builds(item, st.sampled_from(LICENSED), st.integers(0, 9)),
            st.sampled_from(sorted(METERED)).map(item),
        ),
        max_size=6,
        unique_by=lambda shown: str(shown["id"]),
    )
)
def test_what_is_found_is_what_a_repair_changes(items: list[dict[str, Any]]) -> None:
    found = subscription(*items)
    have = items_of(found)
    plan = plan_in(have, CATALOG)
    if plan is None:
        assert kinds(drift_of(found, CATALOG, None)) == ["unknown_price"]
        return
    drifts = drift_of(found, CATALOG, PRICES[plan.key])
    changes = updates(have, CATALOG, PRICES[plan.key], paid_in(have, plan, CATALOG))
    assert bool(changes) == any(drift.can_repair for drift in drifts)
    assert read_subscription(found, CATALOG).plan == plan.key


@pytest.mark.parametrize(
    ("items", "status", "differs"),
    [
        (WHOLE, "past_due", True),
        ((item("price_team_ai_tokens"),), "past_due", True),
        ((item("price_pro"),), "active", True),
        (WHOLE, "canceled", False),
        (WHOLE, "incomplete", False),
        ((item("price_addon"), item("price_mine")), "active", False),
    ],
)
def test_a_second_subscription_that_bills_usage_or_a_plan_is_one(
    items: tuple[Any, ...], status: str, differs: bool
) -> None:
    chosen, other = subscription(*WHOLE), subscription(*items, id="sub_2", status=status)
    found = drift_of_customer([chosen, other], chosen, CATALOG, TEAM)
    assert [(one.kind, "sub_1, sub_2" in one.message, one.can_repair) for one in found] == [
        ("two_subscriptions", True, False)
    ] * differs


@pytest.mark.parametrize(
    ("invoice", "expected"),
    [
        ({"id": "in_1", "status": "draft", "auto_advance": False}, ["draft_invoice"]),
        ({"id": "in_1", "status": "draft", "auto_advance": True}, []),
        ({"id": "in_1", "status": "paid", "auto_advance": False}, []),
        (None, []),
    ],
)
def test_a_draft_that_an_end_has_left_is_never_collected(invoice: object, expected: list[str]) -> None:
    ended = subscription(*WHOLE, status="canceled", latest_invoice=invoice)
    assert kinds(drift_of_customer([ended], ended, CATALOG, TEAM)) == expected


def test_a_paying_customer_without_a_plan_is_named() -> None:
    stranger = subscription(item("price_addon"))
    assert kinds(drift_of_customer([stranger], None, CATALOG, None)) == ["unknown_price"]
    assert (
        drift_of_customer([subscription(item("price_addon"), status="canceled")], None, CATALOG, None) == ()
    )
    assert drift_of_customer([], None, CATALOG, None) == ()
