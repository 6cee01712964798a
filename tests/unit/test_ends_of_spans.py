"""What counts at the very end of a span: the last change before it, the minute that has begun."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

import pytest

from meterkit.catalog import loads
from meterkit.customers.history import HistoryEntry, until
from meterkit.delivery.summaries import _begun_s
from meterkit.outbox.late_terms import late_class

END: Final = datetime(2031, 6, 1, tzinfo=UTC)
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  kept:  {unit: one}
  over:  {unit: one, stripe: {event_name: over}}
  whole: {unit: one, stripe: {event_name: whole, report: usage}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      over:  {included: 5, overage: bill}
      whole: {included: 5, overage: deny}
""")


@pytest.mark.parametrize(("after", "found"), [(-1, None), (0, "free"), (1, "free")])
def test_a_change_at_the_end_of_a_span_does_not_count_in_it(after: int, found: str | None) -> None:
    at = END + timedelta(seconds=after)
    change = HistoryEntry(kind="plan", at=at, before="free", after="pro", cause="api")
    assert until([change], "plan", END) == found


@pytest.mark.parametrize(("meter", "expected"), [("kept", ""), ("over", "overage"), ("whole", "included")])
def test_late_usage_is_of_the_class_that_stripe_is_sent(meter: str, expected: str) -> None:
    own = CATALOG.plans["free"].entitlements[meter]
    assert late_class(own, CATALOG.meters[meter]) == expected
    assert late_class(None, CATALOG.meters[meter]) == ""


@pytest.mark.parametrize(("now_s", "begun_s"), [(121, 120), (122, 180), (180, 180), (181, 180), (182, 240)])
def test_a_minute_has_begun_when_its_first_second_is_over_at_stripe(now_s: int, begun_s: int) -> None:
    store: Any = SimpleNamespace(now_ms=lambda: now_s * 1000 + 999)
    assert _begun_s(store) == begun_s
