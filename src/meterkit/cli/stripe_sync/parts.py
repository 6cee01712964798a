"""Derived meters of a plan: what bills their units, which their source counts. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Entitlement, Meter

__all__ = ["billed_as", "split_wrongly"]


def billed_as(plan: Plan, meter: Meter) -> Entitlement | None:
    """By what a plan bills that which is sent of a meter; None: nothing of it is billed.

    Of a derived meter the units are sent that its source bills, after what its source includes. Its own price
    goes before that of its source.
    """
    own = plan.entitlements[meter.name]
    whole = None if meter.source is None else plan.entitlements[meter.source]
    if whole is None or whole.overage.mode != "bill":
        return own if own.overage.mode == "bill" else None
    if whole.included is None:
        return None
    has_price = own.overage.mode == "bill" and own.overage.amount_cents is not None
    return replace(own, included=whole.included, overage=own.overage if has_price else whole.overage)


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
