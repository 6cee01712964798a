"""One plans file, one bill: what sync makes and what the emulator sells are the same."""

from __future__ import annotations

from typing import Any, Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

CATALOG: Final = loads(plans_text("one_bill"))


async def sold(at: Shop) -> list[dict[str, Any]]:
    """What there is to buy, without what differs from account to account."""
    products = {one["id"]: one["name"] for one in await at.stripe_list("/v1/products")}
    meters = {one["id"]: one["event_name"] for one in await at.stripe_list("/v1/billing/meters")}
    prices = await at.stripe_list("/v1/prices", **{"expand[]": "data.tiers"})
    for price in prices:
        price["product"] = products[price["product"]]
        price["recurring"]["meter"] = meters.get(price["recurring"]["meter"])
        del price["id"], price["created"]
    return sorted(prices, key=lambda price: str(price["lookup_key"]))


async def billed(at: Shop, customer: str) -> list[tuple[str, int]]:
    await at.subscribed(customer, plan="pro", seats=5)
    at.clock.set(HALF)
    await at.kit.record(customer, "requests", 2_345)
    await at.kit.record(customer, "words", 3_500)
    await at.kit.record(customer, "thirds", 7)
    await at.kit.flush(everything=True)
    at.clock.set(END)
    renewal = (await at.invoices())[-1]
    lines = [(line["description"].partition(" (")[0], line["amount"]) for line in renewal["lines"]["data"]]
    return sorted((text.replace("\N{MULTIPLICATION SIGN}", "x"), amount) for text, amount in lines)


async def test_the_emulator_sells_what_sync_makes(store_url: str) -> None:
    """F-106: the emulator sold begun packages, and sync sold units."""
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        assert (await at.kit.stripe.sync()).problems == []
        by_sync, bill = await sold(at), await billed(at, "synced")
    assert bill == [
        ("1 x Pro", 4900),
        ("100 x Requests", 0),
        ("2 x Pro: seats", 1800),
        ("2245 x Requests", 225),
        ("2500 x Translated words", 30),
        ("7 x Thirds", 233),
    ]
    async with shop(store_url, catalog=CATALOG, selling=StripeEmulator.add_plans) as at:
        assert await sold(at) == by_sync
        assert await billed(at, "sold") == bill
