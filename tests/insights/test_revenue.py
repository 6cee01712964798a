"""Recurring revenue by the clock: subscriptions at Stripe, a snapshot of each day, figures worked by hand."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from hooking import hooked
from meterkit.catalog import loads
from meterkit.errors import MeterkitError, SettingsError
from meterkit.insights.revenue.revenue import Revenue
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from hooking import Hooked

pytestmark = pytest.mark.anyio

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

    def kept(self) -> list[Any]:
        tables = ("meterkit_revenue", "meterkit_revenue_days")
        return [self.rows(f"select * from {table} order by 1, 2") for table in tables]  # noqa: S608 - names of ours

    async def moved(self, day: date) -> dict[str, int]:
        """All that a day changed, and what it came to."""
        found = await self.revenue.at(day)
        names = ("mrr", "new", "expansion", "contraction", "churn", "reactivation", "customers")
        figures = {name: getattr(found, name).get("usd", 0) for name in names}
        return {name: amount for name, amount in figures.items() if amount}


@asynccontextmanager
async def books(store_url: str, directory: Path) -> AsyncGenerator[Books]:
    clock, path = Clock(on(1, 1)), directory / "audit.db"
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_plans(CATALOG)
    settings: dict[str, Any] = {"audit_url": f"sqlite:///{path}"}
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=CATALOG, **settings) as at:
        yield Books(at, Revenue(at.kit.store, at.kit.settings), path)


async def test_movements_of_a_quarter_by_the_clock(store_url: str, tmp_path: Path) -> None:
    async with books(store_url, tmp_path) as at:
        await at.subscribe("ada", "pro", seats=1, trial_period_days=14)
        await at.subscribe("bob", "yearly")
        await at.subscribe("eve", "max")
        await at.go(on(1, 2))
        # Ada is on trial; bob and eve pay.
        assert await at.moved(date(2031, 1, 1)) == {
            "mrr": YEARLY + 3000 * MICRO,
            "new": YEARLY + 3000 * MICRO,
            "customers": 2,
        }
        await at.go(on(1, 16))
        assert await at.moved(date(2031, 1, 15)) == {
            "mrr": YEARLY + (3000 + 1300) * MICRO,
            "new": 1300 * MICRO,
            "customers": 3,
        }
        await at.kit.subscriptions.change_plan("ada", "max")
        await at.go(on(1, 17))
        assert (await at.moved(date(2031, 1, 16)))["expansion"] == 1700 * MICRO
        await at.kit.subscriptions.cancel("eve")
        await at.go(on(2, 2))
        # Canceled in January, and paid for until the period ends.
        assert "churn" not in await at.moved(date(2031, 1, 31))
        assert await at.moved(date(2031, 2, 1)) == {
            "mrr": YEARLY + 3000 * MICRO,
            "churn": 3000 * MICRO,
            "customers": 2,
        }
        await at.go(on(2, 20))
        await at.subscribe("eve", "yearly")
        await at.go(on(2, 21))
        assert (await at.moved(date(2031, 2, 20)))["reactivation"] == YEARLY
        found = await at.revenue.at(date(2031, 2, 20))
        # Of those who paid on 20 January: bob, eve (who came back for less) and ada.
        base = YEARLY + 6000 * MICRO
        assert found.nrr == {"usd": (2 * YEARLY + 3000 * MICRO) / base}
        assert found.grr == found.nrr
        assert found.arpa == {"usd": round((2 * YEARLY + 3000 * MICRO) / 3)}
        assert found.ltv == {"usd": None}
        await at.go(on(3, 2))
        # In February one of the three left who were there when it began.
        found = await at.revenue.at()
        assert (found.day, found.ltv) == (date(2031, 3, 1), {"usd": 2 * YEARLY + 3000 * MICRO})


async def test_a_coupon_that_lasts_is_taken_off_and_one_that_was_deleted_still_is(
    store_url: str, tmp_path: Path
) -> None:
    async with books(store_url, tmp_path) as at:
        client = at.at.client
        coupon = await client.v1.coupons.create_async({"percent_off": 25, "duration": "forever"})
        await at.subscribe("ada", "max")
        (found,) = (await client.v1.subscriptions.list_async()).data
        await client.v1.subscriptions.update_async(found.id, {"discounts": [{"coupon": coupon.id}]})
        await client.v1.coupons.delete_async(coupon.id)
        await at.at.settle()
        await at.go(on(1, 2))
        assert await at.moved(date(2031, 1, 1)) == {"mrr": 2250 * MICRO, "new": 2250 * MICRO, "customers": 1}


async def test_snapshots_that_were_deleted_are_made_again_to_the_same_bytes(
    store_url: str, tmp_path: Path
) -> None:
    async with books(store_url, tmp_path) as at:
        await at.subscribe("ada", "pro", trial_period_days=14)
        await at.subscribe("bob", "max")
        await at.go(on(1, 17))
        await at.kit.subscriptions.change_plan("ada", "max")
        await at.kit.subscriptions.cancel("bob", immediately=True)
        await at.go(on(1, 20))
        await at.subscribe("bob", "yearly")
        await at.go(on(1, 25))
        kept = at.kept()
        assert len(kept[0]) > 30
        days = [date(2031, 1, day) for day in (15, 17, 18, 20, 24)]
        with sqlite3.connect(at.path) as database:
            for day in days:
                database.execute("delete from meterkit_revenue where day = ?", (day.isoformat(),))
                database.execute("delete from meterkit_revenue_days where day = ?", (day.isoformat(),))
        assert at.kept() != kept
        assert await at.revenue.snapshot() == days
        assert at.kept() == kept
        # By SQL, on the rows of customers alone.
        sums = at.rows("select day, sum(mrr), count(*) from meterkit_revenue group by day order by day")
        figures = "select day, mrr, customers from meterkit_revenue_days where currency = 'usd' and mrr > 0"
        assert sums == at.rows(f"{figures} order by day")


async def test_what_there_is_no_snapshot_of_is_said(store_url: str, tmp_path: Path) -> None:
    async with books(store_url, tmp_path) as at:
        with pytest.raises(MeterkitError, match="no snapshot of any day"):
            await at.revenue.at()
        await at.go(on(1, 3))
        assert (await at.revenue.at()).mrr == {}
        with pytest.raises(MeterkitError, match="no snapshot of 2031-01-03"):
            await at.revenue.at(date(2031, 1, 3))


async def test_without_an_audit_log_the_setting_is_named(store_url: str) -> None:
    async with hooked(store_url, catalog=CATALOG) as at:
        with pytest.raises(SettingsError, match="METERKIT_AUDIT_URL"):
            await Revenue(at.kit.store, at.kit.settings).at()


async def test_what_a_customer_costs_is_what_was_spent_by_those_who_are_new(
    store_url: str, tmp_path: Path
) -> None:
    async with books(store_url, tmp_path) as at:
        await at.subscribe("ada", "max")
        await at.subscribe("bob", "max")
        await at.go(on(1, 2))
        assert (await at.revenue.at()).cac is None
        await at.revenue.spend(date(2031, 1, 1), 7000)
        await at.revenue.spend(date(2031, 1, 1), 5000)
        await at.revenue.spend(date(2030, 12, 25), 1001)
        await at.revenue.spend(date(2030, 11, 30), 99_999)
        assert (await at.revenue.at()).cac == 3000
        with pytest.raises(MeterkitError, match="found -1 cents"):
            await at.revenue.spend(date(2031, 1, 1), -1)
