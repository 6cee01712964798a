"""Changes of a subscription: which plans are sold, what is allowed, when it takes effect. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.meters import is_sold, meters_billed_by_tiers
from meterkit.decisions.customer_state import with_seats
from meterkit.decisions.gauges import GaugeLimit
from meterkit.errors import QuantityError, SubscriptionError, UnknownPlanError
from meterkit.store.input_checks import is_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog, Changes, Meter, Plan


Course = Literal["keep", "unschedule", "now", "period_end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLimit:
    """A gauge that is filled further than a plan allows, in its unit."""

    meter: str
    used: int
    limit: int


def course_of(
    current: Plan,
    wanted: Plan,
    *,
    pending: str | None,
    changes: Changes,
    repeats_tiers: bool = False,
    paid_per: str | None = None,
) -> Course:
    """Course of a change of plan; the ranks of the plans decide, never their prices.

    ``now``, or at the ``period_end``: a plan of a lower rank is a downgrade, any other an upgrade. The plan
    that is in force needs none: ``unschedule`` the pending one, or ``keep`` it all as it is, also where the
    same is scheduled already. What includes by the year is left for a plan of a higher rank, or else when the
    year ends: who came back to it would have the whole year's quantity anew. A change that would begin the
    tiers of a price again waits for the period's end, whatever the plans file says.

    Args:
        current: the plan that the subscription has.
        wanted: the plan that it is to have.
        pending: the key of the plan that is scheduled, or None.
        changes: of the plans file.
        repeats_tiers: the result of :func:`repeats_tiers`.
        paid_per: the interval that the subscription is paid for; None: that of the plan.
    """
    if wanted.key == current.key:
        return "keep" if pending is None else "unschedule"
    when = changes.downgrade if wanted.rank < current.rank else changes.upgrade
    leaves_year = _by_year(current, paid_per) and not _by_year(wanted)
    if repeats_tiers or (wanted.rank <= current.rank and leaves_year):
        when = "period_end"
    return "keep" if when == "period_end" and pending == wanted.key else when


def repeats_tiers(had: Iterable[Plan], wanted: Plan, meters: Mapping[str, Meter]) -> bool:
    """Whether an immediate change would begin a meter's tiers again in one period (``report: usage``).

    Stripe applies the tiers of each price by themselves, so the free tier of the new price comes on top of
    that of the old one.

    Args:
        had: the plans in force in this period until now, the current one included.
        wanted: the plan that the subscription is to have.
        meters: of the plans file.
    """
    begun = {meter for plan in had for meter in meters_billed_by_tiers(meters, plan)}
    return not begun.isdisjoint(meters_billed_by_tiers(meters, wanted))


def _by_year(plan: Plan, paid_per: str | None = None) -> bool:
    return (paid_per or plan.price.interval, plan.price.included_per) == ("year", "interval")


def covers_all_seats(plan: Plan, seat_meter: str | None) -> bool:
    """Whether the base price of a plan covers all seats: ``seats: {included: unlimited}``."""
    return seat_meter is not None and plan.entitlements[seat_meter].is_unlimited


def sells_seats(plan: Plan, seat_meter: str | None) -> bool:
    """Whether seats can be had beyond those that the base price of a plan covers."""
    return plan.seat_price is not None and not covers_all_seats(plan, seat_meter)


def included_seats(plan: Plan, seat_meter: str | None) -> int:
    """How many seats the base price of a plan covers; 0 where the plan does not say, or covers all."""
    return 0 if seat_meter is None else plan.entitlements[seat_meter].included or 0


def paid_seats(plan: Plan, seat_meter: str | None, seats: int) -> int:
    """How many of so many seats cost the seat price."""
    return max(0, seats - included_seats(plan, seat_meter)) if sells_seats(plan, seat_meter) else 0


def seats_on(plan: Plan, seat_meter: str | None, *, paid: int, seats: int, in_use: int) -> int:
    """Total seats after a change of plan: included ones and those that were bought, at least those in use.

    Included seats do not become bought ones: a customer that has bought none is sold none. Bought seats that
    the new plan includes are not bought again.

    Args:
        plan: the plan that it is to have.
        seat_meter: the gauge of seats, or None.
        paid: how many cost the seat price now.
        seats: in all, now.
        in_use: the level of the gauge.
    """
    if not sells_seats(plan, seat_meter):
        return 0
    included = included_seats(plan, seat_meter)
    if not paid:
        return included
    return max(included + min(paid, max(0, seats - included)), in_use)


def over_limit(catalog: Catalog, plan: Plan, seats: int, levels: Mapping[str, int]) -> tuple[OverLimit, ...]:
    """The gauges that are filled further than a plan allows: they may not grow until they fit.

    Args:
        catalog: what is sold.
        plan: the plan.
        seats: that are paid for with it.
        levels: how far each gauge is filled.
    """
    entitlements = with_seats(plan.entitlements, catalog.meters, seats)
    found: list[OverLimit] = []
    for meter, used in levels.items():
        limit = GaugeLimit.of(entitlements[meter])
        if limit is not None and used > limit.included:
            found.append(OverLimit(meter=meter, used=used, limit=limit.included))
    return tuple(found)


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
