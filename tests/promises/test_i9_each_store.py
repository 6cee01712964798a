"""I9, I11 on each kind of store: whatever its servers do under load, no request fails and no unit is lost."""
# Internals: settlements in doubt are sent past an app, and a hiccup is made shorter.

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from faults.refusals import Client, eventually, kit_at, lane_of, loop_clock, metered, settled, stopped, used
from meterkit import MeterKit
from meterkit.errors import StoreError
from meterkit.redis import settlement_queue
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import UsedQuantities
from servers.clusters import Cluster, Watched, spawn_cluster, spawn_watched
from servers.stores import Server, free_port, spawn_server

Fault = Callable[[list[Server]], AbstractContextManager[None]]

pytestmark = [pytest.mark.anyio]

CUSTOMERS: Final = tuple(f"customer-{number}" for number in range(8))
TIMEOUT_S: Final = 0.25
# What a request may take longer than the timeout where the machine is busy.
SLACK_S: Final = 0.75
AWAY_S: Final = 0.7


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup is shorter here."""
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 0.1)


@pytest.fixture
def servers(request: pytest.FixtureRequest, store_url: str) -> list[Server]:
    """Those that take the writes of the store that ``store_url`` names."""
    kind = store_url.partition("://")[0]
    if kind == "redis+cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return cluster.masters
    if kind == "redis+sentinel":
        watched: Watched = request.getfixturevalue("watched")
        return [watched.master]
    valkey: Server = request.getfixturevalue("valkey")
    return [valkey]


@contextmanager
def hanging(servers: list[Server]) -> Generator[None]:
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(stopped(server))
        yield


@contextmanager
def told(servers: list[Server], *, begin: str, end: str = "PING") -> Generator[None]:
    for server in servers:
        server.command(*begin.split())
    try:
        yield
    finally:
        for server in servers:
            server.command(*end.split())


FAULTS: Final[dict[str, Fault]] = {
    "hanging": hanging,
    # They answer what reads, and nothing that writes.
    "pausing_writes": partial(told, begin="CLIENT PAUSE 60000 WRITE", end="CLIENT UNPAUSE"),
    "full": partial(told, begin="CONFIG SET maxmemory 1", end="CONFIG SET maxmemory 0"),
    "without_replicas": partial(
        told, begin="CONFIG SET min-replicas-to-write 3", end="CONFIG SET min-replicas-to-write 0"
    ),
    "forgetful": partial(told, begin="SCRIPT FLUSH"),
    "cutting": partial(told, begin="CLIENT KILL TYPE normal SKIPME yes"),
}


class Served:
    """What requests came to: how many of each customer were served, and how long the slowest took."""

    def __init__(self) -> None:
        self.of = dict.fromkeys(CUSTOMERS, 0)
        self.statuses = set[int]()
        self.slowest_s = 0.0


@asynccontextmanager
async def under_load(kit: MeterKit) -> AsyncGenerator[Served]:
    """Have all customers use an app until the block ends, and all of it settled."""
    app, over, served = metered(kit), asyncio.Event(), Served()

    async def use(customer: str) -> None:
        while not over.is_set():
            began = clock()
            served.statuses.add(await Client(app).get(customer))
            served.slowest_s = max(served.slowest_s, clock() - began)
            served.of[customer] += 1
            await asyncio.sleep(0.005)

    async with loop_clock() as clock:
        using = [asyncio.create_task(use(customer)) for customer in CUSTOMERS]
        try:
            yield served
            await eventually(lambda: min(served.of.values()) > 5)
        finally:
            over.set()
            await asyncio.gather(*using)
    await settled(kit)


async def check(url: str, served: Served, lost: int = 0) -> None:
    """All were served in time, and each unit is recorded, once, but for those that are told to be lost."""
    assert served.statuses == {200}
    assert served.slowest_s < TIMEOUT_S + SLACK_S
    async with kit_at(url, store_timeout=60, shards=16) as patient:  # Slow is not down.
        found = {customer: (await used(patient, customer))[0] for customer in CUSTOMERS}
    assert sum(served.of.values()) - sum(found.values()) == lost
    if not lost:
        assert found == served.of


@asynccontextmanager
async def loaded(url: str, directory: Path, *, is_losing: bool = False) -> AsyncGenerator[MeterKit]:
    """Have a store under load: no request fails, and no unit is lost, or only those that the kit tells of."""
    async with kit_at(url, store_timeout=TIMEOUT_S, spool_dir=directory, shards=16) as kit:
        async with under_load(kit) as served:
            await eventually(lambda: min(served.of.values()) > 5)
            yield kit
            before = sum(served.of.values())
            await eventually(lambda: sum(served.of.values()) > before + 50)
        await check(url, served, lost=lane_of(kit).lost if is_losing else 0)
        assert is_losing or lane_of(kit).lost == 0


def spools(directory: Path) -> list[Path]:
    return list(directory.glob("*.spool"))


def settle_in_doubt(kit: MeterKit, served: Served) -> None:
    """Send settlements of whom nobody knows for a while whether they were applied."""
    for customer in CUSTOMERS:
        used = UsedQuantities(recorded={"requests": 1})
        kit.store.settle(lane_of(kit), Settlement(kit.store.cache.get(customer), used=used))
        served.of[customer] += 1


def on_each_store(*faults: str) -> pytest.MarkDecorator:
    """Each fault on each store; on one of them without ``--whole``."""
    stores, cells = ("cluster", "sentinel", "valkey"), list[object]()
    for (nth, fault), store in product(enumerate(faults), stores):
        marks = [] if store == stores[nth % 3] else [pytest.mark.whole]
        cells.append(pytest.param(store, FAULTS[fault], id=f"{store}-{fault}", marks=marks))
    return pytest.mark.parametrize(("store_url", "fault"), cells, indirect=["store_url"])


@pytest.mark.dear("eight customers ask without a pause while their store is down")
@on_each_store("hanging", "pausing_writes", "full", "without_replicas")
async def test_i9_i11_an_outage_under_load_loses_no_request_nor_unit(
    store_url: str, servers: list[Server], fault: Fault, tmp_path: Path
) -> None:
    async with kit_at(store_url, store_timeout=TIMEOUT_S, spool_dir=tmp_path, shards=16) as kit:
        async with under_load(kit) as served:
            await asyncio.sleep(0.2)
            with fault(servers):
                settle_in_doubt(kit, served)
                await eventually(lambda: lane_of(kit).is_down)
                await eventually(lambda: bool(spools(tmp_path)))
                await asyncio.sleep(AWAY_S)
                assert lane_of(kit).opened >= 1
            await eventually(lambda: not lane_of(kit).is_down)
            await asyncio.sleep(0.2)
        await check(store_url, served)
        assert lane_of(kit).lost == 0
        await eventually(lambda: not spools(tmp_path))


@on_each_store("forgetful", "cutting")
async def test_i9_what_is_over_at_once_costs_nothing_either(
    store_url: str, servers: list[Server], fault: Fault, tmp_path: Path
) -> None:
    async with loaded(store_url, tmp_path) as kit:
        for _ in range(3):
            await asyncio.sleep(0.2)
            with fault(servers):
                await asyncio.sleep(0.1)
        await eventually(lambda: not lane_of(kit).is_down)


@pytest.mark.whole
async def test_i9_a_hanging_cluster_node_spools_its_own_customers(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.masters[1]
    async with loaded(cluster.url, tmp_path) as kit:
        with stopped(node):
            await eventually(lambda: bool(spools(tmp_path)))
            await asyncio.sleep(AWAY_S)
            own = {customer for customer in CUSTOMERS if cluster_place(kit, cluster, customer) is not node}
            assert own
            for customer in own:  # By the store, and not by the process alone.
                await eventually(partial(is_used, kit, customer, 10))
        await eventually(lambda: not lane_of(kit).is_down)


def cluster_place(kit: MeterKit, cluster: Cluster, customer: str) -> Server:
    """The node that has a customer; asked of one that answers."""
    slot = int(cluster.masters[0].command("CLUSTER", "KEYSLOT", kit.store.keys.customer(customer).counters))
    for first, last, (_, port, *_), *_ in cluster.masters[0].command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(node for node in cluster.masters if node.port == port)
    raise LookupError(customer)


async def is_used(kit: MeterKit, customer: str, least: int) -> bool:
    """Whether the store has counted more requests of a customer than so many."""
    return (await used(kit, customer))[0] > least


OPTIONS: Final = ("--appendonly", "yes", "--appendfsync", "always")


def kill(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()


@pytest.mark.dear("eight customers ask without a pause while their store is down")
@pytest.mark.whole
async def test_i9_i11_a_killed_node_that_returns_loses_no_unit(tmp_path: Path) -> None:
    with spawn_cluster(*OPTIONS, "--cluster-require-full-coverage", "no") as cluster:
        async with loaded(cluster.url, tmp_path) as kit:
            node = cluster.masters[1]
            bus = str(node.command("CONFIG", "GET", "cluster-port")["cluster-port"])
            kill(node)
            await eventually(lambda: bool(spools(tmp_path)))
            await asyncio.sleep(AWAY_S)
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "30000", *OPTIONS)
            more = ("--cluster-require-full-coverage", "no", "--cluster-port", bus)
            back = spawn_server(*options, *more, directory=node.directory, port=node.port)
            await eventually(lambda: not lane_of(kit).is_down)
        back.stop()


@pytest.mark.dear("eight customers ask without a pause while their store is down")
async def test_i9_a_sentinel_failover_costs_no_request(tmp_path: Path) -> None:
    with spawn_watched(*OPTIONS, down_after_ms=300) as watched:
        async with loaded(watched.url, tmp_path, is_losing=True) as kit:
            kill(dead := watched.master)
            await eventually(lambda: lane_of(kit).is_down)
            await eventually(lambda: not lane_of(kit).is_down)
        assert watched.master is not dead


@pytest.mark.dear("six nodes start, and one of them dies under load")
@pytest.mark.whole
async def test_i9_a_cluster_failover_costs_no_request(tmp_path: Path) -> None:
    options = (*OPTIONS, "--cluster-require-full-coverage", "no")
    with spawn_cluster(*options, replicas=True, node_timeout_ms=1_000) as cluster:
        async with loaded(cluster.url, tmp_path, is_losing=True) as kit:
            kill(cluster.masters[0])
            await eventually(lambda: lane_of(kit).is_down)
            await eventually(lambda: bool(spools(tmp_path)))
            await eventually(lambda: not lane_of(kit).is_down)
            await eventually(lambda: not spools(tmp_path))


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


async def refused(kit: MeterKit, word: str) -> bool:
    """Whether the store refuses to decide, with that word."""
    try:
        await kit.check("customer-0", "requests")
    except StoreError as error:
        return word in str(error)
    return False


@pytest.mark.dear("eight customers ask without a pause while their store is down")
async def test_i9_a_server_that_hangs_and_dies_costs_no_request(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start()
    async with loaded(server.url, tmp_path / "spool") as kit:
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.6)
        server.signal(signal.SIGCONT)
        await eventually(lambda: lane_of(kit).connected)
        server.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.stop)  # kill -9
        await asyncio.sleep(1.6)
        await eventually(lambda: any((tmp_path / "spool").glob("*.spool")))
        server = await asyncio.to_thread(start)
        await eventually(lambda: lane_of(kit).connected)
        server.command("REPLICAOF", "127.0.0.1", "1")
        await eventually(lambda: lane_of(kit).is_down)
        await asyncio.sleep(0.3)
        server.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: lane_of(kit).connected)


@pytest.mark.dear("eight customers ask without a pause while their store is down")
@pytest.mark.whole
async def test_i9_a_server_that_loads_its_file_costs_no_request(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start()
    server.command("EVAL", "for n = 1, 15000 do redis.call('SET', 'mk-test:' .. n, n, 'EX', 900) end", 0)
    async with loaded(server.url, tmp_path / "spool") as kit:
        await asyncio.to_thread(server.stop)  # kill -9
        # In microseconds; clients are heard every 1,024 commands, and wait less than they may for an answer.
        server = await asyncio.to_thread(start, "--key-load-delay", "40")
        while not await refused_while_loading(kit, server):  # It was faster than the kit: once more.
            await asyncio.to_thread(server.stop)
            server = await asyncio.to_thread(start, "--key-load-delay", "40")
        await eventually(lambda: lane_of(kit).connected)


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
    async with loaded(server.url, tmp_path / "spool") as kit:
        in_the_way.mkdir()
        server.command("BGSAVE")
        await eventually(lambda: refused(kit, "MISCONF"))
        in_the_way.rmdir()
        server.command("BGSAVE")
        await eventually(lambda: lane_of(kit).connected)
