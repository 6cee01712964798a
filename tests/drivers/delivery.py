"""A kit, a Stripe emulator and one clock for both: what tests of delivery hold in their hands."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, time
from typing import Any, Final, Literal, TypeAlias

import anyio
import pytest

from drivers.near_stripe import served
from drivers.plans import plans_text
from meterkit import MeterKit
from meterkit.catalog import Catalog, loads
from meterkit.cli.delivery import late_lines, undelivered_lines
from meterkit.customers.links import StripeLinker
from meterkit.decisions.keys import meter_token
from meterkit.delivery.flush_report import FlushReport
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.flusher_setup import StripeTransport
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.delivery.summaries import StripeSummaries
from meterkit.delivery.usage_cutter import deliver_customer
from meterkit.outbox.intents import SealedIntent
from meterkit.outbox.outbox import Outbox
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator

Caplog: TypeAlias = pytest.LogCaptureFixture
STRIPE_KEY: Final = "sk_test_51SECRETsecretSECRETsecret"
# Later than the tests run: the server expires keys by its own clock, whatever clock the scripts go by.
NOW: Final = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
PLANS: Final = plans_text("delivery")
CATALOG: Final = loads(PLANS)
# The plans file in which the meter of requests is called calls.
RENAMED: Final = loads(PLANS.replace("requests:", "calls:").replace("{requests: 1}", "{calls: 1}"))
EVENTS: Final = ("api_requests", "ai_tokens", "pdf_pages")
# What may become of a call, as ``emulator.fail_next`` takes it: its usage is counted once all the same.
FAULTS: Final[tuple[Mapping[str, Any], ...]] = (
    {"action": "drop", "when": "before"},
    {"action": "drop", "when": "after"},
    {"action": "reset", "when": "after"},
    {"action": "error", "when": "before", "status": 500},
    {"action": "error", "when": "after", "status": 500},
    {"action": "error", "when": "after", "status": 503},
    {"action": "error", "when": "before", "status": 429},
    {"action": "error", "when": "before", "status": 409},
)
KEY_REFUSED: Final[Mapping[str, Any]] = {"action": "error", "when": "before", "status": 401}


class RunningClock:
    """A clock that goes on by itself from an instant of the test's choice."""

    def __init__(self, start: datetime = NOW) -> None:
        self._start_s = start.timestamp() - monotonic()

    def __call__(self) -> float:
        return self._start_s + monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """All that a test of delivery looks at. ``url`` is the emulator's.

    ``flusher`` keeps its connections from one flush to the next, which ``kit.flush`` does not.
    """

    kit: MeterKit
    emulator: StripeEmulator
    clock: Clock
    url: str
    store_url: str
    flusher: Flusher
    transport: StripeTransport

    async def flush(
        self, *, everything: bool = False, timeout_s: float = 20.0, after: timedelta | None = None
    ) -> FlushReport:
        """Flush, when that time has passed if one is given."""
        if after is not None:
            self.clock.advance(after)
        return await self.flusher.flush(everything=everything, timeout_s=timeout_s)

    async def flush_times(self, times: int, *, every: timedelta) -> None:
        """Flush everything so often, and let that time pass after each."""
        for _ in range(times):
            await self.flush(everything=True, timeout_s=0)
            self.clock.advance(every)

    async def record_and_flush(
        self,
        requests: int,
        customer: str = "acme",
        *,
        timeout_s: float = 20.0,
        after: timedelta | None = None,
    ) -> FlushReport:
        """Record requests of a customer, and flush everything, at once or after some time."""
        await self.kit.record(customer, "requests", requests)
        return await self.flush(everything=True, timeout_s=timeout_s, after=after)

    async def deliver(self, customer: str, *, timeout_s: float) -> bool:
        """Deliver a customer's usage at once, as before the invoice that ends a subscription."""
        return await deliver_customer(self.kit.store, self.kit.flusher(), customer, timeout_s=timeout_s)

    async def link(self, *customers: str) -> None:
        """Link customers to Stripe customers of the same name, without a request to Stripe."""
        for customer in customers:
            self.emulator.add_customer(f"cus_{customer}")
            await StripeLinker(self.kit.store).make(customer, f"cus_{customer}")

    async def use(self, *customers: str, requests: int) -> None:
        """Link customers, and record requests of each."""
        await self.link(*customers)
        for customer in customers:
            await self.kit.record(customer, "requests", requests)

    def accepted(self, customer: str, event_name: str = "api_requests") -> int:
        return int(self.emulator.accepted(f"cus_{customer}", event_name))

    async def places(self, customer: str = "acme", meter: str = "requests") -> dict[str, int]:
        """Where a customer's reportable usage is, zeros left out."""
        found: Any = (await self.kit.usage(customer))["meters"][meter]
        names = ("pending", "queued", "leased", "parked", "delivered", "dead")
        return {name: found[name] for name in names if found[name]}

    async def seal(self, shard: int = 0) -> int:
        outbox = Outbox(self.kit.store, await self.kit.store.admin())
        return (await outbox.seal(shard, due_ms=None, most=50)).intents

    async def totals(self, customer: str) -> dict[str, int]:
        """What is kept of periods and deliveries, by ``PERIOD|FIELD``."""
        admin = await self.kit.store.admin()
        client: Any = admin.client
        found = await client.hgetall(self.kit.store.keys.customer(customer).totals)
        return {name.decode(): int(value) for name, value in found.items()}


async def deliver(kit: MeterKit, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport:
    """Send what is due, without the rest of a pass of delivery: closes, webhooks and the like."""
    async with kit.flusher() as flusher:
        return await flusher.flush(everything=everything, timeout_s=timeout_s)


@asynccontextmanager
async def desk(
    store_url: str,
    *,
    clock: Any = None,
    catalog: Catalog = CATALOG,
    events: Sequence[str] = EVENTS,
    **settings: Any,
) -> AsyncGenerator[Desk]:
    """A kit on ``store_url`` whose Stripe is an emulator with meters of these events, reached over HTTP."""
    clock = clock or Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    for event in events:
        emulator.add_meter(event)
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, catalog=catalog, **settings) as kit,
        aclosing_transport(url, kind=kit.settings.stripe_transport, clock=clock) as transport,
        summaries_of(kit) as summaries,
    ):
        yield Desk(
            kit=kit,
            emulator=emulator,
            clock=clock,
            url=url,
            store_url=store_url,
            flusher=Flusher(kit.store, transport, summaries=summaries),
            transport=transport,
        )


@asynccontextmanager
async def aclosing_transport(
    stripe_url: str, *, timeout_s: float = 10.0, kind: str = "v1", clock: Callable[[], float] = time
) -> AsyncGenerator[StripeTransport]:
    transport: StripeTransport
    if kind == "v1":
        transport = StripeV1Transport(STRIPE_KEY, api_base=stripe_url, timeout_s=timeout_s)
    else:
        transport = StripeStreamTransport(STRIPE_KEY, api_base=stripe_url, timeout_s=timeout_s, clock=clock)
    try:
        yield transport
    finally:
        await transport.close()


def kit_for(
    store_url: str,
    stripe_url: str,
    *,
    clock: Callable[[], float],
    catalog: Catalog = CATALOG,
    **settings: Any,
) -> MeterKit:
    """A kit that delivers to an emulator; its flusher runs when it is told to."""
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 60.0, "stripe_api_key": STRIPE_KEY}
    given |= settings
    return MeterKit(catalog, clock=clock, redis_url=store_url, stripe_api_base=stripe_url, **given)


@asynccontextmanager
async def api_of(kit: MeterKit) -> AsyncGenerator[StripeApi]:
    """The kit's way to Stripe, of its own."""
    api = StripeApi(kit.settings)
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def summaries_of(kit: MeterKit) -> AsyncGenerator[StripeSummaries]:
    """What the kit reads of Stripe's summaries."""
    summaries = StripeSummaries(StripeApi(kit.settings))
    try:
        yield summaries
    finally:
        await summaries.close()


class WatchedTransport:
    """A transport that calls something before each call: with the intents."""

    def __init__(self, inner: Any, before: Callable[[Any], None]) -> None:
        self._inner, self.before = inner, before
        self.events_per_call, self.ready, self.close = inner.events_per_call, inner.ready, inner.close

    async def send(self, *intents: Any) -> Any:
        self.before(intents)
        return await self._inner.send(*intents)


def flusher_of(kit: MeterKit, transport: Any, **options: Any) -> Flusher:
    """A flusher of its own, which knows nothing yet, as a new process has one."""
    return Flusher(kit.store, transport, **options)


def lines_of(report: FlushReport, what: Literal["late", "undelivered"]) -> list[str]:
    return list(late_lines(report) if what == "late" else undelivered_lines(report))


def sealed(identifier: str, value: int, timestamp: int, **more: Any) -> SealedIntent:
    """An intent of acme's, as an outbox keeps it."""
    given: dict[str, Any] = {
        "customer": "acme",
        "stripe_customer": "cus_acme",
        "period": "0",
        "meter_token": "",
        "event_name": "api_requests",
        "key": identifier,
        "sealed_ms": 0,
    }
    return SealedIntent(identifier=identifier, value=value, timestamp=timestamp, **given | more)


async def have_at_stripe(
    at: Desk,
    quantity: int,
    *,
    minute: datetime = NOW - timedelta(hours=1),
    customer: str = "cus_acme",
    event_name: str = "api_requests",
) -> None:
    """Deliver what the store does not know of, such as what it has forgotten."""
    await send_past(at.transport, quantity, minute, customer, event_name)


async def send_past(
    transport: StripeTransport,
    quantity: int,
    minute: datetime,
    customer: str = "cus_acme",
    event_name: str = "api_requests",
) -> None:
    """Send an event past the kit, as another system does."""
    second = int(minute.replace(second=0).timestamp())
    name = f"forgotten-{second}-{quantity}"
    intent = sealed(name, quantity, second, stripe_customer=customer, event_name=event_name)
    assert (await transport.send(intent)).delivered


def delivered(totals: dict[str, int], period: datetime, meter: str, kind: str = "d") -> int:
    """What became of a meter's usage in the period that began then; ``kind`` as the store spells it."""
    return totals.get(f"{int(period.timestamp() * 1000)}|{meter_token(meter)}{kind}", 0)


def alerts(caplog: Caplog) -> list[str]:
    """The errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def said_late(caplog: Caplog) -> list[str]:
    """What the log says of late usage: how much, and what becomes of it."""
    return [
        line.partition("; ")[2].removesuffix(" (billing.late_usage)")
        for line in caplog.messages
        if line.startswith("late usage of customer 'acme': the invoice of its period from ")
    ]


async def until(condition: Callable[[], bool], *, within_s: float = 120.0) -> None:
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another process or thread
            await anyio.sleep(0.005)
