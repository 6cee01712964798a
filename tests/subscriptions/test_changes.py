"""Tables of changes: when one takes effect, its items, its prorated cost, and the phases of a schedule."""
# Internals: a pure table of changes of plan, of items, of prorated amounts and of schedule phases.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe import SubscriptionSchedule
from stripe.params import _subscription_schedule_modify_params as types

from drivers.plans import plans_text
from drivers.sdk_parameters import fields
from meterkit.catalog import Changes, loads
from meterkit.errors import SubscriptionError
from meterkit.subscriptions.change_rules import check_seats_sold, course_of, paid_seats, seats_on
from meterkit.subscriptions.item_changes import PlanPrices, items_of, updates
from meterkit.subscriptions.proration_estimate import BillingCycle, PrepaidLine, prorate_lines
from meterkit.subscriptions.schedule_phases import NOT_SENT, cut_phases, present_phases

CATALOG = loads(plans_text("changes"))
FREE, TEAM, PRO, PRO_YEAR, UNSAID, OPEN, OPEN_TOO, AGAIN = CATALOG.plans.values()
BY_YEAR = replace(PRO_YEAR, key="by_year", price=replace(PRO_YEAR.price, included_per="interval"))


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
        (PRO, PRO, "team", "unschedule"),
    ],
)
def test_ranks_say_how_a_change_goes(current: Any, wanted: Any, pending: str | None, course: str) -> None:
    assert course == course_of(current, wanted, pending=pending, changes=Changes())


def test_f_224_a_change_that_begins_tiers_again_waits() -> None:
    course = partial(course_of, changes=Changes(upgrade="now", downgrade="now"), repeats_tiers=True)
    assert course(TEAM, PRO, pending=None) == "period_end"
    assert course(TEAM, PRO, pending="pro") == "keep"
    assert course(PRO, PRO, pending="team") == "unschedule"


def test_the_plans_file_says_when_each_takes_effect() -> None:
    course = partial(course_of, changes=Changes(upgrade="period_end", downgrade="now"))
    assert course(TEAM, PRO, pending=None) == "period_end"
    assert (course(TEAM, PRO, pending="pro"), course(PRO, TEAM, pending=None)) == ("keep", "now")
    assert course(BY_YEAR, TEAM, pending=None) == "period_end"


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
    check_seats_sold(PRO_YEAR, "seats", 10)
    with pytest.raises(SubscriptionError, match="sells no seats beyond the 10"):
        check_seats_sold(PRO_YEAR, "seats", 11)


PRICES = PlanPrices(
    plan="pro",
    base="price_pro",
    seat="price_pro_seat",
    metered={"price_tokens": "mtr_tokens"},
    meters={"mtr_tokens": "ai_tokens", "mtr_words": "ai_words"},
)
A = ("a", "price_pro", 1)
S = ("s", "price_pro_seat", 3)
M = ("m", "price_tokens", None, "mtr_tokens")
TO_PRO: list[dict[str, Any]] = [
    {"id": "a", "price": "price_pro", "quantity": 1},
    {"id": "s", "price": "price_pro_seat", "quantity": 1},
    {"id": "m", "price": "price_tokens"},
]


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


def by_sync(plan: str) -> list[tuple[Any, ...]]:
    """Items of prices that sync has made anew."""
    return [
        ("a", "price_1", 1, None, f"meterkit:{plan}:base"),
        ("s", "price_2", 2, None, f"meterkit:{plan}:seats"),
        ("m", "price_3", None, "mtr_tokens", f"meterkit:{plan}:meter:tokens"),
    ]


OF_TEAM = [("a", "price_team", 1), ("s", "price_team_seat", 2), ("m", "price_old", None, "mtr_tokens")]
OLD = ("o", "price_addon_old", None, "mtr_tokens")
WORDS = ("w", "price_addon_words", None, "mtr_words")
PAGES = ("m", "price_pages", None, "mtr_pages")
ADD_ONS = [("x", "price_addon", 4), ("y", "price_addon_calls", None, "mtr_calls")]


@pytest.mark.parametrize(
    ("current", "paid", "changes"),
    [
        ([A, M], 0, []),
        # Another plan: its items change their prices, and what was metered goes on under the new one.
        (OF_TEAM, 1, TO_PRO),
        # Seats come and go.
        ([A, M], 3, [{"price": "price_pro_seat", "quantity": 3}]),
        ([A, S, M], 2, [{"id": "s", "quantity": 2}]),
        ([A, S, M], 0, [{"id": "s", "deleted": True}]),
        # A metered price that the new plan does not have goes; add-ons, metered or not, are left alone.
        ([A, *ADD_ONS, PAGES], 0, [{"price": "price_tokens"}, {"id": "m", "deleted": True}]),
        # The base price was switched in the dashboard: usage still has the old plan's price, of its product.
        ([A, OLD], 0, [{"id": "o", "price": "price_tokens"}]),
        # Two items of a meter, and one of a meter that the plan does not have.
        ([OLD, M, WORDS, A], 0, [{"id": "o", "deleted": True}, {"id": "w", "deleted": True}]),
        # A base quantity of 0 or 7, and the base prices of two plans.
        ([("a", "price_pro", 0), M], 0, [{"id": "a", "quantity": 1}]),
        ([("a", "price_pro", 7), M], 0, [{"id": "a", "quantity": 1}]),
        ([("b", "price_team", 1), A, M], 0, [{"id": "b", "deleted": True}]),
        # Who has old prices of this plan keeps them; of another plan they change.
        (by_sync("pro"), 3, [{"id": "s", "quantity": 3}]),
        (by_sync("team"), 1, TO_PRO),
    ],
)
def test_items_change_in_place_and_others_stay(current: list[Any], paid: int, changes: list[Any]) -> None:
    subscribed: Any = {"items": {"data": [item(*one) for one in current]}}
    assert changes == updates(items_of(subscribed), CATALOG, PRICES, paid)


DAY_S = 86_400
HALFWAY = BillingCycle(1_793_491_200, 1_796_083_200, 1_794_787_200)


def parts(cents: int, price: str = "price_pro", *, seats: int = 0) -> dict[str, PrepaidLine]:
    if not seats:
        return {"base": PrepaidLine(price, cents, 1)}
    return {"base": PrepaidLine(price, cents, 1), "seats": PrepaidLine("price_seat", 901, seats)}


@pytest.mark.parametrize(
    ("old", "new", "cycle", "credit", "charge"),
    [
        # https://pastebin.com/9Hu591Zt: amount_due 4998 is -999, +2998 and the 2999 of the month to come.
        (999, 2_999, BillingCycle(1_477_364_992, 1_480_043_392, 1_477_365_718), 999, 2_998),
        # https://pastebin.com/Rxuk5FLW: amount_due 4997 is -998, +2995 and the 3000 of the month to come.
        (1_000, 3_000, BillingCycle(1_526_482_619, 1_529_161_019, 1_526_487_083), 998, 2_995),
        # https://gist.github.com/matthewarkin/27bcfdf622eb91d3508ea082d0ad50b8: -364 of a February's 1000.
        (1_000, 1_000, BillingCycle(1_487_030_400, 1_489_449_600, 1_488_568_488), 364, 364),
        # A line is rounded to the nearest cent, a half of one up.
        (1_000, 1, BillingCycle(0, 3 * DAY_S, 2 * DAY_S), 333, 0),
        (1, 2_900, BillingCycle(0, 2 * DAY_S, DAY_S), 1, 1_450),
        (2_900, 1_000, BillingCycle(0, DAY_S, DAY_S), 0, 0),
        (2_900, 1_000, BillingCycle(0, DAY_S, 0), 2_900, 1_000),
        # A clock behind Stripe's: never more than the whole period.
        (2_900, 1_000, BillingCycle(DAY_S, 2 * DAY_S, 0), 2_900, 1_000),
    ],
)
def test_invoices_made_by_stripe(old: int, new: int, cycle: BillingCycle, credit: int, charge: int) -> None:
    """Lines of real invoices: by the second, by the period's own length, each line rounded by itself."""
    assert prorate_lines(parts(old), parts(new, "price_max"), cycle) == (credit, charge)


def test_another_interval_is_charged_for_the_rest_of_its_period() -> None:
    """The gist's invoice, of a cycle that begins anew: 9636 is 10000 less what is left of the month."""
    february = BillingCycle(1_487_030_400, 1_489_449_600, 1_488_568_488)
    before, after = parts(1_000), parts(10_000, "price_year")
    anew = february._replace(start_s=february.now_s, end_s=february.now_s + 365 * DAY_S)
    assert prorate_lines(before, after, february, anew) == (364, 10_000)
    kept = february._replace(end_s=february.start_s + 365 * DAY_S)
    assert prorate_lines(before, after, february, kept) == (364, 9_512)
    trial = february._replace(is_trial=True)
    assert prorate_lines(before, after, trial, trial) == (0, 0)


def test_seats_are_one_line_whatever_their_number() -> None:
    """Three seats of 9.01 USD for half a period are 13.515, and 4.505 each: rounded once, not three times."""
    none, three, five = (parts(2_900, seats=seats) for seats in (0, 3, 5))
    assert prorate_lines(none, three, HALFWAY) == (0, 1_352)
    assert prorate_lines(three, none, HALFWAY) == (1_352, 0)
    assert prorate_lines(three, five, HALFWAY) == (1_352, 2_253)


@given(
    old=st.integers(0, 10**9),
    new=st.integers(0, 10**9),
    start_s=st.integers(0, 2**33),
    whole_s=st.integers(1, 366 * DAY_S),
    part=st.fractions(0, 1),
)
def test_rounding_is_half_a_cent(old: int, new: int, start_s: int, whole_s: int, part: Fraction) -> None:
    """Property: exact but for one rounding a line, and what changes back and forth costs nothing."""
    cycle = BillingCycle(start_s, start_s + whole_s, start_s + int(part * whole_s))
    before, after = parts(old), parts(new, "price_max")
    credit, charge = prorate_lines(before, after, cycle)
    rest = Fraction(cycle.end_s - cycle.now_s, whole_s)
    assert abs(credit - old * rest) <= Fraction(1, 2)
    assert abs(charge - new * rest) <= Fraction(1, 2)
    assert prorate_lines(after, before, cycle) == (charge, credit)
    assert prorate_lines(before, before, cycle) == (0, 0)


START, END, LATER = 1_000_000, 2_000_000, 3_000_000
BASE: dict[str, Any] = {"id": "si_1", "price": {"id": "price_pro", "recurring": {}}, "quantity": 1}
TOKENS = {"id": "price_tokens", "recurring": {"usage_type": "metered", "meter": "mtr_1"}}
METERED = {"id": "si_2", "price": TOKENS, "quantity": 0}


def phase(start: int, end: int, *items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    shown = [{name: value for name, value in item.items() if name != "id"} for item in items or (BASE,)]
    return {"start_date": start, "end_date": end, "items": shown, **more}


def schedule(*phases: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "sub_sched_1", "phases": list(phases), "current_phase": {"start_date": START}, **more}


def subscription(*items: dict[str, Any]) -> dict[str, Any]:
    return {"id": "sub_1", "items": {"data": list(items)}}


def sent(drafts: list[Any]) -> list[dict[str, Any]]:
    return [draft.to_params(draft.lines()) for draft in drafts]


def present(shown: dict[str, Any], *items: dict[str, Any]) -> dict[str, Any]:
    (draft,) = sent(present_phases(schedule(shown), subscription(*items or (BASE,))))
    return draft


def cut(shown: dict[str, Any], interval: Literal["month", "year"] = "month") -> list[Any]:
    return cut_phases(shown, subscription(BASE, METERED), change_s=END, interval=interval)


def paths(kind: object, own: str) -> set[tuple[str, ...]]:
    """The fields of a type of the SDK, with those of its objects whose types' names begin with ``own``."""
    found: set[tuple[str, ...]] = set()
    for name, hint in fields(kind).items():
        inner = [part for part in types_in(hint) if getattr(part, "__qualname__", "").startswith(own)]
        found |= {(name,), *((name, *path) for part in inner[:1] for path in paths(part, own))}
    return found


def types_in(hint: object) -> list[object]:
    own = [hint] if get_origin(hint) is None else []
    return own + [part for each in get_args(hint) for part in types_in(each)]


def test_the_table_covers_each_field_that_differs() -> None:
    """A new field of the SDK's types is sent back by itself, or this test names it."""
    params = paths(types.SubscriptionScheduleModifyParamsPhase, "SubscriptionScheduleModifyParamsPhase")
    response = paths(SubscriptionSchedule.Phase, "SubscriptionSchedule.Phase")
    assert ("automatic_tax", "liability", "account") in params & response
    differ = params ^ response
    assert {path for path in differ if path[:-1] not in differ} == NOT_SENT.keys() - {("items", "plan")}


def test_expanded_objects_are_sent_by_their_ids() -> None:
    rate = {"id": "txr_1", "object": "tax_rate", "percentage": 19.0}
    draft = present(
        phase(
            START,
            LATER,
            BASE | {"plan": "price_pro", "tax_rates": [rate]},
            default_tax_rates=[rate],
            default_payment_method={"id": "pm_1", "object": "payment_method"},
            transfer_data={"amount_percent": None, "destination": {"id": "acct_2", "object": "account"}},
            on_behalf_of={"id": "acct_1", "object": "account"},
            automatic_tax={"enabled": False, "disabled_reason": "requires_location", "liability": None},
            invoice_settings={"account_tax_ids": [{"id": "txi_1", "object": "tax_id"}], "issuer": {"a": 1}},
            metadata={"id": "7", "object": "mine"},
        )
    )
    assert draft == {
        "start_date": START,
        "end_date": LATER,
        "items": [{"price": "price_pro", "quantity": 1, "tax_rates": ["txr_1"]}],
        "default_tax_rates": ["txr_1"],
        "default_payment_method": "pm_1",
        "transfer_data": {"destination": "acct_2"},
        "automatic_tax": {"enabled": False},
        "on_behalf_of": "acct_1",
        "invoice_settings": {"account_tax_ids": ["txi_1"], "issuer": {"a": 1}},
        "metadata": {"id": "7", "object": "mine"},
    }


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("di_1", {"discount": "di_1"}),
        ({"id": "di_1", "object": "discount", "source": {"coupon": "C"}}, {"discount": "di_1"}),
        ({"coupon": "C", "discount": None, "promotion_code": None}, {"coupon": "C"}),
        ({"coupon": {"id": "C", "object": "coupon"}, "discount": None}, {"coupon": "C"}),
        ({"coupon": "C", "discount": None, "promotion_code": "promo_1"}, {"promotion_code": "promo_1"}),
        ({"coupon": "C", "discount": {"id": "di_1", "object": "discount"}}, {"discount": "di_1"}),
    ],
)
def test_a_discount_is_sent_by_one_name(shown: object, expected: dict[str, str]) -> None:
    assert present(phase(START, LATER, discounts=[shown]))["discounts"] == [expected]


def test_a_trial_goes_on_or_ends_with_its_phase() -> None:
    trial = phase(START, LATER, trial=True, trial_end=LATER, billing_cycle_anchor="phase_start")
    first, second = sent(cut(schedule(trial)))
    assert (first["trial_end"], first["billing_cycle_anchor"]) == (END, "phase_start")
    assert "trial" not in first
    assert (second["trial_end"], second["end_date"]) == (LATER, LATER)
    assert {"trial", "billing_cycle_anchor", "start_date"} & second.keys() == set()
    first, second = sent(cut(schedule(phase(START, END, trial=True, trial_end=END)), "year"))
    assert (first["trial"], first["trial_end"]) == (True, END)
    assert (second["duration"], "trial_end" in second) == ({"interval": "year", "interval_count": 1}, False)


def test_a_metered_item_has_no_quantity_and_one_of_zero_keeps_it() -> None:
    zero: dict[str, Any] = {"id": "si_3", "price": {"id": "price_addon", "recurring": {}}, "quantity": 0}
    draft = present(phase(START, LATER, METERED), METERED, zero)
    assert draft["items"] == [{"price": "price_tokens"}, {"price": "price_addon", "quantity": 0}]


def test_past_phases_are_left_out_and_those_ahead_stay() -> None:
    shown = schedule(
        phase(END, LATER, metadata={"n": "3"}, proration_behavior="none"),
        phase(1, START, metadata={"n": "1"}),
        phase(START, END, metadata={"n": "2"}, proration_behavior="none"),
    )
    first, second = cut(shown)
    assert (first.params["metadata"], first.is_later) == ({"n": "2"}, False)
    assert (second.params["metadata"], second.is_later) == ({"n": "3"}, True)
    assert first.params["proration_behavior"] == "none"
    assert second.params["proration_behavior"] == "create_prorations"  # Else usage would be dropped.
    assert second.params["end_date"] == LATER


def test_a_phase_that_ends_before_the_change_goes_on_until_then() -> None:
    shown = schedule(phase(START, END - 10, description="kept"), end_behavior="release")
    first, second = sent(cut(shown))
    assert (first["end_date"], second["description"]) == (END, "kept")
    with pytest.raises(SubscriptionError, match="cancels the subscription before the change takes effect"):
        cut({**shown, "end_behavior": "cancel"})


def test_a_phase_ahead_is_cut_where_the_change_falls_into_it() -> None:
    ahead = phase(END - 10, LATER, discounts=[{"coupon": "C", "discount": None}], on_behalf_of="acct_1")
    drafts = cut(schedule(phase(START, END - 10), ahead))
    assert [draft.is_later for draft in drafts] == [False, False, True]
    _, first, second = sent(drafts)
    assert [first[name] for name in ("start_date", "end_date")] == [END - 10, END]
    assert ("start_date" in second, second["end_date"]) == (False, LATER)
    assert (first["discounts"], second["discounts"]) == ([{"coupon": "C"}], [{"coupon": "C"}])
    assert second["on_behalf_of"] == "acct_1"
