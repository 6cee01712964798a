"""What a change of plan is, what it costs, what is too much for it, and which items it comes to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.catalog import Changes, loads
from meterkit.decisions.periods import to_ms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.errors import QuantityError, SubscriptionError, UnknownPlanError
from meterkit.subscriptions.change_rules import (
    OverLimit,
    check_seats,
    check_seats_sold,
    check_sold,
    course_of,
    over_limit,
    paid_seats,
    seats_on,
)
from meterkit.subscriptions.item_changes import (
    PlanPrices,
    items_of,
    metered_among,
    new_items,
    next_items,
    updates,
)
from meterkit.subscriptions.proration import Terms, cost_of
from meterkit.subscriptions.stripe_objects import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  storage:  {unit: byte, kind: gauge}
  seats:    {unit: seat, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {storage: {included: 5MB}, seats: {included: 3}}
  team:
    rank: 5
    price: {amount_cents: 1500, interval: month, stripe_price: price_team}
    seat_price: {amount_cents: 700, stripe_price: price_team_seat}
    meters: {storage: {included: 50MB}, seats: {included: 5}}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month, stripe_price: price_pro}
    seat_price: {amount_cents: 900, stripe_price: price_pro_seat}
    meters: {storage: {included: 100MB}, seats: {included: 10}}
  pro_year:
    rank: 10
    price: {amount_cents: 29000, interval: year, stripe_price: price_pro_year}
    meters: {storage: {included: 100MB}, seats: {included: 10}}
  unsaid:
    price: {amount_cents: 0, interval: month, stripe_price: price_unsaid}
    seat_price: {amount_cents: 900, stripe_price: price_unsaid_seat}
  open:
    extends: pro
    price: {stripe_price: price_open}
    meters: {seats: {included: unlimited}}
  open_too:
    extends: open
    price: {stripe_price: price_open_too}
    meters: {seats: {warn_at: [50]}}
  again:
    extends: open
    price: {stripe_price: price_again}
    meters: {seats: {included: 4}}
"""
CATALOG = loads(PLANS)
FREE, TEAM, PRO, PRO_YEAR, UNSAID, OPEN, OPEN_TOO, AGAIN = CATALOG.plans.values()
BY_YEAR = replace(PRO_YEAR, key="by_year", price=replace(PRO_YEAR.price, included_per="interval"))
START, END = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
HALF = datetime(2031, 6, 16, tzinfo=UTC)
KNOWN = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    seats=10,
    start_ms=to_ms(START),
    end_ms=to_ms(END),
    anchor_ms=to_ms(START),
)
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
        (PRO, TEAM, "free", "period_end"),
        (PRO, TEAM, "team", "keep"),  # It is scheduled already.
        (PRO, PRO_YEAR, None, "now"),  # Of one rank: an upgrade, whatever the prices say.
        (PRO_YEAR, PRO, None, "now"),
        (BY_YEAR, PRO, None, "period_end"),  # What is included for a year would be so twice.
        (BY_YEAR, PRO, "pro", "keep"),
        (BY_YEAR, TEAM, None, "period_end"),
        (BY_YEAR, replace(PRO, rank=11), None, "now"),
        (PRO, BY_YEAR, None, "now"),
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
        (TEAM, PRO, "free", "period_end"),
        (PRO, TEAM, None, "period_end"),
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


def test_seats_beyond_those_included_are_paid_and_stay_with_the_next_plan() -> None:
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


def test_what_is_filled_further_than_a_plan_allows_is_named() -> None:
    used = {"storage": 60_000_000, "seats": 7}
    assert over_limit(CATALOG, PRO, 10, used) == ()
    assert over_limit(CATALOG, TEAM, 5, used) == (
        OverLimit(meter="storage", used=60_000_000, limit=50_000_000),
        OverLimit(meter="seats", used=7, limit=5),
    )
    assert over_limit(CATALOG, TEAM, 7, {"seats": 7}) == ()


@pytest.mark.parametrize(
    ("before", "after", "now", "credit", "charge"),
    [
        # Half of June is left.
        ((TEAM, 5), (PRO, 10), HALF, 750, 1450),
        ((TEAM, 7), (PRO, 10), HALF, 750 + 700, 1450),
        ((PRO, 10), (PRO, 12), HALF, 0, 900),
        ((PRO, 12), (PRO, 13), HALF, 900, 1350),
        ((PRO, 13), (PRO, 10), HALF, 1350, 0),
        ((PRO, 12), (PRO, 12), HALF, 0, 0),
        # By the second, half a cent away from zero: 2900 * 1 / 2592000 is none, 1 cent from 447 seconds on.
        ((TEAM, 5), (PRO, 10), END.replace(month=6, day=30, hour=23, minute=59, second=59), 0, 0),
        ((TEAM, 5), (PRO, 10), END.replace(month=6, day=30, hour=23, minute=52, second=33), 0, 1),
        ((TEAM, 5), (PRO, 10), START, 1500, 2900),
        # The next period begins, whether or not a renewal is known.
        ((TEAM, 5), (PRO, 10), END, 1500, 2900),
        # Another interval: the cycle stays anchored where it is, 351 of the 366 days of its year are left.
        ((PRO, 12), (PRO_YEAR, 0), HALF, 1450 + 900, 27811),
    ],
)
def test_credit_is_for_what_is_left_and_charge_for_what_comes(
    before: tuple[Any, int], after: tuple[Any, int], now: datetime, credit: int, charge: int
) -> None:
    found = cost_of(
        KNOWN,
        Terms(plan=before[0], seats=before[1]),
        Terms(plan=after[0], seats=after[1]),
        when="now",
        seat_meter="seats",
        currency="usd",
        now_ms=to_ms(now),
    )
    assert (credit, charge, charge - credit) == (found.credit_cents, found.charge_cents, found.net_cents)
    assert (found.currency, found.effective_at) == ("usd", now)


def test_what_begins_with_the_next_period_or_is_on_trial_costs_nothing_now() -> None:
    terms = Terms(plan=PRO, seats=12), Terms(plan=TEAM, seats=12)
    options: dict[str, Any] = {"seat_meter": "seats", "currency": "usd", "now_ms": to_ms(HALF)}
    later = cost_of(KNOWN, *terms, when="period_end", next_period=terms[1], **options)
    assert (later.credit_cents, later.charge_cents, later.net_cents) == (0, 0, 0)
    assert later.effective_at == END
    assert later.description == (
        "pro to team when the period ends, 2031-07-01 00:00 UTC: nothing is due for this one."
        " From the next period on it costs USD 64.00 a month, before usage."
    )
    trial = replace(KNOWN, status="trialing", trial_end_ms=to_ms(END))
    free = cost_of(trial, *reversed(terms), when="now", **options)
    assert (free.credit_cents, free.charge_cents, free.effective_at) == (0, 0, HALF)
    assert free.description == "team to pro: nothing is due for this period."
    now = cost_of(KNOWN, terms[0], Terms(plan=PRO, seats=13), when="now", **options)
    assert now.description == (
        "12 to 13 seats now, prorated to 2031-07-01 00:00 UTC: USD 13.50 charged, USD 9.00 credited."
    )


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


def test_a_new_subscription_has_an_item_for_seats_only_where_some_are_paid() -> None:
    assert new_items(PRICES, 0) == [{"price": "price_pro", "quantity": 1}, {"price": "price_tokens"}]
    assert new_items(PRICES, 2)[1] == {"price": "price_pro_seat", "quantity": 2}


@pytest.mark.parametrize(
    ("current", "paid", "changes"),
    [
        ([("a", "price_pro", 1), ("m", "price_tokens", None, "mtr_tokens")], 0, []),
        # Another plan: its items change their prices, and what was metered goes on under the new one.
        (
            [("a", "price_team", 1), ("s", "price_team_seat", 2), ("m", "price_old", None, "mtr_tokens")],
            1,
            [
                {"id": "a", "price": "price_pro", "quantity": 1},
                {"id": "s", "price": "price_pro_seat", "quantity": 1},
                {"id": "m", "price": "price_tokens"},
            ],
        ),
        # Seats come and go.
        (
            [("a", "price_pro", 1), ("m", "price_tokens", None, "mtr_tokens")],
            3,
            [{"price": "price_pro_seat", "quantity": 3}],
        ),
        (
            [("a", "price_pro", 1), ("s", "price_pro_seat", 3), ("m", "price_tokens", None, "mtr_tokens")],
            2,
            [{"id": "s", "quantity": 2}],
        ),
        (
            [("a", "price_pro", 1), ("s", "price_pro_seat", 3), ("m", "price_tokens", None, "mtr_tokens")],
            0,
            [{"id": "s", "deleted": True}],
        ),
        # A metered price that the new plan does not have goes; add-ons, metered or not, are left alone.
        (
            [
                ("a", "price_pro", 1),
                ("x", "price_addon", 4),
                ("y", "price_addon_calls", None, "mtr_calls"),
                ("m", "price_pages", None, "mtr_pages"),
            ],
            0,
            [{"price": "price_tokens"}, {"id": "m", "deleted": True}],
        ),
        # The base price was switched in the dashboard: usage still has the old plan's price, of its product.
        (
            [("a", "price_pro", 1), ("m", "price_addon_old", None, "mtr_tokens")],
            0,
            [{"id": "m", "price": "price_tokens"}],
        ),
        # Two items of a meter, and one of a meter that the plan does not have.
        (
            [
                ("m", "price_addon_old", None, "mtr_tokens"),
                ("n", "price_tokens", None, "mtr_tokens"),
                ("w", "price_addon_words", None, "mtr_words"),
                ("a", "price_pro", 1),
            ],
            0,
            [{"id": "m", "deleted": True}, {"id": "w", "deleted": True}],
        ),
        # A base quantity of 0 or 7, and the base prices of two plans.
        (
            [("a", "price_pro", 7), ("m", "price_tokens", None, "mtr_tokens")],
            0,
            [{"id": "a", "quantity": 1}],
        ),
        (
            [("a", "price_pro", 0), ("m", "price_tokens", None, "mtr_tokens")],
            0,
            [{"id": "a", "quantity": 1}],
        ),
        (
            [("b", "price_team", 1), ("a", "price_pro", 1), ("m", "price_tokens", None, "mtr_tokens")],
            0,
            [{"id": "b", "deleted": True}],
        ),
        # Prices of this plan that sync has made anew: who has the old ones keeps them.
        (
            [
                ("a", "price_1", 1, None, "meterkit:pro:base"),
                ("s", "price_2", 2, None, "meterkit:pro:seats"),
                ("m", "price_3", None, "mtr_tokens", "meterkit:pro:meter:tokens"),
            ],
            3,
            [{"id": "s", "quantity": 3}],
        ),
        # Of another plan they change.
        (
            [
                ("a", "price_1", 1, None, "meterkit:team:base"),
                ("s", "price_2", 2, None, "meterkit:team:seats"),
                ("m", "price_3", None, "mtr_tokens", "meterkit:team:meter:tokens"),
            ],
            2,
            [
                {"id": "a", "price": "price_pro", "quantity": 1},
                {"id": "s", "price": "price_pro_seat", "quantity": 2},
                {"id": "m", "price": "price_tokens"},
            ],
        ),
    ],
)
def test_items_are_changed_in_place_and_those_of_others_left_alone(
    current: list[Any], paid: int, changes: list[Any]
) -> None:
    assert changes == updates(subscribed(*(item(*one) for one in current)), CATALOG, PRICES, paid)


def test_the_items_of_a_scheduled_plan_are_its_own_and_the_add_ons() -> None:
    current = subscribed(
        item("a", "price_team"),
        item("s", "price_team_seat", 2),
        item("x", "price_addon", 4),
        item("y", "price_addon_calls", None, "mtr_calls"),
    )
    assert next_items(current, CATALOG, PRICES, 2) == [
        {"price": "price_pro", "quantity": 1},
        {"price": "price_pro_seat", "quantity": 2},
        {"price": "price_tokens"},
        {"price": "price_addon", "quantity": 4},
        {"price": "price_addon_calls"},
    ]


def priced(name: str, created: int, **recurring: Any) -> dict[str, Any]:
    return {
        "id": name,
        "created": created,
        "currency": "usd",
        "recurring": {"interval": "month", **recurring},
    }


def test_of_each_meter_one_price_is_taken_so_that_it_bills_once() -> None:
    base = priced("price_pro", 1)
    metered: dict[str, Any] = {"usage_type": "metered", "meter": "mtr_tokens"}
    other: dict[str, Any] = {"usage_type": "metered", "meter": "mtr_pages"}
    prices = [
        base,
        priced("price_young", 9, **metered),
        priced("price_old", 2, **metered),
        priced("price_yearly", 10, **{**metered, "interval": "year"}),
        priced("price_pages_yearly", 1, **{**other, "interval": "year"}),
        priced("price_euro", 11, **metered) | {"currency": "eur"},
        priced("price_seat", 3, usage_type="licensed"),
        {"id": "price_once", "created": 1, "currency": "usd", "recurring": None},
    ]
    assert metered_among(prices, base) == {"price_young": "mtr_tokens", "price_pages_yearly": "mtr_pages"}


def test_what_can_be_asked_for_is_sold_and_counted() -> None:
    assert check_sold("pro", CATALOG) is PRO
    for plan, said in {"prp": "did you mean 'pro'?", "free": "it costs nothing"}.items():
        with pytest.raises(UnknownPlanError) as raised:
            check_sold(plan, CATALOG)
        assert said in str(raised.value)
        assert raised.value.plan == plan
    nothing: Any = None
    with pytest.raises(UnknownPlanError):
        check_sold(nothing, CATALOG)
    for wrong in (0, -1, 1_000_001, True, 1.0, "3", None):
        with pytest.raises(QuantityError):
            check_seats(wrong)
    assert check_seats(1_000_000) == 1_000_000
    check_seats_sold(PRO, "seats", 500)
    check_seats_sold(PRO_YEAR, "seats", 10)
    with pytest.raises(SubscriptionError, match="sells no seats beyond the 10"):
        check_seats_sold(PRO_YEAR, "seats", 11)


def test_a_key_says_what_is_asked_and_what_was_there() -> None:
    keys = {key_of("update", "sub_1"), key_of("update", "sub_2"), key_of("end", "sub_1")}
    keys |= {key_of("update", "sub_1", {"a": 1}), key_of("update", "sub_1", {"a": "1"})}
    assert len(keys) == 5
    assert max(map(len, keys)) <= 255
    assert key_of("update", {"a": 1, "b": [2]}) == key_of("update", {"b": [2], "a": 1})
