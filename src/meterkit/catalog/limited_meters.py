"""Meters that plans limit: whether an entitlement or a budget can refuse a request. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.catalog.entitlements import ceiling
from meterkit.catalog.models import SPEND

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meterkit.catalog.models import Entitlement, Plan


def has_limit(given: Entitlement, *, in_budget: bool = False) -> bool:
    """Whether an entitlement can refuse a request; ``in_budget``: a budget bounds what the meter costs."""
    if given.rates or given.concurrency is not None or ceiling(given) is not None:
        return True
    return in_budget and (given.overage.amount_cents is not None or given.overage.rows is not None)


def is_limited(meter: str, plans: Iterable[Plan]) -> bool:
    """Whether a plan, or what it gives a subject, limits a meter."""
    return any(
        has_limit(given, in_budget=_has_budget(plan))
        for plan in plans
        for given in _entitlements_of(meter, plan)
        if given is not None
    )


def _entitlements_of(meter: str, plan: Plan) -> Iterator[Entitlement | None]:
    yield plan.entitlements.get(meter)
    yield from (subject.limits.get(meter) for subject in plan.subjects.values())


def _has_budget(plan: Plan) -> bool:
    spend = plan.entitlements.get(SPEND)
    is_bounded = spend is not None and has_limit(spend)
    return is_bounded or any(subject.budget for subject in plan.subjects.values())
