"""Traffic that is really served under a plans file, and what a simulation says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope

from faults.refusals import settled
from meterkit import Caller, MeterKit, MeterMiddleware
from meterkit.catalog import loads
from meterkit.decisions.periods import to_ms
from meterkit.insights.audit.database import Database
from meterkit.insights.simulation.simulation import Simulation, simulate
from meterkit.testing import Clock
from servers.stores import Server

START: Final = datetime(2031, 6, 10, 12, 0, tzinfo=UTC)
CUSTOMERS: Final = ("ada", "bob", "cyd", "dan", 'e,"f')
TODAY: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request, stripe: {event_name: requests}}
  input_tokens:  {unit: token, stripe: {event_name: input_tokens}}
  output_tokens: {unit: token, stripe: {event_name: output_tokens}}
  pages:         {unit: page, stripe: {event_name: pages}}
routes:
  - {match: POST /chat, consume: {requests: 1}, usage: openai}
  - {match: POST /pages, consume: {pages: 3, requests: 1}}
plans:
  free:
    price: {amount_cents: 500, interval: month}
    meters:
      requests:      {included: 10, overage: {bill: {per: 10, amount_cents: 3}}}
      input_tokens:  {included: 100, overage: {bill: {per: 7, amount_cents: 2}}}
      output_tokens: {included: 0, overage: {bill: {per: 100, amount_cents: 9}}}
      pages:         {included: 5, overage: {bill: {per: 1, amount_cents: 4}}}
  pro:
    extends: free
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: 50}
"""


class Call(NamedTuple):
    at: datetime
    customer: str
    path: str
    tokens: tuple[int, int]
    user: str = ""

    @property
    def quantities(self) -> dict[str, int]:
        if self.path == "/pages":
            return {"requests": 1, "pages": 3}
        return {"requests": 1, "input_tokens": self.tokens[0], "output_tokens": self.tokens[1]}


def traffic(calls: int = 150) -> Iterator[Call]:
    random, at = Random(26), START  # noqa: S311 - traffic, not a secret
    for _ in range(calls):
        at += timedelta(milliseconds=random.choice((40, 900, 7_000, 31_000)))
        tokens = (random.randrange(1, 60), random.randrange(1, 200))
        yield Call(at, random.choice(CUSTOMERS), random.choice(("/chat", "/chat", "/pages")), tokens)


async def answer(request: Request) -> JSONResponse:
    if request.url.path == "/pages":
        return JSONResponse({})
    told = await request.json()
    usage = {"prompt_tokens": told[0], "completion_tokens": told[1], "total_tokens": sum(told)}
    model = "m" if told[1] % 3 else "m-large"
    return JSONResponse({"object": "chat.completion", "model": model, "choices": [], "usage": usage})


@asynccontextmanager
async def served(
    server: Server,
    plans: str,
    prefix: str,
    calls: Sequence[Call],
    before: Callable[[MeterKit], Awaitable[None]] | None = None,
    **settings: Any,
) -> AsyncGenerator[tuple[MeterKit, dict[str, list[Call]]]]:
    """A kit that has served the calls, and which of each customer's it refused; ``before``: is done first."""
    clock, refused = Clock(START), dict[str, list[Call]]()
    kit = MeterKit(
        loads(plans),
        redis_url=server.url,
        clock=clock,
        flush=False,
        shards=2,
        key_prefix=prefix,
        store_timeout=60.0,
        **settings,
    )

    def caller(scope: Scope) -> Caller:
        fields = {name: value.decode() for name, value in scope["headers"]}
        user = fields[b"x-user"]
        return Caller(fields[b"x-customer"], subjects={"user": user} if user else {})

    app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path in ("/chat", "/pages")])
    metered = MeterMiddleware(app, kit=kit, identify=caller)
    async with (
        kit,
        httpx.AsyncClient(transport=httpx.ASGITransport(metered), base_url="http://test") as client,
    ):
        if "pro" in kit.catalog.plans:
            await kit.customers.set_plan("bob", "pro")
        if before is not None:
            await before(kit)
        for call in calls:
            clock.set(call.at)
            response = await client.post(
                call.path, json=call.tokens, headers={"x-customer": call.customer, "x-user": call.user}
            )
            if not response.is_success:
                assert response.status_code in {402, 429}, response.text
                refused.setdefault(call.customer, []).append(call)
            await settled(kit)  # At its own time.
        yield kit, refused


async def simulated(kit: MeterKit, url: str, plans: str, calls: Sequence[Call]) -> Simulation:
    return await simulate(kit.store, Database(url), loads(plans), to_ms(calls[-1].at))


async def agree(found: Simulation, then: MeterKit, refused: Mapping[str, Sequence[Call]], name: str) -> None:
    """See that a simulation says of each customer what really became of it."""
    assert found.disagreeing == [], name
    for one in found.customers:
        calls = refused.get(one.customer, ())
        assert one.refused == of(calls, then), (name, one)
        assert one.refused_first_at == (calls[0].at if calls else None), (name, one)
        assert one.then_cents == await charged(then, one.customer), (name, one)


def of(calls: Sequence[Call], kit: MeterKit) -> dict[str, int]:
    units = Counter[str]()
    for call in calls:
        units.update(
            {meter: units for meter, units in call.quantities.items() if meter in kit.catalog.meters}
        )
    return dict(units)


async def charged(kit: MeterKit, customer: str) -> int:
    """The price of the plan and of what the store has recorded beyond what it includes, rounded by meter."""
    usage = await kit.usage(customer)
    plan = kit.catalog.plans[usage["plan"]]
    total = plan.price.amount_cents
    for meter, counts in usage["meters"].items():
        price = plan.entitlements[meter].overage
        if price.amount_cents is not None and price.per is not None:
            total += (2 * counts["overage"] * price.amount_cents + price.per) // (2 * price.per)
    return total
