"""Responses of every API as they come over the wire, and what they amount to, cut off after any event too."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import yaml

from llm_usage import CallUsage, ResponseReader

# (source, input, output, cached, cache write, reasoning)
Figures = tuple[str, int | None, int | None, int | None, int | None, int | None]

SSE_TYPE = "text/event-stream; charset=utf-8"
JSON_TYPE = "application/json"
NDJSON_TYPE = "application/x-ndjson"
EVENTSTREAM_TYPE = "application/vnd.amazon.eventstream"
KINDS: Final = {
    "json": JSON_TYPE,
    "array": "application/json; charset=UTF-8",
    "sse": SSE_TYPE,
    "ndjson": NDJSON_TYPE,
    "frames": EVENTSTREAM_TYPE,
    "invoked": EVENTSTREAM_TYPE,
}
"""Ways of a response's body, each with its content type."""
FILE: Final = Path(__file__).parents[1] / "llm_usage/payloads" / "recordings.yaml"
MISSING: Figures = ("missing", None, None, None, None, None)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A response: what ``recordings.yaml`` says of it."""

    name: str
    usage: str
    kind: str
    said: Sequence[Any]
    after: Sequence[Figures]
    provider: str
    model: str | None = None
    response_id: str | None = None
    auto: bool = True
    end: str = "\n"

    @property
    def content_type(self) -> str:
        return KINDS[self.kind]

    @property
    def events(self) -> list[bytes]:
        if self.kind == "json":
            return [json.dumps(self.said[0], indent=1).encode()]
        return encode_events(self.kind, self.said, self.end.encode())

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    @property
    def expected(self) -> list[Figures]:
        return [self.after[-1]]


def figures(call: CallUsage) -> Figures:
    cached, written = call.cached_input_tokens, call.cache_write_tokens
    return call.source, call.input_tokens, call.output_tokens, cached, written, call.reasoning_tokens


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
    return [body[at : at + size] for at in range(0, len(body), size)]


def cut_at(body: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[begin:end] for begin, end in pairwise(edges)]


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def sse(value: object, event: str | None = None, end: bytes = b"\n") -> bytes:
    head = b"" if event is None else b"event: " + event.encode() + end
    return head + b"data: " + compact(value) + end + end


def frame(payload: bytes, **headers: str) -> bytes:
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


def encode_events(kind: str, said: Sequence[Any], end: bytes = b"\n") -> list[bytes]:
    """The pieces of a body, one to an event."""
    if kind == "array":
        first, *others = map(compact, said)
        commas = cycle((b"\n,\r\n", b",\n"))
        return [
            b"[" + first,
            *(comma + value for comma, value in zip(commas, others, strict=False)),
            b"\n]\n",
        ]
    if kind == "frames":
        return [event_frame(name, value) for name, value in said]
    if kind == "invoked":
        return [*map(invoked, said)]
    if kind == "ndjson":
        return [compact(value) + line for value, line in zip(said, cycle((b"\n", b"\r\n")), strict=False)]
    return [_encode_sse(value, end) for value in said]


def _encode_sse(value: Any, end: bytes) -> bytes:
    if isinstance(value, str):
        return (value if value.startswith(":") else f"data: {value}").encode() + end + end
    return sse(value, value.get("type"), end)


def chat(delta: dict[str, Any] | None, *, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5.6"}
    return {**head, "choices": choices, **extra}


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


def gemini_chunk(text: str, finish: str | None = None, **usage: int) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    details = {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2}]}
    said = {"candidates": [candidate], "usageMetadata": {**usage, **details}}
    return {**said, "modelVersion": "gemini-3", "responseId": "r1"}


def _load_recordings() -> Iterator[Recording]:
    rows: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8").replace("LIE", json.dumps(LIE)))
    for name, row in rows.items():
        row["after"] = [*map(tuple, row["after"])]
        yield Recording(name=name, **row)


RECORDINGS = [*_load_recordings()]
MESSAGES = next(recording for recording in RECORDINGS if recording.name == "anthropic-stream")
ANTHROPIC_LAST = MESSAGES.after[-1]


def anthropic_events(wrap: Callable[[dict[str, Any]], bytes]) -> list[bytes]:
    return [*map(wrap, MESSAGES.said[:-1])]
