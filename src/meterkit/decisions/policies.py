"""Policies: their kinds, the numbers of rates that scripts take, and what a client reads of them."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX, ROUTE
from meterkit.decisions.decision import Policy
from meterkit.errors import PlansError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Rate
    from meterkit.catalog.models import Entitlement, Meter, Route

SLIDING_WINDOW: Final = 1
FIXED_WINDOW: Final = 2
TOKEN_BUCKET: Final = 3
CEILING: Final = 4
"""What a billing period admits: included, and beyond that up to a cap."""
CONCURRENCY: Final = 5
GAUGE: Final = 6
"""A level that may grow no further; the script has it apart."""
SPENT: Final = 7
"""A budget; the script works out what counts against it."""


_KINDS: Final = {"sliding-window": SLIDING_WINDOW, "fixed-window": FIXED_WINDOW, "token-bucket": TOKEN_BUCKET}
_EXACT: Final = 9 * 10**15  # below 2^53: what a Lua number counts exactly
_QUARTER_HOUR_MS: Final = 900_000


def keep_ms_of(rates: Iterable[Rate]) -> int:
    """How long counters of rates live: a quarter of an hour longer than what was counted may matter.

    That is two windows, or until a full bucket has run empty.
    """
    spans = (max(2 * rate.window_ms, -(-rate.burst * rate.window_ms // rate.limit)) for rate in rates)
    return max(spans, default=0) + _QUARTER_HOUR_MS


def rate_numbers(rate: Rate, meter: str) -> tuple[int, int, int, int]:
    """A rate as the scripts take it: kind, window, limit, refill.

    A bucket's refill of ``limit / window_ms`` per ms is reduced to lowest terms, so that no product in the
    script passes 2^53; where that does not suffice it is rounded down, by less than one part in a million.

    Raises:
        PlansError: a bucket so large and so slow that its refill cannot be counted exactly.
    """
    kind = _KINDS[rate.algorithm]
    if kind != TOKEN_BUCKET:
        return kind, rate.window_ms, rate.limit, 0
    shared = gcd(rate.limit, rate.window_ms)
    refill, window = rate.limit // shared, rate.window_ms // shared
    if (rate.burst + 2) * window > _EXACT:
        most = _EXACT // (rate.burst + 2)
        refill, window = refill * most // window, most
        if refill < 10**6:
            message = (
                f"a burst of {rate.burst} at {rate.limit} per {rate.window} cannot be counted exactly; "
                "make the burst smaller or the rate faster"
            )
            raise PlansError([Problem("plans", 0, 0, f"meters.{meter}.rate", message)])
    return kind, window, rate.burst, refill


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


def billed_most(entitlement: Entitlement) -> int | None:
    """The most overage that a period bills: the cap; None: no cap, or the plan does not bill overage."""
    overage = entitlement.overage
    return overage.cap if overage.mode == "bill" else None


def _rate_policy(rate: Rate, name: str, meter: str, unit: str | None) -> Policy:
    return Policy(
        name=f"{name}-{rate.window}",
        meter=meter,
        kind="rate",
        quota=rate.limit,
        window_s=-(-rate.window_ms // 1000),
        quota_unit=unit,
    )
