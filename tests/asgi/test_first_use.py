"""First uses of a kit in a fresh process: by a request without a lifespan, and by several threads at once."""

# Internals: the constructors that threads race for.

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from drivers.delivery import NOW
from drivers.plans import free_plan
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.notify.event_dispatcher import EventDispatcher
from meterkit.testing import Clock

PLANS = free_plan(
    "{requests: {unit: request}}",
    "{requests: {rate: 1000/hour, included: 10, overage: deny, warn_at: [80]}}",
    'routes: [{match: "*", consume: {requests: 1}}]',
)
FIRST_REQUEST = f"""
import asyncio, sys, threading
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
kit = MeterKit(loads({PLANS!r}), redis_url=sys.argv[1], flush=False)
imported = []

class ImportLog:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            imported.append(name)

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body"}})

async def receive():
    return {{"type": "http.request"}}

async def send(message):
    pass

async def serve():
    metered = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
    scope = {{"type": "http", "method": "GET", "path": "/", "headers": [(b"x-customer-id", b"acme")]}}
    sys.meta_path.insert(0, ImportLog())
    await metered(scope, receive, send)
    await asyncio.gather(*(kit.store.admin() for _ in range(3)))
    await asyncio.sleep(0.2)  # The background tasks run.
    usage = await kit.usage("acme")
    print("counted", usage["meters"]["requests"]["recorded"], "redis" in sys.modules, imported)
    await kit.stop()

asyncio.run(serve())
"""


def output_of(program: str, store_url: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    command = [sys.executable, "-c", program, store_url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.usefixtures("valkey")
@pytest.mark.dear("a fresh interpreter imports meterkit")
def test_the_first_request_imports_nothing_in_its_event_loop(store_url: str) -> None:
    """Imports took 150 ms, in which no other request was served; the store's timeout is 250 ms."""
    assert output_of(FIRST_REQUEST, store_url) == ["counted 1 True []"]


def test_handlers_are_called_at_once_where_loops_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store woke an event dispatcher that did not run: handlers were called 30 seconds late."""
    make, order = vars(EventDispatcher)["__init__"], count(1)

    def make_slowly(*arguments: Any) -> None:
        time.sleep(0.1 * next(order))  # As while its module is imported.
        make(*arguments)

    monkeypatch.setattr(EventDispatcher, "__init__", make_slowly)
    kit = MeterKit(loads(PLANS), redis_url="memory://", clock=Clock(NOW), shards=1, flush=False)
    started, handled = threading.Barrier(3), threading.Semaphore(0)

    @kit.on("usage.threshold")
    def note(_: object) -> None:
        handled.release()

    async def serve(number: int) -> bool:
        started.wait()
        async with kit:
            await asyncio.to_thread(started.wait)
            is_handled = True
            # The first event may come in time to be found at the start.
            for customer in ("acme", "globex") if number == 0 else ():
                await kit.record(customer, "requests", 9)
                is_handled = await asyncio.to_thread(handled.acquire, timeout=10)
            await asyncio.to_thread(started.wait)
            return is_handled

    def run(number: int) -> bool:
        return asyncio.run(serve(number))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(run, range(3)))


def test_threads_that_race_for_a_part_make_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(webhooks: Any, *_: Any, **__: Any) -> None:
        time.sleep(0.01)
        made.append(webhooks)

    monkeypatch.setattr("meterkit.subscriptions.webhooks.webhook_endpoint.Webhooks.__init__", make)
    kit, ready = MeterKit(loads(PLANS), redis_url="memory://", clock=Clock(NOW)), threading.Barrier(4)

    def use(_: int) -> object:
        ready.wait()
        return kit.webhooks

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(use, range(4))) == made * 4
    assert len(made) == 1
