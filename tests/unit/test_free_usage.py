"""Periods of trials and pauses, by what subscriptions have shown: pure tables."""

# Internals: pure tables of instants; a seam shows each as one line of an invoice.

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState, with_subscription
from meterkit.decisions.free_usage import free_reasons, is_usage_free_of
from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subscription import NEVER_MS, SubscriptionState
from meterkit.decisions.told_terms import with_terms

CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: pro
meters: {calls: {unit: call}}
plans: {pro: {price: {amount_cents: 0, interval: month}, meters: {calls: {included: 1}}}}
""")
BEFORE, START, LATER, END = 1_000_000_000, 2_000_000_000, 3_000_000_000, 4_000_000_000
TRIAL: Final = {"created_ms": START, "trial_end_ms": LATER}
PAUSED: Final = {"status": "paused", "start_ms": BEFORE, "end_ms": START}


def sold(**changed: Any) -> SubscriptionState:
    known: dict[str, Any] = {"id": "sub_1", "status": "active", "plan": "pro"}
    known |= {"start_ms": START, "end_ms": END, "anchor_ms": END, "created_ms": BEFORE, **changed}
    return SubscriptionState(**known)


def reported(*reports: dict[str, Any]) -> CustomerState:
    """The state of a customer after these reports of its subscription."""
    state, now_ms = CustomerState(), END
    for now_ms, report in enumerate(reports, END):
        after = with_subscription(state, sold(**report))
        after = with_terms(state, after, CATALOG, now_ms, told_ms=now_ms, source="stripe")
        state = CustomerState.parse(after.dump())
    return state


def is_free_in(state: CustomerState, from_ms: int, till_ms: int) -> list[bool]:
    """Whether usage is free of periods that begin two minutes before, then, at the end, and after it."""
    instants = (from_ms - SHORTEST_MS, from_ms - SHORTEST_MS + 1, till_ms - 1, till_ms)
    return [is_usage_free_of(state, at_ms) for at_ms in instants]


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        pytest.param(({"trial_end_ms": LATER},), (BEFORE, LATER), id="from its creation"),
        pytest.param(({**TRIAL, "trial_start_ms": START},), (START, LATER), id="given later"),
        pytest.param(({**TRIAL, "cancel_at_ms": LATER - 5},), (START, LATER - 5), id="cut"),
        pytest.param((TRIAL, {**TRIAL, "trial_end_ms": END}), (START, END), id="its end has moved"),
        pytest.param(
            (TRIAL, {**TRIAL, "trial_start_ms": END, "trial_end_ms": END + 9, "start_ms": END}),
            (START, LATER),
            id="the first of two",
        ),
        pytest.param(
            (TRIAL, {"id": "sub_2", "created_ms": LATER - 7}),
            (START, LATER - 7),
            id="one of an earlier subscription is over when the next one begins",
        ),
        pytest.param(
            (
                TRIAL,
                {**TRIAL, "status": "canceled", "ended_at_ms": LATER - 9},
                {"id": "sub_2", "created_ms": LATER},
            ),
            (START, LATER - 9),
            id="or when its own ended",
        ),
        pytest.param(
            ({**TRIAL, "created_ms": BEFORE}, {"id": "sub_2", "created_ms": 0}),
            (BEFORE, START),
            id="the next one begins with its period where no more is known",
        ),
        pytest.param(
            (TRIAL, {"id": "sub_2", "created_ms": LATER, "trial_end_ms": END}, {"id": "sub_3"}),
            (START, LATER),
            id="two, one after the other",
        ),
        pytest.param(
            (TRIAL, {**TRIAL, "status": "paused", "end_ms": LATER}, {**TRIAL, "start_ms": END - 1}),
            (START, END - 1),
            id="and a pause after it",
        ),
        pytest.param(
            (
                TRIAL,
                {**TRIAL, "status": "paused", "end_ms": LATER},
                {**TRIAL, "start_ms": END - 1},
                {"id": "sub_2", "created_ms": END},
            ),
            (START, END - 1),
            id="both of an earlier subscription",
        ),
        pytest.param(({**PAUSED},), (START, NEVER_MS), id="a pause begins with the period's end"),
        pytest.param((PAUSED, {"start_ms": LATER}), (START, LATER), id="it ended as a period began"),
        pytest.param(
            (PAUSED, {"usage_start_ms": LATER, "usage_end_ms": END}),
            (START, LATER),
            id="a period of metered prices",
        ),
        pytest.param(
            (PAUSED, {"start_ms": START + SHORTEST_MS}), (START, START + SHORTEST_MS), id="of two minutes"
        ),
        pytest.param(
            (PAUSED, {"status": "canceled", "ended_at_ms": LATER}),
            (START, LATER),
            id="until its subscription ended",
        ),
        pytest.param(
            (PAUSED, {"id": "sub_2", "created_ms": LATER}),
            (START, LATER),
            id="until the next subscription began",
        ),
        pytest.param(
            (
                PAUSED,
                {"start_ms": LATER},
                {"status": "paused", "start_ms": LATER, "end_ms": END},
                {"start_ms": END + SHORTEST_MS},
            ),
            (START, LATER),
            id="the first of two pauses",
        ),
    ],
)
def test_usage_of_trials_and_pauses_stays_free(
    reports: tuple[dict[str, Any], ...], expected: tuple[int, int]
) -> None:
    assert is_free_in(reported(*reports), *expected) == [False, True, True, False]


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param(({"seats": 1},), id="neither"),
        pytest.param((PAUSED, {"start_ms": START + SHORTEST_MS - 1}), id="a pause of less than two minutes"),
        pytest.param((TRIAL, {"id": "sub_2", "created_ms": START}), id="a trial that did not begin"),
        pytest.param((PAUSED, {"start_ms": BEFORE}), id="a pause that did not begin"),
    ],
)
def test_other_usage_is_billed(reports: tuple[dict[str, Any], ...]) -> None:
    assert is_free_in(reported(*reports), START, END) == [False] * 4


def test_a_trial_is_no_pause() -> None:
    assert [{*free_reasons(reported(of), START)} for of in (TRIAL, PAUSED, {"seats": 1})] == [
        {"trial"},
        {"pause"},
        set(),
    ]
    assert not is_usage_free_of(CustomerState(), START)


def test_paused_collection_voids_the_invoice_that_is_made_then() -> None:
    voiding = CustomerState(subscription=replace(sold(), void_from_ms=LATER, void_until_ms=END))
    asked = ((LATER,), (LATER - 1,), (LATER - 1, LATER), (LATER, END))
    assert [is_usage_free_of(voiding, *of) for of in asked] == [True, False, True, False]
