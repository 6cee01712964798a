"""The cut before prices change: until when it holds usage back, and when it lets go again."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import NOW_MS, PERIOD_MS, keep, kit_alone
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.customers.states import States
from meterkit.delivery.on_demand import Cutter
from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

HELD_MS: Final = 90_000


class Cut:
    """A cutter of a kit whose flusher does what a test says."""

    def __init__(self, kit: MeterKit, clock: Clock, stripe: ObjectsAtStripe) -> None:
        self.kit = kit
        self.clock = clock
        self.stripe = stripe
        self.cutter = Cutter(kit.store, self._flusher, lambda: stripe)
        self.flush: Callable[[], Awaitable[None]] = self._nothing

    @asynccontextmanager
    async def _flusher(self) -> AsyncGenerator[Any]:
        yield self

    async def _nothing(self) -> None:
        pass

    async def marks(self) -> tuple[int, int]:
        """Until when usage is held back, and the first instant to stamp it with, from now on (ms)."""
        admin, totals = await self.kit.store.admin(), self.kit.store.keys.customer("acme").totals
        found = await admin.ask(admin.client.hmget(totals, [f"{PERIOD_MS}|{name}" for name in "wy"]))
        till_ms, from_ms = (int(mark or 0) for mark in found)
        return till_ms and till_ms - NOW_MS, from_ms and from_ms - NOW_MS


@asynccontextmanager
async def cutting() -> AsyncGenerator[Cut]:
    clock = Clock(NOW)
    async with kit_alone(clock=clock) as kit:
        await States(kit.store).change("acme", lambda state: replace(state, stripe_customer="cus_acme"))
        yield Cut(kit, clock, ObjectsAtStripe({}))


async def test_usage_is_held_back_for_longer_than_stripe_may_take() -> None:
    async with cutting() as at:
        seen = list[tuple[int, int]]()

        async def flush() -> None:
            seen.append(await at.marks())
            at.clock.advance(timedelta(seconds=7))

        at.flush = flush
        async with at.cutter.cut("acme", {}):
            seen.append(await at.marks())
        assert seen == [(HELD_MS, 0), (7000 + HELD_MS, 0)]
        # The next whole minute: it is half past.
        assert await at.marks() == (0, 30_000)


async def test_what_comes_after_the_change_is_after_it_by_stripes_clock_too() -> None:
    async with cutting() as at:
        at.stripe.server_time_s = NOW_MS // 1000 + 600
        async with at.cutter.cut("acme", {}):
            pass
        assert await at.marks() == (0, 630_000)


@pytest.mark.parametrize(
    ("error", "held_ms"),
    [
        (StripeError("no such price", status=400), 0),
        (StripeUnavailableError("no answer"), HELD_MS),
        (RuntimeError("the app's own"), HELD_MS),
    ],
)
async def test_what_may_have_been_changed_holds_usage_back_until_stripe_has_decided(
    error: Exception, held_ms: int
) -> None:
    async with cutting() as at:
        with pytest.raises(type(error)):
            async with at.cutter.cut("acme", {}):
                raise error
        assert (await at.marks())[0] == held_ms


async def test_what_was_not_delivered_holds_nothing_back() -> None:
    async with cutting() as at:

        async def flush() -> None:
            assert (await at.marks())[0] == HELD_MS
            raise StripeUnavailableError("no answer")

        at.flush = flush
        with pytest.raises(StripeUnavailableError):
            async with at.cutter.cut("acme", {}):
                pytest.fail("nothing is to be changed")
        assert (await at.marks())[0] == 0


async def test_intents_that_wait_for_another_try_are_tried_at_once() -> None:
    async with cutting() as at:
        await keep(at.kit, "waiting", 5, state="queued", attempts=3)
        admin, outbox = await at.kit.store.admin(), at.kit.store.keys.shard(0, "outbox")
        await admin.ask(admin.client.zadd(outbox, {"waiting": NOW_MS + 3_600_000}))

        async def flush() -> None:
            assert await admin.ask(admin.client.zscore(outbox, "waiting")) == NOW_MS
            raise StripeUnavailableError("no answer")

        at.flush = flush
        with pytest.raises(StripeUnavailableError):
            async with at.cutter.cut("acme", {}):
                pytest.fail("nothing is to be changed")


async def test_an_intent_that_was_not_tried_now_is_waited_for() -> None:
    async with cutting() as at:
        await keep(at.kit, "waiting", 5, state="queued", attempts=3)
        admin, keys = await at.kit.store.admin(), at.kit.store.keys
        passes = 0

        async def flush() -> None:
            nonlocal passes
            passes += 1
            if passes == 2:  # Another flusher has delivered it.
                await admin.ask(admin.client.hdel(keys.shard(0, "intents"), "waiting"))
                await admin.ask(admin.client.zrem(keys.shard(0, "outbox"), "waiting"))
                await admin.ask(admin.client.delete(keys.customer("acme").totals))

        at.flush = flush
        async with at.cutter.cut("acme", {}):
            assert passes == 2
