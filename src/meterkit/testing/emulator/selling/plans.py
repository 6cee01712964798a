"""A plans file as Stripe's products and prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.catalog import Catalog, Meter, Plan
    from meterkit.catalog.models import Overage

__all__ = ["PlanPrice", "prices_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrice:
    """A price that a plan needs at Stripe.

    Attributes:
        id: as the plans file names it, or made of the names of plan and meter.
        event_name: of the meter whose usage is charged; None: a quantity is charged in advance.
        per: the quantity that the amount buys.
    """

    id: str
    amount_cents: int
    interval: Literal["month", "year"]
    event_name: str | None = None
    per: int = 1


def prices_of(catalog: Catalog, plan: Plan) -> Iterator[PlanPrice]:
    """The prices of a plan that is sold: its base price, its seats, and what is billed beyond included.

    A plan without ``stripe_price`` has none, nor has a meter whose overage has its price at Stripe alone. A
    derived meter without a price of its own has that of its source, whose units it sends.
    """
    price, seat = plan.price, plan.seat_price
    if price.stripe_price is None:
        return
    yield PlanPrice(id=price.stripe_price, amount_cents=price.amount_cents, interval=price.interval)
    if seat is not None and seat.stripe_price is not None:
        yield PlanPrice(id=seat.stripe_price, amount_cents=seat.amount_cents, interval=price.interval)
    for name, meter in catalog.meters.items():
        stripe, overage = meter.stripe, _overage_of(plan, meter)
        if stripe is None or overage.mode != "bill" or overage.amount_cents is None:
            continue
        yield PlanPrice(
            id=f"price_{plan.key}_{name}",
            amount_cents=overage.amount_cents,
            interval=price.interval,
            event_name=stripe.event_name,
            per=overage.per or 1,
        )


def _overage_of(plan: Plan, meter: Meter) -> Overage:
    """By what a plan bills that which is sent of a meter."""
    own = plan.entitlements[meter.name].overage
    if meter.source is None or (own.mode == "bill" and own.amount_cents is not None):
        return own
    return plan.entitlements[meter.source].overage
