"""Usage without meters at Stripe beyond the 250 items that Stripe takes on an invoice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import PlansError
from meterkit.catalog import Catalog, loads

pytestmark = pytest.mark.anyio


def catalog_of(meter_count: int) -> Catalog:
    """A plans file with many billed meters: a unit costs $0.04 on pro, 0.07 on team, 0.09 on most."""
    names = [f"m{place}" for place in range(meter_count)]
    meters = "".join(f"  {name}: {{unit: word, stripe: {{event_name: {name}}}}}\n" for name in names)
    plans = ""
    for rank, (plan, cents) in enumerate([("free", 0), ("pro", 4), ("team", 7), ("most", 9)]):
        overage = f"{{bill: {{per: 1, amount_cents: {cents}}}}}" if cents else "deny"
        entitlements = "".join(f"      {name}: {{included: 0, overage: {overage}}}\n" for name in names)
        price = f"{{amount_cents: {rank * 2900}, interval: month}}"
        plans += f"  {plan}:\n    rank: {rank}\n    price: {price}\n    meters:\n{entitlements}"
    head = "schema: 1\ncurrency: usd\ndefault_plan: free\nbilling: {usage: lines}\n"
    return loads(f"{head}meters:\n{meters}plans:\n{plans}")


async def record(at: Shop, meter_count: int, units: int) -> None:
    """Record units of the first meters."""
    for place in range(meter_count):
        await at.kit.record("acme", f"m{place}", units)


@pytest.mark.dear("200 lines")
async def test_more_than_200_lines_are_summed_by_meter(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="meterkit.delivery")
    async with shop(store_url, catalog=catalog_of(100), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await record(at, 100, 5)
        at.clock.set(HALF)
        await at.kit.subscriptions.change_plan("acme", "team")
        await record(at, 100, 1)
        at.clock.set(HALF + timedelta(days=1))
        await at.kit.subscriptions.change_plan("acme", "most")
        await record(at, 1, 2)
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.flush(everything=True)).why == ""
        renewal = (await at.invoices())[-1]
        assert renewal["total"] == 3 * 2900 + 100 * (5 * 4 + 7) + 2 * 9
        assert renewal["lines"]["total_count"] == 1 + 100
        shown = [line["description"] for line in renewal["lines"]["data"]]
        assert [text for text in shown if "(2 prices)" in text]
        assert sum("each meter has one line" in line for line in caplog.messages) == 1
        rows = await at.kit.reconcile("acme", at=HALF)
        assert (len(rows), {row.advice for row in rows}) == (100, {""})


def test_a_plan_bills_at_most_100_meters() -> None:
    with pytest.raises(PlansError, match="has 101 prices of usage"):
        catalog_of(101)
