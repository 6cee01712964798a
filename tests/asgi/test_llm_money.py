"""A balance in money: calls are charged what their provider asks, and a markup; exactly, and never twice."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Final

import pytest
from genai_prices import Usage, calc_price

from asgi.test_llm_model_prices import answering, ask, drawn, race
from drivers.llm_apps import metered

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  input_tokens: {unit: token}
  output_tokens: {unit: token}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 30%}
    models: {"own-*": {input_tokens: 0.2 per 1_000_000, output_tokens: 0.6 per 1_000_000}}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
MICRO: Final = 10**6
MARKUP: Final = Fraction(13, 10)
SAID: Final = {
    "object": "chat.completion",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}


async def give(at: Served, dollars: int) -> None:
    await at.kit.grants.add("acme", {"usd": dollars}, grant_id=f"{dollars}")


async def spent(at: Served) -> int:
    """What was paid, in micro-dollars."""
    return -sum(line.quantity for line in await at.kit.grants.ledger("acme") if line.entry == "burn")


def price_of(model: str, *, left: int, entered: int = 1) -> Fraction:
    """What the package says that a call costs, and the markup (micro-dollars)."""
    found = calc_price(
        Usage(input_tokens=entered, output_tokens=left),
        model,
        provider_id="openai",
        genai_request_timestamp=datetime.now(UTC),
    )
    return Fraction(found.total_price) * MICRO * MARKUP


async def test_calls_are_charged_what_the_provider_asks_and_a_markup(store_url: str) -> None:
    model = "gpt-4o-mini-2024-07-18"
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        total = Fraction(0)
        for tokens in (1, 7, 1234, 3):
            assert await ask(at, tokens, model=model, said=model, at_most=2000) == 200
            total += price_of(model, left=tokens)
            assert await spent(at) == floor(total)
        row = (await at.kit.usage("acme"))["meters"]
        assert row["usd_charged"]["recorded"] == floor(total)
        assert row["output_tokens"]["recorded"] == 1245


async def test_a_balance_is_charged_where_no_meter_counts_tokens(store_url: str) -> None:
    plans = PLANS.replace("input_tokens: {unit: token}", "requests: {unit: request}", 1)
    plans = plans.replace("  output_tokens: {unit: token}\n", "", 1)
    plans = re.sub(r"    reserve: .*\n", "", plans)
    async with metered(answering(), store_url, plans=plans) as at:
        assert await ask(at, 1000, model="own-7b", said="own-7b") == 429
        await give(at, 1)
        assert await ask(at, 1000, model="own-7b", said="own-7b") == 200
        # (1 * 0.2 + 1000 * 0.6) * 1.3 = 780.26 micro-dollars
        assert await spent(at) == 780
        assert (await at.kit.usage("acme"))["meters"]["requests"]["recorded"] == 0


async def test_i3_racing_answers_spend_no_cent_twice(store_url: str) -> None:
    ending, own = asyncio.Event(), (Fraction(26, 100), Fraction(78, 100))
    calls = drawn(7, 200, "gpt-4o-mini", "gpt-4o", "gpt-4.1", "own-7b", most=20_000)
    costs = [
        own[0] + tokens * own[1] if model == "own-7b" else price_of(model, left=tokens)
        for model, tokens in calls
    ]
    async with metered(answering(ending.wait), store_url, plans=PLANS) as at:
        await give(at, 1)
        cost, _ = await race(at, ending, calls, costs)
        assert await spent(at) == floor(cost) <= MICRO
        row = (await at.kit.usage("acme"))["meters"]["usd_charged"]
        assert (row["overage"], row["held"], row["recorded"]) == (0, 0, floor(cost))


async def test_a_sum_of_calls_costs_the_price_of_short_input(store_url: str) -> None:
    """F-214"""
    usage = {"input_tokens": 300_000, "output_tokens": 0, "total_tokens": 300_000}
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        await at.kit.record_usage("acme", {"gpt-5.4": usage})  # As LangChain's counter has it.
        assert await spent(at) == 300_000 * Fraction(5, 2) * MARKUP
        await at.kit.record_usage("acme", {"object": "response", "model": "gpt-5.4", "usage": usage})
        assert await spent(at) == 300_000 * (Fraction(5, 2) + 5) * MARKUP


async def test_each_line_of_a_batch_is_charged_the_batch_price(store_url: str) -> None:
    """F-214"""
    usage = {"prompt_tokens": 150_000, "completion_tokens": 0, "total_tokens": 150_000}
    body = {**SAID, "model": "gpt-5.4", "usage": usage}
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        for name in ("a", "b"):
            line = {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
            found = await at.kit.record_usage("acme", line, call_id="batch_1")
            # Half of 2.50 dollars a million; both together would be beyond 272,000 tokens, at twice as much.
            assert found is not None
            assert found.cost_micros == 150_000 * Fraction(5, 4)
        assert await spent(at) == 2 * 150_000 * Fraction(5, 4) * MARKUP


async def test_figures_by_path_cost_the_requested_models_price(
    store_url: str,
) -> None:
    line = "usage_fields: {input_tokens: stats.in, output_tokens: stats.out}"
    plans = PLANS.replace("usage: openai", line).replace("    reserve", "    # reserve")
    said = json.dumps({"stats": {"in": 1000, "out": 100}}).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        headers = [(b"content-type", b"application/json")]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async with metered(app, store_url, plans=plans) as at:
        await give(at, 1)
        assert await ask(at, 1, model="gpt-4o-mini") == 200
        assert await spent(at) == 273  # A thousand at 0.15 and a hundred at 0.6, and 30 %.
        assert await at.counted(meter="input_tokens") == (1000, 0)
