"""Where ``allotment: 250ms`` has no effect, and how many units this process has. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.policies import gauge_terms
from meterkit.decisions.program import demands_of
from meterkit.store.allotment import find_allotment_key, find_single_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.catalog import Catalog, Plan, Route
    from meterkit.redis.settlement_queue import LocalAllotments

CHECK: Final = "allotments"


def allotments_of(catalog: Catalog) -> str | None:
    """The plans and lines in which each request is decided by itself, and why; None: allotments are off."""
    lines = {plan.key: _lines_of(catalog, plan) for plan in catalog.plans.values()}
    if not any(lines.values()):
        return None
    found = [
        f"plan {key} ({', '.join(reasons)})"
        for key, routes in lines.items()
        if (reasons := [*dict.fromkeys(_reasons(catalog, catalog.plans[key], routes))])
    ]
    found += [
        f"line {route.match} ({', '.join(keys)})"
        for route in catalog.routes
        if any(route in routes for routes in lines.values()) and (keys := find_single_keys(route))
    ]
    return f"no effect in {'; '.join(found)}" if found else "in effect in each plan and line"


def units_of(allotments: Sequence[LocalAllotments]) -> str:
    """How many units the event loops of this process were granted, and what became of them; empty: none."""
    granted = sum(one.granted for one in allotments)
    if not granted:
        return ""
    unused, returned = sum(one.unused for one in allotments), sum(one.returned for one in allotments)
    return f"; of {granted:,} units of this process {unused:,} are unused, {returned:,} were given back"


def _lines_of(catalog: Catalog, plan: Plan) -> Sequence[Route]:
    return [
        route
        for route in catalog.routes
        if not route.exempt and find_allotment_key(route, plan, catalog) != "off"
    ]


def _reasons(catalog: Catalog, plan: Plan, routes: Sequence[Route]) -> Iterator[str]:
    """What of a plan keeps some requests of these lines from allotments."""
    for route in routes:
        if find_single_keys(route):
            continue
        meters = demands_of(route, catalog)
        for name in meters:
            if any(rate.algorithm == "token-bucket" for rate in plan.entitlements[name].rates):
                yield f"token bucket of {name}"
        for gauge, _ in gauge_terms(plan.entitlements, catalog, meters, keeps=False):
            yield f"limit of {gauge.measure.policy.meter}"
        if plan.subjects:
            yield f"requests of a {' or '.join(plan.subjects)}"
