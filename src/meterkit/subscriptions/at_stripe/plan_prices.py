"""The prices at Stripe of a plan that is sold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.at_stripe.items import PlanPrices, metered_among
from meterkit.subscriptions.at_stripe.parts import id_in

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.stripe.api import StripeApi

__all__ = ["prices_of"]

_PRICES: Final = "/v1/prices"
_METERS: Final = "/v1/billing/meters"


async def prices_of(api: StripeApi, catalog: Catalog, plan: Plan) -> PlanPrices:
    """The prices of a plan that is sold: its own, and the metered ones of the product of its base price.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    base = await api.get(f"{_PRICES}/{plan.price.stripe_price}")
    of_product = await api.list(_PRICES, {"product": id_in(base, "product"), "active": True})
    return PlanPrices(
        plan=plan.key,
        base=base["id"],
        seat=plan.seat_price.stripe_price if plan.seat_price is not None else None,
        metered=metered_among(of_product, base),
        meters=_of_file(await api.list(_METERS), catalog),
    )


def _of_file(meters: list[dict[str, Any]], catalog: Catalog) -> frozenset[str]:
    """The ids of the meters, active or not, that carry a meter of the plans file."""
    names = {meter.stripe.event_name for meter in catalog.meters.values() if meter.stripe is not None}
    return frozenset(str(meter["id"]) for meter in meters if meter.get("event_name") in names)
