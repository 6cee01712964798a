"""What a process pays once: imports, and the first request after the start."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inprocess import PROBE_DB, Skipped, Worker, database

if TYPE_CHECKING:
    from inprocess import Size
    from machine import Cores
    from variants import Variant

STATEMENTS = (
    "import meterkit",
    "from meterkit import MeterKit, MeterMiddleware, identify, record",
    "from meterkit import MeterKit, MeterMiddleware, identify, record; MeterKit('plans/decide.yaml')",
    "import limits.aio.strategies, limits.aio.storage",
    "import slowapi",
    "import starlette.applications",
)
HERE = Path(__file__).parent
# As where packages are installed: the source is compiled once, and not at each start.
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
UNWANTED = (
    "stripe",
    "typer",
    "fakeredis",
    "fastapi",
    "httpx",
    "opentelemetry",
    "redis",
)
PROGRAM = """
import json, sys, time
begun = time.process_time()
{statement}
took = time.process_time() - begun
if "meterkit" in sys.modules and sys.modules["meterkit"].__file__ is None:
    sys.exit("meterkit is a folder without __init__.py")
unwanted = [name for name in {unwanted!r} if name in sys.modules]
print(json.dumps({{"ms": took * 1e3, "modules": len(sys.modules), "unwanted": unwanted}}))
"""


def import_times(cores: Cores, size: Size) -> dict[str, dict]:
    """Milliseconds of CPU of each statement in fresh interpreters, interleaved; an error where it fails."""
    taken: dict[str, list] = {}
    failed: dict[str, dict] = {}
    for _ in range(size.starts):
        for statement in STATEMENTS:
            with cores.on(cores.client):
                program = PROGRAM.format(statement=statement, unwanted=UNWANTED)
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    cwd=HERE,
                    env=COMPILED,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if done.returncode:
                failed[statement] = {"error": done.stderr.strip().splitlines()[-1]}
            else:
                taken.setdefault(statement, []).append(json.loads(done.stdout))
    return failed | {
        statement: {
            "median_ms": statistics.median(run["ms"] for run in runs),
            "low_ms": min(run["ms"] for run in runs),
            "high_ms": max(run["ms"] for run in runs),
            "modules": runs[-1]["modules"],
            "unwanted": runs[-1]["unwanted"],
        }
        for statement, runs in taken.items()
    }


def first_requests(variants: list[Variant], redis_url: str, cores: Cores, loop: str, size: Size) -> dict:
    """Milliseconds of the first and the second request of fresh processes."""
    address = database(redis_url, PROBE_DB)
    seen: dict[str, list] = {variant.name: [] for variant in variants}
    for _ in range(min(size.starts, 7)):
        for variant in variants:
            try:
                with Worker(variant, address, cores, loop) as worker:
                    seen[variant.name].append(worker.hello)
            except Skipped as error:
                return {"error": str(error)}
    return {
        name: {key: statistics.median(hello[key] for hello in hellos) for key in hellos[0]}
        for name, hellos in seen.items()
    }
