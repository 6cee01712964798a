"""A meter that Stripe did not have: one intent shows whether it has it now, and the others follow or wait."""

from __future__ import annotations

from datetime import timedelta

import pytest

from drivers.delivery import NOW, kit_for
from drivers.near_stripe import served
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def test_a_missing_meter_costs_one_call_after_its_pause(store_url: str) -> None:
    # R18: all that had waited was sent at once, to be refused again.
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    emulator.add_meter("ai_tokens")
    customers = [f"c{number}" for number in range(30)]
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, shards=4) as kit,
        kit.flusher() as flusher,
    ):
        for customer in customers:
            emulator.add_customer(f"cus_{customer}")
            await kit.customers.link(customer, f"cus_{customer}", force=True)
        await kit.record("c0", "tokens", 101)
        assert (
            await flusher.flush(everything=True)
        ).delivered == 1  # Nothing waits for a first call any more.
        for customer in customers:
            await kit.record(customer, "requests", 6)
        await flusher.flush(everything=True, timeout_s=0)
        for pause in (timedelta(minutes=1), timedelta(minutes=2)):
            clock.advance(pause + timedelta(seconds=1))
            before = len(emulator.requests)
            report = await flusher.flush(everything=True, timeout_s=0)
            assert (len(emulator.requests) - before, report.left) == (1, 30)
        emulator.add_meter("api_requests")
        clock.advance(timedelta(minutes=4, seconds=1))
        before = len(emulator.requests)
        assert (await flusher.flush(everything=True)).delivered == 30
        assert len(emulator.requests) - before == 30
