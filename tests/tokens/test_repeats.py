"""Events that repeat one another are measured without being parsed, to the byte as if they were."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.tokens.json_values import load
from meterkit.tokens.repeated_events import Repeats
from meterkit.tokens.response import ResponseReader

SSE = [(b"content-type", b"text/event-stream")]
texts = st.text(max_size=12) | st.sampled_from(
    ["", " a", "é", "日本", '"', "\\", "\n", "\x7f", "\u2028", "x" * 40]
)


def openai(text: str, /, *, ascii_only: bool, **more: Any) -> bytes:
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        "usage": None,
        **more,
    }
    return dumped(body, ascii_only=ascii_only)


def anthropic(text: str, *, ascii_only: bool, **_: Any) -> bytes:
    body = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return dumped(body, ascii_only=ascii_only)


def anthropic_named(text: str) -> bytes:
    return b"event: content_block_delta\n" + anthropic(text, ascii_only=False)


def dumped(body: Any, *, ascii_only: bool) -> bytes:
    said = json.dumps(body, separators=(",", ":"), ensure_ascii=ascii_only)
    return b"data: " + said.encode("utf-8", "surrogatepass") + b"\n\n"


def nothing(_repeats: Repeats, _event: bytes) -> None:
    """Never a repeat."""


def read(events: list[bytes], *, plainly: bool) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        if plainly:
            patch.setattr(Repeats, "measure", nothing)
        reader = ResponseReader.open("auto", status=200, headers=SSE)
        assert reader is not None
        seen: list[tuple[int, int]] = []
        for event in events:
            reader.feed(event)
            seen.append((reader.output_bytes_seen, reader.estimated_output_tokens))
        return seen, reader.close(complete=False)


usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
openai_events = (
    st.builds(openai, texts, ascii_only=st.booleans())
    | st.builds(openai, texts, ascii_only=st.just(False), obfuscation=texts)
    | st.builds(openai, texts, ascii_only=st.just(False), usage=st.sampled_from([None, usage, {}]))
    | st.builds(openai, texts, ascii_only=st.just(False), error=texts)
    | st.builds(
        openai,
        texts,
        ascii_only=st.just(False),
        choices=st.lists(
            st.fixed_dictionaries(
                {
                    "index": st.integers(0, 1),
                    "delta": st.fixed_dictionaries(
                        {},
                        optional={
                            "content": texts,
                            "reasoning_content": texts,
                            "refusal": texts,
                            "tool_calls": st.just([{"function": {"arguments": "{}"}}]),
                        },
                    ),
                }
            ),
            max_size=2,
        ),
    )
    | st.binary(max_size=9).map(lambda junk: openai("JUNK", ascii_only=False).replace(b"JUNK", junk))
)


@given(st.lists(openai_events, max_size=14))
def test_as_if_parsed_openai(events: list[bytes]) -> None:
    assert read(events, plainly=True) == read(events, plainly=False)


@given(st.lists(st.builds(anthropic, texts, ascii_only=st.booleans()), max_size=14))
def test_as_if_parsed_anthropic(events: list[bytes]) -> None:
    assert read(events, plainly=True) == read(events, plainly=False)


def told(text: str, /, **more: Any) -> bytes:
    return openai(text, ascii_only=False, **more)


def choices(*said: str) -> bytes:
    return told("", choices=[{"index": n, "delta": {"content": text}} for n, text in enumerate(said)])


def padded(text: str, padding: str) -> bytes:
    return dumped({"obfuscation": padding, "choices": [{"delta": {"content": text}}]}, ascii_only=False)


@pytest.mark.parametrize(
    "events",
    [
        [told("a"), told("b"), told("c").replace(b"}\n\n", b"} x\n\n")],
        [told("a"), told("b"), told("c").replace(b'"}', b'"]')],
        [told("a"), told("b"), told("c").replace(b"null}\n\n", b"nul\n\n")],
        [told("a"), told("b"), told("c", usage=usage), told("dd")],
        [told("a"), padded("a", "bcd"), padded("aa", "b"), padded("aaa", "")],
        [told("a"), choices("a", "bc"), choices("ab", "c"), choices("abc", "defg")],
        [told("a"), told("b"), told(""), told("c" * 5000), told("d" * 5000)],
        [told("a"), told("", text="abc"), told("x", text="abcdef"), told("x", text="ab")],
    ],
)
def test_as_if_parsed_where_events_are_nearly_alike(events: list[bytes]) -> None:
    assert read(events, plainly=True) == read(events, plainly=False)


def parsing(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is parsed from now on."""
    parsed: list[bytes] = []

    def watched(data: bytes) -> Any:
        parsed.append(data)
        return load(data)

    monkeypatch.setattr("meterkit.tokens.response.load", watched)
    return parsed


def test_a_repeat_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parsing(monkeypatch)
    read([openai(f" w{n}", ascii_only=False, obfuscation="x" * n) for n in range(40)], plainly=False)
    assert 1 == len(parsed)


def test_an_escape_does_not_forget_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parsing(monkeypatch)
    read([openai(t, ascii_only=False) for t in ["a", "b", "c", "\n", "d", "e"]], plainly=False)
    assert 2 == len(parsed)


@given(
    st.lists(openai_events | st.builds(anthropic_named, texts), max_size=12),
    st.lists(st.integers(0, 4000), max_size=6),
)
def test_several_events_in_one_chunk_are_measured_as_one_by_one(events: list[bytes], cuts: list[int]) -> None:
    body = b"".join(events)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[begin:end] for begin, end in pairwise(edges)]
    assert read(chunks, plainly=False)[0][-1:] == read(chunks, plainly=True)[0][-1:]
    assert read(chunks, plainly=False)[1] == read(chunks, plainly=True)[1]


def test_many_events_in_one_chunk_are_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    event = openai(" and", ascii_only=False)
    reader = ResponseReader.open("openai", status=200, headers=SSE)
    assert reader is not None
    reader.feed(event)
    reader.feed(event)
    parsed = parsing(monkeypatch)
    reader.feed(event * 60)
    assert parsed == []
    assert reader.output_bytes_seen == 62 * len(" and")
