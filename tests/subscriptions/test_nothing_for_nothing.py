"""What a customer who knows the rules could try to have without paying for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from shopping import HALF, shop

if TYPE_CHECKING:
    from shopping import Shop

pytestmark = pytest.mark.anyio

FREE = 10
MINUTES = timedelta(minutes=5)


async def admitted(at: Shop, requests: int) -> int:
    """How many of so many requests are admitted."""
    return sum([(await at.kit.consume("acme", "requests")).allowed for _ in range(requests)])


async def test_a_subscription_that_nobody_has_paid_for_includes_nothing_anew(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        assert await admitted(at, FREE + 1) == FREE
        for plan in ("pro", "team", "pro"):  # Each gives way to the next.
            await at.kit.subscriptions.create("acme", plan)
            at.clock.advance(MINUTES)
            assert await admitted(at, 1) == 0
        await at.kit.subscriptions.cancel("acme")
        at.clock.advance(MINUTES)
        assert await admitted(at, 1) == 0
        made = await at.kit.subscriptions.create("acme", "team")
        at.clock.advance(timedelta(hours=24))
        assert await at.kit.subscriptions.sync("acme")
        assert (await at.stripe_subscription(made.subscription.id))["status"] == "incomplete_expired"
        assert await admitted(at, 1) == 0
        found = await at.subscribed(plan="team")
        assert found.status == "active"
        at.clock.advance(MINUTES)
        assert await admitted(at, 101) == 100


async def test_what_is_included_for_nothing_is_so_once_a_period_whatever_was_never_paid_for(
    store_url: str,
) -> None:
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        at.clock.set(HALF)
        await at.kit.subscriptions.cancel("acme", immediately=True)
        at.clock.advance(MINUTES)
        assert await admitted(at, FREE + 1) == FREE
        for plan in ("pro", "team"):
            await at.kit.subscriptions.create("acme", plan)
            at.clock.advance(MINUTES)
            assert await admitted(at, 1) == 0
            await at.kit.subscriptions.cancel("acme")
            at.clock.advance(MINUTES)
            assert await admitted(at, 1) == 0
