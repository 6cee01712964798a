"""One plans file, one bill: what sync makes and what the emulator sells are the same."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import kit_for
from drivers.near_stripe import served
from drivers.plans import plans_text
from drivers.shop import END, HALF, START, Shop
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

CATALOG: Final = loads(plans_text("one_bill"))


@asynccontextmanager
async def shop(store_url: str, *, is_synced: bool) -> AsyncGenerator[Shop]:
    clock = Clock(START)
    emulator = StripeEmulator(clock=clock)
    if not is_synced:
        emulator.add_plans(CATALOG)
    async with served(emulator) as url, kit_for(store_url, url, clock=clock, catalog=CATALOG) as kit:
        if is_synced:
            assert (await kit.stripe.sync()).problems == []
        yield Shop(kit=kit, emulator=emulator, clock=clock, url=url)


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
    """What a customer is billed after a month: the lines of the renewal."""
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
    async with shop(store_url, is_synced=True) as at:
        by_sync, bill = await sold(at), await billed(at, "synced")
    assert bill == [
        ("1 x Pro", 4900),
        ("100 x Requests", 0),
        ("2 x Pro: seats", 1800),
        ("2245 x Requests", 225),
        ("2500 x Translated words", 30),
        ("7 x Thirds", 233),
    ]
    async with shop(store_url, is_synced=False) as at:
        assert await sold(at) == by_sync
        assert await billed(at, "sold") == bill
