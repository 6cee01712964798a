"""Calls an app through the ASGI interface: lifespan, one request, a burst of concurrent requests."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of request: a customer, a path; with a body it is a POST of JSON."""

    customer: str
    path: str = "/v1/x"
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Burst:
    """What a burst took; latencies in ns until the last byte of the body."""

    requests: int
    wall_s: float
    cpu_s: float
    latencies_ns: list[int]

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.latencies_ns)
        return {
            "requests": self.requests,
            "cpu_us": self.cpu_s / self.requests * 1e6,
            "per_second": self.requests / self.wall_s,
            "p50_us": ordered[len(ordered) // 2] / 1e3,
            "p99_us": ordered[len(ordered) * 99 // 100] / 1e3,
        }


class Client:
    """A client of one app, in the same process and on the same loop."""

    def __init__(self, app: ASGIApp, state: dict) -> None:
        self.app = app
        self.state = state

    def scope(self, target: Target) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST" if target.body else "GET",
            "scheme": "http",
            "path": target.path,
            "raw_path": target.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:8000"),
                (b"user-agent", b"benchmark"),
                (b"accept", b"*/*"),
                (b"x-customer-id", target.customer.encode()),
                *self._about(target.body),
            ],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8000),
            "state": self.state.copy(),
        }

    def _about(self, body: bytes) -> list[tuple[bytes, bytes]]:
        if not body:
            return []
        return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def get(self, target: Target) -> int:
        """Makes one request, which must succeed; the nanoseconds until its last byte."""
        status, taken = await self._request(target)
        if status != 200:
            raise RuntimeError(f"{target} was answered with {status}, not 200")
        return taken

    async def status(self, target: Target) -> int:
        """Makes one request; the status of its answer."""
        return (await self._request(target))[0]

    async def _request(self, target: Target) -> tuple[int, int]:
        asked = False
        status = ended = 0

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": target.body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                ended = time.perf_counter_ns()

        scope = self.scope(target)
        begun = time.perf_counter_ns()
        await self.app(scope, receive, send)
        return status, ended - begun

    async def burst(self, targets: list[Target], concurrency: int, after_s: float = 0.3) -> Burst:
        """Makes all requests, ``concurrency`` at a time.

        CPU includes what is done in the ``after_s`` seconds after the last: some middlewares work after
        the response.
        """
        latencies: list[int] = []
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            queue = iter(targets)
            for _ in range(concurrency):
                tasks.create_task(self._work(queue, latencies))
        took = time.perf_counter() - wall
        await asyncio.sleep(after_s)
        return Burst(len(latencies), took, time.process_time() - cpu, latencies)

    async def send_paced(self, targets: list[Target], per_second: float) -> Burst:
        """Starts each request at its own random time, whether or not those before it have ended."""
        latencies: list[int] = []
        gaps = random.Random(len(targets))
        gc.collect()
        cpu, begun = time.process_time(), time.perf_counter()
        due = begun
        async with asyncio.TaskGroup() as tasks:
            for target in targets:
                due += gaps.expovariate(per_second)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(self._work(iter([target]), latencies))
        took = time.perf_counter() - begun
        await asyncio.sleep(0.3)
        return Burst(len(latencies), took, time.process_time() - cpu, latencies)

    async def _work(self, queue: Iterator[Target], latencies: list[int]) -> None:
        for target in queue:
            latencies.append(await self.get(target))
            await asyncio.sleep(0)  # As a server does: a request may end without waiting for anything.


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[Client]:
    """Starts the app by the lifespan protocol, and stops it at the end."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    state: dict = {}
    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    task = asyncio.create_task(app(scope, inbox.get, outbox.put))
    for step in ("startup", "shutdown"):
        await inbox.put({"type": f"lifespan.{step}"})
        answer = asyncio.create_task(outbox.get())
        await asyncio.wait({task, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await task
            raise RuntimeError(f"the app ended at lifespan {step} without an answer")
        message = answer.result()
        if message["type"] != f"lifespan.{step}.complete":
            raise RuntimeError(f"lifespan {step} failed: {message.get('message', '')}")
        if step == "startup":
            yield Client(app, state)
    await task
