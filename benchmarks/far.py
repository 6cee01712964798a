"""A store some milliseconds away: each variant through a proxy that holds back what the store answers."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inprocess import FULL, Size, Worker, database
from machine import await_port, free_port
from variants import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Cores
    from quiet import Gauge
    from tables import Table

AWAY_MS = (0, 1, 5, 20)
NAMES = (
    *("bare", "limits-sliding", "composite"),
    *("meterkit-decide", "meterkit-settle", "meterkit-hot-decide", "meterkit-hot-settle"),
)
FIRST_DB = 48


class Back(asyncio.Protocol):
    """The store's side: hands on what it says, in order, each piece some time after it came."""

    def __init__(self, client: asyncio.Transport, away_s: float) -> None:
        self._client, self._away_s = client, away_s
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes]] = deque()

    def data_received(self, data: bytes) -> None:
        self._held.append((self._loop.time() + self._away_s, data))
        if len(self._held) == 1:
            self._loop.call_at(self._held[0][0], self._hand_on)

    def _hand_on(self) -> None:
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            self._client.write(self._held.popleft()[1])
        if self._held:
            self._loop.call_at(self._held[0][0], self._hand_on)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._client.close()


class Front(asyncio.Protocol):
    """The client's side: hands on at once what it says."""

    def __init__(self, store_port: int, away_s: float) -> None:
        self._store_port, self._away_s = store_port, away_s
        self._early: list[bytes] = []
        self._store: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._client = transport
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._store, _ = await loop.create_connection(
            lambda: Back(self._client, self._away_s), "127.0.0.1", self._store_port
        )
        self._store.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        if self._store is None:
            self._early.append(data)
        else:
            self._store.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._store is not None:
            self._store.close()


@contextlib.contextmanager
def proxy(store_port: int, away_ms: int, cores: Cores) -> Iterator[int]:
    port = free_port()
    with cores.on(cores.server):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *map(str, (port, store_port, away_ms))]
        )
    try:
        await_port(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(redis_url: str, cores: Cores, loop: str, size: Size, gauge: Gauge) -> dict[str, dict]:
    """Milliseconds to variant to throughput and latency, the median of interleaved rounds."""
    return {
        str(away_ms): gauge.measure_part(
            f"store {away_ms} ms away",
            lambda away_ms=away_ms: _at(away_ms, redis_url, cores, loop, size),
        )
        for away_ms in AWAY_MS
    }


def _at(away_ms: int, redis_url: str, cores: Cores, loop: str, size: Size) -> dict[str, dict]:
    store_port = int(redis_url.rpartition(":")[2])
    # About as long at every distance: what is waited for is not worked on.
    waiting = size.requests if away_ms == 0 else min(size.requests, 8_000 // away_ms)
    amounts = {
        name: replace(size, requests=size.requests if BY_NAME[name].customers else waiting) for name in NAMES
    }
    rounds: dict[str, list[dict]] = {name: [] for name in NAMES}
    with proxy(store_port, away_ms, cores) as port, contextlib.ExitStack() as stack:
        address = f"redis://127.0.0.1:{port}"
        workers = {
            name: stack.enter_context(
                Worker(BY_NAME[name], database(address, FIRST_DB + number), cores, loop)
            )
            for number, name in enumerate(NAMES)
        }
        for number in range(-1, 1 if size.rounds < FULL.rounds else 3):
            for name, worker in workers.items():
                figures = worker.burst(amounts[name], seed=number + 1)
                if number >= 0:
                    rounds[name].append(figures)
    keys = ("per_second", "p50_us", "p99_us")
    return {
        name: {key: statistics.median(one[key] for one in seen) for key in keys}
        for name, seen in rounds.items()
    }


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("variant", "store away, ms", "requests/s", "p50, ms", "p99, ms")
    rows = [
        (
            BY_NAME[name].title,
            away_ms,
            f"{seen['per_second']:,.0f}",
            f"{seen['p50_us'] / 1e3:,.2f}",
            f"{seen['p99_us'] / 1e3:,.1f}",
        )
        for away_ms, found in result.get("far", {}).items()
        for name, seen in found.items()
    ]
    return "A store some milliseconds away, 50 requests at a time", head, rows


async def serve(port: int, store_port: int, away_ms: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(store_port, away_ms / 1000), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))
