"""What the audit log costs a request: python benchmarks/audit.py

The same settlements with and without it, in turn, in many small batches. What a settlement takes of the
server (its own figure for scripts), and what packing one takes of the app's process where it is like no other
before, in microseconds: the lowest of all batches. Nothing is drained meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from machine import Cores, socket_server
from tables import show

from meterkit import MeterKit
from meterkit.redis.connection import pack_each
from meterkit.redis.settlement_queue import pack_sequence
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import UsedQuantities

if TYPE_CHECKING:
    from tables import Table

BATCHES, CALLS = 300, 60
_ANSWERED_S = 10
PLANS = Path(__file__).parent / "plans" / "settle.yaml"


class Line:
    """Settlements of one kit, sent in batches."""

    def __init__(self, path: str, *, audited: bool) -> None:
        url = f"sqlite:///{path}.db" if audited else None
        prefix = "on" if audited else "off"
        self.kit = MeterKit(PLANS, redis_url=f"unix://{path}", key_prefix=prefix, flush=False, audit_url=url)
        self.client = redis.Redis(unix_socket_path=path)
        for script in self.kit.store.scripts.values():
            self.client.script_load(script.text)
        self.wire = socket.socket(socket.AF_UNIX)
        self.wire.settimeout(_ANSWERED_S)
        self.wire.connect(path)
        self.views = [self.kit.store.cache.get(f"cus_{n}") for n in range(CALLS)]
        self.numbers = dict.fromkeys(range(self.kit.store.keys.shards), 0)
        self.server_us = self.pack_us = float("inf")

    def batch(self) -> None:
        settlements = [Settlement(view, used=UsedQuantities({"requests": 1})) for view in self.views]
        begun = time.perf_counter_ns()
        packed = [settlement.pack() for settlement in settlements]
        self.pack_us = min(self.pack_us, (time.perf_counter_ns() - begun) / CALLS / 1e3)
        out = []
        for view, (head, tail) in zip(self.views, packed, strict=True):
            self.numbers[view.shard] += 1
            producer = pack_each([self.kit.store.keys.producer(view.shard, "0123456789abcdef")])
            clock = pack_each([int(time.time() * 1000)])
            out += [head, producer, tail, pack_sequence(0, self.numbers[view.shard]), clock]
        self.client.config_resetstat()
        self.wire.sendall(b"".join(out))
        answered = b""
        while answered.count(b"\r\n") < CALLS:  # A settlement's reply is one integer.
            more = self.wire.recv(65536)
            if b"-" in more:
                raise RuntimeError(more)
            answered += more
        stats = self.client.info("commandstats")["cmdstat_evalsha"]
        self.server_us = min(self.server_us, stats["usec"] / stats["calls"])


async def _lines(path: str) -> tuple[Line, Line]:
    lines = Line(path, audited=False), Line(path, audited=True)
    for _ in range(BATCHES):
        for line in lines:
            line.batch()
    return lines


def measure(cores: Cores) -> dict[str, dict[str, float]]:
    """Whose time to ``off`` and ``on``, microseconds a settlement."""
    with socket_server(cores) as path:
        off, on = asyncio.run(_lines(path))
    return {
        "the store's": {"off": off.server_us, "on": on.server_us},
        "the app's, packing": {"off": off.pack_us, "on": on.pack_us},
    }


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("time of a settlement", "audit log off, us", "on, us", "more, us")
    rows = [
        (whose, f"{seen['off']:.2f}", f"{seen['on']:.2f}", f"{seen['on'] - seen['off']:.2f}")
        for whose, seen in result.get("audit", {}).items()
    ]
    return "The audit log", head, rows


def main() -> None:
    show(table({"audit": measure(Cores())}))


if __name__ == "__main__":
    main()
