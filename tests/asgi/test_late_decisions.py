"""Decisions that are heard too late: what they held, and what rates counted of it, is given back."""

# pyright: reportPrivateUsage=false
# Whether the last late reply has come is asked of the connections, which nothing shows.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from drivers.delivery import NOW
from drivers.llm_apps import openai_stream, read_all
from drivers.sampled import pairs
from faults.proxy import TcpProxy
from faults.refusals import eventually, settled
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.errors import StoreError
from meterkit.testing import Clock
from tokens.recordings import chat, compact, sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.each_loop]

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
  seconds:       {unit: second}
credits:
  ai: {costs: {input_tokens: 1 per 1000, output_tokens: 4 per 1000}}
routes:
  - match: "/deny"
    consume: {requests: 1}
    usage: auto
    reserve: &reserve {output_tokens: {from: max_tokens, default: 100, ceiling: 1000}}
    on_store_failure: deny
  - {match: "/allow", consume: {requests: 1}, usage: auto, reserve: *reserve, on_store_failure: allow}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:      {rate: 100/hour, concurrency: 5}
      input_tokens:  {included: 100_000, overage: deny}
      output_tokens: {rate: [5000/hour, 20_000/day], included: 100_000, overage: deny}
      seconds:       {included: 60, overage: deny}
  rated:
    rank: 5
    price: {amount_cents: 0, interval: month}
    meters:
      requests:      {rate: 100/hour}
      output_tokens: {rate: 5000/hour}
  prepaid:
    extends: free
    meters:
      output_tokens: {rate: [5000/hour, 20_000/day], included: 0, overage: deny}
"""
RESERVED, SPENT, PROMPT = 400, 150, 4
BODY = compact(
    {"model": "m", "messages": [{"role": "user", "content": "0123456789ab"}], "max_tokens": RESERVED}
)
Heard = Literal["made at once", "made late"]


class Slow(TcpProxy):
    """Keeps replies, or requests, until they are let through."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.replies = asyncio.Event()
        self.replies.set()

    async def keep(self, heard: Heard) -> None:
        if heard == "made late":
            await self.set("blackhole")
        else:
            self.replies.clear()

    async def let_through(self) -> None:
        self.replies.set()
        await self.set("pass")

    async def _pass_reply(self, chunk: bytes, to_client: asyncio.StreamWriter) -> bool:
        await self.replies.wait()
        return await super()._pass_reply(chunk, to_client)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as a language model does, and tell how much it was."""
    del scope
    await read_all(receive)
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    spent = {"prompt_tokens": PROMPT, "completion_tokens": SPENT, "total_tokens": PROMPT + SPENT}
    for chunk in (*openai_stream("Hello"), sse({**chat(None), "usage": spent})):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A kit over a slow network, and one that looks past it."""

    kit: MeterKit
    auditor: MeterKit
    proxy: Slow
    client: httpx.AsyncClient

    async def row(self, meter: str = "output_tokens") -> tuple[int, int]:
        """Recorded, and held."""
        found = (await self.auditor.usage("acme"))["meters"][meter]
        return found["recorded"], found["held"]

    async def left(self, meter: str = "output_tokens") -> int:
        """How much more the customer may use now, over all limits."""
        low, high = 0, 10_000
        while low < high:
            middle = (low + high + 1) // 2
            if (await self.auditor.check("acme", meter, middle)).allowed:
                low = middle
            else:
                high = middle - 1
        return low

    async def is_held(self, heard: Heard, quantity: int = RESERVED, meter: str = "output_tokens") -> None:
        """That the decision was made by now, or not yet."""
        expected = quantity if heard == "made at once" else 0
        await eventually(lambda: self._holds(meter, expected))

    async def mended(self) -> None:
        """Let through what was kept, and wait until it was heard and all is told to the store."""
        lane = self.kit.store.lanes[asyncio.get_running_loop()]
        connections: list[Any] = [*lane._reconnector._ended, lane._connection]
        await self.proxy.let_through()
        await eventually(lambda: not any(link._pending for link in connections if link is not None))
        await settled(self.kit)

    async def comes_to(self, *, recorded: int, left: int, meter: str = "output_tokens") -> None:
        """Wait until nothing is held, and so much is recorded and left."""

        async def holds() -> bool:
            await settled(self.kit)
            return await self.row(meter) == (recorded, 0)

        await eventually(holds)
        assert await self.left(meter) == left

    async def _holds(self, meter: str, expected: int) -> bool:
        return (await self.row(meter))[1] == expected


@asynccontextmanager
async def late(valkey: Server, *, timeout_s: float) -> AsyncGenerator[Late]:
    clock = Clock(NOW)
    settings: dict[str, Any] = {"clock": clock, "flush": False, "shards": 4}
    async with (
        Slow(valkey.port) as proxy,
        MeterKit(loads(PLANS), redis_url=valkey.url, store_timeout=10.0, **settings) as auditor,
        MeterKit(loads(PLANS), redis_url=proxy.url, store_timeout=timeout_s, **settings) as kit,
    ):
        app = MeterMiddleware(answer, kit=kit, identify=identify.header("x-customer-id"))
        for route in kit.catalog.routes:  # Known already: nothing but the decision is asked.
            kit.store.cache.get("acme").prepare(route)
        transport = httpx.ASGITransport(app=app)
        headers = {"x-customer-id": "acme"}
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
            yield Late(kit=kit, auditor=auditor, proxy=proxy, client=client)


HEARD = pytest.mark.parametrize("heard", ["made at once", "made late"])


@HEARD
async def test_a_request_refused_without_an_answer_returns_its_units(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.proxy.keep(heard)
        assert (await at.client.post("/deny", content=BODY)).status_code == 503
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
        assert await at.row("input_tokens") == (0, 0)
        # It was admitted, if nobody heard of it: the rate of requests counts it.
        await at.comes_to(recorded=0, left=99, meter="requests")


@HEARD
async def test_a_request_served_without_an_answer_is_counted(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.proxy.keep(heard)
        assert (await at.client.post("/allow", content=BODY)).status_code == 200
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=SPENT, left=5000 - SPENT)
        assert await at.row("input_tokens") == (PROMPT, 0)
        await at.comes_to(recorded=1, left=99, meter="requests")


@HEARD
async def test_a_request_cancelled_before_its_decision_returns_all(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=20.0) as at:
        await at.proxy.keep(heard)
        sent = at.proxy.requests
        request = asyncio.create_task(at.client.post("/deny", content=BODY))
        if heard == "made at once":
            await eventually(lambda: at.proxy.requests > sent)
        await at.is_held(heard)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
        assert await at.row("input_tokens") == (0, 0)


@HEARD
async def test_what_a_late_decision_held_of_credits_can_be_used_again(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.auditor.customers.set_plan("acme", "prepaid")
        await at.auditor.grants.add("acme", {"ai": 2}, grant_id="g1")
        # So that the kit knows the customer's state.
        assert (await at.kit.check("acme", "output_tokens", 500)).allowed
        await at.proxy.keep(heard)
        assert (await at.client.post("/deny", content=BODY)).status_code == 503
        await at.is_held(heard)
        assert (await at.left()) == (100 if heard == "made at once" else 500)
        await at.mended()
        await at.comes_to(recorded=0, left=500)
        assert sum(entry.quantity for entry in await at.auditor.grants.ledger("acme")) == 2 * 10**6


@HEARD
@pytest.mark.parametrize("ended", ["by the timeout", "by a cancellation"])
async def test_a_late_reservation_holds_nothing(valkey: Server, heard: Heard, ended: str) -> None:
    async with late(valkey, timeout_s=0.2 if ended == "by the timeout" else 20.0) as at:

        async def reserve() -> None:
            async with at.kit.reserve("acme", {"seconds": 50}):
                raise AssertionError("it was not to begin")

        await at.proxy.keep(heard)
        asked = asyncio.create_task(reserve())
        await asyncio.sleep(0)
        if ended == "by a cancellation":
            await at.is_held(heard, 50, "seconds")
            asked.cancel()
        (error,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(error, StoreError | asyncio.CancelledError)
        await at.is_held(heard, 50, "seconds")
        await at.mended()
        await at.comes_to(recorded=0, left=60, meter="seconds")


@HEARD
@pytest.mark.parametrize(
    ("plan", "before", "ended"),
    pairs(["free", "rated"], ["as the first", "after another"], ["by the timeout", "by a cancellation"]),
)
async def test_rates_count_nothing_of_a_late_reservation(
    valkey: Server, heard: Heard, ended: str, before: str, plan: str
) -> None:
    async with late(valkey, timeout_s=0.2 if ended == "by the timeout" else 20.0) as at:
        if plan == "rated":
            await at.auditor.customers.set_plan("acme", plan)
        assert (await at.kit.check("acme", "output_tokens")).allowed
        if before == "after another":
            async with at.kit.reserve("acme", {"output_tokens": RESERVED}):
                pass
            await settled(at.kit)
        assert await at.left() == 5000

        async def reserve() -> None:
            async with at.kit.reserve("acme", {"output_tokens": RESERVED}):
                raise AssertionError("it was not to begin")

        async def counted() -> bool:
            return await at.left() == 5000 - (RESERVED if heard == "made at once" else 0)

        await at.proxy.keep(heard)
        asked = asyncio.create_task(reserve())
        await asyncio.sleep(0)
        if ended == "by a cancellation":
            await eventually(counted)
            asked.cancel()
        (error,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(error, StoreError | asyncio.CancelledError)
        await eventually(counted)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)


@HEARD
@pytest.mark.parametrize("before", ["as the first", "after a reservation"])
async def test_rates_count_late_consumption(valkey: Server, heard: Heard, before: str) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        if before == "after a reservation":
            async with at.kit.reserve("acme", {"output_tokens": RESERVED}):
                pass
            await settled(at.kit)
        await at.proxy.keep(heard)
        with pytest.raises(StoreError):
            await at.kit.consume("acme", "output_tokens", RESERVED)
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=0, left=5000 - RESERVED)


@HEARD
async def test_a_late_reservation_with_rates_only_returns_them(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.auditor.customers.set_plan("acme", "rated")
        assert (await at.kit.check("acme", "output_tokens")).allowed
        await at.proxy.keep(heard)
        assert (await at.client.post("/deny", content=BODY)).status_code == 503
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
