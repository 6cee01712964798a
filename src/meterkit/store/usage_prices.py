"""The price of overage as ``kit.usage`` shows it. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NotRequired, TypedDict

from meterkit.catalog.amount_texts import rounded_cents

if TYPE_CHECKING:
    from meterkit.catalog import Entitlement
    from meterkit.decisions.item_prices import ItemPrice


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
    entitlement: Entitlement, own: ItemPrice | None, currency: str, interval: str
) -> OveragePrice | None:
    """The price of a meter's overage; None: it is not billed, or its price is only at Stripe.

    Args:
        entitlement: of the meter.
        own: the price of the customer's subscription item for it; None: not known.
        currency: of the plans file.
        interval: that the price is for.
    """
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if entitlement.overage.mode != "bill" or per is None or amount_cents is None:
        return None
    found: OveragePrice = {
        "per": per,
        "amount_cents": amount_cents,
        "currency": currency,
        "interval": interval,
    }
    return found if own is not None and own.is_exact else {**found, "estimated": True}


def price_cents(overage: int, entitlement: Entitlement) -> int | None:
    """What overage costs in minor units: exact until here, rounded half up."""
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if per is None or amount_cents is None:
        return None
    return rounded_cents(Fraction(overage * amount_cents, per))
