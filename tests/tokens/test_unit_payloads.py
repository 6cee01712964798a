"""Each unit of the price table that a provider reports is read, and priced as the provider charges it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from tokens.recordings import EVENTSTREAM_TYPE, JSON_TYPE, SSE_TYPE, compact, invoked, sse
from tokens.unit_payloads import FLASH, HAIKU, OPUS, PAYLOADS, generated, iteration, message, split, written

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage
    from tokens.unit_payloads import Payload

AT = datetime(2026, 11, 24, tzinfo=UTC)
BLOCK = {"type": "text", "text": "x" * 200}


def read(
    body: bytes, usage: str, kind: str = JSON_TYPE, *, size: int = 1 << 20, complete: bool = True
) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(usage, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    return reader.close(complete=complete)


def check(calls: tuple[CallUsage, ...], payload: Payload) -> None:
    assert len(calls) == len(payload.calls)
    for call, expected in zip(calls, payload.calls, strict=True):
        assert call.units == expected.units
        assert dict(call.context) == expected.context
        assert (call.model, call.provider) == (expected.model, payload.provider)
        assert call.source == "reported"
        priced = replace(call, model=expected.model or expected.priced_as)
        assert priced.cost(AT) == expected.micros


payloads = pytest.mark.parametrize("payload", PAYLOADS, ids=[payload.name for payload in PAYLOADS])


@payloads
@pytest.mark.parametrize("how", ["declared", "auto", "object"])
def test_a_document_amounts_to_its_units_and_their_price(payload: Payload, how: str) -> None:
    if how == "object":
        check(calls_of(payload.value), payload)
    else:
        check(read(compact(payload.value), payload.usage if how == "declared" else "auto"), payload)


@payloads
@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_document_amounts_to_the_same_however_it_is_cut(payload: Payload, size: int) -> None:
    check(read(compact(payload.value), "auto", size=size), payload)


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
    return {"id": None, "padding": [{"n": [n]} for n in range(10_000)], **padded} | value_of_id(value)


def value_of_id(value: dict[str, Any]) -> dict[str, Any]:
    return {"id": value["id"]} if "id" in value else {}


@payloads
@pytest.mark.parametrize("how", ["declared", "auto"])
def test_a_large_document_amounts_to_the_same(payload: Payload, how: str) -> None:
    body = compact(large(payload.value))
    assert len(body) > 1 << 16
    check(read(body, payload.usage if how == "declared" else "auto", size=16_000), payload)


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
    calls = read(body, "auto", kind, complete=complete)
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


@kinds
@pytest.mark.parametrize("complete", [True, False])
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


@kinds
def test_a_fallback_in_a_stream_replaces_the_attempt_before_it(kind: str) -> None:
    declined: dict[str, Any] = {"cache_creation_input_tokens": 500, "cache_creation": written(0, 500)}
    last = ended(
        input_tokens=2,
        output_tokens=70,
        cache_creation_input_tokens=0,
        iterations=[
            iteration("message", 2, 30, wrote=500, cache_creation=written(0, 500), model=OPUS),
            iteration("fallback_message", 2, 70, read=400, model=HAIKU),
        ],
    )
    assert streamed(begun(OPUS, **declined), last, STOP, kind=kind) == [
        (
            HAIKU,
            {
                "input_tokens": 402,
                "output_tokens": 70,
                "cache_read_tokens": 400,
                "cache_write_tokens": 0,
                "cache_write_5m_tokens": 0,
                "cache_write_1h_tokens": 0,
            },
        ),
        (
            OPUS,
            {
                "input_tokens": 502,
                "output_tokens": 30,
                "cache_read_tokens": 0,
                "cache_write_tokens": 500,
                "cache_write_5m_tokens": 0,
                "cache_write_1h_tokens": 500,
            },
        ),
    ]


METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 3}}
LLAMA: list[dict[str, Any]] = [
    {"generation": "a", "prompt_token_count": 10, "generation_token_count": 1, "stop_reason": None},
    {"generation": "b", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": None},
    {"generation": "", "prompt_token_count": None, "generation_token_count": 3, "stop_reason": "stop"},
]
TITAN: list[dict[str, Any]] = [
    {"outputText": "a", "index": 0, "completionReason": None, "inputTextTokenCount": 10},
    {
        "outputText": "b",
        "totalOutputTextTokenCount": 3,
        "completionReason": "FINISH",
        "inputTextTokenCount": None,
    },
]
SPOKEN: list[dict[str, Any]] = [
    {"type": "transcription.text.delta", "text": "Four."},
    {
        "type": "transcription.done",
        "model": "voxtral-mini-2602",
        "text": "Four.",
        "usage": {"prompt_audio_seconds": 4, "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    },
]
CHATTED = [
    {"event_type": "text-generation", "text": "Four."},
    {
        "event_type": "stream-end",
        "response": {
            "generation_id": "g1",
            "text": "Four.",
            "meta": {"billed_units": {"input_tokens": 10.0, "output_tokens": 3.0}},
        },
    },
]
STREAMS: dict[str, tuple[str, str, bytes, dict[str, int]]] = {
    "Llama": ("bedrock", SSE_TYPE, b"".join(map(sse, LLAMA)), {}),
    "Llama in frames": (
        *("bedrock", EVENTSTREAM_TYPE),
        b"".join(map(invoked, [*LLAMA[:-1], {**LLAMA[-1], **METRICS}])),
        {},
    ),
    "Titan": ("bedrock", SSE_TYPE, b"".join(map(sse, TITAN)), {}),
    "Titan in frames": (
        *("bedrock", EVENTSTREAM_TYPE),
        b"".join(map(invoked, [TITAN[0], {**TITAN[1], **METRICS}])),
        {},
    ),
    "Chat v1 of Cohere": ("cohere", "application/stream+json", b"\n".join(map(compact, CHATTED)), {}),
    "a transcription of Mistral's": (
        "mistral",
        SSE_TYPE,
        b"".join(map(event, SPOKEN)),
        {"audio_seconds": 4, "input_audio_seconds": 4},
    ),
}


@pytest.mark.parametrize("how", ["declared", "auto"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_another_shape_amounts_to_its_last_figures(name: str, how: str) -> None:
    usage, kind, body, more = STREAMS[name]
    (call,) = read(body, usage if how == "declared" else "auto", kind, size=40)
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


@pytest.mark.parametrize("how", ["declared", "auto"])
@pytest.mark.parametrize("name", COUNTED)
def test_an_endpoint_that_only_counts_tokens_misses_nothing(name: str, how: str) -> None:
    usage, value = COUNTED[name]
    assert read(compact(value), usage if how == "declared" else "auto") == ()


BAD: list[Any] = [-1, "5", 1.5, 10**15, True, [], {}, float("nan")]


@pytest.mark.parametrize("bad", BAD, ids=map(repr, BAD))
def test_figures_that_cannot_be_right_leave_the_others_alone(bad: Any) -> None:
    wrote = {"cache_creation": {"ephemeral_1h_input_tokens": bad, "ephemeral_5m_input_tokens": 3}}
    said = message(
        HAIKU,
        {
            "input_tokens": 10,
            "output_tokens": 5,
            **wrote,
            "server_tool_use": {"web_search_requests": bad},
            "iterations": [iteration("advisor_message", bad, 2, model=OPUS), bad],
            "speed": bad,
        },
    )
    call, advisor = read(compact(said), "auto")
    assert {unit: call.units[unit] for unit in ("input_tokens", "output_tokens")} == {
        "input_tokens": 13,
        "output_tokens": 5,
    }
    assert "refused" in call.notes
    assert (advisor.units["output_tokens"], "refused" in advisor.notes) == (2, True)
    details = [{"modality": "AUDIO", "tokenCount": bad}, {"modality": bad, "tokenCount": 1}, bad]
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 12}
    (call,) = read(compact(generated(FLASH, {**usage, "promptTokensDetails": details})), "auto")
    assert call.units == {"input_tokens": 10, "output_tokens": 2}
    assert call.notes == ("refused",)


def test_parts_of_a_whole_that_is_too_large_are_left_out_with_it() -> None:
    said = message(
        HAIKU, {"input_tokens": 1, "output_tokens": 5, "cache_creation": written(10**15 - 1, 10**15 - 1)}
    )
    (call,) = read(compact(said), "auto")
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
    (call,) = read(compact(value), "auto") if how == "wire" else calls_of(value)
    assert (call.input_tokens, call.output_tokens) == (100_000, 2)


def answers(*prompts: int) -> list[dict[str, Any]]:
    usages = [
        {"promptTokenCount": prompt, "candidatesTokenCount": 10, "totalTokenCount": prompt + 10}
        for prompt in prompts
    ]
    return [{"response": generated(FLASH, usage), "metadata": {"key": "k"}} for usage in usages]


INLINED = [*answers(100, 300), {"error": {"code": 13, "message": "no"}}]
BATCHES: dict[str, dict[str, Any]] = {
    "operation": {
        "name": "batches/b1",
        "done": True,
        "metadata": {"state": "BATCH_STATE_SUCCEEDED"},
        "response": {"inlinedResponses": {"inlinedResponses": INLINED}},
    },
    "batch": {"name": "batches/b1", "output": {"inlinedResponses": {"inlinedResponses": INLINED}}},
    "SDK": {"name": "batches/b1", "state": "JOB_STATE_SUCCEEDED", "dest": {"inlined_responses": INLINED}},
}


@pytest.mark.parametrize("how", ["gemini", "auto", "object"])
@pytest.mark.parametrize("name", BATCHES)
def test_each_response_of_a_batch_is_a_call_of_its_own_at_the_price_of_batches(name: str, how: str) -> None:
    value = BATCHES[name]
    calls = calls_of(value) if how == "object" else read(compact(value), how)
    assert [(call.response_id, call.outlives) for call in calls] == [
        ("batches/b1/0", True),
        ("batches/b1/1", True),
    ]
    assert {call.context for call in calls} == {(("processing", "batch"),)}
    # 100 and 300 of 0.15, and 10 of 1.25: half of 0.3 and 2.5.
    assert [call.cost(AT) for call in calls] == [Fraction(275, 10), Fraction(575, 10)]


def test_a_batch_of_embeddings_counts_their_tokens() -> None:
    found = [{"response": {"embedding": {"values": [0.1]}, "token_count": count}} for count in (3, 4)]
    calls = calls_of({"name": "batches/b1", "dest": {"inlined_embed_content_responses": found}})
    assert [call.units for call in calls] == [
        {"input_tokens": 3, "output_tokens": 0},
        {"input_tokens": 4, "output_tokens": 0},
    ]


def test_each_of_many_embeddings_of_the_sdk_is_counted() -> None:
    vectors = [
        {"values": [0.1] * 768, "statistics": {"truncated": False, "token_count": 5.0}} for _ in range(60)
    ]
    (call,) = calls_of({"embeddings": vectors, "metadata": None, "usage_metadata": None})
    assert call.units == {"input_tokens": 300, "output_tokens": 0}


def test_what_a_message_of_gemini_live_says_is_known_in_either_spelling() -> None:
    for value in (
        {"serverContent": {"modelTurn": {"parts": [{"text": "Four."}]}}},
        {"server_content": {"model_turn": {"parts": [{"text": "Four."}]}}},
    ):
        reader = ResponseReader.open("auto", status=200, headers=[(b"content-type", SSE_TYPE.encode())])
        assert reader is not None
        reader.feed(sse(value))
        (call,) = reader.close(complete=True)
        assert (call.source, call.provider, reader.output_bytes_seen) == ("missing", "gcp.gemini", 5)
