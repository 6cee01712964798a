"""Pages, simulations, statements and MRR have the prices of a customer's own items, not those of the file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audited_kit import sqlite_in
from drivers.customer_states import state_of
from drivers.delivery import kit_for
from drivers.price_shop import buyer
from drivers.served_traffic import drain
from drivers.shop import END
from drivers.usage_figures import Tables
from meterkit.pages import usage_page

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

JSON: Final = {"accept": "application/json"}


@asynccontextmanager
async def page_of(kit: MeterKit) -> AsyncGenerator[httpx.AsyncClient]:
    page = usage_page(kit, customer=lambda _: "acme", origins=["http://app"])
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/usage", app=page)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://app/usage") as client:
        yield client


async def test_the_usage_page_has_the_kept_prices_of_plan_and_seats(store_url: str) -> None:
    async with buyer(store_url, plan="team") as found, page_of(found.shop.kit) as client:
        figures = (await client.get("/", headers=JSON)).json()
        cost = figures["cost"]
        assert (cost["plan_cents"], cost["seats_cents"], cost["interval"]) == (1003, 3 * 703, "month")
        assert figures["seats"]["seat_cents"] == 703
        numbers = Tables((await client.get("/")).text).numbers
        assert (numbers["plan-cents"], numbers["seats-cents"]) == ([1003], [3 * 703])
        state = await state_of(found.shop.kit)
        assert state.subscription is not None
        assert state.subscription.mrr == 1_000_000 * (1003 + 3 * 703)
        # Another plan is sold at the price that it has now.
        assert {one["plan"]: one["cost_cents"] for one in figures["other_plans"]}["pro"] == 3307
        await found.change(plan="pro")
        cost = (await client.get("/", headers=JSON)).json()["cost"]
        assert (cost["plan_cents"], cost["seats_cents"]) == (3307, 2 * 1009)


async def test_a_forecast_has_the_kept_price_of_usage_and_of_the_plan(store_url: str, tmp_path: Path) -> None:
    """The forecast took the file's price of a unit, and of the plan."""
    url = sqlite_in(tmp_path)
    dearer = (("amount_cents: 5}", "amount_cents: 50}"),)
    async with buyer(store_url, plan="team", more=dearer, audit_url=url) as found:
        kit, clock = found.shop.kit, found.shop.clock
        for _ in range(4):
            clock.advance(timedelta(days=1))
            await kit.record("acme", "words", 10)
        await drain(kit, url)
        async with page_of(kit) as client:
            figures = (await client.get("/", headers=JSON)).json()
        (expected, *_), (cents, *_) = (
            figures["forecast"]["meters"]["words"],
            figures["forecast"]["cost_cents"],
        )
        assert cents == 1003 + 3 * 703 + 5 * (expected - 10)


async def test_a_statement_without_an_invoice_has_the_kept_prices(store_url: str, tmp_path: Path) -> None:
    """Where no Stripe key is set, or before the invoice is made."""
    url = sqlite_in(tmp_path)
    async with buyer(store_url, plan="team", audit_url=url) as found:
        at = found.shop
        async with kit_for(
            store_url, at.url, clock=at.clock, catalog=at.kit.catalog, audit_url=url, stripe_api_key=None
        ) as kit:
            shown = await kit.statement("acme")
        assert [(line.id, line.quantity, line.unit_amount, line.amount_cents) for line in shown.lines] == [
            ("plan", 1, "1003", 1003),
            ("seats", 3, "703", 3 * 703),
        ]


async def test_before_its_webhook_a_period_is_the_customers_own(store_url: str) -> None:
    """The file's interval is another one by now: the period lasted a year, or a month."""
    own = (("1003, interval: month", "1003, interval: year"),)
    async with buyer(store_url, plan="team", more=own, keeps=False) as found:
        found.shop.clock.set(END + timedelta(days=1))
        known = await found.shop.kit.subscriptions.get("acme")
        assert known is not None
        assert (known.current_period_start, known.current_period_end) == (END, END + timedelta(days=31))
