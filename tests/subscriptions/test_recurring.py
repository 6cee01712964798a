"""What a subscription brings in a month: each interval, quantity and lasting coupon, exactly."""
# Internals: a pure table of monthly amounts.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit.subscriptions.monthly_amount import NOTHING, Recurring, recurring_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MICRO: Final = 1_000_000


def price(amount: object = 2900, interval: str = "month", count: int = 1, **more: Any) -> dict[str, Any]:
    recurring = {"interval": interval, "interval_count": count, "usage_type": "licensed"}
    return {"unit_amount": amount, "recurring": recurring, **more}


def subscription(
    *items: dict[str, Any], discounts: Sequence[Any] = (), currency: str = "usd"
) -> dict[str, Any]:
    return {"items": {"data": list(items)}, "discounts": list(discounts), "currency": currency}


def coupon(duration: str = "forever", **off: object) -> dict[str, Any]:
    return {"source": {"type": "coupon", "coupon": {"duration": duration, **off}}}


@pytest.mark.parametrize(
    ("item", "micro_cents"),
    [
        ({"price": price()}, 2900 * MICRO),
        ({"price": price(), "quantity": 3}, 8700 * MICRO),
        ({"price": price(1000, "year")}, 83_333_333),
        ({"price": price(1200, "month", 3)}, 400 * MICRO),
        ({"price": price(300, "week")}, 1300 * MICRO),
        # https://docs.stripe.com/api/prices/object#price_object-unit_amount_decimal: of a fraction of a cent.
        ({"price": price(None, unit_amount_decimal="0.05"), "quantity": 100}, 5 * MICRO),
        (
            {"price": price(100, transform_quantity={"divide_by": 10, "round": "up"}), "quantity": 11},
            200 * MICRO,
        ),
        (
            {"price": price(100, transform_quantity={"divide_by": 10, "round": "down"}), "quantity": 19},
            100 * MICRO,
        ),
        ({"price": price(None, billing_scheme="tiered")}, 0),
        ({"price": {"unit_amount": 5, "recurring": {"interval": "month", "usage_type": "metered"}}}, 0),
        ({"price": "price_1"}, 0),
        ({"price": price("9" * 100)}, 0),
        ({"price": price(None, unit_amount_decimal="1e999999999")}, 0),
    ],
)
def test_an_item_counts_by_the_month(item: dict[str, Any], micro_cents: int) -> None:
    expected = Recurring(micro_cents, "usd") if micro_cents else NOTHING
    assert recurring_of(subscription(item)) == expected


@pytest.mark.parametrize(
    ("discounts", "micro_cents"),
    [
        ([coupon(percent_off=50)], 500 * MICRO),
        ([coupon(percent_off=33.3)], 667 * MICRO),
        ([coupon(amount_off=1250)], 0),
        ([coupon(percent_off=10), coupon(percent_off=10)], 810 * MICRO),
        ([coupon("once", percent_off=50)], 1000 * MICRO),
        (["di_1"], 1000 * MICRO),
        # As the API shows it before 2025-09-30.clover.
        ([{"coupon": {"duration": "forever", "percent_off": 20}}], 800 * MICRO),
    ],
)
def test_a_coupon_counts_if_it_lasts_for_ever(discounts: list[Any], micro_cents: int) -> None:
    expected = Recurring(micro_cents, "usd") if micro_cents else NOTHING
    assert recurring_of(subscription({"price": price(1000)}, discounts=discounts)) == expected


@pytest.mark.parametrize(
    ("discounts", "micro_cents"),
    [
        ([coupon(percent_off=50)], 1500 * MICRO),
        ([coupon(amount_off=250)], 1750 * MICRO),
        ([coupon("once", percent_off=50)], 2000 * MICRO),
        (["di_1"], 2000 * MICRO),
    ],
)
def test_a_coupon_of_an_item_is_taken_off_that_item(discounts: list[Any], micro_cents: int) -> None:
    # F-22a
    items: list[dict[str, Any]] = [
        {"price": price(1000), "discounts": discounts},
        {"price": price(1000)},
    ]
    assert recurring_of(subscription(*items)) == Recurring(micro_cents, "usd")
