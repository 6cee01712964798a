"""Stripe's reports on meter events that it took and refused later, as they are read."""
# Internals: a pure table of Stripe's error reports.

from __future__ import annotations

from typing import Any

import pytest

from meterkit.delivery.error_reports import (
    identifiers_of,
    read_report,
)

ID = "0123456789abcdef0123456789abcdef-1"


def told(*samples: dict[str, Any], code: str = "no_meter", count: int = 5) -> dict[str, Any]:
    """An event as https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api shows it."""
    kinds = [{"code": code, "error_count": count, "sample_errors": list(samples)}]
    return {
        "id": "evt_1",
        "related_object": {"id": "mtr_1", "type": "billing.meter"},
        "data": {
            "developer_message_summary": "There are 5 invalid events",
            "reason": {"error_count": count, "error_types": kinds},
            "validation_start": "2026-11-20T12:00:00.000Z",
            "validation_end": "2026-11-20T12:00:10.000Z",
        },
    }


def sample(message: str = "No.", **request: str) -> dict[str, Any]:
    return {"error_message": message, "request": request}


@pytest.mark.parametrize("name", ["identifier", "idempotency_key"])
@pytest.mark.parametrize("later", ["", "-0a1b2c3d"])
def test_an_intent_is_named_by_its_identifier_or_a_trys_key(name: str, later: str) -> None:
    # Stripe's reference names the one, an example of its pages the other.
    report = read_report(told(sample(**{name: ID + later})))
    assert identifiers_of(report) == {ID: ("no_meter", "No.")}


@pytest.mark.parametrize("name", ["", "order-7", ID[:-3], ID + "-xyz", ID + "; DROP", "evt_1"])
def test_what_names_no_intent_is_left_out(name: str) -> None:
    assert identifiers_of(read_report(told(sample(identifier=name)))) == {}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"data": None},
        {"data": {"reason": "no"}},
        {"data": {"reason": {"error_types": [None, 7, {"sample_errors": "x"}], "error_count": True}}},
        {"data": {"reason": {"error_types": [{"sample_errors": [{"request": [1]}]}]}}},
        {"related_object": {"id": 7}},
    ],
)
def test_whatever_an_event_holds_it_is_read(event: dict[str, Any]) -> None:
    report = read_report(event)
    assert (report.meter, report.count, identifiers_of(report)) == (None, 0, {})
