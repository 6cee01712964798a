"""Invoice lines that meterkit writes for usage without meters, and what happens to their invoices."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from drivers.delivery import deliver
from drivers.plans import plans_text
from drivers.shop import END, START, Shop, sell_nothing, shop
from meterkit import FlushReport, MeterKit
from meterkit.catalog import loads
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms

ITEMS: Final = "/v1/invoiceitems"
CATALOG: Final = loads(plans_text("invoice_lines"))


@asynccontextmanager
async def shop_of_lines(store_url: str) -> AsyncGenerator[Shop]:
    """A shop whose usage lines bill, with a subscriber of plan ``pro``."""
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        await opened.subscribed(plan="pro")
        yield opened


async def usage_lines(at: Shop) -> list[tuple[str, str, str, int]]:
    """Description, units, unit amount and cents of each line that meterkit has written, oldest first."""
    return [
        (
            line["description"],
            line["quantity_decimal"],
            line["pricing"]["unit_amount_decimal"],
            line["amount"],
        )
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if "meterkit_line" in line["metadata"]
    ]


async def ended(at: Shop, units: int = 126) -> None:
    """Use words at the price of a plan, and go to three minutes after the period; its invoice is a draft."""
    await at.kit.record("acme", "words", units)
    await end_period(at)


async def end_period(at: Shop) -> None:
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")


async def flushed(at: Shop) -> FlushReport:
    """Flush, two minutes later."""
    at.clock.advance(timedelta(minutes=2))
    return await deliver(at.kit, everything=True, timeout_s=0)


async def renewal(at: Shop) -> dict[str, Any]:
    """The newest invoice of the subscription."""
    return (await at.invoices())[-1]


async def arrive_late(at: Shop, units: int, customer: str = "acme") -> None:
    """Have units of the period that has ended become pending when its line is written."""
    await add_pending(at.kit, units, customer)


async def add_pending(kit: MeterKit, units: int, customer: str = "acme") -> None:
    """Add units to what is pending of the words of June."""
    keys = kit.store.keys.customer(customer)
    start_ms = to_ms((await kit.usage(customer, period=START))["period"]["start"])
    name = f"{start_ms}|{meter_token('words')}"
    admin = await kit.store.admin()
    for letter in "op":
        await admin.ask(admin.client.hincrby(keys.totals, f"{name}{letter}", units))
    await admin.ask(admin.client.zadd(keys.dirty, {customer: 0}))
