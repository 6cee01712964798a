"""Plans that are sold, and the meters whose usage they bill through Stripe. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.models import Entitlement, Meter, Plan


def is_sold(plan: Plan) -> bool:
    """Whether customers can subscribe to a plan: it names a price at Stripe, or costs something."""
    price = plan.price
    charges = any(given.overage.amount_cents is not None for given in plan.entitlements.values())
    return price.stripe_price is not None or price.amount_cents > 0 or plan.seat_price is not None or charges


def billed_as(plan: Plan, meter: Meter) -> Entitlement | None:
    """How a plan bills the reported units of a meter; None: it bills none.

    Of a derived meter the units are sent that its source bills, after what its source includes. Its own price
    goes before that of its source.
    """
    own = plan.entitlements[meter.name]
    if meter.is_row and own.overage.mode != "bill":
        return None  # Another plan's price.
    whole = None if meter.source is None else plan.entitlements[meter.source]
    if whole is None or whole.overage.mode != "bill":
        return own if own.overage.mode == "bill" else None
    if whole.included is None:
        return None
    has_price = own.overage.mode == "bill" and own.overage.amount_cents is not None
    return replace(own, included=whole.included, overage=own.overage if has_price else whole.overage)


def billed_meters(meters: Mapping[str, Meter], plan: Plan) -> list[Meter]:
    """The meters whose usage a plan bills through Stripe, in the order of the plans file."""
    return [
        meter
        for meter in meters.values()
        if meter.stripe is not None and meter.stripe.report != "none" and billed_as(plan, meter) is not None
    ]


def meters_billed_by_tiers(meters: Mapping[str, Meter], plan: Plan) -> list[str]:
    """The names of the meters that a plan bills by a price that does its own tiers (``report: usage``)."""
    return [
        meter.name
        for meter in billed_meters(meters, plan)
        if meter.stripe is not None and meter.stripe.report == "usage"
    ]
