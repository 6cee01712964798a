"""What may be asked of a subscription: plans that are sold, and numbers of seats. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.errors import QuantityError, SubscriptionError, UnknownPlanError
from meterkit.store.arguments import is_text
from meterkit.subscriptions.rules.changes import covers_all_seats, included_seats, sells_seats
from meterkit.subscriptions.rules.sold import is_sold

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan

__all__ = ["SEATS_MAX", "check_seats", "check_seats_sold", "check_sold"]

SEATS_MAX: Final = 1_000_000


def check_sold(plan: str, catalog: Catalog) -> Plan:
    """The plan of this key.

    Raises:
        UnknownPlanError: there is none, or it costs nothing.
    """
    found = catalog.plans.get(plan) if is_text(plan) else None
    if found is None:
        raise UnknownPlanError.of(plan, catalog.plans)
    if not is_sold(found):
        raise UnknownPlanError(
            plan,
            f"plan: {plan!r:.80} cannot be subscribed to: it costs nothing; write what it costs as"
            " `amount_cents:` under its `price:` in the plans file, or name a price of Stripe's as"
            " `stripe_price:`",
        )
    return found


def check_seats(seats: object) -> int:
    """The number of seats.

    Raises:
        QuantityError: it is not an integer from 1 to 1,000,000.
    """
    if type(seats) is int and 1 <= seats <= SEATS_MAX:
        return seats
    found = repr(seats) if isinstance(seats, int | float) else f"a value of type {type(seats).__name__}"
    raise QuantityError(f"seats: found {found:.40}; allowed is an integer from 1 to {SEATS_MAX}")


def check_seats_sold(plan: Plan, seat_meter: str | None, seats: int) -> None:
    """See that so many seats can be had with a plan.

    Raises:
        SubscriptionError: there are more than the plan includes, and it sells none.
    """
    if sells_seats(plan, seat_meter) or covers_all_seats(plan, seat_meter):
        return
    covered = max(1, included_seats(plan, seat_meter))
    if seats > covered:
        raise SubscriptionError(
            f"seats: found {seats}; the plan {plan.key!r} sells no seats beyond the {covered} that it"
            " includes: it has no `seat_price` in the plans file"
        )
