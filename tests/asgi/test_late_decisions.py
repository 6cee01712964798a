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

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
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

    async def is_held(self, heard: Heard) -> None:
        """That the decision was made by now, or not yet."""

        async def holds() -> bool:
            return (await self.row())[1] == (RESERVED if heard == "made at once" else 0)

        await eventually(holds)

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
@pytest.mark.parametrize(
    ("path", "status", "spent"), [("/allow", 200, (PROMPT, SPENT)), ("/deny", 503, (0, 0))]
)
async def test_a_request_served_without_an_answer_is_counted(
    valkey: Server, heard: Heard, path: str, status: int, spent: tuple[int, int]
) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.proxy.keep(heard)
        assert (await at.client.post(path, content=BODY)).status_code == status
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=spent[1], left=5000 - spent[1])
        assert await at.row("input_tokens") == (spent[0], 0)
        # Also a refused one was admitted, if nobody heard of it: the rate of requests counts it.
        await at.comes_to(recorded=int(status == 200), left=99, meter="requests")


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
@pytest.mark.parametrize("ended", ["by the timeout", "by a cancellation"])
async def test_a_late_reservation_holds_nothing(valkey: Server, heard: Heard, ended: str) -> None:
    async with late(valkey, timeout_s=0.2 if ended == "by the timeout" else 20.0) as at:
        assert (await at.kit.check("acme", "output_tokens")).allowed

        async def reserve() -> None:
            async with at.kit.reserve("acme", {"output_tokens": RESERVED}):
                raise AssertionError("it was not to begin")

        await at.proxy.keep(heard)
        asked = asyncio.create_task(reserve())
        await asyncio.sleep(0)
        if ended == "by a cancellation":
            await at.is_held(heard)
            asked.cancel()
        (error,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(error, StoreError | asyncio.CancelledError)
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
