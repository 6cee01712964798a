"""I3: requests wait for a store that their process has not reached yet, with a lifespan or without."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drivers.plans import free_plan
from drivers.sampled import whole
from drivers.worker_process import Unstarted
from drivers.workers import started
from faults.proxy import TcpProxy
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = free_plan(
    "{requests: {unit: request}, pages: {unit: page}}",
    "{pages: {included: 10, overage: deny}}",
    """
features: [exports]
routes:
  - {match: "GET /exports", feature: exports, consume: {requests: 1}}
  - {match: "GET /pages", consume: {pages: 1}}
  - {match: "*", consume: {requests: 1}}
""",
)


@pytest.mark.dear("two processes: each is fresh once")
@pytest.mark.parametrize(
    ("times", "blocked_s"), [(100, 0.3), whole(100, 0.0), whole(1000, 0.0), whole(1000, 0.3)]
)
async def test_i3_a_fresh_process_opens_no_gate_and_no_balance(
    valkey: Server, times: int, blocked_s: float
) -> None:
    """F-310: requests passed the gates of a process that was not connected within a store timeout."""
    async with TcpProxy(valkey.port) as proxy:
        await proxy.set("delay", delay_s=0.1)
        # A busy machine may take longer than the five seconds of the default.
        settings = {"store_timeout": 0.25, "start_timeout": 60.0}
        options: dict[str, Any] = {"store": proxy.url, "plans": PLANS, "settings": settings}
        async with started(2, Unstarted, options) as (gated, counted):
            asked = {"customer": "acme", "times": times, "blocked_s": blocked_s}
            of_gate, of_balance = await asyncio.gather(
                gated.ask("burst", path="/exports", **asked), counted.ask("burst", path="/pages", **asked)
            )
    # On a busy machine, a decision may take longer than the store timeout: 503, where the truth is unknown.
    assert of_gate.keys() <= {"403", "503"}
    assert 0 < of_balance["200"] <= 10
