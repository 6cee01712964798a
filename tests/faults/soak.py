"""A soak: apps, flushers, a store and Stripe, of which something fails all the time, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from time import monotonic, time
from typing import Any, Final, TypedDict

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from drivers.delivery import NOW, kit_for
from drivers.forked_command import forks
from faults.crashes import MISHAPS
from faults.proxy import TcpProxy
from meterkit import MeterKit, MeterMiddleware, StoreError, identify
from meterkit.catalog import loads
from meterkit.delivery import restored_store_comparer
from meterkit.store import store
from meterkit.testing import StripeEmulator
from servers.stores import Server, free_port, spawn_server

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  calls:  {unit: call, stripe: {event_name: api_requests, report: usage}}
  events: {unit: event, stripe: {event_name: ai_tokens, report: usage}}
  bursts: {unit: call}
routes:
  - {match: "GET /calls", consume: {calls: 1}}
  - {match: "GET /bursts", consume: {bursts: 1}, allotment: 250ms, on_store_failure: deny}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      calls:  {included: 1_000, overage: bill}
      events: {included: 1_000, overage: bill}
      bursts: {included: 500, overage: deny}
"""
SHARDS: Final = 4
# Stripe's summaries take two minutes; the emulator's do not.
_LAG_MS: Final = 500
# A disk that hangs for longer than a second has `record` return before anything is written, which it logs: a
# kill would lose that. Here the verdict is not to depend on the disk.
_SPOOL_S: Final = 60.0


class Place(TypedDict):
    """Where a process finds what it needs, and how far its clock is ahead."""

    store: str
    stripe: str
    spools: str
    ahead_s: float


def kit_of(place: Place, clock: Callable[[], float] | None = None) -> MeterKit:
    return kit_for(
        place["store"],
        place["stripe"],
        clock=clock or (lambda: time() + place["ahead_s"]),
        catalog=loads(PLANS),
        shards=SHARDS,
        store_timeout=0.25,
        start_timeout=0.5,
        flush_interval=0.05,
        spool_dir=Path(place["spools"]),
    )


def serve(place: Place, port: int) -> None:
    """Be an app: it meters ``/calls`` and ``/bursts``; ``/events`` records under the id of each, once."""
    logging.disable(logging.CRITICAL)
    setattr(store, "_SPOOL_WAIT_S", _SPOOL_S)  # noqa: B010 - as below
    kit = kit_of(place)

    async def calls(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def events(request: Request) -> Response:
        asked = request.query_params
        try:
            await kit.record(asked["customer"], "events", int(asked["quantity"]), event_id=asked["id"])
        except StoreError:
            return PlainTextResponse("not recorded", 503)
        return PlainTextResponse("recorded")

    app = Starlette(routes=[Route("/calls", calls), Route("/bursts", calls), Route("/events", events)])
    metered: Any = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
    uvicorn.run(metered, host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=5)


def deliver(place: Place) -> None:
    logging.disable(logging.CRITICAL)
    setattr(restored_store_comparer, "_LAG_MS", _LAG_MS)  # noqa: B010 - it is another one here, knowingly
    asyncio.run(_deliver(place))


async def _deliver(place: Place) -> None:
    async with kit_of(place) as kit, kit.flusher() as flusher:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, flusher.stop)
        await flusher.run(every_s=0.2)


CUSTOMERS: Final = tuple(f"c{n}" for n in range(24))
APPS: Final = 4
FLUSHERS: Final = 2
CLIENTS: Final = 8
HOT: Final = 2
"""Clients with allotments, who ask for much at once, each as one customer after the other."""
AT_ONCE: Final = 48
INCLUDED: Final = 500
"""What such a customer may have; see ``soak_process``."""
EVENTS: Final = {"calls": "api_requests", "events": "ai_tokens"}
# Each write is on the disk before it is acknowledged, so that a kill loses nothing.
KEEPS: Final = ("--appendonly", "yes", "--appendfsync", "always")
_PAUSE_S: Final = 0.02
_SETTLED_S: Final = 30.0
"""After so long an app has settled what it served, or has written it into its spool."""


@dataclass(slots=True, kw_only=True)
class Figures:
    """What came of it, in units.

    ``told`` events were told as recorded. Of each hot customer ``bursts`` has the answered calls, and those
    without a known end; ``spared`` are hot customers whose calls were all settled before an app was killed,
    or begun after it. ``keys`` are those that the store keeps, by kind. ``grown_kib``: by how much the memory
    of an app that nobody killed grew since a third of the time.
    """

    told: int = 0
    served: int = 0
    bursts: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]], repr=False)
    hot: dict[str, int] = field(default_factory=dict[str, int], repr=False)
    spared: set[str] = field(default_factory=set[str], repr=False)
    recorded: dict[str, int] = field(default_factory=dict[str, int])
    billed: dict[str, int] = field(default_factory=dict[str, int])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    keys: dict[str, int] = field(default_factory=dict[str, int])
    grown_kib: int = 0
    left: list[str] = field(default_factory=list[str])


class Soak:
    """It for a while, with a seed of what fails."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - a schedule, not a secret
        self.ahead_s = NOW.timestamp() - time()
        self.emulator = StripeEmulator(clock=self.clock)
        self.data, self.spools = directory / "data", directory / "spools"
        self.data.mkdir()
        self.port, self.ports = free_port(), [free_port() for _ in range(APPS)]
        self.figures = Figures()
        self.apps: list[ForkServerProcess] = []
        self.flushers: list[ForkServerProcess] = []
        self.over = asyncio.Event()
        self.kills_s: list[float] = []
        self.bursts_s: dict[str, tuple[float, float]] = {}  # When each was begun, and answered last.

    def clock(self) -> float:
        return time() + self.ahead_s

    async def last(self, span_s: float, *, every_s: float) -> Figures:
        """Have something fail at these intervals for so long, then let all come to its end."""
        for event in EVENTS.values():
            self.emulator.add_meter(event)
        for customer in CUSTOMERS:
            self.emulator.add_customer(f"cus_{customer}")
        async with AsyncExitStack() as stack:
            stripe = await stack.enter_async_context(self.emulator.serve())
            self.server = self._spawn()
            stack.callback(self._stop_server)
            self.proxy = await stack.enter_async_context(TcpProxy(self.port))
            self.place: Place = {
                "store": self.proxy.url,
                "stripe": stripe,
                "spools": str(self.spools),
                "ahead_s": self.ahead_s,
            }
            async with kit_of(self.place, self.clock) as kit:
                for customer in CUSTOMERS:
                    await kit.customers.link(customer, f"cus_{customer}", force=True)
                await kit.flush()
            stack.callback(self._kill_all)
            self.apps = [self._start(serve, port) for port in self.ports]
            self.flushers = [self._start(deliver) for _ in range(FLUSHERS)]
            clients = [asyncio.create_task(self._use(n)) for n in range(CLIENTS)]
            clients += [asyncio.create_task(self._burst(n)) for n in range(HOT)]
            await self._fail(span_s, every_s)
            self.over.set()
            await asyncio.gather(*clients)
            await self._end()
            await self._come_to_rest()
        return self.figures

    async def _use(self, number: int) -> None:
        """Be a client who asks again until it is told that its event is recorded."""
        random, asked = Random(number), 0  # noqa: S311 - as above
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
            while not self.over.is_set():
                asked += 1
                customer, quantity = random.choice(CUSTOMERS), random.choice((1, 3, 50))
                path = f"/events?customer={customer}&quantity={quantity}&id={number}-{asked}"
                while await self._ask(http, random, path, customer) != 200:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(_PAUSE_S)
                self.figures.told += quantity
                is_served = await self._ask(http, random, "/calls", customer) == 200
                self.figures.served += is_served
                await asyncio.sleep(_PAUSE_S)

    async def _burst(self, number: int) -> None:
        """Be customers who ask for much at once, one after the other, each until nothing is left."""
        random, nth = Random(number), 0  # noqa: S311 - as above
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
            while not self.over.is_set():
                statuses = await self._ask_at_once(http, random, f"hot-{number}-{nth}")
                nth += 429 in statuses and 200 not in statuses
            # No app is killed any more: what this one is answered is recorded in any case.
            last, statuses = f"hot-{number}-last", list[int]()
            while self.figures.bursts.get(last, (0, 0))[0] < 4 * AT_ONCE and 429 not in statuses:
                statuses = await self._ask_at_once(http, random, last)
                await asyncio.sleep(_PAUSE_S)

    async def _ask_at_once(self, http: aiohttp.ClientSession, random: Random, customer: str) -> list[int]:
        begun_s, _ = self.bursts_s.setdefault(customer, (monotonic(), 0.0))
        asks = (self._ask(http, random, "/bursts", customer) for _ in range(AT_ONCE))
        statuses = await asyncio.gather(*asks)
        self.bursts_s[customer] = begun_s, monotonic()
        served, unknown = self.figures.bursts.get(customer, (0, 0))
        self.figures.bursts[customer] = served + statuses.count(200), unknown + statuses.count(0)
        return statuses

    async def _ask(self, http: aiohttp.ClientSession, random: Random, path: str, customer: str) -> int:
        port = random.choice(self.ports)
        with suppress(aiohttp.ClientError, OSError):
            async with http.get(
                f"http://127.0.0.1:{port}{path}", headers={"x-customer-id": customer}
            ) as answer:
                return answer.status
        return 0

    async def _fail(self, span_s: float, every_s: float) -> None:
        begun, grown = monotonic(), 0
        while (passed_s := monotonic() - begun) < span_s:
            await asyncio.sleep(every_s * self.random.uniform(0.5, 1.5))
            kind = self.random.choice(("stripe", "stripe", "proxy", "proxy", "app", "flusher", "store"))
            self.figures.faults[kind] = self.figures.faults.get(kind, 0) + 1
            await getattr(self, f"_fail_{kind}")()
            if not grown and passed_s > span_s / 3:
                grown = _memory_kib(self.apps[0])
        self.figures.grown_kib = _memory_kib(self.apps[0]) - grown

    async def _fail_stripe(self) -> None:
        self.emulator.fail_next(times=self.random.randint(1, 5), **self.random.choice(MISHAPS))

    async def _fail_proxy(self) -> None:
        mode: Any = self.random.choice(("reset", "refuse", "blackhole", "drop_reply", "cut"))
        await self.proxy.set(mode, cut_after=3)
        await asyncio.sleep(self.random.uniform(0.05, 0.6))
        await self.proxy.set("pass")

    async def _fail_app(self) -> None:
        # The first one lives, so that its memory can be looked at.
        which = self.random.randrange(1, APPS)
        self.kills_s.append(monotonic())
        await _kill(self.apps[which])
        self.apps[which] = self._start(serve, self.ports[which])

    async def _fail_flusher(self) -> None:
        which = self.random.randrange(FLUSHERS)
        await _kill(self.flushers[which])
        self.flushers[which] = self._start(deliver)

    async def _fail_store(self) -> None:
        self.server.signal(signal.SIGKILL)
        self.server.process.wait()
        await asyncio.sleep(self.random.uniform(0.0, 0.5))
        self.server = await asyncio.to_thread(self._spawn)

    def _spawn(self) -> Server:
        return spawn_server(*KEEPS, port=self.port, directory=self.data)

    def _stop_server(self) -> None:
        self.server.stop()

    def _start(self, work: Any, *more: Any) -> ForkServerProcess:
        process = forks().Process(target=work, args=(self.place, *more))
        process.start()
        return process

    def _kill_all(self) -> None:
        for process in (*self.apps, *self.flushers):
            process.kill()

    async def _end(self) -> None:
        """Have all processes end by themselves, as a deployment does."""
        self.emulator.clear_faults()
        for process in (*self.apps, *self.flushers):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        for process in (*self.apps, *self.flushers):
            await asyncio.to_thread(process.join, 30)

    async def _come_to_rest(self) -> None:
        """What is spooled is sent, what waits is delivered; then everything is counted."""
        async with kit_of(self.place, self.clock) as kit:
            for _ in range(200):
                if not list(self.spools.glob("*.spool")):
                    break
                await asyncio.sleep(0.1)
            spooled = [path.name for path in self.spools.glob("*.spool")]
            for _ in range(12):
                for shard in range(SHARDS):
                    self.server.ask("DEL", f"mk:{{{shard}}}:lease")  # Of those that were killed.
                self.figures.left = spooled + await _flush(kit)
                if not self.figures.left:
                    break
                self.ahead_s += 180
            for customer in CUSTOMERS:
                meters = (await kit.usage(customer))["meters"]
                for meter, event_name in EVENTS.items():
                    recorded, billed = self.figures.recorded, self.figures.billed
                    recorded[meter] = recorded.get(meter, 0) + meters[meter]["recorded"]
                    found = int(self.emulator.accepted(f"cus_{customer}", event_name))
                    billed[meter] = billed.get(meter, 0) + found
                    assert found == meters[meter]["recorded"], (customer, meter)
            for customer in self.figures.bursts:
                self.figures.hot[customer] = (await kit.usage(customer))["meters"]["bursts"]["recorded"]
            self.figures.spared = {
                customer
                for customer, (begun_s, ended_s) in self.bursts_s.items()
                if not any(begun_s <= at_s <= ended_s + _SETTLED_S for at_s in self.kills_s)
            }
        for key in self.server.ask("KEYS", "*"):
            if "hot-" in key:
                continue
            kind = key.split(":")[2] if "{" in key else key
            self.figures.keys[kind] = self.figures.keys.get(kind, 0) + 1


async def _flush(kit: MeterKit) -> list[str]:
    try:
        report = await kit.flush(everything=True, timeout_s=0)
    except StoreError as error:
        return [str(error)]
    left = [f"{one.quantity} of {one.customer}: {one.why}" for one in report.undelivered]
    return left + [f"{report.left} left: {report.why}"] * bool(report.left)


async def _kill(process: ForkServerProcess) -> None:
    process.kill()
    await asyncio.to_thread(process.join)


def _memory_kib(process: ForkServerProcess) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))
