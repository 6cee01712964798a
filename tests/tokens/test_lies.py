from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.framing.decoding import DECODED_BYTES_MAX
from meterkit.tokens.response import ResponseReader
from tokens.recordings import JSON_TYPE, LIE, NDJSON_TYPE, SSE_TYPE, chat, chat_usage, figures, sse

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

KEPT_BYTES_MAX = 64 << 10


def open_reader(
    usage: str = "auto", kind: str | None = JSON_TYPE, coding: str | None = None, status: int = 200
) -> ResponseReader | None:
    headers: list[tuple[bytes, bytes]] = [(b"X-Other", b"1")]
    if kind is not None:
        headers.append((b"Content-Type", kind.encode()))
    if coding is not None:
        headers.append((b"content-encoding", coding.encode()))
    return ResponseReader.open(usage, status=status, headers=headers)


def read(
    *chunks: bytes,
    usage: str = "auto",
    kind: str | None = JSON_TYPE,
    coding: str | None = None,
    complete: bool = True,
) -> list[CallUsage]:
    reader = open_reader(usage, kind, coding)
    assert reader is not None
    for chunk in chunks:
        reader.feed(chunk)
    return list(reader.close(complete=complete))


def document(usage: object) -> bytes:
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [], "usage": usage}).encode()


@pytest.mark.parametrize(
    "value", [-1, True, "12", 1.5, float("nan"), float("inf"), QUANTITY_MAX + 1, 10**400, 1e30, [5], {"a": 1}]
)
def test_a_figure_that_cannot_be_one_is_ignored_and_remarked_on(value: object) -> None:
    body = document({"prompt_tokens": value, "completion_tokens": 7, "total_tokens": 12})
    (call,) = read(body)
    assert ("reported", None, 7) == figures(call)[:3]
    assert ("refused",) == call.notes
    assert {"output_tokens": 7} == call.quantities()


@pytest.mark.parametrize(("value", "expected"), [(12.0, 12), (0, 0), (QUANTITY_MAX, QUANTITY_MAX)])
def test_whole_numbers_count_however_they_are_written(value: float, expected: int) -> None:
    (call,) = read(document({"prompt_tokens": value, "completion_tokens": 0, "total_tokens": None}))
    assert (expected, 0, ()) == (call.input_tokens, call.output_tokens, call.notes)


def test_a_sum_beyond_a_quantity_is_refused() -> None:
    usage = {"input_tokens": QUANTITY_MAX, "cache_read_input_tokens": 1, "output_tokens": 2}
    (call,) = read(json.dumps({"type": "message", "content": [], "usage": usage}).encode())
    assert (None, 2, 1, ("refused",)) == (
        call.input_tokens,
        call.output_tokens,
        call.cached_input_tokens,
        call.notes,
    )


def test_usage_of_nothing_but_nonsense_is_missing() -> None:
    (call,) = read(document({"prompt_tokens": "a", "completion_tokens": -1, "total_tokens": []}))
    assert ("missing", ("refused",), {}) == (call.source, call.notes, call.quantities())


FOREIGN: list[Any] = [
    {"usage": {"disk": 5, "memory": 6}},
    {"usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}},
    {"usage": {"input_tokens": 5, "output_tokens": 5}},
    {"usage": {"tokens": {"input_tokens": 5, "output_tokens": 5}, "billed_units": {"input_tokens": 5}}},
    {"candidates": [{"content": "cv", "name": "x"}], "usageMetadata": {"promptTokenCount": 3}},
    {"choices": [{"text": "A"}, {"text": "B"}], "count": 2},
    {"usage": 12},
    {"usage": "high"},
    {"usage": [{"prompt_tokens": 5}]},
    {"choices": [], "usage": {"prompt_tokens": 5}},
    {"input_tokens": 2095},
    {"usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 9}},
    {"done": True, "eval_count": 5},
    {"data": {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}},
    {"answer": LIE, "object": "list", "data": [{"id": "model-1", "object": "model"}]},
    {"amount": 3, "count": 4, "eval_count": 3},
    {"error": {"message": "no"}},
    [{"usage": {"input_tokens": 1}}, {"usage": {}}, 5],
    {},
    [],
    None,
    5,
    "usage",
]


@pytest.mark.parametrize("value", FOREIGN)
def test_what_only_looks_like_usage_counts_nothing(value: Any) -> None:
    assert [] == read(json.dumps(value).encode())


@pytest.mark.parametrize("value", FOREIGN)
def test_what_only_looks_like_usage_counts_nothing_in_a_stream(value: Any) -> None:
    event = b"data: " + json.dumps(value).encode() + b"\n\n"
    assert [] == read(event * 12, kind=SSE_TYPE)
    assert [] == read((json.dumps(value).encode() + b"\n") * 12, kind=NDJSON_TYPE)


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama"])
def test_a_declared_api_that_says_nothing_is_missing(name: str) -> None:
    (call,) = read(b'{"answer": 42}', usage=name)
    assert ("missing", ("no_usage",)) == (call.source, call.notes)
    (call,) = read(b'{"answer": ', usage=name, complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)
    (call,) = read(b"<html>", usage=name)
    assert ("missing", ("unreadable",)) == (call.source, call.notes)


@pytest.mark.parametrize(
    ("name", "body"), [("anthropic", b'{"input_tokens": 2095}'), ("gemini", b'{"totalTokens": 31}')]
)
def test_counting_tokens_is_not_using_them(name: str, body: bytes) -> None:
    assert [] == read(body, usage=name)


def test_a_transcription_measured_in_seconds_has_no_tokens_to_miss() -> None:
    body = b'{"text": "hi", "usage": {"type": "duration", "seconds": 4}}'
    for usage in ("openai", "auto"):
        (call,) = read(body, usage=usage)
        assert (call.source, call.notes, call.input_tokens, call.output_tokens) == (
            "reported",
            (),
            None,
            None,
        )
        assert call.details == {"audio_seconds": 4, "input_audio_seconds": 4}
    assert [] == read(b'{"text": "hi", "usage": {"type": "duration"}}', usage="openai")


def test_an_empty_answer_is_not_missing() -> None:
    assert [] == read(usage="openai")
    assert [] == read(b"", usage="openai", complete=False)


def test_a_stream_of_a_language_model_without_usage_is_missing() -> None:
    (call,) = read(sse(chat({"content": "x"})), sse(chat({}, finish="stop")), kind=SSE_TYPE)
    assert ("missing", ("not_asked",), "openai", "gpt-5.6", "chatcmpl-1") == (
        call.source,
        call.notes,
        call.provider,
        call.model,
        call.response_id,
    )


@pytest.mark.parametrize("usage", ["auto", "openai"])
def test_a_document_of_a_language_model_without_usage_is_missing(usage: str) -> None:
    body = {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "x"}}]}
    (call,) = read(json.dumps(body).encode(), usage=usage)
    assert ("missing", ("no_usage",), "c") == (call.source, call.notes, call.response_id)


def test_data_that_is_no_gzip_is_missing_and_says_so() -> None:
    (call,) = read(b"\x1f\x8bgarbage in here", usage="openai", coding="gzip")
    assert ("missing", ("corrupt",)) == (call.source, call.notes)


def test_several_members_of_gzip_are_one_body() -> None:
    body = document(chat_usage(3, 4))
    (call,) = read(gzip.compress(body[:30]) + gzip.compress(body[30:]) + b"\0\0", coding="gzip")
    assert ("reported", 3, 4) == figures(call)[:3]


@pytest.mark.parametrize(
    ("usage", "kind", "status", "readable"),
    [
        ("auto", JSON_TYPE, 200, True),
        ("auto", "application/vnd.api+json", 201, True),
        ("auto", "TEXT/Event-Stream", 200, True),
        ("auto", "application/jsonl", 200, True),
        ("auto", "text/plain", 200, True),
        ("auto", "text/html", 200, False),
        ("auto", None, 200, True),
        ("auto", "application/octet-stream", 200, True),
        ("openai", "text/plain", 200, True),
        ("openai", None, 200, True),
        ("openai", "audio/mpeg", 200, False),
        ("openai", JSON_TYPE, 204, False),
        ("openai", JSON_TYPE, 302, False),
        ("openai", JSON_TYPE, 400, False),
        ("openai", JSON_TYPE, 500, False),
        ("none", JSON_TYPE, 200, False),
    ],
)
def test_only_what_can_be_read_has_a_reader(
    usage: str, kind: str | None, status: int, readable: bool
) -> None:
    assert readable == (open_reader(usage, kind, status=status) is not None)


@pytest.mark.parametrize(
    "body",
    [
        document(chat_usage(3, 4)),
        b"\n " + document(chat_usage(3, 4)),
        b"[" + document(chat_usage(3, 4)) + b"]",
        b": hello\n\n" + sse(chat(None, usage=chat_usage(3, 4))),
    ],
)
def test_a_declared_api_without_a_content_type_is_told_by_its_first_byte(body: bytes) -> None:
    for cut in range(len(body) + 1):
        (call,) = read(body[:cut], body[cut:], usage="openai", kind=None)
        assert ("reported", 3, 4) == figures(call)[:3], cut


@pytest.mark.parametrize("bad", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"\xff\xfe", b"\0"])
@pytest.mark.parametrize("kind", [JSON_TYPE, SSE_TYPE, NDJSON_TYPE, None])
def test_json_that_breaks_parsers_does_not_break_the_reader(bad: bytes, kind: str | None) -> None:
    event = b"data: " + bad if kind == SSE_TYPE else bad
    (call,) = read(event + b"\n\n", usage="openai", kind=kind)
    assert "missing" == call.source


def test_figures_beside_an_event_of_any_size_are_whole() -> None:
    huge = sse(chat({"content": "x" * (1 << 21)}))
    usage = sse(chat(None, usage=chat_usage(3, 4)))
    (call,) = read(huge, usage, kind=SSE_TYPE)
    assert (("reported", 3, 4), ()) == (figures(call)[:3], call.notes)


def test_a_document_of_any_size_is_read() -> None:
    """F-30."""
    filler = (b'{"text": "', b"x" * 5_000_000, b"x" * 5_000_000, b'", ')
    tail = document(chat_usage(3, 4))[1:]
    assert [] == read(*filler, b'"a": 1}')
    (call,) = read(*filler, tail)
    assert (("reported", 3, 4), ()) == (figures(call)[:3], call.notes)
    (call,) = read(*filler, b'"a": 1}', usage="openai")
    assert ("missing", ("no_usage",)) == (call.source, call.notes)


@pytest.mark.parametrize("kind", [SSE_TYPE, NDJSON_TYPE, JSON_TYPE, "application/vnd.amazon.eventstream"])
@pytest.mark.parametrize("start", [b"data: ", b'{"a": "', b'[{"a": "', b'[{"usage": {'])
def test_a_hundred_megabytes_without_an_end_are_not_kept(kind: str, start: bytes) -> None:
    reader = open_reader("openai", kind)
    assert reader is not None
    piece = b"x" * 1_000_000
    reader.feed(start)
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
        (call,) = reader.close(complete=True)
    finally:
        tracemalloc.stop()
    assert peak < KEPT_BYTES_MAX + 2 * len(piece)
    assert "missing" == call.source


def test_a_bomb_is_defused() -> None:
    bomb = gzip.compress(b"\0" * (DECODED_BYTES_MAX + 1_000_000))
    reader = open_reader("openai", JSON_TYPE, "gzip")
    assert reader is not None
    tracemalloc.start()
    try:
        reader.feed(bomb)
        _, peak = tracemalloc.get_traced_memory()
        (call,) = reader.close(complete=True)
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert ("missing", True) == (call.source, "too_large" in call.notes)


def test_a_long_list_that_is_foreign_is_let_go_of_early() -> None:
    reader = open_reader("auto", JSON_TYPE)
    assert reader is not None
    item = json.dumps({"id": 1, "tags": ["a"] * 50}).encode()
    reader.feed(b"[" + b",".join([item] * 20))
    reader.feed(b"," + document(chat_usage(3, 4)) + b"]")
    assert () == reader.close(complete=True)


def test_closing_again_says_the_same() -> None:
    reader = open_reader("auto", JSON_TYPE)
    assert reader is not None
    reader.feed(document(chat_usage(3, 4)))
    assert reader.close(complete=True) == reader.close(complete=False)
