"""Answers that a customer makes the model write: they lower nothing of what the app itself reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import meterkit
from asgi.test_client_leaves import LeavingClient, forever
from asgi.test_llm_money import give, spent
from drivers.llm_apps import PROMPT, PROMPT_TOKENS, metered, stream_of, tokens
from faults.refusals import settled
from llm_payloads.recordings import chat, chat_usage, compact, sse

pytestmark = pytest.mark.anyio

TEXTS: Final = ("This is a long and useful answer. " * 20,) * 5
NOTHING: Final = sse({"id": "x", **chat({}), "usage": chat_usage(0, 0)}).decode()
BROKEN: Final = sse({"error": "x"}).decode()


def telling(texts: tuple[str, ...], *, ends: bool, identity: str = "chatcmpl-real") -> Starlette:
    """An app that taps a provider's stream, which reports no usage, and sends its text on."""
    chunks = [{**chat({"content": text}), "id": identity} for text in texts]

    async def endpoint(request: Request) -> Response:
        assert await request.body()

        async def said() -> AsyncIterator[Any]:
            async for chunk in stream_of(chunks):
                yield chunk
            if not ends:
                await forever(request)

        async def body() -> AsyncIterator[str]:
            async for chunk in meterkit.tap(said()):
                yield chunk["choices"][0]["delta"]["content"]

        return StreamingResponse(body(), media_type="text/plain")

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("identity", ["chatcmpl-real", "x"])
async def test_an_event_in_a_text_does_not_lower_its_estimate(
    identity: str, store_url: str, *, ends: bool
) -> None:
    texts = (NOTHING, *([BROKEN] if ends else []), *TEXTS)
    async with metered(telling(texts, ends=ends, identity=identity), store_url) as at:
        await LeavingClient(after=0 if ends else len(texts), waits=ends).ask(at, "/auto")
        assert await tokens(at.kit) == (PROMPT_TOKENS, sum(map(len, texts)) // 4)


PRICED: Final = """
meters: {requests: {unit: request}, input_tokens: {unit: token}, output_tokens: {unit: token}}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}}
routes:
  - {match: "POST /auto", consume: {requests: 1}, usage: auto}
"""
USAGE: Final = chat_usage(1000, 500)
SAID: Final[dict[str, Any]] = {
    "object": "chat.completion",
    "choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
    "usage": USAGE,
}
REAL: Final[dict[str, Any]] = {**SAID, "id": "chatcmpl-real", "model": "gpt-5"}
PARTS: Final = [
    {**SAID, "model": "gpt-5-nano", "id": name, "usage": chat_usage(entered, left)}
    for name, entered, left in (("a", 400, 200), ("b", 600, 300))
]
CONVERSE: Final[dict[str, Any]] = {
    "output": {"message": {"role": "assistant", "content": [{"text": "x"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 1000, "outputTokens": 500, "totalTokens": 1500},
}
JOB: Final[dict[str, Any]] = {
    "object": "response",
    "background": True,
    "id": "resp_x",
    "status": "completed",
    "model": "m",
    "usage": {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500},
}
# 1,000 tokens at 1.25 and 500 at 10 dollars a million.
PRICE: Final = 6250


def answering(answer: Any, *reports: Any) -> Starlette:
    async def endpoint(request: Request) -> Response:
        assert await request.body()
        for report in reports:
            meterkit.record_usage(report)
        return JSONResponse(answer)

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])


async def charged(app: Starlette, url: str, **asked: str) -> int:
    async with metered(app, url, plans=PRICED) as at:
        await give(at, 10)
        body = compact({**asked, "messages": []})
        assert (await at.client.post("/auto", content=body)).status_code == 200
        await settled(at.kit)
        assert await tokens(at.kit) == (1000, 500)
        return await spent(at)


@pytest.mark.parametrize(
    ("report", "answer"),
    [
        (REAL, {**SAID, "provider": "x", "usage": {**USAGE, "cost": 0}}),
        (REAL, {**SAID, "service_tier": "flex"}),
        (USAGE, {**SAID, "model": "gpt-5-nano"}),
        (USAGE, PARTS),
        (USAGE, {**SAID, "usage": chat_usage(1000, 500, prompt_tokens_details={"cached_tokens": 1000})}),
        (
            REAL,
            {
                "finish_reason": "COMPLETE",
                "message": {"role": "assistant", "content": []},
                "usage": {
                    "tokens": {"input_tokens": 1000, "output_tokens": 500},
                    "billed_units": {"input_tokens": 0, "output_tokens": 0},
                },
            },
        ),
    ],
    ids=["amount", "tier", "model", "sum of a cheaper model", "cached", "billed units"],
)
async def test_an_answer_does_not_lower_the_price_of_a_report(
    report: Any, answer: Any, store_url: str
) -> None:
    assert await charged(answering(answer, report), store_url, model="gpt-5") == PRICE


@pytest.mark.parametrize(
    ("identity", "model", "asked", "calls"),
    [
        ("chatcmpl-next", "gpt-5-mini", "gpt-5", 2),
        ("own-2", "gpt-5-mini", "gpt-5", 1),  # The app's own id.
        ("chatcmpl-next", "my-assistant", "gpt-5", 1),
        ("chatcmpl-next", "gpt-5-2025-08-07", "gpt-5", 1),
        ("chatcmpl-next", "gpt-5-mini", "gpt-5-mini", 1),  # As asked; another has answered.
    ],
)
async def test_two_models_under_ids_of_one_form_are_two_calls(
    identity: str, model: str, asked: str, calls: int, store_url: str
) -> None:
    app = answering({**REAL, "id": identity, "model": model}, REAL)
    async with metered(app, store_url) as at:
        await at.client.post("/auto", json={"model": asked})
        assert await tokens(at.kit) == (1000 * calls, 500 * calls)


async def test_an_answer_names_the_model_if_nothing_else_does(store_url: str) -> None:
    app = answering({**SAID, "id": "own-1", "model": "gpt-5"}, USAGE)
    assert await charged(app, store_url) == PRICE
    assert await charged(app, store_url, model="gpt-5-nano") == PRICE // 25


async def test_an_answer_makes_no_job_of_a_reported_call(store_url: str) -> None:
    async with metered(answering(JOB, CONVERSE), store_url) as at:
        for _ in range(3):
            await at.client.post("/auto", content=PROMPT)
        await settled(at.kit)
        assert await tokens(at.kit) == (3000, 1500)


ANTHROPIC: Final[dict[str, Any]] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [],
    "usage": {
        "input_tokens": 9,
        "output_tokens": 16,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1000,
    },
}
COHERE: Final[dict[str, Any]] = {
    "id": "c-1",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": []},
    "usage": {
        "billed_units": {"input_tokens": 5, "output_tokens": 7},
        "tokens": {"input_tokens": 70, "output_tokens": 8},
    },
}

GEMINI: Final[dict[str, Any]] = {
    "responseId": "g-1",
    "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 20, "thoughtsTokenCount": 80},
}


@pytest.mark.parametrize(
    ("report", "measures", "counted"),
    [
        (ANTHROPIC, [(1109, 16), (9, 16), (1009, 16), (109, 16)], (1109, 16)),
        (COHERE, [(70, 8), (5, 7)], (70, 8)),
        (GEMINI, [(10, 100), (10, 20)], (10, 100)),
    ],
)
async def test_an_answer_in_another_measure_is_the_same_call(
    report: Any, measures: list[tuple[int, int]], counted: tuple[int, int], store_url: str
) -> None:
    for entered, left in measures:
        answer = {**SAID, "id": "own-1", "usage": chat_usage(entered, left)}
        async with metered(answering(answer, report), store_url) as at:
            await at.client.post("/auto", content=PROMPT)
            assert await tokens(at.kit) == counted
