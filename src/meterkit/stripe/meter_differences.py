"""Meters at Stripe: keys of meter events, and differences from the plans file. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog

CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"
_ACTIVE: Final = "active"
_FORMULA: Final = "sum"


def meter_differences(catalog: Catalog, at_stripe: Iterable[Mapping[str, Any]]) -> list[str]:
    """Differences that keep Stripe from counting a plans file's meters, one a line; empty: none.

    Args:
        catalog: whose meters are delivered.
        at_stripe: the meters as ``GET /v1/billing/meters`` lists them.
    """
    active = {meter["event_name"]: meter for meter in at_stripe if meter["status"] == _ACTIVE}
    found: list[str] = []
    for meter in catalog.meters.values():
        if meter.stripe is None or meter.stripe.report == "none":
            continue
        event_name = meter.stripe.event_name
        there = active.get(event_name)
        if there is None:
            found.append(f"meter {meter.name}: Stripe has no active meter with the event name {event_name}")
            continue
        formula, window = there["default_aggregation"]["formula"], there.get("event_time_window")
        if formula != _FORMULA or window is not None:
            counts = formula if window is None else f"{formula} per {window}"
            found.append(
                f"meter {meter.name}: the meter {there['id']} at Stripe aggregates by {counts}, and"
                f" meterkit's events must be summed: make a meter with formula {_FORMULA} and no"
                " event_time_window, and deactivate this one"
            )
        for setting, sent in (("customer_mapping", CUSTOMER_KEY), ("value_settings", VALUE_KEY)):
            wanted = there[setting]["event_payload_key"]
            if wanted != sent:
                found.append(
                    f"meter {meter.name}: the meter {there['id']} at Stripe has {setting}.event_payload_key"
                    f" {wanted}; the events have {sent}: make a meter with {sent} and deactivate this one"
                )
    return found
