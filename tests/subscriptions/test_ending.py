"""What was used is on the invoice that ends a subscription at once, or its loss is logged."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from drivers.delivery import until
from drivers.shop import HALF

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)


@asynccontextmanager
async def ending(at: Shop) -> AsyncGenerator[None]:
    """End the subscription of acme at once; the block begins when Stripe is asked what it has counted."""
    async with anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await at.kit.subscriptions.cancel("acme", immediately=True)

        tasks.start_soon(cancel)
        # Up to now, and with what is ahead.
        await until(lambda: sum("event_summaries" in one.path for one in at.emulator.requests) >= 2)
        await anyio.sleep(0.2)  # Long enough for an end that does not wait.
        assert not is_ended(at)
        yield


def is_ended(at: Shop) -> bool:
    return any(exchange.method == "DELETE" for exchange in at.emulator.requests)


async def billed(at: Shop) -> int:
    lines = (await at.invoices())[-1]["lines"]["data"]
    return sum(line["quantity"] for line in lines if "ai_tokens" in str(line["pricing"]))


async def test_what_is_stamped_ahead_is_waited_for(at: Shop) -> None:
    """Each delivery of a meter has a minute of its own, so the third within one is two minutes ahead."""
    await at.subscribed(plan="team")
    at.clock.set(HALF + timedelta(seconds=30))
    for quantity in (200, 30):
        await at.kit.record("acme", "tokens", quantity)
        await at.kit.flush(everything=True)
    await at.kit.record("acme", "tokens", 4)
    async with ending(at):
        at.clock.advance(MINUTE)
        asked = len(at.emulator.requests)
        await until(lambda: len(at.emulator.requests) > asked)
        assert not is_ended(at)
        at.clock.advance(MINUTE)
    assert await billed(at) == 134


async def test_what_is_used_while_an_end_waits_is_billed_too(at: Shop) -> None:
    await at.subscribed(plan="team")
    at.clock.set(HALF + timedelta(seconds=30))
    for quantity in (300, 50):
        await at.kit.record("acme", "tokens", quantity)
        await at.kit.flush(everything=True)
    async with ending(at):
        await at.kit.record("acme", "tokens", 7)
        at.clock.advance(timedelta(seconds=150))
    assert await billed(at) == 257


async def test_usage_that_cannot_be_billed_in_time_is_logged(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await at.subscribed(plan="team")
    at.clock.set(HALF + timedelta(seconds=30))
    for quantity in (300, 50):
        await at.kit.record("acme", "tokens", quantity)
        await at.kit.flush(everything=True)
    with caplog.at_level(logging.ERROR, "meterkit.subscriptions"):
        ended = await at.kit.subscriptions.cancel("acme", immediately=True)  # Its clock stands still.
    assert ended.status == "canceled"
    (said,) = [one.getMessage() for one in caplog.records if one.name == "meterkit.subscriptions"]
    assert said.startswith("50 units that customer 'acme' has used are delivered, and Stripe has not")
    assert await billed(at) == 200
