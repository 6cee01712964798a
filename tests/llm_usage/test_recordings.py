"""Recorded answers and the payloads of the corpus, read however they are cut: pure tables."""

# Internals: pure tables of bytes; asgi/test_llm_usage.py and asgi/test_corpus_charges.py serve them.

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any, Final
from unittest.mock import Mock

import pytest

from drivers.sampled import pairs
from llm_payloads.corpus_rows import AT, ROWS, WIRED, Row
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    KINDS,
    MISSING,
    NDJSON_TYPE,
    RECORDINGS,
    SSE_TYPE,
    Recording,
    chat,
    compact,
    cut,
    encode_events,
    event_frame,
    figures,
    gemini_chunk,
    invoked,
    open_reader,
    read,
    sse,
)
from llm_usage import CallUsage, SocketReader, StreamTap, calls_of, read_request, response
from llm_usage.call_usage import RANKS, fill_estimates
from llm_usage.estimate import BILLED_MEDIA_TOKENS, MEDIA_PART_TOKENS, billed_input, held_input
from llm_usage.json_values import load, table
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.decisions.model_charges import ModelCharges

BY_NAME = {recording.name: recording for recording in RECORDINGS}
WORDS = ("declared", "auto")


def word(recording: Recording, how: str) -> str:
    if how == "auto" and not recording.auto:
        pytest.skip("auto takes it for OpenAI")
    return recording.usage if how == "declared" else "auto"


@pytest.mark.parametrize(("name", "how"), pairs([*BY_NAME], [*WORDS]))
def test_a_whole_response_amounts_to_its_figures(name: str, how: str) -> None:
    recording = BY_NAME[name]
    (call,) = read(recording.body, usage=word(recording, how), kind=recording.content_type)
    assert figures(call) == recording.after[-1]
    assert (call.provider, call.model) == (recording.provider, recording.model)
    assert call.response_id == recording.response_id


@pytest.mark.parametrize("name", BY_NAME)
def test_byte_by_byte_it_amounts_to_the_same(name: str) -> None:
    body, kind = BY_NAME[name].body, BY_NAME[name].content_type
    assert read(body, kind=kind) == read(*cut(body, 1), kind=kind)


@pytest.mark.parametrize(("name", "how"), pairs([*BY_NAME], [*WORDS]))
def test_broken_off_after_an_event_it_amounts_to_that(name: str, how: str) -> None:
    recording = BY_NAME[name]
    opened: Any = {"usage": word(recording, how), "kind": recording.content_type, "complete": False}
    assert read(**opened) == ()
    assert len(recording.after) == len(recording.events)
    for count, expected in enumerate(recording.after, 1):
        (call,) = read(*recording.events[:count], **opened)
        assert figures(call) == expected, count


FOREIGN: Final = {"type": "status", "text": "searching", "content": "the web", "count": 2}
AMONG_OTHERS: Final = [one.name for one in RECORDINGS if one.auto and one.kind in ("sse", "ndjson", "array")]


@pytest.mark.parametrize("name", AMONG_OTHERS)
def test_events_of_the_apps_own_before_it_change_nothing(name: str) -> None:
    recording = BY_NAME[name]
    events = encode_events(recording.kind, [*[FOREIGN] * 9, *recording.said], recording.end.encode())
    for count, expected in enumerate(recording.after, 10):
        (call,) = read(*events[:count], kind=recording.content_type, complete=False)
        assert figures(call) == expected, count
    (whole,) = read(b"".join(events), kind=recording.content_type)
    assert figures(whole) == recording.after[-1]


@pytest.mark.parametrize("name", BY_NAME)
def test_broken_off_within_an_event_the_one_before_counts(name: str) -> None:
    recording = BY_NAME[name]
    for count, event in enumerate(recording.events):
        torn = event[: len(event) // 2]
        opened: Any = {"usage": recording.usage, "kind": recording.content_type, "complete": False}
        (call,) = read(*recording.events[:count], torn, **opened)
        # With nothing but a torn event, it is certain only that there was an answer.
        assert figures(call) == (recording.after[count - 1] if count else MISSING), count


def test_a_residual_is_remarked_on() -> None:
    for name, notes in (
        ("xai-residual", ("residual",)),
        ("hidden-thinking", ("residual",)),
        ("total-below", ()),
        ("chat", ()),
    ):
        (call,) = read(BY_NAME[f"openai-{name}"].body, usage="openai")
        assert call.notes == notes


# F-210 to F-218: each payload of the corpus is read in units and priced, however it comes.


PADDING: Final[dict[str, Any]] = {"padding": ["A" * (70 << 10)]}
CHARGES: Final = ModelCharges(ProviderPrices())


def named(kind: str) -> list[str]:
    return [name for name, row in ROWS.items() if row.kind == kind]


def corpus_read(
    row: Row, *chunks: bytes, word: str | None = None, complete: bool = True
) -> Sequence[CallUsage]:
    reader = open_reader(word or row.usage, row.content_type, headers=row.response_headers[1:])
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete)


def units(calls: Sequence[CallUsage]) -> list[dict[str, int]]:
    """Units above 0 of each call; one without any has used nothing."""
    return [{unit: count for unit, count in call.units.items() if count} for call in calls]


def price(row: Row, calls: Sequence[CallUsage]) -> Fraction:
    """What calls cost on the row's line, in micro-dollars."""
    lined = [
        replace(call, provider=row.provider or call.provider, model=call.model or row.asked) for call in calls
    ]
    return sum((CHARGES.of(call, AT) for call in lined), Fraction(0))


def check(row: Row, calls: Sequence[CallUsage]) -> None:
    assert units(calls) == row.units
    assert {call.source for call in calls} <= {"reported"}
    assert price(row, calls) == row.price


@pytest.mark.parametrize(("name", "how"), pairs([*WIRED], [*WORDS]))
def test_a_body_amounts_to_its_units_and_costs_their_price(name: str, how: str) -> None:
    row = WIRED[name]
    word = "auto" if how == "auto" else None
    check(row, corpus_read(row, row.body, word=word))
    chance = Random(name)  # noqa: S311 - a failure must be repeatable
    places = [0, *sorted(chance.randint(0, len(row.body)) for _ in range(4)), len(row.body)]
    check(row, corpus_read(row, *(row.body[begin:end] for begin, end in pairwise(places)), word=word))


def padded(row: Row, *, before: bool) -> Row:
    """The row with so much else in each event that only parts of it are kept."""

    def pad(event: Any) -> Any:
        said = table(event)
        if said is None:
            return event
        return {**PADDING, **said} if before else {**said, **PADDING}

    if row.kind == "json":
        return replace(row, said=pad(row.said))
    return replace(row, said=[pad(event) for event in row.said])


# A token count alone bills nothing: with anything beside it, it is another answer.
@pytest.mark.parametrize(
    "name",
    [name for name in (*named("json"), *named("sse"), *named("ndjson")) if WIRED[name].calls],
)
def test_too_large_to_be_kept_it_amounts_to_the_same(name: str) -> None:
    row = WIRED[name]
    for before, word in ((True, "auto"), (False, row.usage)):
        large = padded(row, before=before)
        check(row, corpus_read(large, large.body, word=word))


@pytest.mark.parametrize(
    "name", [name for name, row in WIRED.items() if len(row.events) > 1 and not row.falls]
)
def test_broken_off_it_never_amounts_to_more_than_the_whole(name: str) -> None:
    row = WIRED[name]
    whole = Counter[str]()
    for expected in row.calls:
        whole.update(expected.units)
    for count, event in enumerate(row.events):
        for torn in (b"", event[: len(event) // 2]):
            calls = corpus_read(row, *row.events[:count], torn, complete=False)
            assert all(call.source in RANKS for call in calls)
            found = Counter[str]()
            for call in calls:
                found.update(call.units)
            assert found <= whole, (count, torn)
            assert price(row, calls) <= row.price, (count, torn)


@pytest.mark.parametrize("name", [name for name in named("json") if not ROWS[name].headers])
def test_a_document_that_the_app_hands_over_amounts_to_the_same(name: str) -> None:
    row = WIRED[name]
    assert units(calls_of(row.said)) == row.units


@pytest.mark.parametrize("name", named("object"))
def test_an_object_amounts_to_its_units_and_costs_their_price(name: str) -> None:
    row = ROWS[name]
    check(row, calls_of(row.said))


@pytest.mark.parametrize("name", named("stream"))
def test_a_stream_of_objects_amounts_to_its_units_and_price(name: str) -> None:
    row = ROWS[name]
    reports = list[tuple["CallUsage", ...]]()
    assert list(StreamTap(iter(row.said), report=reports.append)) == row.said
    (calls,) = reports
    check(row, calls)


@pytest.mark.parametrize(("name", "how"), pairs(named("websocket"), [*WORDS]))
def test_messages_of_a_websocket_amount_to_units_and_price(name: str, how: str) -> None:
    row, calls = ROWS[name], list["CallUsage"]()

    socket = SocketReader("auto" if how == "auto" else row.usage, count=calls.extend)
    for event in row.said:
        socket.sent(json.dumps(event).encode())
    socket.close()
    check(row, calls)


TEXT = "Grüße, 世界"
BYTES = len(TEXT.encode())
IMAGE = "A" * 9_000
URL = {"type": "image_url", "image_url": {"url": f"data:{IMAGE}"}}
WAV = {"inlineData": {"mimeType": "audio/wav", "data": IMAGE}}


@pytest.mark.parametrize(
    ("body", "texts", "numbers", "media"),
    [
        ({"messages": [{"role": "user", "content": TEXT}]}, 1, 0, 0),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}], "system": TEXT},
            2,
            0,
            0,
        ),
        ({"prompt": TEXT, "suffix": TEXT}, 2, 0, 0),
        ({"prompt": [1, 2, 3]}, 0, 3, 0),
        ({"input": TEXT, "instructions": TEXT}, 2, 0, 0),
        ({"contents": [{"role": "user", "parts": [{"text": TEXT}]}]}, 1, 0, 0),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": TEXT, "tool_use_id": "t"}]}]},
            1,
            0,
            0,
        ),
        ({"messages": [{"content": [URL]}]}, 0, 0, 1),
        ({"contents": [{"parts": [WAV, {"text": TEXT}]}]}, 1, 0, 1),
        ({"messages": [{"content": TEXT, "images": [IMAGE, IMAGE]}]}, 1, 0, 2),
        ({"model": TEXT, "user": TEXT, "metadata": {"a": TEXT}}, 1, 0, 0),
        ({}, 0, 0, 0),
    ],
)
def test_hold_and_bill_measure_the_same_texts_and_parts(
    body: dict[str, Any], texts: int, numbers: int, media: int
) -> None:
    for encoding in ("utf-8", "utf-16", "utf-32-be"):
        sent = json.dumps(body).encode(encoding)
        held, size = held_input(read_request(sent), sent, len(sent)), texts * BYTES
        assert -(-size // 3) + numbers + media * MEDIA_PART_TOKENS == held
        assert size // 4 + numbers + media * BILLED_MEDIA_TOKENS == billed_input(sent, size=len(sent))


TEXT_DELTA = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": TEXT}}
JSON_DELTA = {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": TEXT}}
OUTPUT_DELTA = {"type": "response.output_text.delta", "delta": TEXT, "obfuscation": IMAGE}
COHERE_DELTA = {"type": "content-delta", "delta": {"message": {"content": {"text": TEXT}}}}
TOOL_CALL = {"tool_calls": [{"index": 0, "function": {"arguments": TEXT}}]}
CANDIDATES = {"candidates": gemini_chunk(TEXT)["candidates"]}
COHERE_V1 = [{"event_type": "stream-start"}, {"event_type": "text-generation", "text": TEXT}]
CONVERSED = [{"type": "conversation.response.started"}, {"type": "message.output.delta", "content": TEXT}]
TRANSCRIBED = {"type": "transcript.text.delta", "delta": TEXT}
HEARD = {"type": "transcription.text.delta", "text": TEXT}
OLLAMA = {"model": "m", "created_at": "t", "done": False}
OLLAMA_EVENTS = [{**OLLAMA, "message": {"content": TEXT}}, {**OLLAMA, "response": TEXT}]
ESTIMATE_STREAMS: dict[str, tuple[str, list[bytes]]] = {
    "openai": (SSE_TYPE, [sse(chat({"content": TEXT})), sse(chat({"reasoning_content": TEXT}))]),
    "openai tools": (SSE_TYPE, [sse(chat(TOOL_CALL)), sse(chat({"content": TEXT}, obfuscation=IMAGE))]),
    "responses": (SSE_TYPE, [sse(OUTPUT_DELTA)] * 2),
    "anthropic": (SSE_TYPE, [sse(TEXT_DELTA), sse(JSON_DELTA)]),
    "gemini": (SSE_TYPE, [sse(CANDIDATES)] * 2),
    "bedrock": (EVENTSTREAM_TYPE, [event_frame("contentBlockDelta", {"delta": {"text": TEXT}})] * 2),
    "bedrock invoke": (EVENTSTREAM_TYPE, [invoked(TEXT_DELTA)] * 2),
    "cohere": (SSE_TYPE, [sse(COHERE_DELTA)] * 2),
    "cohere v1": (NDJSON_TYPE, [*(compact(said) + b"\n" for said in (*COHERE_V1, COHERE_V1[1]))]),
    "mistral conversations": (SSE_TYPE, [*map(sse, (*CONVERSED, CONVERSED[1]))]),
    "transcription": (SSE_TYPE, [sse(TRANSCRIBED)] * 2),
    "transcription of mistral's": (SSE_TYPE, [sse(HEARD)] * 2),
    "ollama": (
        NDJSON_TYPE,
        [
            compact({**OLLAMA, **said}) + b"\n"
            for said in ({"message": {"content": TEXT}}, {"response": TEXT})
        ],
    ),
}


@pytest.mark.parametrize(("name", "foreign"), pairs([*ESTIMATE_STREAMS], [0, 7, 9]))
def test_the_text_of_a_stream_that_breaks_off_is_measured(name: str, foreign: int) -> None:
    kind, events = ESTIMATE_STREAMS[name]
    reader = open_reader(kind=kind)
    if kind != EVENTSTREAM_TYPE:
        for _ in range(foreign):
            reader.feed(sse(FOREIGN) if kind == SSE_TYPE else compact(FOREIGN) + b"\n")
    for event in events * 10:
        reader.feed(event)
    assert 20 * BYTES == reader.output_bytes_seen
    assert 20 * BYTES // 4 == reader.estimated_output_tokens
    (call,) = reader.close(complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)


@pytest.mark.parametrize("usage", ["auto", "mistral"])
def test_a_call_that_was_cut_has_the_model_of_a_later_event(usage: str) -> None:
    said = [*CONVERSED, {**CONVERSED[1], "model": "mistral-large-2611"}]
    for events in (
        said,
        [FOREIGN, *said],
        [FOREIGN, FOREIGN, chat({"content": TEXT}, model=said[-1]["model"])],
    ):
        (call,) = read(*map(sse, events), usage=usage, kind=SSE_TYPE, complete=False)
        assert call.model == "mistral-large-2611"


def test_the_text_of_a_torn_document_is_estimated() -> None:
    reader = open_reader()
    reader.feed(b'{"choices": [{"message": {"content": "abcdef\\"gh i')
    (call,) = reader.close(complete=False)
    assert (("ended_early",), 2) == (call.notes, reader.estimated_output_tokens)


def test_the_text_of_a_torn_item_of_an_array_is_estimated() -> None:
    whole = compact(gemini_chunk(TEXT))
    torn = whole[: whole.index(TEXT.encode()) + BYTES]
    for count in (0, 1, 5):
        reader = open_reader()
        reader.feed(b"[" + (whole + b",") * count + torn)
        reader.close(complete=False)
        assert reader.output_bytes_seen == (count + 1) * BYTES, count


def test_a_torn_document_that_may_be_anything_is_nothing() -> None:
    assert read(b'{"items": [{"text": "abc', complete=False) == ()


TOLD = CallUsage(source="reported", input_tokens=5, output_tokens=6, model="m", response_id="1")
SNAPSHOT = CallUsage(source="partial", input_tokens=5, output_tokens=6, response_id="1")
NOTHING = CallUsage(source="missing", response_id="2", notes=("ended_early",))


@pytest.mark.parametrize(
    ("calls", "output_tokens", "expected"),
    [
        ((), 7, []),
        ((NOTHING,), 7, [("estimated", 3, 7)]),
        ((SNAPSHOT,), 0, [("partial", 5, 6)]),
        ((SNAPSHOT,), 7, [("estimated", 5, 13)]),
        ((TOLD,), 7, [("reported", 5, 6), ("estimated", 0, 7)]),
        ((TOLD, NOTHING), 7, [("reported", 5, 6), ("estimated", 3, 7)]),
    ],
)
def test_what_is_lacking_of_a_call_that_was_cut_is_estimated(
    calls: tuple[CallUsage, ...], output_tokens: int, expected: list[tuple[str, int, int]]
) -> None:
    whole = fill_estimates(calls, input_tokens=lambda: 3, output_tokens=output_tokens, at_least=1)
    assert expected == [figures(call)[:3] for call in whole]


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
    asked = read_request(head) if size is None else None
    assert expected == held_input(asked, head, len(head) if size is None else size)


@pytest.mark.parametrize("kind", ["sse", "ndjson", "array"])
def test_events_of_an_app_without_models_are_not_parsed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = Mock(side_effect=load)
    monkeypatch.setattr(response, "load", parse)
    assert read(*encode_events(kind, [FOREIGN] * 200), kind=KINDS[kind]) == ()
    assert parse.call_count == 8


def test_the_text_of_a_foreign_stream_is_not_estimated() -> None:
    reader = open_reader(kind=SSE_TYPE)
    for _ in range(20):
        reader.feed(sse({"message": {"content": TEXT}}))
    assert 0 == reader.estimated_output_tokens
    assert () == reader.close(complete=False)
