"""What the usage page shows, as HTML and as JSON."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from functools import partial
from importlib import import_module
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from meterkit.decisions.periods import from_ms, to_ms
from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_daemon_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from meterkit.catalog import Catalog
    from meterkit.insights.audit.database import DaySums
    from meterkit.settings import Settings
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.grants import Grants
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.service import Subscriptions

__all__ = ["Cost", "Days", "PagesKit", "UsageFigures", "cost_of", "days_of", "usage_figures"]

_logger = logging.getLogger("meterkit.pages")

_OTHERS_S: Final = 3.0
_DAY_MS: Final = 86_400_000
_SHOWN: Final = frozenset({"pending", "active"})


class PagesKit(Protocol):
    """What the pages read of :class:`meterkit.MeterKit`."""

    grants: Grants
    settings: Settings
    store: Store
    subscriptions: Subscriptions

    @property
    def catalog(self) -> Catalog:
        """The catalog in force."""
        ...

    async def usage(self, customer: str, *, period: datetime | str | None = None) -> CustomerUsage:
        """The usage of a customer in a period."""
        ...

    async def rates(self, customer: str) -> Sequence[RateUsage]:
        """The rates of a customer."""
        ...


class Cost(TypedDict):
    """What the period costs until now. Money is in minor units.

    ``plan_cents`` is the price of the plan in the plans file, per ``interval``. ``overage_cents`` is the sum
    over meters; ``unpriced`` names the meters with overage whose price only Stripe knows.
    """

    currency: str
    plan_cents: int
    interval: str
    overage_cents: int
    unpriced: list[str]


class Days(TypedDict):
    """The units of each meter by day (UTC); each list is as long as ``days``."""

    days: list[str]
    meters: dict[str, list[int]]


class UsageFigures(TypedDict):
    """All figures of the usage page.

    ``days`` is None where there is no audit log or its database fails; ``invoices`` where Stripe does not
    answer.
    """

    usage: CustomerUsage
    plan_name: str
    cost: Cost
    rates: list[dict[str, object]]
    grants: list[dict[str, object]]
    days: Days | None
    invoices: list[dict[str, object]] | None


async def usage_figures(kit: PagesKit, customer: str) -> UsageFigures:
    """Read the figures of a customer.

    Raises:
        CustomerError: the id cannot be used.
        StoreError: the store does not answer.
    """
    usage = await kit.usage(customer)
    rates, grants, days, invoices = await asyncio.gather(
        kit.rates(customer),
        kit.grants.list(customer),
        _days(kit, usage),
        _invoices(kit, customer),
    )
    plan = kit.catalog.plans.get(usage["plan"])
    return {
        "usage": usage,
        "plan_name": usage["plan"] if plan is None else plan.name,
        "cost": cost_of(kit.catalog, usage),
        "rates": [{**rate, "reset_after": _whole_seconds(rate["reset_after"])} for rate in rates],
        "grants": [asdict(grant) for grant in grants if grant.status in _SHOWN],
        "days": days,
        "invoices": invoices,
    }


def cost_of(catalog: Catalog, usage: CustomerUsage) -> Cost:
    """The price of the plan, and of overage until now."""
    plan = catalog.plans.get(usage["plan"])
    counts = usage["meters"]
    # A derived meter is billed by its own event at a price of its own; a gauge has no overage to bill.
    billed = [name for name, meter in catalog.meters.items() if meter.stripe is not None and name in counts]
    return {
        "currency": catalog.currency,
        "plan_cents": 0 if plan is None else plan.price.amount_cents,
        "interval": "month" if plan is None else plan.price.interval,
        "overage_cents": sum(counts[name]["overage_cents"] or 0 for name in billed),
        "unpriced": [
            name for name in billed if counts[name]["overage"] and counts[name]["overage_cents"] is None
        ],
    }


def days_of(sums: DaySums, start_ms: int, until_ms: int) -> Days:
    """Lay sums out by day, with a zero for each day without usage.

    Args:
        sums: units by day (days since 1970) and meter, of one period.
        start_ms: when the period began. Usage that happened before it counts on its first day.
        until_ms: the last instant that is shown. Usage after it counts on the last day.
    """
    first, last = start_ms // _DAY_MS, max(start_ms, until_ms) // _DAY_MS
    meters: dict[str, list[int]] = {}
    for (day, meter), units in sums.items():
        row = meters.setdefault(meter, [0] * (last - first + 1))
        row[min(max(day, first), last) - first] += units
    shown = [f"{from_ms(day * _DAY_MS):%Y-%m-%d}" for day in range(first, last + 1)]
    return {"days": shown, "meters": dict(sorted(meters.items()))}


async def _days(kit: PagesKit, usage: CustomerUsage) -> Days | None:
    if kit.settings.audit_url is None:
        return None
    start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
    read = partial(_sums, kit.settings.audit_url.get_secret_value(), usage["customer"], start_ms)
    thread = in_daemon_thread(read, name="meterkit-pages")
    try:
        async with asyncio.timeout(_OTHERS_S):
            sums = await asyncio.wrap_future(thread)
    except (MeterkitError, ImportError, TimeoutError) as error:
        _logger.warning(
            "the usage page shows no daily figures: %s", str(error) or "the audit log is too slow"
        )
        return None
    return days_of(sums, start_ms, min(kit.store.now_ms(), end_ms - 1))


def _sums(url: str, customer: str, start_ms: int) -> DaySums:
    # SQLAlchemy takes a while to import, and only apps with an audit log have it.
    database: Any = import_module("meterkit.insights.audit.database").Database
    found: DaySums = database(url).days(customer, start_ms)
    return found


async def _invoices(kit: PagesKit, customer: str) -> list[dict[str, object]] | None:
    if kit.settings.stripe_api_key is None:
        return []
    try:
        async with asyncio.timeout(_OTHERS_S):
            return [asdict(invoice) for invoice in await kit.subscriptions.invoices(customer)]
    except (MeterkitError, TimeoutError) as error:
        _logger.warning("the usage page shows no invoices: %s", str(error) or "Stripe is too slow")
        return None


def _whole_seconds(span: timedelta) -> int:
    return ceil(span.total_seconds())
