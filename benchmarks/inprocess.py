"""The parent's side of the in-process measurements: workers, rounds, the server's own time, the gauge."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis
from quiet import Gauge
from variants import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machine import Cores
    from variants import Variant

WORKER = Path(__file__).with_name("worker.py")
PROBE_DB = 63
MIX_PER_SECOND = 1_000
BURSTS_READ = 5
CONNECTING = {"auth", "client", "hello", "info", "ping", "script", "select"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    requests: int
    concurrency: int = 50
    customers: int = 1000
    http_rounds: int
    http_seconds: int
    starts: int


FULL = Size(rounds=7, requests=5000, http_rounds=5, http_seconds=4, starts=15)
QUICK = Size(rounds=1, requests=1000, http_rounds=1, http_seconds=1, starts=1)


class Skipped(Exception):  # noqa: N818 - it ends a variant, not the run
    """A variant cannot run here; says why."""


@dataclass(slots=True)
class Worker:
    """A child process with one variant on one database."""

    variant: Variant
    redis_url: str
    cores: Cores
    loop: str
    hello: dict = field(default_factory=dict)

    def __enter__(self) -> Self:
        core = "any" if self.cores.client is None else str(self.cores.client)
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), self.variant.name, self.redis_url, core, self.loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.hello = self._answer()
        except Skipped:
            self.__exit__()
            raise
        return self

    _process: subprocess.Popen = field(init=False)

    def order(self, **order) -> dict:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def burst(self, size: Size, *, seed: int) -> dict:
        return self.order(
            do="burst",
            requests=size.requests * self.variant.request_factor,
            customers=self.variant.customers or size.customers,
            concurrency=size.concurrency,
            seed=seed,
        )

    def send_mix(self, size: Size, *, seed: int) -> dict:
        """An open loop of requests of customers by Zipf's law."""
        return self.order(
            do="mix",
            requests=size.requests,
            customers=size.customers,
            per_second=MIX_PER_SECOND,
            seed=seed,
        )

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._process.stderr.read().strip()[-400:]}
        if "error" in answer:
            raise Skipped(answer["error"])
        return answer

    def __exit__(self, *_exc: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()


def database(redis_url: str, number: int) -> str:
    return f"{redis_url}/{number}"


def direct_commands(server: redis.Redis, worker: Worker) -> set[str]:
    """The commands that the client itself sends, as opposed to those that scripts run."""
    direct, inside = set(), set()
    with server.monitor() as monitor:
        worker.order(do="walk", requests=10, customers=5, paths=1)
        server.echo("the walk is over")
        for seen in monitor.listen():
            name = seen["command"].split(" ", 1)[0].lower()
            if name == "echo":
                break
            (inside if seen["client_type"] == "lua" else direct).add(name)
    direct -= CONNECTING
    if both := direct & inside:
        raise RuntimeError(f"{worker.variant.name}: {sorted(both)} run in scripts and by themselves")
    return direct


def probe(variant: Variant, redis_url: str, cores: Cores, loop: str) -> dict:
    """What a variant does to an empty database: commands, keys, memory, and its first request."""
    address = database(redis_url, PROBE_DB)
    server = redis.Redis.from_url(address)
    server.flushdb()
    with Worker(variant, address, cores, loop) as worker:
        result = dict(worker.hello)
        result["commands"] = sorted(direct_commands(server, worker))
        worker.order(do="walk", requests=1000, customers=100, paths=1)
        keys = list(server.scan_iter(count=1000))
        memory = {key: server.memory_usage(key, samples=0) for key in keys}
        mine = {key.decode(errors="replace"): used for key, used in memory.items() if b"cus_00007" in key}
        result |= {
            "keys_100_customers": len(keys) - len([key for key in keys if b"cus_first" in key]),
            "keys_of_one_customer": dict(sorted(mine.items())),
            "bytes_of_one_customer": sum(mine.values()),
            "bytes_all_per_customer": sum(memory.values()) / 101,
        }
        worker.order(do="walk", requests=1000, customers=100, paths=10)
        result["keys_100_customers_10_paths"] = len(
            [key for key in server.scan_iter(count=1000) if b"cus_first" not in key]
        )
        customers = variant.customers or 1000
        result |= worker.order(
            do="count", requests=300 * variant.request_factor, customers=customers, concurrency=50
        )
    server.flushdb()
    return result


def server_time(server: redis.Redis, commands: list[str], requests: int) -> dict[str, float]:
    """Time inside the commands that the client sent since the last reset, whatever their scripts ran."""
    stats = server.info("commandstats")
    found = [
        stats.get(f"cmdstat_{command.replace(' ', '|')}", {"usec": 0, "calls": 0}) for command in commands
    ]
    return {
        "server_us": sum(stat["usec"] for stat in found) / requests,
        "calls": sum(stat["calls"] for stat in found) / requests,
    }


@contextlib.contextmanager
def open_gauge(redis_url: str, cores: Cores, size: Size) -> Iterator[Gauge]:
    """A gauge that reads the bare app on each core, in processes of their own."""
    amount = replace(size, requests=size.requests // 2)
    with contextlib.ExitStack() as stack:
        workers = {
            core: stack.enter_context(Worker(BY_NAME["bare"], redis_url, pinned, "asyncio"))
            for core, pinned in (("client's core", cores), ("server's core", cores.swapped()))
        }

        def read() -> dict[str, float]:
            # By the clock, not of CPU: the bare app never waits, so others on its core show, too. The median,
            # as a single burst of 30 ms is often a third slower on a virtual machine that nothing else uses.
            return {
                core: statistics.median(
                    1e6 / one.burst(amount, seed=0)["per_second"] for _ in range(BURSTS_READ)
                )
                for core, one in workers.items()
            }

        gauge = Gauge(read=read, tries=8 if size.rounds > 1 else 1)
        first = [read() for _ in range(10)]
        gauge.readings["start"] = [{core: min(one[core] for one in first) for core in workers}]
        yield gauge


def rounds(
    workers: dict[str, Worker],
    probes: dict[str, dict],
    redis_url: str,
    size: Size,
    gauge: Gauge,
    part: str,
    send: Callable[..., dict] = Worker.burst,
) -> dict[str, list]:
    """Every variant in every round, in an order that moves on by one each time; disturbed ones again."""
    server = redis.Redis.from_url(redis_url)
    names = list(workers)
    for worker in workers.values():
        worker.burst(size, seed=0)

    def one(number: int) -> dict[str, dict]:
        measured = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            server.config_resetstat()
            before = server.info("cpu")
            result = send(workers[name], size, seed=number + 1)
            after = server.info("cpu")
            if workers[name].variant.reads:
                result |= workers[name].order(do="parse", requests=size.requests)
            result |= server_time(server, probes[name]["commands"], result["requests"])
            result["server_cpu_us"] = (
                sum(after[k] - before[k] for k in ("used_cpu_user", "used_cpu_sys"))
                / result["requests"]
                * 1e6
            )
            measured[name] = result
        return measured

    def own(measured: dict[str, dict]) -> dict[str, float]:
        return {part: measured["bare"]["cpu_us"]} if send is Worker.burst else {}

    found = [
        gauge.measure_part(f"{part}, round {number + 1}", lambda number=number: one(number), own)
        for number in range(size.rounds)
    ]
    return {name: [measured[name] for measured in found] for name in names}


def condense(measured: dict[str, list], bares: dict[str, str]) -> dict[str, dict]:
    """The median of every figure and its lowest and highest round; CPU also over the bare app's."""
    condensed = {}
    for name, results in measured.items():
        base = measured[bares[name]]
        columns = {key: [result[key] for result in results] for key in results[0]}
        columns["over_bare_us"] = [
            result["cpu_us"] - bare["cpu_us"] for result, bare in zip(results, base, strict=True)
        ]
        condensed[name] = summarize(columns)
    return condensed


def summarize(columns: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The median, the lowest and the highest of each column."""
    return {
        key: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for key, values in columns.items()
    }
