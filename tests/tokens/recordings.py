"""Responses of every API as they come over the wire, and what they amount to, cut off after any event too."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

import yaml

from meterkit.tokens.response import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
        after: what it amounts to when it breaks off after each event; the last one: the whole.
    """

    name: str
    usage: str
    content_type: str = SSE_TYPE
    events: Sequence[bytes]
    after: Sequence[Figures]
    provider: str
    model: str | None = None
    response_id: str | None = None
    auto: bool = True

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    @property
    def expected(self) -> list[Figures]:
        return [self.after[-1]]


def figures(call: CallUsage) -> Figures:
    return (
        call.source,
        call.input_tokens,
        call.output_tokens,
        call.cached_input_tokens,
        call.cache_write_tokens,
        call.reasoning_tokens,
    )


def open_reader(
    usage: str = "auto",
    kind: str | None = JSON_TYPE,
    *,
    coding: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> ResponseReader:
    of_kind = [] if kind is None else [(b"Content-Type", kind.encode())]
    given = [(b"X-Other", b"1"), *of_kind, (b"content-encoding", coding), *headers]
    reader = ResponseReader.open(usage, status=200, headers=given)
    assert reader is not None
    return reader


def read(*chunks: bytes, usage: str = "auto", complete: bool = True, **opened: Any) -> tuple[CallUsage, ...]:
    """The calls that a response amounts to."""
    reader = open_reader(usage, **opened)
    for chunk in chunks:
        reader.feed(chunk)
    calls = reader.close(complete=complete)
    assert {call.source for call in calls} != {"reported"} or reader.estimated_output_tokens == 0
    return calls


def cut(body: bytes, size: int) -> list[bytes]:
    """Pieces of a body of a size each."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def cut_at(body: bytes, places: Iterable[int]) -> list[bytes]:
    """Pieces of a body, cut at any places."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[begin:end] for begin, end in pairwise(edges)]


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


def from_yaml(text: str) -> list[dict[str, Any]]:
    """Events, of which ``LIE`` is the text that misleads."""
    events: list[dict[str, Any]] = yaml.safe_load(text.replace("LIE", json.dumps(LIE)))
    return events


CHAT: dict[str, Any] = {"provider": "openai", "model": "gpt-5.6", "response_id": "chatcmpl-1"}
VLLM_LAST: Figures = ("reported", 7, 3, None, None, None)
HEARD = chat_usage(11, 4, prompt_audio_seconds=None)
MISTRAL_LAST: Figures = ("reported", 11, 4, None, None, None)
CHATS = [
    Recording(
        name="openai-chat-stream",
        usage="openai",
        events=[
            sse(chat({"role": "assistant", "content": ""}, usage=None)),
            sse(chat({"content": LIE}, usage=None)),
            sse(chat({"content": "grüß"}, usage=None, obfuscation="xyz")),
            sse(chat({}, finish="stop", usage=None)),
            sse(chat(None, usage=DETAILED)),
            DONE,
        ],
        after=[*[MISSING] * 4, DETAILED_FIGURES, DETAILED_FIGURES],
        **CHAT,
    ),
    # Cumulative figures in every chunk: the last value counts.
    Recording(
        name="vllm-continuous",
        usage="openai",
        events=[
            sse(chat({"role": "assistant"}, usage=chat_usage(7, 0))),
            sse(chat({"content": "a"}, usage=chat_usage(7, 1, prompt_tokens_details=None))),
            sse(chat({"content": "b"}, usage=chat_usage(7, 2))),
            sse(chat({}, finish="stop", usage=chat_usage(7, 3))),
            sse(chat(None, usage=chat_usage(7, 3))),
            DONE,
        ],
        after=[*(("partial", 7, count, None, None, None) for count in range(3)), *[VLLM_LAST] * 3],
        **CHAT,
    ),
    Recording(
        name="mistral",
        usage="mistral",
        events=[
            sse(chat({"role": "assistant", "content": ""})),
            sse(chat({"content": "Bonjour"}, finish="stop", usage=HEARD)),
            DONE,
        ],
        after=[MISSING, MISTRAL_LAST, MISTRAL_LAST],
        auto=False,
        **CHAT | {"provider": "mistral_ai"},
    ),
]


def named(events: Iterable[dict[str, Any]]) -> list[bytes]:
    return [sse(event, event=event["type"]) for event in events]


RESPONSES = Recording(
    name="openai-responses-stream",
    usage="openai",
    events=named(
        from_yaml("""
- type: response.created
  sequence_number: 1
  response: &made {id: resp_1, object: response, model: gpt-5.6, error: null, usage: null}
- {type: response.in_progress, sequence_number: 1, response: *made}
- {type: response.output_text.delta, item_id: m, delta: Hi, obfuscation: aaa}
- type: response.completed
  sequence_number: 1
  response:
    {id: resp_1, object: response, model: gpt-5.6, error: null, usage: {
      input_tokens: 36, input_tokens_details: {cached_tokens: 4, cache_write_tokens: 2},
      output_tokens: 87, output_tokens_details: {reasoning_tokens: 20}, total_tokens: 123}}
""")
    ),
    after=[*[MISSING] * 3, ("reported", 36, 87, 4, 2, 20)],
    provider="openai",
    model="gpt-5.6",
    response_id="resp_1",
)


def document(
    name: str,
    value: dict[str, Any],
    expected: Figures,
    *,
    provider: str,
    usage: str | None = None,
    model: str = "model",
    response_id: str = "id",
) -> Recording:
    """A document that names its model and itself in these members."""
    return Recording(
        name=name,
        usage=usage or provider,
        content_type=JSON_TYPE,
        events=[json.dumps(value, indent=1).encode()],
        after=[expected],
        provider=provider,
        model=value.get(model),
        response_id=value.get(response_id),
    )


def completion(name: str, usage: dict[str, Any], expected: Figures) -> Recording:
    message = {"index": 0, "message": {"role": "assistant", "content": LIE}, "finish_reason": "stop"}
    value = {"id": "c1", "object": "chat.completion", "model": "m", "choices": [message], "usage": usage}
    return document(f"openai-{name}", value, expected, provider="openai")


REASONED = chat_usage(10, 5, 35, completion_tokens_details={"reasoning_tokens": 20})
COMPLETIONS = [
    completion("chat", DETAILED, DETAILED_FIGURES),
    completion("xai-residual", REASONED, ("reported", 10, 25, None, None, 20)),
    completion("hidden-thinking", chat_usage(3, 7, 298), ("reported", 3, 295, None, None, 288)),
    completion("total-below", chat_usage(100, 9, 50), ("reported", 100, 9, None, None, None)),
]

MESSAGE_EVENTS = from_yaml("""
- type: message_start
  message:
    id: msg_1
    type: message
    role: assistant
    model: claude-5
    content: []
    stop_reason: null
    usage: {input_tokens: 9, cache_creation_input_tokens: 3, cache_read_input_tokens: 1, output_tokens: 1,
            service_tier: standard}
- {type: content_block_start, index: 0, content_block: {type: text, text: ""}}
- {type: ping}
- {type: content_block_delta, index: 0, delta: {type: text_delta, text: LIE}}
- {type: message_delta, delta: {stop_reason: null}, usage: {output_tokens: 10, cache_read_input_tokens: null}}
- type: message_delta
  delta: {stop_reason: end_turn, stop_sequence: null}
  usage: {input_tokens: 12, output_tokens: 16, output_tokens_details: {thinking_tokens: 5}}
""")
MESSAGES = from_yaml("""
- id: msg_2
  type: message
  model: claude-5
  content: [{type: text}]
  usage: {input_tokens: 2095, cache_creation_input_tokens: null, cache_read_input_tokens: 0,
          output_tokens: 503}
- id: msg_2
  type: message
  model: claude-5
  content: [{type: text}]
  usage:
    cache_creation_input_tokens: 0
    cache_read_input_tokens: 0
    input_tokens: 23000
    output_tokens: 1000
    iterations:
      - {type: compaction, input_tokens: 180000, output_tokens: 3500,
         cache_creation_input_tokens: 0, cache_read_input_tokens: 0}
      - {type: message, input_tokens: 23000, output_tokens: 1000,
         cache_creation_input_tokens: 0, cache_read_input_tokens: 0}
""")


def anthropic_events(wrap: Callable[[dict[str, Any]], bytes]) -> list[bytes]:
    return [*map(wrap, MESSAGE_EVENTS)]


ANTHROPIC_LAST: Figures = ("reported", 16, 16, 1, 3, 5)
ANTHROPIC_AFTER: list[Figures] = [
    *[("partial", 13, 1, 1, 3, None)] * 4,
    ("partial", 13, 10, 1, 3, None),
    *[ANTHROPIC_LAST] * 2,
]
ANTHROPIC = [
    Recording(
        name="anthropic-stream",
        usage="anthropic",
        events=named([*MESSAGE_EVENTS, {"type": "message_stop"}]),
        after=ANTHROPIC_AFTER,
        provider="anthropic",
        model="claude-5",
        response_id="msg_1",
    ),
    document("anthropic-message", MESSAGES[0], ("reported", 2095, 503, 0, None, None), provider="anthropic"),
    document(
        "anthropic-compaction", MESSAGES[1], ("reported", 203_000, 4_500, 0, 0, None), provider="anthropic"
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


def gemini_used(text: str, finish: str | None = None, **counts: int) -> dict[str, Any]:
    return gemini_chunk(text, finish, **{f"{name}TokenCount": count for name, count in counts.items()})


def gemini_document(name: str, value: dict[str, Any], expected: Figures) -> Recording:
    return document(
        f"gemini-{name}",
        value,
        expected,
        usage="gemini",
        provider="gcp.gemini",
        model="modelVersion",
        response_id="responseId",
    )


GEMINI_CHUNKS = [
    gemini_used('"[{usageMetadata', prompt=2, total=12, thoughts=10),
    gemini_used("b\\", prompt=2, candidates=4, total=16, thoughts=10),
    gemini_used("]}", "STOP", prompt=1, candidates=9, total=20, thoughts=10, cachedContent=1),
]
GEMINI_AFTER: list[Figures] = [
    ("partial", 2, 10, None, None, 10),
    ("partial", 2, 14, None, None, 10),
    ("reported", 1, 19, 1, None, 10),
]
GEMINI_STREAM: dict[str, Any] = {
    "usage": "gemini",
    "provider": "gcp.gemini",
    "model": "gemini-3",
    "response_id": "r1",
}
GEMINI = [
    Recording(
        name="gemini-sse",
        events=[sse(chunk, end=b"\r\n") for chunk in GEMINI_CHUNKS],
        after=GEMINI_AFTER,
        **GEMINI_STREAM,
    ),
    Recording(
        name="gemini-array",
        content_type="application/json; charset=UTF-8",
        events=[
            b"[" + compact(GEMINI_CHUNKS[0]),
            b"\n,\r\n" + compact(GEMINI_CHUNKS[1]),
            b",\n" + compact(GEMINI_CHUNKS[2]),
            b"\n]\n",
        ],
        after=[*GEMINI_AFTER, GEMINI_AFTER[-1]],
        **GEMINI_STREAM,
    ),
    gemini_document(
        "thoughts-within",
        gemini_used("a", "STOP", prompt=5, candidates=30, thoughts=20, total=35),
        ("reported", 5, 30, None, None, 20),
    ),
    gemini_document(
        "tool-prompt",
        gemini_used("a", "STOP", prompt=5, toolUsePrompt=7, candidates=3, total=15),
        ("reported", 12, 3, None, None, None),
    ),
    gemini_document(
        "only-thoughts",
        gemini_used("", "MAX_TOKENS", prompt=5, thoughts=60, total=65),
        ("reported", 5, 60, None, None, 60),
    ),
]

CONVERSED, CONVERSED_END = from_yaml("""
- output: {message: {role: assistant, content: [{text: LIE}]}}
  stopReason: end_turn
  usage: &used {inputTokens: 10, outputTokens: 20, totalTokens: 330, cacheReadInputTokens: 100,
                cacheWriteInputTokens: 200}
  metrics: &took {latencyMs: 551}
- {usage: *used, metrics: *took}
""")
INVOCATION = {"inputTokenCount": 12, "outputTokenCount": 16, "invocationLatency": 1}
METRICS = {"amazon-bedrock-invocationMetrics": INVOCATION}
CONVERSED_FIGURES: Figures = ("reported", 310, 20, 100, 200, None)
FRAMED: dict[str, Any] = {"usage": "bedrock", "content_type": EVENTSTREAM_TYPE, "provider": "aws.bedrock"}
BEDROCK = [
    document("bedrock-converse", CONVERSED, CONVERSED_FIGURES, provider="aws.bedrock", usage="bedrock"),
    Recording(
        name="bedrock-converse-stream",
        events=[
            event_frame("messageStart", {"role": "assistant", "p": "ab"}),
            event_frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": LIE}}),
            event_frame("messageStop", {"stopReason": "end_turn"}),
            event_frame("metadata", CONVERSED_END),
        ],
        after=[*[MISSING] * 3, CONVERSED_FIGURES],
        **FRAMED,
    ),
    Recording(
        name="bedrock-invoke-anthropic",
        events=[*map(invoked, [*MESSAGE_EVENTS, {"type": "message_stop", **METRICS}])],
        after=ANTHROPIC_AFTER,
        model="claude-5",
        response_id="msg_1",
        **FRAMED,
    ),
    Recording(
        name="bedrock-invoke-llama",
        events=[
            invoked({"generation": "a", "stop_reason": None}),
            invoked({"generation": "a", "stop_reason": "stop", **METRICS}),
        ],
        after=[MISSING, ("reported", 12, 16, None, None, None)],
        **FRAMED,
    ),
]

*COHERE_EVENTS, COHERE_DOCUMENT = from_yaml("""
- {type: message-start, id: co1, delta: {message: {role: assistant}}}
- {type: content-delta, index: 0, delta: {message: {content: {text: LIE}}}}
- type: message-end
  id: co1
  delta:
    finish_reason: COMPLETE
    usage: &used {billed_units: {input_tokens: 5.0, output_tokens: 28.0},
                  tokens: {input_tokens: 71.0, output_tokens: 30.0}, cached_tokens: 64}
- id: co1
  finish_reason: COMPLETE
  message: {role: assistant, content: [{type: text, text: LIE}]}
  usage: *used
""")
COHERE_FIGURES: Figures = ("reported", 71, 30, 64, None, None)
COHERE = [
    Recording(
        name="cohere-stream",
        usage="cohere",
        events=[sse(COHERE_EVENTS[0]), *named(COHERE_EVENTS[1:2]), sse(COHERE_EVENTS[2])],
        after=[MISSING, MISSING, COHERE_FIGURES],
        provider="cohere",
        response_id="co1",
    ),
    document("cohere-chat", COHERE_DOCUMENT, COHERE_FIGURES, provider="cohere"),
]


def ollama(**extra: Any) -> dict[str, Any]:
    return {"model": "llama4", "created_at": "2026-11-20T08:00:00Z", **extra}


OLLAMA_END = ollama(
    message={"role": "assistant", "content": ""}, done=True, prompt_eval_count=26, eval_count=298
)
OLLAMA_FIGURES: Figures = ("reported", 26, 298, None, None, None)
OLLAMA = [
    Recording(
        name="ollama-stream",
        usage="ollama",
        content_type=NDJSON_TYPE,
        events=[
            compact(ollama(message={"role": "assistant", "content": LIE}, done=False)) + b"\n",
            compact(ollama(message={"role": "assistant", "content": "x"}, done=False)) + b"\r\n",
            compact(OLLAMA_END) + b"\n",
        ],
        after=[MISSING, MISSING, OLLAMA_FIGURES],
        provider="ollama",
        model="llama4",
    ),
    document("ollama-chat", OLLAMA_END, OLLAMA_FIGURES, provider="ollama"),
    document(
        "ollama-prompt-unknown",
        ollama(response="x", done=True, eval_count=12),
        ("reported", None, 12, None, None, None),
        provider="ollama",
    ),
    document(
        "ollama-embed",
        ollama(embeddings=[[0.1]], prompt_eval_count=8),
        ("reported", 8, 0, None, None, None),
        provider="ollama",
    ),
]

RECORDINGS = [*CHATS, RESPONSES, *COMPLETIONS, *ANTHROPIC, *GEMINI, *BEDROCK, *COHERE, *OLLAMA]
