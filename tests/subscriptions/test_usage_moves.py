"""Usage moves from metered prices to invoice lines at a period's end, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

import pytest

from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import MeterUsage
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

LINES = loads(plans_text("invoice_lines"))
METERS = loads(plans_text("invoice_lines").replace("{usage: lines}", "{usage: meters}"))
NEXT_END = datetime.fromisoformat("2031-08-01T00:00:00+00:00")


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    """A subscriber with metered items, and a plans file that bills usage by lines now."""
    async with shop(store_url, catalog=METERS, selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        await opened.subscribed(plan="pro")
        opened.kit.store.use(LINES)
        yield opened


async def billed(at: Shop) -> list[tuple[bool, int, int]]:
    """Whether meterkit wrote it, units and cents of each line for usage, oldest first."""
    return [
        ("meterkit_line" in line["metadata"], int(line["quantity_decimal"]), line["amount"])
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if line["amount"] and line["amount"] not in {2900, 5900}
    ]


async def words(at: Shop, when: datetime) -> MeterUsage:
    return (await at.kit.usage("acme", period=when))["meters"]["words"]


async def pass_end(at: Shop, end: datetime) -> None:
    """Let a period end, deliver its usage, and finalize its invoice."""
    at.go(end + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    report = await at.kit.flush(everything=True)
    assert report.why == ""
    at.clock.advance(timedelta(minutes=10))
    await look_at_closes(at.kit)
    at.go(timedelta(hours=2))


async def advice(at: Shop, when: datetime) -> list[str]:
    return [found.advice for found in await at.kit.reconcile("acme", at=when) if found.advice]


async def drift(at: Shop) -> list[str]:
    return [one.kind for one in (await at.kit.subscriptions.check()).get("acme", ())]


async def test_usage_moves_to_lines_at_the_end_of_the_period(at: Shop) -> None:
    assert await drift(at) == ["usage"]
    await at.kit.record("acme", "words", 126)
    planned = await at.kit.subscriptions.move_usage("acme", dry_run=True)
    assert (planned.usage, planned.at, planned.is_new, await drift(at)) == ("lines", END, True, ["usage"])
    moved = await at.kit.subscriptions.move_usage("acme")
    assert moved == planned
    assert await drift(at) == []
    changes = len(at.changes())
    assert not (await at.kit.subscriptions.move_usage("acme")).is_new
    assert len(at.changes()) == changes
    await at.kit.record("acme", "words", 10)
    await pass_end(at, END)
    assert await billed(at) == [(False, 36, 144)]
    await at.kit.record("acme", "words", 120)
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(False, 36, 144), (True, 20, 80)]
    assert await advice(at, HALF) == []
    assert await advice(at, NEXT_END - timedelta(days=1)) == []
    assert [(await words(at, when))["delivered"] for when in (HALF, NEXT_END - timedelta(days=1))] == [36, 20]
    assert await drift(at) == []
