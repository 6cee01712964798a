"""A shop whose revenue is kept: subscriptions at Stripe, and a snapshot of each day."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from drivers.webhooks import Hooked, hooked
from meterkit.catalog import loads
from meterkit.insights.revenue.revenue import Revenue
from meterkit.testing import Clock, StripeEmulator

MOVEMENTS: Final = ("mrr", "new", "expansion", "contraction", "churn", "reactivation", "customers")
MICRO: Final = 1_000_000
CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  seats:    {unit: seat, kind: gauge}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 5, overage: deny}, seats: {included: 1, overage: deny}}
  pro:
    rank: 10
    price: {amount_cents: 1000, interval: month, stripe_price: price_pro}
    seat_price: {amount_cents: 300, stripe_price: price_seat}
    trial: 14d
    meters:
      requests: {included: 10, overage: {bill: {per: 1, amount_cents: 5}}}
      seats:    {included: 2, overage: deny}
  max:
    rank: 20
    price: {amount_cents: 3000, interval: month, stripe_price: price_max}
    meters: {requests: {included: 100, overage: deny}, seats: {included: 5, overage: deny}}
  yearly:
    rank: 15
    price: {amount_cents: 10_000, interval: year, stripe_price: price_yearly}
    meters: {requests: {included: 10, overage: deny}, seats: {included: 2, overage: deny}}
""")
YEARLY: Final = 833_333_333
"""10,000 cents a year, by the month."""


def on(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2031, month, day, hour, tzinfo=UTC)


class Books:
    """A kit, its revenue, and the table that this is kept in."""

    def __init__(self, at: Hooked, revenue: Revenue, path: Path) -> None:
        self.at = at
        self.kit = at.kit
        self.revenue = revenue
        self.path = path

    async def go(self, to: datetime) -> None:
        """Go to an instant, a day at a time, and make the snapshots that are due on the way."""
        while self.at.clock() < to.timestamp():
            self.at.clock.set(min(to, datetime.fromtimestamp(self.at.clock(), UTC) + timedelta(days=1)))
            self.at.emulator.advance()
            await self.at.settle()
            await self.revenue.snapshot()

    async def subscribe(self, customer: str, plan: str, *, seats: int = 0, **how: Any) -> None:
        if (await self.kit.customers.get(customer)).stripe_customer is None:
            self.at.customer(customer)
        paid: list[Any] = [{"price": "price_seat", "quantity": seats}] if seats else []
        await self.at.subscribe(customer, items=[{"price": f"price_{plan}"}, *paid], **how)
        await self.at.settle()

    def rows(self, asked: str) -> list[Any]:
        with sqlite3.connect(self.path) as database:
            return database.execute(asked).fetchall()

    def tables(self) -> list[Any]:
        if not self.path.exists():
            return []
        return self.rows("select name from sqlite_master where type = 'table' and name like '%revenue%'")

    def kept(self) -> list[Any]:
        tables = ("meterkit_revenue", "meterkit_revenue_days")
        return [self.rows(f"select * from {table} order by 1, 2") for table in tables]  # noqa: S608 - names of ours

    async def moved(self, day: date) -> dict[str, int]:
        """All that a day changed, and what it came to."""
        found = await self.revenue.at(day)
        figures = {name: getattr(found, name).get("usd", 0) for name in MOVEMENTS}
        return {name: amount for name, amount in figures.items() if amount}


@asynccontextmanager
async def books(store_url: str, directory: Path) -> AsyncGenerator[Books]:
    clock, path = Clock(on(1, 1)), directory / "audit.db"
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_plans(CATALOG)
    settings: dict[str, Any] = {"audit_url": f"sqlite:///{path}"}
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=CATALOG, **settings) as at:
        yield Books(at, Revenue(at.kit.store, at.kit.settings), path)
