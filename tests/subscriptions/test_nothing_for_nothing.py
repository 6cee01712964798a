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


async def test_who_ends_a_subscription_and_begins_another_pays_for_both(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        for _ in range(3):
            await at.subscribed(plan="team")
            at.clock.advance(MINUTES)
            assert await admitted(at, 101) == 100
            await at.kit.subscriptions.cancel("acme", immediately=True)
            at.clock.advance(timedelta(hours=2))  # A last invoice would be final by then.
        at.emulator.advance()
        assert sum(invoice["amount_paid"] for invoice in await at.invoices()) == 3 * 1500
        assert await balance(at) == 0


async def test_what_was_never_paid_is_not_given_back(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        made = await at.kit.subscriptions.create("acme", "pro", 20)
        assert made.subscription.status == "incomplete"
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        await at.subscribed(plan="pro")
        linked = (await at.kit.customers.get("acme")).stripe_customer
        assert linked is not None
        at.emulator.fail_payments(linked)
        at.clock.advance(timedelta(days=31))
        found = await at.kit.subscriptions.sync("acme")
        assert found is not None
        assert (found.status, found.access) == ("past_due", "grace")
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        at.clock.advance(timedelta(hours=2))
        at.emulator.advance()
        assert await balance(at) == 0


async def balance(at: Shop) -> int:
    """What a customer has at Stripe: below 0 is a credit."""
    linked = (await at.kit.customers.get("acme")).stripe_customer
    (found,) = [one for one in await at.stripe_list("/v1/customers") if one["id"] == linked]
    owed: int = found["balance"]
    return owed
