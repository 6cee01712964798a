"""What a meter at Stripe has counted of a customer, by its summaries."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.stripe.api import StripeApi

__all__ = ["counted"]


async def counted(api: StripeApi, meter: str, stripe_customer: str, start_s: int, end_s: int) -> Decimal:
    """The aggregate of a span (https://docs.stripe.com/api/billing/meter-event-summary/list).

    Args:
        api: asks Stripe.
        meter: its id.
        stripe_customer: whose events.
        start_s: the first second, a whole minute.
        end_s: the first one after it, a whole minute.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    span: dict[str, str | int] = {"customer": stripe_customer, "start_time": start_s, "end_time": end_s}
    found = await api.list(f"/v1/billing/meters/{meter}/event_summaries", span)
    # Floats, exact for whole numbers of up to 15 digits.
    return sum((Decimal(repr(summary["aggregated_value"])) for summary in found), Decimal(0))
