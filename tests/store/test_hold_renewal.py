"""Requests that live longer than a slot of holds keep what they hold, and give all of it back."""

# Internals: when a process begins to renew shows nowhere else.

# pyright: reportPrivateUsage=false
# When a process begins to renew shows nowhere else.

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from faults.refusals import (
    Client,
    answer_ok,
    before_asking,
    counters,
    evalsha_calls,
    eventually,
    in_flight,
    kit_at,
    metered,
    renew_holds,
    settled,
    stopped,
    used,
)
from meterkit.catalog import loads
from meterkit.redis import hold_renewal
from meterkit.redis.hold_renewal import Renewal, portion
from meterkit.testing import Clock

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from meterkit import MeterKit
    from meterkit.redis.hold_renewal import Renewable
    from servers.stores import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
PLANS = loads("""
schema: 1
currency: usd
default_plan: p
meters:
  requests: {unit: request}
routes:
  - {match: "*", consume: {requests: 2}}
plans:
  p:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 100/day, concurrency: 1, included: 6, overage: deny}
""")


class LongRequest:
    """A request that is answered when it is told to."""

    def __init__(self, kit: MeterKit) -> None:
        self.go = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self.go.wait()
            await answer_ok(scope, receive, send)

        self._task = asyncio.create_task(Client(metered(kit, app)).get("acme"))
        self._live = kit.store.lanes[asyncio.get_running_loop()].live

    @property
    def is_admitted(self) -> bool:
        """Whether this process knows by now that it was: only then are its holds renewed."""
        return bool(self._live)

    async def end(self) -> int:
        self.go.set()
        return await self._task


async def pass_minutes(kit: MeterKit, clock: Clock, minutes: int) -> None:
    """Let time pass, and holds be renewed as soon as they may be."""
    lane = kit.store.lanes[asyncio.get_running_loop()]
    for _ in range(minutes):
        clock.advance(timedelta(minutes=1))
        await renew_holds(lane)
        await settled(kit)


async def test_i3_a_request_of_half_an_hour_keeps_its_holds(valkey: Server) -> None:
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: long.is_admitted)
        await pass_minutes(kit, clock, 31)
        assert await used(kit, "acme") == (0, 2)
        counted = {int(value) for name, value in counters(valkey, "acme").items() if name.endswith("b")}
        assert 2 in counted  # In its rates it counts once.
        assert 4 not in counted
        assert await Client(metered(kit)).get("acme") == 429  # One is in flight.
        assert await long.end() == 200
        await settled(kit)
        assert await used(kit, "acme") == (2, 0)
        assert await Client(metered(kit)).get("acme") == 200
        await settled(kit)
        assert await used(kit, "acme") == (4, 0)
        assert kit.store.lanes[asyncio.get_running_loop()].live == set()


async def test_i3_a_renewal_by_another_plan_leaves_no_hold_behind(valkey: Server) -> None:
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: long.is_admitted)
        await kit.customers.override("acme", {"requests": {"included": "unlimited", "concurrency": 3}})
        await pass_minutes(kit, clock, 12)
        await long.end()
        await settled(kit)
        await pass_minutes(kit, clock, 11)
        await kit.check("acme", "requests")
        assert await used(kit, "acme") == (2, 0)
        held = [value for name, value in counters(valkey, "acme").items() if name[4:] in {"h", "H", "n", "N"}]
        assert {"0"} >= set(held)


# F-15: 3,000 streams renewed in one tick stalled the loop for 674 ms, and 354 were not renewed.


def test_renewals_are_spread_over_the_slot() -> None:
    for begin_ms in (60_000, 99_999):
        due, most = 3_000, 0
        for at_ms in range(0, 300_000, 250):
            now = portion(due, at_ms=at_ms, begin_ms=begin_ms)
            most = max(most, now)
            due -= now
            if at_ms < 60_000:
                assert now == 0
            if at_ms >= 240_000:
                assert due == 0
        assert due == 0
        assert most <= 8


async def test_no_tick_renews_so_many_that_the_loop_stands_still() -> None:
    # F-15: processes do not begin at the same moment, either.
    assert len({Renewal(lambda _: None, lambda: 0)._begin_ms for _ in range(20)}) > 10
    assert portion(1_000_000, at_ms=100_000, begin_ms=60_000) == 200
    assert portion(1_000_000, at_ms=299_999, begin_ms=60_000) == 200
    assert portion(3, at_ms=299_999, begin_ms=60_000) == 3
    assert portion(0, at_ms=100_000, begin_ms=60_000) == 0


async def test_i3_holds_are_renewed_although_the_scripts_were_lost(valkey: Server) -> None:
    # F-9: where only streams were left, nobody loaded the scripts again, and their holds vanished.
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        lane = await kit.store.lane()
        await eventually(lambda: bool(lane.live))
        valkey.command("SCRIPT", "FLUSH")
        clock.advance(timedelta(minutes=6))
        (holder,) = lane.live
        assert holder.is_due()
        await holder.renew()
        assert not holder.is_due()
        await settled(kit)
        assert await used(kit, "acme") == (0, 2)
        assert await long.end() == 200


async def test_the_lane_renews_by_itself(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_renewal, "_IDLE_MS", 10)
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: long.is_admitted)
        clock.advance(timedelta(minutes=6, seconds=30))
        lane = kit.store.lanes[asyncio.get_running_loop()]
        await eventually(lambda: not any(holder.is_due() for holder in lane.live))
        await settled(kit)
        assert await used(kit, "acme") == (0, 2)
        assert await long.end() == 200


def holder_of(kit: MeterKit) -> Renewable:
    (holder,) = kit.store.lanes[asyncio.get_running_loop()].live
    return holder


async def test_i3_a_request_that_ends_while_renewing_holds_nothing(valkey: Server) -> None:
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock, store_timeout=10.0) as kit:
        long = LongRequest(kit)
        await eventually(lambda: long.is_admitted)
        clock.advance(timedelta(minutes=6))
        holder = holder_of(kit)
        with stopped(valkey):
            renewing = asyncio.create_task(holder.renew())
            await asyncio.sleep(0)
            assert await long.end() == 200
        await renewing
        await settled(kit)
        assert await used(kit, "acme") == (2, 0)
        assert in_flight(valkey, "acme") == 0
        asked = evalsha_calls(valkey)
        await holder.renew()  # It is over.
        assert evalsha_calls(valkey) == asked


async def test_i3_a_hold_that_cannot_be_renewed_now_is_renewed_later(valkey: Server) -> None:
    clock = Clock(NOW)
    async with kit_at(valkey.url, plans=PLANS, clock=clock, store_timeout=0.1) as kit:
        long = LongRequest(kit)
        await eventually(lambda: long.is_admitted)
        clock.advance(timedelta(minutes=6))
        holder = holder_of(kit)
        with stopped(valkey):
            await holder.renew()
        assert holder.is_due()
        await settled(kit)

        limits = iter(range(7, 20))
        end = await before_asking(
            kit, lambda: kit.customers.override("acme", {"requests": {"included": next(limits)}})
        )
        await holder.renew()  # The customer changed again and again meanwhile.
        end()
        assert holder.is_due()
        await holder.renew()
        assert not holder.is_due()
        await settled(kit)
        assert await used(kit, "acme") == (0, 2)
        assert await long.end() == 200
