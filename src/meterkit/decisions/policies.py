"""The policies that a client is told of, from what a plan gives for one meter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX, ROUTE
from meterkit.decisions.decision import Policy

if TYPE_CHECKING:
    from meterkit.catalog.models import Entitlement, Meter, Rate, Route

__all__ = ["ceiling_of", "policies_of", "route_policies"]

CONCURRENT_REQUESTS: Final = "concurrent-requests"


def policies_of(entitlement: Entitlement, meter: Meter) -> tuple[Policy, ...]:
    """The policies of one meter: its rates in the file's order, its period, its concurrency.

    A gauge has no period: its level does not start anew.
    """
    unit = None if meter.unit == "request" else meter.unit
    policies = [_rate_policy(rate, meter.name, meter.name, unit) for rate in entitlement.rates]
    ceiling = None if meter.kind == "gauge" else ceiling_of(entitlement)
    if ceiling is not None:
        policies.append(
            Policy(
                name=f"{meter.name}-period",
                meter=meter.name,
                kind="period",
                quota=ceiling,
                window_s=None,
                quota_unit=unit,
            )
        )
    if entitlement.concurrency is not None:
        policies.append(
            Policy(
                name=f"{meter.name}-concurrency",
                meter=meter.name,
                kind="concurrency",
                quota=entitlement.concurrency,
                window_s=None,
                quota_unit=CONCURRENT_REQUESTS,
            )
        )
    return tuple(policies)


def route_policies(route: Route) -> tuple[Policy, ...]:
    """The policies of what each customer may ask of a route, whatever the plan: in requests."""
    return tuple(_rate_policy(rate, ROUTE, "", None) for rate in route.rates)


def ceiling_of(entitlement: Entitlement) -> int | None:
    """The most that a period admits without grants and credits, in units; None: no ceiling."""
    if entitlement.included is None:
        return None
    if entitlement.overage.mode == "deny":
        return entitlement.included
    if entitlement.overage.cap is None:
        return None
    return min(entitlement.included + entitlement.overage.cap, QUANTITY_MAX)


def _rate_policy(rate: Rate, name: str, meter: str, unit: str | None) -> Policy:
    return Policy(
        name=f"{name}-{rate.window}",
        meter=meter,
        kind="rate",
        quota=rate.limit,
        window_s=-(-rate.window_ms // 1000),
        quota_unit=unit,
    )
