"""A plans file without ids: prices are found by lookup key, so that it serves test and live mode alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from drivers.shop import END, HALF, PLANS, Shop, shop
from meterkit.catalog import loads
from meterkit.errors import UnknownPlanError
from subscriptions.looks import synced

if TYPE_CHECKING:
    from meterkit.catalog import Catalog
    from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

WITHOUT_IDS: Final = re.sub(r", stripe_price: \w+", "", PLANS)
CATALOG: Final = loads(WITHOUT_IDS)
KEYS: Final = {
    "meterkit:team:base": 1500,
    "meterkit:team:seats": 700,
    "meterkit:pro:base": 2900,
    "meterkit:pro:seats": 900,
}


def sell(emulator: StripeEmulator, _catalog: Catalog) -> None:
    """Make a price for each lookup key, under ids that nobody knows."""
    meter = emulator.add_meter("ai_tokens")
    for key, amount in KEYS.items():
        emulator.add_price(amount, lookup_key=key, metadata={"meterkit": key})
    for plan in ("team", "pro"):
        emulator.add_price(2, meter=meter, lookup_key=f"meterkit:{plan}:meter:tokens")


async def keyed_items(at: Shop, subscription: str) -> dict[str, int | None]:
    found = (await at.stripe_subscription(subscription))["items"]["data"]
    return {item["price"]["lookup_key"]: item.get("quantity") for item in found}


async def test_plans_without_ids_are_sold_by_lookup_key(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
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
        after = await synced(at)
        assert (after.plan, after.pending_change) == ("team", None)


async def test_a_plan_whose_price_is_not_made_yet_says_what_makes_it(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        with pytest.raises(UnknownPlanError, match=r"`meterkit stripe sync` makes it"):
            await at.kit.subscriptions.create("acme", "tried")
        with pytest.raises(UnknownPlanError, match="it costs nothing"):
            await at.kit.subscriptions.create("acme", "free")
