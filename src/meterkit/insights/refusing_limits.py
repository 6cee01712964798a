"""Limits that refuse a customer's requests now: rates, quantities of the period, budgets, balances. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterkit.decisions.customer_state import seat_meter
from meterkit.decisions.limit_policies import period_policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.rate_usage import RateUsage


class RefusingLimit(NamedTuple):
    """A limit without anything left: requests that ask for it are refused.

    Attributes:
        policy: its name, as header fields have it: ``requests-1d``, ``words-period``; of a gauge its meter's.
        meter: what it limits; None for the rate of a route.
        route: ``match`` of the route whose own rate it is; else None.
        used: units, of a rate in its window.
        limit: units of a rate per window; None for all others.
        until: when more is accepted, if nothing else is used; None: time alone does not help.
    """

    policy: str
    meter: str | None
    route: str | None
    used: int
    limit: int | None
    until: datetime | None


def find_refusing_limits(
    catalog: Catalog, usage: CustomerUsage, rates: Iterable[RateUsage], now: datetime
) -> Sequence[RefusingLimit]:
    """Find the limits that refuse now, the longest wait first; full gauges, which only refuse growth, last.

    Seats are left out: they are full where each has its user. None is found where no route enforces limits.

    Args:
        catalog: in the customer's currency.
        usage: of the current period.
        rates: of the customer.
        now: the instant of both.
    """
    enforced = [route.enforcement for route in catalog.routes] or [catalog.enforcement]
    if "on" not in enforced:
        return []
    found = [
        RefusingLimit(
            policy=rate["policy"],
            meter=rate["meter"],
            route=rate["route"],
            used=rate["used"],
            limit=rate["limit"],
            until=now + rate["reset_after"] if rate["limit"] and rate["reset_after"] else None,
        )
        for rate in rates
        if not rate["remaining"]
    ]
    found += _find_used_up(catalog, usage)
    gauges = {name for name, meter in catalog.meters.items() if meter.kind == "gauge"}
    latest = max((one.until for one in found if one.until is not None), default=now)
    return sorted(
        found, key=lambda one: (one.meter in gauges, one.until is not None, latest - (one.until or now))
    )


def _find_used_up(catalog: Catalog, usage: CustomerUsage) -> Iterator[RefusingLimit]:
    seats = seat_meter(catalog.meters)
    for name, counts in usage["meters"].items():
        meter = catalog.meters.get(name)
        if meter is None or meter.is_row or name == seats or counts["remaining"] != 0:
            continue
        is_balance = meter.charges is not None
        # A meter that the plan never gave is not used up.
        if not (counts["used"] or counts["included"] or is_balance):
            continue
        is_gauge = meter.kind == "gauge"
        returns = not is_gauge and bool(counts["included"])
        yield RefusingLimit(
            policy=name if is_gauge else period_policy(name),
            meter=name,
            route=None,
            used=counts["used"],
            limit=None,
            until=usage["period"]["end"] if returns else None,
        )
