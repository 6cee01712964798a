"""What a change of plan is, when it takes effect, and what is too much for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from meterkit.decisions.gauges import GaugeLimit
from meterkit.decisions.seats import with_seats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Changes, Plan

__all__ = [
    "Course",
    "OverLimit",
    "course_of",
    "covers_all_seats",
    "included_seats",
    "over_limit",
    "paid_seats",
    "seats_on",
    "sells_seats",
]

Course = Literal["keep", "take_back", "now", "period_end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLimit:
    """A gauge that is filled further than a plan allows, in its unit."""

    meter: str
    used: int
    limit: int


def course_of(current: Plan, wanted: Plan, *, pending: str | None, changes: Changes) -> Course:
    """How a change of plan goes; the ranks of the plans decide, never their prices.

    ``now``, or at the ``period_end``: a plan of a lower rank is a downgrade, any other an upgrade. The plan
    that is in force needs none: ``take_back`` what is scheduled, or ``keep`` it all as it is, as where the
    same is scheduled already. What includes by the year is left for a plan of a higher rank, or else when the
    year ends: who came back to it would have the whole year's quantity anew.

    Args:
        current: the plan that the subscription has.
        wanted: the plan that it is to have.
        pending: the key of the plan that is scheduled, or None.
        changes: of the plans file.
    """
    if wanted.key == current.key:
        return "keep" if pending is None else "take_back"
    when = changes.downgrade if wanted.rank < current.rank else changes.upgrade
    if wanted.rank <= current.rank and _by_year(current) and not _by_year(wanted):
        when = "period_end"
    return "keep" if when == "period_end" and pending == wanted.key else when


def _by_year(plan: Plan) -> bool:
    return (plan.price.interval, plan.price.included_per) == ("year", "interval")


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


def seats_on(plan: Plan, seat_meter: str | None, *, paid: int, seats: int) -> int:
    """The seats in all that a subscription has on another plan: those that were bought stay, on top of none.

    Args:
        plan: the plan that it is to have.
        seat_meter: the gauge of seats, or None.
        paid: how many cost the seat price now.
        seats: in all, now.
    """
    if not sells_seats(plan, seat_meter):
        return 0
    return max(included_seats(plan, seat_meter), seats if paid else 0)


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
