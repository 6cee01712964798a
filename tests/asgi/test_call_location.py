"""The location of a call: the request's path and body say it, and its price follows."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

import pytest
from starlette.types import Receive, Scope, Send

import meterkit
from asgi.test_llm_money import give, spent
from drivers.app import Served
from drivers.delivery import until
from drivers.llm_apps import answering, metered
from llm_payloads.recordings import compact

pytestmark = pytest.mark.anyio

PLANS: Final = """
meters: {input_tokens: {unit: token}, output_tokens: {unit: token}}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}, unknown_model: deny}
routes:
  - match: "POST /{path:path}"
    usage: auto
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 1000, ceiling: 2_000_000}}
"""
TENTH_MORE: Final = Fraction(11, 10)


def of_anthropic(model: str, **usage: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {"input_tokens": 100_000, "output_tokens": 100_000, **usage}
    said: dict[str, Any] = {"id": "m1", "type": "message", "role": "assistant", "content": []}
    return {**said, "model": model, "usage": figures}


def of_gemini(model: str) -> dict[str, Any]:
    figures = {"promptTokenCount": 100_000, "candidatesTokenCount": 100_000, "totalTokenCount": 200_000}
    return {"candidates": [{"content": {"parts": []}}], "modelVersion": model, "usageMetadata": figures}


def of_openai(model: str) -> dict[str, Any]:
    figures = {"prompt_tokens": 100_000, "completion_tokens": 100_000, "total_tokens": 200_000}
    return {"id": "c1", "object": "chat.completion", "choices": [], "model": model, "usage": figures}


async def ask(at: Served, path: str, asked: dict[str, Any]) -> int:
    answer = await at.client.post(path, content=compact(asked))
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))
    return answer.status_code


async def charged(url: str, path: str, said: dict[str, Any], *, plans: str = PLANS, **asked: Any) -> int:
    """Micro-dollars that a customer pays for a call that is answered so."""
    async with metered(answering([compact(said)], "application/json"), url, plans=plans) as at:
        await give(at, 100)
        assert await ask(at, path, {"max_tokens": 100_000, "messages": "x" * 400_000} | asked) == 200
        return await spent(at)


def vertex(location: str, model: str, publisher: str = "anthropic") -> str:
    return f"/v1/projects/p/locations/{location}/publishers/{publisher}/models/{model}:rawPredict"


@pytest.mark.parametrize(
    ("location", "said", "factor"),
    [
        ("europe-west1", of_anthropic("claude-sonnet-4-5-20250929"), TENTH_MORE),
        ("us", of_anthropic("claude-opus-5"), TENTH_MORE),
        ("us-east5", of_anthropic("claude-3-haiku-20240307"), 1),  # It costs the same everywhere.
        ("europe-west1", of_gemini("gemini-3.5-flash"), TENTH_MORE),
        ("eu", of_openai("google/gemini-3.5-flash"), TENTH_MORE),
        ("us-central1", of_gemini("gemini-2.5-flash"), 1),
    ],
)
async def test_f_323_vertex_costs_more_at_a_regional_endpoint(
    location: str, said: dict[str, Any], factor: Fraction, store_url: str
) -> None:
    model = said.get("model") or said["modelVersion"]
    found = await charged(store_url, vertex(location, model), said)
    assert found == factor * await charged(store_url, vertex("global", model), said) > 0


async def test_f_323_vertex_has_a_location_in_the_openai_shape_too(store_url: str) -> None:
    said = of_openai("google/gemini-3.5-flash")
    paths = [f"/v1/projects/p/locations/{at}/endpoints/openapi/chat/completions" for at in ("eu", "global")]
    regional, everywhere = [await charged(store_url, path, said, model=said["model"]) for path in paths]
    assert regional == TENTH_MORE * everywhere > 0


@pytest.mark.parametrize("usage", ["auto", "bedrock"])
async def test_f_323_bedrock_costs_by_its_inference_profile(usage: str, store_url: str) -> None:
    said, plans = of_anthropic("claude-sonnet-4-5-20250929"), PLANS.replace("usage: auto", f"usage: {usage}")
    prefixes = ("global.", "eu.", "")
    paths = [f"/model/{prefix}anthropic.claude-sonnet-4-5-20250929-v1:0/invoke" for prefix in prefixes]
    everywhere, *regional = [await charged(store_url, path, said, plans=plans) for path in paths]
    assert regional == [TENTH_MORE * everywhere] * 2
    assert everywhere > 0


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        (of_openai("anthropic/claude-opus-5"), TENTH_MORE),  # A gateway's answer has no place for it.
        (of_anthropic("claude-opus-5", inference_geo="global"), 1),
        (of_openai("gpt-4o"), 1),
    ],
)
async def test_f_323_a_requested_location_counts_unless_answered(
    said: dict[str, Any], factor: Fraction, store_url: str
) -> None:
    plain = await charged(store_url, "/chat", said, model=said["model"])
    found = await charged(store_url, "/chat", said, model=said["model"], inference_geo="us")
    assert found == factor * plain > 0


@pytest.mark.parametrize(
    ("prompt", "encode", "factor"),
    [
        ("x" * 1_100_000, bytes, 1 + TENTH_MORE),
        ("," * 20_000, bytes, 1 + TENTH_MORE),
        ("x" * 1_100_000, gzip.compress, 2 * TENTH_MORE),  # What cannot be read may ask for any location.
    ],
    ids=["large", "dense", "coded"],
)
async def test_f_323_a_location_counts_in_a_body_beyond_bounds(
    prompt: str, encode: Callable[[bytes], bytes], factor: Fraction, store_url: str
) -> None:
    said, plans = of_openai("anthropic/claude-opus-5"), PLANS.replace(", unknown_model: deny", "")
    asked = {"messages": prompt, "model": said["model"], "max_tokens": 100_000}
    headers = {"content-encoding": "gzip"} if encode is gzip.compress else {}
    everywhere = await charged(store_url, "/chat", said, plans=plans, model=said["model"])
    async with metered(answering([compact(said)], "application/json"), store_url, plans=plans) as at:
        await give(at, 10_000)
        for place in ("global", "us"):
            body = encode(compact(asked | {"inference_geo": place}))
            answer = await at.client.post("/chat", content=body, headers=headers)
            assert answer.status_code == 200
        await until(lambda: not any(lane.unsettled for lane in at.kit.store.lanes.values()))
        assert await spent(at) == everywhere * factor > 0


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/chat", {"inference_geo": "us"}),
        ("/v1/projects/p/locations/eu/endpoints/openapi/chat/completions", {}),
    ],
)
async def test_f_323_late_usage_has_the_location_of_its_request(
    path: str, asked: dict[str, Any], store_url: str
) -> None:
    said, over, tasks = of_openai("anthropic/claude-opus-5"), asyncio.Event(), list[asyncio.Task[None]]()

    async def report() -> None:
        await over.wait()
        meterkit.record_usage(said)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = "/"  # As some routers do.
        tasks.append(asyncio.create_task(report()))
        await answering([b"{}"], "application/json")(scope, receive, send)

    everywhere = await charged(store_url, "/chat", said, model=said["model"])
    async with metered(app, store_url, plans=PLANS) as at:
        await give(at, 100)
        given = {"max_tokens": 1_000, "messages": "x" * 100_000, "model": said["model"]}
        assert await ask(at, path, given | asked) == 200
        over.set()
        await asyncio.gather(*tasks)
        await until(lambda: not any(lane.unsettled for lane in at.kit.store.lanes.values()))
        assert await spent(at) == TENTH_MORE * everywhere > 0


@pytest.mark.parametrize("path", ["/model/claude-opus-5/invoke", "/locations/paris/endpoints/chat"])
async def test_f_323_an_apps_own_paths_name_no_location(path: str, store_url: str) -> None:
    said = of_anthropic("claude-opus-5")
    assert await charged(store_url, path, said) == await charged(store_url, "/chat", said) > 0


async def test_i3_a_regional_call_is_held_at_its_regional_price(store_url: str) -> None:
    said = of_anthropic("claude-opus-5")
    cost = await charged(store_url, vertex("global", "claude-opus-5"), said)
    assert (cost % 1_000_000, cost // 1_000_000) == (0, 3)  # 0.1 million tokens at 5 and at 25 dollars.
    async with metered(answering([compact(said)], "application/json"), store_url, plans=PLANS) as at:
        await give(at, 3)  # Enough at the global endpoint, without input.
        for location, status in (("europe-west1", 402), ("global", 200)):
            path = vertex(location, "claude-opus-5")
            assert await ask(at, path, {"max_tokens": 115_000, "messages": []}) == status, location
