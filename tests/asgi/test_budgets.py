"""Budgets at the edge: what a client is told, and that racing answers spend no more than there is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from asgi.test_llm_model_prices import answering, ask
from asgi.test_llm_overage_prices import ask as ask_stream
from asgi.test_llm_overage_prices import streaming
from drivers.delivery import NOW, until
from drivers.llm_apps import metered
from meterkit import identify

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
  images:        {unit: image, stripe: {event_name: images}}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - {match: "POST /plain", usage: openai}
  - {match: "/images", consume: {images: 1}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: 1000, per: PER}
    meters:
      output_tokens: {included: 5000, overage: {bill: {per: 1000, amount_cents: 3}}}
      images:        {included: 0, overage: {bill: {per: 1, amount_cents: 300}}}
"""
LIMIT: Final = 10_000_000


async def spent(at: Served) -> int:
    return (await at.kit.usage("acme"))["meters"]["spend"]["recorded"]


@pytest.mark.parametrize(
    ("per", "policy", "window", "ends", "words"),
    [
        ("period", "spend-period", b"", datetime(2031, 7, 1, tzinfo=UTC), "21 days"),
        ("day", "spend-1d", b";w=86400", datetime(2031, 6, 11, tzinfo=UTC), "12 hours"),
        ("hour", "spend-1h", b";w=3600", datetime(2031, 6, 10, 13, tzinfo=UTC), "60 minutes"),
    ],
)
async def test_a_client_is_told_what_may_be_spent(
    per: str, policy: str, window: bytes, ends: datetime, words: str, store_url: str
) -> None:
    async with metered(answering(), store_url, plans=PLANS.replace("PER", per)) as at:
        quota = f'"{policy}";q=1000;qu="cents"' + window.decode()
        for left in (700, 400, 100):
            answer = await at.client.get("/images", headers={"x-tokens": "0"})
            assert answer.headers["ratelimit-policy"] == quota
            assert answer.headers["ratelimit"].startswith(f'"{policy}";r={left};t=')
        answer = await at.client.get("/images", headers={"x-tokens": "0"})
        assert answer.status_code == 402
        body = answer.json()
        assert body["type"] == "urn:meterkit:problem:spend-limit-reached"
        assert (body["limit_cents"], body["spent_cents"], body["currency"]) == (1000, 900, "usd")
        span = {"period": "billing period"}.get(per, per)
        assert f"may spend USD 10.00 per {span}, and USD 9.00 of it" in body["detail"]
        after = int((ends - NOW).total_seconds())
        assert body["reset_after_s"] == after
        assert body["detail"].endswith(f"More can be spent in {words}.")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert answer.headers["ratelimit"] == f'"{policy}";r=100;t={after}'
        # A second earlier nothing more can be spent, and then all of it.
        for seconds, status in ((after - 1, 402), (1, 200)):
            at.clock.advance(timedelta(seconds=seconds))
            answer = await at.client.get("/images", headers={"x-tokens": "0"})
            assert answer.status_code == status
        assert answer.headers["ratelimit"].startswith(f'"{policy}";r=700;t=')


async def test_a_request_that_may_cost_more_than_is_left_is_refused(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS.replace("PER", "period")) as at:
        await at.kit.record("acme", "output_tokens", 5000)
        # Ten dollars are 333,333 tokens: what is reserved must fit, not what the answer comes to.
        await at.kit.record("acme", "output_tokens", 300_000)
        assert await ask(at, 10, at_most=40_000) == 402
        assert await ask(at, 10, at_most=33_333) == 200
        await at.kit.record("acme", "output_tokens", 33_333)
        assert await ask(at, 10, path="/plain") == 402


async def test_i3_racing_answers_do_not_overshoot_a_budget(store_url: str) -> None:
    chance, waiting = Random(11), asyncio.Event()  # noqa: S311 - repeatable
    plans = PLANS.replace("PER", "period")
    async with metered(answering(waiting.wait), store_url, plans=plans) as at:  # type: ignore[arg-type]  # its result is not used
        calls = [chance.randrange(1, 4000) for _ in range(250)]
        asking = [asyncio.create_task(ask(at, tokens, at_most=tokens)) for tokens in calls]
        lanes = at.kit.store.lanes.values()
        await until(
            lambda: sum(task.done() for task in asking) + sum(len(lane.live) for lane in lanes) == len(calls)
        )
        waiting.set()
        statuses = await asyncio.gather(*asking)
        assert set(statuses) == {200, 402}
        served = sum(tokens for tokens, status in zip(calls, statuses, strict=True) if status == 200)
        assert await spent(at) == (served - 5000) * 30 <= LIMIT
        # Nothing was refused that fitted: ten dollars and what is included are 338,333 tokens.
        refused = [tokens for tokens, status in zip(calls, statuses, strict=True) if status == 402]
        assert 338_333 - served < min(refused)


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


@pytest.mark.parametrize(("budget", "balance"), [("1000", 50), ("5000", 10)])
async def test_i3_answers_of_two_models_stay_in_budget_and_balance(
    store_url: str, budget: str, balance: int
) -> None:
    """I3: ten dollars are spent to the last call that fits, whether the budget or the balance ends first."""
    chance, waiting = Random(13), asyncio.Event()  # noqa: S311 - repeatable
    plans = MONEY.replace("BUDGET", budget)
    async with metered(answering(waiting.wait), store_url, plans=plans) as at:  # type: ignore[arg-type]  # its result is not used
        await at.kit.grants.add("acme", {"usd": balance}, grant_id="1")
        calls = [(chance.choice(("small-1", "large-1")), chance.randrange(1, 4000)) for _ in range(250)]
        # One token goes in: what is held for the answer has room for it.
        asking = [
            asyncio.create_task(ask(at, tokens, model=model, said=model, at_most=tokens + 1))
            for model, tokens in calls
        ]
        lanes = at.kit.store.lanes.values()
        await until(
            lambda: sum(task.done() for task in asking) + sum(len(lane.live) for lane in lanes) == len(calls)
        )
        waiting.set()
        statuses = await asyncio.gather(*asking)
        assert set(statuses) == {200, 402}
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        served = sum(cost for cost, status in zip(costs, statuses, strict=True) if status == 200)
        assert await spent(at) == served <= LIMIT
        left = (await at.kit.usage("acme"))["balance_micros"]["usd"]
        assert left == balance * 1_000_000 - served >= 0
        refused = [cost for cost, status in zip(costs, statuses, strict=True) if status == 402]
        assert LIMIT - served < min(refused)


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
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: BUDGET}
    subjects: {user: {budget: {amount_cents: OWN}}}
    meters: {output_tokens: {included: 0, overage: {bill: {price: prices.out}}}}
"""
USERS: Final = identify.header("x-customer-id", subjects={"user": "x-user-id"})


async def of_user(at: Served, user: str) -> int | None:
    """What a user has spent."""
    return {one.subject: one.spent_micros for one in await at.kit.usage("acme", by="user")}[user]


def streaming_until(ending: asyncio.Event) -> ASGIApp:
    """An app whose streams have begun, and end when they may."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def wait(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                await ending.wait()

        await streaming(scope, receive, wait)

    return app


async def race(
    at: Served, ending: asyncio.Event, calls: list[tuple[str, int]], *, room: int = 0
) -> list[int]:
    """Have all calls admitted or refused before the first one ends; their statuses.

    Each may answer with so many tokens more than it does.
    """
    asking = [
        asyncio.create_task(ask_stream(at, tokens, model=model, said=model, at_most=tokens + room))
        for model, tokens in calls
    ]
    lanes = at.kit.store.lanes.values()
    await until(
        lambda: sum(task.done() for task in asking) + sum(len(lane.live) for lane in lanes) == len(calls)
    )
    ending.set()
    return await asyncio.gather(*asking)


@pytest.mark.dear("600 streams at once: fewer reach no budget")
@pytest.mark.parametrize(("budget", "own"), [(1000, 5000), (5000, 1000)])
async def test_i3_streams_of_priced_models_stay_in_both_budgets(
    store_url: str, budget: int, own: int
) -> None:
    """I3: ten dollars are spent to the last stream that fits, whether they are the customer's or a user's."""
    chance, ending = Random(17), asyncio.Event()  # noqa: S311 - repeatable
    plans = PRICED.replace("BUDGET", f"{budget}").replace("OWN", f"{own}")
    async with metered(streaming_until(ending), store_url, plans=plans, who=USERS) as at:
        at.client.headers["x-user-id"] = "u_7"
        calls = [
            (chance.choice(("small-1", "large-1", "other")), chance.randrange(1, 4000)) for _ in range(600)
        ]
        statuses = await race(at, ending, calls)
        assert set(statuses) == {200, 402}
        # In hundredths of a micro-dollar a token.
        prices = {"small-1": 1000, "large-1": 5005, "other": 3000}
        costs = [prices[model] * tokens for model, tokens in calls]
        served = sum(cost for cost, status in zip(costs, statuses, strict=True) if status == 200)
        # Rounded up once for a customer, and down once for a user.
        assert await spent(at) == -(-served // 100) <= budget * 10_000
        assert await of_user(at, "u_7") == served // 100 <= own * 10_000
        refused = [cost for cost, status in zip(costs, statuses, strict=True) if status == 402]
        # Of three models, each may be rounded up while streams are open.
        assert LIMIT - served // 100 - 3 < -(-min(refused) // 100)
        # Another user has a budget of its own, inside the customer's.
        at.client.headers["x-user-id"] = "u_8"
        again = await ask_stream(at, 4000, model="large-1", said="large-1", at_most=4000)
        assert again == (402 if budget < own else 200)


async def test_i3_streams_paid_by_a_balance_stay_in_a_users_budget(store_url: str) -> None:
    """I3: a user's ten dollars, of fifty that the customer has."""
    chance, ending = Random(19), asyncio.Event()  # noqa: S311 - repeatable
    plans = MONEY.replace("BUDGET}", "5000}, subjects: {user: {budget: {amount_cents: 1000}}}")
    async with metered(streaming_until(ending), store_url, plans=plans, who=USERS) as at:
        await at.kit.grants.add("acme", {"usd": 50}, grant_id="1")
        at.client.headers["x-user-id"] = "u_7"
        calls = [(chance.choice(("small-1", "large-1")), chance.randrange(1, 4000)) for _ in range(250)]
        # One token goes in: what is held for the answer has room for it.
        statuses = await race(at, ending, calls, room=1)
        assert set(statuses) == {200, 402}
        costs = [13 * (tokens + 1) * (1 if model == "small-1" else 5) for model, tokens in calls]
        served = sum(cost for cost, status in zip(costs, statuses, strict=True) if status == 200)
        assert await of_user(at, "u_7") == await spent(at) == served <= LIMIT
        refused = [cost for cost, status in zip(costs, statuses, strict=True) if status == 402]
        assert LIMIT - served < min(refused)
        assert (await at.kit.usage("acme"))["balance_micros"]["usd"] == 50_000_000 - served
