"""Payloads of providers, in the units that they bill: pure tables."""

# Internals: pure tables of payloads; asgi/test_corpus_charges.py serves the corpus.

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

import pytest
import yaml

from drivers.sampled import pairs
from llm_payloads import openai_payloads
from llm_payloads.corpus_rows import amount
from llm_payloads.openai_payloads import PAINTED, TRANSCRIBED, answer, response
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    SSE_TYPE,
    compact,
    cut,
    figures,
    invoked,
    read,
    sse,
)
from llm_payloads.unit_payloads import (
    FLASH,
    HAIKU,
    OPUS,
    PAYLOADS,
    generated,
    iteration,
    message,
    split,
    written,
)
from llm_usage import CallUsage, calls_of
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.decisions.model_charges import ModelCharges

# Each unit of the price table that a provider reports is read, and priced as the provider charges it.


AT = datetime(2026, 11, 24, tzinfo=UTC)
BLOCK = {"type": "text", "text": "x" * 200}


def check(calls: Sequence[CallUsage], payload: dict[str, Any]) -> None:
    assert len(calls) == len(payload["calls"])
    for call, expected in zip(calls, payload["calls"], strict=True):
        assert (call.units, dict(call.context)) == (expected["units"], expected.get("context", {}))
        assert (call.model, call.provider) == (expected.get("model"), payload["provider"])
        assert call.source == "reported"
        priced = replace(call, model=expected.get("priced_as", call.model))
        assert priced.cost(AT) == amount(expected["price"])


def declared(word: str, how: str) -> str:
    return word if how == "declared" else "auto"


@pytest.mark.parametrize("how", ["declared", "auto", "object"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_document_amounts_to_its_units_and_their_price(name: str, how: str) -> None:
    payload = PAYLOADS[name]
    value = payload["value"]
    check(
        calls_of(value) if how == "object" else read(compact(value), usage=declared(payload["usage"], how)),
        payload,
    )


def large(value: dict[str, Any]) -> dict[str, Any]:
    """The same document with so much text before its figures that only parts of it are kept."""
    padded = dict(value)
    for name in ("content", "outputs"):
        if name in value:
            padded[name] = [*value[name], *[BLOCK] * 400]
    if "candidates" in value:
        (candidate,) = value["candidates"]
        parts = {"parts": [{"text": "x" * 200}] * 400}
        padded["candidates"] = [{**candidate, "content": parts}]
    return {"id": None, "padding": [{"n": [n]} for n in range(10_000)], **padded}


@pytest.mark.parametrize(("name", "how"), pairs([*PAYLOADS], ["declared", "auto"]))
def test_a_large_document_amounts_to_the_same(name: str, how: str) -> None:
    payload = PAYLOADS[name]
    body = compact(large(payload["value"]))
    assert len(body) > 1 << 16
    check(read(*cut(body, 16_000), usage=declared(payload["usage"], how)), payload)


def event(value: Any) -> bytes:
    return sse(value, event=value["type"])


def begun(model: str, **usage: Any) -> dict[str, Any]:
    said = message(model, {"input_tokens": 2, "output_tokens": 1, **usage})
    return {"type": "message_start", "message": {**said, "content": []}}


def ended(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP = {"type": "message_stop"}


def streamed(
    *events: dict[str, Any], kind: str, complete: bool = True
) -> list[tuple[str | None, dict[str, int]]]:
    body = b"".join(map(invoked if kind == EVENTSTREAM_TYPE else event, events))
    calls = read(body, kind=kind, complete=complete)
    provider = "aws.bedrock" if kind == EVENTSTREAM_TYPE else "anthropic"
    assert {(call.source, call.provider) for call in calls} == {("reported", provider)}
    return [(call.model, call.units) for call in calls]


kinds = pytest.mark.parametrize("kind", [SSE_TYPE, EVENTSTREAM_TYPE])


@kinds
def test_later_events_of_a_stream_replace_single_figures(kind: str) -> None:
    start = begun(HAIKU, cache_creation_input_tokens=100, cache_creation=written(0, 100))
    first = ended(output_tokens=5, server_tool_use={"web_search_requests": 1})
    last = ended(output_tokens=9, cache_creation_input_tokens=150, server_tool_use={"web_search_requests": 2})
    units = {
        "input_tokens": 152,
        "output_tokens": 9,
        "cache_write_tokens": 150,
        "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 100,
        "web_searches": 2,
    }
    assert streamed(start, first, last, STOP, kind=kind) == [(HAIKU, units)]


@pytest.mark.parametrize(("kind", "complete"), pairs([SSE_TYPE, EVENTSTREAM_TYPE], [True, False]))
def test_an_advisor_in_a_stream_is_a_call_of_its_own_once(kind: str, complete: bool) -> None:
    iterations = [
        iteration("message", 1, 4, model=HAIKU),
        iteration("advisor_message", 1000, 100, model=OPUS),
        iteration("message", 1, 5, model=HAIKU),
    ]
    start, last = begun(HAIKU), ended(output_tokens=9, iterations=iterations)
    nothing_read = {"cache_read_tokens": 0, "cache_write_tokens": 0}
    found = streamed(start, last, last, STOP, kind=kind, complete=complete)
    assert found == [
        (HAIKU, {"input_tokens": 2, "output_tokens": 9, **nothing_read}),
        (OPUS, {"input_tokens": 1000, "output_tokens": 100, **nothing_read}),
    ]


METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 3}}
LLAMA, TITAN, SPOKEN, CHATTED = yaml.safe_load_all("""
- {generation: a, prompt_token_count: 10, generation_token_count: 1, stop_reason: null}
- {generation: b, prompt_token_count: null, generation_token_count: 2, stop_reason: null}
- {generation: "", prompt_token_count: null, generation_token_count: 3, stop_reason: stop}
---
- {outputText: a, index: 0, completionReason: null, inputTextTokenCount: 10}
- {outputText: b, totalOutputTextTokenCount: 3, completionReason: FINISH, inputTextTokenCount: null}
---
- {type: transcription.text.delta, text: Four.}
- type: transcription.done
  model: voxtral-mini-2602
  text: Four.
  usage: {prompt_audio_seconds: 4, prompt_tokens: 10, completion_tokens: 3, total_tokens: 13}
---
- {event_type: text-generation, text: Four.}
- event_type: stream-end
  response: {generation_id: g1, text: Four., meta: {billed_units: {input_tokens: 10.0, output_tokens: 3.0}}}
""")


def framed(*values: dict[str, Any]) -> bytes:
    return b"".join(map(invoked, [*values[:-1], {**values[-1], **METRICS}]))


SOUND = {"audio_seconds": 4, "input_audio_seconds": 4}
STREAMS: dict[str, tuple[str, str, bytes, dict[str, int]]] = {
    "Llama": ("bedrock", SSE_TYPE, b"".join(map(sse, LLAMA)), {}),
    "Llama in frames": ("bedrock", EVENTSTREAM_TYPE, framed(*LLAMA), {}),
    "Titan": ("bedrock", SSE_TYPE, b"".join(map(sse, TITAN)), {}),
    "Titan in frames": ("bedrock", EVENTSTREAM_TYPE, framed(*TITAN), {}),
    "Chat v1 of Cohere": ("cohere", "application/stream+json", b"\n".join(map(compact, CHATTED)), {}),
    "a transcription of Mistral's": ("mistral", SSE_TYPE, b"".join(map(event, SPOKEN)), SOUND),
}


@pytest.mark.parametrize(("name", "how"), pairs([*STREAMS], ["declared", "auto"]))
def test_a_stream_of_another_shape_amounts_to_its_last_figures(name: str, how: str) -> None:
    usage, kind, body, more = STREAMS[name]
    (call,) = read(*cut(body, 40), usage=declared(usage, how), kind=kind)
    assert (call.source, call.units) == ("reported", {"input_tokens": 10, "output_tokens": 3, **more})


COUNTED: dict[str, tuple[str, dict[str, Any]]] = {
    "Anthropic": ("anthropic", {"input_tokens": 5}),
    "Bedrock": ("bedrock", {"inputTokens": 5}),
    "Gemini": ("gemini", {"totalTokens": 5, "promptTokensDetails": split(TEXT=5)}),
    "Vertex AI": ("gemini", {"totalTokens": 5, "totalBillableCharacters": 9}),
    "tokens of Vertex AI": ("gemini", {"tokensInfo": [{"tokenIds": ["1"], "role": "user"}]}),
    "the SDK of Gemini": ("gemini", {"total_tokens": 5, "cached_content_token_count": None}),
    "Cohere": ("cohere", {"tokens": [1], "token_strings": ["a"], "meta": {"api_version": {"version": "1"}}}),
}


@pytest.mark.parametrize(("name", "how"), pairs([*COUNTED], ["declared", "auto"]))
def test_an_endpoint_that_only_counts_tokens_misses_nothing(name: str, how: str) -> None:
    usage, value = COUNTED[name]
    assert read(compact(value), usage=declared(usage, how)) == ()


BAD: list[Any] = [-1, "5", 1.5, 10**15, True, {}]


@pytest.mark.parametrize("bad", BAD, ids=map(repr, BAD))
def test_figures_that_cannot_be_right_leave_the_others_alone(bad: Any) -> None:
    wrote = {"cache_creation": {"ephemeral_1h_input_tokens": bad, "ephemeral_5m_input_tokens": 3}}
    advised = {"iterations": [iteration("advisor_message", bad, 2, model=OPUS), bad], "speed": bad}
    usage = {"input_tokens": 10, "output_tokens": 5, "server_tool_use": {"web_search_requests": bad}}
    call, advisor = read(compact(message(HAIKU, {**usage, **wrote, **advised})))
    assert (call.units["input_tokens"], call.units["output_tokens"]) == (13, 5)
    assert "refused" in call.notes
    assert (advisor.units["output_tokens"], "refused" in advisor.notes) == (2, True)
    details = [{"modality": "AUDIO", "tokenCount": bad}, {"modality": bad, "tokenCount": 1}, bad]
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 12}
    (call,) = read(compact(generated(FLASH, {**usage, "promptTokensDetails": details})))
    assert call.units == {"input_tokens": 10, "output_tokens": 2}
    assert call.notes == ("refused",)


def test_parts_of_a_whole_that_is_too_large_are_left_out_with_it() -> None:
    wrote = {"cache_creation": written(10**15 - 1, 10**15 - 1)}
    (call,) = read(compact(message(HAIKU, {"input_tokens": 1, "output_tokens": 5, **wrote})))
    assert (call.units, call.notes) == ({"output_tokens": 5}, ("refused",))


@pytest.mark.parametrize("how", ["wire", "object"])
def test_a_hundred_thousand_details_take_no_figures_away(how: str) -> None:
    usage = {
        "promptTokensDetails": split(AUDIO=1) * 100_000,
        "promptTokenCount": 100_000,
        "candidatesTokenCount": 2,
        "totalTokenCount": 100_002,
    }
    value = generated(FLASH, usage)
    (call,) = read(compact(value)) if how == "wire" else calls_of(value)
    assert (call.input_tokens, call.output_tokens) == (100_000, 2)


def answers(*prompts: int) -> list[dict[str, Any]]:
    usages = [
        {"promptTokenCount": prompt, "candidatesTokenCount": 10, "totalTokenCount": prompt + 10}
        for prompt in prompts
    ]
    return [{"response": generated(FLASH, usage), "metadata": {"key": "k"}} for usage in usages]


INLINED = [*answers(100, 300), {"error": {"code": 13, "message": "no"}}]
HOLDER = {"inlinedResponses": {"inlinedResponses": INLINED}}
BATCHES: dict[str, dict[str, Any]] = {
    "operation": {"done": True, "metadata": {"state": "BATCH_STATE_SUCCEEDED"}, "response": HOLDER},
    "batch": {"output": HOLDER},
    "SDK": {"state": "JOB_STATE_SUCCEEDED", "dest": {"inlined_responses": INLINED}},
}


@pytest.mark.parametrize(("name", "how"), pairs([*BATCHES], ["gemini", "auto", "object"]))
def test_each_response_of_a_batch_is_a_call_at_batch_price(name: str, how: str) -> None:
    value = {"name": "batches/b1", **BATCHES[name]}
    calls = calls_of(value) if how == "object" else read(compact(value), usage=how)
    assert [call.response_id for call in calls] == ["batches/b1/0", "batches/b1/1"]
    assert all(call.outlives for call in calls)
    assert {call.context for call in calls} == {(("processing", "batch"),)}
    # 100 and 300 of 0.15, and 10 of 1.25: half of 0.3 and 2.5.
    assert [call.cost(AT) for call in calls] == [Fraction(275, 10), Fraction(575, 10)]


def test_a_batch_of_embeddings_counts_their_tokens() -> None:
    found = [{"response": {"embedding": {"values": [0.1]}, "token_count": count}} for count in (3, 4)]
    calls = calls_of({"name": "batches/b1", "dest": {"inlined_embed_content_responses": found}})
    assert [call.units for call in calls] == [{"input_tokens": n, "output_tokens": 0} for n in (3, 4)]


# F-210, F-212, F-213, F-215, F-216: OpenAI-shaped answers are read whole, in the price table's units.


def charged(calls: Sequence[CallUsage], asked: str) -> Fraction:
    """What calls cost, where those without a model are of the one that was asked."""
    charges = ModelCharges(ProviderPrices())
    return sum((charges.of(replace(call, model=call.model or asked), AT) for call in calls), Fraction(0))


@pytest.mark.parametrize(("name", "word"), pairs([*openai_payloads.PAYLOADS], ["auto", "openai", "mistral"]))
def test_an_answer_costs_by_units_what_its_provider_asks(name: str, word: str) -> None:
    payload = openai_payloads.PAYLOADS[name]
    calls = read(*cut(payload.body, 300), usage=word, kind=SSE_TYPE if payload.is_stream else JSON_TYPE)
    assert [dict(call.details) for call in calls] == payload.units
    assert tuple(call.model for call in calls) == payload.models
    of_shape = "mistral_ai" if word == "mistral" and payload.provider == "openai" else payload.provider
    assert {call.provider for call in calls} == {of_shape}
    assert all(call.source == "reported" for call in calls)
    assert charged(calls, payload.asked) == payload.micros


def test_what_an_image_tool_used_is_a_call_of_its_own() -> None:
    calls = read(compact({**PAINTED, "background": True}))
    assert [(call.response_id, *figures(call)[1:3], call.outlives) for call in calls] == [
        ("resp_1", 1820, 210, True),
        ("resp_1/image_gen", 30, 7024, True),
    ]
    assert [call.outlives for call in read(compact(PAINTED))] == [False, False]


def test_an_image_tools_model_is_the_one_that_the_answer_names() -> None:
    for place, kind, named, model in (
        ("output", "image_generation_call", "gpt-image-1.5", "gpt-image-1.5"),
        ("tools", "image_generation", "gpt-image-1-mini", "gpt-image-1-mini"),
        ("tools", "image_generation", 7, "gpt-image-2.5-sunburst"),
    ):
        said: dict[str, Any] = {**PAINTED, "tools": [], place: [{"type": kind, "model": named}]}
        assert read(compact(said))[1].model == model


def test_each_drawing_inside_a_response_is_a_call_of_its_own() -> None:
    drawn = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30, "model": "gpt-5-mini"}
    items = [{"type": "image_generation_call", "id": "i", "svg_usage": drawn}] * 2
    calls = read(compact(response(output=[*items, {"type": "image_generation_call", "svg_usage": {}}])))
    assert [call.model for call in calls] == ["gpt-5", "gpt-5-mini", "gpt-5-mini"]
    assert [call.input_tokens for call in calls] == [1000, 10, 10]


def test_a_transcription_amid_an_answer_is_a_call_of_its_own() -> None:
    done = {name: value for name, value in response("", 10, 5).items() if name != "model"}
    events = [
        {"type": "response.created", "response": {**done, "status": "in_progress", "usage": None}},
        TRANSCRIBED,
        TRANSCRIBED,
        {"type": "response.done", "response": done},
        {**TRANSCRIBED, "item_id": "item_2", "usage": {"type": "duration", "seconds": 2}},
    ]
    calls = read(*map(sse, events), kind=SSE_TYPE)
    found = [(call.response_id, call.output_tokens) for call in calls]
    assert found == [("item_1", 20), ("resp_1", 5), ("item_2", None)]
    assert {call.model for call in calls} == {None}
    assert calls[2].details == {"audio_seconds": 2, "input_audio_seconds": 2}


def test_parts_larger_than_their_wholes_are_cut_and_noted() -> None:
    details = {"audio_tokens": 900, "cached_tokens": 5000, "cached_tokens_details": {"audio_tokens": 4000}}
    (call,) = read(compact(answer("gpt-realtime-2", 100, 10, prompt_tokens_details=details)))
    assert call.notes == ("beyond_whole",)
    assert (call.cached_input_tokens, call.details["input_audio_tokens"]) == (100, 100)
    # 100 tokens of cached sound and 10 * 24: never more than went in.
    assert charged([call], "") == 40 + 240


def test_an_amount_that_cannot_be_one_is_refused() -> None:
    for cost in (-0.01, "0.1", True, math.nan, 10**9 + 1, 10**400, {"total_cost": -1}):
        body = json.dumps({**answer("gpt-5", 10, 5, cost=cost), "provider": "Google"}).encode()
        (call,) = read(body)
        assert (call.reported_cost_micros, call.notes, *figures(call)[1:3]) == (None, ("refused",), 10, 5), (
            cost
        )


def test_a_reported_amount_is_exact() -> None:
    upstream = {"upstream_inference_cost": 1}
    cases: tuple[tuple[dict[str, Any], Fraction | int], ...] = (
        ({"cost": 1e-7}, Fraction(1, 10)),
        ({"cost": 0.1 + 0.2}, Fraction("300000.00000000004")),
        ({"cost": 10**9}, 10**15),
        ({"cost": {"total_cost": 0.006, "request_cost": 0.005}}, 6_000),
        ({"cost": None, "cost_in_usd_ticks": 94_000}, Fraction(94, 10)),
        ({"cost": 0.1, "is_byok": "true", "cost_details": upstream}, 100_000),
        ({"cost": 0, "is_byok": True, "cost_details": upstream}, 10**6),
    )
    for usage, micros in cases:
        (call,) = read(compact(answer("gpt-5", 10, 5, **usage)))
        assert call.reported_cost_micros == micros, usage


def test_the_amount_of_a_gateway_covers_tools_too() -> None:
    reported = PAINTED["usage"] | {"cost": 0.5, "cost_details": {}}
    found = [
        charged(read(compact({**PAINTED, "usage": usage})), "") for usage in (reported, PAINTED["usage"])
    ]
    assert found == [500_000, 226_270]


def test_a_duration_that_cannot_be_one_is_refused() -> None:
    for seconds in (-1, "5", math.nan, 10**16):
        body = json.dumps({"text": "x", "usage": {"type": "duration", "seconds": seconds}}).encode()
        (call,) = read(body, usage="openai")
        assert (call.source, call.notes, dict(call.details)) == ("missing", ("refused",), {}), seconds


def test_a_call_was_processed_as_its_answer_says() -> None:
    batch = {"service_tier": "priority", "object": "batch", "id": "b"}
    cases: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        (batch, {"processing": "batch", "service_tier": "priority"}),
        ({"service_tier": "default"}, {}),
        ({"service_tier": ["flex"]}, {}),
    )
    for holder, context in cases:
        (call,) = read(compact({**response(), **holder}))
        assert call.context == (*context.items(),), holder


def test_a_message_of_a_batch_was_processed_in_one() -> None:
    used = {"input_tokens": 10, "output_tokens": 5, "service_tier": "batch"}
    (call,) = read(compact(message(HAIKU, used)), usage="anthropic")
    assert call.context == (("processing", "batch"),)


USED_SMALL: Final = {"input_tokens": 10, "output_tokens": 5}


def test_what_is_no_models_answer_counts_nothing_under_auto() -> None:
    said: tuple[dict[str, Any], ...] = (
        {"success": True, "result": {"usage": USED_SMALL}},
        {"answers": [{"type": "essay"}], "usage": USED_SMALL},
        {"pages": [dict[str, Any]()], "usage": USED_SMALL},
        {"text": 5, "usage": {"type": "duration", "seconds": 4}},
        {"tool_usage": {"image_gen": USED_SMALL}},
    )
    assert [read(compact(one)) for one in said] == [()] * len(said)


# F-135: shapes of usage that counted nothing, or twice.


INTERACTION, CONVERSED = yaml.safe_load_all("""
id: int_1
status: completed
model: gemini-3
outputs: [{type: text, text: ok}]
usage: {total_input_tokens: 100, total_output_tokens: 20, total_thought_tokens: 30, total_cached_tokens: 64,
        total_tool_use_tokens: 7, total_tokens: 157}
---
object: conversation.response
conversation_id: conv_1
outputs: [{type: message.output, content: ok}]
usage: {prompt_tokens: 100, completion_tokens: 20, total_tokens: 150, connector_tokens: 30,
        connectors: {web_search: 1}}
""")
RUN: dict[str, Any] = {"id": "run_1", "object": "thread.run", "model": "gpt-5.6"}
USED = {"prompt_tokens": 600, "completion_tokens": 400, "total_tokens": 1000}


@pytest.mark.parametrize("how", ["openai", "auto"])
def test_a_stream_of_a_run_counts_the_run_and_not_its_steps(how: str) -> None:
    step = {"id": "step_1", "object": "thread.run.step", "run_id": "run_1"}
    text = {"type": "text", "text": {"value": "x" * 40}}
    delta = {"object": "thread.message.delta", "delta": {"content": [text]}}
    events = [
        sse({"id": "thread_1", "object": "thread"}, event="thread.created"),
        sse({**RUN, "status": "queued", "usage": None}, event="thread.run.created"),
        sse({**step, "status": "in_progress", "usage": None}, event="thread.run.step.created"),
        sse(delta, event="thread.message.delta"),
        sse({**step, "status": "completed", "usage": USED}, event="thread.run.step.completed"),
        sse({**RUN, "status": "completed", "usage": USED}, event="thread.run.completed"),
        b"event: done\ndata: [DONE]\n\n",
    ]
    (call,) = read(*events, usage=how, kind=SSE_TYPE)
    assert figures(call)[:3] == ("reported", 600, 400)
    assert (call.response_id, call.outlives) == ("run_1", True)
    # Its steps are calls of their own, and a price by input length is for one call.
    assert call.notes == ("summed",)


@pytest.mark.parametrize("how", ["gemini", "auto"])
def test_a_stream_of_an_interaction_counts_what_its_end_says(how: str) -> None:
    begun = {"event_type": "interaction.start", "interaction": {"id": "int_1", "status": "in_progress"}}
    text = {"event_type": "content.delta", "index": 0, "delta": {"type": "text", "text": "x" * 40}}
    ended = {"event_type": "interaction.completed", "interaction": INTERACTION}
    (call,) = read(*map(sse, (begun, text, ended)), usage=how, kind=SSE_TYPE)
    assert figures(call) == ("reported", 107, 50, 64, None, 30)
    assert (call.response_id, call.outlives) == ("int_1", True)


def test_a_ranking_counts_searches_and_misses_no_tokens() -> None:
    ranks = [{"index": 0, "relevance_score": 0.9}]
    ranking = {"id": "r1", "results": ranks, "meta": {"billed_units": {"search_units": 1}}}
    for word in ("cohere", "auto"):
        (call,) = read(compact(ranking), usage=word)
        assert (call.source, call.units) == ("reported", {"rerank_searches": 1})


@pytest.mark.parametrize("word", ["cohere", "auto"])
def test_embedded_images_without_their_tokens_are_missing(word: str) -> None:
    embedded = {"id": "e1", "embeddings": {"float": [[0.1]]}, "meta": {"billed_units": {"images": 1}}}
    (call,) = read(compact(embedded), usage=word)
    assert (call.source, call.provider) == ("missing", "cohere")
    assert calls_of(embedded) == ()


# Figures in the headers of Bedrock's InvokeModel.


HEADERS = [(b"X-Amzn-Bedrock-Input-Token-Count", b"12"), (b"x-amzn-bedrock-output-token-count", b"5")]
DEEPSEEK = {"choices": [{"text": "Four.", "stop_reason": "stop"}]}
OF_MISTRAL = {"outputs": [{"text": "Four.", "stop_reason": "stop"}]}


@pytest.mark.parametrize(
    ("value", "usage"), pairs([DEEPSEEK, OF_MISTRAL, {"embeddings": [[0.1]]}], ["bedrock", "auto"])
)
def test_invoke_model_headers_count_where_the_body_is_silent(value: object, usage: str) -> None:
    (call,) = read(compact(value), usage=usage, headers=HEADERS)
    assert (call.source, call.provider) == ("reported", "aws.bedrock")
    assert call.units == {"input_tokens": 12, "output_tokens": 5}


@pytest.mark.parametrize("usage", ["bedrock", "auto"])
def test_figures_of_the_body_count_before_those_of_headers(usage: str) -> None:
    said = message(HAIKU, {"input_tokens": 12, "output_tokens": 7})
    (call,) = read(compact(said), usage=usage, headers=HEADERS)
    assert call.units == {"input_tokens": 12, "output_tokens": 7}


@pytest.mark.parametrize("usage", ["bedrock", "auto"])
def test_headers_say_as_what_invoke_model_processed_a_call(usage: str) -> None:
    tier = [(b"X-Amzn-Bedrock-Service-Tier", b"priority"), (b"x-amzn-bedrock-content-type", b"a/b")]
    latency = (b"X-Amzn-Bedrock-PerformanceConfig-Latency", b"optimized")
    said = message(HAIKU, {"input_tokens": 12, "output_tokens": 7, "service_tier": "standard"})
    for value in (said, DEEPSEEK):
        (call,) = read(compact(value), usage=usage, headers=[*HEADERS, *tier, latency])
        assert call.context == (("service_tier", "priority"), ("speed", "optimized"))
    usual = (b"x-amzn-bedrock-service-tier", b"default")
    (call,) = read(compact(said), usage=usage, headers=[*HEADERS, usual])
    assert call.context == ()


def test_a_header_that_is_no_figure_counts_nothing() -> None:
    for bad in (b"-1", b"1.5", b"", b"1" * 16):
        headers = [HEADERS[0], (b"x-amzn-bedrock-output-token-count", bad)]
        (call,) = read(compact(DEEPSEEK), usage="bedrock", headers=headers)
        assert (call.units, call.notes) == ({"input_tokens": 12}, ("refused",)), bad


def test_connectors_of_mistral_are_input() -> None:
    (call,) = calls_of(CONVERSED)
    assert figures(call) == ("reported", 130, 20, None, None, None)
