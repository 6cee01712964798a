"""A process with an older plans file leaves the plans and prices of a newer one's customers as they are."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.shop import sell_nothing, shop
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

OLDER: Final = plans_text("older_plans_file_older")
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


async def test_an_older_plans_file_keeps_an_unknown_plan(store_url: str) -> None:
    async with two_files(store_url) as (at, older):
        await older.subscriptions.sync("acme")
        await older.subscriptions.check()
        await at.kit.record("acme", "words", 30)
        assert await shown(at.kit) == ("plus", 60)
