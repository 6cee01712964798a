"""Refusals for money: 402 for an empty balance, and amounts as people write them, in words and fields."""

from __future__ import annotations

from typing import Any, Final

import httpx
import pytest

from asgi.test_llm_model_prices import answering
from drivers.app import Served, served
from drivers.llm_apps import metered
from llm_payloads.recordings import compact
from meterkit import identify

pytestmark = pytest.mark.anyio

PLANS: Final = """
meters: {output_tokens: {unit: token}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {"own-*": {input_tokens: 0, output_tokens: 1_000 per 1_000_000}}
headers: both
billing: {portal_url: "https://app.example/pay"}
routes:
  - match: "POST /chat"
    usage: openai
    model: own-7b
    reserve: {output_tokens: {from: max_tokens, default: 1_000, ceiling: 1_000_000}}
  - {match: "POST /plain", usage: openai, model: own-7b}
  - {match: "*", consume: {output_tokens: 1}}
plans: {free: {price: {amount_cents: 0, interval: month}, meters: {METERS}}}
"""
WHO: Final = identify.header("x-customer-id", subjects={"user": "x-user-id"})


def _plans(meters: str = "", more: str = "") -> str:
    return PLANS.replace("{METERS}", f"{{{meters}}}{more}")


async def ask(
    at: Served, tokens: int = 100, *, path: str = "/chat", customer: str = "acme", user: str = "u"
) -> httpx.Response:
    headers = {"x-tokens": str(tokens), "x-model": "own-7b", "x-customer-id": customer, "x-user-id": user}
    return await at.client.post(
        path, content=compact({"max_tokens": tokens, "messages": []}), headers=headers
    )


def told(answer: httpx.Response) -> dict[str, Any]:
    """The problem document; no field and no member counts millionths."""
    assert "micro" not in f"{answer.headers}{answer.text}".lower()
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize(
    ("meters", "path"),
    [("", "/chat"), ("", "/plain"), ("output_tokens: {included: 1_000_000}", "/chat")],
)
async def test_f_331_an_empty_balance_is_402(meters: str, path: str) -> None:
    """F-331: 429 "allows 0 micro-USDs in this billing period … choose a plan with more"."""
    async with metered(answering(), "memory://", plans=_plans(meters)) as at:
        for customer in ("newcomer", "acme"):
            answer = await ask(at, path=path, customer=customer)
            problem = told(answer)
            assert (answer.status_code, problem["reason"]) == (402, "credits")
            assert problem["detail"] == "Your balance is empty. Top up to continue."
            assert problem["top_up_url"] == "https://app.example/pay"
            assert "retry-after" not in answer.headers
            await at.kit.grants.add("acme", {"usd": 1}, grant_id="void")
            await at.kit.grants.void("acme", "void")


async def test_f_331_what_a_plan_gives_in_money_is_402_once_used() -> None:
    async with metered(answering(), "memory://", plans=_plans("usd_charged: {included: 500_000}")) as at:
        served_ = await ask(at, 500)
        assert (served_.status_code, served_.headers["ratelimit"].split(";t=")[0]) == (
            200,
            '"usd_charged-period";r=0',
        )
        assert served_.headers["ratelimit-policy"] == '"usd_charged-period";q=50;qu="cents"'
        assert (served_.headers["x-ratelimit-limit"], "micro" in str(served_.headers)) == ("50", False)
        answer = await ask(at, 1)
        assert (answer.status_code, told(answer)["left"]) == (402, "$0.00")


async def test_f_331_a_rate_in_money_is_no_balance() -> None:
    async with metered(answering(), "memory://", plans=_plans("usd_charged: {rate: 500_000/hour}")) as at:
        await at.kit.grants.add("acme", {"usd": 10}, grant_id="paid")
        answer = await ask(at, 400)
        assert answer.status_code == 200
        assert '"usd_charged-1h";q=50;qu="cents";w=3600' in answer.headers["ratelimit-policy"]
        assert answer.headers["ratelimit"].startswith('"usd_charged-1h";r=10;')
        problem = told(await ask(at, 400))
        assert (problem["status"], problem["violated-policies"]) == (429, ["usd_charged-1h"])
        assert problem["detail"].startswith('Policy "usd_charged-1h" allows $0.50 per hour. ')


async def test_f_331_what_each_user_may_use_is_no_balance() -> None:
    plans = _plans("", ", subjects: {user: {usd_charged: {included: 500_000}}}")
    async with served(answering(), plans=plans, who=WHO) as at:
        await at.kit.grants.add("acme", {"usd": 10}, grant_id="paid")
        assert (await ask(at, 500)).status_code == 200
        problem = told(await ask(at, 500))
        assert (problem["status"], problem["violated-policies"]) == (429, ["user:usd_charged-period"])
        assert "allows $0.50 in this billing period." in problem["detail"]
