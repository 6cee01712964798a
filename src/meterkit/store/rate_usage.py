"""Usage of a customer's rates, from the stored counters. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypedDict

from meterkit.decisions.customer_state import CustomerState, effective_plan, entitlements_of
from meterkit.decisions.keys import rate_field, route_name
from meterkit.decisions.limit_policies import (
    FIXED_WINDOW,
    TOKEN_BUCKET,
    PolicyMeasure,
    policies_of,
    rate_numbers,
    route_policies,
    weighted_count,
)
from meterkit.decisions.packed import unpack_field
from meterkit.decisions.refusal_reasons import reset_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.catalog.models import Rate
    from meterkit.decisions.decision import Policy
    from meterkit.store.customer_usage import UsageReply

_NUMBERS: Final = 3


class RateUsage(TypedDict):
    """One rate of a customer.

    ``policy`` is its name in header fields (``requests-1h``); ``meter`` is None, and ``route`` the line's
    ``match``, where the rate is a route's own; ``limit`` is per window, for a token bucket its burst;
    ``reset_after`` is until more is left than now, 0 where all is.
    """

    policy: str
    meter: str | None
    route: str | None
    limit: int
    used: int
    remaining: int
    reset_after: timedelta


def read_rates(catalog: Catalog, reply: UsageReply) -> list[RateUsage]:
    """Read the reply of the usage script: the rates of the active plan, then those of routes."""
    now_ms, _, data, counters, *_ = reply
    state = CustomerState.parse(data)
    entitlements = entitlements_of(effective_plan(state, catalog, now_ms), catalog)
    fields = dict(zip(counters[::2], counters[1::2], strict=True))
    found: list[RateUsage] = []
    for name, route, rate, policy in _list_rates(catalog, entitlements):
        field = rate_field(name, rate.window_ms, rate.algorithm)
        found.append(_read_usage(route, rate, policy, fields.get(field.encode()), now_ms))
    return found


def _list_rates(
    catalog: Catalog, entitlements: Mapping[str, Entitlement]
) -> Iterator[tuple[str, str | None, Rate, Policy]]:
    for name, meter in catalog.meters.items():
        given = entitlements[name]
        # A meter's other policies come behind its rates.
        for rate, policy in zip(given.rates, policies_of(given, meter), strict=False):
            yield name, None, rate, policy
    for route in catalog.routes:
        for rate, policy in zip(route.rates, route_policies(route), strict=True):
            yield route_name(route), route.match, rate, policy


def _read_usage(
    route: str | None, rate: Rate, policy: Policy, packed: bytes | None, now_ms: int
) -> RateUsage:
    kind, window, limit, refill = rate_numbers(rate, policy.meter)
    measure = PolicyMeasure(policy=policy, kind=kind, window=window, limit=limit, refill=refill, needed=1)
    numbers = [0] * _NUMBERS if packed is None else [int(number) for number in unpack_field(packed)]
    used, before = _advance_window(measure, numbers, now_ms)
    reset = reset_ms(measure, limit - used, before, now_ms, now_ms)
    return {
        "policy": policy.name,
        "meter": policy.meter or None,
        "route": route,
        "limit": limit,
        "used": used,
        "remaining": max(0, limit - used),
        "reset_after": timedelta(milliseconds=reset or 0),
    }


def _advance_window(measure: PolicyMeasure, numbers: list[int], now_ms: int) -> tuple[int, int]:
    """Advance a window to now, like the scripts' ``advance``: its used units, those of the window before."""
    first, second, third = numbers
    window = measure.window
    if measure.kind == TOKEN_BUCKET:
        if now_ms < first:  # The store's clock went back.
            return 0, 0
        owed = max(0, second * window + min(third, window - 1) - (now_ms - first) * measure.refill)
        return -(-owed // window), owed % window
    slot = now_ms // window
    counted = second if first == slot else 0
    previous = third if first == slot else second if first == slot - 1 else 0
    if measure.kind == FIXED_WINDOW:
        return counted, previous
    return counted + weighted_count(previous, window - now_ms % window, window), previous
