"""What each event of Stripe hints at."""
# Internals: a pure table of Stripe's events.

from __future__ import annotations

from typing import Any

import pytest

from meterkit.subscriptions.webhooks.stripe_events import (
    ALARMS,
    DISPUTED,
    REFUNDED,
    TYPES,
    Hint,
    hint_of,
)

AT = 1_795_000_000


def event(kind: str, told: object, **more: Any) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "event",
        "type": kind,
        "created": AT,
        "data": {"object": told},
        **more,
    }


INVOICE = {
    "id": "in_1",
    "object": "invoice",
    "customer": "cus_1",
    "attempt_count": 2,
    "amount_due": 2900,
    "amount_paid": 0,
    "currency": "usd",
    "next_payment_attempt": AT + 86_400,
}
LOOK = Hint(event="evt_1", stripe_customer="cus_1")


@pytest.mark.parametrize("kind", sorted({*TYPES} - {DISPUTED, REFUNDED, "customer.updated"}))
def test_each_type_names_the_stripe_customer_to_look_at(kind: str) -> None:
    found = hint_of(event(kind, {"id": "x_1", "customer": "cus_1"}))
    assert found == LOOK
    assert hint_of(event(kind, {"id": "x_1", "customer": {"id": "cus_1", "object": "customer"}})) == LOOK


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ({"invoice_settings": {"default_payment_method": None}}, LOOK),
        ({"balance": 0}, None),
        (None, None),
    ],
)
def test_of_a_customer_only_another_payment_method_matters(previous: object, expected: Hint | None) -> None:
    told = {"id": "cus_1", "object": "customer"}
    data = {"object": told, "previous_attributes": previous}
    assert hint_of(event("customer.updated", told, data=data)) == expected


@pytest.mark.parametrize(
    ("told", "amount"),
    [
        ({"id": "dp_1", "amount": 2900, "currency": "usd"}, "a payment of USD 29.00"),
        ({"id": "dp_1", "amount": None, "currency": 7}, "a payment"),
    ],
)
def test_a_disputed_payment_is_for_a_person_and_changes_nothing(told: dict[str, Any], amount: str) -> None:
    found = hint_of(event(DISPUTED, told))
    assert found is not None
    assert (found.stripe_customer, found.note) == (None, None)
    assert found.alarm is not None
    assert found.alarm.startswith(f"{amount} is disputed (dp_1): the subscription goes on")


@pytest.mark.parametrize(
    "other",
    [
        event("customer.created", {"id": "cus_1"}),
        event("invoice.paid", {"id": "in_1", "customer": None}),
        event("invoice.paid", {"id": "in_1", "customer": "../v1/accounts"}),
        event("invoice.paid", INVOICE, account="acct_1"),
        {**event("invoice.paid", INVOICE), "data": None},
        {**event("invoice.paid", INVOICE), "object": "v2.core.event"},
    ],
)
def test_all_else_is_nothing_to_do(other: dict[str, Any]) -> None:
    assert hint_of(other) is None


def test_usage_that_stripe_does_not_bill_is_an_alarm() -> None:
    notice = {"id": "evt_9", "object": "v2.core.event", "type": ALARMS[0], "related_object": {"id": "mtr_1"}}
    found = hint_of(notice)
    assert found is not None
    # The event itself is to be fetched.
    assert (found.stripe_customer, found.note) == ("evt_9", None)
    assert "mtr_1" in str(found.alarm)
    assert "stripe v2 core events retrieve evt_9" in str(found.alarm)


@pytest.mark.parametrize("broken", [{"amount_due": True}, {"amount_due": 10**4000}, {"currency": None}])
def test_a_payment_that_cannot_be_read_is_looked_at_and_not_told(broken: dict[str, object]) -> None:
    assert hint_of(event("invoice.payment_failed", {**INVOICE, **broken})) == LOOK
