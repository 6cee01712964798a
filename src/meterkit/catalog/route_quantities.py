"""Check of the quantities of routes against the limits of plans: one that never fits is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.catalog.entitlements import ceiling
from meterkit.catalog.routes import requested_quantities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.errors import Problems
    from meterkit.catalog.models import Addon, Entitlement, Plan, Route
    from meterkit.catalog.routes import RouteTable


def check_quantities_fit(
    routes: Iterable[tuple[Route, RouteTable]],
    plans: Mapping[str, Plan | None],
    *,
    credits_: Mapping[str, Credit],
    addons: Mapping[str, Addon],
    problems: Problems,
) -> None:
    """Refuse each quantity of a route that never fits a plan that limits its meter."""
    payable = {meter for credit in credits_.values() for meter in credit.costs}
    for route, values in routes:
        for place, key, meter, quantity in requested_quantities(route, values):
            for plan in plans.values():
                if plan is None or meter not in plan.entitlements:
                    continue
                is_payable = meter in payable or meter in _extendable_meters(plan, addons)
                limit = _exceeded_limit(plan.entitlements[meter], quantity, is_payable=is_payable)
                if limit is not None:
                    what = f"a default of {quantity}" if key == "reserve" else f"{quantity}"
                    message = (
                        f"{what} never fits the plan {plan.key}, whose {limit}; lower it, or raise the plan's"
                    )
                    problems.refuse(place, message)


def _extendable_meters(plan: Plan, addons: Mapping[str, Addon]) -> set[str]:
    """Meters for which grants or add-ons can give more than a plan includes."""
    sold = [addons[key] for key in plan.addons if key in addons]
    grants = (*plan.grants, *(grant for addon in sold for grant in addon.grants))
    return {grant.name for grant in grants} | {meter for addon in sold for meter in addon.included}


def _exceeded_limit(entitlement: Entitlement, quantity: int, *, is_payable: bool) -> str | None:
    """The limit that ``quantity`` can never fit, in words, or None.

    A ceiling of 0 says that the plan does not have the meter; that is no slip.
    """
    meter = entitlement.meter
    for rate in entitlement.rates:
        if quantity > rate.burst:
            if rate.algorithm == "token-bucket":
                return f"burst of {meter} is {rate.burst}"
            return f"rate of {meter} is {rate.limit}/{rate.window}"
    most = None if is_payable else ceiling(entitlement)
    return f"ceiling of {meter} is {most}" if most and quantity > most else None
