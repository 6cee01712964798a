from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_stands_still_until_it_is_moved() -> None:
    clock = Clock(NOON)
    assert NOON == clock.now() == clock.now()
    clock.advance(timedelta(hours=1, milliseconds=5))
    assert NOON + timedelta(hours=1, milliseconds=5) == clock.now()
    clock.advance(-timedelta(days=1))
    assert NOON - timedelta(hours=23) + timedelta(milliseconds=5) == clock.now()
    clock.set(NOON)
    assert clock.now() == NOON


def test_a_time_without_zone_is_refused() -> None:
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(ValueError, match="has no time zone"):
        Clock(naive)
    with pytest.raises(ValueError, match="has no time zone"):
        Clock(NOON).set(naive)
    berlin = datetime(2026, 11, 20, 13, tzinfo=timezone(timedelta(hours=1)))
    assert repr(Clock(berlin)) == "Clock(2026-11-20T12:00:00+00:00)"


PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: 1/hour}}}}
"""


@pytest.mark.anyio
async def test_a_move_binds_later_questions_of_the_same_turn(any_store_url: str) -> None:
    # F-22a: all that was asked in a turn of the loop had the time of the first.
    clock = Clock(datetime(2031, 6, 10, 12, tzinfo=UTC))
    async with MeterKit(loads(PLANS), redis_url=any_store_url, clock=clock, store_timeout=10.0) as kit:
        await kit.consume("acme", "requests")

        async def advance_and_consume() -> bool:
            clock.advance(timedelta(hours=2))
            return (await kit.consume("acme", "requests")).allowed

        before, after = await asyncio.gather(kit.consume("acme", "requests"), advance_and_consume())
        assert (before.allowed, after) == (False, True)
