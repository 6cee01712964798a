"""Budgets at the edge: racing answers and streams spend no more than there is, and all that fits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from asgi.test_llm_model_prices import answering, ask, drawn, race
from drivers.llm_apps import metered, read_all
from meterkit import identify
from tokens.recordings import compact

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

MONEY: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 30%}
    models:
      "small-*": {input_tokens: 10 per 1_000_000, output_tokens: 10 per 1_000_000}
      "large-*": {input_tokens: 50 per 1_000_000, output_tokens: 50 per 1_000_000}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
plans:
  pro: {price: {amount_cents: 0, interval: month}, budget: {amount_cents: BUDGET}}
"""
PRICED: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
prices:
  out: {default: 3 per 1000, models: {"small-*": 1 per 1000, "large-*": 5.005 per 1000}}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 2_000_000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: BUDGET}
    subjects: {user: {budget: {amount_cents: OWN}}}
    meters: {output_tokens: {included: 0, overage: {bill: {price: prices.out}}}}
"""
LIMIT: Final = 10_000_000
USERS: Final = identify.header("x-customer-id", subjects={"user": "x-user-id"})


def streaming(ending: asyncio.Event) -> ASGIApp:
    """An app that streams as many tokens of a model as headers say, and ends when it may."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        headers = dict(scope["headers"])
        tokens = int(headers[b"x-tokens"])
        chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "choices": []}
        chunk["model"] = headers[b"x-model"].decode()
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        start = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send({"type": "http.response.start", **start})
        for piece in (chunk, chunk | {"usage": usage}):
            event = b"data: " + compact(piece) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await ending.wait()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


async def spent(at: Served) -> int:
    return (await at.kit.usage("acme"))["meters"]["spend"]["recorded"]


async def of_user(at: Served, user: str) -> int | None:
    """What a user has spent."""
    return {one.subject: one.spent_micros for one in await at.kit.usage("acme", by="user")}[user]


async def test_i3_racing_answers_do_not_overshoot_a_budget(store_url: str) -> None:
    ending, calls = asyncio.Event(), drawn(11, 250, "any")
    plans = PRICED.replace("BUDGET", "1000").replace("OWN", "5000").replace("included: 0", "included: 5000")
    async with metered(answering(ending.wait), store_url, plans=plans) as at:
        served, refused = await race(at, ending, calls, [tokens for _, tokens in calls])
        assert await spent(at) == (served - 5000) * 30 <= LIMIT
        # Nothing was refused that fitted: ten dollars and what is included are 338,333 tokens.
        assert 338_333 - served < refused


@pytest.mark.parametrize(("budget", "balance"), [("1000", 50), ("5000", 10)])
async def test_i3_answers_of_two_models_stay_in_budget_and_balance(
    store_url: str, budget: str, balance: int
) -> None:
    """I3: ten dollars are spent to the last call that fits, whether the budget or the balance ends first."""
    ending, calls = asyncio.Event(), drawn(13, 200, "small-1", "large-1")
    async with metered(answering(ending.wait), store_url, plans=MONEY.replace("BUDGET", budget)) as at:
        await at.kit.grants.add("acme", {"usd": balance}, grant_id="1")
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        # One token goes in: what is held for the answer has room for it.
        served, refused = await race(at, ending, calls, costs, room=1)
        assert await spent(at) == served <= LIMIT
        left = (await at.kit.usage("acme"))["balance_micros"]["usd"]
        assert left == balance * 1_000_000 - served >= 0
        assert LIMIT - served < refused


async def test_i3_streams_paid_by_a_balance_stay_in_a_users_budget(store_url: str) -> None:
    """I3: a user's ten dollars, of fifty that the customer has."""
    ending, calls = asyncio.Event(), drawn(19, 200, "small-1", "large-1")
    plans = MONEY.replace("BUDGET}", "5000}, subjects: {user: {budget: {amount_cents: 1000}}}")
    async with metered(streaming(ending), store_url, plans=plans, who=USERS) as at:
        await at.kit.grants.add("acme", {"usd": 50}, grant_id="1")
        at.client.headers["x-user-id"] = "u_7"
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        served, refused = await race(at, ending, calls, costs, room=1)
        assert await of_user(at, "u_7") == await spent(at) == served <= LIMIT
        assert LIMIT - served < refused
        assert (await at.kit.usage("acme"))["balance_micros"]["usd"] == 50_000_000 - served


@pytest.mark.parametrize(("budget", "own"), [(1000, 5000), (5000, 1000)])
async def test_i3_streams_of_priced_models_stay_in_both_budgets(
    store_url: str, budget: int, own: int
) -> None:
    """I3: ten dollars are spent to the last stream that fits, whether they are the customer's or a user's."""
    ending, calls = asyncio.Event(), drawn(17, 300, "small-1", "large-1", "other")
    plans = PRICED.replace("BUDGET", f"{budget}").replace("OWN", f"{own}")
    async with metered(streaming(ending), store_url, plans=plans, who=USERS) as at:
        at.client.headers["x-user-id"] = "u_7"
        # In hundredths of a micro-dollar a token.
        prices = {"small-1": 1000, "large-1": 5005, "other": 3000}
        costs = [prices[model] * tokens for model, tokens in calls]
        served, refused = await race(at, ending, calls, costs)
        # Rounded up once for a customer, and down once for a user.
        assert await spent(at) == -(-served // 100) <= budget * 10_000
        assert await of_user(at, "u_7") == served // 100 <= own * 10_000
        # Of three models, each may be rounded up while streams are open.
        assert LIMIT - served // 100 - 3 < -(-refused // 100)
        # Another user has a budget of its own, inside the customer's.
        at.client.headers["x-user-id"] = "u_8"
        again = await ask(at, 4000, model="large-1", said="large-1")
        assert again == (402 if budget < own else 200)


async def test_a_request_is_held_at_the_price_of_its_model(store_url: str) -> None:
    ending = asyncio.Event()
    ending.set()
    plans = PRICED.replace("BUDGET", "1000").replace("OWN", "1000")
    async with metered(streaming(ending), store_url, plans=plans) as at:
        for model, most in (
            ("large-1", 199_800),
            ("small-1", 1_000_000),
            ("llama", 333_333),
            (None, 199_800),
        ):
            assert await ask(at, 0, model=model, said="small-1", at_most=most + 1) == 402, model
            assert await ask(at, 0, model=model, said="small-1", at_most=most) == 200, model
        # What the answer names counts, whatever was asked for.
        assert await ask(at, 1000, model="small-1", said="large-1", at_most=1000) == 200
        assert await spent(at) == 50_050
