"""Sample events with made-up figures, for previews."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from meterkit.notify.events import EVENT_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.notify.events import CustomerEvent

_AT: Final = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
_VALUES: Final[Mapping[str, Any]] = {
    "id": "sample",
    "customer": "acme",
    "at": _AT,
    "percent": 80,
    "used": 8_000,
    "included": 10_000,
    "period_start": datetime(2026, 11, 1, tzinfo=UTC),
    "period_end": datetime(2026, 12, 1, tzinfo=UTC),
    "balance": 96,
    "balance_micros": 96_250_000,
    "cause": "api",
    "status": "active",
    "status_before": None,
    "seats": 1,
    "seats_before": 0,
    "addons": {},
    "addons_before": {},
    "cancel_at": None,
    "pending_plan": None,
    "pending_seats": None,
    "pending_addons": None,
    "pending_at": None,
    "access": "restricted",
    "access_before": "grace",
    "trial_end": _AT + timedelta(days=3),
    "invoice": "in_sample",
    "amount_cents": 2_900,
    "failures": 1,
    "next_attempt": _AT + timedelta(days=3),
    "credit": "usd",
    "declined": "card_declined",
    "url": "https://invoice.stripe.com/i/acct_1/in_1",
    "refunded_cents": 1000,
    "taken_back_cents": 700,
}
"""Values of attributes in events of every kind."""
_VALUES_OF_EVENT: Final[Mapping[str, Mapping[str, Any]]] = {
    "usage.spike": {
        "span": "hour",
        "used": 12_000,
        "usual": 800,
        "four_weeks_at_this_pace": 8_064_000,
        "last_four_weeks": 537_600,
        "used_cents": 1_440,
        "usual_cents": 96,
        "four_weeks_at_this_pace_cents": 967_680,
        "last_four_weeks_cents": 64_512,
    },
    "storage.over": {
        "used": 12_000_000_000,
        "included": 10_000_000_000,
        "since": _AT - timedelta(minutes=4),
        "until": _AT + timedelta(days=7, minutes=-4),
        "types": {"backups": 9_500_000_000, "documents": 2_500_000_000},
        "remaining": 500_000_000,
    },
    "period.summary": {
        "period_start": datetime(2026, 10, 1, tzinfo=UTC),
        "period_end": datetime(2026, 11, 1, tzinfo=UTC),
        "overage_cents": 240,
    },
    "access.changed": {"cause": "clock", "status": "past_due"},
    "dunning.reminder": {
        "after": timedelta(days=6),
        "failures": 2,
        "failed_at": _AT - timedelta(days=6),
        "access": "grace",
        "until": _AT + timedelta(days=1),
    },
    "top_up.failed": {"invoice": "in_1", "amount_cents": 2000},
    "top_up.refunded": {"invoice": "in_1"},
}


def make_sample(event: str, catalog: Catalog) -> CustomerEvent:
    """Make a sample of an event, with names of the plans file. Pure."""
    meters = catalog.meters.values()
    counter = next((meter.name for meter in meters if meter.kind != "gauge"), "requests")
    plan = list(catalog.plans.values())[-1]
    values: dict[str, Any] = {
        **_VALUES,
        "meter": next(iter(catalog.meters)),
        "meters": {counter: {"used": 12_000, "overage": 2_000, "before": 9_500}},
        "plan": plan.key,
        "addons": dict.fromkeys(plan.addons[:1], 1),
        "plan_before": catalog.default_plan,
        "currency": catalog.currency,
        **_VALUES_OF_EVENT.get(event, {}),
    }
    if event == "storage.over":
        values["meter"] = next((one.name for one in meters if one.unit in {"byte", "bytes"}), "storage")
    elif event == "credits.low":
        values["credit"] = next(iter(catalog.credits), "ai")
    event_class = EVENT_CLASSES[event]
    return event_class(**{field.name: values[field.name] for field in fields(event_class)})
