"""Cost of a period's usage on other plans, and the next plan to offer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from meterkit.catalog.entitlements import ceiling
from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import rounded_cents
from meterkit.decisions.customer_state import seat_meter
from meterkit.decisions.grants import MICRO
from meterkit.decisions.spending import budgets_of
from meterkit.pages.forecast import split_by_model, split_by_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from fractions import Fraction

    from meterkit.catalog import Catalog, Plan
    from meterkit.insights.simulation.plan_costs import TrialTerms


class OtherPlan(TypedDict):
    """Cost of the period's usage so far on another plan, in minor units.

    ``refused`` names meters whose usage exceeds the plan, and ``spend`` if the overage exceeds its budget;
    ``unpriced`` those whose overage is not in the cost, as only Stripe has its price, or the models are not
    known. ``estimated``, which is then true: the models of some overage are taken to be those of the overage
    so far.
    """

    plan: str
    name: str
    cost_cents: int
    refused: list[str]
    unpriced: list[str]
    estimated: NotRequired[bool]


def price_on_plans(
    catalog: Catalog,
    offers: Iterable[tuple[Plan, TrialTerms]],
    used: Mapping[str, int],
    own: TrialTerms,
    counted: Mapping[str, int],
) -> list[OtherPlan]:
    """Compute the cost of usage on some plans, lowest rank first, with the grants of one period.

    Args:
        catalog: has the plans.
        offers: the plans with the customer's add-ons, and their terms for the seats in use.
        used: meter to its units, or its level, so far.
        own: terms of the customer's plan.
        counted: meter to its overage on that plan.
    """
    found: list[OtherPlan] = []
    for plan, terms in sorted(offers, key=lambda offer: (offer[0].rank, offer[0].key)):
        beyond = _not_granted(catalog, plan, terms.beyond(used))
        overage = terms.within_caps(beyond)
        # Patterns that differ may divide the same models differently.
        alike = {
            row: counted.get(row, 0)
            for name, rows in terms.price_rows.items()
            if name in own.price_rows and own.price_rows[name].models == rows.models
            for row in rows.all
        }
        by_part = split_by_parts(overage, terms.parts, used)
        split = split_by_model(by_part, terms.price_rows, alike)
        allowed = {name: most - terms.included[name] for name, most in terms.ceilings.items()}
        cost_cents = terms.charge(split.units)
        offer: OtherPlan = {
            "plan": plan.key,
            "name": plan.name,
            "cost_cents": rounded_cents(cost_cents),
            "refused": [
                *(name for name, units in beyond.items() if units > allowed.get(name, units)),
                *(name for name, most in _gauges_of(catalog, plan).items() if used.get(name, 0) > most),
                *([SPEND] if _is_over_budget(catalog, plan, cost_cents - terms.fixed_cents) else []),
            ],
            "unpriced": sorted(terms.unpriced(split.units) | split.unknown.keys()),
        }
        parted = (
            part for name, of in terms.parts.items() for part in of if 0 < by_part[part] < overage[name]
        )
        is_estimated = split.is_estimated or any(parted)
        found.append({**offer, "estimated": True} if is_estimated else offer)
    return found


def find_next_plan(
    catalog: Catalog, plan_key: str, other_plans: Sequence[OtherPlan]
) -> tuple[Plan, OtherPlan] | None:
    """Find the plan of the next rank, with the cost of the usage on it; None: there is none.

    Args:
        catalog: has the plans.
        plan_key: the customer's plan.
        other_plans: lowest rank first.
    """
    plan = catalog.find_plan(plan_key)
    for other in other_plans:
        offered = catalog.plans[other["plan"]]
        if plan is not None and offered.rank > plan.rank:
            return offered, other
    return None


def _gauges_of(catalog: Catalog, plan: Plan) -> dict[str, int]:
    """Return the limits of a plan's gauges; seats have none if the plan sells more."""
    sold = seat_meter(catalog.meters) if plan.seat_price is not None else None
    found = {
        name: ceiling(plan.entitlements[name])
        for name, meter in catalog.meters.items()
        if meter.kind == "gauge"
    }
    return {name: most for name, most in found.items() if most is not None and name != sold}


def _is_over_budget(catalog: Catalog, plan: Plan, overage_cents: Fraction) -> bool:
    """Whether a plan's budget of the period admits less than some overage."""
    budgets = [one for one in budgets_of(plan.entitlements, catalog) if not one.window_ms]
    return any(overage_cents * one.unit > one.micros for one in budgets)


def _not_granted(catalog: Catalog, plan: Plan, overage: Mapping[str, int]) -> dict[str, int]:
    """Return the overage that a plan's recurring grants do not pay; grants of meters pay first."""
    left, recurring = dict(overage), [grant for grant in plan.grants if grant.every == "period"]
    for grant in sorted(recurring, key=lambda grant: (grant.kind != "meter", grant.priority)):
        if grant.kind == "meter":
            left[grant.name] = max(0, left.get(grant.name, 0) - grant.quantity)
            continue
        balance = grant.quantity * MICRO
        for meter, cost in catalog.credits[grant.name].costs.items():
            paid = min(left.get(meter, 0), balance // cost)
            balance -= paid * cost
            left[meter] = left.get(meter, 0) - paid
    return {meter: left[meter] for meter in overage}
