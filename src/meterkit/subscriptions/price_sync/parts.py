"""Derived meters whose units no prices can bill rightly. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.subscriptions.rules.sold import billed_as

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Meter

__all__ = ["split_wrongly"]


def split_wrongly(catalog: Catalog, plan: Plan, meter: Meter) -> str | None:
    """Why no prices can bill a derived meter and its source rightly; None: they can."""
    if meter.source is None or meter.stripe is None or billed_as(plan, meter) is None:
        return None
    whole = catalog.meters[meter.source]
    reporting = [
        one.name for one in (whole, meter) if one.stripe is not None and one.stripe.report == "usage"
    ]
    if not reporting or plan.entitlements[whole.name].included == 0:
        return None
    found = " and ".join(f"{name} has `report: usage`" for name in reporting)
    return (
        f"{found}, and it is a part of {whole.name}: what {whole.name} includes is counted over both, and"
        " Stripe would count each by itself: a free tier on either price gives included units a second time,"
        " and a price without one bills them; write `report: overage` for both, or include nothing of"
        f" {whole.name}"
    )
