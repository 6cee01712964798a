from __future__ import annotations

import json
from typing import Any

import pytest

from meterkit.tokens.call_usage import CallUsage, filled
from meterkit.tokens.estimate import BODY_BYTES_MAX, MEDIA_PART_TOKENS, estimate_input, estimate_request
from meterkit.tokens.response import ResponseReader
from tokens.recordings import (
    DONE,
    EVENTSTREAM_TYPE,
    NDJSON_TYPE,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    event_frame,
    figures,
    gemini_chunk,
    invoked,
    sse,
)

TEXT = "Grüße, 世界"
BYTES = len(TEXT.encode())
IMAGE = "A" * 9_000


@pytest.mark.parametrize(
    ("body", "texts", "tokens"),
    [
        ({"messages": [{"role": "user", "content": TEXT}]}, 1, 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}], "system": TEXT}, 2, 0),
        ({"prompt": TEXT, "suffix": TEXT}, 2, 0),
        ({"prompt": [TEXT, TEXT]}, 2, 0),
        ({"prompt": [1, 2, 3]}, 0, 3),
        ({"input": [[1, 2], [3]]}, 0, 3),
        ({"input": TEXT, "instructions": TEXT}, 2, 0),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]}, 1, 0),
        ({"contents": [{"role": "user", "parts": [{"text": TEXT}]}]}, 1, 0),
        ({"systemInstruction": {"parts": [{"text": TEXT}]}, "contents": TEXT}, 2, 0),
        ({"messages": [{"content": [{"type": "tool_result", "content": TEXT, "tool_use_id": "t"}]}]}, 1, 0),
        (
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": f"data:{IMAGE}"}}]}]},
            0,
            MEDIA_PART_TOKENS,
        ),
        (
            {"messages": [{"content": [{"type": "image", "source": {"type": "base64", "data": IMAGE}}]}]},
            0,
            MEDIA_PART_TOKENS,
        ),
        (
            {
                "contents": [
                    {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": IMAGE}}, {"text": TEXT}]}
                ]
            },
            1,
            MEDIA_PART_TOKENS,
        ),
        ({"messages": [{"content": TEXT, "images": [IMAGE, IMAGE]}]}, 1, 2 * MEDIA_PART_TOKENS),
        ({"model": TEXT, "user": TEXT, "metadata": {"a": TEXT}}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_input_is_estimated_from_texts_and_parts(body: dict[str, Any], texts: int, tokens: int) -> None:
    expected = -(-texts * BYTES // 3) + tokens
    assert expected == estimate_input(body)
    assert expected == estimate_input(json.dumps(body).encode(), "any-model")


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"9" * 9_999])
def test_a_body_that_is_no_request_is_estimated_at_nothing(body: bytes) -> None:
    assert 0 == estimate_input(body)


def test_a_body_beyond_the_bound_is_taken_for_media() -> None:
    assert 9 * MEDIA_PART_TOKENS == estimate_input(b"x" * (BODY_BYTES_MAX + 1))


def test_a_request_of_endless_depth_is_measured_within_bounds() -> None:
    messages: list[Any] = []
    for _ in range(50_000):
        messages = [messages, "abc"]
    assert 50_000 == estimate_input({"messages": messages})
    assert 100_000 > estimate_input({"messages": ["abc"] * 200_000}) > 99_000


STREAMS = {
    "openai": (SSE_TYPE, [sse(chat({"content": TEXT})), sse(chat({"reasoning_content": TEXT}))]),
    "openai tools": (
        SSE_TYPE,
        [
            sse(chat({"tool_calls": [{"index": 0, "function": {"arguments": TEXT}}]})),
            sse(chat({"content": TEXT}, obfuscation=IMAGE)),
        ],
    ),
    "responses": (
        SSE_TYPE,
        [sse({"type": "response.output_text.delta", "delta": TEXT, "obfuscation": IMAGE})] * 2,
    ),
    "anthropic": (
        SSE_TYPE,
        [
            sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": TEXT}}),
            sse({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": TEXT}}),
        ],
    ),
    "gemini": (SSE_TYPE, [sse({k: v}) for k, v in gemini_chunk(TEXT).items() if k == "candidates"] * 2),
    "bedrock": (EVENTSTREAM_TYPE, [event_frame("contentBlockDelta", {"delta": {"text": TEXT}})] * 2),
    "bedrock invoke": (
        EVENTSTREAM_TYPE,
        [invoked({"type": "content_block_delta", "delta": {"type": "text_delta", "text": TEXT}})] * 2,
    ),
    "cohere": (
        SSE_TYPE,
        [sse({"type": "content-delta", "delta": {"message": {"content": {"text": TEXT}}}})] * 2,
    ),
    "ollama": (
        NDJSON_TYPE,
        [
            compact({"model": "m", "created_at": "t", "done": False, "message": {"content": TEXT}}) + b"\n",
            compact({"model": "m", "created_at": "t", "done": False, "response": TEXT}) + b"\n",
        ],
    ),
}


def open_reader(kind: str, *, usage: str = "auto") -> ResponseReader:
    headers = [(b"content-type", kind.encode())]
    reader = ResponseReader.open(usage, status=200, headers=headers)
    assert reader is not None
    return reader


@pytest.mark.parametrize("name", STREAMS)
def test_the_text_of_a_stream_that_breaks_off_is_measured(name: str) -> None:
    kind, events = STREAMS[name]
    reader = open_reader(kind)
    for event in events * 10:
        reader.feed(event)
    assert 20 * BYTES == reader.output_bytes_seen
    assert 20 * BYTES // 4 == reader.estimated_output_tokens
    (call,) = reader.close(complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)


def test_text_that_final_figures_cover_is_not_estimated() -> None:
    reader = open_reader(SSE_TYPE)
    reader.feed(sse(chat({"content": TEXT})))
    reader.feed(sse(chat(None, usage=chat_usage(3, 4))))
    assert (BYTES, 0) == (reader.output_bytes_seen, reader.estimated_output_tokens)
    reader.feed(DONE + sse({**chat({"content": TEXT}), "id": "c2"}))
    assert (2 * BYTES, BYTES // 4) == (reader.output_bytes_seen, reader.estimated_output_tokens)


def test_text_that_a_snapshot_covers_is_not_estimated() -> None:
    reader = open_reader(SSE_TYPE)
    reader.feed(sse(chat({"content": TEXT}, usage=chat_usage(3, 4))))
    assert 0 == reader.estimated_output_tokens
    reader.feed(sse(chat({"content": TEXT})))
    assert BYTES // 4 == reader.estimated_output_tokens


def test_the_text_of_a_torn_document_is_estimated() -> None:
    reader = open_reader("application/json")
    reader.feed(b'{"choices": [{"message": {"content": "abcdef\\"gh i')
    (call,) = reader.close(complete=False)
    assert (("ended_early",), 2) == (call.notes, reader.estimated_output_tokens)


def test_a_document_that_lacks_nothing_but_the_end_of_its_response_is_not_estimated() -> None:
    reader = open_reader("application/json")
    reader.feed(compact({**chat({"content": TEXT}), "usage": chat_usage(3, 4)}))
    assert [("partial", 3, 4)] == [figures(call)[:3] for call in reader.close(complete=False)]
    assert 0 == reader.estimated_output_tokens


def test_a_torn_document_that_may_be_anything_is_nothing() -> None:
    reader = open_reader("application/json")
    reader.feed(b'{"items": [{"text": "abc')
    assert () == reader.close(complete=False)


TOLD = CallUsage(source="reported", input_tokens=5, output_tokens=6, model="m", response_id="1")
SNAPSHOT = CallUsage(source="partial", input_tokens=5, output_tokens=6, response_id="1")
NOTHING = CallUsage(source="missing", response_id="2", notes=("ended_early",))


@pytest.mark.parametrize(
    ("calls", "output_tokens", "expected"),
    [
        ((), 7, []),
        ((NOTHING,), 7, [("estimated", 3, 7)]),
        ((NOTHING,), 0, [("estimated", 3, 1)]),
        ((SNAPSHOT,), 0, [("partial", 5, 6)]),
        ((SNAPSHOT,), 7, [("estimated", 5, 13)]),
        ((TOLD,), 0, [("reported", 5, 6)]),
        ((TOLD,), 7, [("reported", 5, 6), ("estimated", 0, 7)]),
        ((TOLD, NOTHING), 7, [("reported", 5, 6), ("estimated", 3, 7)]),
    ],
)
def test_what_is_lacking_of_a_call_that_was_cut_is_estimated(
    calls: tuple[CallUsage, ...], output_tokens: int, expected: list[tuple[str, int, int]]
) -> None:
    cut = filled(calls, input_tokens=lambda: 3, output_tokens=output_tokens, at_least=1)
    assert expected == [figures(call)[:3] for call in cut]


def never() -> int:
    raise AssertionError("the request was looked at without need")


@pytest.mark.parametrize("calls", [(), (NOTHING,), (SNAPSHOT,), (TOLD,), (TOLD, NOTHING)])
def test_what_ended_without_text_and_without_figures_stays_unknown(calls: tuple[CallUsage, ...]) -> None:
    assert calls == filled(calls, input_tokens=never, output_tokens=0)


@pytest.mark.parametrize(
    ("head", "size", "expected"),
    [
        (b"", 0, 0),
        (compact({"messages": [{"content": "a" * 30}]}), None, 10),
        (compact({"question": "a" * 30}), None, 10),
        (b"plain text", None, 4),
        (b"\xff\xfe\x00", None, 1600),
        (b'{"messages": [{"content": "' + b"word " * 100, 10_000, 176 + 3158),
        (b'{"messages": [{"image": "' + b"A" * 4_000, 3 << 20, 342 + 4 * 1600),
        ("ü".encode()[:1], 300, 1 + 100),
    ],
    ids=["empty", "known", "own shape", "plain", "binary", "long", "long image", "cut character"],
)
def test_a_request_is_estimated_by_what_is_known_of_it(head: bytes, size: int | None, expected: int) -> None:
    assert expected == estimate_request(head, size=len(head) if size is None else size)


def test_the_text_of_a_foreign_stream_is_not_estimated() -> None:
    reader = open_reader(SSE_TYPE)
    for _ in range(20):
        reader.feed(sse({"message": {"content": TEXT}}))
    assert 0 == reader.estimated_output_tokens
    assert () == reader.close(complete=False)
