"""What a customer's grants cost the server, by how many there are: python benchmarks/grants.py [BINARY ...]

Each figure is the server's own (``INFO commandstats``), per call, the lowest of several batches: of a look
(``check``), of a recording that a grant pays, and of a request that is decided and settled (``consume``).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import redis
from machine import Cores, server_binaries, socket_server
from tables import show

from meterkit import MeterKit
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tables import Table

BATCHES, CALLS = 10, 200
LIVE = (0, 1, 10, 100, 256)
USED_UP = 1000
PLANS = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request}
  tokens: {unit: token, stripe: {event_name: tokens}}
credits:
  ai: {costs: {tokens: 1 per 1000}, low_balance: 20%}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 1_000_000/hour}
      tokens: {included: 0, overage: {bill: {cap: 900_000_000_000}}}
"""


def grants_on(binary: str, cores: Cores) -> dict[str, dict[str, float]]:
    """Row to kind of call to microseconds of the server's time, on a server of its own."""
    with socket_server(cores, binary) as path:
        return asyncio.run(_rows(path))


async def _rows(socket: str) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    with redis.Redis(unix_socket_path=socket) as server:
        async with MeterKit(
            loads(PLANS), redis_url=f"unix://{socket}", flush=False, store_timeout=5.0
        ) as kit:
            rows["none ever"] = await _costs(kit, server, "plain")
            for live in LIVE:
                customer = f"live-{live}"
                for nth in range(live or 1):
                    await kit.grants.add(customer, {"ai": 1_000_000}, grant_id=f"g{nth}")
                if not live:
                    await kit.grants.void(customer, "g0")
                rows[f"{live} live"] = await _costs(kit, server, customer)
            for nth in range(USED_UP):
                await kit.grants.add("used", {"ai": 1}, grant_id=f"g{nth}")
                await kit.record("used", "tokens", 1000)
            await kit.grants.add("used", {"ai": 1_000_000}, grant_id="last")
            rows[f"1 live, {USED_UP:,} used up"] = await _costs(kit, server, "used")
            for nth in range(256):
                await kit.grants.add("turn", {"ai": 1}, grant_id=f"g{nth}", priority=nth)
            rows["256 live, each call uses one up"] = {
                "record": await _cost_us(server, lambda: kit.record("turn", "tokens", 1000), 1, 100)
            }
    return rows


async def _costs(kit: MeterKit, server: Any, customer: str) -> dict[str, float]:
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "check": lambda: kit.check(customer, "tokens"),
        "record": lambda: kit.record(customer, "tokens", 1),
        "consume": lambda: kit.consume(customer, "tokens", 1),
    }
    return {name: await _cost_us(server, call) for name, call in calls.items()}


async def _cost_us(
    server: Any,
    call: Callable[[], Coroutine[Any, Any, object]],
    batches: int = BATCHES,
    calls: int = CALLS,
) -> float:
    for _ in range(2):  # What is read once in a while is not what is measured.
        await call()
    lowest = float("inf")
    for _ in range(batches):
        server.config_resetstat()
        for _ in range(calls):
            await call()
        lowest = min(lowest, server.info("commandstats")["cmdstat_evalsha"]["usec"] / calls)
    return lowest


def measure(cores: Cores, *chosen: str) -> dict[str, dict[str, dict[str, float]]]:
    """Server to row to kind of call to microseconds."""
    return {_name(binary): grants_on(binary, cores) for binary in chosen or server_binaries()}


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("grants of the customer", "server", "check, us", "record, us", "consume, us")
    rows = [
        (
            row,
            server,
            *(f"{seen[kind]:.1f}" if kind in seen else "" for kind in ("check", "record", "consume")),
        )
        for server, found in result.get("grants", {}).items()
        for row, seen in found.items()
    ]
    return "Grants: server time per call", head, rows


def _name(binary: str) -> str:
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"{words[0]} {words[2].removeprefix('v=')}"


def main() -> None:
    show(table({"grants": measure(Cores(), *sys.argv[1:])}))


if __name__ == "__main__":
    main()
