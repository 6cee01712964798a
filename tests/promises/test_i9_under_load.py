"""I9, I11: whatever becomes of a server under load, no request fails by it, and what is served is billed."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from faults.refusals import Client, eventually, kit_at, loop_clock, metered, settled, used
from meterkit.errors import StoreError
from servers.stores import free_port, spawn_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from meterkit import MeterKit
    from meterkit.redis.lane import Lane
    from servers.stores import Server

pytestmark = [pytest.mark.anyio]

CUSTOMERS = 5
TIMEOUT_S = 0.25
SLACK_S = 0.75
OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server, again and again on one port and with one file."""
    folder, port = tmp_path / "server", free_port()
    started: list[Server] = []
    folder.mkdir()

    def start(*options: str) -> Server:
        started.append(spawn_server(*OPTIONS, *options, port=port, directory=folder))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@asynccontextmanager
async def loaded(server: Server, spools: Path) -> AsyncGenerator[tuple[MeterKit, Lane]]:
    """Ask all the while; each request is served in time, and in the end all that was is counted."""
    served, slowest_s = dict.fromkeys((f"customer-{n}" for n in range(CUSTOMERS)), 0), 0.0
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        kit = await stack.enter_async_context(kit_at(server.url, store_timeout=TIMEOUT_S, spool_dir=spools))
        app, lane = metered(kit), await kit.store.lane()
        clock = await stack.enter_async_context(loop_clock())

        async def ask(nth: int) -> None:
            nonlocal slowest_s
            customer = f"customer-{nth % CUSTOMERS}"
            while not over.is_set():
                began = clock()
                assert await Client(app).get(customer) == 200
                slowest_s = max(slowest_s, clock() - began)
                served[customer] += 1
                await asyncio.sleep(0.005)

        asking = [asyncio.create_task(ask(nth)) for nth in range(10)]
        try:
            await eventually(lambda: sum(served.values()) > 50)
            yield kit, lane
            after = sum(served.values())
            await eventually(lambda: sum(served.values()) > after + 50)
        finally:
            over.set()
            await asyncio.gather(*asking)
        await settled(kit)
        assert slowest_s < TIMEOUT_S + SLACK_S
        assert {customer: (await used(kit, customer))[0] for customer in served} == served
        assert lane.lost == 0


async def refused(kit: MeterKit, word: str) -> bool:
    """Whether the store refuses to decide, with that word."""
    try:
        await kit.check("customer-0", "requests")
    except StoreError as error:
        return word in str(error)
    return False


async def test_i9_a_server_that_hangs_and_dies_costs_no_request(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start()
    async with loaded(server, tmp_path / "spool") as (_, lane):
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.6)
        server.signal(signal.SIGCONT)
        await eventually(lambda: lane.connected)
        server.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.stop)  # kill -9
        await asyncio.sleep(1.6)
        await eventually(lambda: any((tmp_path / "spool").glob("*.spool")))
        server = await asyncio.to_thread(start)
        await eventually(lambda: lane.connected)
        server.command("REPLICAOF", "127.0.0.1", "1")
        await eventually(lambda: lane.is_away)
        await asyncio.sleep(0.3)
        server.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: lane.connected)


async def test_i9_a_server_that_loads_its_file_costs_no_request(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start()
    server.command("EVAL", "for n = 1, 15000 do redis.call('SET', 'mk-test:' .. n, n, 'EX', 900) end", 0)
    async with loaded(server, tmp_path / "spool") as (kit, lane):
        await asyncio.to_thread(server.stop)  # kill -9
        # In microseconds; clients are heard every 1,024 commands, and wait less than they may for an answer.
        server = await asyncio.to_thread(start, "--key-load-delay", "40")
        while not await refused_while_loading(kit, server):  # It was faster than the kit: once more.
            await asyncio.to_thread(server.stop)
            server = await asyncio.to_thread(start, "--key-load-delay", "40")
        await eventually(lambda: lane.connected)


async def refused_while_loading(kit: MeterKit, server: Server) -> bool:
    """Whether the kit has met a server that loads, before that was over."""
    while not await refused(kit, "LOADING"):
        if server.command("INFO", "persistence")["loading"] == 0:
            return False
        await asyncio.sleep(0.002)
    return True


async def test_i9_a_server_that_cannot_save_costs_no_request(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server, in_the_way = start("--save", "3600 1000000"), tmp_path / "server" / "dump.rdb"
    async with loaded(server, tmp_path / "spool") as (kit, lane):
        in_the_way.mkdir()
        server.command("BGSAVE")
        await eventually(lambda: refused(kit, "MISCONF"))
        in_the_way.rmdir()
        server.command("BGSAVE")
        await eventually(lambda: lane.connected)
