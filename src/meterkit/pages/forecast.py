"""Forecast of a period, and the cost of its usage on other plans. Pure."""

from __future__ import annotations

from math import ceil, floor, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from meterkit.catalog.entitlements import ceiling
from meterkit.decisions.customer_state import seat_meter
from meterkit.decisions.grants import MICRO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.insights.simulation.terms import TrialTerms
    from meterkit.store.customer_usage import MeterUsage

_LAST_DAYS: Final = 14
_SPREADS: Final = 1.28
"""Standard deviations around the mean that contain eight of ten values of a normal distribution."""


class ForecastRange(NamedTuple):
    """A forecast with the bounds of eight in ten periods, if days vary as before."""

    expected: int
    low: int
    high: int


class PeriodForecast(TypedDict):
    """Units by meter, and the cost in minor units, at the end of the period."""

    meters: dict[str, ForecastRange]
    cost_cents: ForecastRange


class OtherPlan(TypedDict):
    """Cost of the period's usage so far on another plan, in minor units.

    ``refused`` names meters whose usage exceeds the plan.
    """

    plan: str
    name: str
    cost_cents: int
    refused: list[str]


def forecast_usage(
    days: Mapping[str, Sequence[int]], usage: Mapping[str, MeterUsage], rest_days: float, terms: TrialTerms
) -> PeriodForecast:
    """Forecast the end of the period, by its last complete days, at most fourteen.

    Usage above a plan's ceiling would be refused, so the forecast leaves it out.

    Args:
        days: meter to the units of each complete day of the period.
        usage: of the meters so far.
        rest_days: the rest of the period.
        terms: of the plan.
    """
    found = {
        name: _forecast_meter(usage[name], of[-_LAST_DAYS:], rest_days, terms.ceilings.get(name))
        for name, of in days.items()
        if of and name in usage
    }
    costs = [
        round(
            terms.charge(
                {
                    name: _expected_overage(counts, found.get(name), nth, terms.caps.get(name))
                    for name, counts in usage.items()
                }
            )
        )
        for nth in range(len(ForecastRange._fields))
    ]
    return {"meters": found, "cost_cents": ForecastRange(*costs)}


def _forecast_meter(
    counts: MeterUsage, days: Sequence[int], rest_days: float, ceiling: int | None
) -> ForecastRange:
    used, mean = counts["recorded"], fmean(days)
    more, spread = mean * rest_days, _SPREADS * (stdev(days) if len(days) > 1 else mean) * sqrt(rest_days)
    ends = (used + max(0, units) for units in (round(more), floor(more - spread), ceil(more + spread)))
    most = None if ceiling is None else max(used, ceiling + counts["granted"])
    return ForecastRange(*(end if most is None else min(end, most) for end in ends))


def _expected_overage(counts: MeterUsage, ends: ForecastRange | None, nth: int, cap: int | None) -> int:
    """Return the overage at the end of the period: usage beyond included and grants, up to the cap."""
    included = counts["included"]
    if ends is None or included == "unlimited":
        return counts["overage"]
    paid = max(counts["recorded"] - counts["overage"], included + counts["granted"])
    more = ends[nth] - paid
    return max(counts["overage"], more if cap is None else min(more, cap))


def on_other_plans(
    catalog: Catalog, offers: Iterable[tuple[Plan, TrialTerms]], used: Mapping[str, int]
) -> list[OtherPlan]:
    """Compute the cost of usage on some plans, lowest rank first, with the grants of one period.

    Args:
        catalog: has the plans.
        offers: the plans, with their terms for the seats in use.
        used: meter to its units, or its level, so far.
    """
    found: list[OtherPlan] = []
    for plan, terms in sorted(offers, key=lambda offer: (offer[0].rank, offer[0].key)):
        beyond = _not_granted(catalog, plan, terms.beyond(used))
        allowed = {name: most - terms.included[name] for name, most in terms.ceilings.items()}
        found.append(
            {
                "plan": plan.key,
                "name": plan.name,
                "cost_cents": round(terms.charge(terms.within_caps(beyond))),
                "refused": [
                    *(name for name, units in beyond.items() if units > allowed.get(name, units)),
                    *(name for name, most in _gauges_of(catalog, plan).items() if used.get(name, 0) > most),
                ],
            }
        )
    return found


def _gauges_of(catalog: Catalog, plan: Plan) -> dict[str, int]:
    """Return the limits of a plan's gauges; seats have none if the plan sells more."""
    sold = seat_meter(catalog.meters) if plan.seat_price is not None else None
    found = {
        name: ceiling(plan.entitlements[name])
        for name, meter in catalog.meters.items()
        if meter.kind == "gauge"
    }
    return {name: most for name, most in found.items() if most is not None and name != sold}


def _not_granted(catalog: Catalog, plan: Plan, overage: Mapping[str, int]) -> dict[str, int]:
    """Return the overage that a plan's grants do not pay; grants of meters pay first."""
    left = dict(overage)
    for grant in sorted(plan.grants, key=lambda grant: (grant.kind != "meter", grant.priority)):
        if grant.kind == "meter":
            left[grant.name] = max(0, left.get(grant.name, 0) - grant.quantity)
            continue
        balance = grant.quantity * MICRO
        for meter, cost in catalog.credits[grant.name].costs.items():
            paid = min(left.get(meter, 0), balance // cost)
            balance -= paid * cost
            left[meter] = left.get(meter, 0) - paid
    return {meter: left[meter] for meter in overage}
