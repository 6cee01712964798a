"""End to end: each app under uvicorn on the client's core; wrk and the store share the other core."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inprocess import Size, Skipped, database, summarize
from machine import await_port, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Cores
    from quiet import Gauge
    from variants import Variant

HERE = Path(__file__).parent
FIRST_DB = 32


@dataclass(frozen=True, slots=True)
class Served:
    """An app under uvicorn.

    Attributes:
        customers: how many send the requests.
    """

    customers: int
    port: int
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of the process so far; 0 where the system has no /proc."""
        stat = Path(f"/proc/{self.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(variant: Variant, redis_url: str, cores: Cores, loop: str, size: Size) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, str(HERE / "serve.py"), variant.name, redis_url, str(port), loop]
    with cores.on(cores.client):
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        await_port(port)
        yield Served(variant.customers or size.customers, port, server.pid)
    finally:
        server.terminate()
        server.wait()


def load(app: Served, seconds: int, size: Size, cores: Cores) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{size.concurrency}", f"-d{seconds}s", "-s", str(HERE / "customers.lua")]
    before = app.cpu_s()
    with cores.on(cores.server):
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{app.port}", "--", str(app.customers)],
            capture_output=True,
            text=True,
            check=True,
        )
    cpu_s = app.cpu_s() - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES"))
    requests, duration_us, p50_us, p99_us, errors = map(int, line.split()[1:])
    if errors or not requests:
        raise Skipped(f"under uvicorn: {errors} errors in {requests} requests")
    return {
        "per_second": requests / duration_us * 1e6,
        "p50_us": p50_us,
        "p99_us": p99_us,
        "cpu_us": cpu_s / requests * 1e6,
        "busy": cpu_s / duration_us * 1e6,
    }


def measure(
    variants: list[Variant], redis_url: str, cores: Cores, size: Size, gauge: Gauge, loop: str = "asyncio"
) -> tuple[dict, dict]:
    """Requests per second of every variant, in interleaved rounds, and why some have none."""
    if shutil.which("wrk") is None:
        return {}, {"end to end": "wrk is not installed (apt-get install wrk)"}
    skipped = {}
    with contextlib.ExitStack() as stack:
        apps = {
            variant.name: stack.enter_context(
                served(variant, database(redis_url, FIRST_DB + number), cores, loop, size)
            )
            for number, variant in enumerate(variants)
        }

        def one(number: int, seconds: int) -> dict[str, dict]:
            measured = {}
            names = [name for name in apps if name not in skipped]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                try:
                    measured[name] = load(apps[name], seconds, size, cores)
                except Skipped as error:
                    skipped[name] = str(error)
            return measured

        one(0, 1)
        rounds = [
            gauge.measure_part(
                f"uvicorn on {loop}, round {number + 1}",
                lambda number=number: one(number, size.http_seconds),
            )
            for number in range(size.http_rounds)
        ]
    if "bare" in skipped:
        return {}, skipped
    kept = {name: [measured[name] for measured in rounds] for name in apps if name not in skipped}
    return {name: condense(results, kept["bare"]) for name, results in kept.items()}, skipped


def condense(results: list[dict], bare: list[dict]) -> dict[str, dict]:
    columns = {key: [result[key] for result in results] for key in results[0]}
    columns["of_bare"] = [
        result["per_second"] / base["per_second"] for result, base in zip(results, bare, strict=True)
    ]
    return summarize(columns)
