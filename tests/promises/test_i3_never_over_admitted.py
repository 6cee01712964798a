"""I3: never over-admitted while the store answers, however many processes race."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from drivers.delivery import NOW
from drivers.workers import Worker, workers
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: pro
meters:
  included: {unit: unit}
  capped:   {unit: unit, stripe: {event_name: capped}}
  sliding:  {unit: unit}
  fixed:    {unit: unit}
  bucket:   {unit: unit}
  several:  {unit: unit}
  requests: {unit: request}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      included: {included: 100, overage: deny}
      capped:   {included: 60, overage: {bill: {cap: 40}}}
      sliding:  {rate: 100/hour}
      fixed:    {rate: {limit: 100/hour, algorithm: fixed-window}}
      bucket:   {rate: {limit: 10/hour, algorithm: token-bucket, burst: 100}}
      several:  {rate: [100/hour, 1000/day], included: 500, overage: deny}
      requests: {concurrency: 10, rate: 100/hour}
"""
METERS = ("included", "capped", "sliding", "fixed", "bucket", "several")
REASONS = {"included": "included", "capped": "cap"}
LIMIT = 100
PROCESSES = 8
# (quantity of one demand, demands of each process): together always more than there is.
DEMANDS = ((1, 30), (3, 12), (7, 6), (60, 2))


def added(answers: list[dict[str, int]]) -> Counter[str]:
    """What all processes have answered."""
    total: Counter[str] = Counter()
    for answer in answers:
        total.update(answer)
    return total


@pytest.fixture(scope="module")
async def racing(valkey: Server) -> AsyncIterator[list[Worker]]:
    async with workers(PROCESSES, store=valkey.url, plans=PLANS, now=NOW.isoformat()) as started:
        yield started


# The first test of these processes: once the store was emptied behind their back, they settle by a detour.
async def test_i3_eight_processes_share_one_concurrency_limit(store_url: str, racing: list[Worker]) -> None:
    del store_url
    for turn in range(3):
        inside = await asyncio.gather(*(racer.ask("enter", customer="acme", times=4) for racer in racing))
        assert sum(inside) == 10, turn
        answered = await asyncio.gather(*(racer.ask("leave") for racer in racing))
        total = added(answered)
        # The next turn finds all ten free again: each leaving was told to the store before its answer.
        assert total == {"200": 10, "429": PROCESSES * 4 - 10}, turn


@pytest.mark.parametrize("meter", METERS)
async def test_i3_eight_racing_processes_admit_exactly_the_limit(
    store_url: str, racing: list[Worker], meter: str
) -> None:
    del store_url
    for quantity, times in DEMANDS:
        demand = {"customer": f"{meter}-{quantity}", "meter": meter, "quantity": quantity, "times": times}
        answers = await asyncio.gather(*(racer.ask("consume", **demand) for racer in racing))
        total = added(answers)
        admitted = LIMIT // quantity
        refused = PROCESSES * times - admitted
        assert total == {"admitted": admitted, REASONS.get(meter, "rate"): refused}, quantity


@pytest.mark.parametrize(("quantity", "times"), [(1, 120), (3, 40), (7, 20), (60, 5)])
@pytest.mark.parametrize("meter", METERS)
async def test_i3_many_tasks_of_one_process_in_memory(meter: str, quantity: int, times: int) -> None:
    prefix = f"i3-{meter}-{quantity}"
    async with MeterKit(
        loads(PLANS), redis_url="memory://", clock=Clock(NOW), key_prefix=prefix, flush=False
    ) as kit:
        decisions = await asyncio.gather(*(kit.consume("acme", meter, quantity) for _ in range(times)))
        used = (await kit.usage("acme"))["meters"][meter]
    admitted = [decision for decision in decisions if decision.allowed]
    assert len(admitted) == LIMIT // quantity
    assert {decision.reason for decision in decisions if not decision.allowed} == {REASONS.get(meter, "rate")}
    assert (used["recorded"], used["held"]) == (LIMIT // quantity * quantity, 0)


async def test_i3_a_process_that_dies_with_holds_never_gives_more(store_url: str) -> None:
    options = {"store": store_url, "plans": PLANS, "now": NOW.isoformat()}
    async with workers(2, **options) as (doomed, witness):
        assert await doomed.ask("enter", customer="acme", times=8) == 8
        await doomed.kill()
        assert await witness.ask("enter", customer="acme", times=8) == 2
        assert await witness.ask("leave") == {"200": 2, "429": 6}
        # Nobody gives back what the dead one held; it is gone when its slot of five minutes and the next are.
        await witness.ask("now", at=NOW.replace(minute=NOW.minute + 10).isoformat())
        assert await witness.ask("enter", customer="acme", times=12) == 10
        await witness.ask("leave")
