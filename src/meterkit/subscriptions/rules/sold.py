"""What of a plans file is sold at Stripe. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Entitlement, Meter

__all__ = ["billed_as", "billed_meters", "is_sold"]


def is_sold(plan: Plan) -> bool:
    """Whether customers can subscribe to a plan: it names a price at Stripe, or costs something."""
    price = plan.price
    charges = any(given.overage.amount_cents is not None for given in plan.entitlements.values())
    return price.stripe_price is not None or price.amount_cents > 0 or plan.seat_price is not None or charges


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


def billed_meters(catalog: Catalog, plan: Plan) -> list[Meter]:
    """The meters whose usage a plan bills through Stripe, in the order of the plans file."""
    return [
        meter
        for meter in catalog.meters.values()
        if meter.stripe is not None and meter.stripe.report != "none" and billed_as(plan, meter) is not None
    ]
