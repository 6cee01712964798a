"""What a customer's client saw, and why each refusal was right. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Plan

__all__ = ["Refusal", "Tally", "evidence"]


_UNITS: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was refused, as the answer told.

    Attributes:
        status: of the answer.
        policies: the names of the limits that were used up.
        feature: the feature that the plan does not have, or an empty text.
    """

    status: int
    policies: tuple[str, ...] = ()
    feature: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one customer's client saw.

    Attributes:
        served: meter to the quantity in answers that succeeded.
        failed: answers of the service that did not succeed: they cost nothing.
        refusals: how often the customer was refused, and why.
    """

    sent: int = 0
    served: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    refusals: Counter[Refusal] = field(default_factory=Counter[Refusal])


def evidence(refusal: Refusal, plan: Plan, tally: Tally, catalog: Catalog) -> str:
    """Why a refusal is right, by the plans file and by what this customer had been served."""
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
