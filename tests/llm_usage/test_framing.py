"""Framing of answers: events, frames, large JSON and repeated events, against Python's own parser."""

# Internals: properties of byte streams, against a parser.

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, cast
from zlib import crc32

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import llm_usage
from drivers.sampled import few_examples, pairs
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    LIE,
    SSE_TYPE,
    compact,
    cut,
    cut_at,
    figures,
    frame,
    invoked,
    open_reader,
    read,
)
from llm_usage import response
from llm_usage.framing.eventstream import EventStreamReader
from llm_usage.framing.incremental import EVENT_BYTES_MAX, Work, drain
from llm_usage.framing.json import JsonReader
from llm_usage.framing.large_json import UNKNOWN, LargeJsonReader
from llm_usage.framing.sse import EventCallbacks, SseReader
from llm_usage.json_values import rows
from llm_usage.layout import ROOT, ValuePlace, text_bytes
from llm_usage.repeated_events import RepeatedEvents


class Pieces:
    """Reads what is too large to be kept, and keeps it all the same."""

    def __init__(self, found: list[bytes]) -> None:
        self._found = found
        self._read = b""

    def feed(self, data: bytes) -> Work:
        self._read += data
        yield

    def end(self) -> None:
        self._found.append(self._read)


def any_of_them(_: bytes) -> bool:
    return True


def sse_events(*chunks: bytes, wanted: Callable[[bytes], bool] = any_of_them) -> list[bytes]:
    found: list[bytes] = []
    parser = SseReader(EventCallbacks(found.append, wanted, lambda: Pieces(found)))
    for chunk in chunks:
        drain(parser.feed(chunk))
    drain(parser.close())
    return found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n: comment\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\ndata:  b\n\n", [b"a\n b"]),
        (b"data\ndata: a\n\n", [b"\na"]),
        (b"database: a\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n\n\n", [b"a"]),
        (b"data: a", [b"a"]),
    ],
)
def test_events_are_found_whatever_the_line_ends_and_cuts(stream: bytes, expected: list[bytes]) -> None:
    for at in range(len(stream) + 1):
        assert expected == sse_events(stream[:at], stream[at:]), at
    assert expected == sse_events(*cut(stream, 1))


@pytest.mark.parametrize(
    ("size", "step"), pairs([EVENT_BYTES_MAX, EVENT_BYTES_MAX + 1, 1 << 20], [1 << 22, 65_521, 977])
)
def test_an_event_beyond_the_bound_is_read_as_is_the_next(size: int, step: int) -> None:
    """F-30."""
    large = b"data: ".ljust(size // 2, b"x") + b"\nevent: noise\n:\ndata:" + b"y" * (size // 2)
    stream = b"data: a\n\n" + large + b"\n\ndata: b\n\n"
    expected = b"x" * (size // 2 - 6) + b"\n" + b"y" * (size // 2)
    found = sse_events(*cut(stream, step))
    if len(large) > EVENT_BYTES_MAX:
        found[1] = found[1].replace(b"\n\n\n", b"\n")  # Blanks between two lines say nothing.
    assert [b"a", expected, b"b"] == found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"]),
        (b'data: {"a":{}\ndata: ,"b":{}}\n\n', [b'{"a":{}\n,"b":{}}']),
        (b"event: x\ndata: {}\nevent: y\ndata: {}\n\n", [b"{}", b"{}"]),
    ],
)
def test_events_that_one_line_end_parts_are_told_apart(stream: bytes, expected: list[bytes]) -> None:
    """F-40: some servers leave the blank line out; no JSON value goes on behind such an end."""
    for at in range(len(stream) + 1):
        assert expected == sse_events(stream[:at], stream[at:]), at


def items(*chunks: bytes) -> list[bytes]:
    found: list[bytes] = []
    parser = JsonReader(EventCallbacks(found.append, any_of_them, lambda: Pieces(found)), unseen=False)
    for chunk in chunks:
        drain(parser.feed(chunk))
    return found


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (b'[1, "}{][", null, {"a":[{}]} , [{"b":2}], {}]', [b'{"a":[{}]}', b"{}"]),
        (b'[{"a":"}]\\"}\\\\"},{"b":"\\\\\\""}]', [b'{"a":"}]\\"}\\\\"}', b'{"b":"\\\\\\""}']),
        (b'[{"a":1}] [{"b":2}]', [b'{"a":1}']),
        (b'[{"a":1},{"b"', [b'{"a":1}']),
    ],
)
def test_items_of_an_array_are_found_whatever_the_cuts(array: bytes, expected: list[bytes]) -> None:
    for at in range(len(array) + 1):
        assert expected == items(array[:at], array[at:]), at
    assert expected == items(*cut(array, 1))


class Frames:
    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []
        self.large: list[bytes] = []
        self.parser = EventStreamReader(
            lambda headers, payload: self.found.append((headers.get(":event-type", ""), payload)),
            lambda _: Pieces(self.large),
        )

    def feed(self, *chunks: bytes) -> list[tuple[str, bytes]]:
        for chunk in chunks:
            drain(self.parser.feed(chunk))
        drain(self.parser.close())
        return self.found


def test_frames_are_found_whatever_the_cuts() -> None:
    stream = frame(b"one", event_type="a") + frame(b"") + frame(b"two", event_type="b", message_type="event")
    for at in range(len(stream) + 1):
        frames = Frames()
        assert [("a", b"one"), ("", b""), ("b", b"two")] == frames.feed(stream[:at], stream[at:]), at
        assert not frames.parser.corrupt


def with_a_wrong_byte(message: bytes, at: int) -> bytes:
    broken = bytearray(message)
    broken[at] ^= 1
    return bytes(broken)


def headed(headers: bytes, total: int | None = None) -> bytes:
    """A frame without a payload, of any headers and length."""
    prelude = struct.pack(">II", 16 + len(headers) if total is None else total, len(headers))
    message = prelude + struct.pack(">I", crc32(prelude)) + headers
    return message + struct.pack(">I", crc32(message))


@pytest.mark.parametrize(
    ("message", "goes_on"),
    [
        (with_a_wrong_byte(frame(b"one", event_type="a"), -6), True),
        (with_a_wrong_byte(frame(b"one", event_type="a"), 3), False),
        (headed(b"\x05ab"), True),
        (headed(b"\x01h\x0a"), True),
        (headed(b"", total=15), False),
    ],
    ids=["checksum", "prelude", "torn header", "unknown header", "length"],
)
def test_a_corrupt_frame_is_left_out_after_a_wrong_length_all(message: bytes, goes_on: bool) -> None:
    frames = Frames()
    found = frames.feed(frame(b"one", event_type="a"), message, frame(b"two", event_type="b"))
    assert found == [("a", b"one"), ("b", b"two")][: 1 + goes_on]
    assert frames.parser.corrupt


@pytest.mark.parametrize(("step", "corrupt"), pairs([1 << 22, 70_000, 997], [False, True]))
def test_a_frame_beyond_the_bound_is_read_as_is_the_next(step: int, corrupt: bool) -> None:
    """F-30."""
    large = bytearray(frame(b"x" * 500_000, event_type="a"))
    large[-6] ^= corrupt
    stream = bytes(large) + frame(b"two", event_type="b")
    frames = Frames()
    assert [("b", b"two")] == frames.feed(*cut(stream, step))
    assert corrupt == frames.parser.corrupt
    assert corrupt or frames.large == [b"x" * 500_000]


# Answers larger than what is kept: what is read of them as they come, against Python's own parser.


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

quietly = few_examples(40)
# How many items of arrays are kept.
ITEMS_KEPT = 32


def items_in(value: Any) -> int:
    """How many items the arrays of a value have."""
    if isinstance(value, dict):
        return sum(map(items_in, cast("dict[str, Any]", value).values()))
    items = rows(cast("object", value))
    return len(items) + sum(map(items_in, items))


def kept(value: Any, place: ValuePlace = ROOT, member: str = "") -> Any:
    """The kept part of parsed JSON: of a member of this name."""
    if isinstance(value, str):
        most = 2_048 if member in {"id", "item_id", "generation_id", "responseId", "response_id"} else 256
        is_kept = not place.is_text and len(json.dumps(value, ensure_ascii=False).encode()) <= most
        return value if is_kept else ""
    if isinstance(value, list):
        return [kept(item, place) for item in rows(cast("object", value))] if place.is_entered else []
    if not isinstance(value, dict):
        return value
    if not place.is_entered:
        return {}
    found: dict[str, Any] = {}
    for name, inner in cast("dict[str, Any]", value).items():
        known = place.member(name)
        if known is not None:
            found[name] = kept(inner, known, name)
        elif place is ROOT:
            found.setdefault(UNKNOWN, None)
    return found


def skimmed(body: bytes, cuts: list[int] | None = None) -> tuple[Any, int, bool]:
    """The kept part of a body, the bytes of text in it, and whether it came to its end."""
    found: list[tuple[Any, int]] = []
    reader = LargeJsonReader(lambda said, measured: found.append((said, measured)), lambda: None)
    for piece in cut_at(body, cuts or ()):
        drain(reader.feed(piece))
    ended = bool(found)
    measured = reader.text_bytes
    reader.end()
    return (*found[0], ended) if found else (None, measured, ended)


def names_of(place: ValuePlace, seen: set[int]) -> set[str]:
    if id(place) in seen:
        return set()
    seen.add(id(place))
    return {*place.members, *(name for inner in place.members.values() for name in names_of(inner, seen))}


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
    assume(items_in(value) <= ITEMS_KEPT)
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    said, measured, ended = skimmed(body, cuts)
    assert ended
    assert kept(value) == said
    if not (ascii_only and "\\u" in body.decode("utf-8", "replace")):
        # Of what is handed to tools, escapes are taken for less than they may stand for.
        assert text_bytes(value, ROOT) == measured


@quietly
@given(
    item=VALUES | OBJECTS,
    name=st.sampled_from(["choices", "output", "content", "candidates"]),
    number=st.integers(ITEMS_KEPT, 300),
    cuts=st.lists(st.integers(0, 20_000), max_size=5),
    indent=st.sampled_from([None, 2]),
)
def test_items_not_kept_are_measured_as_by_a_parser(
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
                *('{"text":', '"content":', '"message":{', '"a"', '"usage":{"a":'),
                '"tool_calls":[{"function":{',
                *('"arguments":', "{", "}", "[", "]", ",", ":", '"', "1", "-1.5e3", "tru", "null", "\\", "é"),
                *("9" * 300, '"' + "x" * 300 + '"', "[" * 9, "]" * 9, "\\ud83d", '"\\ude00"', " "),
            ]
        ),
        max_size=30,
    ).map("".join),
    cuts=st.lists(st.integers(0, 400), min_size=1, max_size=5),
)
def test_cuts_change_nothing_however_malformed_the_rest_is(body: str, cuts: list[int]) -> None:
    whole = b'{"choices":[' + b"0," * ITEMS_KEPT + (body + '],"usage":{"a":3}}').encode()
    assert skimmed(whole) == skimmed(whole, cuts)
    assert skimmed(whole) == skimmed(whole, [*range(len(whole))])


def test_each_of_several_objects_has_the_text_of_its_own() -> None:
    found: list[int] = []
    reader = LargeJsonReader(lambda _, measured: found.append(measured), lambda: None)
    for text in ("four", "sixsix"):
        drain(reader.feed(compact({"choices": [{"message": {"content": text}}]})))
        assert reader.text_bytes == 0
    reader.end()
    assert found == [4, 6]


@pytest.mark.parametrize("step", [1 << 30, 5_003])
def test_frames_with_encoded_answers_of_any_size_are_read(step: int) -> None:
    usage = {"input_tokens": 3, "output_tokens": 4}
    body = invoked({"type": "message", "content": [], "padding": HUGE, "usage": usage})
    (call,) = read(*cut(body, step), usage="bedrock", kind=EVENTSTREAM_TYPE)
    assert ("reported", 3, 4) == figures(call)[:3]
    junk = frame(b'{"bytes": "' + b"!" * 90_000 + b'"}', event_type="chunk", message_type="event")
    (call,) = read(*cut(junk + body, step), usage="bedrock", kind=EVENTSTREAM_TYPE)
    assert ("reported", 3, 4) == figures(call)[:3]


def many(count: int) -> list[bytes]:
    """Pieces of an answer that never ends, all of members that are read."""
    begin = b'{"id":"c","object":"chat.completion","choices":['
    message = {"role": "assistant", "content": "x" * 200}
    choice = compact({"index": 0, "finish_reason": "stop", "message": message})
    return [begin, *[(choice + b",") * 40] * count]


ENDLESS: dict[str, list[bytes]] = {
    "choices": many(20),
    "figures": [b'{"usage":{', *[b'"a%d":1,' % n for n in range(8_000)]],
    "depth": [b'{"usage":', *[b'{"a":[1,' * 100] * 100],
    "brackets": [b'{"choices":', *[b"[" * 1_000] * 20],
    "text": [b'{"choices":[{"message":{"content":"', *[b"\\u00e9" * 1_000] * 50],
    "name": [b'{"', *[b"k" * 10_000] * 30],
    "number": [b'{"id":', *[b"9" * 10_000] * 30],
    "vectors": [b'{"data":[', *[b'{"embedding":[' + b"0.123," * 1_000 + b"0]},"] * 30],
    "names": [b'{"messages', *[b'":"'] * 1_000],
    "blanks": [b"\r\n" * 1_000] * 200,
}
"""Answers that go on for megabytes."""


@pytest.mark.parametrize(
    ("name", "kind"), pairs([*ENDLESS], ["text/event-stream", JSON_TYPE, "application/x-ndjson"])
)
def test_a_reader_keeps_no_more_than_64_kib(name: str, kind: str) -> None:
    """F-30: of one that goes on for megabytes, whatever it says."""
    pieces = ENDLESS[name]
    begin = b"data: " if kind == "text/event-stream" and name != "blanks" else b""
    readers = [open_reader("openai", kind) for _ in range(2)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for piece in [begin, *pieces]:
            for reader in readers:
                reader.feed(piece)
        assert (tracemalloc.get_traced_memory()[0] - before) / len(readers) <= STREAM_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_no_expression_has_a_possessive_group() -> None:
    # They match wrongly before Python 3.11.5, and the versions after it do not show that:
    # https://github.com/python/cpython/issues/106052
    modules = [import_module(found.name) for found in walk_packages(llm_usage.__path__, "llm_usage.")]
    values: list[Any] = [value for module in modules for value in vars(module).values()]
    sources = [repr(value.pattern) for value in values if hasattr(value, "pattern")]
    assert len(sources) > 10
    assert [source for source in sources if re.search(r"\)[*+?}]\+", source)] == []


# Events that repeat one another are measured without being parsed, to the byte as if they were.


texts = st.text(max_size=12) | st.sampled_from(
    ["", " a", "é", "日本", '"', "\\", "\n", "\x7f", "\u2028", "x" * 40]
)


def openai(text: str, /, *, ascii_only: bool, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return dumped({**head, "choices": [choice], "usage": None, **more}, ascii_only=ascii_only)


def anthropic_named(text: str) -> bytes:
    body = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\n" + dumped(body, ascii_only=False)


def dumped(body: Any, *, ascii_only: bool) -> bytes:
    said = json.dumps(body, separators=(",", ":"), ensure_ascii=ascii_only)
    return b"data: " + said.encode("utf-8", "surrogatepass") + b"\n\n"


def unmeasured(*_: object) -> None: ...


def repeats_read(events: list[bytes], *, plainly: bool) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        if plainly:
            patch.setattr(RepeatedEvents, "skip_repeats", unmeasured)
            patch.setattr(response, "key_of", unmeasured)
        reader = open_reader(kind=SSE_TYPE)
        seen: list[tuple[int, int]] = []
        for event in events:
            reader.feed(event)
            seen.append((reader.output_bytes_seen, reader.estimated_output_tokens))
        return seen, reader.close(complete=False)


usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
ids = st.sampled_from(["a", "b", "", "é", 'c"', "x" * 300, None])
delta = st.fixed_dictionaries({}, optional=dict.fromkeys(("content", "reasoning_content", "refusal"), texts))
choices = st.lists(st.fixed_dictionaries({"index": st.integers(0, 1), "delta": delta}), max_size=2)
plain = st.just(False)
openai_events = (
    st.builds(openai, texts, ascii_only=st.booleans())
    | st.builds(openai, texts, ascii_only=plain, obfuscation=texts)
    | st.builds(openai, texts, ascii_only=plain, usage=st.sampled_from([None, usage, {}]))
    | st.builds(openai, texts, ascii_only=plain, error=texts)
    | st.builds(openai, texts, ascii_only=plain, choices=choices)
    | st.builds(openai, texts, ascii_only=plain, id=ids, created=st.integers(0, 3), model=ids)
    | st.builds(openai, texts, ascii_only=plain, id=ids, choices=choices, tool=st.just({"id": "t"}))
    | st.binary(max_size=9).map(lambda junk: openai("JUNK", ascii_only=False).replace(b"JUNK", junk))
)


@few_examples(30)
@given(
    st.lists(openai_events | st.builds(anthropic_named, texts), max_size=12),
    st.lists(st.integers(0, 4000), max_size=6),
)
@example(
    [openai(text, ascii_only=False) for text in ("one", "two", "three")],
    [len(openai("one", ascii_only=False))],
)
def test_several_events_in_one_chunk_are_measured_as_one_by_one(events: list[bytes], cuts: list[int]) -> None:
    body = b"".join(events)
    chunks = cut_at(body, cuts)
    (quick, quick_calls), (plain, plain_calls) = (repeats_read(chunks, plainly=how) for how in (False, True))
    assert (quick[-1:], quick_calls) == (plain[-1:], plain_calls)


@few_examples(30)
@given(st.lists(openai_events, max_size=14))
def test_events_are_measured_as_if_they_were_parsed(events: list[bytes]) -> None:
    assert repeats_read(events, plainly=True) == repeats_read(events, plainly=False)


def test_events_known_from_another_stream_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    def stream(call_id: str) -> list[bytes]:
        begun = openai("Hi", ascii_only=False, id=call_id, model="known")
        return [begun, openai("", ascii_only=False, id=call_id, model="known", **ended)]

    read_stream = partial(read, usage="openai", kind=SSE_TYPE)
    read_stream(*stream("call-1"))
    monkeypatch.setattr(response, "load", unmeasured)  # Of an event that it parses nothing is known.
    (call,) = read_stream(*stream("call-2"))
    assert ("call-2", "known", ("not_asked",)) == (call.response_id, call.model, call.notes)
