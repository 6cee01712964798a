"""The objects of the providers' own SDKs, where these are installed: `make test-sdks`."""

from __future__ import annotations

from typing import Any

import pytest

from meterkit.asgi.usage import CallUsage, StreamTap, usage_of

CHUNK = {"id": "s1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
MESSAGE: dict[str, Any] = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "x"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
}


def figures(calls: tuple[CallUsage, ...] | None) -> list[tuple[Any, ...]]:
    """Source, input, output, cached, written, reasoning of each call."""
    return [
        (
            *(call.source, call.input_tokens, call.output_tokens, call.cached_input_tokens),
            *(call.cache_write_tokens, call.reasoning_tokens),
        )
        for call in calls or ()
    ]


def tapped(chunks: list[Any]) -> list[tuple[Any, ...]]:
    seen: list[tuple[CallUsage, ...]] = []
    assert list(StreamTap(chunks, report=seen.append, estimate=True)) == chunks
    assert len(seen) == 1
    return figures(seen[0])


def test_openai() -> None:
    chat: Any = pytest.importorskip("openai.types.chat")
    responses: Any = pytest.importorskip("openai.types.responses")
    whole = chat.ChatCompletion.model_validate(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
            ],
            "usage": {
                "prompt_tokens": 1420,
                "completion_tokens": 310,
                "total_tokens": 1730,
                "prompt_tokens_details": {"cached_tokens": 1280},
                "completion_tokens_details": {"reasoning_tokens": 256},
            },
        }
    )
    assert figures(usage_of(whole)) == [("reported", 1420, 310, 1280, None, 256)]
    response = responses.Response.model_validate(
        {
            "id": "r1",
            "object": "response",
            "created_at": 1,
            "model": "gpt",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 10,
                "output_tokens": 6,
                "total_tokens": 16,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
        }
    )
    assert figures(usage_of(response)) == [("reported", 10, 6, 4, 0, 2)]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    said = [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]
    chunks = [
        chat.ChatCompletionChunk.model_validate({**CHUNK, "choices": said}),
        chat.ChatCompletionChunk.model_validate({**CHUNK, "choices": [], "usage": usage}),
    ]
    assert tapped(chunks) == [("reported", 3, 4, None, None, None)]


def test_anthropic() -> None:
    types: Any = pytest.importorskip("anthropic.types")
    usage = {"input_tokens": 9, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 1}
    whole = types.Message.model_validate({**MESSAGE, "usage": {**usage, "output_tokens": 16}})
    assert figures(usage_of(whole)) == [("reported", 15, 16, 1, 5, None)]
    start = {"type": "message_start", "message": {**MESSAGE, "usage": {**usage, "output_tokens": 1}}}
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 16},
    }
    events = [
        types.RawMessageStartEvent.model_validate(start),
        types.RawMessageDeltaEvent.model_validate(delta),
    ]
    assert tapped(events) == [("reported", 15, 16, 1, 5, None)]


def test_google_genai() -> None:
    types: Any = pytest.importorskip("google.genai.types")
    response = types.GenerateContentResponse.model_validate(
        {
            "response_id": "g1",
            "model_version": "gemini",
            "candidates": [{"content": {"parts": [{"text": "hi"}]}, "finish_reason": "STOP"}],
            "usage_metadata": {
                "prompt_token_count": 10,
                "candidates_token_count": 5,
                "thoughts_token_count": 7,
                "cached_content_token_count": 2,
                "total_token_count": 22,
            },
        }
    )
    assert figures(usage_of(response)) == [("reported", 10, 12, 2, None, 7)]
