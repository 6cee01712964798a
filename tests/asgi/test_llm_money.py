"""A balance in money and budgets: calls are charged exactly, and racing ones spend nothing twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from fractions import Fraction
from math import floor
from typing import Any, Final

import pytest
from genai_prices import Usage, calc_price
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi.test_llm_model_prices import answering, ask, drawn, race
from drivers.app import Served
from drivers.delivery import until
from drivers.llm_apps import answering as llm_answering
from drivers.llm_apps import metered, read_all
from llm_payloads.recordings import chat, chat_usage, compact, gemini_chunk, sse
from meterkit import identify

pytestmark = pytest.mark.anyio

RESERVE: Final = "reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}"
PLANS: Final = f"""
meters: {{input_tokens: {{unit: token}}, output_tokens: {{unit: token}}}}
credits:
  usd:
    unit: money
    costs: {{tokens: provider_prices, markup: 30%}}
    models: {{"own-*": {{input_tokens: 0.2 per 1_000_000, output_tokens: 0.6 per 1_000_000}}}}
routes:
  - {{match: "POST /chat", usage: openai, {RESERVE}, model: request}}
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
    return -sum(line.quantity for line in await at.kit.grants.ledger("acme") if line.entry == "burn")


def price_of(model: str, *, left: int, entered: int = 1) -> Fraction:
    """What the package says that a call costs, and the markup (micro-dollars)."""
    used, now = Usage(input_tokens=entered, output_tokens=left), datetime.now(UTC)
    found = calc_price(used, model, provider_id="openai", genai_request_timestamp=now)
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
    plans = plans.replace(", output_tokens: {unit: token}", "", 1).replace(f", {RESERVE}", "")
    async with metered(answering(), store_url, plans=plans) as at:
        assert await ask(at, 1000, model="own-7b", said="own-7b") == 402
        await give(at, 1)
        assert await ask(at, 1000, model="own-7b", said="own-7b") == 200
        # (1 * 0.2 + 1000 * 0.6) * 1.3 = 780.26 micro-dollars
        assert (await spent(at), await at.counted()) == (780, (0, 0))


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


NAMED: Final = """
meters:
  output_tokens: {unit: token}
  flash: {unit: token, from: output_tokens, where: {model: "gemini-*"}}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}, unknown_model: deny}
routes:
  - {match: "POST /chat", usage: gemini}
"""


@pytest.mark.parametrize(
    "said",
    [
        "models/gemini-2.5-pro",
        " gemini-2.5-pro\n",
        "projects/p/locations/l/publishers/google/models/gemini-2.5-pro",
        "publishers/google/models/gemini-2.5-pro",
    ],
)
async def test_an_answers_model_costs_the_same_in_any_spelling(said: str) -> None:
    used = {"promptTokenCount": 1000, "candidatesTokenCount": 1000, "totalTokenCount": 2000}
    answer = {**gemini_chunk("Four.", finish="STOP"), "usageMetadata": used, "modelVersion": said}
    message = {
        "type": "ai",
        "response_metadata": {"model_name": said, "model_provider": "google_genai"},
        "usage_metadata": {"input_tokens": 1000, "output_tokens": 1000, "total_tokens": 2000},
    }
    app = llm_answering([compact(answer)], "application/json")
    async with metered(app, "memory://", plans=NAMED) as at:
        await give(at, 10)
        assert await ask(at, 1, model=said) == 200
        assert (await spent(at), await at.counted(meter="flash")) == (11_250, (1000, 0))
        found = await at.kit.record_usage("acme", message)
        assert found is not None
        assert found.model == "gemini-2.5-pro"
        assert found.charged_micros == 11_250


async def test_a_sum_of_calls_costs_the_price_of_short_input(store_url: str) -> None:
    usage = {"input_tokens": 300_000, "output_tokens": 0, "total_tokens": 300_000}
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 10)
        await at.kit.record_usage("acme", {"gpt-5.4": usage})  # As LangChain's counter has it.
        assert await spent(at) == 300_000 * Fraction(5, 2) * MARKUP
        await at.kit.record_usage("acme", {"object": "response", "model": "gpt-5.4", "usage": usage})
        assert await spent(at) == 300_000 * (Fraction(5, 2) + 5) * MARKUP


async def test_each_line_of_a_batch_is_charged_the_batch_price(store_url: str) -> None:
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


async def test_figures_by_path_cost_the_requested_models_price(store_url: str) -> None:
    line = "usage_fields: {input_tokens: stats.in, output_tokens: stats.out}"
    app = llm_answering([compact({"stats": {"in": 1000, "out": 100}})], "application/json")
    async with metered(
        app, store_url, plans=PLANS.replace(f"usage: openai, {RESERVE}, model: request", line)
    ) as at:
        await give(at, 1)
        assert await ask(at, 1, model="gpt-4o-mini") == 200
        assert await spent(at) == 273  # A thousand at 0.15 and a hundred at 0.6, and 30 %.
        assert await at.counted(meter="input_tokens") == (1000, 0)


# Calls at once end a balance below zero, and what costs nothing is served without a balance.
UNHELD: Final = """
meters: {output_tokens: {unit: token}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {"own-*": {input_tokens: 0, output_tokens: 1.82 per 1_000_000},
      "gift-*": {input_tokens: 0, output_tokens: 0},
      "half-*": {input_tokens: 0, output_tokens: 0, requests: 0.5}}
routes:
  - {match: "POST /plain", usage: openai}
  - match: "POST /held"
    usage: openai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 1_000}}
"""


async def balance(at: Served) -> int:
    return (await at.kit.usage("acme"))["balance_micros"]["usd"]


async def test_calls_admitted_at_once_are_paid_by_the_next_grant(store_url: str) -> None:
    waiting, arrived = asyncio.Event(), list[bool]()

    async def wait() -> None:
        arrived.append(True)
        await waiting.wait()

    async with metered(answering(wait), store_url, plans=UNHELD) as at:
        await give(at, 1)
        asking = [asyncio.create_task(ask(at, MICRO, said="own-7b", path="/plain")) for _ in range(20)]
        await until(lambda: len(arrived) == len(asking))
        waiting.set()
        assert set(await asyncio.gather(*asking)) == {200}
        assert await balance(at) == MICRO - 20 * 1_820_000 == -35_400_000
        refused = await at.client.post("/plain", content=b"{}")
        problem = refused.json()
        del problem["instance"]  # A random number may have any digits.
        assert (refused.status_code, problem["reason"]) == (402, "credits")
        assert "-35" not in str(problem)
        await give(at, 40)
        assert (await balance(at), await ask(at, 1, said="own-7b", path="/plain")) == (4_600_000, 200)


@pytest.mark.parametrize("path", ["/plain", "/held"])
async def test_without_charged_models_no_balance_is_needed(path: str) -> None:
    plans = UNHELD.replace("tokens: provider_prices", 'tokens: provider_prices, markup: "-100%"')
    async with metered(answering(), "memory://", plans=plans) as at:
        for model in ("gpt-4o", "own-7b", "of-no-provider", None):
            assert await ask(at, 7, model=model, said=model, path=path) == 200
        assert (await at.kit.usage("acme"))["meters"]["usd_charged"]["recorded"] == 0


async def test_a_request_for_a_free_model_needs_no_balance() -> None:
    both = b'{"model": "own-7b", "model": "gift-1", "max_tokens": 5, "messages": []}'
    gifts = b'{"model": "gift-2", "model": "gift-1", "max_tokens": 5, "messages": []}'
    async with metered(answering(), "memory://", plans=UNHELD) as at:
        # No model is read off a request that reserves nothing.
        assert await ask(at, 7, model="gift-1", said="gift-1", path="/plain") == 402
        assert await ask(at, 7, body=both, path="/held") == 402
        assert await ask(at, 7, body=gifts, path="/held") == 200
        for _ in range(2):
            assert await ask(at, 7, model="gift-1", said="gift-1", path="/held") == 200
            for model in ("half-1", "own-7b", "of-no-provider", None):
                assert await ask(at, 7, model=model, said=model, path="/held") == 402
            await give(at, 1)
            await at.kit.record("acme", "usd_charged", 3 * MICRO)
        assert (await at.kit.usage("acme"))["meters"]["usd_charged"]["held"] == 0


# Budgets: racing answers and streams spend no more than there is, and all that fits.
MONEY: Final = """
default_plan: pro
meters: {input_tokens: {unit: token}, output_tokens: {unit: token}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 30%}
    models: {"small-*": {input_tokens: 10 per 1_000_000, output_tokens: 10 per 1_000_000},
      "large-*": {input_tokens: 50 per 1_000_000, output_tokens: 50 per 1_000_000}}
routes:
  - match: "POST /chat"
    usage: openai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
plans:
  pro: {price: {amount_cents: 0, interval: month}, budget: {amount_cents: BUDGET}}
"""
PRICED: Final = """
default_plan: pro
meters: {output_tokens: {unit: token, stripe: {event_name: out}}}
prices: {out: {default: 3 per 1000, models: {"small-*": 1 per 1000, "large-*": 5.005 per 1000}}}
routes:
  - match: "POST /chat"
    usage: openai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 2_000_000}}
plans:
  pro: {price: {amount_cents: 2000, interval: month}, budget: {amount_cents: BUDGET},
    subjects: {user: {budget: {amount_cents: OWN}}},
    meters: {output_tokens: {included: 0, overage: {bill: {price: prices.out}}}}}
"""
LIMIT: Final = 10_000_000
USERS: Final = identify.header("x-customer-id", subjects={"user": "x-user-id"})


def streaming(ending: asyncio.Event) -> ASGIApp:

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        headers = dict(scope["headers"])
        said: Any = {"id": "1", "model": headers[b"x-model"].decode(), "choices": []}
        usage = chat_usage(1, int(headers[b"x-tokens"]))
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for piece in (chat(None, **said), chat(None, **said, usage=usage)):
            await send({"type": "http.response.body", "body": sse(piece), "more_body": True})
            await ending.wait()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


async def spend_of(at: Served) -> int:
    return (await at.counted(meter="spend"))[0]


async def of_user(at: Served, user: str) -> int | None:
    return {one.subject: one.spent_micros for one in await at.kit.usage("acme", by="user")}[user]


async def test_i3_racing_answers_do_not_overshoot_a_budget(store_url: str) -> None:
    ending, calls = asyncio.Event(), drawn(11, 250, "any")
    plans = PRICED.replace("BUDGET", "1000").replace("OWN", "5000").replace("included: 0", "included: 5000")
    async with metered(answering(ending.wait), store_url, plans=plans) as at:
        served, refused = await race(at, ending, calls, [tokens for _, tokens in calls])
        assert await spend_of(at) == (served - 5000) * 30 <= LIMIT
        # Nothing was refused that fitted: ten dollars and what is included are 338,333 tokens.
        assert 338_333 - served < refused


@pytest.mark.parametrize(("budget", "balance"), [("1000", 50), ("5000", 10)])
async def test_i3_two_models_stay_in_budget_and_balance(store_url: str, budget: str, balance: int) -> None:
    """I3: ten dollars are spent to the last call that fits, whether the budget or the balance ends first."""
    ending, calls = asyncio.Event(), drawn(13, 200, "small-1", "large-1")
    async with metered(answering(ending.wait), store_url, plans=MONEY.replace("BUDGET", budget)) as at:
        await give(at, balance)
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        # One token goes in: what is held for the answer has room for it.
        served, refused = await race(at, ending, calls, costs, room=1)
        assert await spend_of(at) == served <= LIMIT
        assert (await at.kit.usage("acme"))["balance_micros"]["usd"] == balance * 1_000_000 - served >= 0
        assert LIMIT - served < refused


async def test_i3_streams_paid_by_a_balance_stay_in_a_users_budget(store_url: str) -> None:
    """I3: a user's ten dollars, of fifty that the customer has."""
    ending, calls = asyncio.Event(), drawn(19, 200, "small-1", "large-1")
    plans = MONEY.replace("BUDGET}", "5000}, subjects: {user: {budget: {amount_cents: 1000}}}")
    async with metered(streaming(ending), store_url, plans=plans, who=USERS) as at:
        await give(at, 50)
        at.client.headers["x-user-id"] = "u_7"
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        served, refused = await race(at, ending, calls, costs, room=1)
        assert await of_user(at, "u_7") == await spend_of(at) == served <= LIMIT
        assert LIMIT - served < refused
        assert (await at.kit.usage("acme"))["balance_micros"]["usd"] == 50_000_000 - served


@pytest.mark.parametrize(("budget", "own"), [(1000, 5000), (5000, 1000)])
async def test_i3_streams_of_priced_models_keep_both_budgets(store_url: str, budget: int, own: int) -> None:
    """I3: ten dollars are spent to the last stream that fits, whether they are the customer's or a user's."""
    ending, calls = asyncio.Event(), drawn(17, 300, "small-1", "large-1", "other")
    plans = PRICED.replace("BUDGET", f"{budget}").replace("OWN", f"{own}")
    async with metered(streaming(ending), store_url, plans=plans, who=USERS) as at:
        at.client.headers["x-user-id"] = "u_7"
        # In hundredths of a micro-dollar a token.
        prices = {"small-1": 1000, "large-1": 5005, "other": 3000}
        served, refused = await race(at, ending, calls, [prices[model] * tokens for model, tokens in calls])
        # Rounded up once for a customer, and down once for a user.
        assert await spend_of(at) == -(-served // 100) <= budget * 10_000
        assert await of_user(at, "u_7") == served // 100 <= own * 10_000
        # Of three models, each may be rounded up while streams are open.
        assert LIMIT - served // 100 - 3 < -(-refused // 100)
        # Another user has a budget of its own, inside the customer's.
        at.client.headers["x-user-id"] = "u_8"
        assert await ask(at, 4000, model="large-1", said="large-1") == (402 if budget < own else 200)


async def test_a_request_is_held_at_the_price_of_its_model(store_url: str) -> None:
    ending = asyncio.Event()
    ending.set()
    plans = PRICED.replace("BUDGET", "1000").replace("OWN", "1000")
    held = {"large-1": 199_800, "small-1": 1_000_000, "llama": 333_333, None: 199_800}
    async with metered(streaming(ending), store_url, plans=plans) as at:
        for model, most in held.items():
            assert await ask(at, 0, model=model, said="small-1", at_most=most + 1) == 402, model
            assert await ask(at, 0, model=model, said="small-1", at_most=most) == 200, model
        # What the answer names counts, whatever was asked for.
        assert await ask(at, 1000, model="small-1", said="large-1", at_most=1000) == 200
        assert await spend_of(at) == 50_050
