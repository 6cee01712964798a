"""Answers larger than what is kept: what is read of them as they come, against Python's own parser."""

from __future__ import annotations

import json
import re
import tracemalloc
from functools import partial
from importlib import import_module
from itertools import pairwise
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterkit import tokens
from meterkit.tokens.framing import large_json
from meterkit.tokens.framing.incremental import EVENT_BYTES_MAX, drain
from meterkit.tokens.framing.large_json import UNKNOWN, LargeJson
from meterkit.tokens.json_values import rows
from meterkit.tokens.layout import ROOT, Place, text_bytes
from meterkit.tokens.response import ResponseReader
from tokens.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    LIE,
    RECORDINGS,
    Recording,
    compact,
    figures,
    frame,
    invoked,
)

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

STREAM_BYTES_MAX = 64 << 10
# It is not looked at, and is made to mislead.
FOREIGN: dict[str, Any] = {
    "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
    "deep": [[[[[[{"id": "foreign", "a\\": '"usage":{"', "b": LIE}]]]]]],
    "text": '\\" } ] { [ "usage":{"prompt_tokens":9} \\u007d' * 30,
    "list": [1.5, -2e9, True, None, "", {}, []] * 40,
}
HUGE = [FOREIGN] * 12
assert len(compact(HUGE)) > EVENT_BYTES_MAX

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def kept(value: Any, place: Place = ROOT) -> Any:
    """What is to be kept of parsed JSON."""
    if isinstance(value, str):
        return value if not place.text and len(json.dumps(value, ensure_ascii=False).encode()) <= 256 else ""
    if isinstance(value, list):
        return [kept(item, place) for item in rows(cast("object", value))] if place.entered else []
    if not isinstance(value, dict):
        return value
    if not place.entered:
        return {}
    found: dict[str, Any] = {}
    for name, inner in cast("dict[str, Any]", value).items():
        known = place.member(name)
        if known is not None:
            found[name] = kept(inner, known)
        elif place is ROOT:
            found.setdefault(UNKNOWN, None)
    return found


def skimmed(body: bytes, cuts: list[int] | None = None) -> tuple[Any, int, bool]:
    """What is kept of a body, the bytes of text in it, and whether it came to its end."""
    found: list[tuple[Any, int]] = []
    reader = LargeJson(partial(taking, found), nothing)
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts or ()), len(body)]
    for begin, end in pairwise(places):
        drain(reader.feed(body[begin:end]))
    ended = bool(found)
    measured = reader.text_bytes
    reader.end()
    return (*found[0], ended) if found else (None, measured, ended)


def names_of(place: Place, seen: set[int]) -> set[str]:
    if id(place) in seen:
        return set()
    seen.add(id(place))
    return {*place.names, *(name for inner in place.names.values() for name in names_of(inner, seen))}


NAMES = [*sorted(names_of(ROOT, set())), "logprobs", "x", "", 'us"age', "us\\age", "é"]
ODD = [LIE, "\\", '"', '\\"', "}{][", "日本", "😀", "\x7f", "x" * 300]
STRINGS = st.text(max_size=6) | st.sampled_from(ODD)
NUMBERS = st.integers(-5, 10**15) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | STRINGS
ANY_NAME = st.sampled_from(NAMES) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_NAME, inner, max_size=4),
    max_leaves=30,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8)


@quietly
@given(
    value=OBJECTS,
    cuts=st.lists(st.integers(0, 5_000), max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
)
def test_it_keeps_what_a_parser_finds(
    value: Any, cuts: list[int], ascii_only: bool, indent: int | None
) -> None:
    """F-30."""
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    said, measured, ended = skimmed(body, cuts)
    assert ended
    assert kept(value) == said
    if not (ascii_only and "\\u" in body.decode("utf-8", "replace")):
        # Of what is handed to tools, escapes are taken for less than they may stand for.
        assert text_bytes(value, ROOT) == measured


# How many items of arrays are kept.
ITEMS_KEPT = 32


@quietly
@given(
    item=VALUES | OBJECTS,
    name=st.sampled_from(["choices", "output", "content", "candidates"]),
    number=st.integers(ITEMS_KEPT, 300),
    cuts=st.lists(st.integers(0, 20_000), max_size=5),
    indent=st.sampled_from([None, 2]),
)
def test_items_that_are_not_kept_are_measured_as_a_parser_finds_them(
    item: Any, name: str, number: int, cuts: list[int], indent: int | None
) -> None:
    value = {name: [item] * number, "usage": {"prompt_tokens": 5}}
    body = json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "surrogatepass")
    said, measured, ended = skimmed(body, cuts)
    assert ended
    assert {"prompt_tokens": 5} == said["usage"]
    assert text_bytes(value, ROOT) == measured


@quietly
@given(
    body=st.text('{}[]",:\\a1 ', max_size=60)
    | st.lists(
        st.sampled_from(
            [
                *(
                    '{"text":',
                    '"content":',
                    '"message":{',
                    '"a"',
                    '"usage":{"a":',
                    '"tool_calls":[{"function":{',
                ),
                *('"arguments":', "{", "}", "[", "]", ",", ":", '"', "1", "-1.5e3", "tru", "null", "\\", "é"),
                *("9" * 300, '"' + "x" * 300 + '"', "[" * 9, "]" * 9, "\\ud83d", '"\\ude00"', " "),
            ]
        ),
        max_size=30,
    ).map("".join),
    cuts=st.lists(st.integers(0, 400), min_size=1, max_size=5),
)
def test_of_what_is_not_kept_cuts_change_nothing_however_it_is_malformed(body: str, cuts: list[int]) -> None:
    whole = b'{"choices":[' + b"0," * ITEMS_KEPT + (body + '],"usage":{"a":3}}').encode()
    assert skimmed(whole) == skimmed(whole, cuts)
    assert skimmed(whole) == skimmed(whole, [*range(len(whole))])


@quietly
@given(value=OBJECTS, at=st.integers(0, 5_000))
def test_torn_it_keeps_no_more_than_that(value: Any, at: int) -> None:
    body = json.dumps(value).encode()
    said, measured, ended = skimmed(body[: at % len(body)])
    assert not ended
    assert measured <= text_bytes(value, ROOT) + len(body)
    for name in ("usage", "usageMetadata", "usage_metadata"):
        if said is not None and isinstance(value.get(name), dict) and isinstance(said.get(name), dict):
            assert kept(value)[name] == said[name]


@quietly
@given(text=st.text(), cuts=st.lists(st.integers(0, 400), max_size=6), ascii_only=st.booleans())
def test_a_long_text_is_measured_to_the_byte_whatever_the_cuts(
    text: str, cuts: list[int], ascii_only: bool
) -> None:
    text = text * 3 + "x" * 300 + text
    body = json.dumps({"choices": [{"text": text}]}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert len(text.encode("utf-8", "surrogatepass")) == skimmed(body, cuts)[1]


def taking(taken: list[Any], said: Any, measured: int) -> None:
    taken.append((said, measured))


def nothing() -> None:
    """Nobody is told."""


@quietly
@given(
    body=st.binary(max_size=200) | st.text('{}[]",:\\a1 ', max_size=60).map(str.encode),
    cut=st.integers(0, 200),
)
def test_nothing_makes_it_raise(body: bytes, cut: int) -> None:
    found: list[Any] = []
    for chunks in ([body], [body[:cut], body[cut:]], [bytes([byte]) for byte in body]):
        taken: list[Any] = []
        run = LargeJson(partial(taking, taken), nothing)
        for chunk in chunks:
            drain(run.feed(chunk))
        run.end()
        found.append(taken)
    assert [found[0]] * 3 == found


def padded(value: dict[str, Any], where: str) -> dict[str, Any]:
    """The same with a huge member of a name that nobody knows."""
    padding = {"foreign": HUGE}
    if where == "before":
        return {**padding, **value}
    if where == "after":
        return {**value, **padding}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found[name] = {**padding, **inner} if isinstance(inner, dict) and name != "usage" else inner
    return found


def variant(recording: Recording, where: str) -> bytes:
    """A recording with each of its JSON values padded."""
    return b"".join(pad_event(event, where) for event in recording.events)


def pad_event(event: bytes, where: str) -> bytes:
    lines = event.splitlines(keepends=True)
    for at, line in enumerate(lines):
        head, mark, rest = line.partition(b"{")
        if mark and rest.rstrip().endswith(b"}"):
            lines[at] = head + compact(padded(json.loads(mark + rest), where)) + line[len(line.rstrip()) :]
    return b"".join(lines)


PADDED = [
    recording
    for recording in RECORDINGS
    if recording.content_type != EVENTSTREAM_TYPE and variant(recording, "before") != recording.body
]


def read(recording: Recording, body: bytes, step: int = 1 << 30) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(recording.usage, status=200, headers=recording.headers)
    assert reader is not None
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    return reader.close(complete=True)


@pytest.mark.parametrize("where", ["before", "after", "inside"])
@pytest.mark.parametrize("recording", PADDED, ids=lambda recording: recording.name)
def test_padded_it_amounts_to_the_same(recording: Recording, where: str) -> None:
    """F-30: a huge foreign member before, after or within the known ones changes nothing."""
    body = variant(recording, where)
    for step in (1 << 30, 4_099):
        calls = read(recording, body, step)
        assert recording.expected == [figures(call) for call in calls]
        assert recording.response_ids == tuple(call.response_id for call in calls)
        assert [recording.model] * len(calls) == [call.model for call in calls]


def test_enough_of_the_recordings_are_padded() -> None:
    assert len(PADDED) >= 12


@pytest.mark.parametrize("step", [1 << 30, 5_003])
def test_frames_with_encoded_answers_of_any_size_are_read(step: int) -> None:
    usage = {"input_tokens": 3, "output_tokens": 4}
    body = invoked({"type": "message", "content": [], "padding": HUGE, "usage": usage})
    (call,) = read(next(r for r in RECORDINGS if r.content_type == EVENTSTREAM_TYPE), body, step)
    assert ("reported", 3, 4) == figures(call)[:3]
    junk = frame(b'{"bytes": "' + b"!" * 90_000 + b'"}', event_type="chunk", message_type="event")
    (call,) = read(next(r for r in RECORDINGS if r.content_type == EVENTSTREAM_TYPE), junk + body, step)
    assert ("reported", 3, 4) == figures(call)[:3]


def many(count: int) -> list[bytes]:
    """Pieces of an answer that never ends, of nothing but what is looked at."""
    begin = b'{"id":"c","object":"chat.completion","choices":['
    message = {"role": "assistant", "content": "x" * 200}
    choice = compact({"index": 0, "finish_reason": "stop", "message": message})
    return [begin, *[(choice + b",") * 40] * count]


@pytest.mark.parametrize(
    "pieces",
    [
        many(20),
        [b'{"usage":{', *[b'"a%d":1,' % n for n in range(20_000)]],
        [b'{"usage":', *[b'{"a":[1,' * 100] * 100],
        [b'{"choices":', *[b"[" * 1_000] * 20],
        [b'{"choices":[{"message":{"content":"', *[b"\\u00e9" * 1_000] * 50],
        [b'{"', *[b"k" * 10_000] * 30],
        [b'{"id":', *[b"9" * 10_000] * 30],
        [b'{"data":[', *[b'{"embedding":[' + b"0.123," * 1_000 + b"0]},"] * 30],
        [b'{"messages', *[b'":"'] * 1_000],
    ],
    ids=["choices", "figures", "depth", "brackets", "text", "name", "number", "vectors", "names"],
)
@pytest.mark.parametrize("kind", ["text/event-stream", JSON_TYPE, "application/x-ndjson"])
def test_a_reader_keeps_no_more_than_64_kib(kind: str, pieces: list[bytes]) -> None:
    """F-30: of one that goes on for megabytes, whatever it says."""
    begin = b"data: " if kind == "text/event-stream" else b""
    headers = [(b"content-type", kind.encode())]
    readers = [ResponseReader.open("openai", status=200, headers=headers) for _ in range(2)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for piece in [begin, *pieces]:
            for reader in readers:
                assert reader is not None
                reader.feed(piece)
        assert (tracemalloc.get_traced_memory()[0] - before) / len(readers) <= STREAM_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_items_beyond_the_bound_are_measured_though_not_kept() -> None:
    choices = [{"index": n, "message": {"content": "abcd"}, "finish_reason": "stop"} for n in range(1_000)]
    said, measured, ended = skimmed(compact({"id": "c", "choices": choices, "usage": {"prompt_tokens": 5}}))
    assert ended
    assert 4_000 == measured
    assert 32 == len(said["choices"])
    assert {"prompt_tokens": 5} == said["usage"]


def test_numbers_that_are_not_kept_are_passed_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    scan: Any = vars(large_json)["span"]

    def counted(*asked: Any) -> int:
        looked.append(1)
        at: int = scan(*asked)
        return at

    monkeypatch.setattr(large_json, "span", counted)
    body = compact({"content": list(range(100_000, 120_000)), "usage": {"prompt_tokens": 3}})
    found, _, is_whole = skimmed(body)
    assert (found["usage"], is_whole) == ({"prompt_tokens": 3}, True)
    assert len(looked) < len(body) // 100


def test_no_expression_has_a_possessive_group() -> None:
    # They match wrongly before Python 3.11.5, and the versions after it do not show that:
    # https://github.com/python/cpython/issues/106052
    modules = [import_module(found.name) for found in walk_packages(tokens.__path__, f"{tokens.__name__}.")]
    values: list[Any] = [value for module in modules for value in vars(module).values()]
    sources = [repr(value.pattern) for value in values if hasattr(value, "pattern")]
    assert len(sources) > 10
    assert [source for source in sources if re.search(r"\)[*+?}]\+", source)] == []
