"""F-135: shapes of usage that counted nothing, or twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from tokens.recordings import JSON_TYPE, SSE_TYPE, Figures, compact, figures, sse

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

VECTORS = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
RANKS = [{"index": 0, "relevance_score": 0.9}]
INTERACTION: dict[str, Any] = {
    "id": "int_1",
    "status": "completed",
    "model": "gemini-3",
    "outputs": [{"type": "text", "text": "ok"}],
    "usage": {
        "total_input_tokens": 100,
        "total_output_tokens": 20,
        "total_thought_tokens": 30,
        "total_cached_tokens": 64,
        "total_tool_use_tokens": 7,
        "total_tokens": 157,
    },
}
RUN: dict[str, Any] = {"id": "run_1", "object": "thread.run", "model": "gpt-5.6"}
USED = {"prompt_tokens": 600, "completion_tokens": 400, "total_tokens": 1000}
CONVERSED: dict[str, Any] = {
    "object": "conversation.response",
    "conversation_id": "conv_1",
    "outputs": [{"type": "message.output", "content": "ok"}],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 150,
        "connector_tokens": 30,
        "connectors": {"web_search": 1},
    },
}


def read(body: bytes, usage: str, kind: str = JSON_TYPE) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(usage, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    reader.feed(body)
    return reader.close(complete=True)


CASES: dict[str, tuple[str, str, dict[str, Any], Figures]] = {
    "interaction": ("gemini", "gcp.gemini", INTERACTION, ("reported", 107, 50, 64, None, 30)),
    "voyage embeddings": (
        *("openai", "openai"),
        {"object": "list", "data": VECTORS, "model": "voyage-4", "usage": {"total_tokens": 10}},
        ("reported", 10, 0, None, None, None),
    ),
    "jina ranking": (
        *("openai", "openai"),
        {"model": "jina-reranker", "usage": {"total_tokens": 15}, "results": RANKS},
        ("reported", 15, 0, None, None, None),
    ),
    "voyage ranking": (
        *("openai", "openai"),
        {"object": "list", "data": RANKS, "model": "rerank-3", "usage": {"total_tokens": 26}},
        ("reported", 26, 0, None, None, None),
    ),
    "cohere embeddings": (
        *("cohere", "cohere"),
        {
            "id": "e1",
            "embeddings": {"float": [[0.1]]},
            "texts": ["x"],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 5.0}},
        },
        ("reported", 5, 0, None, None, None),
    ),
    "connectors": ("mistral", "mistral_ai", CONVERSED, ("reported", 130, 20, None, None, None)),
    "run": (
        "openai",
        "openai",
        {**RUN, "status": "completed", "usage": USED},
        ("reported", 600, 400, None, None, None),
    ),
}


@pytest.mark.parametrize("how", ["declared", "auto", "object"])
@pytest.mark.parametrize("name", CASES)
def test_a_document_amounts_to_its_figures(name: str, how: str) -> None:
    word, provider, value, expected = CASES[name]
    calls = (
        calls_of(value) if how == "object" else read(compact(value), word if how == "declared" else "auto")
    )
    assert [figures(call) for call in calls] == [expected]
    # Mistral answers in OpenAI's shape.
    assert calls[0].provider == (provider if how == "declared" or provider != "mistral_ai" else "openai")


@pytest.mark.parametrize("how", ["openai", "auto"])
def test_a_stream_of_a_run_counts_the_run_and_not_its_steps(how: str) -> None:
    step = {"id": "step_1", "object": "thread.run.step", "run_id": "run_1"}
    delta = {
        "object": "thread.message.delta",
        "delta": {"content": [{"type": "text", "text": {"value": "x" * 40}}]},
    }
    events = [
        sse({"id": "thread_1", "object": "thread"}, event="thread.created"),
        sse({**RUN, "status": "queued", "usage": None}, event="thread.run.created"),
        sse({**step, "status": "in_progress", "usage": None}, event="thread.run.step.created"),
        sse(delta, event="thread.message.delta"),
        sse({**step, "status": "completed", "usage": USED}, event="thread.run.step.completed"),
        sse({**RUN, "status": "completed", "usage": USED}, event="thread.run.completed"),
        b"event: done\ndata: [DONE]\n\n",
    ]
    (call,) = read(b"".join(events), how, SSE_TYPE)
    assert figures(call)[:3] == ("reported", 600, 400)
    assert (call.response_id, call.outlives) == ("run_1", True)
    # Its steps are calls of their own, and a price by input length is for one call.
    assert call.notes == ("summed",)


@pytest.mark.parametrize("how", ["gemini", "auto"])
def test_a_stream_of_an_interaction_counts_what_its_end_says(how: str) -> None:
    begun = {"event_type": "interaction.start", "interaction": {"id": "int_1", "status": "in_progress"}}
    text = {"event_type": "content.delta", "index": 0, "delta": {"type": "text", "text": "x" * 40}}
    ended = {"event_type": "interaction.completed", "interaction": INTERACTION}
    (call,) = read(b"".join(map(sse, (begun, text, ended))), how, SSE_TYPE)
    assert figures(call) == ("reported", 107, 50, 64, None, 30)
    assert (call.response_id, call.outlives) == ("int_1", True)


@pytest.mark.parametrize("status", ["requires_action", "budget_exceeded", "requires_continuation", "failed"])
def test_an_interaction_that_stops_is_counted_too(status: str) -> None:
    (call,) = read(compact({**INTERACTION, "status": status}), "auto")
    assert figures(call) == ("reported", 107, 50, 64, None, 30)


def test_realtime_has_cached_tokens() -> None:
    usage = {
        "total_tokens": 50,
        "input_tokens": 40,
        "output_tokens": 10,
        "input_token_details": {"cached_tokens": 24, "text_tokens": 40, "audio_tokens": 0},
        "output_token_details": {"text_tokens": 10, "audio_tokens": 0},
    }
    done = {
        "type": "response.done",
        "response": {"id": "resp_1", "object": "realtime.response", "usage": usage},
    }
    assert [figures(call) for call in calls_of(done)] == [("reported", 40, 10, 24, None, None)]


def test_a_ranking_counts_searches_and_misses_no_tokens() -> None:
    ranking = {"id": "r1", "results": RANKS, "meta": {"billed_units": {"search_units": 1}}}
    for word in ("cohere", "auto"):
        (call,) = read(compact(ranking), word)
        assert (call.source, call.units) == ("reported", {"rerank_searches": 1})
