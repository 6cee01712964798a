"""Pages, messages, statements and trials show each customer's own currency, and add up none with another."""
# Internals: revenue of a day, and e-mails, without a month of waiting.

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.operator_pages import make_snapshot, pages_of
from drivers.plans import plans_text
from drivers.shop import START
from drivers.subscribed_customer import fetched, subscription
from drivers.usage_figures import JSON, page_of
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.revenue.revenue_formulas import CustomerPayment
from meterkit.insights.revenue.tables import RevenueTables
from meterkit.notify.courier import make_message
from meterkit.notify.messages import make_sample
from meterkit.notify.rendering import Renderer
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("currencies")
CUSTOMERS: Final = {"ada": "", "bob": "eur", "kim": "jpy"}


@pytest.fixture
async def kit(store_url: str, tmp_path: Path) -> AsyncGenerator[MeterKit]:
    """Each customer has used 120 words of a plan with 100; each pays in another currency."""
    given: dict[str, Any] = {"clock": Clock(START), "audit_url": sqlite_in(tmp_path), "flush": False}
    async with MeterKit(loads(PLANS), redis_url=store_url, **given) as opened:
        for customer, currency in CUSTOMERS.items():
            found = subscription(currency=currency, start_ms=START, end_ms=START + timedelta(days=30))
            await fetched(opened, found, customer=customer)
            await opened.record(customer, "words", 120)
            await opened.grants.add(customer, {"usd": 3}, grant_id="gift")
        yield opened


AMOUNTS: Final[Mapping[str, Mapping[str, str]]] = {
    "ada": {"plan": "$29.00", "used": "$2.40", "budget": "$50.00", "max": "$101.40"},
    "bob": {"plan": "€27.00", "used": "€2.20", "budget": "€45.00", "max": "€93.20"},
    "kim": {"plan": "¥4,000", "used": "¥300", "budget": "¥6,000", "max": "¥14,300"},
}


@pytest.mark.parametrize("customer", CUSTOMERS)
async def test_the_usage_page_has_the_customers_currency(kit: MeterKit, customer: str) -> None:
    currency, shown = CUSTOMERS[customer] or "usd", AMOUNTS[customer]
    async with page_of(kit, customer) as client:
        figures, page = (await client.get("/", headers=JSON)).json(), (await client.get("/")).text
    assert (figures["usage"]["currency"], figures["cost"]["currency"]) == (currency, currency)
    assert all(amount in page for amount in shown.values()), (shown, page)
    # Balances and what tops them up are in dollars, whatever the rest is in.
    assert ("$10.00" in page, "$3.00" in page) == (True, True)
    others = {one.upper() for one in ("eur", "jpy") if one != currency}
    assert not any(f"{other} " in page for other in others)


async def test_a_statement_has_the_customers_currency(kit: MeterKit, tmp_path: Path) -> None:
    await drain_all(kit, sqlite_in(tmp_path))
    for customer, total in (("ada", 3140), ("bob", 2920), ("kim", 4300)):
        found = await kit.statement(customer)
        assert (found.currency, found.total_cents) == (CUSTOMERS[customer] or "usd", total)
        async with page_of(kit, customer) as client:
            page = (await client.get("/statement")).text
        assert AMOUNTS[customer]["plan"] in page


async def test_the_operators_page_shows_one_currency_at_a_time(kit: MeterKit, tmp_path: Path) -> None:
    day, tables = START.date() - timedelta(days=2), RevenueTables(Database(sqlite_in(tmp_path)))
    paid = [
        CustomerPayment(who, "pro", currency or "usd", amount * 1_000_000)
        for (who, currency), amount in zip(CUSTOMERS.items(), (2900, 2700, 4000), strict=True)
    ]
    tables.write(day, paid, [])
    await make_snapshot(kit)
    found = await kit.revenue.at()
    assert found.mrr == {"usd": 2_900_000_000, "eur": 2_700_000_000, "jpy": 4_000_000_000}
    async with pages_of(kit) as client:
        figures = (await client.get("/", headers=JSON)).json()
        assert {name for name in figures if name.startswith("revenue_")} == {
            *("revenue_usd", "revenue_eur", "revenue_jpy")
        }
        for asked, currency, amount in (
            ("/", "usd", "$29.00"),
            ("/?currency=eur", "eur", "€27.00"),
            ("/?currency=jpy", "jpy", "¥4,000"),
        ):
            page = (await client.get(asked)).text
            assert amount in page
            assert f'href="?currency={currency}" aria-current="true"' in page
            assert {one for one in ("usd", "eur", "jpy") if f'id="revenue_{one}"' in page} == {currency}
            one = (await client.get(f"/?currency={currency}", headers=JSON)).json()
            assert [name for name in one if name.startswith("revenue_")] == [f"revenue_{currency}"]
        assert (await client.get("/?currency=gbp")).status_code == 422
        rows = (await client.get("/all.json")).json()
        units = {"ada": "micro-USD", "bob": "micro-EUR", "kim": "micro-JPY"}
        assert {row["customer"]: row["unit"] for row in rows} == units


async def test_e_mails_have_the_customers_currency() -> None:
    catalog = loads(PLANS)
    renderer = Renderer(lambda: catalog, None)
    for currency, summed, spike, spent in (
        ("", "$2.40", "$14.40", "$0.008"),
        ("eur", "€2.40", "€14.40", "€0.008"),
        ("jpy", "¥240", "¥1,440", "¥0.008"),
    ):
        for event, amount in (("period.summary", summed), ("usage.spike", spike), ("usage.threshold", spent)):
            message = make_message("email", event, make_sample(event, catalog.in_currency(currency)))
            if event == "usage.threshold":
                message = replace(message, data={**message.data, "meter": "spend"})
            assert amount in renderer.render(message, locale=None, name=None, currency=currency).text
