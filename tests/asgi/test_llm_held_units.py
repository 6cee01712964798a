"""Units and ways of processing that have prices of their own: what is held for them, and their meters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

import meterkit
from asgi.test_llm_model_prices import answering
from drivers.llm_apps import metered, read_all
from tokens.recordings import compact

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  output_tokens: {unit: token}
  input_audio_tokens: {unit: token}
  web_searches: {unit: search, stripe: {event_name: searches}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models:
      "own-*":
        input_tokens: 0 per 1_000_000
        input_audio_tokens: 10_000 per 1_000_000
        output_tokens: 1_000 per 1_000_000
        web_searches: 1
        service_tier: {priority: 200%, flex: 50%}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - match: "POST /search"
    usage: openai
    records: [web_searches]
    reserve: {output_tokens: {default: 1_000}, web_searches: {from: max_uses, default: 1, ceiling: 9}}
  - {match: "POST /listen", usage: openai, records: [input_audio_tokens]}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      web_searches: {included: 4, overage: bill}
      input_audio_tokens: {included: 10, overage: deny}
"""


async def asked(at: Served, path: str, **body: Any) -> int:
    content = compact({"model": "own-7b", "messages": [{"role": "user", "content": "Hello."}], **body})
    headers = {"x-tokens": "5", "x-model": "own-7b"}
    return (await at.client.post(path, content=content, headers=headers)).status_code


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"service_tier": "flex"}, 200),
        ({"service_tier": "priority"}, 402),
        ({"serviceTier": "PRIORITY"}, 402),
        ({"service_tier": None, "SERVICE_TIER": "priority"}, 402),
        ({"input": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}, 402),
        ({"input": "no sound"}, 200),
    ],
)
async def test_f_216_a_hold_covers_the_dearest_of_the_request(
    more: dict[str, Any], status: int, store_url: str
) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        await at.kit.grants.add("acme", {"usd": 1}, grant_id="first")
        # 900 tokens of 1,000 micro-dollars; at priority twice that; sound goes in at 10,000 each.
        assert await asked(at, "/chat", max_tokens=900, **more) == status


async def test_an_unreadable_request_is_held_at_the_dearest_way(store_url: str) -> None:
    plans = PLANS.replace("ceiling: 100_000", "ceiling: 900").replace(
        "usage: openai\n", "usage: openai\n    model: own-7b\n", 1
    )
    async with metered(answering(), store_url, plans=plans) as at:
        await at.kit.grants.add("acme", {"usd": 1}, grant_id="first")
        answer = await at.client.post("/chat", content=b'{"max_tokens": 1', headers={"x-tokens": "5"})
        assert answer.status_code == 402


async def searching(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and record three searches or eight tokens of sound."""
    await read_all(receive)
    if scope["path"] == "/search":
        meterkit.record("web_searches", 3)
    else:
        meterkit.record("input_audio_tokens", 8)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_meters_of_units_have_what_meters_have(store_url: str) -> None:
    async with metered(searching, store_url, plans=PLANS) as at:
        await at.kit.grants.add("acme", {"usd": 100}, grant_id="first")
        for status in (200, 200):
            assert await asked(at, "/search", max_uses=3) == status
        assert [await asked(at, "/listen") for _ in range(3)] == [200, 200, 429]
        assert await asked(at, "/search", max_uses=10) == 400
        meters = (await at.kit.usage("acme"))["meters"]
        assert (meters["web_searches"]["recorded"], meters["web_searches"]["overage"]) == (6, 2)
        assert meters["input_audio_tokens"]["recorded"] == 16


async def test_searches_that_are_set_aside_are_held_at_their_price(store_url: str) -> None:
    async with metered(searching, store_url, plans=PLANS) as at:
        await at.kit.grants.add("acme", {"usd": 5}, grant_id="first")
        # 1,000 tokens are a dollar, and so is each search.
        assert [await asked(at, "/search", max_uses=uses) for uses in (9, 1)] == [402, 200]
