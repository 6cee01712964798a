"""Answers that lie, are coded, or are noise: what is made of them, in bounded memory."""

# Internals: properties of byte streams and codings.

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.sampled import few_examples, pairs
from llm_payloads.packing import BR, HIDDEN, PACKERS, ZSTD, hide, look_again, pack
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    LIE,
    NDJSON_TYPE,
    RECORDINGS,
    SSE_TYPE,
    chat,
    chat_usage,
    cut,
    cut_at,
    figures,
    open_reader,
    read,
    sse,
)
from llm_usage import CallUsage, ResponseReader, calls_of, read_request
from llm_usage.estimate import billed_input, held_input
from llm_usage.framing.content_codings import DECODED_BYTES_MAX, ContentDecoder, make_decoder
from llm_usage.framing.incremental import drain
from llm_usage.usage_fields import FieldsReader
from meterkit.catalog.models import QUANTITY_MAX

# Content codings: what comes out of them, how much at most, and what is made of those that stay closed.


NAMES = ("openai-chat-stream", "anthropic-stream", "gemini-array", "ollama-chat")
BY_NAME = {recording.name: recording for recording in RECORDINGS}


def opened(coding: bytes) -> ContentDecoder:
    decoding = make_decoder(coding)
    assert decoding is not None
    return decoding


def estimated(
    *chunks: bytes, usage: str = "openai", complete: bool = True, asked: bool = True, **opened: Any
) -> tuple[tuple[CallUsage, ...], int]:
    """Calls, and the tokens that the text is taken for."""
    reader = open_reader(usage, **opened)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete, asked=lambda: asked), reader.estimated_output_tokens


@pytest.mark.parametrize(("name", "coding", "fallback"), pairs(NAMES, [*PACKERS], [False, True]))
def test_compressed_and_cut_anywhere_it_amounts_to_the_same(
    name: str, coding: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-36."""
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    recording = BY_NAME[name]
    body, header = pack(recording.body, coding)
    opened: Any = {"usage": recording.usage, "kind": recording.content_type, "coding": header}
    for at in range(0, len(body) + 1, 3):
        calls = read(body[:at], body[at:], **opened)
        assert recording.expected == [figures(call) for call in calls], at


@pytest.mark.parametrize(("fallback", "coding", "step"), pairs([False, True], [*PACKERS], [1 << 20, 1_000]))
def test_no_more_than_the_bound_is_decoded_in_small_pieces(
    coding: str, fallback: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    bomb, header = pack(b"\0" * (DECODED_BYTES_MAX + 1_000_000), coding)
    decoding = opened(header)
    seen = 0
    tracemalloc.start()
    try:
        for chunk in cut(bomb, max(step, len(bomb) // 1_000)):
            for piece in decoding.feed(chunk):
                seen += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoding.too_large
    assert DECODED_BYTES_MAX - (3 << 20) <= seen <= DECODED_BYTES_MAX
    assert peak < 4 << 20


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_damage_is_said(coding: str) -> None:
    (call,) = read(b"\x28\xb5\x1f\x8bno such data, whatever it says", usage="openai", coding=coding.encode())
    assert ("missing", ("corrupt",)) == (call.source, call.notes)


@pytest.mark.parametrize("coding", ["gzip", "deflate, raw", "br", "zstd"])
def test_a_cut_compressed_stream_is_read_as_far_as_it_came(coding: str) -> None:
    """F-36: a client that hangs up in the middle of a compressed stream."""
    events = [sse(chat({"content": f"{n} {n * n} words, "})) for n in range(2_000)]
    body, header = pack(b"".join(events), coding)
    torn = body[: len(body) * 3 // 4]
    (call,), found = estimated(torn, kind=SSE_TYPE, coding=header, complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)
    written = sum(len(f"{n} {n * n} words, ") for n in range(2_000)) // 4
    # br is packed here in blocks of many KiB: each is all or nothing.
    assert (0 if coding == "br" else written // 3) < found <= written


@pytest.mark.parametrize(
    ("coding", "kind", "size", "expected"),
    [
        ("br", JSON_TYPE, 1, 1),
        ("gzip, br", JSON_TYPE, 4_000, 1_000),
        ("compress", JSON_TYPE, 1 << 20, 4_096),
        ("gzip, gzip, gzip, gzip", SSE_TYPE, 4_000, 125),
    ],
)
def test_a_coding_that_stays_closed_is_estimated_by_its_bytes(
    coding: str, kind: str, size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-36."""
    hide(monkeypatch, *BR, *ZSTD)
    opened: Any = {"kind": kind, "coding": coding.encode()}
    (call,), found = estimated(b"\x8b" * size, **opened)
    assert ("missing", ("encoding",), expected) == (call.source, call.notes, found)
    # Where anything may come, the request has to tell.
    assert expected == estimated(b"\x8b" * size, usage="auto", **opened)[1]
    assert () == estimated(b"\x8b" * size, usage="auto", asked=False, **opened)[0]


@pytest.mark.parametrize(("coding", "fallback"), pairs([*PACKERS], [False, True]))
def test_streams_that_are_read_in_turns_do_not_mix(
    coding: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    bodies = [b"".join(b"%d %d," % (n, n * factor) for n in range(5_000)) for factor in (3, 7)]
    packed, (header, _) = zip(*(pack(body, coding) for body in bodies), strict=True)
    decodings = [opened(header), opened(header)]
    found = [b"", b""]
    for at in range(0, max(map(len, packed)), 100):
        for which in (0, 1):
            found[which] += b"".join(decodings[which].feed(packed[which][at : at + 100]))
    assert bodies == found


class Absent:
    """Finds no package, and remembers which were looked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name.partition(".")[0] in {"brotli", "brotlicffi", "compression", "backports", "zstandard"}:
            self.asked.append(name)
            raise ModuleNotFoundError(name)


@pytest.mark.parametrize("coding", [b"br", b"zstd"])
def test_packages_that_are_absent_are_looked_for_once(coding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent()
    for name in [*sys.modules]:
        if name.partition(".")[0] in {*BR, "backports", "zstandard"}:
            monkeypatch.delitem(sys.modules, name)
    look_again(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [absent, *sys.meta_path])
    assert make_decoder(coding) is None
    asked = [*absent.asked]
    assert asked
    assert make_decoder(coding) is None
    assert asked == absent.asked


def document(usage: object) -> bytes:
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [], "usage": usage}).encode()


FOREIGN: list[Any] = [
    {"usage": {"disk": 5, "memory": 6}},
    {"usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}},
    {"usage": {"tokens": {"input_tokens": 5, "output_tokens": 5}, "billed_units": {"input_tokens": 5}}},
    {"candidates": [{"content": "cv", "name": "x"}], "usageMetadata": {"promptTokenCount": 3}},
    {"usage": [{"prompt_tokens": 5}]},
    {"choices": [], "usage": {"prompt_tokens": 5}},
    {"input_tokens": 2095},
    {"done": True, "eval_count": 5},
    {"data": {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}},
    {"answer": LIE, "object": "list", "data": [{"id": "model-1", "object": "model"}]},
    {"error": {"message": "no"}},
    [{"usage": {"input_tokens": 1}}, {"usage": {}}, 5],
    None,
    "usage",
]


@pytest.mark.parametrize("value", FOREIGN)
def test_what_only_looks_like_usage_counts_nothing(value: Any) -> None:
    body = json.dumps(value).encode()
    assert () == read(body)
    assert () == read((b"data: " + body + b"\n\n") * 12, kind=SSE_TYPE)
    assert () == read((body + b"\n") * 12, kind=NDJSON_TYPE)


@pytest.mark.parametrize("name", ["openai", "gemini", "ollama"])
def test_a_declared_api_that_says_nothing_is_missing(name: str) -> None:
    (call,) = read(b'{"answer": 42}', usage=name)
    assert ("missing", ("no_usage",)) == (call.source, call.notes)
    (call,) = read(b'{"answer": ', usage=name, complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)
    (call,) = read(b"<html>", usage=name)
    assert ("missing", ("unreadable",)) == (call.source, call.notes)


def test_an_empty_answer_is_not_missing() -> None:
    assert () == read(usage="openai")
    assert () == read(b"", usage="openai", complete=False)


def test_a_stream_of_a_language_model_without_usage_is_missing() -> None:
    (call,) = read(sse(chat({"content": "x"})), sse(chat({}, finish="stop")), kind=SSE_TYPE)
    assert (call.source, call.notes, call.response_id) == ("missing", ("not_asked",), "chatcmpl-1")
    assert (call.provider, call.model) == ("openai", "gpt-5.6")


def test_several_members_of_gzip_are_one_body() -> None:
    body = document(chat_usage(3, 4))
    (call,) = read(gzip.compress(body[:30]) + gzip.compress(body[30:]) + b"\0\0", coding=b"gzip")
    assert ("reported", 3, 4) == figures(call)[:3]


@pytest.mark.parametrize(
    ("usage", "kind", "status", "readable"),
    [
        ("auto", JSON_TYPE, 200, True),
        ("auto", "TEXT/Event-Stream", 200, True),
        ("auto", "text/plain", 200, True),
        ("auto", "text/html", 200, False),
        ("auto", None, 200, True),
        ("auto", "application/octet-stream", 200, True),
        ("auto", "text/json", 200, True),
        ("auto", "text/vtt", 200, False),
        ("auto", "audio/mpeg", 200, False),
        ("openai", "audio/mpeg", 200, True),  # It reads nothing, and says so if a model was asked.
        ("openai", "text/vtt", 200, True),
        ("openai", "text/html", 200, False),
        ("openai", JSON_TYPE, 204, False),
        ("openai", JSON_TYPE, 400, False),
        ("none", JSON_TYPE, 200, False),
    ],
)
def test_only_what_may_be_a_models_answer_has_a_reader(
    usage: str, kind: str | None, status: int, readable: bool
) -> None:
    headers = [(b"X-Other", b"1"), *([(b"Content-Type", kind.encode())] if kind else [])]
    assert readable == (ResponseReader.open(usage, status=status, headers=headers) is not None)


@pytest.mark.parametrize(
    "body",
    [
        document(chat_usage(3, 4)),
        b"\n " + document(chat_usage(3, 4)),
        b"[" + document(chat_usage(3, 4)) + b"]",
        b": hello\n\n" + sse(chat(None, usage=chat_usage(3, 4))),
    ],
)
def test_without_a_content_type_the_first_byte_decides(body: bytes) -> None:
    for at in range(len(body) + 1):
        (call,) = read(body[:at], body[at:], usage="openai", kind=None)
        assert ("reported", 3, 4) == figures(call)[:3], at


quietly = few_examples(30)

KINDS = (SSE_TYPE, NDJSON_TYPE, JSON_TYPE, EVENTSTREAM_TYPE, "text/plain", "")
WORDS = ("auto", "openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama")
FUZZ_NAMES = sorted(
    {
        *("usage", "id", "object", "type", "choices", "delta", "message", "response", "data"),
        *("usageMetadata", "metadata"),
        *("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount", "candidates"),
        *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "tokens"),
        *("inputTokens", "outputTokens", "done", "eval_count", "prompt_eval_count", "model"),
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
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FUZZ_NAMES), inner, max_size=5)
    ),
    max_leaves=20,
)
EVENTS = st.dictionaries(st.sampled_from(FUZZ_NAMES), VALUES, max_size=6)


def fuzz_read(
    usage: str, kind: str, body: bytes, cuts: list[int], *, complete: bool, coding: bytes = b""
) -> Any:
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    reader = ResponseReader.open(usage, status=200, headers=headers)
    if reader is None:
        return None
    for chunk in cut_at(body, cuts):
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
    whole = fuzz_read(usage, kind, body, [], complete=complete, coding=coding)
    pieces = fuzz_read(usage, kind, body, cuts, complete=complete, coding=coding)
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
    whole = fuzz_read(usage, kind, body, [], complete=complete)
    check(whole[0])
    assert whole == fuzz_read(usage, kind, body, cuts, complete=complete)


@quietly
@given(value=VALUES | EVENTS)
def test_no_object_makes_reading_it_raise(value: Any) -> None:
    check(calls_of(value))


@quietly
@given(value=VALUES | EVENTS, field=st.sampled_from([*FUZZ_NAMES, "a.b", "max_completion_tokens", ""]))
def test_no_request_makes_the_estimates_raise(value: Any, field: str) -> None:
    body = json.dumps(value).encode()
    asked = read_request(body)
    billed = billed_input(body, size=len(body))
    assert 0 <= billed <= QUANTITY_MAX
    # The hold counts three bytes for a token, whatever the shape.
    assert billed <= held_input(asked, body, len(body)) <= QUANTITY_MAX
    if asked is not None:
        assert 7 <= asked.limit(field, default=7) <= QUANTITY_MAX or field in value
        named = asked.named_limit(field)
        assert named is None or 1 <= named.quantity <= asked.limit(field, default=1)
        assert 1 <= asked.named_answers() <= asked.answers() <= QUANTITY_MAX
        assert 1 <= asked.answers() <= QUANTITY_MAX


def read_fields(kind: str, chunks: list[bytes]) -> dict[str, int]:
    fields = {"words": ("usage.input_tokens", "model"), "more": ("tokens",)}
    reader = FieldsReader.open(fields, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    for chunk in chunks:
        drain(reader.read(chunk))
    found = reader.close()
    assert found.keys() | {*reader.missing()} == fields.keys()
    assert all(0 <= figure <= QUANTITY_MAX for figure in found.values())
    return found


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
    assert read_fields(kind, [body]) == read_fields(kind, cut_at(other, cuts))
