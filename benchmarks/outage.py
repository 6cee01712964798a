"""Cost of a request while the store is down: python benchmarks/outage.py

The same app with its store and without one: that was killed after each customer was served once, so that the
circuit breaker is open and usage goes to the spool. Rounds of both and of the bare app are interleaved.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from typing import TYPE_CHECKING

from inprocess import FULL, Size, Worker, database
from machine import Cores, redis_server
from tables import show
from variants import BY_NAME

if TYPE_CHECKING:
    from tables import Table

NAMES = ("meterkit-decide", "meterkit-settle")
KEYS = ("over_bare_us", "p50_us", "p99_us")
FIRST_DB = 52


def measure(redis_url: str, cores: Cores, loop: str, size: Size) -> dict[str, dict[str, dict[str, float]]]:
    """Variant to ``with`` and ``without`` its store to figures, the median of all rounds."""
    with contextlib.ExitStack() as stack:
        # Beside no spools of this user's own apps, and gone afterwards.
        os.environ["METERKIT_SPOOL_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())

        def worker(name: str, url: str) -> Worker:
            return stack.enter_context(Worker(BY_NAME[name], url, cores, loop))

        bare = worker("bare", redis_url)
        healthy = {name: worker(name, database(redis_url, FIRST_DB + n)) for n, name in enumerate(NAMES)}
        with redis_server(cores) as doomed:
            away = {name: worker(name, database(doomed, n)) for n, name in enumerate(NAMES)}
            for one in (bare, *healthy.values(), *away.values()):
                one.burst(size, seed=0)
        for one in away.values():
            one.burst(size, seed=0)  # The first of them finds out.
        rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number in range(size.rounds):
            bare_us = bare.burst(size, seed=number + 1)["cpu_us"]
            for which, workers in (("with", healthy), ("without", away)):
                for name, one in workers.items():
                    figures = one.burst(size, seed=number + 1)
                    figures["over_bare_us"] = figures["cpu_us"] - bare_us
                    rounds.setdefault((name, which), []).append(figures)
    return {
        name: {
            which: {key: statistics.median(one[key] for one in rounds[name, which]) for key in KEYS}
            for which in ("with", "without")
        }
        for name in NAMES
    }


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("variant", "its store", "CPU over bare, us", "p50, us", "p99, us")
    rows = [
        (
            BY_NAME[name].title,
            "up" if which == "with" else "down",
            f"{seen['over_bare_us']:.1f}",
            f"{seen['p50_us']:,.0f}",
            f"{seen['p99_us']:,.0f}",
        )
        for name, found in result.get("outage", {}).items()
        for which, seen in found.items()
    ]
    return "Store down, 50 requests at a time", head, rows


def main() -> None:
    cores = Cores()
    with redis_server(cores) as redis_url:
        show(table({"outage": measure(redis_url, cores, "asyncio", FULL)}))


if __name__ == "__main__":
    main()
