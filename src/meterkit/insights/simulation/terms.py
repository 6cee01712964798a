"""What a plan asks and gives, as far as the usage of a period can be tried under it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from meterkit.catalog.entitlements import ceiling
from meterkit.decisions.price_segments import label_of, overage_price, segments_of
from meterkit.decisions.program import demands_of
from meterkit.decisions.seats import seat_meter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.catalog.models import Rate

__all__ = ["Terms", "seats_cents", "terms_of"]

_HALF: Final = Fraction(1, 2)
_MONTHS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """What one customer of a plan gets and pays. Meters that are derived from others are left out.

    Attributes:
        plan: its key.
        fixed_cents: the price of a period, and of the seats beyond those included, in minor units.
        included: meter to the quantity that the price covers; meters without such a bound are left out.
        ceilings: meter to the quantity beyond which a request is refused unless a grant or credit pays.
        labels: meter to the price of its overage; see :func:`~meterkit.decisions.price_segments.label_of`.
        rates: meter to its rates.
        consumed: meters that a line of ``routes`` asks for by their quantity; of any other, something must be
            left.
        has_grants: whether the plan grants something with each period.
        grants_outlive: whether some of that is left when the period ends.
        sources: meters that others are derived from.
        lines: of ``routes``, what each consumes, and all meters that it asks for, in its order.
    """

    plan: str
    fixed_cents: Fraction
    included: Mapping[str, int]
    ceilings: Mapping[str, int]
    labels: Mapping[str, str]
    rates: Mapping[str, tuple[Rate, ...]]
    consumed: frozenset[str]
    has_grants: bool
    grants_outlive: bool
    sources: frozenset[str]
    lines: tuple[tuple[Mapping[str, int], tuple[str, ...]], ...]

    def needed(self, meter: str, units: int) -> int:
        """How much of a meter must be left for a request that used some units of it."""
        return units if meter in self.consumed else 1

    def in_order(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """The same quantities in the order of the line of ``routes`` that consumes most of just these.

        Where meters share a credit, the first ones get the rest of it.
        """
        matching = [
            (len(consume), meters)
            for consume, meters in self.lines
            if all(quantities.get(meter) == units for meter, units in consume.items())
        ]
        _, first = max(matching, key=itemgetter(0), default=(0, ()))
        return {
            meter: quantities[meter] for meter in dict.fromkeys((*first, *quantities)) if meter in quantities
        }

    def overage(self, used: Mapping[str, int]) -> dict[str, int]:
        """Units beyond what is included, by meter, where neither grants nor credits pay."""
        return {
            meter: max(0, units - self.included[meter])
            for meter, units in used.items()
            if meter in self.included
        }

    def charge(self, overage: Mapping[str, int]) -> Fraction:
        """What a period costs in minor units; overage without a price costs nothing here.

        Each meter's overage is rounded by itself, half up, as the line of it on an invoice is.
        """
        lines = (
            overage_price(segments_of("", label=self.labels[meter], sealed=0, overage=units)) or 0
            for meter, units in overage.items()
            if meter in self.labels
        )
        return self.fixed_cents + sum(floor(line + _HALF) for line in lines)

    def unpriced(self, overage: Mapping[str, int]) -> frozenset[str]:
        """Meters whose overage is billed at a price that the plans file does not name."""
        return frozenset(meter for meter, units in overage.items() if units and self.labels.get(meter) == "-")


def terms_of(catalog: Catalog, plan: Plan, given: Mapping[str, Entitlement], seats: int) -> Terms:
    """The terms of a plan.

    Args:
        catalog: where the plan is.
        plan: which.
        given: its entitlements, the customer's overrides laid over them.
        seats: that the subscription pays for, those that the price covers included.
    """
    meters = catalog.meters
    counters = {
        name: of
        for name, of in given.items()
        if meters[name].kind == "counter" and meters[name].source is None
    }
    ceilings = {name: ceiling(of) for name, of in counters.items()}
    return Terms(
        plan=plan.key,
        fixed_cents=_fixed_cents(catalog, plan, seats),
        included={name: of.included for name, of in counters.items() if of.included is not None},
        ceilings={name: most for name, most in ceilings.items() if most is not None},
        labels={name: label_of(of) for name, of in counters.items() if of.overage.mode == "bill"},
        rates={name: of.rates for name, of in counters.items() if of.rates},
        consumed=frozenset(name for route in catalog.routes for name in route.consume),
        has_grants=bool(plan.grants),
        grants_outlive=any(grant.expires_ms for grant in plan.grants),
        sources=frozenset(meter.source for meter in meters.values() if meter.source is not None),
        lines=tuple((route.consume, tuple(demands_of(route, catalog))) for route in catalog.routes),
    )


def seats_cents(catalog: Catalog, plan: Plan, seats: int) -> int:
    """The price of the seats beyond those that a plan includes, in minor units for its interval."""
    meter = seat_meter(catalog.meters)
    if plan.seat_price is None or meter is None:
        return 0
    return max(0, seats - (plan.entitlements[meter].included or 0)) * plan.seat_price.amount_cents


def _fixed_cents(catalog: Catalog, plan: Plan, seats: int) -> Fraction:
    cents = plan.price.amount_cents + seats_cents(catalog, plan, seats)
    is_shared = plan.price.interval == "year" and plan.price.included_per != "interval"
    return Fraction(cents, _MONTHS if is_shared else 1)
