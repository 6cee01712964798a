"""Why each refusal was right. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan
    from meterkit.cli.demo.traffic import Refusal, Tally

__all__ = ["evidence"]


_UNITS: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


def evidence(refusal: Refusal, tally: Tally, catalog: Catalog) -> str:
    """Why a refusal is right, by the plans file and by what this customer had been served."""
    plan = catalog.plans[tally.customer.plan]
    if refusal.feature:
        having = " and ".join(
            key for key, other in catalog.plans.items() if refusal.feature in other.features
        )
        return f"the {plan.key} plan does not include the feature {refusal.feature!r}; {having} do"
    if refusal.policies:
        return "; ".join(_limit(policy, plan, tally) for policy in refusal.policies)
    return "the request named no customer, and the plans file says `anonymous: deny`"


def _limit(policy: str, plan: Plan, tally: Tally) -> str:
    meter, _, window = policy.rpartition("-")
    entitlement, served = plan.entitlements[meter], tally.served[meter]
    for rate in entitlement.rates:
        if rate.window == window:
            admitted = served + tally.failed
            allowed = f"{rate.limit:,} {meter} {_per(window)}"
            return f"the {plan.key} plan allows {allowed}, and {admitted:,} were let in"
    ceiling = (entitlement.included or 0) + (entitlement.overage.cap or 0)
    beyond = "; usage that is recorded after the work was done is never refused" if served > ceiling else ""
    return f"the {plan.key} plan allows {ceiling:,} {meter} per month, and {served:,} were served{beyond}"


def _per(window: str) -> str:
    """A window, such as ``1d``, in words."""
    number, unit = int(window[:-1]), _UNITS[window[-1]]
    return f"per {unit}" if number == 1 else f"in {number} {unit}s"
