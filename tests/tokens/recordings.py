"""Responses of every API as they come over the wire, and what they amount to, cut off after any event too."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.tokens.call_usage import CallUsage

# (source, input, output, cached, cache write, reasoning)
Figures = tuple[str, int | None, int | None, int | None, int | None, int | None]

SSE_TYPE = "text/event-stream; charset=utf-8"
JSON_TYPE = "application/json"
NDJSON_TYPE = "application/x-ndjson"
EVENTSTREAM_TYPE = "application/vnd.amazon.eventstream"
MISSING: Figures = ("missing", None, None, None, None, None)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A response.

    Attributes:
        name: for the test's id.
        usage: the word that a route would declare.
        events: the pieces of the body, one to an event.
        expected: what the whole of it amounts to.
        aborted: what it amounts to when it breaks off after as many events as the place in the list says.
    """

    name: str
    usage: str
    content_type: str
    events: Sequence[bytes]
    expected: list[Figures]
    aborted: list[list[Figures]] = field(default_factory=list[list[Figures]])
    provider: str
    model: str | None = None
    response_ids: tuple[str | None, ...] = (None,)
    auto: bool = True

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"Content-Type", self.content_type.encode())]


def figures(call: CallUsage) -> Figures:
    return (
        call.source,
        call.input_tokens,
        call.output_tokens,
        call.cached_input_tokens,
        call.cache_write_tokens,
        call.reasoning_tokens,
    )


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def sse(value: object, event: str | None = None, end: bytes = b"\n") -> bytes:
    head = b"" if event is None else b"event: " + event.encode() + end
    return head + b"data: " + compact(value) + end + end


def frame(payload: bytes, **headers: str) -> bytes:
    """A frame of an Amazon event stream."""
    packed = b""
    for name, value in headers.items():
        key, text = b":" + name.replace("_", "-").encode(), value.encode()
        packed += bytes([len(key)]) + key + b"\x07" + struct.pack(">H", len(text)) + text
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return message + struct.pack(">I", crc32(message))


def event_frame(name: str, value: object) -> bytes:
    return frame(compact(value), event_type=name, content_type="application/json", message_type="event")


def invoked(value: object) -> bytes:
    return event_frame("chunk", {"bytes": b64encode(compact(value)).decode(), "p": "abcdefghij"})


def chat(delta: dict[str, Any] | None, *, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5.6",
        "choices": choices,
        **extra,
    }


def chat_usage(prompt: int, completion: int, total: int | None = None, **extra: Any) -> dict[str, Any]:
    total = prompt + completion if total is None else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **extra}


DETAILED = chat_usage(
    1420,
    310,
    prompt_tokens_details={"cached_tokens": 1280, "cache_write_tokens": 0, "audio_tokens": 0},
    completion_tokens_details={"reasoning_tokens": 256, "audio_tokens": 0, "rejected_prediction_tokens": 0},
)
DETAILED_FIGURES: Figures = ("reported", 1420, 310, 1280, 0, 256)
DONE = b"data: [DONE]\n\n"
LIE = 'He said "usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18} and data: [DONE]'


def _openai_chat() -> Recording:
    events = [
        sse(chat({"role": "assistant", "content": ""}, usage=None)),
        sse(chat({"content": LIE}, usage=None)),
        sse(chat({"content": "grüß"}, usage=None, obfuscation="xyz")),
        sse(chat({}, finish="stop", usage=None)),
        sse(chat(None, usage=DETAILED)),
        DONE,
    ]
    return Recording(
        name="openai-chat-stream",
        usage="openai",
        content_type=SSE_TYPE,
        events=events,
        expected=[DETAILED_FIGURES],
        aborted=[[], [MISSING], [MISSING], [MISSING], [MISSING], [DETAILED_FIGURES], [DETAILED_FIGURES]],
        provider="openai",
        model="gpt-5.6",
        response_ids=("chatcmpl-1",),
    )


def _vllm() -> Recording:
    """Cumulative figures in every chunk: the last value counts."""
    events = [
        sse(chat({"role": "assistant"}, usage=chat_usage(7, 0))),
        sse(chat({"content": "a"}, usage=chat_usage(7, 1, prompt_tokens_details=None))),
        sse(chat({"content": "b"}, usage=chat_usage(7, 2))),
        sse(chat({}, finish="stop", usage=chat_usage(7, 3))),
        sse(chat(None, usage=chat_usage(7, 3))),
        DONE,
    ]
    last: Figures = ("reported", 7, 3, None, None, None)
    return Recording(
        name="vllm-continuous",
        usage="openai",
        content_type=SSE_TYPE,
        events=events,
        expected=[last],
        aborted=[
            [],
            [("partial", 7, 0, None, None, None)],
            [("partial", 7, 1, None, None, None)],
            [("partial", 7, 2, None, None, None)],
            [last],
            [last],
            [last],
        ],
        provider="openai",
        model="gpt-5.6",
        response_ids=("chatcmpl-1",),
    )


def _mistral() -> Recording:
    events = [
        sse(chat({"role": "assistant", "content": ""})),
        sse(chat({"content": "Bonjour"}, finish="stop", usage=chat_usage(11, 4, prompt_audio_seconds=None))),
        DONE,
    ]
    last: Figures = ("reported", 11, 4, None, None, None)
    return Recording(
        name="mistral",
        usage="mistral",
        content_type=SSE_TYPE,
        events=events,
        expected=[last],
        aborted=[[], [MISSING], [last], [last]],
        provider="mistral_ai",
        model="gpt-5.6",
        response_ids=("chatcmpl-1",),
        auto=False,
    )


def _responses() -> Recording:
    def event(kind: str, usage: object) -> bytes:
        response = {"id": "resp_1", "object": "response", "model": "gpt-5.6", "error": None, "usage": usage}
        return sse({"type": kind, "sequence_number": 1, "response": response}, event=kind)

    usage = {
        "input_tokens": 36,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": 123,
    }
    delta = {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi", "obfuscation": "aaa"}
    last: Figures = ("reported", 36, 87, 4, 2, 20)
    return Recording(
        name="openai-responses-stream",
        usage="openai",
        content_type=SSE_TYPE,
        events=[
            event("response.created", None),
            event("response.in_progress", None),
            sse(delta, event="response.output_text.delta"),
            event("response.completed", usage),
        ],
        expected=[last],
        aborted=[[], [MISSING], [MISSING], [MISSING], [last]],
        provider="openai",
        model="gpt-5.6",
        response_ids=("resp_1",),
    )


def document(
    name: str,
    value: object,
    expected: Figures,
    *,
    provider: str,
    usage: str | None = None,
    model: str | None = None,
    response_id: str | None = None,
    auto: bool = True,
) -> Recording:
    return Recording(
        name=name,
        usage=usage or provider,
        content_type=JSON_TYPE,
        events=[json.dumps(value, indent=1).encode()],
        expected=[expected],
        aborted=[[], [expected]],
        provider=provider,
        model=model,
        response_ids=(response_id,),
        auto=auto,
    )


def _openai_documents() -> list[Recording]:
    message = {"index": 0, "message": {"role": "assistant", "content": LIE}, "finish_reason": "stop"}
    completion = {"id": "c1", "object": "chat.completion", "model": "m", "choices": [message]}
    xai = chat_usage(10, 5, 35, completion_tokens_details={"reasoning_tokens": 20})
    hidden = chat_usage(3, 7, 298)
    below = chat_usage(100, 9, 50)

    def doc(name: str, value: dict[str, Any], expected: Figures) -> Recording:
        return document(
            f"openai-{name}",
            value,
            expected,
            provider="openai",
            model=value.get("model"),
            response_id=value.get("id"),
        )

    return [
        doc("chat", {**completion, "usage": DETAILED}, DETAILED_FIGURES),
        doc("xai-residual", {**completion, "usage": xai}, ("reported", 10, 25, None, None, 20)),
        doc("hidden-thinking", {**completion, "usage": hidden}, ("reported", 3, 295, None, None, 288)),
        doc("total-below", {**completion, "usage": below}, ("reported", 100, 9, None, None, None)),
    ]


def anthropic_events(wrap: Callable[[dict[str, Any]], bytes]) -> list[bytes]:
    start: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-5",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 9,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 1,
            "output_tokens": 1,
            "service_tier": "standard",
        },
    }
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": LIE}}
    return [
        wrap({"type": "message_start", "message": start}),
        wrap({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        wrap({"type": "ping"}),
        wrap(text),
        wrap(
            {
                "type": "message_delta",
                "delta": {"stop_reason": None},
                "usage": {"output_tokens": 10, "cache_read_input_tokens": None},
            }
        ),
        wrap(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {
                    "input_tokens": 12,
                    "output_tokens": 16,
                    "output_tokens_details": {"thinking_tokens": 5},
                },
            }
        ),
    ]


ANTHROPIC_FIRST: Figures = ("partial", 13, 1, 1, 3, None)
ANTHROPIC_SECOND: Figures = ("partial", 13, 10, 1, 3, None)
ANTHROPIC_LAST: Figures = ("reported", 16, 16, 1, 3, 5)
ANTHROPIC_ABORTED: list[list[Figures]] = [
    [],
    [ANTHROPIC_FIRST],
    [ANTHROPIC_FIRST],
    [ANTHROPIC_FIRST],
    [ANTHROPIC_FIRST],
    [ANTHROPIC_SECOND],
    [ANTHROPIC_LAST],
    [ANTHROPIC_LAST],
]


def _anthropic() -> list[Recording]:
    events = anthropic_events(lambda value: sse(value, event=value["type"]))
    stream = Recording(
        name="anthropic-stream",
        usage="anthropic",
        content_type=SSE_TYPE,
        events=[*events, sse({"type": "message_stop"}, event="message_stop")],
        expected=[ANTHROPIC_LAST],
        aborted=ANTHROPIC_ABORTED,
        provider="anthropic",
        model="claude-5",
        response_ids=("msg_1",),
    )
    message = {"id": "msg_2", "type": "message", "model": "claude-5", "content": [{"type": "text"}]}
    usage = {
        "input_tokens": 2095,
        "cache_creation_input_tokens": None,
        "cache_read_input_tokens": 0,
        "output_tokens": 503,
    }
    part = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    compacted = {
        **part,
        "input_tokens": 23_000,
        "output_tokens": 1_000,
        "iterations": [
            {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500, **part},
            {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000, **part},
        ],
    }
    return [
        stream,
        document(
            "anthropic-message",
            {**message, "usage": usage},
            ("reported", 2095, 503, 0, None, None),
            provider="anthropic",
            model="claude-5",
            response_id="msg_2",
        ),
        document(
            "anthropic-compaction",
            {**message, "usage": compacted},
            ("reported", 203_000, 4_500, 0, 0, None),
            provider="anthropic",
            model="claude-5",
            response_id="msg_2",
        ),
    ]


def gemini_chunk(text: str, finish: str | None = None, **usage: int) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {**usage, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2}]},
        "modelVersion": "gemini-3",
        "responseId": "r1",
    }


def _gemini() -> list[Recording]:
    chunks = [
        gemini_chunk('"[{usageMetadata', promptTokenCount=2, totalTokenCount=12, thoughtsTokenCount=10),
        gemini_chunk(
            "b\\", promptTokenCount=2, candidatesTokenCount=4, totalTokenCount=16, thoughtsTokenCount=10
        ),
        gemini_chunk(
            "]}",
            "STOP",
            promptTokenCount=1,
            candidatesTokenCount=9,
            totalTokenCount=20,
            thoughtsTokenCount=10,
            cachedContentTokenCount=1,
        ),
    ]
    first: Figures = ("partial", 2, 10, None, None, 10)
    second: Figures = ("partial", 2, 14, None, None, 10)
    last: Figures = ("reported", 1, 19, 1, None, 10)
    aborted: list[list[Figures]] = [[], [first], [second], [last]]
    shared: dict[str, Any] = {
        "usage": "gemini",
        "expected": [last],
        "provider": "gcp.gemini",
        "model": "gemini-3",
        "response_ids": ("r1",),
    }
    opened = [
        b"[" + compact(chunks[0]),
        b"\n,\r\n" + compact(chunks[1]),
        b",\n" + compact(chunks[2]),
        b"\n]\n",
    ]
    within = gemini_chunk(
        "a", "STOP", promptTokenCount=5, candidatesTokenCount=30, thoughtsTokenCount=20, totalTokenCount=35
    )
    tools = gemini_chunk(
        "a", "STOP", promptTokenCount=5, toolUsePromptTokenCount=7, candidatesTokenCount=3, totalTokenCount=15
    )
    thinking = gemini_chunk("", "MAX_TOKENS", promptTokenCount=5, thoughtsTokenCount=60, totalTokenCount=65)

    def doc(name: str, value: object, expected: Figures) -> Recording:
        return document(
            f"gemini-{name}",
            value,
            expected,
            usage="gemini",
            provider="gcp.gemini",
            model="gemini-3",
            response_id="r1",
        )

    return [
        Recording(
            name="gemini-sse",
            content_type=SSE_TYPE,
            events=[sse(chunk, end=b"\r\n") for chunk in chunks],
            aborted=aborted,
            **shared,
        ),
        Recording(
            name="gemini-array",
            content_type="application/json; charset=UTF-8",
            events=opened,
            aborted=[*aborted, [last]],
            **shared,
        ),
        doc("thoughts-within", within, ("reported", 5, 30, None, None, 20)),
        doc("tool-prompt", tools, ("reported", 12, 3, None, None, None)),
        doc("only-thoughts", thinking, ("reported", 5, 60, None, None, 60)),
    ]


def _bedrock() -> list[Recording]:
    usage = {
        "inputTokens": 10,
        "outputTokens": 20,
        "totalTokens": 330,
        "cacheReadInputTokens": 100,
        "cacheWriteInputTokens": 200,
    }
    last: Figures = ("reported", 310, 20, 100, 200, None)
    converse = {
        "output": {"message": {"role": "assistant", "content": [{"text": LIE}]}},
        "stopReason": "end_turn",
        "usage": usage,
        "metrics": {"latencyMs": 551},
    }
    streamed = [
        event_frame("messageStart", {"role": "assistant", "p": "ab"}),
        event_frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": LIE}}),
        event_frame("messageStop", {"stopReason": "end_turn"}),
        event_frame("metadata", {"usage": usage, "metrics": {"latencyMs": 551}}),
    ]
    metrics = {"inputTokenCount": 12, "outputTokenCount": 16, "invocationLatency": 1}
    stop = {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}
    llama = {"generation": "a", "stop_reason": None}
    llama_end = {**llama, "stop_reason": "stop", "amazon-bedrock-invocationMetrics": metrics}
    shared: dict[str, Any] = {
        "usage": "bedrock",
        "content_type": EVENTSTREAM_TYPE,
        "provider": "aws.bedrock",
    }
    metered: Figures = ("reported", 12, 16, None, None, None)
    return [
        document("bedrock-converse", converse, last, provider="aws.bedrock", usage="bedrock"),
        Recording(
            name="bedrock-converse-stream",
            events=streamed,
            expected=[last],
            aborted=[[], [MISSING], [MISSING], [MISSING], [last]],
            **shared,
        ),
        Recording(
            name="bedrock-invoke-anthropic",
            events=[*anthropic_events(invoked), invoked(stop)],
            expected=[ANTHROPIC_LAST],
            aborted=ANTHROPIC_ABORTED,
            model="claude-5",
            response_ids=("msg_1",),
            **shared,
        ),
        Recording(
            name="bedrock-invoke-llama",
            events=[invoked(llama), invoked(llama_end)],
            expected=[metered],
            aborted=[[], [MISSING], [metered]],
            **shared,
        ),
    ]


def _cohere() -> list[Recording]:
    usage = {
        "billed_units": {"input_tokens": 5.0, "output_tokens": 28.0},
        "tokens": {"input_tokens": 71.0, "output_tokens": 30.0},
        "cached_tokens": 64,
    }
    last: Figures = ("reported", 71, 30, 64, None, None)
    delta = {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": LIE}}}}
    events = [
        sse({"type": "message-start", "id": "co1", "delta": {"message": {"role": "assistant"}}}),
        sse(delta, event="content-delta"),
        sse({"type": "message-end", "id": "co1", "delta": {"finish_reason": "COMPLETE", "usage": usage}}),
    ]
    whole = {
        "id": "co1",
        "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "content": [{"type": "text", "text": LIE}]},
        "usage": usage,
    }
    return [
        Recording(
            name="cohere-stream",
            usage="cohere",
            content_type=SSE_TYPE,
            events=events,
            expected=[last],
            aborted=[[], [MISSING], [MISSING], [last]],
            provider="cohere",
            response_ids=("co1",),
        ),
        document("cohere-chat", whole, last, provider="cohere", response_id="co1"),
    ]


def _ollama() -> list[Recording]:
    def line(**extra: Any) -> dict[str, Any]:
        return {"model": "llama4", "created_at": "2026-11-20T08:00:00Z", **extra}

    end = line(message={"role": "assistant", "content": ""}, done=True, prompt_eval_count=26, eval_count=298)
    last: Figures = ("reported", 26, 298, None, None, None)
    unknown = line(response="x", done=True, eval_count=12)
    embed = line(embeddings=[[0.1]], prompt_eval_count=8)
    return [
        Recording(
            name="ollama-stream",
            usage="ollama",
            content_type=NDJSON_TYPE,
            events=[
                compact(line(message={"role": "assistant", "content": LIE}, done=False)) + b"\n",
                compact(line(message={"role": "assistant", "content": "x"}, done=False)) + b"\r\n",
                compact(end) + b"\n",
            ],
            expected=[last],
            aborted=[[], [MISSING], [MISSING], [last]],
            provider="ollama",
            model="llama4",
        ),
        document("ollama-chat", end, last, provider="ollama", model="llama4"),
        document(
            "ollama-prompt-unknown",
            unknown,
            ("reported", None, 12, None, None, None),
            provider="ollama",
            model="llama4",
        ),
        document(
            "ollama-embed", embed, ("reported", 8, 0, None, None, None), provider="ollama", model="llama4"
        ),
    ]


RECORDINGS: list[Recording] = [
    _openai_chat(),
    _vllm(),
    _mistral(),
    _responses(),
    *_openai_documents(),
    *_anthropic(),
    *_gemini(),
    *_bedrock(),
    *_cohere(),
    *_ollama(),
]
