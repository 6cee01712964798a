"""Responses with figures beyond plain tokens, their units, and their prices by hand in micro-dollars."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction


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
GEMINI = (
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
PAYLOADS = (*ANTHROPIC, *BEDROCK, *GEMINI, *COHERE)
