"""First bytes of the operator pages: python benchmarks/operator_pages.py [--quick]

So many customers in an embedded store, each with usage that waits for Stripe; a snapshot of them beside the
audit log; and a uvicorn process that answers one request after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from http.client import HTTPConnection
from statistics import median
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from tables import show

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.insights.audit.database import Database
from meterkit.insights.overview.overview import CustomerOverview
from meterkit.insights.revenue.revenue_formulas import CustomerPayment
from meterkit.insights.revenue.tables import RevenueTables
from meterkit.pages import operator_pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tables import Table

CUSTOMERS, QUICK_CUSTOMERS, REQUESTS, AT_ONCE = 100_000, 1_000, 50, 500
PRICE = 2_900_000_000
PATHS = {
    "overview": "",
    "all customers, first page": "all",
    "near a limit, first page": "near",
    "on one plan, last page": "plan?of=free&after={last}",
    "usage of unlinked customers": "delivered?of=unlinked%20requests",
    "who pays": "paying?of=usd",
    "who pays more since a day": "moves?of={day}%20usd%20expansion",
    "who left on a day": "moves?of={day}%20usd%20churn",
    "what changed in a month": "changes?of=usd%20churn%20contraction",
    "export of all customers": "all.csv",
}
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 20, overage: deny}
"""


def yesterday() -> date:
    """The last day whose revenue is settled."""
    return (datetime.now(UTC) - timedelta(hours=2)).date() - timedelta(days=1)


def kit_in(directory: str) -> MeterKit:
    return MeterKit(
        loads(PLANS),
        redis_url=f"embedded://{directory}",
        audit_url=f"sqlite:///{directory}/audit.db",
        flush=False,
        store_timeout=30,
    )


async def fill(directory: str, customers: int) -> float:
    """Record usage of each customer and make a snapshot; how many seconds that took."""
    names = [f"customer-{nth:06}" for nth in range(customers)]
    tables = RevenueTables(Database(f"sqlite:///{directory}/audit.db"))
    for back in range(3, 0, -1):
        # On the last day one of a thousand pays more, and one of a thousand nothing any more.
        paying = [
            CustomerPayment(name, "free", "usd", PRICE * (1 + (back == 1 and nth % 1000 == 0)))
            for nth, name in enumerate(names)
            if back > 1 or nth % 1000 != 1
        ]
        tables.write(yesterday() - timedelta(days=back - 1), paying, [])
    async with kit_in(directory) as kit:
        for first in range(0, customers, AT_ONCE):
            page = list(enumerate(names[first : first + AT_ONCE], first))
            await asyncio.gather(*(kit.record(name, "requests", 1 + nth % 20) for nth, name in page))
        begun = time.perf_counter()
        await CustomerOverview(kit.store, kit.settings).snapshot()
        return time.perf_counter() - begun


def measure(customers: int) -> dict:
    """The seconds of a snapshot, and the milliseconds to the first byte by page."""
    with tempfile.TemporaryDirectory(prefix="mk") as directory:
        snapshot_s, pages = _measured(customers, directory)
    figures = {
        page: {"median_ms": median(times) * 1e3, "high_ms": max(times) * 1e3} for page, times in pages.items()
    }
    return {"customers": customers, "snapshot_s": snapshot_s, "pages": figures}


def _measured(customers: int, directory: str) -> tuple[float, dict[str, list[float]]]:
    snapshot_s = asyncio.run(fill(directory, customers))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, __file__, "--serve", directory, "--fd", str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            try:
                last = f"customer-{customers - 50:06}"
                return snapshot_s, {
                    page: [
                        first_byte(port, path.format(last=last, day=yesterday())) for _ in range(REQUESTS + 1)
                    ][1:]
                    for page, path in PATHS.items()
                }
            finally:
                server.terminate()


def first_byte(port: int, path: str) -> float:
    """Seconds from the request until the first byte of its answer, on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("GET", f"/operator/{path}")
    answer = connection.getresponse()
    answer.read(1)
    found = time.perf_counter() - begun
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    answer.read()
    connection.close()
    return found


def serve(directory: str, fd: int) -> None:
    """Be the server."""
    kit = kit_in(directory)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with kit:
            yield

    pages = operator_pages(kit, allowed=lambda _: "ada")
    app = Starlette(routes=[Mount("/operator", app=pages)], lifespan=lifespan)
    uvicorn.run(app, fd=fd, log_level="warning")


def table(result: dict) -> Table:
    """The rows of the report."""
    found = result["operator_pages"]
    rows = [
        (page, f"{seen['median_ms']:,.0f} ms", f"{seen['high_ms']:,.0f} ms")
        for page, seen in found["pages"].items()
    ]
    title = (
        f"{found['customers']:,} customers, {REQUESTS} requests for each page;"
        f" the snapshot takes {found['snapshot_s']:,.0f} s"
    )
    return title, ("first byte of", "median", "slowest"), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean little")
    parser.add_argument("--serve", metavar="DIRECTORY", help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.fd)
    else:
        show(table({"operator_pages": measure(QUICK_CUSTOMERS if options.quick else CUSTOMERS)}))


if __name__ == "__main__":
    main()
