"""I3 with allotments: the store counts at least what was admitted, whatever crashes between any two steps."""
# Internals: the model of allotting processes, which is the specification.

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import pytest

from drivers.delivery import NOW
from drivers.sampled import some, whole
from drivers.workers import Worker, workers
from faults.refusals import eventually, kit_at, used
from meterkit.catalog import loads
from meterkit.store.allotment import HOT
from meterkit.testing import Clock
from servers.stores import Server
from store.allotting_processes import CATALOG, Processes
from store.allotting_processes_paid import PaidProcesses
from store.script_driver import life
from store.script_wires import load_texts, server_wire

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
allotment: 250ms
on_store_failure: deny
meters:
  included: {unit: unit}
  capped:   {unit: unit, stripe: {event_name: capped}}
  sliding:  {unit: unit}
  fixed:    {unit: unit}
  bucket:   {unit: unit}
  several:  {unit: unit}
  shared:   {unit: unit}
  paid:     {unit: unit}
  billed:   {unit: unit, stripe: {event_name: billed}}
credits:
  ai: {costs: {paid: 3}}
routes:
  - {match: "GET /several", consume: {several: 2, sliding: 1}}
  - {match: "GET /shared", consume: {shared: 1}}
ROUTES
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      included: {included: 4001, overage: deny}
      capped:   {included: 2600, overage: {bill: {cap: 1400}}}
      sliding:  {rate: 4001/hour}
      fixed:    {rate: {limit: 4001/hour, algorithm: fixed-window}}
      bucket:   {rate: {limit: 10/hour, algorithm: token-bucket, burst: 4001}}
      several:  {rate: [4001/hour, 10_000/day], included: 5000, overage: deny, concurrency: 40}
      shared:   {rate: 10_000/minute}
  funded:
    rank: 1
    price: {amount_cents: 3900, interval: month}
    budget: {amount_cents: 3001}
    grants:
      - {meter: paid, quantity: 1001, every: period}
      - {credit: ai, quantity: 7501, every: period}
    meters:
      paid:   {included: 500, overage: deny}
      billed: {included: 1000, overage: {bill: {per: 1, amount_cents: 1}}}
""".replace(
    "ROUTES",
    "\n".join(
        f'  - {{match: "GET /{meter}", consume: {{{meter}: 2}}}}'
        for meter in ("included", "capped", "sliding", "fixed", "bucket", "paid", "billed")
    ),
)
SHARED: Final = 10_000
"""A minute."""
ROUTES: Final = (
    *(whole("bucket"), "several"),
    *(whole(meter) for meter in ("included", "capped", "sliding", "fixed")),
)
"""The bucket, which is not allotted, comes first: units of the others may be granted a moment longer."""
ADMITTED: Final = 2000
PROCESSES: Final = 8
IN_FLIGHT: Final = 40
"""Of ``several``: eight processes with ten requests each have twice as many. Below 25 nothing is allotted."""
UNSETTLED: Final = 40
"""What the process that dies serves last."""
STEPS: Final = int(os.environ.get("METERKIT_ALLOTMENT_STEPS", "4000"))
"""In all; a million before a release."""
SEEDS: Final = (0, 2, 3, 4)
"""Each meets within a thousand steps all that a run comes to."""
LIFE_US: Final = 300 * 86_400_000_000
"""Then another customer's life begins: after 400 days the store forgets what was recorded."""


@pytest.mark.dear("a thousand steps, each compared with the store")
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("of", [Processes, PaidProcesses])
@pytest.mark.parametrize("seed", some(SEEDS, {0}))
def test_i3_the_store_counts_at_least_what_allotments_admit(
    valkey: Server, of: type[Processes], seed: int
) -> None:
    done, said = 0, set[str]()
    with server_wire(valkey) as wire:
        while done < STEPS // len(SEEDS):
            world = of(wire, load_texts(), life(seed + len(SEEDS) * done))
            ends_us = world.wall_us + LIFE_US
            while done < STEPS // len(SEEDS) and world.wall_us < ends_us:
                world.step()
                done += 1
            world.settle_all()
            # What a killed process had not settled is lost, and no more.
            assert world.billed - world.lost <= world.recorded <= world.billed
            said |= set(world.said)
    assert of.says <= said


def test_i3_no_unit_is_used_when_its_window_is_over(valkey: Server) -> None:
    with server_wire(valkey) as wire:
        world = Processes(wire, load_texts(), life(0))
        process, route = world.processes[0], CATALOG.routes[-1]
        world.go_on(1_000_000 - 60_100 - world.wall_us % 1_000_000)  # The store tells 60.1 ms as 61.
        for _ in range(HOT):
            world.request(process, route)
        world.execute(process)
        world.answer(process)
        world.go_on(50_000)
        world.request(process, route)
        assert world.said == {"decided": HOT, "unit": 1}
        world.go_on(10_100)
        world.request(process, route)
        assert world.said == {"decided": HOT + 1, "unit": 1}


@pytest.fixture(scope="module")
async def racing(valkey: Server) -> AsyncIterator[list[Worker]]:
    # On a busy machine an answer in time is nothing that this is about: a late one holds units for a while.
    settings = {"store_timeout": 60.0}
    async with workers(
        PROCESSES, store=valkey.url, plans=PLANS, now=NOW.isoformat(), settings=settings
    ) as started:
        yield started


@pytest.mark.dear("eight processes send 2,400 requests")
@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
async def test_i3_eight_allotting_processes_admit_exactly_the_limit(
    store_url: str, racing: list[Worker], path: str
) -> None:
    del store_url
    granted = await race(racing, path)
    assert (granted > 0) is (path != "bucket")  # Its requests are decided one by one.


@pytest.mark.dear("eight processes send 2,400 requests")
@pytest.mark.anyio
@pytest.mark.parametrize("path", ["paid", whole("billed")])
async def test_i3_eight_allotting_processes_admit_what_is_paid(
    store_url: str, racing: list[Worker], path: str
) -> None:
    async with kit_at(store_url, plans=loads(PLANS), clock=Clock(NOW), flush=False) as kit:
        await kit.customers.set_plan(f"of-{path}", "funded")
    assert await race(racing, path) > 0


async def race(racing: list[Worker], path: str) -> int:
    """Use a limit up, at once and then one by one; how many units were granted."""
    told = {"customer": f"of-{path}", "path": f"/{path}"}
    before = sum([(await racer.ask("allotted"))[0] for racer in racing])
    # Later, others in flight may leave no room for an allotment.
    alone = await racing[0].ask("send", **told, times=2 * HOT, at_once=1)
    answers = await asyncio.gather(*(racer.ask("send", **told, times=300) for racer in racing))
    total = Counter[str](alone)
    for answer in answers:
        total.update(answer)
    assert total["200"] <= ADMITTED
    assert set(total) <= {"200", "402", "429"}
    granted = int(sum([(await racer.ask("allotted"))[0] for racer in racing]) - before)
    # Units that others hold unused may have refused some: they are given back when their term ends.
    assert total["200"] + await used_up(racing, **told) == ADMITTED
    return granted


async def used_up(processes: list[Worker], *, customer: str, path: str) -> int:
    """Let the first process send until it is refused while nobody holds units; how many are admitted."""
    told = {"customer": customer, "path": path, "times": 100, "at_once": 1}
    admitted, more = 0, 1
    while more:
        await all_given_back(processes)
        more = (await processes[0].ask("send", **told)).get("200", 0)
        admitted += more
    return admitted


@pytest.mark.dear("eight processes, five turns")
@pytest.mark.anyio
@pytest.mark.whole
async def test_i3_eight_allotting_processes_keep_to_the_concurrency(
    store_url: str, racing: list[Worker]
) -> None:
    del store_url
    (before, _) = await racing[0].ask("allotted")
    for turn in range(5):
        told = {"customer": f"turn-{turn}", "path": "/several"}
        # Some processes have units when all begin, and each of these holds a permit.
        for racer in racing:
            assert await racer.ask("send", **told, times=2 * HOT, at_once=1) == {"200": 2 * HOT}
        inside = await asyncio.gather(*(racer.ask("enter", **told, times=10) for racer in racing))
        assert 0 < sum(inside) <= IN_FLIGHT < 10 * PROCESSES, turn
        answered = await asyncio.gather(*(racer.ask("leave") for racer in racing))
        total = sum((Counter[str](answer) for answer in answered), Counter[str]())
        assert total == {"200": sum(inside), "429": 10 * PROCESSES - sum(inside)}, turn
    assert (await racing[0].ask("allotted"))[0] > before


@pytest.mark.dear("three processes use 10,000 units up")
@pytest.mark.anyio
async def test_i3_unused_allotted_units_refuse_at_most_one_share(store_url: str) -> None:
    options = {"plans": PLANS, "now": NOW.isoformat(), "settings": {"store_timeout": 60.0}}
    async with workers(3, store=store_url, **options) as started:
        holder, *others = started
        await holder.ask("consume", customer="acme", meter="shared", quantity=SHARED - 1000)
        used = SHARED - 1000 + await sent([holder], times=300)
        assert (await holder.ask("allotted"))[0] > 0
        # It stands still with its unused units, and gives none of them back.
        os.kill(holder.process.pid, signal.SIGSTOP)
        try:
            used += await sent(others, times=1000)
            await all_given_back(others)
            used += await sent(others[:1], times=300)
        finally:
            os.kill(holder.process.pid, signal.SIGCONT)
        # An allotment is at most an eighth of what is left, and one unit more; a quarter of the one before
        # may be unused when the next one is granted.
        share = 1000 // 8 + 1
        assert 0 <= SHARED - used <= share + share // 4
        # Once they are given back, exactly these are admitted.
        assert await used_up(started, customer="acme", path="/shared") == SHARED - used


async def sent(processes: list[Worker], *, times: int) -> int:
    """How many of the requests are admitted that each process sends."""
    told = {"customer": "acme", "path": "/shared", "times": times}
    answers = await asyncio.gather(*(process.ask("send", **told) for process in processes))
    return sum(answer.get("200", 0) for answer in answers)


async def all_given_back(processes: list[Worker]) -> None:
    """Wait until no process has units that are unused, asks for some, or has some to give back."""
    async with asyncio.timeout(60):
        while sum([(await process.ask("allotted"))[1] for process in processes]):  # noqa: ASYNC110 - others
            await asyncio.sleep(0.05)


@pytest.mark.dear("a process is killed, and another uses the limit up")
@pytest.mark.anyio
@pytest.mark.whole
async def test_i3_a_process_that_dies_with_units_never_gives_more(store_url: str) -> None:
    options = {"store": store_url, "plans": PLANS, "now": NOW.isoformat()}
    told = {"customer": "acme", "path": "/included"}
    clock, later = Clock(NOW), NOW.replace(minute=NOW.minute + 10)
    async with (
        kit_at(store_url, plans=loads(PLANS), clock=clock, flush=False) as kit,
        workers(2, **options) as (doomed, witness),
    ):
        assert await doomed.ask("send", **told, times=200) == {"200": 200}

        async def is_settled(served: int) -> bool:
            return await used(kit, "acme", "included") == (2 * served, 0)

        await eventually(partial(is_settled, 200))
        # Only what it serves from now on may be lost.
        await doomed.ask("now", at=NOW.replace(second=NOW.second + 1).isoformat())
        assert await doomed.ask("send", **told, times=UNSETTLED) == {"200": UNSETTLED}
        await doomed.kill()
        served = 200 + UNSETTLED + (await witness.ask("send", **told, times=ADMITTED))["200"]
        # What the dead one served is recorded, or held; so are the units that it had not used.
        assert served <= ADMITTED
        # Its holds are gone when their slot of five minutes and the next one are over.
        clock.set(later)
        await witness.ask("now", at=later.isoformat())
        answers = Counter[str]()
        while "429" not in answers:
            answers.update(await witness.ask("send", **told, times=50, at_once=1))
        served += answers["200"]
        await eventually(partial(is_settled, ADMITTED))
    assert ADMITTED <= served <= ADMITTED + UNSETTLED
