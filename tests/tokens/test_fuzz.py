from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.call_usage import CallUsage, figure
from meterkit.tokens.estimate import estimate_input
from meterkit.tokens.fields import FieldsReader
from meterkit.tokens.framing.incremental import drain
from meterkit.tokens.objects import calls_of
from meterkit.tokens.request import read_request
from meterkit.tokens.response import ResponseReader
from tokens.corpus_rows import WIRED
from tokens.recordings import EVENTSTREAM_TYPE, JSON_TYPE, NDJSON_TYPE, RECORDINGS, SSE_TYPE

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)

RESPONSES = [*RECORDINGS, *WIRED.values()]
KINDS = (SSE_TYPE, NDJSON_TYPE, JSON_TYPE, EVENTSTREAM_TYPE, "text/plain", "")
WORDS = ("auto", "openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama")
NAMES = sorted(
    {
        *(
            "usage",
            "id",
            "object",
            "type",
            "choices",
            "delta",
            "message",
            "response",
            "usageMetadata",
            "data",
        ),
        *("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount", "candidates"),
        *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "tokens"),
        *("inputTokens", "outputTokens", "metadata", "done", "eval_count", "prompt_eval_count", "model"),
        *("iterations", "billed_units", "prompt_tokens_details", "cached_tokens", "x_groq", "error"),
        *("cache_read_input_tokens", "stopReason", "output", "finish_reason", "created_at", "embeddings"),
        *("amazon-bedrock-invocationMetrics", "inputTokenCount", "content", "text", "parts", "stop_reason"),
        *("max_tokens", "n", "messages", "contents", "source", "image_url", "bytes"),
        *("tool_usage", "image_gen", "web_search", "num_requests", "tools", "svg_usage", "action", "status"),
        *("service_tier", "provider", "cost", "cost_details", "is_byok", "upstream_inference_cost", "event"),
        *("input_tokens_details", "audio_tokens", "seconds", "prompt_audio_seconds", "usage_info", "pages"),
        *("pages_processed", "success", "result", "answers", "session", "item_id", "citation_tokens"),
    }
)
WORDS_IN_JSON = (
    *("chat.completion", "list", "response", "message", "message_start", "message_delta", "message-end"),
    *("response.completed", "error", "tokens", "duration", "base64", "STOP", "m1", ""),
    *("web_search_call", "search", "image_generation", "response.event", "session.closed", "choice"),
    *("conversation.item.input_audio_transcription.completed", "batch", "priority", "completed"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=0, max_value=50)
    | st.floats()
    | st.sampled_from(WORDS_IN_JSON)
    | st.text(max_size=4)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)
EVENTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)


def chunks_of(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[begin:end] for begin, end in pairwise(places)]


def read(usage: str, kind: str, chunks: list[bytes], *, complete: bool, coding: bytes = b"") -> Any:
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    reader = ResponseReader.open(usage, status=200, headers=headers)
    if reader is None:
        return None
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete), reader.output_bytes_seen, reader.estimated_output_tokens


def check(calls: tuple[CallUsage, ...]) -> None:
    for call in calls:
        for value in call.quantities().values():
            assert type(value) is int
            assert 0 <= value <= QUANTITY_MAX
        if call.source == "missing":
            assert {} == call.quantities()
            assert call.notes


def body_of(kind: str, events: list[Any]) -> bytes:
    texts = [json.dumps(event).encode() for event in events]
    if kind == SSE_TYPE:
        return b"".join(b"data: " + text + b"\n\n" for text in texts)
    if kind == NDJSON_TYPE:
        return b"\n".join(texts)
    return texts[0] if len(texts) == 1 else b"[" + b",".join(texts) + b"]"


@quietly
@given(
    usage=st.sampled_from(WORDS),
    kind=st.sampled_from(KINDS),
    body=st.binary(max_size=300),
    cuts=st.lists(st.integers(min_value=0, max_value=300), max_size=4),
    coding=st.sampled_from([b"", b"gzip", b"deflate", b"br"]),
    complete=st.booleans(),
)
@example(usage="openai", kind=SSE_TYPE, body=b"\3\0\0\0", cuts=[2], coding=b"gzip", complete=True)
def test_no_bytes_make_it_raise_nor_do_cuts_matter(
    usage: str, kind: str, body: bytes, cuts: list[int], coding: bytes, complete: bool
) -> None:
    whole = read(usage, kind, [body], complete=complete, coding=coding)
    pieces = read(usage, kind, chunks_of(body, cuts), complete=complete, coding=coding)
    if whole is not None and any("corrupt" in call.notes for call in whole[0]) and coding:
        # How much of it comes out before a coding breaks is up to the decompressor; what follows the end of
        # br in a piece of its own is not looked at.
        assert coding == b"br" or all("corrupt" in call.notes for call in pieces[0])
    else:
        assert whole == pieces


@quietly
@given(
    usage=st.sampled_from(WORDS),
    kind=st.sampled_from([SSE_TYPE, NDJSON_TYPE, JSON_TYPE]),
    events=st.lists(EVENTS, min_size=1, max_size=12),
    cuts=st.lists(st.integers(min_value=0, max_value=5_000), max_size=4),
    complete=st.booleans(),
)
def test_no_events_make_it_raise_nor_do_cuts_matter(
    usage: str, kind: str, events: list[Any], cuts: list[int], complete: bool
) -> None:
    body = body_of(kind, events)
    whole = read(usage, kind, [body], complete=complete)
    check(whole[0])
    assert whole == read(usage, kind, chunks_of(body, cuts), complete=complete)


@quietly
@given(
    usage=st.sampled_from(WORDS),
    kind=st.sampled_from([SSE_TYPE, NDJSON_TYPE, JSON_TYPE]),
    event=EVENTS,
    items=st.lists(VALUES, min_size=1, max_size=4),
    number=st.integers(min_value=1, max_value=700),
    cuts=st.lists(st.integers(min_value=0, max_value=50_000), max_size=4),
    complete=st.booleans(),
)
def test_of_dense_and_large_events_neither_do_cuts_matter(
    usage: str, kind: str, event: Any, items: list[Any], number: int, cuts: list[int], complete: bool
) -> None:
    body = body_of(kind, [{**event, "choices": items * number}, event])
    whole = read(usage, kind, [body], complete=complete)
    check(whole[0])
    assert whole == read(usage, kind, chunks_of(body, cuts), complete=complete)


@quietly
@given(
    recording=st.sampled_from(RESPONSES),
    cuts=st.lists(st.integers(min_value=0, max_value=10_000), max_size=6),
    length=st.integers(min_value=0, max_value=10_000),
)
def test_cuts_of_real_responses_do_not_matter_wherever_they_break_off(
    recording: Any, cuts: list[int], length: int
) -> None:
    body = recording.body[:length]
    whole = read(recording.usage, recording.content_type, [body], complete=False)
    check(whole[0])
    assert whole == read(recording.usage, recording.content_type, chunks_of(body, cuts), complete=False)


@quietly
@given(
    recording=st.sampled_from(RESPONSES),
    at=st.integers(min_value=0, max_value=10_000),
    noise=st.binary(min_size=1, max_size=8),
)
def test_damage_never_makes_it_raise(recording: Any, at: int, noise: bytes) -> None:
    at %= len(recording.body)
    body = recording.body[:at] + noise + recording.body[at + len(noise) :]
    check(read(recording.usage, recording.content_type, [body], complete=True)[0])


@quietly
@given(value=VALUES | EVENTS)
def test_no_object_makes_reading_it_raise(value: Any) -> None:
    check(calls_of(value))


@quietly
@given(value=VALUES | EVENTS, field=st.sampled_from([*NAMES, "a.b", "max_completion_tokens", ""]))
def test_no_request_makes_the_estimates_raise(value: Any, field: str) -> None:
    body = json.dumps(value).encode()
    assert 0 <= estimate_input(body) <= QUANTITY_MAX
    assert 0 <= estimate_input({"messages": value}) <= QUANTITY_MAX
    asked = read_request(body)
    if asked is not None:
        assert 7 <= asked.limit(field, default=7) <= QUANTITY_MAX or field in value
        named = asked.named_limit(field)
        assert named is None or 1 <= named.quantity <= asked.limit(field, default=1)
        assert 1 <= asked.named_answers() <= asked.answers() <= QUANTITY_MAX
        assert 1 <= asked.answers() <= QUANTITY_MAX


@quietly
@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_estimates_raise(body: bytes) -> None:
    assert 0 <= estimate_input(body, "m")
    read_request(body)


@given(value=SCALARS)
def test_a_figure_is_a_whole_number_within_bounds(value: Any) -> None:
    whole = not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1
    expected = int(value) if whole and 0 <= value <= QUANTITY_MAX else None
    assert expected == figure(value)


def read_fields(kind: str, chunks: list[bytes], coding: bytes = b"") -> dict[str, int]:
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    fields = {"words": ("usage.input_tokens", "model"), "more": ("tokens",)}
    reader = FieldsReader.open(fields, status=200, headers=headers)
    assert reader is not None
    for chunk in chunks:
        drain(reader.read(chunk))
    found = reader.close()
    assert found.keys() | {*reader.missing()} == fields.keys()
    assert all(0 <= figure <= QUANTITY_MAX for figure in found.values())
    return found


@quietly
@given(
    kind=st.sampled_from(KINDS),
    body=st.binary(max_size=300),
    cuts=st.lists(st.integers(min_value=0, max_value=300), max_size=4),
)
def test_no_bytes_make_fields_raise_nor_do_cuts_matter(kind: str, body: bytes, cuts: list[int]) -> None:
    assert read_fields(kind, [body]) == read_fields(kind, chunks_of(body, cuts))


@quietly
@given(
    kind=st.sampled_from([SSE_TYPE, NDJSON_TYPE, JSON_TYPE]),
    events=st.lists(EVENTS, min_size=1, max_size=12),
    cuts=st.lists(st.integers(min_value=0, max_value=5_000), max_size=4),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_line_ends_and_cuts_do_not_change_fields(
    kind: str, events: list[Any], cuts: list[int], end: bytes
) -> None:
    body = body_of(kind, events)
    other = body.replace(b"\n", end) if kind == SSE_TYPE else body
    assert read_fields(kind, [body]) == read_fields(kind, chunks_of(other, cuts))
