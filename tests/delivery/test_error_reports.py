"""Stripe's reports on meter events that it took and refused later, as they are read."""
# Internals: a pure table of Stripe's error reports.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from drivers.kept_intents import kit_alone
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.delivery.error_reports import (
    BATCH,
    blamed,
    identifiers_of,
    read_report,
)
from meterkit.outbox.batches import Refusable, Refusing

if TYPE_CHECKING:
    from collections.abc import Iterable

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


@pytest.mark.parametrize("name", ["", ID[:-3], ID + "-xyz"])
def test_what_names_no_intent_is_left_out(name: str) -> None:
    assert identifiers_of(read_report(told(sample(identifier=name)))) == {}


@pytest.mark.parametrize(
    "event",
    [
        {"data": None},
        {"data": {"reason": {"error_types": [None, 7, {"sample_errors": "x"}], "error_count": True}}},
        {"data": {"reason": {"error_types": [{"sample_errors": [{"request": [1]}]}]}}},
        {"related_object": {"id": 7}},
    ],
)
def test_whatever_an_event_holds_it_is_read(event: dict[str, Any]) -> None:
    report = read_report(event)
    assert (report.meter, report.count, identifiers_of(report)) == (None, 0, {})


BATCH_KEY = f"{BATCH}{'0a' * 16}"


class Sent(Refusing):
    """One call with an intent of each of two meters."""

    async def batches(self, batches: Iterable[str]) -> dict[str, list[str]]:
        return {batch: ["a-1", "b-1"] for batch in batches}

    async def find(self, identifiers: Iterable[str]) -> dict[str, Refusable]:
        return {
            identifier: Refusable(
                identifier=identifier,
                customer="acme",
                stripe_customer="cus_acme",
                event_name=identifier.partition("-")[0],
                value=1,
                shard=0,
                day_ms=0,
            )
            for identifier in identifiers
        }


@pytest.mark.anyio
@pytest.mark.parametrize(("meter", "meant"), [("mtr_1", "a-1"), (None, "b-1")])
async def test_a_report_of_no_meter_means_what_no_meter_has(meter: str | None, meant: str) -> None:
    event = told(sample(identifier=BATCH_KEY), count=1)
    report = read_report(event | {"related_object": {"id": meter}})
    known = {"event_name": "a"}
    stripe = ObjectsAtStripe({"/v1/billing/meters": [known], "/v1/billing/meters/mtr_1": known})
    async with kit_alone() as kit:
        assert await blamed(stripe, Sent(kit.store), report) == {meant: ("no_meter", "No.")}
