"""Requests that live longer than a slot of holds keep what they hold, and give all of it back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from faults import Client, answer_ok, counters, eventually, kit_at, metered, settled, used
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from meterkit import MeterKit
    from servers import Server

pytestmark = pytest.mark.anyio

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

    async def end(self) -> int:
        self.go.set()
        return await self._task


async def pass_minutes(kit: MeterKit, clock: Clock, minutes: int) -> None:
    """Let time pass as it does: the lane looks after its holds every half a minute."""
    lane = kit.store.lanes[asyncio.get_running_loop()]
    for _ in range(minutes):
        clock.advance(timedelta(minutes=1))
        lane.hold_on()
        await settled(kit)
        await eventually(lambda: not any(holder.outlives_hold() for holder in lane.live))
        await settled(kit)


async def test_i3_a_request_of_half_an_hour_keeps_its_holds_and_gives_them_back(valkey: Server) -> None:
    clock = Clock(datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC))
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: bool(counters(valkey, "acme")))
        await pass_minutes(kit, clock, 31)
        assert await used(kit, "acme") == (0, 2)
        assert await Client(metered(kit)).get("acme") == 429  # One is in flight.
        assert await long.end() == 200
        await settled(kit)
        assert await used(kit, "acme") == (2, 0)
        assert await Client(metered(kit)).get("acme") == 200
        await settled(kit)
        assert await used(kit, "acme") == (4, 0)
        assert kit.store.lanes[asyncio.get_running_loop()].live == set()


async def test_i3_what_a_renewed_request_took_of_its_rates_is_taken_once(valkey: Server) -> None:
    clock = Clock(datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC))
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: bool(counters(valkey, "acme")))
        await pass_minutes(kit, clock, 12)
        counted = [int(value) for name, value in counters(valkey, "acme").items() if name.endswith("b")]
        assert 2 in counted
        assert 4 not in counted
        await long.end()


async def test_i3_a_renewal_by_another_plan_leaves_no_hold_behind(valkey: Server) -> None:
    clock = Clock(datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC))
    async with kit_at(valkey.url, plans=PLANS, clock=clock) as kit:
        long = LongRequest(kit)
        await eventually(lambda: bool(counters(valkey, "acme")))
        await kit.customers.override("acme", {"requests": {"included": "unlimited", "concurrency": 3}})
        await pass_minutes(kit, clock, 12)
        await long.end()
        await settled(kit)
        await pass_minutes(kit, clock, 11)
        await kit.check("acme", "requests")
        assert await used(kit, "acme") == (2, 0)
        held = [value for name, value in counters(valkey, "acme").items() if name[4:] in {"h", "H", "n", "N"}]
        assert {"0"} >= set(held)
