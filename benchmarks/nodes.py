"""One server and a cluster of three on the same core: python benchmarks/nodes.py [--quick]

All servers share one core, so three are not faster than one: what a cluster costs is what they need more of
it. From the cost of a request follows what nodes on cores of their own can serve.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING

import redis
from inprocess import FULL, QUICK, Size, Worker
from machine import Cores, await_port, free_port, server_binaries, started
from tables import show
from variants import BY_NAME

from meterkit.redis.discovery import slot_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tables import Table

NODES = (1, 3)
NAMES = ("meterkit-decide", "meterkit-settle")
MANY = 20
SHARDS = (128, 1024)
SLOTS = 16_384


@contextlib.contextmanager
def servers(count: int, cores: Cores) -> Iterator[tuple[str, list[redis.Redis]]]:
    """One server, or a cluster of several, on the server's core; the URL, and a client of each."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        buses: dict[int, int] = {}
        for _ in range(count):
            port, folder = free_port(), stack.enter_context(tempfile.TemporaryDirectory())
            options = ["--port", str(port), "--bind", "127.0.0.1"]
            if count > 1:
                buses[port] = free_port()
                options += ["--cluster-enabled", "yes", "--cluster-port", str(buses[port])]
            stack.enter_context(started(server_binaries()[0], cores, folder, *options))
            await_port(port)
            ports.append(port)
        clients = [redis.Redis(port=port, decode_responses=True) for port in ports]
        if count > 1:
            join(clients, ports, buses)
            yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), clients
        else:
            yield f"redis://127.0.0.1:{ports[0]}/0", clients


def join(clients: list[redis.Redis], ports: list[int], buses: dict[int, int]) -> None:
    for number, client in enumerate(clients):
        first, end = number * SLOTS // len(clients), (number + 1) * SLOTS // len(clients)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for port in ports[1:]:
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, buses[port])
    until = time.monotonic() + 30
    while not all("cluster_state:ok" in str(one.execute_command("CLUSTER", "INFO")) for one in clients):
        if time.monotonic() > until:
            raise RuntimeError("the cluster does not come up")
        time.sleep(0.05)


def cpu_s(clients: list[redis.Redis]) -> float:
    found = [client.info("cpu") for client in clients]
    return sum(cpu["used_cpu_user"] + cpu["used_cpu_sys"] for cpu in found)


def measure(cores: Cores, loop: str, size: Size) -> dict[str, dict]:
    """Variant to number of nodes to figures, the median of interleaved rounds."""
    rounds: dict[tuple[str, int], list[dict]] = {(name, count): [] for name in NAMES for count in NODES}
    with contextlib.ExitStack() as stack:
        stores = {count: stack.enter_context(servers(count, cores)) for count in NODES}
        workers = {
            (name, count): stack.enter_context(Worker(BY_NAME[name], stores[count][0], cores, loop))
            for name, count in rounds
        }
        for number in range(-1, size.rounds):
            for (name, count), worker in workers.items():
                before = cpu_s(stores[count][1])
                figures = worker.burst(size, seed=number + 1)
                server_us = (cpu_s(stores[count][1]) - before) / size.requests * 1e6
                if number >= 0:
                    rounds[name, count].append(figures | {"server_us": server_us})
    found: dict[str, dict] = {}
    for (name, count), seen in rounds.items():
        keys = ("per_second", "cpu_us", "server_us", "p50_us", "p99_us")
        found.setdefault(name, {})[str(count)] = {
            key: statistics.median(one[key] for one in seen) for key in keys
        }
    return found


def busiest(nodes: int, shards: int) -> float:
    """How many times its equal part the node has that has most shards."""
    held = Counter(slot_of(f"{{{shard}}}") * nodes // SLOTS for shard in range(shards))
    return max(held.values()) * nodes / shards


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("variant", "store", "requests/s", "CPU of the app, us", "CPU of all servers, us", "p50, us")
    rows = [
        (
            BY_NAME[name].title,
            "one server" if count == "1" else f"a cluster of {count}, on the same core",
            f"{seen['per_second']:,.0f}",
            f"{seen['cpu_us']:.1f}",
            f"{seen['server_us']:.1f}",
            f"{seen['p50_us']:,.0f}",
        )
        for name, counts in result.get("nodes", {}).items()
        for count, seen in counts.items()
    ]
    return "One server and three", head, rows


def many(result: dict) -> Table:
    """What follows for nodes on cores of their own; not measured."""
    head = ("variant", "nodes", "shards", "busiest node", "requests/s, at most", "processes of the app")
    rows = [
        (
            BY_NAME[name].title,
            str(nodes),
            str(shards),
            f"{busiest(nodes, shards):.2f} x its part",
            f"{most(counts['3'], nodes, shards):,.0f}",
            f"{most(counts['3'], nodes, shards) * counts['3']['cpu_us'] / 1e6:,.0f}",
        )
        for name, counts in result.get("nodes", {}).items()
        for nodes in (3, MANY)
        for shards in SHARDS
    ]
    return "Nodes on cores of their own, by calculation", head, rows


def most(seen: dict, nodes: int, shards: int) -> float:
    """Requests a second until the busiest node has no time left."""
    return nodes / busiest(nodes, shards) * 1e6 / seen["server_us"]


def main() -> None:
    cores, size = Cores(), QUICK if "--quick" in sys.argv else FULL
    result = {"nodes": measure(cores, "asyncio", size)}
    for made in (table(result), many(result)):
        show(made)


if __name__ == "__main__":
    main()
