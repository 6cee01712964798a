"""What a change of plan is, what it costs, what is too much for it, and which items it comes to."""
# Internals: a pure table of changes of plan and of subscription items.

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from drivers.plans import plans_text
from meterkit.catalog import Changes, loads
from meterkit.errors import SubscriptionError
from meterkit.subscriptions.change_rules import (
    check_seats_sold,
    course_of,
    paid_seats,
    seats_on,
)
from meterkit.subscriptions.item_changes import (
    PlanPrices,
    items_of,
    updates,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PLANS = plans_text("changes")
CATALOG = loads(PLANS)
FREE, TEAM, PRO, PRO_YEAR, UNSAID, OPEN, OPEN_TOO, AGAIN = CATALOG.plans.values()
BY_YEAR = replace(PRO_YEAR, key="by_year", price=replace(PRO_YEAR.price, included_per="interval"))
START, END = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
METERED: Mapping[str, str | None] = {"price_tokens": "mtr_tokens"}
PRICES = PlanPrices(
    plan="pro",
    base="price_pro",
    seat="price_pro_seat",
    metered=METERED,
    meters={"mtr_tokens": "ai_tokens", "mtr_words": "ai_words"},
)


@pytest.mark.parametrize(
    ("current", "wanted", "pending", "course"),
    [
        (TEAM, PRO, None, "now"),
        (TEAM, PRO, "free", "now"),
        (PRO, TEAM, None, "period_end"),
        (PRO, TEAM, "team", "keep"),  # It is scheduled already.
        (PRO, PRO_YEAR, None, "now"),  # Of one rank: an upgrade, whatever the prices say.
        (BY_YEAR, PRO, None, "period_end"),  # What is included for a year would be so twice.
        (BY_YEAR, PRO, "pro", "keep"),
        (BY_YEAR, replace(PRO, rank=11), None, "now"),
        (PRO, PRO, None, "keep"),
        (PRO, PRO, "team", "take_back"),
    ],
)
def test_ranks_say_how_a_change_goes(current: Any, wanted: Any, pending: str | None, course: str) -> None:
    assert course == course_of(current, wanted, pending=pending, changes=Changes())


@pytest.mark.parametrize(
    ("current", "wanted", "pending", "course"),
    [
        (TEAM, PRO, None, "period_end"),
        (TEAM, PRO, "pro", "keep"),
        (PRO, PRO, "team", "take_back"),
    ],
)
def test_f_224_a_change_that_begins_tiers_again_waits(
    current: Any, wanted: Any, pending: str | None, course: str
) -> None:
    changes = Changes(upgrade="now", downgrade="now")
    assert course == course_of(current, wanted, pending=pending, changes=changes, repeats_tiers=True)


def test_the_plans_file_says_when_each_takes_effect() -> None:
    changes = Changes(upgrade="period_end", downgrade="now")
    assert course_of(TEAM, PRO, pending=None, changes=changes) == "period_end"
    assert course_of(TEAM, PRO, pending="pro", changes=changes) == "keep"
    assert course_of(PRO, TEAM, pending=None, changes=changes) == "now"
    assert course_of(BY_YEAR, TEAM, pending=None, changes=changes) == "period_end"


def test_paid_seats_stay_with_the_next_plan() -> None:
    assert [paid_seats(PRO, "seats", seats) for seats in (1, 10, 11, 15)] == [0, 0, 1, 5]
    assert paid_seats(PRO_YEAR, "seats", 15) == 0  # It sells none.
    assert paid_seats(PRO, None, 2) == 2  # No gauge counts them, so none is included.
    assert paid_seats(UNSAID, "seats", 2) == 2
    assert seats_on(TEAM, "seats", paid=2, seats=12, in_use=3) == 7
    assert seats_on(TEAM, "seats", paid=2, seats=12, in_use=11) == 11
    assert seats_on(TEAM, "seats", paid=0, seats=10, in_use=8) == 5  # They were included, not bought.
    assert seats_on(PRO, "seats", paid=2, seats=7, in_use=7) == 10
    assert seats_on(PRO, "seats", paid=7, seats=12, in_use=2) == 12  # Of seven two are needed beyond ten.
    assert seats_on(PRO_YEAR, "seats", paid=2, seats=12, in_use=12) == 0


def test_a_plan_that_includes_unlimited_seats_sells_none() -> None:
    """F-104: they counted as 0 included, and every seat was paid."""
    for plan in (OPEN, OPEN_TOO):
        assert plan.seat_price is not None
        assert paid_seats(plan, "seats", 20) == 0
        assert seats_on(plan, "seats", paid=2, seats=12, in_use=12) == 0
        check_seats_sold(plan, "seats", 1_000)
    assert paid_seats(AGAIN, "seats", 20) == 16


def item(
    name: str, price: str, quantity: int | None = 1, meter: str | None = None, key: str = ""
) -> dict[str, Any]:
    """An item as Stripe shows it; metered ones have no quantity. ``key`` is one that sync has given."""
    usage = "licensed" if meter is None else "metered"
    recurring = {"interval": "month", "usage_type": usage, "meter": meter}
    product = "prod_seats" if "seat" in price else "prod_other" if "addon" in price else "prod_pro"
    shown = {"id": price, "product": product, "recurring": recurring, "metadata": {"meterkit": key}}
    found: dict[str, Any] = {"id": name, "price": shown}
    return found if quantity is None else {**found, "quantity": quantity}


def subscribed(*items: dict[str, Any]) -> Any:
    return items_of({"items": {"data": list(items)}})


def test_a_plan_sells_the_seats_that_it_includes() -> None:
    check_seats_sold(PRO_YEAR, "seats", 10)
    with pytest.raises(SubscriptionError, match="sells no seats beyond the 10"):
        check_seats_sold(PRO_YEAR, "seats", 11)


A = ("a", "price_pro", 1)
S = ("s", "price_pro_seat", 3)
M = ("m", "price_tokens", None, "mtr_tokens")
TO_PRO: list[dict[str, Any]] = [
    {"id": "a", "price": "price_pro", "quantity": 1},
    {"id": "s", "price": "price_pro_seat", "quantity": 1},
    {"id": "m", "price": "price_tokens"},
]


def by_sync(plan: str) -> list[tuple[Any, ...]]:
    """Items of prices that sync has made anew."""
    return [
        ("a", "price_1", 1, None, f"meterkit:{plan}:base"),
        ("s", "price_2", 2, None, f"meterkit:{plan}:seats"),
        ("m", "price_3", None, "mtr_tokens", f"meterkit:{plan}:meter:tokens"),
    ]


@pytest.mark.parametrize(
    ("current", "paid", "changes"),
    [
        ([A, M], 0, []),
        # Another plan: its items change their prices, and what was metered goes on under the new one.
        (
            [("a", "price_team", 1), ("s", "price_team_seat", 2), ("m", "price_old", None, "mtr_tokens")],
            1,
            TO_PRO,
        ),
        # Seats come and go.
        ([A, M], 3, [{"price": "price_pro_seat", "quantity": 3}]),
        ([A, S, M], 2, [{"id": "s", "quantity": 2}]),
        ([A, S, M], 0, [{"id": "s", "deleted": True}]),
        # A metered price that the new plan does not have goes; add-ons, metered or not, are left alone.
        (
            [
                A,
                ("x", "price_addon", 4),
                ("y", "price_addon_calls", None, "mtr_calls"),
                ("m", "price_pages", None, "mtr_pages"),
            ],
            0,
            [{"price": "price_tokens"}, {"id": "m", "deleted": True}],
        ),
        # The base price was switched in the dashboard: usage still has the old plan's price, of its product.
        ([A, ("m", "price_addon_old", None, "mtr_tokens")], 0, [{"id": "m", "price": "price_tokens"}]),
        # Two items of a meter, and one of a meter that the plan does not have.
        (
            [
                ("o", "price_addon_old", None, "mtr_tokens"),
                M,
                ("w", "price_addon_words", None, "mtr_words"),
                A,
            ],
            0,
            [{"id": "o", "deleted": True}, {"id": "w", "deleted": True}],
        ),
        # A base quantity of 0 or 7, and the base prices of two plans.
        ([("a", "price_pro", 0), M], 0, [{"id": "a", "quantity": 1}]),
        ([("a", "price_pro", 7), M], 0, [{"id": "a", "quantity": 1}]),
        ([("b", "price_team", 1), A, M], 0, [{"id": "b", "deleted": True}]),
        # Who has old prices of this plan keeps them; of another plan they change.
        (by_sync("pro"), 3, [{"id": "s", "quantity": 3}]),
        (by_sync("team"), 1, TO_PRO),
    ],
)
def test_items_change_in_place_and_foreign_items_stay(
    current: list[Any], paid: int, changes: list[Any]
) -> None:
    assert changes == updates(subscribed(*(item(*one) for one in current)), CATALOG, PRICES, paid)
