"""A plans file without ids: prices are found by lookup key, so that it serves test and live mode alike."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import kit_for
from drivers.near_stripe import served
from drivers.shop import END, HALF, PLANS, START, Shop
from meterkit.catalog import loads
from meterkit.errors import UnknownPlanError
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WITHOUT_IDS: Final = re.sub(r", stripe_price: \w+", "", PLANS)
CATALOG: Final = loads(WITHOUT_IDS)
KEYS: Final = {
    "meterkit:team:base": 1500,
    "meterkit:team:seats": 700,
    "meterkit:pro:base": 2900,
    "meterkit:pro:seats": 900,
}


@asynccontextmanager
async def shop(store_url: str) -> AsyncGenerator[Shop]:
    """An account with a price for each lookup key, under ids that nobody knows."""
    clock = Clock(START)
    emulator = StripeEmulator(clock=clock)
    meter = emulator.add_meter("ai_tokens")
    for key, amount in KEYS.items():
        emulator.add_price(amount, lookup_key=key, metadata={"meterkit": key})
    for plan in ("team", "pro"):
        emulator.add_price(2, meter=meter, lookup_key=f"meterkit:{plan}:meter:tokens")
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, catalog=CATALOG) as kit,
    ):
        yield Shop(kit=kit, emulator=emulator, clock=clock, url=url)


async def keyed_items(at: Shop, subscription: str) -> dict[str, int | None]:
    """What a subscription consists of: lookup key to quantity."""
    found = (await at.stripe_subscription(subscription))["items"]["data"]
    return {item["price"]["lookup_key"]: item.get("quantity") for item in found}


async def test_plans_without_ids_are_sold_by_lookup_key(store_url: str) -> None:
    async with shop(store_url) as at:
        found = await at.subscribed(plan="team", seats=7)
        assert (found.plan, found.status, found.seats) == ("team", "active", 7)
        team = {"meterkit:team:base": 1, "meterkit:team:seats": 2, "meterkit:team:meter:tokens": None}
        assert await keyed_items(at, found.id) == team

        at.clock.set(HALF)
        upgraded = await at.kit.subscriptions.change_plan("acme", "pro")
        assert (upgraded.subscription.plan, upgraded.subscription.seats) == ("pro", 10)
        pro = {"meterkit:pro:base": 1, "meterkit:pro:meter:tokens": None}
        assert await keyed_items(at, found.id) == pro

        down = await at.kit.subscriptions.change_plan("acme", "team")
        pending = down.subscription.pending_change
        assert pending is not None
        assert (pending.plan, pending.effective_at) == ("team", END)
        assert down == await at.kit.subscriptions.change_plan("acme", "team")
        at.clock.set(END)
        after = await at.kit.subscriptions.sync("acme")
        assert after is not None
        assert (after.plan, after.pending_change) == ("team", None)


async def test_who_has_a_price_that_was_made_anew_keeps_plan_and_price(store_url: str) -> None:
    async with shop(store_url) as at:
        found = await at.subscribed(plan="team")
        old = (await at.stripe_subscription(found.id))["items"]["data"][0]["price"]["id"]
        at.emulator.add_price(
            1900,
            lookup_key="meterkit:team:base",
            transfer_lookup_key=True,
            metadata={"meterkit": "meterkit:team:base"},
        )
        synced = await at.kit.subscriptions.sync("acme")
        assert synced is not None
        assert synced.plan == "team"
        await at.kit.subscriptions.set_seats("acme", 8)
        items = await at.items(found.id)
        assert (items[old], len(items)) == (1, 3)
        await at.kit.subscriptions.change_plan("acme", "pro")
        assert old not in await at.items(found.id)
        other = await at.subscribed("other", plan="team")
        assert old not in await at.items(other.id)


async def test_a_plan_whose_price_is_not_made_yet_says_what_makes_it(store_url: str) -> None:
    async with shop(store_url) as at:
        with pytest.raises(UnknownPlanError, match=r"`meterkit stripe sync` makes it"):
            await at.kit.subscriptions.create("acme", "tried")
        with pytest.raises(UnknownPlanError, match="it costs nothing"):
            await at.kit.subscriptions.create("acme", "free")
