"""Responses with figures beyond plain tokens, their units, and their prices by hand in micro-dollars."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class PricedCall:
    """A call that a payload amounts to.

    Attributes:
        model: that the response names; None: it names none.
        priced_as: the model of the request, where the response names none.
        micros: its price at 24 Nov 2026; None: the table has no price of the model.
    """

    model: str | None = None
    priced_as: str | None = None
    units: Mapping[str, int]
    context: Mapping[str, str] = field(default_factory=dict[str, str])
    micros: Fraction | int | None


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A document of an API, and the calls that it amounts to.

    Attributes:
        has_dated_price: whether the price changes at a date to come.
        outlives: whether it tells of work that is counted once, whichever request sees its end.
    """

    name: str
    usage: str
    provider: str
    value: dict[str, Any]
    calls: Sequence[PricedCall]
    has_dated_price: bool = False
    outlives: bool = False


def message(model: str, usage: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "Four."}]
    return {"id": "msg_1", "type": "message", "model": model, "content": content, "usage": usage}


def written(short: int, long: int) -> dict[str, int]:
    return {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}


def iteration(
    kind: str, entered: int, left: int, read: int = 0, wrote: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "type": kind,
        "input_tokens": entered,
        "output_tokens": left,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": wrote,
        **more,
    }


HAIKU = "claude-haiku-4-5"  # 1 input, 5 output, 0.1 read, 1.25 and 2 written, 10,000 a search
OPUS = "claude-opus-4-8"  # 5 input, 25 output, 0.5 read, 6.25 and 10 written; fast: twice that
ANTHROPIC = (
    Payload(
        name="cache writes by time to live, searches and thoughts",
        usage="anthropic",
        provider="anthropic",
        value=message(
            HAIKU,
            {
                "input_tokens": 1000,
                "cache_creation_input_tokens": 3000,
                "cache_creation": written(1000, 2000),
                "cache_read_input_tokens": 5000,
                "output_tokens": 100,
                "output_tokens_details": {"thinking_tokens": 40},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 3},
                "service_tier": "standard",
                "speed": "standard",
                "inference_geo": "not_available",
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 9000,
                    "output_tokens": 100,
                    "cache_read_tokens": 5000,
                    "cache_write_tokens": 3000,
                    "cache_write_5m_tokens": 1000,
                    "cache_write_1h_tokens": 2000,
                    "output_reasoning_tokens": 40,
                    "web_searches": 2,
                },
                # 1000 + 1000 * 1.25 + 2000 * 2 + 5000 * 0.1 + 100 * 5 + 2 * 10,000
                micros=27_250,
            )
        ],
    ),
    Payload(
        name="cache writes that only their parts name",
        usage="anthropic",
        provider="anthropic",
        value=message(
            HAIKU,
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 0,
                "cache_creation": written(0, 400),
                "output_tokens": 1,
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 410,
                    "output_tokens": 1,
                    "cache_write_tokens": 400,
                    "cache_write_5m_tokens": 0,
                    "cache_write_1h_tokens": 400,
                },
                micros=815,  # 10 + 400 * 2 + 5
            )
        ],
    ),
    Payload(
        name="parts of cache writes beyond their whole",
        usage="anthropic",
        provider="anthropic",
        value=message(
            HAIKU,
            {
                "input_tokens": 1000,
                "cache_creation_input_tokens": 100,
                "cache_creation": written(150, 900),
                "output_tokens": 1,
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 1100,
                    "output_tokens": 1,
                    "cache_write_tokens": 100,
                    "cache_write_5m_tokens": 100,
                    "cache_write_1h_tokens": 0,
                },
                micros=1130,  # 1000 + 100 * 1.25 + 5
            )
        ],
    ),
    Payload(
        name="fast, in one region, with priority",
        usage="anthropic",
        provider="anthropic",
        value=message(
            OPUS,
            {
                "input_tokens": 1000,
                "output_tokens": 100,
                "service_tier": "priority",
                "speed": "fast",
                "inference_geo": "us",
            },
        ),
        calls=[
            PricedCall(
                model=OPUS,
                units={"input_tokens": 1000, "output_tokens": 100},
                context={"service_tier": "priority", "speed": "fast", "inference_geo": "us"},
                micros=16_500,  # (1000 * 10 + 100 * 50) * 110 %
            )
        ],
    ),
    Payload(
        name="a message of a batch",
        usage="anthropic",
        provider="anthropic",
        value=message(HAIKU, {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"}),
        calls=[
            PricedCall(
                model=HAIKU,
                units={"input_tokens": 1000, "output_tokens": 100},
                context={"processing": "batch"},
                micros=750,  # half of 1000 + 500
            )
        ],
    ),
    Payload(
        name="advisors of another model and of the same",
        usage="anthropic",
        provider="anthropic",
        value=message(
            HAIKU,
            {
                "input_tokens": 10,
                "output_tokens": 20,
                "iterations": [
                    iteration("message", 5, 10),
                    iteration("advisor_message", 1000, 100, model=OPUS),
                    iteration(
                        "advisor_message", 2000, 10, wrote=100, cache_creation=written(0, 100), model=HAIKU
                    ),
                    iteration("message", 5, 10, model=f"{HAIKU}-20251001"),
                ],
                "service_tier": "priority",
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 10,
                    "output_tokens": 20,
                    "cache_read_tokens": 0,
                    "cache_write_tokens": 0,
                },
                context={"service_tier": "priority"},
                micros=110,
            ),
            PricedCall(
                model=OPUS,
                units={
                    "input_tokens": 1000,
                    "output_tokens": 100,
                    "cache_read_tokens": 0,
                    "cache_write_tokens": 0,
                },
                micros=7500,  # 1000 * 5 + 100 * 25
            ),
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 2100,
                    "output_tokens": 10,
                    "cache_read_tokens": 0,
                    "cache_write_tokens": 100,
                    "cache_write_5m_tokens": 0,
                    "cache_write_1h_tokens": 100,
                },
                micros=2250,  # 2000 + 100 * 2 + 10 * 5
            ),
        ],
    ),
    Payload(
        name="a fallback after a model that declined, with output and without",
        usage="anthropic",
        provider="anthropic",
        value=message(
            f"{HAIKU}-20251001",
            {
                "input_tokens": 2,
                "output_tokens": 100,
                "cache_read_input_tokens": 50_000,
                "cache_creation_input_tokens": 0,
                "iterations": [
                    iteration("message", 2, 60, read=100, wrote=10_000, model=OPUS),
                    iteration("message", 2, 0, read=50, model="claude-opus-5"),
                    iteration("fallback_message", 2, 100, read=50_000, model=HAIKU),
                ],
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 50_002,
                    "output_tokens": 100,
                    "cache_read_tokens": 50_000,
                    "cache_write_tokens": 0,
                },
                micros=5502,  # 2 + 100 * 5 + 50,000 * 0.1
            ),
            PricedCall(
                model=OPUS,
                units={
                    "input_tokens": 10_102,
                    "output_tokens": 60,
                    "cache_read_tokens": 100,
                    "cache_write_tokens": 10_000,
                },
                micros=64_060,  # 2 * 5 + 60 * 25 + 100 * 0.5 + 10,000 * 6.25
            ),
        ],
    ),
    Payload(
        name="a compaction that writes for an hour",
        usage="anthropic",
        provider="anthropic",
        value=message(
            HAIKU,
            {
                "input_tokens": 100,
                "output_tokens": 10,
                "iterations": [
                    iteration("compaction", 1000, 50, wrote=200, cache_creation=written(0, 200)),
                    iteration("message", 100, 10),
                ],
            },
        ),
        calls=[
            PricedCall(
                model=HAIKU,
                units={
                    "input_tokens": 1300,
                    "output_tokens": 60,
                    "cache_read_tokens": 0,
                    "cache_write_tokens": 200,
                    "cache_write_5m_tokens": 0,
                    "cache_write_1h_tokens": 200,
                },
                micros=1800,  # 1100 + 200 * 2 + 60 * 5
            )
        ],
    ),
)
BEDROCK_HAIKU = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
ROUTED = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{BEDROCK_HAIKU}"
CONVERSED: dict[str, Any] = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Four."}]}},
    "stopReason": "end_turn",
}
BEDROCK = (
    Payload(
        name="Converse with cache writes by time to live, a tier and a router",
        usage="bedrock",
        provider="aws.bedrock",
        value={
            **CONVERSED,
            "usage": {
                "inputTokens": 100,
                "outputTokens": 10,
                "totalTokens": 410,
                "cacheReadInputTokens": 0,
                "cacheWriteInputTokens": 300,
                "cacheDetails": [
                    {"ttl": "5m", "inputTokens": 100},
                    {"ttl": "1h", "inputTokens": 150},
                    {"ttl": "1h", "inputTokens": 50},
                ],
            },
            "metrics": {"latencyMs": 1},
            "performanceConfig": {"latency": "optimized"},
            "serviceTier": {"type": "priority"},
            "trace": {"promptRouter": {"invokedModelId": ROUTED}},
        },
        calls=[
            PricedCall(
                model=ROUTED,
                units={
                    "input_tokens": 400,
                    "output_tokens": 10,
                    "cache_read_tokens": 0,
                    "cache_write_tokens": 300,
                    "cache_write_5m_tokens": 100,
                    "cache_write_1h_tokens": 200,
                },
                context={"service_tier": "priority", "speed": "optimized"},
                micros=675,  # 100 + 100 * 1.25 + 200 * 2 + 10 * 5
            )
        ],
    ),
    Payload(
        name="InvokeModel of Llama",
        usage="bedrock",
        provider="aws.bedrock",
        value={
            "generation": "Four.",
            "prompt_token_count": 10,
            "generation_token_count": 5,
            "stop_reason": "stop",
        },
        calls=[
            PricedCall(
                priced_as="meta.llama3-8b-instruct-v1:0",
                units={"input_tokens": 10, "output_tokens": 5},
                micros=6,  # 10 * 0.3 + 5 * 0.6
            )
        ],
    ),
    Payload(
        name="InvokeModel of Titan",
        usage="bedrock",
        provider="aws.bedrock",
        value={
            "inputTextTokenCount": 10,
            "results": [
                {"tokenCount": 5, "outputText": "Four.", "completionReason": "FINISH"},
                {"tokenCount": 7, "outputText": "4", "completionReason": "FINISH"},
            ],
        },
        calls=[
            PricedCall(
                priced_as="amazon.titan-text-express-v1",
                units={"input_tokens": 10, "output_tokens": 12},
                micros=Fraction(92, 10),  # 10 * 0.2 + 12 * 0.6
            )
        ],
    ),
    Payload(
        name="embeddings of Titan",
        usage="bedrock",
        provider="aws.bedrock",
        value={"embedding": [0.1, 0.2], "embeddingsByType": {}, "inputTextTokenCount": 100},
        calls=[
            PricedCall(
                priced_as="amazon.titan-embed-text-v2:0",
                units={"input_tokens": 100, "output_tokens": 0},
                micros=2,  # 100 * 0.02
            )
        ],
    ),
    Payload(
        name="InvokeModel of Nova",
        usage="bedrock",
        provider="aws.bedrock",
        value={
            **CONVERSED,
            "usage": {
                "inputTokens": 100,
                "outputTokens": 10,
                "totalTokens": 110,
                "cacheReadInputTokenCount": 200,
                "cacheWriteInputTokenCount": 0,
            },
        },
        calls=[
            PricedCall(
                priced_as="amazon.nova-lite-v1:0",
                units={
                    "input_tokens": 300,
                    "output_tokens": 10,
                    "cache_read_tokens": 200,
                    "cache_write_tokens": 0,
                },
                micros=Fraction(114, 10),  # 100 * 0.06 + 200 * 0.015 + 10 * 0.24
            )
        ],
    ),
)


def generated(model: str, usage: dict[str, Any], **candidate: Any) -> dict[str, Any]:
    content = {"parts": [{"text": "Four."}], "role": "model"}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", **candidate}],
        "usageMetadata": usage,
        "modelVersion": model,
        "responseId": "r1",
    }


def split(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": count} for modality, count in counts.items()]


FLASH = "gemini-2.5-flash"  # 0.3 input, 1 sound, 0.03 and 0.1 read, 2.5 output, 35,000 a prompt with searches
PRO = "gemini-3.1-pro-preview"  # 2 input, 12 output, 14,000 a search
GEMINI = (
    Payload(
        name="modalities of the prompt and the cache",
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            FLASH,
            {
                "promptTokenCount": 1000,
                "candidatesTokenCount": 50,
                "thoughtsTokenCount": 20,
                "totalTokenCount": 1070,
                "cachedContentTokenCount": 300,
                "promptTokensDetails": split(TEXT=400, AUDIO=600),
                "cacheTokensDetails": split(TEXT=100, AUDIO=200),
                "candidatesTokensDetails": split(TEXT=50),
                "trafficType": "ON_DEMAND",
            },
        ),
        calls=[
            PricedCall(
                model=FLASH,
                units={
                    "input_tokens": 1000,
                    "input_text_tokens": 400,
                    "input_audio_tokens": 600,
                    "cache_read_tokens": 300,
                    "cache_text_read_tokens": 100,
                    "cache_audio_read_tokens": 200,
                    "output_tokens": 70,
                    "output_text_tokens": 50,
                    "output_reasoning_tokens": 20,
                },
                micros=688,  # 300 * 0.3 + 100 * 0.03 + 400 * 1 + 200 * 0.1 + 70 * 2.5
            )
        ],
    ),
    Payload(
        name="one search of a prompt before Gemini 3",
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            FLASH,
            {"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 110},
            groundingMetadata={"webSearchQueries": ["a", "b", "c"]},
        ),
        calls=[
            PricedCall(
                model=FLASH,
                units={"input_tokens": 100, "output_tokens": 10, "web_searches": 1},
                micros=35_055,  # 100 * 0.3 + 10 * 2.5 + 35,000
            )
        ],
    ),
    Payload(
        name="each different search since Gemini 3",
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            PRO,
            {"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 110},
            groundingMetadata={"webSearchQueries": ["a", "b", "a", "", " "]},
        ),
        calls=[
            PricedCall(
                model=PRO,
                units={"input_tokens": 100, "output_tokens": 10, "web_searches": 2},
                micros=28_320,  # 100 * 2 + 10 * 12 + 2 * 14,000
            )
        ],
    ),
    Payload(
        name="an image that the model made",
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            "gemini-2.5-flash-image",
            {
                "promptTokenCount": 10,
                "candidatesTokenCount": 1300,
                "totalTokenCount": 1310,
                "candidatesTokensDetails": split(IMAGE=1290),
            },
        ),
        calls=[
            PricedCall(
                model="gemini-2.5-flash-image",
                units={"input_tokens": 10, "output_tokens": 1300, "output_image_tokens": 1290},
                micros=38_728,  # 10 * 0.3 + 10 * 2.5 + 1290 * 30
            )
        ],
    ),
    Payload(
        name="sound that a tool brought in",
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            FLASH,
            {
                "promptTokenCount": 100,
                "toolUsePromptTokenCount": 50,
                "candidatesTokenCount": 10,
                "totalTokenCount": 160,
                "toolUsePromptTokensDetails": split(AUDIO=50),
            },
        ),
        calls=[
            PricedCall(
                model=FLASH,
                units={
                    "input_tokens": 150,
                    "input_tool_tokens": 50,
                    "input_audio_tokens": 50,
                    "input_audio_tool_tokens": 50,
                    "output_tokens": 10,
                },
                micros=105,  # 100 * 0.3 + 50 * 1 + 10 * 2.5
            )
        ],
    ),
    Payload(
        name="a tier of Vertex AI",
        has_dated_price=True,
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            "gemini-3.8-flash-tts",
            {
                "promptTokenCount": 100,
                "candidatesTokenCount": 200,
                "totalTokenCount": 300,
                "trafficType": "ON_DEMAND_FLEX",
            },
        ),
        calls=[
            PricedCall(
                model="gemini-3.8-flash-tts",
                units={"input_tokens": 100, "output_tokens": 200},
                context={"service_tier": "flex"},
                micros=925,  # 100 * 0.25 + 200 * 4.5
            )
        ],
    ),
    Payload(
        name="a tier of the Gemini API",
        has_dated_price=True,
        usage="gemini",
        provider="gcp.gemini",
        value=generated(
            "gemini-3.8-flash-tts",
            {
                "promptTokenCount": 100,
                "candidatesTokenCount": 200,
                "totalTokenCount": 300,
                "serviceTier": "PRIORITY",
            },
        ),
        calls=[
            PricedCall(
                model="gemini-3.8-flash-tts",
                units={"input_tokens": 100, "output_tokens": 200},
                context={"service_tier": "priority"},
                micros=3330,  # 100 * 0.9 + 200 * 16.2
            )
        ],
    ),
    Payload(
        name="embeddings by modality",
        usage="gemini",
        provider="gcp.gemini",
        value={
            "embeddings": [{"values": [0.1, 0.2]}],
            "usageMetadata": {
                "promptTokenCount": 558,
                "promptTokenDetails": [*split(TEXT=100, IMAGE=200, DOCUMENT=200), *split(IMAGE=58)],
            },
        },
        calls=[
            PricedCall(
                priced_as="gemini-embedding-2",
                units={
                    "input_tokens": 558,
                    "input_text_tokens": 100,
                    "input_image_tokens": 458,
                    "output_tokens": 0,
                },
                micros=Fraction(2261, 10),  # 100 * 0.2 + 458 * 0.45
            )
        ],
    ),
    Payload(
        name="one embedding",
        usage="gemini",
        provider="gcp.gemini",
        value={"embedding": {"values": [0.1]}, "usageMetadata": {"promptTokenCount": 100}},
        calls=[
            PricedCall(
                priced_as="gemini-embedding-001",
                units={"input_tokens": 100, "output_tokens": 0},
                micros=15,
            )
        ],
    ),
    Payload(
        name="embeddings of the SDK",
        usage="gemini",
        provider="gcp.gemini",
        value={
            "embeddings": [
                {"values": [0.1], "statistics": {"truncated": False, "token_count": 60.0}},
                {"values": [0.1], "statistics": {"truncated": False, "token_count": 40.0}},
            ],
            "metadata": {"billable_character_count": 25},
        },
        calls=[
            PricedCall(
                priced_as="gemini-embedding-001",
                units={"input_tokens": 100, "output_tokens": 0, "input_characters": 25},
                micros=15,
            )
        ],
    ),
    Payload(
        name="embeddings of Vertex AI",
        usage="gemini",
        provider="gcp.gemini",
        value={
            "predictions": [
                {"embeddings": {"values": [0.1], "statistics": {"truncated": False, "token_count": count}}}
                for count in (60, 40)
            ],
            "metadata": {"billableCharacterCount": 25},
        },
        calls=[
            PricedCall(
                priced_as="gemini-embedding-001",
                units={"input_tokens": 100, "output_tokens": 0, "input_characters": 25},
                micros=15,
            )
        ],
    ),
    Payload(
        name="a turn of Gemini Live",
        usage="gemini",
        provider="gcp.gemini",
        value={
            "usageMetadata": {
                "promptTokenCount": 100,
                "responseTokenCount": 60,
                "totalTokenCount": 160,
                "promptTokensDetails": split(TEXT=20, AUDIO=80),
                "responseTokensDetails": split(AUDIO=50, TEXT=10),
            }
        },
        calls=[
            PricedCall(
                priced_as="gemini-3.1-flash-live-preview",
                units={
                    "input_tokens": 100,
                    "input_text_tokens": 20,
                    "input_audio_tokens": 80,
                    "output_tokens": 60,
                    "output_audio_tokens": 50,
                    "output_text_tokens": 10,
                },
                micros=900,  # 20 * 0.75 + 80 * 3 + 50 * 12 + 10 * 4.5
            )
        ],
    ),
    Payload(
        name="a turn of Gemini Live from the SDK",
        usage="gemini",
        provider="gcp.gemini",
        value={
            "server_content": {"turn_complete": True},
            "usage_metadata": {
                "prompt_token_count": 100,
                "response_token_count": 60,
                "total_token_count": 160,
                "prompt_tokens_details": [{"modality": "AUDIO", "token_count": 80}],
                "response_tokens_details": [{"modality": "AUDIO", "token_count": 50}],
            },
        },
        calls=[
            PricedCall(
                priced_as="gemini-3.1-flash-live-preview",
                units={
                    "input_tokens": 100,
                    "input_audio_tokens": 80,
                    "output_tokens": 60,
                    "output_audio_tokens": 50,
                },
                micros=900,
            )
        ],
    ),
    Payload(
        name="an interaction that searched",
        outlives=True,
        usage="gemini",
        provider="gcp.gemini",
        value={
            "id": "int_1",
            "status": "completed",
            "model": FLASH,
            "outputs": [{"type": "text", "text": "Four."}],
            "service_tier": "standard",
            "usage": {
                "total_input_tokens": 100,
                "total_output_tokens": 10,
                "total_tokens": 110,
                "input_tokens_by_modality": [
                    {"modality": "text", "tokens": 40},
                    {"modality": "audio", "tokens": 60},
                ],
                "grounding_tool_count": [{"type": "google_search", "count": 3}],
            },
        },
        calls=[
            PricedCall(
                model=FLASH,
                units={
                    "input_tokens": 100,
                    "input_text_tokens": 40,
                    "input_audio_tokens": 60,
                    "output_tokens": 10,
                    "web_searches": 1,
                },
                micros=35_097,  # 40 * 0.3 + 60 * 1 + 10 * 2.5 + 35,000
            )
        ],
    ),
)
COHERE = (
    Payload(
        name="a ranking",
        usage="cohere",
        provider="cohere",
        value={
            "id": "r1",
            "results": [{"index": 0, "relevance_score": 0.9}],
            "meta": {"billed_units": {"search_units": 2}},
        },
        calls=[PricedCall(priced_as="rerank-v4.0", units={"rerank_searches": 2}, micros=None)],
    ),
    Payload(
        name="embeddings of images and texts",
        usage="cohere",
        provider="cohere",
        value={
            "id": "e1",
            "embeddings": {"float": [[0.1]]},
            "meta": {"billed_units": {"image_tokens": 900.0, "text_tokens": 100.0}},
        },
        calls=[
            PricedCall(
                priced_as="embed-v4.0",
                units={
                    "input_tokens": 1000,
                    "input_image_tokens": 900,
                    "input_text_tokens": 100,
                    "output_tokens": 0,
                },
                micros=120,  # 1000 * 0.12
            )
        ],
    ),
    Payload(
        name="chat of version 1",
        usage="cohere",
        provider="cohere",
        value={
            "text": "Four.",
            "generation_id": "g1",
            "meta": {
                "billed_units": {"input_tokens": 100, "output_tokens": 10},
                "tokens": {"input_tokens": 171, "output_tokens": 12},
            },
        },
        calls=[
            PricedCall(
                priced_as="command-a",
                units={"input_tokens": 171, "output_tokens": 12},
                micros=350,  # 100 * 2.5 + 10 * 10
            )
        ],
    ),
    Payload(
        name="classifications",
        usage="cohere",
        provider="cohere",
        value={
            "id": "c1",
            "classifications": [{"id": "1", "prediction": "spam"}],
            "meta": {"billed_units": {"classifications": 1}},
        },
        calls=[],
    ),
)
SCAN: dict[str, Any] = {
    "model": "mistral-ocr-2505",
    "document_annotation": {},  # As the SDK has what is not set.
    "pages": [{"index": 0, "markdown": "Four.", "images": [{"id": "i1", "image_base64": "AAAA"}]}],
    "usage_info": {"pages_processed": 3, "doc_size_bytes": 1234},
}
MISTRAL = (
    Payload(
        name="pages of a scan",
        usage="mistral",
        provider="mistral_ai",
        value=SCAN,
        calls=[PricedCall(model="mistral-ocr-2505", units={"input_document_pages": 3}, micros=3000)],
    ),
    Payload(
        name="annotated pages of a scan",
        usage="mistral",
        provider="mistral_ai",
        value={**SCAN, "document_annotation": '{"title": "Four."}'},
        calls=[
            PricedCall(
                model="mistral-ocr-2505",
                units={"input_document_pages": 3, "input_annotated_document_pages": 3},
                micros=9000,
            )
        ],
    ),
    Payload(
        name="annotated images of a scan",
        usage="mistral",
        provider="mistral_ai",
        value={**SCAN, "pages": [{"images": [{"id": "i1", "image_annotation": "Four."}]}]},
        calls=[
            PricedCall(
                model="mistral-ocr-2505",
                units={"input_document_pages": 3, "input_annotated_document_pages": 3},
                micros=9000,
            )
        ],
    ),
    Payload(
        name="a transcription",
        usage="mistral",
        provider="mistral_ai",
        value={
            "model": "voxtral-mini-2602",
            "text": "Four.",
            "language": None,
            "segments": [],
            "usage": {
                "prompt_audio_seconds": 120,
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "total_tokens": 752,
            },
        },
        calls=[
            PricedCall(
                model="voxtral-mini-2602",
                units={
                    "input_tokens": 750,
                    "output_tokens": 2,
                    "audio_seconds": 120,
                    "input_audio_seconds": 120,
                },
                micros=6000,  # 120 s of 0.18 an hour
            )
        ],
    ),
    Payload(
        name="a moderation",
        usage="mistral",
        provider="mistral_ai",
        value={
            "id": "mod-1",
            "model": "mistral-moderation-2411",
            "usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
            "results": [{"categories": {"pii": False}, "category_scores": {"pii": 0.1}}],
        },
        calls=[
            PricedCall(
                model="mistral-moderation-2411",
                units={"input_tokens": 100, "output_tokens": 0},
                micros=None,
            )
        ],
    ),
)
PAYLOADS = (*ANTHROPIC, *BEDROCK, *GEMINI, *COHERE, *MISTRAL)
