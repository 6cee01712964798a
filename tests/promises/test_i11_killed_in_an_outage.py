"""I11, I9: whoever is killed in an outage, and when: the next start sends what was spooled, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from drivers.sampled import whole
from drivers.spools import Spooling
from drivers.workers import Worker, start
from faults.proxy import TcpProxy
from faults.refusals import eventually, kit_at, loop_clock, used
from servers.stores import Server

pytestmark = [pytest.mark.anyio]


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port) as proxy:
        yield proxy


class House:
    """Processes that share a store and a directory of spools."""

    def __init__(self, proxy: TcpProxy, directory: Path) -> None:
        self.proxy = proxy
        self.directory = directory
        self.processes: list[Worker] = []

    async def start(self, crash: str = "") -> Worker:
        options = {"store": self.proxy.url, "spools": str(self.directory), "crash": crash}
        self.processes.append(await start(options, Spooling))
        return self.processes[-1]

    async def begins(self, *workers: Worker) -> None:
        """The store goes away, and they know."""
        await self.proxy.set("refuse")
        for worker in workers:
            await until(worker, away=True)

    def spools(self) -> list[Path]:
        return sorted(self.directory.glob("*.spool"))

    async def recorded(self, customer: str = "acme", meter: str = "tokens") -> int:
        """What the store has, once everything is sent."""
        await self.proxy.set("pass")
        worker = await self.start()
        await until(worker, away=False, unsettled=0)
        await eventually(lambda: self.spools() == [])
        async with kit_at(self.proxy.url, spool_dir=self.directory) as kit:
            return (await used(kit, customer, meter))[0]


@pytest.fixture
async def house(proxy: TcpProxy, tmp_path: Path) -> AsyncIterator[House]:
    house = House(proxy, tmp_path)
    yield house
    for worker in house.processes:
        await worker.kill()


async def until(worker: Worker, **expected: Any) -> None:
    async def holds() -> bool:
        found = await worker.ask("state")
        return all(found[name] == value for name, value in expected.items())

    await eventually(holds)


async def recorded_until_it_dies(worker: Worker) -> int:
    """How many times it was told that one is recorded."""
    told = 0
    try:
        while told < 100:
            await worker.ask("record", customer="acme", quantity=1)
            told += 1
    except (EOFError, ConnectionError):
        pass
    return told


@pytest.mark.dear("a process is killed at each step of an outage")
@pytest.mark.parametrize(
    "crash", [*("half a record written", "written, not acknowledged"), whole("header written")]
)
async def test_i11_recorded_usage_survives_a_kill_at_any_step(house: House, crash: str) -> None:
    worker = await house.start(crash)
    await worker.ask("record", customer="acme", quantity=1)  # The store is there.
    await house.begins(worker)
    told = 1 + await recorded_until_it_dies(worker)
    assert await worker.process.wait() == -9
    # One more may be there: of it nobody was told either way.
    assert told <= await house.recorded() <= told + 1


@pytest.mark.parametrize("crash", ["half of it sent", "sent, and not removed"])
async def test_i6_a_kill_while_the_spool_is_sent_bills_nothing_twice(house: House, crash: str) -> None:
    worker = await house.start(crash)
    await house.begins(worker)
    for _ in range(40):
        await worker.ask("record", customer="acme", quantity=3)
    await house.proxy.set("pass")
    assert (await worker.process.wait(), await house.recorded()) == (-9, 120)


async def test_i11_an_outages_requests_of_a_killed_process_are_billed(house: House) -> None:
    worker = await house.start()
    assert await worker.ask("serve", customer="acme", times=5) == [200] * 5
    await until(worker, unsettled=0)
    await house.begins(worker)
    assert await worker.ask("serve", customer="acme", times=70) == [200] * 70
    await until(worker, unspooled=0)
    await worker.kill()
    assert await house.recorded(meter="requests") == 75


async def test_i9_processes_share_a_directory_and_send_each_spool_once(house: House) -> None:
    workers = [await house.start() for _ in range(3)]
    await house.begins(*workers)
    for nth, worker in enumerate(workers, start=1):
        for _ in range(10):
            await worker.ask("record", customer="acme", quantity=nth)
    assert len(house.spools()) == 3
    workers[0].process.kill()
    await workers[0].process.wait()
    # Those that live send their own; the one that is killed has its spool sent by whoever finds it first.
    assert await house.recorded() == 60
    for worker in workers[1:]:
        await until(worker, unsettled=0, lost=0)


async def test_i9_sending_begins_soon_after_the_stores_return(house: House) -> None:
    worker = await house.start()
    await house.begins(worker)
    await asyncio.sleep(3)  # Long enough for the pauses to be the longest.
    await worker.ask("record", customer="acme", quantity=5)
    async with loop_clock() as passed_s:
        await house.proxy.set("pass")
        await until(worker, unsettled=0)
        # Half a second, and what connecting takes; after pauses without a bound it were three and more.
        assert passed_s() < 2.5
