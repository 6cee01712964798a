"""A process with an older plans file leaves the plans and prices of a newer one's customers as they are."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import kit_for
from drivers.shop import sell_nothing, shop
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

OLDER: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  words: {unit: word, stripe: {event_name: api_words}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {words: {included: 0, overage: deny}}
  pro:
    rank: 10
    price: {amount_cents: 1000, interval: month}
    meters: {words: {included: 10, overage: {bill: {per: 1, amount_cents: 5}}}}
"""
NEWER: Final = f"""{OLDER}  plus:
    rank: 20
    price: {{amount_cents: 2000, interval: month}}
    meters: {{words: {{included: 10, overage: {{bill: {{per: 1, amount_cents: 3}}}}}}}}
"""


@asynccontextmanager
async def two_files(store_url: str) -> AsyncGenerator[tuple[Shop, MeterKit]]:
    """A shop with the newer file, whose customer ``acme`` has ``plus``; and a process with the older one."""
    async with shop(store_url, catalog=loads(NEWER), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="plus")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(OLDER)) as older:
            yield at, older


async def shown(kit: MeterKit) -> tuple[str, int | None]:
    usage = await kit.usage("acme")
    return usage["plan"], usage["meters"]["words"]["overage_cents"]


async def test_a_process_with_an_older_file_keeps_a_plan_that_it_does_not_know(store_url: str) -> None:
    async with two_files(store_url) as (at, older):
        await older.subscriptions.sync("acme")
        await older.subscriptions.check()
        await at.kit.record("acme", "words", 30)
        assert await shown(at.kit) == ("plus", 60)


async def test_a_plan_of_the_older_file_counts_once_the_subscription_has_its_price(store_url: str) -> None:
    async with two_files(store_url) as (at, older):
        found = await at.kit.subscriptions.get("acme")
        assert found is not None
        prices = {price["lookup_key"]: price["id"] for price in await at.stripe_list("/v1/prices")}
        items = (await at.stripe_subscription(found.id))["items"]["data"]
        for item in items:
            key = item["price"]["lookup_key"].replace("plus", "pro")
            await at.stripe_change(f"/v1/subscription_items/{item['id']}", price=prices[key])
        await older.subscriptions.sync("acme")
        await older.record("acme", "words", 30)
        assert await shown(older) == await shown(at.kit) == ("pro", 100)
