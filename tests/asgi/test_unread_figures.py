"""A route warns once of token figures in its responses that `usage:` does not read."""

from __future__ import annotations

import json
from gzip import compress
from typing import TYPE_CHECKING, Any

import pytest

from asgi.test_llm_estimates import ask
from drivers.llm_apps import PLANS, answering, metered
from meterkit import record_usage
from tokens.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    NDJSON_TYPE,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    event_frame,
    gemini_chunk,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

OWN = {"answer": "x", "usage": {"read_tokens": 12, "spoken_tokens": 3}}
ROUTES = """
  - {match: "/v1/{path:path}", usage: auto}
  - {match: "/named/{path:path}", usage: openai}
  - {match: "/fields", usage: auto, usage_fields: {requests: usage.read_tokens}}
"""


async def warnings(
    caplog: pytest.LogCaptureFixture, app: ASGIApp, *paths: str, method: str = "POST"
) -> list[str]:
    """The lines that requests for these paths log."""
    plans = PLANS.replace("routes:\n", "routes:" + ROUTES, 1)
    async with metered(app, "memory://", plans=plans) as at:
        for path in paths or ("/auto",):
            await ask(at, path, method=method)
    return [found.getMessage() for found in caplog.records if found.name == "meterkit.asgi"]


async def paths_told(
    caplog: pytest.LogCaptureFixture,
    chunks: Sequence[bytes],
    kind: str = JSON_TYPE,
    **options: Any,
) -> list[str]:
    told = await warnings(caplog, answering(chunks, kind, **options))
    return [line.partition(" token figure at '")[2].partition("'")[0] for line in told if "figure at" in line]


async def test_a_route_warns_once_of_figures_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    app = answering([compact(OWN)], JSON_TYPE)
    told = await warnings(caplog, app, "/auto", "/auto", "/v1/ask", "/v1/other")
    assert len(told) == 2
    assert told[0].startswith(
        "/auto: a response has a token figure at 'usage.read_tokens' that `usage: auto`"
    )
    assert told[1].startswith("/v1/{path:path}: ")
    for cure in ("`usage: NAME`", "`usage_fields`", "meterkit.record_usage()"):
        assert cure in told[0]


FIGURES: dict[str, tuple[Any, str]] = {
    "camel": ({"info": {"inputTextTokens": 5}}, "info.inputTextTokens"),
    "count": ({"results": [{"tokenCount": 7, "outputText": "x"}]}, "results[].tokenCount"),
    "tokens of metadata": ({"messageMetadata": {"tokens": 5}}, "messageMetadata.tokens"),
    "beside a limit": ({"max_tokens": 100, "used_tokens": 5}, "used_tokens"),
    "hidden names": ({"by": {"sk-1234567890": {"total_tokens": 5}}}, "by.*.total_tokens"),
}


@pytest.mark.parametrize("name", FIGURES)
async def test_figures_are_found_by_name_in_documents_and_streams(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    event, path = FIGURES[name]
    assert [path] == await paths_told(caplog, [compact(event)])
    for body, kind in (
        (json.dumps(event, indent=2).encode(), "text/plain"),
        (compact([{"a": 1}, event]), JSON_TYPE),
        (b"data: {}\n\n" * 20 + sse(event) + b"data: [DONE]\n\n", SSE_TYPE),
        (b"{}\n" * 20 + compact(event) + b"\n", NDJSON_TYPE),
    ):
        caplog.clear()
        assert [path] == await paths_told(caplog, [body], kind)


async def test_an_unread_event_is_told_beside_calls_that_are_read(caplog: pytest.LogCaptureFixture) -> None:
    read = sse(chat(None, usage=chat_usage(7, 2)))
    assert ["usage.read_tokens"] == await paths_told(caplog, [read, sse(OWN)], SSE_TYPE)
    caplog.clear()
    coded = compress(compact({"values": [{"text": "x" * 50}] * 1_000, **OWN}))
    assert ["usage.read_tokens"] == await paths_told(caplog, [coded], coding="gzip")


COUNTING: dict[str, tuple[str, Any]] = {
    "anthropic": ("anthropic", {"input_tokens": 2095}),
    "gemini": (
        "gemini",
        {"totalTokens": 31, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 31}]},
    ),
    "openai": ("openai", {"object": "response.input_tokens", "input_tokens": 11}),
    "vllm": ("openai", {"count": 3, "max_model_len": 4096, "tokens": [1, 2, 3], "token_strs": None}),
    "cohere": (
        "cohere",
        {"tokens": [1], "token_strings": ["x"], "meta": {"billed_units": {"input_tokens": 1}}},
    ),
}


@pytest.mark.parametrize("name", COUNTING)
async def test_answers_of_counting_endpoints_bring_no_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    usage, body = COUNTING[name]
    assert [] == await warnings(caplog, answering([compact(body)], JSON_TYPE), f"/{usage}", "/auto")


@pytest.mark.parametrize("path", ["messages/count_tokens", "models/m:countTokens", "tokenize"])
async def test_paths_of_counting_endpoints_bring_no_warning(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for body in ({"data": {"total_tokens": 80}}, {"count": 9_000, "tokens": [11_111] * 9_000}):
        app = answering([compact(body)], JSON_TYPE)
        assert [] == await warnings(caplog, app, f"/v1/{path}", f"/named/{path}")


SILENT: dict[str, tuple[Any, str]] = {
    "a model of ollama": ({"model_info": {"tokenizer.ggml.bos_token_id": 128000}}, JSON_TYPE),
    "rate limits": ({"rate_limits": [{"name": "tokens", "limit_tokens": 9, "used_tokens": 3}]}, JSON_TYPE),
    "settings": ({"generation_settings": {"n_tokens": 5}, "thinking": {"budget_tokens": 9}}, JSON_TYPE),
    "texts": ({"usage": {"read_tokens": "5", "note": '"total_tokens": 5'}}, JSON_TYPE),
    "tokens elsewhere": ({"game": {"tokens": 5}}, JSON_TYPE),
    "a call that is read": ({**chat(None), "usage": chat_usage(7, 2), "spent_tokens": 5}, JSON_TYPE),
    "a run's step": ({"id": "s", "object": "thread.run.step", "usage": chat_usage(7, 2)}, SSE_TYPE),
    "pending work": (
        {"id": "b", "object": "batch", "status": "in_progress", "usage": {"some_tokens": 3}},
        JSON_TYPE,
    ),
}


@pytest.mark.parametrize("name", SILENT)
async def test_other_figures_bring_no_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    event, kind = SILENT[name]
    body = sse(event) if kind == SSE_TYPE else compact(event)
    assert [] == await paths_told(caplog, [body], kind)


async def test_figures_before_a_final_one_bring_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    early = {**gemini_chunk("x"), "usageMetadata": {"promptTokenCount": 8}}
    usage = {"promptTokenCount": 8, "candidatesTokenCount": 3, "totalTokenCount": 11}
    last = {**gemini_chunk("x"), "usageMetadata": usage}
    assert [] == await paths_told(caplog, [sse(early), sse(last)], SSE_TYPE)


async def test_failures_and_usage_fields_bring_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert [] == await warnings(caplog, answering([compact(OWN)], JSON_TYPE, status=400), "/auto")
    assert [] == await warnings(caplog, answering([compact(OWN)], JSON_TYPE), "/fields")
    told = await warnings(caplog, answering([compact(OWN)], JSON_TYPE), "/auto", method="GET")
    assert not any("figure at" in line for line in told)


async def test_usage_that_the_app_reports_brings_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    answer = answering([compact(OWN)], JSON_TYPE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record_usage({**chat(None), "usage": chat_usage(7, 2)})
        await answer(scope, receive, send)

    assert [] == await warnings(caplog, app, "/auto")


async def test_an_unread_event_of_amazons_stream_is_told(caplog: pytest.LogCaptureFixture) -> None:
    frame = event_frame("trace", {"modelUsage": {"inputTokens": 7, "spent": 2}})
    assert ["trace.modelUsage.inputTokens"] == await paths_told(caplog, [frame], EVENTSTREAM_TYPE)
