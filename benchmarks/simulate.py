"""Price simulation on a long log: python benchmarks/simulate.py [--quick]

A log of single events in SQLite, copied into DuckDB; its sums, who first goes beyond a ceiling, and the
events that the embedded store serves again in a second.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tables import show

from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.simulation.plan_costs import PlanOffers, PlanTenure
from meterkit.insights.simulation.plan_replay import UsageReplay
from meterkit.insights.simulation.usage_log import LoggedEvent, UsageLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tables import Table

ROWS, QUICK_ROWS, SERVED = 10_000_000, 100_000, 5_000
START_MS = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp() * 1000)
MONTH_MS = 31 * 86_400_000
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  calls: {unit: call, stripe: {event_name: calls}}
  words: {unit: word, stripe: {event_name: words}}
routes:
  - {match: POST /, consume: {calls: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      calls: {rate: 100/minute, included: 800, overage: deny}
      words: {included: 15_000, overage: deny}
"""
# A customer for each thousand rows, their events spread over the month.
FILL = """
WITH RECURSIVE nth(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM nth WHERE i + 1 < :rows)
INSERT INTO meterkit_audit (event, meter, kind, customer, period_start_ms, recorded_at_ms, quantity, included,
 granted, credited, overage, over_cap, reported, late)
SELECT '0/p/' || i, CASE i % 2 WHEN 0 THEN 'calls' ELSE 'words' END, 'recorded',
 'customer-' || (i * 7919 % (:rows / 1000)), :start, :start + i * (:month / :rows), 1 + i % 50, 1 + i % 50,
 0, 0, 0, 0, 0, 0 FROM nth
"""


@contextmanager
def timed(found: dict[str, float], step: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    found[step] = time.perf_counter() - begun


def measure(rows: int) -> dict[str, float]:
    """The rows, the seconds of each step, and how many events are served again in a second."""
    with tempfile.TemporaryDirectory() as directory:
        return _measured(rows, Path(directory))


def _measured(rows: int, directory: Path) -> dict[str, float]:
    found: dict[str, float] = {"rows": rows}
    database, file = Database(f"sqlite:///{directory}/audit.db"), directory / "audit.db"
    database.customers()  # Makes the table.
    with sqlite3.connect(file) as connection:
        connection.execute(FILL, {"rows": rows, "start": START_MS, "month": MONTH_MS})
    copy = directory / "copy"
    copy.mkdir()
    catalog = loads(PLANS)
    tenure = PlanTenure(
        start_ms=START_MS,
        end_ms=START_MS + MONTH_MS,
        plan="free",
        charged_plan="free",
        is_changed=False,
        is_credited=False,
        is_granted=False,
        is_unpaid=False,
        is_usage_unpaid=False,
        seats=0,
        paid_seats=0,
        overrides={},
        subject_overrides={},
    )
    terms = PlanOffers(catalog).to(tenure)
    with closing(UsageLog(copy)) as log:
        with timed(found, "copied from SQLite"):
            log.copy(database, START_MS)
        with timed(found, "added up, by customer and meter"):
            sums = log.sums()
        log.try_terms(dict.fromkeys(sums, terms))
        with timed(found, "who goes beyond a ceiling, and when"):
            log.beyond()
        with timed(found, "who may have been faster than a rate"):
            log.faster()
        customer = next(iter(sums))
        events = [event for _, of in log.events([customer], catalog.meters) for event in of]
    asyncio.run(serve(tenure, events, found, directory / "store"))
    return found


async def serve(
    tenure: PlanTenure, events: list[LoggedEvent], found: dict[str, float], directory: Path
) -> None:
    """How many events a second are served again."""
    catalog = loads(PLANS)
    terms = PlanOffers(catalog).to(tenure)
    async with UsageReplay.under(catalog, directory) as replay:
        begun, served = time.perf_counter(), 0
        while served < SERVED:
            await replay.serve(f"customer {served}", terms, tenure, events)
            served += len(events)
        found["served"] = served / (time.perf_counter() - begun)


def table(result: dict) -> Table:
    """The rows of the report."""
    found = dict(result["simulate"])
    rows, rate = found.pop("rows"), found.pop("served")
    lines = [(step, f"{seconds:,.1f} s") for step, seconds in found.items()]
    lines.append(("events served again in a second", f"{round(rate, -2):,.0f}"))
    return f"{rows:,} rows of {rows // 1000:,} customers", ("step", "takes"), lines


def main() -> None:
    show(table({"simulate": measure(QUICK_ROWS if "--quick" in sys.argv else ROWS)}))


if __name__ == "__main__":
    main()
