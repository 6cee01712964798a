"""Phases as they are sent back to Stripe, by what Stripe shows of them."""
# Internals: a pure table of the fields of schedule phases.

from __future__ import annotations

from typing import Any, get_args, get_origin

import pytest
from stripe import SubscriptionSchedule
from stripe.params import _subscription_schedule_modify_params as types

from drivers.sdk_parameters import fields
from meterkit.errors import SubscriptionError
from meterkit.subscriptions.schedule_phases import NOT_SENT, cut_phases, present_phases

START, END, LATER = 1_000_000, 2_000_000, 3_000_000


def price(name: str, **recurring: Any) -> dict[str, Any]:
    return {"id": name, "object": "price", "product": "prod_1", "recurring": recurring}


def phase(start: int, end: int, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    shown = [{name: value for name, value in item.items() if name != "id"} for item in items]
    return {"start_date": start, "end_date": end, "items": shown, **more}


def schedule(*phases: dict[str, Any], current: int = START, **more: Any) -> dict[str, Any]:
    return {"id": "sub_sched_1", "phases": list(phases), "current_phase": {"start_date": current}, **more}


def subscription(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "sub_1", "items": {"data": list(items)}, **more}


BASE = {"id": "si_1", "price": price("price_pro"), "quantity": 1}
METERED = {"id": "si_2", "price": price("price_tokens", usage_type="metered", meter="mtr_1"), "quantity": 0}
SUBSCRIBED = subscription(BASE, METERED)


def sent(drafts: list[Any]) -> list[dict[str, Any]]:
    return [draft.to_params(draft.lines()) for draft in drafts]


def paths(kind: object, *, to: str) -> set[tuple[str, ...]]:
    """The fields of a type of the SDK, with those of the objects in it, ``to`` parameters or of responses."""
    found: set[tuple[str, ...]] = set()
    for name, hint in fields(kind).items():
        found.add((name,))
        inner = next((part for part in parts(hint) if is_own(part, to)), None)
        if inner is not None:
            found |= {(name, *path) for path in paths(inner, to=to)}
    return found


def parts(hint: object) -> list[object]:
    """The types that a type consists of."""
    own = [hint] if get_origin(hint) is None else []
    return own + [part for each in get_args(hint) for part in parts(each)]


def is_own(kind: object, to: str) -> bool:
    name = str(getattr(kind, "__qualname__", ""))
    return name.startswith(
        "SubscriptionScheduleModifyParamsPhase" if to == "params" else "SubscriptionSchedule.Phase"
    )


def test_the_table_covers_each_field_that_differs() -> None:
    """A new field of the SDK's types is sent back by itself, or this test names it."""
    params = paths(types.SubscriptionScheduleModifyParamsPhase, to="params")
    response = paths(SubscriptionSchedule.Phase, to="response")
    assert ("automatic_tax", "liability", "account") in params & response
    differ = params ^ response
    tops = {path for path in differ if path[:-1] not in differ}
    assert tops == NOT_SENT.keys() - {("items", "plan")}


def test_expanded_objects_are_sent_by_their_ids() -> None:
    rate = {"id": "txr_1", "object": "tax_rate", "percentage": 19.0}
    shown = phase(
        START,
        LATER,
        {"price": price("price_pro"), "plan": "price_pro", "quantity": 1, "tax_rates": [rate]},
        default_tax_rates=[rate],
        default_payment_method={"id": "pm_1", "object": "payment_method"},
        on_behalf_of={"id": "acct_1", "object": "account"},
        transfer_data={"amount_percent": None, "destination": {"id": "acct_2", "object": "account"}},
        automatic_tax={"enabled": False, "disabled_reason": "requires_location_inputs", "liability": None},
        invoice_settings={
            "account_tax_ids": [{"id": "txi_1", "object": "tax_id"}],
            "issuer": {"type": "self"},
        },
        metadata={"id": "7", "object": "mine"},
    )
    (draft,) = sent(present_phases(schedule(shown), subscription(BASE)))
    assert draft == {
        "start_date": START,
        "end_date": LATER,
        "items": [{"price": "price_pro", "quantity": 1, "tax_rates": ["txr_1"]}],
        "default_tax_rates": ["txr_1"],
        "default_payment_method": "pm_1",
        "on_behalf_of": "acct_1",
        "transfer_data": {"destination": "acct_2"},
        "automatic_tax": {"enabled": False},
        "invoice_settings": {"account_tax_ids": ["txi_1"], "issuer": {"type": "self"}},
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
    (draft,) = sent(
        present_phases(schedule(phase(START, LATER, BASE, discounts=[shown])), subscription(BASE))
    )
    assert draft["discounts"] == [expected]


def test_a_trial_goes_on_or_ends_with_its_phase() -> None:
    shown = schedule(
        phase(START, LATER, BASE, trial=True, trial_end=LATER, billing_cycle_anchor="phase_start")
    )
    first, second = sent(cut_phases(shown, subscription(BASE), change_s=END, interval="month"))
    assert (first["trial_end"], "trial" in first, first["billing_cycle_anchor"]) == (
        END,
        False,
        "phase_start",
    )
    assert (second["trial_end"], second["end_date"]) == (LATER, LATER)
    assert {"trial", "billing_cycle_anchor", "start_date"} & second.keys() == set()
    whole = schedule(phase(START, END, BASE, trial=True, trial_end=END))
    first, second = sent(cut_phases(whole, subscription(BASE), change_s=END, interval="year"))
    assert (first["trial"], first["trial_end"]) == (True, END)
    assert (second["duration"], "trial_end" in second) == ({"interval": "year", "interval_count": 1}, False)


def test_a_metered_item_has_no_quantity_and_one_of_zero_keeps_it() -> None:
    zero = {"id": "si_3", "price": price("price_addon"), "quantity": 0}
    (draft,) = sent(present_phases(schedule(phase(START, LATER, METERED)), subscription(METERED, zero)))
    assert draft["items"] == [{"price": "price_tokens"}, {"price": "price_addon", "quantity": 0}]


def test_past_phases_are_left_out_and_those_ahead_stay() -> None:
    shown = schedule(
        phase(END, LATER, BASE, metadata={"n": "3"}, proration_behavior="none"),
        phase(1, START, BASE, metadata={"n": "1"}),
        phase(START, END, BASE, metadata={"n": "2"}, proration_behavior="none"),
    )
    first, second = cut_phases(shown, SUBSCRIBED, change_s=END, interval="month")
    assert (first.params["metadata"], first.is_later) == ({"n": "2"}, False)
    assert (second.params["metadata"], second.is_later) == ({"n": "3"}, True)
    assert first.params["proration_behavior"] == "none"
    assert second.params["proration_behavior"] == "create_prorations"  # Else usage would be dropped.
    assert second.params["end_date"] == LATER


def test_a_phase_that_ends_before_the_change_goes_on_until_then() -> None:
    shown = schedule(phase(START, END - 10, BASE, description="kept"), end_behavior="release")
    first, second = sent(cut_phases(shown, SUBSCRIBED, change_s=END, interval="month"))
    assert (first["end_date"], second["description"]) == (END, "kept")
    with pytest.raises(SubscriptionError, match="cancels the subscription before the change takes effect"):
        cut_phases({**shown, "end_behavior": "cancel"}, SUBSCRIBED, change_s=END, interval="month")


def test_a_phase_ahead_is_cut_where_the_change_falls_into_it() -> None:
    ahead = {
        "discounts": [{"coupon": "C", "discount": None, "promotion_code": None}],
        "on_behalf_of": "acct_1",
    }
    shown = schedule(phase(START, END - 10, BASE), phase(END - 10, LATER, BASE, **ahead))
    drafts = cut_phases(shown, SUBSCRIBED, change_s=END, interval="month")
    assert [draft.is_later for draft in drafts] == [False, False, True]
    _, first, second = sent(drafts)
    assert [(each.get("start_date"), each["end_date"]) for each in (first, second)] == [
        (END - 10, END),
        (None, LATER),
    ]
    assert (first["discounts"], second["discounts"]) == ([{"coupon": "C"}], [{"coupon": "C"}])
    assert second["on_behalf_of"] == "acct_1"
