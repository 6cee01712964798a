"""F-309: what users have spent by usage that a process records before it knows a customer's plan and prices.

A new process takes each customer for one on the default plan, a known one for what it was at the last reply.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import Receive, Scope, Send

from asgi.test_llm_outliving import another
from drivers.app import hello, no_more, served
from drivers.llm_apps import answering
from drivers.plans import completed
from drivers.subscribed_customer import kit_of
from faults.proxy import TcpProxy
from faults.refusals import eventually, lane_of, settled
from llm_payloads.recordings import JSON_TYPE, compact
from meterkit import MeterKit, identify, record_usage
from meterkit.testing import Clock
from store.test_sync import said_by

pytestmark = pytest.mark.anyio

PLANS: Final = """
default_plan: free
meters:
  pages:         {unit: page, stripe: {event_name: pages}}
  output_tokens: {unit: token, stripe: {event_name: out}}
routes:
  - {match: "/pages", consume: {pages: 1}}
  - {match: "/{path:path}", usage: auto}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      pages:         {included: 0, overage: {bill: {per: 1, amount_cents: 400}}}
      output_tokens: {included: 0, overage: {bill: {per: 70_000, amount_cents: 6}}}
  former:
    extends: free
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: 100_000}
    subjects: {user: {budget: {amount_cents: 500}}, team: {budget: {amount_cents: 50_000, per: day}}}
  pro:
    extends: former
    price: {amount_cents: 3000, interval: month}
    meters:
      pages:         {included: 0, overage: {bill: {per: 1, amount_cents: 1000}}}
      output_tokens: {included: 0, overage: {bill: {per: 30_000, amount_cents: 1}}}
"""
BY: Final = {"user": "ana", "team": "red"}
WHO: Final = identify.header("x-customer-id", subjects={"user": "x-user", "team": "x-team"})
HEADERS: Final = {"x-user": "ana", "x-team": "red"}
PAGE: Final = 10_000_000
"""Micro-dollars of a page on ``pro``."""
CENT: Final = 30_000
"""Output tokens for a cent."""
TOKENS: Final = 999


async def spent(kit: MeterKit) -> tuple[int | None, ...]:
    """Micro-dollars that the customer, its user and its team have spent."""
    of_user, of_team = [(await kit.usage("acme", by=kind))[0] for kind in ("user", "team")]
    of_customer = (await kit.usage("acme"))["meters"]["spend"]["recorded"]
    return of_customer, of_user.spent_micros, of_team.spent_micros


async def mislead(kit: MeterKit, other: MeterKit, unaware: str) -> None:
    """Have another process put acme on ``pro``, and this one not know of it."""
    if unaware == "of the price":
        await other.customers.set_plan("acme", "former")
    if unaware == "of the customer any more":
        await other.customers.set_plan("acme", "pro")
    if unaware != "of the customer":
        await kit.check("acme", "pages", subjects=BY)
    if unaware == "of the customer any more":
        await asyncio.gather(*(kit.check(f"c{nth}", "pages") for nth in range(150)))
    await other.customers.set_plan("acme", "pro")


@pytest.mark.parametrize(
    "unaware", ["of the customer", "of the customer any more", "of the plan", "of the price"]
)
async def test_f_309_the_first_records_are_spent(store_url: str, clock: Clock, unaware: str) -> None:
    async with kit_of(store_url, clock, PLANS) as other:
        async with kit_of(store_url, clock, PLANS, customers_kept=100) as kit:
            await mislead(kit, other, unaware)
            await asyncio.gather(*(kit.record("acme", "pages", 1, subjects=BY) for _ in range(8)))
            assert await spent(kit) == (8 * PAGE,) * 3
            refused = await kit.consume("acme", "output_tokens", CENT, subjects=BY)
        assert refused.violated == ("user:spend-period",)


@pytest.mark.dear("a process of its own")
def test_f_309_jobs_in_forks_are_spent(tmp_path: Path, store_url: str) -> None:
    program = f"""
        import os
        kit.customers.set_plan('acme', 'pro')
        ana = {{'user': 'ana'}}
        for _ in range(3):
            if not os.fork():
                kit.record('acme', 'pages', 1, subjects=ana)
                os._exit(0)
            assert os.wait()[1] == 0
        (usage,) = kit.usage('acme', by='user')
        print(usage.spent_micros, kit.consume('acme', 'output_tokens', {CENT}, subjects=ana).allowed)
    """
    assert said_by(program, tmp_path, store_url, completed(PLANS)) == f"{3 * PAGE} False\n"


def response(status: str, output_tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": output_tokens, "total_tokens": output_tokens + 1}
    told: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5.6",
        "output": [],
        "status": status,
    }
    return {**told, "usage": usage if status == "completed" else None, **more}


@pytest.mark.parametrize("path", ["/pages", "/recorded", "/late"])
async def test_f_309_a_request_is_spent_by_the_terms_at_its_end(store_url: str, path: str) -> None:
    """Another process changes the plan meanwhile."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if path == "/late":
            await hello(scope, no_more, send)
        await other.customers.set_plan("acme", "pro")
        if path != "/pages":
            record_usage(response("completed"))
        if path != "/late":
            await hello(scope, receive, send)

    async with served(app, plans=PLANS, who=WHO, redis_url=store_url) as at, another(at, store_url) as other:
        await other.customers.set_plan("acme", "former")
        assert await at.statuses(path, headers=HEADERS) == [200]
        await settled(at.kit)
        assert await spent(at.kit) == (PAGE if path == "/pages" else TOKENS // 3,) * 3


async def test_f_309_a_models_job_is_spent_in_the_worker_that_ends_it(store_url: str) -> None:
    app = answering([compact(response("queued", background=True))], JSON_TYPE)
    async with served(app, plans=PLANS, who=WHO, redis_url=store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        assert await at.statuses("/jobs", method="POST", headers=HEADERS) == [200]
        for lane in at.kit.store.lanes.values():
            await asyncio.gather(*lane.finishing)
        async with another(at, store_url) as worker:
            await worker.record_usage(None, response("completed", background=True))
            assert await spent(worker) == (TOKENS // 3,) * 3


@pytest.mark.parametrize("unaware", ["of the customer", "of the price"])
async def test_f_309_a_spool_is_spent_by_the_terms_of_its_replay(
    proxy: TcpProxy, store_url: str, clock: Clock, tmp_path: Path, unaware: str
) -> None:
    settings: dict[str, Any] = {"store_timeout": 0.1, "spool_dir": tmp_path}
    async with kit_of(store_url, clock, PLANS) as other, kit_of(proxy.url, clock, PLANS, **settings) as kit:
        await mislead(kit, other, unaware)
        await proxy.set("refuse")
        await eventually(lambda: not lane_of(kit).connected)
        await asyncio.gather(*(kit.record("acme", "pages", 1, subjects=BY) for _ in range(8)))
        await proxy.set("pass")
        await settled(kit)
        assert await spent(other) == (8 * PAGE,) * 3


async def test_f_309_fractions_are_carried_at_the_price_that_counts(store_url: str, clock: Clock) -> None:
    """A token costs 6/7 of a micro-dollar by the plan before, 1/3 by the present one."""
    async with kit_of(store_url, clock, PLANS) as other, kit_of(store_url, clock, PLANS) as kit:
        await mislead(kit, other, "of the price")
        for nth in range(1, 8):
            await kit.record("acme", "output_tokens", 1, subjects=BY)
            assert (await spent(kit))[1:] == (nth // 3, nth // 3)
