"""OpenAI-shaped answers with every unit that they report, and what each costs, worked out by hand.

Prices are of genai-prices, in micro-dollars a unit: beside each payload stands the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tokens.recordings import chat_usage, compact, sse


@dataclass(frozen=True, kw_only=True)
class Payload:
    """An answer.

    Attributes:
        said: one document, or the events of a stream.
        micros: what it costs; None: the table has no price of the model by its name alone.
        units: the further counters of its calls, in their order.
        asked: the model that the request names.
        models: that the calls name.
    """

    said: dict[str, Any] | list[dict[str, Any]]
    micros: Fraction | int | None
    units: list[dict[str, int]] = field(default_factory=lambda: [dict[str, int]()])
    asked: str = "gpt-5"
    models: tuple[str | None, ...] = ("gpt-5",)
    provider: str = "openai"

    @property
    def is_stream(self) -> bool:
        return isinstance(self.said, list)

    @property
    def body(self) -> bytes:
        return b"".join(map(sse, self.said)) if isinstance(self.said, list) else compact(self.said)


def answer(
    model: str, prompt: int, completion: int, *, total: int | None = None, **more: Any
) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    usage = chat_usage(prompt, completion, total, **more)
    return {"id": "c1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def response(model: str = "gpt-5", entered: int = 1000, left: int = 100, **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": entered,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": left,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": entered + left,
        **more.pop("usage", {}),
    }
    base: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": model,
        "output": [],
    }
    return {**base, **more, "usage": usage}


def searched(action: str, status: str = "completed") -> dict[str, Any]:
    return {"type": "web_search_call", "id": "ws", "status": status, "action": {"type": action, "query": "x"}}


AUDIO = answer(
    "gpt-audio",
    *(1000, 300),
    prompt_tokens_details={"cached_tokens": 0, "audio_tokens": 800, "text_tokens": 200, "image_tokens": 0},
    completion_tokens_details={"reasoning_tokens": 0, "audio_tokens": 250, "text_tokens": 50},
)
AUDIO_UNITS = {
    "input_text_tokens": 200,
    "input_audio_tokens": 800,
    "input_image_tokens": 0,
    "output_text_tokens": 50,
    "output_audio_tokens": 250,
}
DRAWN: dict[str, Any] = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 20, "image_tokens": 30},
    "output_tokens": 1100,
    "total_tokens": 1150,
}
DRAWN_UNITS = {"input_text_tokens": 20, "input_image_tokens": 30}
IMAGE_TOOL = {
    "input_tokens": 30,
    "input_tokens_details": {"text_tokens": 30, "image_tokens": 0},
    "output_tokens": 7024,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 7024},
    "total_tokens": 7054,
}
IMAGE_TOOL_UNITS = {
    "input_text_tokens": 30,
    "input_image_tokens": 0,
    "output_text_tokens": 0,
    "output_image_tokens": 7024,
}
TOOLS = [{"type": "function", "name": "f"}, {"type": "image_generation", "model": "gpt-image-2"}]
NO_SEARCH = {"web_search": {"num_requests": 0}}
HEARD = {
    "type": "tokens",
    "input_tokens": 140,
    "output_tokens": 20,
    "total_tokens": 160,
    "input_token_details": {"audio_tokens": 130, "text_tokens": 10},
}
HEARD_UNITS = {"input_audio_tokens": 130, "input_text_tokens": 10}
DURATION_UNITS = {"audio_seconds": 30, "input_audio_seconds": 30}
TRANSCRIBED = {
    "type": "conversation.item.input_audio_transcription.completed",
    "event_id": "e",
    "item_id": "item_1",
    "content_index": 0,
    "transcript": "hello",
    "usage": HEARD,
}


def _events(last: dict[str, Any], *, kind: str = "response.completed") -> list[dict[str, Any]]:
    """A stream of the Responses API, with each item of the last event before it."""
    begun: dict[str, Any] = {**last, "status": "in_progress", "usage": None, "output": []}
    items = [
        {"type": "response.output_item.done", "output_index": at, "item": item}
        for at, item in enumerate(last["output"])
    ]
    return [
        {"type": "response.created", "response": begun},
        *items,
        {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"},
        {"type": kind, "response": last},
    ]


SEARCHES = response(
    output=[
        *(searched("search"), searched("search"), searched("open_page"), searched("find_in_page")),
        searched("search", "failed"),
        {"type": "web_search_call", "id": "ws_old", "status": "completed"},
        {"type": "file_search_call", "id": "fs", "status": "completed", "queries": ["x"]},
        {"type": "code_interpreter_call", "id": "ci", "status": "completed", "code": "1"},
        {"type": "message", "status": "completed", "content": [{"type": "output_text", "text": "Hi"}]},
    ],
)
SEARCH_UNITS = {"web_searches": 2, "storage_searches": 1, "code_executions": 1}
PAINTED = response("gpt-5.5", 1820, 210, tools=TOOLS, tool_usage={"image_gen": IMAGE_TOOL, **NO_SEARCH})

PAYLOADS: dict[str, Payload] = {
    # 200 * 2.5 + 800 * 32 + 50 * 10 + 250 * 64
    "chat with sound": Payload(
        said=AUDIO, micros=42_600, units=[AUDIO_UNITS], asked="gpt-audio", models=("gpt-audio",)
    ),
    # 1000 * 1.25 + 100 * 10: no more is cached than went in.
    "cached beyond the prompt": Payload(
        said=answer("gpt-4o", 1000, 100, prompt_tokens_details={"cached_tokens": 1_300_000_000}),
        micros=2_250,
        models=("gpt-4o",),
    ),
    # 44,400 as above; and 100 * 1.25 + 400 * 10 of the model that draws the lines
    "image as lines": Payload(
        said={
            "created": 1,
            "data": [{"b64_json": "AAAA"}],
            "usage": DRAWN,
            "svg_usage": {
                "input_tokens": 100,
                "model": "gpt-5",
                "output_tokens": 400,
                "reasoning_tokens": 300,
                "total_tokens": 500,
            },
        },
        micros=48_525,
        units=[{**DRAWN_UNITS, "output_image_tokens": 1100}, {}],
        asked="gpt-image-1",
        models=(None, "gpt-5"),
    ),
    # 130 * 6 + 10 * 2.5 + 20 * 10
    "transcription": Payload(
        said={"text": "hello", "usage": HEARD},
        micros=1_005,
        units=[HEARD_UNITS],
        asked="gpt-4o-transcribe",
        models=(None,),
    ),
    # 30 seconds at 0.36 dollars an hour, once
    "transcription by duration": Payload(
        said={"text": "hello", "usage": {"type": "duration", "seconds": 30}},
        micros=3_000,
        units=[DURATION_UNITS],
        asked="whisper-1",
        models=(None,),
    ),
    # 4 * 0.1 + 635 * 0.4 + 30 seconds at 0.24 dollars an hour; its tokens are in the total only.
    "chat of Mistral with sound": Payload(
        said=answer("voxtral-small-24b-2507", 4, 635, total=3_264, prompt_audio_seconds=30),
        micros=4 * Fraction(1, 10) + 254 + 2_000,
        units=[DURATION_UNITS],
        models=("voxtral-small-24b-2507",),
    ),
    # 1000 * 1.25 + 100 * 10; two searches at 10,000, one of files at 2,500
    "searches": Payload(said=SEARCHES, micros=24_750, units=[SEARCH_UNITS]),
    # The response says that three are billed.
    "billed searches": Payload(
        said={**SEARCHES, "tool_usage": {"web_search": {"num_requests": 3}}},
        micros=34_750,
        units=[{**SEARCH_UNITS, "web_searches": 3}],
    ),
    # F-213: 1820 * 5 + 210 * 30, and 30 * 5 + 7024 * 30 of the image model
    "image tool": Payload(
        said=PAINTED,
        micros=226_270,
        units=[{"web_searches": 0}, IMAGE_TOOL_UNITS],
        models=("gpt-5.5", "gpt-image-2"),
    ),
    # text 20 * 5 + 10 * 1.25; images 50 * 8 + 50 * 2; 100 * 30: of the model that is used if none is named
    "image tool of no name": Payload(
        said=response(
            tool_usage={
                "image_gen": {
                    "input_tokens": 130,
                    "input_tokens_details": {"text_tokens": 30, "image_tokens": 100},
                    "cached_tokens": 60,
                    "cached_tokens_details": {"cached_text_tokens": 10, "cached_image_tokens": 50},
                    "output_tokens": 100,
                    "total_tokens": 230,
                }
            }
        ),
        micros=2250 + Fraction(6125, 10) + 3000,
        units=[
            {},
            {
                "input_text_tokens": 30,
                "input_image_tokens": 100,
                "output_image_tokens": 100,
                "cache_text_read_tokens": 10,
                "cache_image_read_tokens": 50,
            },
        ],
        models=("gpt-5", "gpt-image-2.5-sunburst"),
    ),
    "image tool that was not used": Payload(
        said=response(
            tool_usage={
                "image_gen": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
                "web_search": {"num_requests": 0},
            }
        ),
        micros=2_250,
        units=[{"web_searches": 0}],
    ),
    # 2000 * 1.25 + 100 * 10; the items are those of earlier turns
    "compaction": Payload(
        said={**response(entered=2000), "object": "response.compaction", "output": [searched("search")]},
        micros=3_500,
    ),
    "priority": Payload(said={**answer("gpt-5", 1000, 100), "service_tier": "priority"}, micros=4_500),
    "flex in a stream": Payload(said=_events({**response(), "service_tier": "flex"}), micros=1_125),
    # Half of the list price.
    "batch": Payload(
        said={**response(), "id": "batch_1", "object": "batch", "endpoint": "/v1/responses"}, micros=1_125
    ),
    "gateway": Payload(
        said={**answer("x/y", 10, 5, cost=0.00123, is_byok=False), "provider": "Google"},
        micros=1_230,
        models=("x/y",),
        provider="openrouter",
    ),
    "gateway that charges nothing": Payload(
        said={**answer("gpt-5", 10, 5, cost=0), "provider": "Google"}, micros=0, provider="openrouter"
    ),
    "transcription of a gateway": Payload(
        said={"text": "hello", "usage": {"seconds": 9.2, "cost": 0.000508}},
        micros=508,
        units=[{"audio_seconds": 9, "input_audio_seconds": 9}],
        models=(None,),
        provider="openrouter",
    ),
    # 10 * 1.25 + 5 * 10
    "Cloudflare": Payload(
        said={"success": True, "errors": [], "result": {"response": "Hi", "usage": chat_usage(10, 5)}},
        micros=Fraction(125, 2),
        models=(None,),
    ),
    # 1000 * 1.25 + 100 * 10
    "decision": Payload(
        said={
            "answers": [{"type": "choice", "name": "q", "choice": "a"}],
            **{name: value for name, value in response().items() if name in ("model", "usage")},
        },
        micros=2_250,
    ),
    # 130 * 6 + 10 * 2.5 + 20 * 10 where the session names gpt-4o-transcribe
    "what a user has said": Payload(
        said=[TRANSCRIBED], micros=1_005, units=[HEARD_UNITS], asked="gpt-4o-transcribe", models=(None,)
    ),
    # 60 seconds at 3 dollars an hour: each event has the sum so far.
    "live session": Payload(
        said=[
            {"type": "session.usage.updated", "event_id": "e", "usage": {"seconds": 20}},
            {"type": "session.usage.updated", "event_id": "e", "usage": {"seconds": 45}},
            {
                "type": "session.closed",
                "reason": "expired",
                "session": {"id": "live_1", "model": "gpt-live-1"},
                "usage": {"seconds": 60.0},
            },
        ],
        micros=50_000,
        units=[{"audio_seconds": 60}],
        models=("gpt-live-1",),
    ),
    # 1000 * 1.25 + 100 * 10: of a model that a live session has asked
    "response in a live session": Payload(
        said=[
            {"type": "response.event", "event": {"type": "response.output_text.delta", "delta": "Hi"}},
            {"type": "response.event", "event": {"type": "response.completed", "response": response()}},
        ],
        micros=2_250,
    ),
}
