"""Collection that is paused at Stripe: ``void`` gives what is paid, and no more for as long as it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from drivers.subscribed_customer import INSTANT
from drivers.webhooks import DAY, hooked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio


async def paused(at: Hooked, behavior: str, **more: Any) -> str:
    """A customer who pays for a month from 10 June, and whose collection is paused ten days later."""
    at.customer()
    subscription = await at.subscribe()
    await at.settle()
    at.clock.advance(10 * DAY)
    params: Any = {"pause_collection": {"behavior": behavior, **more}}
    await at.client.v1.subscriptions.update_async(subscription, params)
    await at.settle()
    return subscription


async def access(at: Hooked) -> tuple[str | None, str, str]:
    found = await at.kit.customers.get("acme")
    return found.status, found.access, found.plan


async def renewed(at: Hooked, days: int = 32) -> None:
    """Let days pass, with all that Stripe does and tells in them."""
    for _ in range(days):
        at.clock.advance(DAY)
        at.emulator.advance()
        await at.settle()


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url) as opened:
        yield opened


async def test_voided_invoices_give_what_is_paid_and_no_more(at: Hooked) -> None:
    """F-115: `pause_collection: void` was free for ever."""
    subscription = await paused(at, "void")
    assert await access(at) == ("active", "full", "pro")
    state = (await at.state()).subscription
    assert state is not None
    ends = state.end_ms / 1000
    at.clock.set(at.clock.now().fromtimestamp(ends, at.clock.now().tzinfo) - INSTANT)
    assert await access(at) == ("active", "full", "pro")
    at.clock.advance(INSTANT)
    assert await access(at) == ("active", "restricted", "free")  # By the clock, before Stripe tells.
    await renewed(at, 70)
    assert await access(at) == ("active", "restricted", "free")
    # Resumed, it is as its status says; and the next invoice is collected.
    nothing: Any = {"pause_collection": ""}
    await at.client.v1.subscriptions.update_async(subscription, nothing)
    await at.settle()
    assert await access(at) == ("active", "full", "pro")


async def test_a_pause_that_ends_by_itself_ends_at_its_second(at: Hooked) -> None:
    resumes = at.clock.now() + 50 * DAY
    await paused(at, "void", resumes_at=int(resumes.timestamp()))
    await renewed(at, 35)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes - INSTANT)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes)
    assert await access(at) == ("active", "full", "pro")
    at.emulator.advance()
    await at.settle()
    assert await access(at) == ("active", "full", "pro")


@pytest.mark.parametrize("behavior", ["keep_as_draft", "mark_uncollectible"])
async def test_what_is_collected_later_or_given_away_is_served(at: Hooked, behavior: str) -> None:
    await paused(at, behavior)
    await renewed(at, 70)
    assert await access(at) == ("active", "full", "pro")
