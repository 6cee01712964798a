"""A life of a store, flushers and Stripe, drawn from a seed: what was recorded, and what is billed for it."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Final, Literal, TypedDict

from drivers.delivery import FAULTS, NOW, aclosing_transport, kit_for, summaries_of
from drivers.forked_command import die_at, forks
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.decisions.periods import bounds_at
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.outbox.outbox import Outbox
from meterkit.testing import StripeEmulator
from servers.stores import Server

STEPS: Final = ("lease", "seal", "due", "attempt", "send", "settle")
"""All that a flusher does, from taking a shard to acknowledging what Stripe has."""

WHENS: Final = ("before", "during", "after")
TIMEOUT_S: Final = 0.3
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Crash(TypedDict):
    """Where a process is ended, or stopped until somebody has it go on: at which time that it gets there."""

    how: Literal["kill", "stop"]
    step: str
    when: str
    nth: int


class Life(TypedDict):
    """What a process is told: addresses, the file of the clock, and where it crashes, if anywhere."""

    store: str
    stripe: str
    plans: str
    clock: str
    transport: Literal["v1", "v2-stream"]
    shards: int
    crash: Crash | None


class SharedClock:
    """A clock of several processes, in a file; it gives Unix seconds until one of them moves it."""

    def __init__(self, file: Path | str, start_s: float | None = None) -> None:
        if start_s is not None:
            Path(file).write_bytes(struct.pack("d", start_s))
        with Path(file).open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)

    def __call__(self) -> float:
        found: float = struct.unpack_from("d", self._map)[0]
        return found

    @property
    def now_ms(self) -> int:
        return int(self() * 1000)

    def advance(self, by_s: float) -> None:
        self._map[:] = struct.pack("d", self() + by_s)


def flush(life: Life) -> None:
    if life["crash"] is not None:
        crash: Crash = life["crash"]
        owner: Any = Outbox
        if crash["step"] == "send":
            owner = StripeStreamTransport if life["transport"] == "v2-stream" else StripeV1Transport
        die_at(owner, crash["step"], crash["when"], nth=crash["nth"], by=_SIGNALS[crash["how"]])
    asyncio.run(_flush(life))


async def _flush(life: Life) -> None:
    clock = SharedClock(life["clock"])
    async with (
        kit_for(
            life["store"], life["stripe"], clock=clock, catalog=loads(life["plans"]), shards=life["shards"]
        ) as kit,
        aclosing_transport(
            life["stripe"], timeout_s=TIMEOUT_S, kind=life["transport"], clock=clock
        ) as transport,
        summaries_of(kit) as summaries,
    ):
        flusher = Flusher(kit.store, transport, timeout_s=TIMEOUT_S, summaries=summaries)
        await flusher.flush(everything=True, timeout_s=0)


PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  requests: {unit: request, stripe: {event_name: api_requests, report: usage}}
  tokens:   {unit: token, stripe: {event_name: ai_tokens, report: usage}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 100, overage: bill}
      tokens:   {included: 100, overage: bill}
"""
EVENTS: Final = {"requests": "api_requests", "tokens": "ai_tokens"}
# Longer than a flusher waits for an answer: it comes, and takes effect, after the next try.
LATE_S: Final = 0.45
MISHAPS: Final[tuple[Mapping[str, Any], ...]] = (
    *FAULTS,
    {"action": "delay", "when": "after", "delay_s": 0.01},
    {"action": "delay", "when": "after", "delay_s": LATE_S},
    {"action": "delay", "when": "before", "delay_s": LATE_S},
)
MINUTE_S: Final = 60
HOUR_S: Final = 3_600
MONTH_S: Final = 25 * 24 * HOUR_S  # At most, as Stripe takes nothing that is older than 35 days.
_SENDING: Final = ("send", "settle")
_PATIENCE_S: Final = 120.0
# Long enough for each comparison: 26 hours after the first try, and ten minutes later again; twice.
_REST_S: Final = (3 * MINUTE_S, 27 * HOUR_S, *[11 * MINUTE_S] * 3, 27 * HOUR_S, *[11 * MINUTE_S] * 3)

# Each seed begins with the next of these, and of the faults, so that none is left to chance.
POINTS: Final = tuple(product(STEPS, WHENS))

Place = tuple[str, str, int]
"""Customer, meter, and the first instant of the billing period (ms)."""


@dataclass(slots=True, kw_only=True)
class Ended:
    """What came of a seed: units as recorded, units as Stripe counted them, and what is not delivered."""

    recorded: dict[Place, int]
    billed: dict[Place, int]
    left: list[str]


@dataclass(slots=True)
class Drawn:
    """A life, step by step. ``seed`` says all that is drawn; store and emulator are empty."""

    seed: int
    server: Server
    stripe: str
    emulator: StripeEmulator
    clock: SharedClock
    file: Path
    random: Random = field(init=False)
    life: Life = field(init=False)
    customers: list[str] = field(init=False)
    recorded: dict[Place, int] = field(default_factory=dict[Place, int])
    is_new: bool = True
    is_late: bool = False

    def __post_init__(self) -> None:
        self.random = random = Random(self.seed)  # noqa: S311 - a schedule, not a secret
        self.customers = [f"c{n}" for n in range(random.randint(1, 5))]
        self.life = {
            "store": self.server.url,
            "stripe": self.stripe,
            "plans": PLANS,
            "clock": str(self.file),
            "transport": random.choice(("v1", "v2-stream")),
            "shards": random.choice((1, 1, 3)),
            "crash": None,
        }

    async def lead(self) -> Ended:
        """Live it, to the end in which nothing fails any more."""
        async with self.begin() as kit:
            for _ in range(self.random.randint(1, 3)):
                await self.record(kit)
                self._fail()
                await self._flush_and_crash(kit)
                await self.wait(self.random.choice((1, 30, 70, 400, 2 * HOUR_S, 25 * HOUR_S)))
                if self.random.random() < 0.25:
                    await self._end_of_month()
            return await self.end(kit)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[MeterKit]:
        """A kit to record by, and customers whom Stripe knows."""
        for event in EVENTS.values():
            self.emulator.add_meter(event)
        catalog = loads(PLANS)
        async with kit_for(
            self.server.url, self.stripe, clock=self.clock, catalog=catalog, shards=self.life["shards"]
        ) as kit:
            for customer in self.customers:
                self.emulator.add_customer(f"cus_{customer}")
                await kit.customers.link(customer, f"cus_{customer}", force=True)
            yield kit

    async def end(self, kit: MeterKit) -> Ended:
        """Have all delivered; what came of it."""
        self.emulator.clear_faults()
        left: list[str] = []
        for span_s in _REST_S:
            self.expire_leases()
            report = await kit.flush(everything=True, timeout_s=0)
            left = [f"{one.quantity} of {one.customer} {one.state}: {one.why}" for one in report.undelivered]
            left += [f"{report.left} left: {report.why}"] * bool(report.left)
            if not left:
                break
            await self.wait(span_s)
        return Ended(recorded=self.recorded, billed=self._billed(), left=left)

    async def record(self, kit: MeterKit) -> None:
        start_ms = bounds_at(self.clock.now_ms).start_ms
        for _ in range(self.random.randint(1, 6)):
            customer, meter = self.random.choice(self.customers), self.random.choice(list(EVENTS))
            quantity = self.random.choice((1, 3, 50, 700, 10**9))
            await kit.record(customer, meter, quantity)
            place = (customer, meter, start_ms)
            self.recorded[place] = self.recorded.get(place, 0) + quantity

    def _fail(self) -> None:
        for nth in range(self.random.randint(0, 3) or self.is_new):
            fault = dict(
                MISHAPS[self.seed % len(MISHAPS)] if self.is_new and nth == 0 else self.random.choice(MISHAPS)
            )
            self.is_late = self.is_late or fault.get("delay_s") == LATE_S
            self.emulator.fail_next(skip=self.random.choice((0, 0, 1, 2)), **fault)

    async def _flush_and_crash(self, kit: MeterKit) -> None:
        """One flusher or two, each with a crash of its own; who stands goes on when another has been."""
        crashes = [self._draw_crash() for _ in range(self.random.choice((1, 1, 2)))]
        if self.is_new:
            step, when = POINTS[self.seed % len(POINTS)]
            crashes[0] = {"how": "kill", "step": step, "when": when, "nth": 1}
        self.is_new = False
        processes = [self.start(crash) for crash in crashes]
        standing = [process for process in processes if await self.ends(process) == "stopped"]
        self.expire_leases()
        if not standing:
            return
        # Between its last look at the clock and the first byte nothing stands for a day.
        may_be_sending = self.life["shards"] > 1 or any(crash["step"] in _SENDING for crash in crashes)
        day_s = 2 * HOUR_S if may_be_sending else 25 * HOUR_S
        await self.wait(self.random.choice((0, 70, 2 * HOUR_S, day_s)))
        if self.random.random() < 0.3:
            await self.record(kit)
        other = self.start(self._draw_crash("kill") if self.random.random() < 0.4 else None)
        assert await self.ends(other) == "ended"
        self.expire_leases()
        if self.random.random() < 0.5:
            self._fail()
        for process in standing:
            await self.go_on(process)
        self.expire_leases()

    def _draw_crash(self, how: Literal["kill", "stop"] | None = None) -> Crash:
        return {
            "how": how or self.random.choices(("kill", "stop"), (3, 1))[0],
            "step": self.random.choice(STEPS),
            "when": self.random.choice(WHENS),
            "nth": self.random.choice((1, 1, 1, 2, 3)),
        }

    def start(self, crash: Crash | None) -> ForkServerProcess:
        process = forks().Process(target=flush, args=({**self.life, "crash": crash},))
        process.start()
        return process

    async def ends(self, process: ForkServerProcess) -> str:
        """Wait until a process is gone, or stands."""
        deadline = monotonic() + _PATIENCE_S
        while process.exitcode is None:
            if _state(process.pid) == "T":
                return "stopped"
            if monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"seed {self.seed}: a flusher does not come to its end")
            await asyncio.sleep(0.004)
        code = process.exitcode
        process.close()
        assert code in {0, -signal.SIGKILL}, f"seed {self.seed}: a flusher ended with {code}"
        return "ended"

    async def go_on(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)
        assert await self.ends(process) == "ended"

    def expire_leases(self) -> None:
        """What a minute does, in which nobody who lives has them."""
        for shard in range(self.life["shards"]):
            self.server.ask("DEL", f"mk:{{{shard}}}:lease")

    async def wait(self, span_s: float) -> None:
        """Let time pass; nothing that is on its way takes a day."""
        is_long = self.is_late and span_s > 2 * HOUR_S
        await asyncio.sleep(LATE_S if is_long else 0.02)
        self.clock.advance(span_s)

    async def _end_of_month(self) -> None:
        end_s = bounds_at(self.clock.now_ms).end_ms / 1000
        ahead_s = end_s - self.random.choice((90, 30, 0, -1)) - self.clock()
        if 0 < ahead_s < MONTH_S:
            await self.wait(ahead_s)

    def _billed(self) -> dict[Place, int]:
        meters, found = {event: meter for meter, event in EVENTS.items()}, dict[Place, int]()
        for event in self.emulator.events:
            start_ms = bounds_at(event.timestamp * 1000).start_ms
            place = (event.customer.removeprefix("cus_"), meters[event.event_name], start_ms)
            found[place] = found.get(place, 0) + int(event.value)
        return found


def _state(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def start_of(seed: int) -> float:
    """When a life begins: somewhere in a month, or just before its end."""
    random = Random(-seed - 1)  # noqa: S311 - a schedule, not a secret
    return (NOW + timedelta(minutes=random.choice((0, 7 * 24 * 60, 20 * 24 * 60 + 11 * 60 + 56)))).timestamp()
