from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from meterkit.tokens.call_usage import CallUsage, Source, filled
from meterkit.tokens.calls import CALLS_MAX
from meterkit.tokens.merging import each_once
from meterkit.tokens.response import ResponseReader
from tokens.recordings import (
    DONE,
    EVENTSTREAM_TYPE,
    NDJSON_TYPE,
    SSE_TYPE,
    anthropic_events,
    chat,
    chat_usage,
    compact,
    event_frame,
    figures,
    frame,
    invoked,
    sse,
)


def read(*events: bytes, usage: str = "auto", kind: str = SSE_TYPE, complete: bool = True) -> list[CallUsage]:
    reader = ResponseReader.open(usage, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    for event in events:
        reader.feed(event)
    return list(reader.close(complete=complete))


def pairs(calls: list[CallUsage]) -> list[tuple[str, int | None, int | None]]:
    return [figures(call)[:3] for call in calls]


def completion(identity: str, prompt: int, tokens: int, *, alone: bool = True) -> bytes:
    chunk = chat(None if alone else {"content": "x"}, finish=None if alone else "stop")
    return sse({**chunk, "id": identity, "usage": chat_usage(prompt, tokens)})


def test_calls_of_a_tool_loop_add_up() -> None:
    calls = read(completion("a", 10, 1), completion("b", 20, 2), completion("c", 30, 3))
    assert [("reported", 10, 1), ("reported", 20, 2), ("reported", 30, 3)] == pairs(calls)


def test_a_call_that_comes_back_by_its_id_is_not_another_call() -> None:
    calls = read(completion("a", 10, 1), completion("b", 20, 2), completion("a", 10, 5))
    assert [("reported", 10, 5), ("reported", 20, 2)] == pairs(calls)


def test_chunks_that_each_have_an_id_of_their_own_are_one_call() -> None:
    chunks = [sse({**chat({"content": "x"}, usage=chat_usage(7, at)), "id": f"id-{at}"}) for at in range(5)]
    last = sse({**chat({}, finish="stop", usage=chat_usage(7, 5)), "id": "id-5"})
    repeated = sse({**chat(None, usage=chat_usage(7, 5)), "id": "id-6"})
    assert [("reported", 7, 5)] == pairs(read(*chunks, last, repeated, DONE))


def test_the_empty_id_of_a_last_chunk_is_no_other_call() -> None:
    calls = read(
        completion("a", 7, 5, alone=False), sse({**chat(None, usage=chat_usage(7, 5)), "id": ""}), DONE
    )
    assert [("reported", 7, 5)] == pairs(calls)
    assert "a" == calls[0].response_id


def test_a_finishing_chunk_with_another_id_and_other_figures_is_another_call() -> None:
    calls = read(completion("a", 7, 5, alone=False), completion("b", 8, 2, alone=False))
    assert [("reported", 7, 5), ("reported", 8, 2)] == pairs(calls)


def test_what_follows_the_end_of_a_stream_is_another_call_even_without_an_id() -> None:
    nameless = {**chat(None, usage=chat_usage(1, 2)), "id": None}
    assert [("reported", 1, 2), ("reported", 1, 2)] == pairs(read(sse(nameless), DONE, sse(nameless), DONE))
    assert [("reported", 1, 2)] == pairs(read(sse(nameless), sse(nameless), DONE))


def test_every_message_start_opens_a_call() -> None:
    def named(value: dict[str, Any], identity: str | None) -> bytes:
        if value["type"] == "message_start":
            value = {**value, "message": {**value["message"], "id": identity}}
        return sse(value, event=value["type"])

    events = [
        event
        for identity in ("m1", None, None)
        for event in anthropic_events(partial(named, identity=identity))
    ]
    assert [("reported", 16, 16)] * 3 == pairs(read(*events))


def test_an_error_in_the_middle_leaves_the_call_partial_although_the_response_ended() -> None:
    events = anthropic_events(lambda value: sse(value, event=value["type"]))[:5]
    error = sse(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, event="error"
    )
    assert [("reported", 13, 10)] == pairs(read(*events))
    assert [("partial", 13, 10)] == pairs(read(*events, error))


@pytest.mark.parametrize("kind", ["exception", "error"])
def test_an_exception_in_the_middle_leaves_the_call_partial(kind: str) -> None:
    events = anthropic_events(invoked)[:5]
    broken = frame(b'{"message":"slow down"}', exception_type="throttlingException", message_type=kind)
    assert [("reported", 13, 10)] == pairs(read(*events, kind=EVENTSTREAM_TYPE))
    assert [("partial", 13, 10)] == pairs(read(*events, broken, kind=EVENTSTREAM_TYPE))


def test_an_error_before_any_figure_says_that_it_ended_early() -> None:
    (call,) = read(sse(chat({"content": "x"})), sse({"error": {"message": "overloaded", "code": 503}}))
    assert ("missing", ("ended_early",)) == (call.source, call.notes)


def test_relays_that_name_the_input_only_at_the_end_are_read_right() -> None:
    start = {"type": "message", "id": "m", "model": "c", "usage": {"input_tokens": 0, "output_tokens": 0}}
    delta = {"input_tokens": 500, "output_tokens": 9}
    calls = read(
        sse({"type": "message_start", "message": start}),
        sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta}),
    )
    assert [("reported", 500, 9)] == pairs(calls)


def test_every_last_line_of_ollama_is_a_call() -> None:
    line = {"model": "m", "created_at": "t", "done": True, "prompt_eval_count": 3, "eval_count": 4}
    calls = read(compact(line) + b"\n", compact(line) + b"\n", kind=NDJSON_TYPE)
    assert [("reported", 3, 4)] * 2 == pairs(calls)


def test_counts_that_ollama_leaves_out_are_unknown() -> None:
    line = {"model": "m", "created_at": "t", "done": True, "prompt_eval_count": 3}
    assert [("reported", 3, None)] == pairs(read(compact(line), kind=NDJSON_TYPE))


def test_every_metadata_event_of_converse_is_a_call() -> None:
    event = event_frame("metadata", {"usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}})
    calls = read(event, event, kind=EVENTSTREAM_TYPE)
    assert [("reported", 3, 4)] * 2 == pairs(calls)


def test_calls_beyond_the_bound_are_not_counted_and_that_is_said() -> None:
    calls = read(*(completion(f"c{at}", 1, 1) for at in range(CALLS_MAX + 5)))
    assert CALLS_MAX == len(calls)
    assert ("too_many_calls",) == calls[0].notes


def call(source: Source = "reported", identity: str | None = "r1", output: int | None = 5) -> CallUsage:
    return CallUsage(input_tokens=1, output_tokens=output, response_id=identity, source=source)


def test_a_call_seen_from_two_sides_counts_once() -> None:
    assert [call(), call(identity="r2")] == each_once([call(), call(identity="r2"), call()])


@pytest.mark.parametrize("identity", [None, ""])
def test_calls_without_an_id_all_count(identity: str | None) -> None:
    assert 2 == len(each_once([call(identity=identity), call(identity=identity)]))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("missing", "reported", "reported"),
        ("partial", "reported", "reported"),
        ("missing", "estimated", "estimated"),
        ("estimated", "partial", "partial"),
        ("reported", "missing", "reported"),
        ("reported", "partial", "reported"),
    ],
)
def test_of_two_sides_the_better_source_stays(first: Source, second: Source, kept: Source) -> None:
    calls = each_once([call(first), call(second)])
    assert [kept] == [found.source for found in calls]


def test_among_equals_the_larger_report_stays() -> None:
    assert [6] == [found.output_tokens for found in each_once([call(output=5), call(output=6)])]


def test_what_is_unknown_is_not_zero() -> None:
    known = call(output=None)
    assert {"input_tokens": 1} == known.quantities()
    assert known.total_tokens is None
    zero = call(output=0)
    assert {"input_tokens": 1, "output_tokens": 0, "total_tokens": 1} == zero.quantities()


def test_estimates_fill_only_what_is_unknown() -> None:
    calls = filled([call("missing", output=None)], input_tokens=lambda: 70, output_tokens=30)
    assert [("estimated", 1, 30)] == [figures(guessed)[:3] for guessed in calls]


def test_the_edge_does_not_load_the_readers() -> None:
    program = "import sys, meterkit.asgi; print('meterkit.tokens.response' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False" == ran.stdout.strip()
