"""Captures that grants and credits pay: whatever happens on the way, the ledger adds up to the balance."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from drivers.counters import paid_by
from drivers.delivery import NOW
from drivers.sampled import whole
from faults.proxy import TcpProxy
from faults.refusals import eventually, killing, lane_of, left_in_doubt, settled
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import StoreError
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from servers.stores import Server

pytestmark = pytest.mark.anyio

MICRO = {"input_tokens": 1_000, "output_tokens": 4_000}
INCLUDED = {"input_tokens": 400, "output_tokens": 100}
GRANTED = {"input_tokens": 0, "output_tokens": 300}
CREDITS = {"rich": 9_000, "poor": 3, "spent": 1}
PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
credits:
  ai: {costs: {input_tokens: 1 per 1000, output_tokens: 4 per 1000}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      input_tokens:  {included: 400, overage: deny}
      output_tokens: {included: 100, overage: deny}
"""


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port) as proxy:
        yield proxy


@dataclass
class Books:
    """Three customers who capture what they have reserved, and what that must come to.

    Attributes:
        auditor: reaches the store past all trouble.
    """

    kit: MeterKit
    auditor: MeterKit
    dice: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - not secret
    spent: dict[str, dict[str, int]] = field(
        default_factory=lambda: {customer: dict.fromkeys(MICRO, 0) for customer in CREDITS}
    )
    open: list[tuple[asyncio.Event, asyncio.Task[None]]] = field(
        default_factory=list[tuple[asyncio.Event, "asyncio.Task[None]"]]
    )

    @property
    def lane(self) -> Any:
        return lane_of(self.kit)

    async def begin(self, count: int) -> None:
        """Reserve, so many times; the blocks stay open."""
        begun = [asyncio.Event() for _ in range(count)]
        for event in begun:
            go = asyncio.Event()
            self.open.append((go, asyncio.create_task(self._stream(event, go))))
        await asyncio.gather(*(event.wait() for event in begun))

    def capture(self, count: int) -> list[asyncio.Task[None]]:
        """Capture in so many of the open blocks, at once."""
        ended, self.open = self.open[:count], self.open[count:]
        for go, _ in ended:
            go.set()
        return [task for _, task in ended]

    async def _stream(self, begun: asyncio.Event, go: asyncio.Event) -> None:
        customer = self.dice.choice(list(CREDITS))
        # Of either meter in steps of equal worth: no rest of a credit is too small for what waits.
        spent = {"input_tokens": 4 * self.dice.randrange(60), "output_tokens": self.dice.randrange(60)}
        while True:
            try:
                async with self.kit.reserve(customer, {"input_tokens": 4, "output_tokens": 1}) as reservation:
                    begun.set()
                    await go.wait()
                    for meter, quantity in spent.items():
                        self.spent[customer][meter] += quantity
                    await reservation.capture(spent)
                    return
            except StoreError:
                if begun.is_set():
                    raise  # Else a busy machine was too slow for the decision.

    async def balance(self) -> None:
        """That everything is recorded once and paid once, and nothing is held."""
        assert self.open == []
        await settled(self.kit)
        assert self.lane.lost == 0
        for customer, credits_ in CREDITS.items():
            usage = await self.auditor.usage(customer)
            needed = burned = 0
            for meter, spent in self.spent[customer].items():
                row = usage["meters"][meter]
                assert (row["recorded"], row["held"]) == (spent, 0)
                included, granted, credited, over = await paid_by(self.auditor, customer, meter)
                assert included == min(spent, INCLUDED[meter])
                assert granted == min(spent - included, GRANTED[meter])
                assert credited + over == spent - included - granted
                needed += (credited + over) * MICRO[meter]
                burned += credited * MICRO[meter]
            assert burned == min(needed, credits_ * 10**6)
            assert (needed > burned) == (customer != "rich")
            assert usage["balance"] == {"ai": (credits_ * 10**6 - burned) // 10**6}
            lines = await self.auditor.grants.ledger(customer)
            assert sum(line.quantity for line in lines if line.name == "ai") == credits_ * 10**6 - burned


@asynccontextmanager
async def books_on(url: str, direct: str, *, timeout_s: float = 10.0) -> AsyncGenerator[Books]:
    clock = Clock(NOW)

    def kit_on(at: str, store_timeout: float) -> MeterKit:
        return MeterKit(
            loads(PLANS), clock=clock, redis_url=at, flush=False, shards=4, store_timeout=store_timeout
        )

    async with AsyncExitStack() as stack:
        auditor = await stack.enter_async_context(kit_on(direct, 10.0))
        kit = await stack.enter_async_context(kit_on(url, timeout_s))
        for customer, credits_ in CREDITS.items():
            for n, quantities in enumerate(({"output_tokens": 300}, {"ai": credits_})):
                await auditor.grants.add(customer, quantities, grant_id=f"{customer}-{n}")
        yield Books(kit, auditor)


@pytest.mark.parametrize(
    "mode",
    ["drop_reply", "cut", *(whole(mode) for mode in ("reset", "refuse"))],
)
async def test_i3_captures_whose_replies_are_lost_are_paid_once(
    proxy: TcpProxy, valkey: Server, mode: Any
) -> None:
    async with books_on(proxy.url, valkey.url, timeout_s=0.25) as books:
        for cut_after in (1, 33):
            await books.begin(45)
            captures = books.capture(15)
            await asyncio.sleep(0)
            await proxy.set(mode, cut_after=cut_after)
            captures += books.capture(15)
            await eventually(lambda: not books.lane.connected)
            captures += books.capture(15)
            valkey.command("SCRIPT", "FLUSH")
            await proxy.set("pass")
            await eventually(lambda: books.lane.connected)
            await asyncio.gather(*captures)
        await books.balance()


@pytest.mark.dear("five hundred captures")
async def test_i3_captures_on_killed_connections_are_paid_once(valkey: Server) -> None:
    # F-87: a server that works off all that it was sent before it kills leaves nothing in doubt.
    doubts: list[tuple[int, int]] = []
    async with books_on(valkey.url, valkey.url) as books:
        for _ in range(5):
            await books.begin(100)
            producers = [queue.producer for queue in books.lane.queues]
            with killing(valkey):
                captures = books.capture(80)
                while sum(len(producer.inflight) for producer in producers) < 80:  # noqa: ASYNC110
                    await asyncio.sleep(0)  # Tasks of this loop only: nothing else tells.
                await asyncio.sleep(0)  # What is asked leaves at the end of the tick.
            captures += books.capture(20)
            await asyncio.gather(*captures)
            doubts.append(left_in_doubt(valkey, producers))
        assert sum(unheard for unheard, _ in doubts) > 0
        assert sum(unapplied for _, unapplied in doubts) > 0
        await books.balance()
