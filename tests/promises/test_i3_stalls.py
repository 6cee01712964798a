"""I3: while the store stands still, each process admits at most what the store's last reply left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from drivers.kit_parts import excess_units
from drivers.plans import free_plan
from drivers.sampled import whole
from drivers.worker_process import Unstarted
from drivers.workers import Worker, started
from faults.refusals import Client, eventually, kit_at, lane_of, metered, settled, stopped, used
from meterkit.catalog import loads
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = free_plan(
    "{requests: {unit: request}}",
    "{requests: {rate: 9_000_000/day, included: 0, overage: deny}}",
    """
credits: {coins: {costs: {requests: 1}}}
routes:
  - {match: "*", consume: {requests: 1}}
""",
)


@asynccontextmanager
async def stalled(server: Server, for_s: float) -> AsyncGenerator[None]:
    """Stop a server for at least so long, and until the block has ended."""
    with stopped(server):
        end = asyncio.get_running_loop().time() + for_s
        yield
        await asyncio.sleep(end - asyncio.get_running_loop().time())


@pytest.mark.parametrize("stall_s", [0.3, whole(0.6), whole(1.5)])
async def test_i3_a_stall_opens_no_more_than_was_left(valkey: Server, stall_s: float) -> None:
    """F-312: a stall opened a balance without bound, though the plan's rate was far from used up."""
    async with kit_at(valkey.url, plans=loads(PLANS), store_timeout=0.25) as kit:
        await kit.grants.add("acme", {"coins": 100}, grant_id="first")
        app = metered(kit)

        async def ask() -> int:
            return await Client(app).get("acme")

        statuses = [await ask() for _ in range(39)]
        await settled(kit)
        statuses.append(await ask())
        left = 100 - 40
        async with stalled(valkey, stall_s):
            in_stall = await asyncio.gather(*(ask() for _ in range(200)))
        assert sorted(in_stall) == [200] * left + [402] * 140
        statuses += in_stall
        await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
        statuses += [await ask() for _ in range(100)]
        await settled(kit)
        served = statuses.count(200)
        # On a busy machine, the store may miss its timeout once more: that is another stall.
        assert served <= 100 + left * lane_of(kit).opened
        assert await used(kit, "acme") == (served, 0)
        assert await ask() == 402


@pytest.mark.parametrize(("number", "balance"), [(2, 40), whole(4, 80), whole(4, 2_000)])
@pytest.mark.dear("processes, which serve a balance and its multiple")
async def test_i3_stalled_processes_admit_what_each_knew(valkey: Server, number: int, balance: int) -> None:
    options: dict[str, Any] = {
        "store": valkey.url,
        "plans": PLANS,
        "settings": {"store_timeout": 0.25, "start_timeout": 60.0},
    }

    async def send(worker: Worker, times: int) -> int:
        found: dict[str, int] = await worker.ask("send", customer="acme", path="/", times=times)
        return found.get("200", 0)

    async with kit_at(valkey.url, plans=loads(PLANS)) as kit, started(number, Unstarted, options) as workers:
        await kit.grants.add("acme", {"coins": balance}, grant_id="first")
        served, known = 0, 0
        for worker in workers:
            served += await send(worker, balance // 2 // number)
            known += balance - served  # By the worker's last reply.
        assert served == balance // 2
        async with stalled(valkey, 0.3):
            in_stall = sum(await asyncio.gather(*(send(worker, balance) for worker in workers)))
        assert 0 < in_stall <= known
        served += in_stall
        served += sum(await asyncio.gather(*(send(worker, balance // number) for worker in workers)))
        await asyncio.gather(*(worker.ask("settled") for worker in workers))
        # On a busy machine, the store may miss its timeout once more: that is another stall.
        opened = known * max(await asyncio.gather(*(worker.ask("stalls") for worker in workers)))
        assert served <= balance + opened
        assert await used(kit, "acme") == (served, 0)
        await asyncio.gather(*(worker.ask("count_excess") for worker in workers))

        async def is_counted() -> bool:
            return await excess_units(kit, "requests") >= served - balance

        # Each process counts at most what it has admitted itself. One may still send what it counted before.
        await eventually(is_counted)
        assert await excess_units(kit, "requests") <= opened
