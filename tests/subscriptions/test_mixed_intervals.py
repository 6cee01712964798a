"""Other items with shorter intervals beside a yearly plan: their renewals and invoices are not the plan's."""
# Internals: the closer of periods, which the worker runs by the hour.

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest

from drivers.delivery import api_of
from drivers.emulated_account import unpaced
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import Subscription
from meterkit.catalog import loads
from meterkit.delivery.period_closer import PeriodCloser

pytestmark = pytest.mark.anyio

YEAR_END = datetime(2032, 6, 1, tzinfo=UTC)
MIXED = pytest.mark.parametrize("at", ["licensed", "metered"], indirect=True)
CATALOG = loads("""
schema: 1
currency: usd
default_plan: free
billing: {late_usage: dead_letter}
meters:
  words: {unit: word, stripe: {event_name: words}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {words: {included: 0, overage: deny}}}
  pro:
    price: {amount_cents: 29000, interval: year}
    meters: {words: {included: 100, overage: {bill: {per: 1, amount_cents: 4}}}}
""")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    unpaced(monkeypatch)


@pytest.fixture
async def at(store_url: str, request: pytest.FixtureRequest) -> AsyncGenerator[Shop]:
    """A subscriber of a yearly plan whose subscription has a monthly item of another product."""
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        made = await opened.subscribed(plan="pro")
        if request.param == "metered":
            meter = opened.emulator.add_meter("sms")
            opened.emulator.add_price(3, price_id="price_other", meter=meter)
        else:
            opened.emulator.add_price(700, price_id="price_other")
        await opened.post("/v1/subscription_items", {"subscription": made.id, "price": "price_other"})
        await synced(opened)
        yield opened


async def synced(at: Shop) -> Subscription:
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    return found


@MIXED
async def test_their_renewal_ends_no_period_of_the_plans_usage(at: Shop) -> None:
    at.clock.set(HALF)
    await at.kit.record("acme", "words", 126)
    at.clock.advance(timedelta(minutes=5))
    await at.kit.flush(everything=True)
    at.clock.set(END - timedelta(minutes=1))
    await at.kit.record("acme", "words", 5)
    at.go(END + timedelta(hours=2))
    await synced(at)
    assert (await at.kit.flush(everything=True)).late == []
    async with api_of(at.kit) as api:
        closed = await PeriodCloser(at.kit.store, lambda: api).confirm_due()
    assert (closed.open, closed.late) == (0, [])
    at.go(YEAR_END + timedelta(hours=2))
    billed = [line["quantity"] for one in await at.invoices() for line in one["lines"]["data"]]
    assert 31 in billed


@MIXED
async def test_a_cancellation_leaves_the_plan_its_paid_year(at: Shop) -> None:
    found = await at.kit.subscriptions.cancel("acme")
    assert found.cancel_at == found.current_period_end == YEAR_END
    before = len(at.changes())
    assert await at.kit.subscriptions.cancel("acme") == found
    assert len(at.changes()) == before
    assert (await at.kit.subscriptions.resume("acme")).cancel_at is None


@MIXED
async def test_a_void_invoice_of_theirs_leaves_the_plan_paid(at: Shop) -> None:
    at.clock.set(HALF)
    (subscription,) = await at.stripe_list("/v1/subscriptions")
    await at.stripe_change(
        f"/v1/subscriptions/{subscription['id']}", **{"pause_collection[behavior]": "void"}
    )
    at.go(END + timedelta(hours=2))
    assert (await synced(at)).access == "full"
    assert [one["status"] for one in await at.invoices()] == ["paid", "void"]
    at.go(YEAR_END + timedelta(hours=2))
    assert (await synced(at)).access == "restricted"
