"""The price of overage as ``kit.usage`` shows it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from meterkit.decisions.item_prices import prices_by_meter

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Entitlement
    from meterkit.decisions.customer_state import EffectivePlan


class OveragePrice(TypedDict):
    """The price of overage: ``per`` units cost ``amount_cents`` in minor units of ``currency``.

    It is the price of the customer's own subscription item. ``estimated`` is there, and true, where no such
    price is known: then it is that of the plans file.
    """

    per: int
    amount_cents: int
    currency: str
    interval: str
    estimated: NotRequired[bool]


def overage_price_of(
    entitlement: Entitlement, effective: EffectivePlan, catalog: Catalog, interval: str | None
) -> OveragePrice | None:
    """The price of a meter's overage; None: it is not billed, or its price is only at Stripe.

    Args:
        entitlement: of the meter.
        effective: what the customer has.
        catalog: what is sold.
        interval: that the subscription is paid for; None: as the plan says.
    """
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if entitlement.overage.mode != "bill" or per is None or amount_cents is None:
        return None
    found: OveragePrice = {
        "per": per,
        "amount_cents": amount_cents,
        "currency": catalog.currency,
        "interval": interval or effective.plan.price.interval,
    }
    known = prices_by_meter(effective.prices, catalog).get(entitlement.meter)
    return found if known is not None and known.is_exact else {**found, "estimated": True}


def price_cents(overage: int, entitlement: Entitlement) -> int | None:
    """What overage costs in minor units: exact until here, rounded half to even."""
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if per is None or amount_cents is None:
        return None
    whole, rest = divmod(overage * amount_cents, per)
    return whole + (2 * rest > per or (2 * rest == per and whole % 2 == 1))
