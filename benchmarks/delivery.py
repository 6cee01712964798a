"""How fast usage is sealed and delivered to Stripe: python benchmarks/delivery.py

A flusher on the client's core; the store and a Stripe emulator in a process of its own share the other. Each
of the customers has used three meters, so that there are three intents of each. Then nothing is left to do,
and the flusher looks whether there is, again and again.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis.asyncio
from machine import Cores, await_port, free_port, redis_server
from tables import show

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tables import Table

CUSTOMERS, METERS, AT_ONCE = 10_000, 3, 12
IDLE_PASSES = 50
TRANSPORTS = ("v1", "v2-stream")
PLANS = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request, stripe: {event_name: api_requests, report: usage}}
  tokens:   {unit: token, stripe: {event_name: ai_tokens, report: usage}}
  words:    {unit: word, stripe: {event_name: words, report: usage}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 9, overage: bill}
      tokens:   {included: 9, overage: bill}
      words:    {included: 9, overage: bill}
"""


def emulate(port: int, customers: int) -> None:
    emulator = StripeEmulator()
    emulator.add_meters(loads(PLANS))
    for number in range(customers):
        emulator.add_customer(f"cus_{number}")
    emulator.serve_forever(port=port)


async def all_of(calls: Iterator[object]) -> None:
    """Await each, some at once."""

    async def line() -> None:
        for call in calls:
            await call

    await asyncio.gather(*(line() for _ in range(AT_ONCE)))


async def deliver(redis_url: str, stripe_url: str, transport: str, customers: int) -> dict[str, float]:
    prefix = f"d{transport[:2]}"
    kit = MeterKit(
        loads(PLANS),
        redis_url=redis_url,
        key_prefix=prefix,
        stripe_api_key="sk_test_benchmark",
        stripe_api_base=stripe_url,
        stripe_transport=transport,
        flush=False,
        store_timeout=30.0,
    )
    async with kit:
        # Stripe is not asked for each: it allows 20 such calls a second, and they are not what is measured.
        links = ((f"c{number}", f"cus_{number}") for number in range(customers))
        await all_of(kit.customers.link(*pair, look=False, force=True) for pair in links)
        for meter in kit.store.catalog.meters:
            await all_of(kit.record(f"c{number}", meter, number + 1) for number in range(customers))
        begun, used = time.perf_counter(), time.process_time()
        report = await kit.flush(everything=True, timeout_s=600)
        took, cpu_s = time.perf_counter() - begun, time.process_time() - used
        idle_ms = await idle_pass_ms(kit)
    if report.delivered != METERS * customers or not report.is_complete:
        raise RuntimeError(f"delivered {report.delivered} of {METERS * customers}: {report.why}")
    cpu_us = cpu_s / report.delivered * 1e6
    return {
        "events": report.delivered,
        "per_second": report.delivered / took,
        "cpu_us": cpu_us,
        "core_percent_at_100": cpu_us * 100 / 1e4,
        "idle_pass_ms": idle_ms,
        "bytes_kept": await bytes_kept(redis_url, prefix) / report.delivered,
    }


async def idle_pass_ms(kit: MeterKit) -> float:
    """What a pass costs that finds nothing to do, in ms of CPU."""
    passes, done = 0, asyncio.Event()

    def told(_report: object) -> None:
        nonlocal passes
        passes += 1
        if passes == IDLE_PASSES:
            done.set()

    async with kit.flusher() as flusher:
        used = time.process_time()
        running = asyncio.create_task(flusher.run(every_s=0, told=told))
        await done.wait()
        took = time.process_time() - used
        flusher.stop()
        await running
    return took / IDLE_PASSES * 1e3


async def bytes_kept(redis_url: str, prefix: str) -> int:
    """What the store keeps of intents once they are delivered."""
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        parts = ("intents", "delivered:*", "batches:*")
        kept = [key for part in parts async for key in server.scan_iter(f"{prefix}:*:{part}", count=1000)]
        return sum([await server.memory_usage(key, samples=0) for key in kept])


def measure(redis_url: str, cores: Cores, customers: int = CUSTOMERS) -> dict[str, dict[str, float]]:
    """Transport to what came of it."""
    found = {}
    for transport in TRANSPORTS:
        port = free_port()
        with cores.on(cores.server):
            stripe = subprocess.Popen([sys.executable, str(Path(__file__)), str(port), str(customers)])
        try:
            await_port(port)
            url = f"http://127.0.0.1:{port}"
            with cores.on(cores.client):
                found[transport] = asyncio.run(deliver(redis_url, url, transport, customers))
        finally:
            stripe.terminate()
            stripe.wait()
    return found


def table(result: dict) -> Table:
    """The rows of the report."""
    head = (
        *("usage delivered", "events/s", "CPU an event, us", "of a core at 100/s, %"),
        *("an idle pass, ms of CPU", "kept of each, bytes"),
    )
    rows = [
        (
            f"{transport}, {seen['events']:,.0f} events",
            f"{seen['per_second']:,.0f}",
            f"{seen['cpu_us']:,.0f}",
            f"{seen['core_percent_at_100']:.1f}",
            f"{seen['idle_pass_ms']:.2f}",
            f"{seen['bytes_kept']:.0f}",
        )
        for transport, seen in result.get("delivery", {}).items()
    ]
    return "The flusher, from pending usage to Stripe's answers", head, rows


def main() -> None:
    cores = Cores()
    with redis_server(cores) as redis_url:
        show(table({"delivery": measure(redis_url, cores)}))


if __name__ == "__main__":
    os.environ.pop("METERKIT_REDIS_URL", None)
    if len(sys.argv) > 1:
        emulate(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
