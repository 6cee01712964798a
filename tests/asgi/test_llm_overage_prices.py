"""Overage at prices by model: the model that a streamed answer names counts; a budget holds the request's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import until
from drivers.llm_apps import metered, read_all
from tokens.recordings import compact

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: paid
meters:
  output_tokens: {unit: token, stripe: {event_name: out}}
prices:
  output: {default: 0.4, models: {"gpt-*-mini": 0.1, "*opus*": 2, "gpt-*": 0.8}}
routes:
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
plans:
  paid:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 4000}
    meters: {output_tokens: {included: 100, overage: {bill: {price: prices.output}}}}
"""
MICROS: Final = {"mini": 1_000, "opus": 20_000, "gpt": 8_000, "other": 4_000}


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream an answer, whose chunks name the model in the request's header and in the end the tokens."""
    await read_all(receive)
    headers = dict(scope["headers"])
    said, tokens = headers.get(b"x-model", b"").decode(), int(headers[b"x-tokens"])
    chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "choices": []}
    if said:
        chunk["model"] = said
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    for piece in (chunk, chunk | {"usage": usage}):
        await send(
            {"type": "http.response.body", "body": b"data: " + compact(piece) + b"\n\n", "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def ask(at: Served, tokens: int, *, model: str | None, said: str | None, at_most: int) -> int:
    asked: dict[str, Any] = {"messages": [], "stream": True, "max_tokens": at_most}
    headers = {"x-tokens": str(tokens)} | ({} if said is None else {"x-model": said})
    content = compact(asked | ({} if model is None else {"model": model}))
    answer = await at.client.post("/chat", content=content, headers=headers)
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))
    return answer.status_code


async def spent(at: Served) -> int:
    return (await at.kit.usage("acme"))["meters"]["spend"]["recorded"]


@pytest.mark.parametrize(
    ("asked", "said", "row"),
    [
        ("gpt-6-mini", "gpt-6-mini", "mini"),
        ("gpt-6-mini", "claude-opus-5", "opus"),
        ("claude-opus-5", "gpt-6", "gpt"),
        ("claude-opus-5", None, "opus"),
        (None, None, "opus"),
        ("x" * 10_000, "llama", "other"),
        ("gpt-\n\x00-mini", "claude-opus-5", "opus"),
    ],
)
async def test_a_streamed_answer_costs_its_models_price(
    asked: str | None, said: str | None, row: str, store_url: str
) -> None:
    async with metered(streaming, store_url, plans=PLANS) as at:
        assert await ask(at, 1_100, model=asked, said=said, at_most=1_100) == 200
        assert await spent(at) == 1_000 * MICROS[row]
        counts = (await at.kit.usage("acme"))["meters"]["output_tokens"]
        assert (counts["recorded"], counts["overage"]) == (1_100, 1_000)
        assert counts["overage_cents"] == MICROS[row] // 10


async def test_a_request_is_held_at_the_price_of_its_model(store_url: str) -> None:
    async with metered(streaming, store_url, plans=PLANS) as at:
        for model, most in (
            ("claude-opus-5", 2_100),
            ("gpt-6-mini", 40_100),
            ("llama", 10_100),
            (None, 2_100),
        ):
            assert await ask(at, 0, model=model, said="gpt-6-mini", at_most=most + 1) == 402
            assert await ask(at, 0, model=model, said="gpt-6-mini", at_most=most) == 200
