"""What a customer costs, from 10^3 to 10^6 of them: python benchmarks/growth.py [--quick]

One server, and a cluster of six nodes, on the server's core. All customers are on a plan that was set by
hand, and have used something. Of these, a fixed number is linked and has usage to deliver: what sealing and
delivering cost must not depend on the others.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from contextlib import ExitStack, aclosing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from machine import Cores, await_port, free_port
from nodes import servers
from tables import show

from delivery import PLANS, all_of, idle_pass_ms
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.customers.billed_usage import usage_of_all
from meterkit.decisions.customer_state import CustomerState
from meterkit.insights.audit.draining import open_drainer
from meterkit.subscriptions.webhooks.periodic_sync import EventSweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    import redis
    from tables import Table

    from meterkit.insights.audit.draining import AuditDrainer

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MOST = {6: 100_000, 1: 1_000_000}
"""By nodes of a store: the largest size; on two cores a million customers of six nodes take hours."""
LINKED = 100
SAMPLE = 1_000
AT_ONCE = 200
WHOLE = 100
YEAR_MS = 366 * 86_400_000
RECORDED = 100_000
"""So many customers use something themselves; the counters of further ones are copies of those of one."""
RECONCILED = 10_000
"""Where there are more customers than this, comparing all of them with Stripe takes too long here."""
HEADS = {
    "store_bytes": "store: bytes a customer",
    "process_bytes": "kit.consume: bytes a customer that a process knows",
    "process_mb": "process that knows all of them: MB",
    "cold_us": "kit.consume of a customer not known yet, us",
    "warm_us": "kit.consume once more, us",
    "deliver_us": "sealed and delivered, us an event",
    "drain_us": "audit drain, us an entry",
    "idle_ms": "an idle pass of the flusher, ms",
    "night_s": "the nightly look at all shards, s",
    "list_s": "kit.customers.list(), s",
    "usage_s": "usage --all, s",
    "reconcile_s": "reconcile, s",
}


def named(number: int) -> str:
    return f"customer-{number:07}"


def kit_of(url: str, folder: str, stripe: str, *, customers: int) -> MeterKit:
    return MeterKit(
        loads(PLANS),
        redis_url=url,
        spool_dir=folder,
        stripe_api_key="sk_test_benchmark",
        stripe_api_base=stripe,
        audit_url=f"sqlite:///{folder}/audit.db",
        flush=False,
        store_timeout=30.0,
        customers_kept=max(100, customers),
    )


async def fill(kit: MeterKit, customers: int) -> None:
    """Put all customers on a plan and have each use something."""
    admin, keys = await kit.store.admin(), kit.store.keys
    state = {"rev": "2:benchmark", "data": CustomerState(plan="pro").dump()}
    for first in range(0, customers, AT_ONCE):
        pipe = admin.client.pipeline(transaction=False)
        for number in range(first, min(first + AT_ONCE, customers)):
            own = keys.customer(named(number))
            pipe.hset(own.state, mapping=state)
            pipe.sadd(keys.shard(own.shard, "customers"), named(number))
        await admin.ask(pipe.execute())
    used = min(customers, RECORDED)
    await all_of_many(kit.record(named(number), "requests", 1) for number in range(used))
    await copy_counters(kit, named(0), map(named, range(used, customers)))


async def copy_counters(kit: MeterKit, customer: str, others: Iterable[str]) -> None:
    """Give other customers the same counters, byte for byte."""
    admin, keys = await kit.store.admin(), kit.store.keys
    one = keys.customer(customer)
    kept = {kind: await admin.ask(admin.client.dump(getattr(one, kind))) for kind in ("counters", "totals")}
    while some := list(islice(others, AT_ONCE)):
        pipe = admin.client.pipeline(transaction=False)
        for own in map(keys.customer, some):
            for kind, value in kept.items():
                if value is not None:
                    pipe.restore(getattr(own, kind), YEAR_MS, value)
        await admin.ask(pipe.execute())


async def all_of_many(calls: Iterable[Awaitable[object]]) -> None:
    """Await each, some hundred at once."""
    left = iter(calls)
    while some := list(islice(left, AT_ONCE)):
        await asyncio.gather(*some)


def bytes_of(clients: list[redis.Redis]) -> int:
    return sum(client.info("memory")["used_memory_dataset"] for client in clients)


async def requests_us(kit: MeterKit, numbers: Iterable[int]) -> float:
    numbers = list(numbers)
    # A garbage collection of all that is there, up to half a second, would fall into a figure by chance.
    gc.collect()
    used = time.process_time()
    await all_of_many(kit.consume(named(number), "requests") for number in numbers)
    return (time.process_time() - used) / len(numbers) * 1e6


async def cpu_s(call: Awaitable[object]) -> float:
    """The CPU seconds of this process that something takes."""
    used = time.process_time()
    await call
    return time.process_time() - used


async def drain(drainer: AuditDrainer) -> None:
    while await drainer.drain():
        pass


async def list_all(kit: MeterKit) -> None:
    async for _ in kit.customers.list():
        pass


async def usage_all(kit: MeterKit) -> None:
    async with aclosing(usage_of_all(kit.store)) as pages:
        async for _ in pages:
            pass


async def night(kit: MeterKit) -> None:
    sweeper = EventSweeper(kit.store, lambda: None, kit.webhooks._queue)
    for shard in range(kit.store.keys.shards):
        await sweeper._queue_shard(shard, 1)


async def measure(url: str, clients: list[redis.Redis], stripe: str, customers: int) -> dict[str, float]:
    """Everything of one store with so many customers."""
    found: dict[str, float] = {}
    empty = bytes_of(clients)
    with tempfile.TemporaryDirectory() as folder:
        async with kit_of(url, folder, stripe, customers=customers) as kit:
            drainer = open_drainer(kit.store, kit.settings)
            begun = time.perf_counter()
            await fill(kit, customers)
            print(f"  filled in {time.perf_counter() - begun:.0f} s", flush=True)
            found["drain_us"] = await cpu_s(drain(drainer)) / min(customers, RECORDED) * 1e6
            found["store_bytes"] = (bytes_of(clients) - empty) / customers
            found["process_mb"] = rss_mb()
        async with kit_of(url, folder, stripe, customers=customers) as kit:
            sample = range(min(SAMPLE, customers // 2))
            found["cold_us"] = await requests_us(kit, sample)
            found["warm_us"] = await requests_us(kit, sample)
            gc.collect()
            tracemalloc.start()
            others = range(len(sample), len(sample) * 2)
            await requests_us(kit, others)
            gc.collect()
            found["process_bytes"] = tracemalloc.get_traced_memory()[0] / len(others)
            tracemalloc.stop()
            await all_of(kit.customers.link(named(number), f"cus_{number}") for number in range(LINKED))
            await all_of(kit.record(named(number), "requests", 20) for number in range(LINKED))
            found["deliver_us"] = await cpu_s(kit.flush(everything=True, timeout_s=600)) / LINKED * 1e6
            found["idle_ms"] = await idle_pass_ms(kit)
            found["night_s"] = await cpu_s(night(kit))
            found["list_s"] = await cpu_s(list_all(kit))
            found["usage_s"] = await cpu_s(usage_all(kit))
            if customers <= RECONCILED:
                found["reconcile_s"] = await cpu_s(kit.reconcile())
    return found


def rss_mb() -> float:
    """The memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def run(nodes: int, customers: int, cores: Cores) -> dict[str, float]:
    """One store of its own, with an emulator of Stripe in another process."""
    port = free_port()
    with ExitStack() as stack:
        url, clients = stack.enter_context(servers(nodes, cores))
        with cores.on(cores.server):
            script = Path(__file__).parent / "delivery.py"
            emulator = subprocess.Popen([sys.executable, str(script), str(port), str(LINKED)])
        try:
            await_port(port, 30)
            with cores.on(cores.client):
                return asyncio.run(measure(url, clients, f"http://127.0.0.1:{port}", customers))
        finally:
            emulator.terminate()
            emulator.wait()


def table(found: dict[str, dict[str, float]], nodes: int) -> Table:
    """The figures of one store, a line for each, a column for each number of customers."""
    store = "one server" if nodes == 1 else f"a cluster of {nodes} nodes"
    head = (f"on {store}", *(f"{int(size):,}" for size in found))
    rows = [(title, *(shown(seen.get(name)) for seen in found.values())) for name, title in HEADS.items()]
    return "", head, rows


def shown(value: float | None) -> str:
    """A figure with two or three digits that say something; a dash for none."""
    if value is None:
        return "-"
    places = 0 if value >= WHOLE else 2
    return f"{value:,.{places}f}"


def steps(*, is_quick: bool = False) -> list[tuple[int, int]]:
    """Nodes and customers of each store that is measured."""
    if is_quick:
        return [(1, 100)]
    return [(nodes, size) for nodes, most in MOST.items() for size in SIZES if size <= most]


def tables(result: dict) -> list[Table]:
    """One table for each kind of store."""
    return [table(sizes, int(nodes)) for nodes, sizes in result["growth"].items()]


def main() -> None:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for nodes, size in steps(is_quick="--quick" in sys.argv):
        found.setdefault(str(nodes), {})[str(size)] = run(nodes, size, Cores())
    for made in tables({"growth": found}):
        show(made)


if __name__ == "__main__":
    os.environ.pop("METERKIT_REDIS_URL", None)
    main()
