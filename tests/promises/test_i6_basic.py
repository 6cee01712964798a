"""I6: for a finished period Stripe's own summaries are what was recorded and reportable, to the unit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import httpx
import pytest

from drivers.delivery import FAULTS, KEY_REFUSED, STRIPE_KEY, Desk, desk
from drivers.sampled import some
from meterkit.testing import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.each_store(sampled=True)]

JUNE = datetime(2031, 6, 1, tzinfo=UTC)
JULY = datetime(2031, 7, 1, tzinfo=UTC)
AUGUST = datetime(2031, 8, 1, tzinfo=UTC)


async def summary(at: Desk, meter: str, customer: str, start: datetime, end: datetime) -> int:
    """What Stripe says it has counted."""
    query = {
        "customer": f"cus_{customer}",
        "start_time": str(int(start.timestamp())),
        "end_time": str(int(end.timestamp())),
    }
    async with httpx.AsyncClient(base_url=at.url, auth=(STRIPE_KEY, "")) as client:
        found = await client.get(f"/v1/billing/meters/{meter}/event_summaries", params=query)
    (only,) = found.json()["data"]
    value = only["aggregated_value"]
    assert value == int(value)
    return int(value)


@pytest.mark.dear("four hours of usage, with a fault in most flushes")
@pytest.mark.parametrize("seed", some(range(3), {0}))
async def test_i6_after_faults_the_summaries_are_what_was_recorded(any_store_url: str, seed: int) -> None:
    random = Random(seed)  # noqa: S311 - a schedule, not a secret
    customers = ("acme", "zeta")
    recorded = {(customer, month): 0 for customer in customers for month in (JUNE, JULY)}
    tokens = dict(recorded)
    async with desk(any_store_url, clock=Clock(JULY - timedelta(hours=2))) as at:
        await at.link(*customers)
        while at.clock.now() < JULY + timedelta(hours=2):
            month = JUNE if at.clock.now() < JULY else JULY
            for customer in customers:
                quantity = random.randrange(1, 50)
                await at.kit.record(customer, "requests", quantity)
                await at.kit.record(customer, "tokens", quantity)
                recorded[customer, month] += quantity
                tokens[customer, month] += quantity
            if random.random() < 0.6:
                at.emulator.fail_next(**random.choice((*FAULTS, KEY_REFUSED)))
            await at.flush(everything=random.random() < 0.3, timeout_s=0)
            at.clock.advance(timedelta(seconds=random.choice([20, 60, 301, 900])))
        at.emulator.clear_faults()
        await at.flush_times(3, every=timedelta(minutes=11))
        at.clock.set(AUGUST + timedelta(hours=1))
        report = await at.flush(everything=True)
        assert (report.left, report.dead, report.parked) == (0, 0, 0)
        meters = {event.event_name: event.meter for event in at.emulator.events}
        for customer in customers:
            for start, end in ((JUNE, JULY), (JULY, AUGUST)):
                requests = await summary(at, meters["api_requests"], customer, start, end)
                overage = await summary(at, meters["ai_tokens"], customer, start, end)
                assert requests == recorded[customer, start]
                assert overage == max(0, tokens[customer, start] - 100)
        # A summary of one minute names exactly one intent.
        stamps = [(event.customer, event.meter, event.timestamp) for event in at.emulator.events]
        assert len(set(stamps)) == len(stamps)
        assert len({event.identifier for event in at.emulator.events}) == len(stamps)
