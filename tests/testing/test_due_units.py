"""The part of a quantity that Stripe is to have, by the plan: a pure table."""

# Internals: a pure table of quantities.

from __future__ import annotations

from typing import Any

import pytest

from meterkit.catalog import loads
from meterkit.testing.bill import due_of

ENTITLED = loads("""
    schema: 1
    currency: usd
    default_plan: free
    meters:
      capped: {unit: unit}
      billed: {unit: unit, stripe: {event_name: billed}}
      unlimited: {unit: unit}
    plans:
      free:
        price: {amount_cents: 0, interval: month}
        meters:
          capped: {included: 40, overage: deny}
          billed: {included: 8_000, overage: {bill: {cap: 5_000}}}
          unlimited: {included: unlimited}
""").plans["free"]


@pytest.mark.parametrize(
    ("meter", "report", "quantity", "due"),
    [
        ("capped", "usage", 40, 40),  # Reported whole.
        ("capped", "usage", 45, 40),  # Overage is never sent where the plan does not bill it.
        ("billed", "overage", 8_000, 0),  # Included is in the base price.
        ("billed", "overage", 8_001, 1),
        ("billed", "overage", 20_000, 5_000),  # No more than the cap.
        ("unlimited", "usage", 1_000_000, 1_000_000),  # Unlimited is included, and reported.
    ],
)
def test_what_is_due_at_stripe(meter: str, report: Any, quantity: int, due: int) -> None:
    assert due == due_of(quantity, ENTITLED.entitlements[meter], report)
