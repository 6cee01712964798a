"""The operator pages of a kit, as an operator's browser asks for them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Scope

from drivers.audited_kit import sqlite_in
from drivers.shop import START
from meterkit import CustomerUsage, MeterKit
from meterkit.catalog import loads
from meterkit.decisions.subscription import Status
from meterkit.insights.audit.database import Database
from meterkit.insights.overview.overview import CustomerOverview, revenue_figures
from meterkit.insights.overview.rows import DailyActivity, OverviewTotals, build_row
from meterkit.insights.overview.tables import OverviewTables
from meterkit.insights.revenue.revenue_formulas import CustomerPayment
from meterkit.insights.revenue.tables import RevenueTables
from meterkit.pages import operator_pages
from meterkit.testing import Clock

JSON = {"accept": "application/json"}
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
plans:
  free:
    name: Free <b>plan</b>
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 10, overage: deny}
  pro:
    rank: 10
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 1_000, overage: deny}
"""

WRITTEN_AT_ONCE: Final = 2_000
PERIOD: Final[Any] = {"id": "", "start": START, "end": START, "provisional": False}
STATUSES: Final[tuple[Status | None, ...]] = ("active", "past_due", None)
_COUNTS: Final = (
    *("used", "included", "granted", "over_cap", "held", "remaining", "overage", "recorded", "pending"),
    *("unlinked", "queued", "leased", "parked", "delivered", "late", "dead"),
)
NOTHING: Final[Any] = {**dict.fromkeys(_COUNTS, 0), "overage_cents": None}


def who(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-operator", b"").decode() or None


@asynccontextmanager
async def pages_of(kit: MeterKit, operator: str = "ada") -> AsyncGenerator[httpx.AsyncClient]:
    app = Starlette(routes=[Mount("/operator", app=operator_pages(kit, allowed=who))])
    transport = httpx.ASGITransport(app=app)
    headers = {"x-operator": operator}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://app/operator", headers=headers
    ) as client:
        yield client


@asynccontextmanager
async def selling(
    store_url: str, directory: Path | None, *, clock: Clock | None = None, **settings: Any
) -> AsyncGenerator[MeterKit]:
    url = None if directory is None else sqlite_in(directory)
    clock = clock or Clock(START)
    async with MeterKit(
        loads(PLANS), redis_url=store_url, clock=clock, audit_url=url, flush=False, **settings
    ) as kit:
        yield kit


def figures_on(page: str) -> dict[str, int]:
    """The figures of an overview as HTML, by section and name."""
    found = re.findall(r'<(dd|td) data-figure="([^"]*)"[^>]*>(.*?)</\1>', page, re.DOTALL)
    values = {name: re.search(r'<data value="([^"]*)">', shown) for _, name, shown in found}
    return {name: int(value[1]) for name, value in values.items() if value and value[1].lstrip("-").isdigit()}


def flat(figures: Any, name: str = "") -> dict[str, Any]:
    """The figures of an overview as JSON, by section, row and name."""
    if figures is None or isinstance(figures, int | float):
        return {name: figures}
    found: dict[str, Any] = {}
    for part, of in figures.items():
        found |= flat(of, f"{name}:{part}" if name else part)
    return found


def overview_of(kit: MeterKit) -> CustomerOverview:
    return CustomerOverview(kit.store, kit.settings)


async def make_snapshot(kit: MeterKit) -> None:
    await overview_of(kit).snapshot()


def write_revenue(url: str, day: date, monthly: Mapping[str, int]) -> None:
    """Write revenue of a day: what each customer pays a month on plan pro, in micro-USD."""
    paying = [CustomerPayment(customer, "pro", "usd", amount) for customer, amount in monthly.items()]
    RevenueTables(Database(url)).write(day, paying, [])


async def write_snapshot(kit: MeterKit, url: str, number: int) -> None:
    """Write a snapshot of so many customers without asking the store for each, and a month of revenue."""
    database = Database(url)
    at_ms, tables, totals = kit.store.now_ms(), OverviewTables(database), OverviewTotals({"tokens"})
    for first in range(0, number, WRITTEN_AT_ONCE):
        usage = [_usage(nth) for nth in range(first, min(first + WRITTEN_AT_ONCE, number))]
        rows = [build_row(one, kit.catalog) for one in usage]
        tables.write(at_ms, rows, [one for of in zip(rows, usage, strict=True) for one in totals.add(*of)])
    revenue = RevenueTables(database)
    for back in range(32, 0, -1):
        paying = [
            CustomerPayment(customer_name(nth), "pro", "usd", 2_900_000_000 * (1 + (nth + back) % 3))
            for nth in range(min(number, 40 - back))
        ]
        revenue.write(START.date() - timedelta(days=back), paying, [])
    figures = await revenue_figures(kit.store, kit.settings, database)
    activity: DailyActivity = {"usage": [], "deliveries": []}
    tables.finish(at_ms, {"customers": totals.figures(), "revenue": figures, "activity": activity})


def customer_name(nth: int) -> str:
    return f"c{nth:06}"


def _usage(nth: int) -> CustomerUsage:
    """What customer number ``nth`` has used: from nothing to all, and every third one waits for a link."""
    plan, included, waiting = ("pro", 1_000, 0) if nth % 3 else ("free", 10, 5)
    used = included * (nth % 21) // 20
    tokens = {"remaining": "unlimited", "recorded": 9, "unlinked": waiting, "delivered": 9 - waiting}
    meters: Any = {
        "requests": NOTHING | {"used": used, "included": included, "remaining": included - used},
        "tokens": NOTHING | tokens,
    }
    return {
        "customer": customer_name(nth),
        "plan": plan,
        "currency": "usd",
        "addons": {},
        "status": STATUSES[nth % 3],
        "access": "grace" if nth % 7 == 1 else "full",
        "period": PERIOD,
        "features": [],
        "balance": {},
        "balance_micros": {},
        "rolled_over": {},
        "meters": meters,
    }
