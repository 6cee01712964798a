"""I9, I11: whatever becomes of a server under load, no request fails by it, and what is served is billed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from faults import Client, eventually, kit_at, metered, settled, used
from servers import spawn_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio]

CUSTOMERS = 5
TIMEOUT_S = 0.25
SLACK_S = 0.75
OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")


async def test_i9_a_server_that_hangs_dies_and_turns_read_only_under_load_costs_no_request_and_no_unit(
    tmp_path: Path,
) -> None:
    (tmp_path / "server").mkdir()
    server = spawn_server(*OPTIONS, directory=tmp_path / "server")
    async with kit_at(server.url, store_timeout=TIMEOUT_S, spool_dir=tmp_path / "spool") as kit:
        app, over = metered(kit), asyncio.Event()
        served = dict.fromkeys((f"customer-{n}" for n in range(CUSTOMERS)), 0)
        slowest = 0.0

        async def ask(nth: int) -> None:
            nonlocal slowest
            customer = f"customer-{nth % CUSTOMERS}"
            while not over.is_set():
                began = time.perf_counter()
                assert await Client(app).get(customer) == 200
                slowest = max(slowest, time.perf_counter() - began)
                served[customer] += 1
                await asyncio.sleep(0.005)

        lane = await kit.store.lane()
        load = [asyncio.create_task(ask(nth)) for nth in range(10)]
        await asyncio.sleep(0.3)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.6)
        server.signal(signal.SIGCONT)
        await eventually(lambda: lane.connected)
        server.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.2)
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        await asyncio.sleep(1.6)
        assert list((tmp_path / "spool").glob("*.spool"))
        server = spawn_server(*OPTIONS, directory=tmp_path / "server", port=server.port)
        await eventually(lambda: lane.connected)
        server.command("REPLICAOF", "127.0.0.1", "1")
        await eventually(lambda: lane.is_away)
        await asyncio.sleep(0.3)
        server.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: lane.connected)
        await asyncio.sleep(0.2)
        over.set()
        await asyncio.gather(*load)
        await settled(kit)
        assert slowest < TIMEOUT_S + SLACK_S
        assert {customer: (await used(kit, customer))[0] for customer in served} == served
        assert lane.lost == 0
        assert sum(served.values()) > 500
    server.stop()
