"""How fast the webhook endpoint takes Stripe's events: python benchmarks/webhooks.py

One process of uvicorn with the endpoint, on the client's core; who posts and the store share the other. Each
event is of another of a thousand customers, five kilobytes long, and signed as Stripe signs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import statistics
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from machine import Cores, await_port, free_port, redis_server
from starlette.applications import Starlette
from starlette.routing import Route
from tables import show

from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.starlette import stripe_webhook

if TYPE_CHECKING:
    from tables import Table

SECRET = "whsec_benchmark"
EVENTS, AT_ONCE, RATE_PER_S = 10_000, 32, 1_000
PLANS = """
{schema: 1, currency: usd, default_plan: free, meters: {requests: {unit: request}},
 routes: [{match: "POST /webhooks/stripe", exempt: true}],
 plans: {free: {price: {amount_cents: 0, interval: month}}}}
"""


def serve(redis_url: str, port: int, loop: str) -> None:
    kit = MeterKit(
        loads(PLANS), redis_url=redis_url, stripe_webhook_secret=SECRET, flush=False, store_timeout=5.0
    )
    app = Starlette(routes=[Route("/webhooks/stripe", stripe_webhook(kit), methods=["POST"])])
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    uvicorn.run(app, port=port, log_level="warning", access_log=False, loop=loop)


def request(number: int, run: str) -> bytes:
    """A whole HTTP request with an event of its own."""
    event = {
        "id": f"evt_{run}_{number}",
        "object": "event",
        "type": "customer.subscription.updated",
        "created": int(time.time()),
        "data": {"object": {"id": "sub_1", "customer": f"cus_{number % 1000}", "padding": "x" * 5_000}},
    }
    body, at = json.dumps(event).encode(), int(time.time())
    mac = hmac.digest(SECRET.encode(), b"%d.%b" % (at, body), sha256).hex()
    head = (
        "POST /webhooks/stripe HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\n"
        f"Stripe-Signature: t={at},v1={mac}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def post(port: int, requests: list[bytes], rate_per_s: float | None) -> list[float]:
    """Post each once over kept connections; how long each took. With a rate, each at its own time."""
    took: list[float] = []
    pending = iter(enumerate(requests))
    begun = time.perf_counter()

    async def line() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number, data in pending:
            due = begun if rate_per_s is None else begun + number / rate_per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter() if rate_per_s is None else due
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            took.append(time.perf_counter() - asked)
        writer.close()

    await asyncio.gather(*(line() for _ in range(AT_ONCE)))
    return took


def figures(port: int, rate_per_s: float | None, events: int) -> dict[str, float]:
    requests = [request(number, f"{time.time_ns()}") for number in range(events)]
    begun = time.perf_counter()
    took = sorted(asyncio.run(post(port, requests, rate_per_s)))
    return {
        "per_second": events / (time.perf_counter() - begun),
        "p50_ms": statistics.median(took) * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3,
        "max_ms": took[-1] * 1e3,
    }


def measure(redis_url: str, cores: Cores, events: int = EVENTS) -> dict[str, dict[str, float]]:
    """Way of posting to what came of it."""
    port = free_port()
    with cores.on(cores.client):
        server = subprocess.Popen([sys.executable, str(Path(__file__)), redis_url, str(port), "auto"])
    try:
        await_port(port)
        with cores.on(cores.server):
            figures(port, None, 500)
            return {
                f"{RATE_PER_S:,} a second": figures(port, RATE_PER_S, events),
                f"{AT_ONCE} at a time": figures(port, None, events),
            }
    finally:
        server.terminate()
        server.wait()


def table(result: dict) -> Table:
    """The rows of the report."""
    head = ("events posted", "taken/s", "p50, ms", "p99, ms", "longest, ms")
    rows = [
        (how, f"{seen['per_second']:,.0f}", *(f"{seen[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")))
        for how, seen in result.get("webhooks", {}).items()
    ]
    return "The webhook endpoint under uvicorn, one process", head, rows


def main() -> None:
    cores = Cores()
    with redis_server(cores) as redis_url:
        show(table({"webhooks": measure(redis_url, cores)}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        os.environ.pop("METERKIT_REDIS_URL", None)
        main()
