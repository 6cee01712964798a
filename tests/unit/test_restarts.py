"""A shard whose store may have forgotten deliveries, step by step."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import HERE_S, NOW_MS, keep, kit_alone
from drivers.stripe_objects import Counted
from meterkit.delivery.report import FlushReport
from meterkit.delivery.restarts import Restarts
from meterkit.outbox.outbox import Outbox
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

HOUR_MS: Final = 3_600_000
MINUTE_S: Final = 60


@dataclass(frozen=True, kw_only=True)
class Shard:
    kit: MeterKit
    clock: Clock
    restarts: Restarts
    outbox: Outbox
    report: FlushReport

    async def life(self, **fields: Any) -> dict[str, str]:
        """What the shard says of its life; the fields that are given are set first."""
        admin, key = await self.kit.store.admin(), self.kit.store.keys.shard(0, "life")
        if fields:
            await admin.ask(admin.client.hset(key, mapping=fields))
        kept = await admin.ask(admin.client.hgetall(key))
        return {name.decode(): value.decode() for name, value in kept.items()}

    async def begun_anew(self, **fields: Any) -> None:
        """Have another life be known, and this one be met."""
        # By the word of an operator: a store in this process has no life of its own to tell.
        await self.life(known="doubted", noticed="a third life")
        assert not await self.are_over()
        await self.life(**fields)

    async def are_over(self) -> bool:
        return await self.restarts.are_over(self.outbox, 0, self.report)


@asynccontextmanager
async def a_shard(
    at_stripe: dict[int, int] | None = None, *, store_url: str = "memory://"
) -> AsyncGenerator[Shard]:
    clock = Clock(NOW)
    async with kit_alone(store_url, clock=clock) as kit:
        restarts = Restarts(kit.store, Counted(at_stripe or {}))
        outbox = Outbox(kit.store, await kit.store.admin())
        yield Shard(kit=kit, clock=clock, restarts=restarts, outbox=outbox, report=FlushReport())


async def test_each_shard_of_a_new_store_knows_in_which_life_it_is(store_url: str) -> None:
    async with a_shard(store_url=store_url) as at:
        await at.restarts.begin(at.outbox, at.report)
        assert (await at.life())["known"]
        assert await at.are_over()


async def test_i6_a_shard_that_meets_another_life_waits_for_two_minutes() -> None:
    async with a_shard() as at:
        await at.begun_anew()
        life = await at.life()
        assert (life["noticed"], life["noticed_ms"]) == ("", f"{NOW_MS}")
        for seconds, is_over in ((119.999, False), (120, True)):
            at.clock.set(NOW + timedelta(seconds=seconds))
            assert await at.are_over() == is_over
        assert (await at.life())["known"] == ""


@pytest.mark.parametrize("both", [True, False])
async def test_i6_one_intent_that_was_tried_is_waited_for_an_hour(*, both: bool) -> None:
    async with a_shard() as at:
        await keep(at.kit, "tried", 5, state="queued", first=NOW_MS - 60_000)
        if both:
            await keep(at.kit, "new", 5, state="queued")
        await at.begun_anew()
        for minutes, is_over in ((10, False), (59.99, False), (60, True)):
            at.clock.set(NOW + timedelta(minutes=minutes))
            assert await at.are_over() == is_over


@pytest.mark.parametrize(("minutes", "parked"), [(59, 1), (60, 1), (62, 0), (90, 0)])
async def test_i6_where_the_last_delivery_is_not_known_it_may_have_been_within_the_hour(
    minutes: int, parked: int
) -> None:
    # What was taken back hides in the sum what was sent, and in the minutes nothing.
    there_s = HERE_S - minutes * MINUTE_S
    async with a_shard({there_s: 5, HERE_S - 10 * HOUR_MS // 1000: -5}) as at:
        await keep(at.kit, "new", 5, state="queued", at=NOW_MS - 1)
        await at.begun_anew(seen_ms="0")
        at.clock.advance(timedelta(minutes=2))
        assert await at.are_over()
        assert at.report.parked == parked


@pytest.mark.parametrize(("sealed_after_ms", "parked"), [(-1, 1), (0, 0)])
async def test_i6_minutes_behind_are_asked_for_where_what_was_sealed_before_has_the_last_one(
    sealed_after_ms: int, parked: int
) -> None:
    async with a_shard({HERE_S + 3 * MINUTE_S: 5, HERE_S - 10 * HOUR_MS // 1000: -5}) as at:
        for name, state in (("queued", "queued"), ("parked", "parked")):
            await keep(at.kit, name, 5, state=state, time=HERE_S, at=NOW_MS + sealed_after_ms)
        await at.begun_anew(seen_ms=f"{NOW_MS - 60_000}")
        at.clock.advance(timedelta(minutes=10))
        assert await at.are_over()
        assert at.report.parked == parked
