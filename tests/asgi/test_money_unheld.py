"""Money: calls at once end a balance below zero, and what costs nothing is served without a balance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from asgi.test_llm_model_prices import answering, ask
from drivers.delivery import until
from drivers.llm_apps import metered

if TYPE_CHECKING:
    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  output_tokens: {unit: token}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models:
      "own-*": {input_tokens: 0, output_tokens: 1.82 per 1_000_000}
      "gift-*": {input_tokens: 0, output_tokens: 0}
      "half-*": {input_tokens: 0, output_tokens: 0, requests: 0.5}
routes:
  - {match: "POST /plain", usage: openai}
  - match: "POST /held"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 1_000}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
FREE: Final = PLANS.replace(
    "costs: {tokens: provider_prices}", 'costs: {tokens: provider_prices, markup: "-100%"}'
)
MICRO: Final = 10**6


async def balance(at: Served) -> int:
    return (await at.kit.usage("acme"))["balance_micros"]["usd"]


async def test_calls_admitted_at_once_are_paid_by_the_next_grant(store_url: str) -> None:
    waiting, arrived = asyncio.Event(), 0

    async def wait() -> None:
        nonlocal arrived
        arrived += 1
        await waiting.wait()

    async with metered(answering(wait), store_url, plans=PLANS) as at:
        await at.kit.grants.add("acme", {"usd": 1}, grant_id="first")
        asking = [asyncio.create_task(ask(at, MICRO, said="own-7b", path="/plain")) for _ in range(20)]
        await until(lambda: arrived == len(asking))
        waiting.set()
        assert set(await asyncio.gather(*asking)) == {200}
        assert await balance(at) == MICRO - 20 * 1_820_000 == -35_400_000
        refused = await at.client.post("/plain", content=b"{}")
        assert (refused.status_code, refused.json()["reason"]) == (402, "credits")
        assert b"-35" not in refused.content
        await at.kit.grants.add("acme", {"usd": 40}, grant_id="second")
        assert await balance(at) == 4_600_000
        assert await ask(at, 1, said="own-7b", path="/plain") == 200


@pytest.mark.parametrize("path", ["/plain", "/held"])
async def test_without_charged_models_no_balance_is_needed(path: str) -> None:
    async with metered(answering(), "memory://", plans=FREE) as at:
        for model in ("gpt-4o", "own-7b", "of-no-provider", None):
            assert await ask(at, 7, model=model, said=model, path=path) == 200
        assert (await at.kit.usage("acme"))["meters"]["usd_charged"]["recorded"] == 0


async def test_a_request_for_a_free_model_needs_no_balance() -> None:
    both = b'{"model": "own-7b", "model": "gift-1", "max_tokens": 5, "messages": []}'
    gifts = b'{"model": "gift-2", "model": "gift-1", "max_tokens": 5, "messages": []}'
    async with metered(answering(), "memory://", plans=PLANS) as at:
        # No model is read off a request that reserves nothing.
        assert await ask(at, 7, model="gift-1", said="gift-1", path="/plain") == 429
        assert await ask(at, 7, body=both, path="/held") == 429
        assert await ask(at, 7, body=gifts, path="/held") == 200
        for grants in range(2):
            assert await ask(at, 7, model="gift-1", said="gift-1", path="/held") == 200
            for model in ("half-1", "own-7b", "of-no-provider", None):
                status = await ask(at, 7, model=model, said=model, path="/held")
                assert status == (402 if grants else 429)
            await at.kit.grants.add("acme", {"usd": 1}, grant_id="first")
            await at.kit.record("acme", "usd_charged", 3 * MICRO)
        assert (await at.kit.usage("acme"))["meters"]["usd_charged"]["held"] == 0
