"""What a simulation says of another plans file is what the same traffic meets when it is served under it."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from faults import settled
from meterkit import MeterKit, MeterMiddleware
from meterkit.catalog import loads
from meterkit.decisions.periods import to_ms
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.insights.simulation.simulation import simulate
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from pathlib import Path

    from starlette.requests import Request

    from meterkit.insights.simulation.simulation import Simulation
    from servers import Server

pytestmark = pytest.mark.anyio

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
BILLED: Final = "{included: 10, overage: {bill: {per: 10, amount_cents: 3}}}"


def changed(*pairs: tuple[str, str]) -> str:
    text = TODAY
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    return text


CREDITS: Final = ("routes:", "credits:\n  ai: {costs: {output_tokens: 2 per 1000, pages: 1}}\nroutes:")
GRANT: Final = "    meters:\n      requests:      "
CHANGED: Final = {
    "today's file": TODAY,
    "other prices": changed(("amount_cents: 3}", "amount_cents: 5}"), ("500, interval", "700, interval")),
    "a ceiling of requests": changed((BILLED, "{included: 12, overage: deny}")),
    "a ceiling of pages that a request of three may straddle": changed(
        ("{included: 5, overage: {bill: {per: 1, amount_cents: 4}}}", "{included: 20, overage: deny}")
    ),
    "a ceiling of tokens, known when they are used": changed(
        ("{included: 0, overage: {bill: {per: 100, amount_cents: 9}}}", "{included: 900, overage: deny}")
    ),
    "a cap": changed(("{per: 1, amount_cents: 4}", "{per: 1, amount_cents: 4, cap: 13}")),
    "a sliding window": changed((BILLED, BILLED.replace("{included", "{rate: 4/minute, included", 1))),
    "a token bucket, and a fixed window of tokens": changed(
        (
            BILLED,
            BILLED.replace(
                "{included", "{rate: {limit: 6/minute, algorithm: token-bucket, burst: 3}, included", 1
            ),
        ),
        (
            "output_tokens: {included: 0",
            "output_tokens: {rate: {limit: 400/2 minutes, algorithm: fixed-window}, included: 0",
        ),
    ),
    "credits": changed(
        CREDITS,
        (
            "    meters:\n      requests:      ",
            "    grants: [{credit: ai, quantity: 7, every: period}]\n" + GRANT,
        ),
        ("{included: 5, overage: {bill: {per: 1, amount_cents: 4}}}", "{included: 4, overage: deny}"),
    ),
    "grants of meters, with a rate and a ceiling": changed(
        (
            "    meters:\n      requests:      " + BILLED,
            "    grants:\n"
            "      - {meter: requests, quantity: 5, every: period}\n"
            "      - {meter: pages, quantity: 9, every: period}\n"
            + GRANT
            + "{rate: 6/minute, included: 9, overage: deny}",
        ),
    ),
    "no plan pro, and no pages": changed(
        ("  pages:         {unit: page, stripe: {event_name: pages}}\n", ""),
        ("      pages:         {included: 5, overage: {bill: {per: 1, amount_cents: 4}}}\n", ""),
        ("consume: {pages: 3, requests: 1}", "consume: {requests: 1}"),
        ("  pro:\n", "  other:\n"),
    ),
}


class Call(NamedTuple):
    at: datetime
    customer: str
    path: str
    tokens: tuple[int, int]

    @property
    def quantities(self) -> dict[str, int]:
        if self.path == "/pages":
            return {"requests": 1, "pages": 3}
        return {"requests": 1, "input_tokens": self.tokens[0], "output_tokens": self.tokens[1]}


def traffic() -> Iterator[Call]:
    random, at = Random(26), START  # noqa: S311 - traffic, not a secret
    for _ in range(150):
        at += timedelta(milliseconds=random.choice((40, 900, 7_000, 31_000)))
        tokens = (random.randrange(1, 60), random.randrange(1, 200))
        yield Call(at, random.choice(CUSTOMERS), random.choice(("/chat", "/chat", "/pages")), tokens)


async def answer(request: Request) -> JSONResponse:
    if request.url.path == "/pages":
        return JSONResponse({})
    told = await request.json()
    usage = {"prompt_tokens": told[0], "completion_tokens": told[1], "total_tokens": sum(told)}
    return JSONResponse({"object": "chat.completion", "model": "m", "choices": [], "usage": usage})


@asynccontextmanager
async def served(
    server: Server, plans: str, prefix: str, calls: Sequence[Call], **settings: Any
) -> AsyncGenerator[tuple[MeterKit, dict[str, list[Call]]]]:
    """A kit that has served the calls, and which of each customer's it refused."""
    clock, refused = Clock(START), dict[str, list[Call]]()
    kit = MeterKit(
        loads(plans),
        redis_url=server.url,
        clock=clock,
        flush=False,
        shards=2,
        key_prefix=prefix,
        store_timeout=10.0,
        **settings,
    )
    app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path in ("/chat", "/pages")])
    metered = MeterMiddleware(
        app, kit=kit, identify=lambda scope: dict(scope["headers"])[b"x-customer"].decode()
    )
    async with (
        kit,
        httpx.AsyncClient(transport=httpx.ASGITransport(metered), base_url="http://test") as client,
    ):
        if "pro" in kit.catalog.plans:
            await kit.customers.set_plan("bob", "pro")
        for call in calls:
            clock.set(call.at)
            response = await client.post(call.path, json=call.tokens, headers={"x-customer": call.customer})
            if not response.is_success:
                assert response.status_code in {402, 429}, response.text
                refused.setdefault(call.customer, []).append(call)
            await settled(kit)  # At its own time.
        yield kit, refused


async def simulated(kit: MeterKit, url: str, plans: str, calls: Sequence[Call], **more: Any) -> Simulation:
    return await simulate(kit.store, Database(url), loads(plans), to_ms(calls[-1].at), **more)


async def test_ten_changed_files_are_tried_as_they_serve(valkey: Server, tmp_path: Path) -> None:
    calls, url = list(traffic()), f"sqlite:///{tmp_path}/audit.db"
    checked = 0
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await Drainer(kit.store, Database(url), least_age_ms=0).drain()
        for nth, (name, plans) in enumerate(CHANGED.items()):
            found = await simulated(kit, url, plans, calls)
            checked += found.checked
            assert found.disagreeing == [], name
            async with served(valkey, plans, f"then{nth}", calls) as (then, refused):
                for one in found.customers:
                    assert one.refused == of(refused.get(one.customer, ()), then), (name, one)
                    first = refused.get(one.customer)
                    assert one.refused_first_at == (first[0].at if first else None), (name, one)
                    assert one.then_cents == await charged(then, one.customer), (name, one)
                    assert one.now_cents == await charged(kit, one.customer), (name, one)
    assert checked > len(CUSTOMERS)  # By sums and by the scripts.


def of(calls: Sequence[Call], kit: MeterKit) -> dict[str, int]:
    units = Counter[str]()
    for call in calls:
        units.update(
            {meter: units for meter, units in call.quantities.items() if meter in kit.catalog.meters}
        )
    return dict(units)


async def charged(kit: MeterKit, customer: str) -> int:
    """The price of the plan and of what the store has recorded beyond what it includes."""
    usage = await kit.usage(customer)
    plan = kit.catalog.plans[usage["plan"]]
    total = Fraction(plan.price.amount_cents)
    for meter, counts in usage["meters"].items():
        price = plan.entitlements[meter].overage
        if price.amount_cents is not None and price.per is not None:
            total += Fraction(counts["overage"] * price.amount_cents, price.per)
    return round(total)
