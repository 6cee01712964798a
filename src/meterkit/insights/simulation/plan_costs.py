"""Price of a plan with its seats: by the customer's own subscription items, else by the plans file. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.customer_state import seat_meter
from meterkit.decisions.item_prices import NO_FIXED_PRICES, FixedPrice, FixedPrices

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.subscription import SubscriptionState

_MONTHS: Final = 12


class PlanCost(NamedTuple):
    """Cost of a plan with its seats for an interval.

    Attributes:
        base: the price of the plan.
        seat: that of one seat beyond those that the plan includes; None: it sells none.
        paid_seats: how many are paid for.
    """

    base: FixedPrice
    seat: FixedPrice | None
    paid_seats: int

    @property
    def seats_cents(self) -> int:
        """The price of all seats that are paid for, in minor units."""
        return 0 if self.seat is None else self.seat.cents(self.paid_seats)

    def per_period(self, plan: Plan) -> Fraction:
        """The price of a period that quantities are included for, in minor units."""
        is_shared = self.base.interval == "year" and plan.price.included_per != "interval"
        return Fraction(self.base.cents() + self.seats_cents, _MONTHS if is_shared else 1)


def plan_cost(catalog: Catalog, plan: Plan, seats: int, own: FixedPrices = NO_FIXED_PRICES) -> PlanCost:
    """The price of a plan with so many seats in all.

    Args:
        catalog: has the prices, where those of the items are not known.
        plan: which.
        seats: that are paid for, those that the plan includes included.
        own: the prices of the customer's own items.
    """
    file, currency = plan.price, catalog.currency
    of_file = FixedPrice(Fraction(file.amount_cents), currency, file.interval)
    base, seat = FixedPrice.parse(own.base) or of_file, FixedPrice.parse(own.seat)
    if seat is None and plan.seat_price is not None:
        seat = FixedPrice(Fraction(plan.seat_price.amount_cents), currency, file.interval)
    meter = seat_meter(catalog.meters)
    included = 0 if meter is None else plan.entitlements[meter].included or 0
    return PlanCost(base, seat, 0 if meter is None else max(0, seats - included))


def fixed_prices_at(subscription: SubscriptionState | None, plan: str, at_ms: int) -> FixedPrices:
    """Prices that a customer pays for a plan and its seats; empty where the subscription is not of this plan.

    Args:
        subscription: of the customer; None: there is none.
        plan: the key of the plan in force.
        at_ms: the instant. The prices of a plan that a schedule has brought are not known yet.
    """
    if subscription is None or plan != subscription.plan or subscription.plan_at(at_ms) != plan:
        return NO_FIXED_PRICES
    return FixedPrices(subscription.base_price, subscription.seat_price)
