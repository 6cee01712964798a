from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from meterkit.tokens.response import ResponseReader
from tokens.recordings import MISSING, RECORDINGS, SSE_TYPE, Recording, figures

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

BY_NAME = {recording.name: recording for recording in RECORDINGS}
STREAMS = [recording for recording in RECORDINGS if recording.aborted]
WORDS = ("declared", "auto")


def word(recording: Recording, how: str) -> str:
    if how == "auto" and not recording.auto:
        pytest.skip("auto takes it for OpenAI")
    return recording.usage if how == "declared" else "auto"


def read(
    recording: Recording,
    *chunks: bytes,
    usage: str,
    complete: bool = True,
    coding: bytes | None = None,
) -> tuple[CallUsage, ...]:
    headers = list(recording.headers)
    if coding is not None:
        headers.append((b"content-encoding", coding))
    reader = ResponseReader.open(usage, status=200, headers=headers)
    assert reader is not None
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete)


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_whole_response_amounts_to_its_figures(name: str, how: str) -> None:
    recording = BY_NAME[name]
    calls = read(recording, recording.body, usage=word(recording, how))
    assert recording.expected == [figures(call) for call in calls]
    assert [recording.provider] * len(calls) == [call.provider for call in calls]
    assert [recording.model] * len(calls) == [call.model for call in calls]
    assert recording.response_ids == tuple(call.response_id for call in calls)


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", BY_NAME)
def test_cut_at_every_byte_it_amounts_to_the_same(name: str, how: str) -> None:
    recording = BY_NAME[name]
    body, usage = recording.body, word(recording, how)
    expected = read(recording, body, usage=usage)
    for cut in range(len(body) + 1):
        assert expected == read(recording, body[:cut], body[cut:], usage=usage), cut


@pytest.mark.parametrize("name", BY_NAME)
def test_byte_by_byte_it_amounts_to_the_same(name: str) -> None:
    recording = BY_NAME[name]
    body = recording.body
    pieces = [body[at : at + 1] for at in range(len(body))]
    assert read(recording, body, usage="auto") == read(recording, *pieces, usage="auto")


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", [recording.name for recording in STREAMS])
def test_broken_off_after_every_event_it_amounts_to_what_was_said_by_then(name: str, how: str) -> None:
    recording = BY_NAME[name]
    usage = word(recording, how)
    assert len(recording.events) + 1 == len(recording.aborted)
    for count, expected in enumerate(recording.aborted):
        calls = read(recording, *recording.events[:count], usage=usage, complete=False)
        assert expected == [figures(call) for call in calls], count


@pytest.mark.parametrize("name", [recording.name for recording in STREAMS])
def test_broken_off_within_an_event_it_is_the_event_before_that_counts(name: str) -> None:
    recording = BY_NAME[name]
    for count, event in enumerate(recording.events):
        torn = event[: len(event) // 2]
        calls = read(recording, *recording.events[:count], torn, usage=recording.usage, complete=False)
        # With nothing but a torn event, it is certain only that there was an answer.
        expected = recording.aborted[count] or [MISSING]
        assert expected == [figures(call) for call in calls], count


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
@pytest.mark.parametrize("name", ["openai-chat-stream", "anthropic-stream", "gemini-array", "ollama-chat"])
def test_compressed_and_cut_at_every_byte_it_amounts_to_the_same(name: str, coding: str) -> None:
    recording = BY_NAME[name]
    if coding == "gzip":
        body = gzip.compress(recording.body)
    else:
        packer = zlib.compressobj(wbits=15 if coding == "deflate" else -15)
        body = packer.compress(recording.body) + packer.flush()
    header = coding.removeprefix("raw ").encode()
    for cut in range(len(body) + 1):
        calls = read(recording, body[:cut], body[cut:], usage=recording.usage, coding=header)
        assert recording.expected == [figures(call) for call in calls], cut


@pytest.mark.parametrize("name", [r.name for r in RECORDINGS if r.content_type == SSE_TYPE])
@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_line_ends_of_every_kind_amount_to_the_same(name: str, end: bytes) -> None:
    recording = BY_NAME[name]
    body = b"\xef\xbb\xbf" + recording.body.replace(b"\r\n", b"\n").replace(b"\n", end)
    expected = read(recording, recording.body, usage=recording.usage)
    for cut in range(0, len(body), 3):
        assert expected == read(recording, body[:cut], body[cut:], usage=recording.usage), cut


def test_cohere_keeps_what_it_bills_as_a_second_measure() -> None:
    recording = BY_NAME["cohere-chat"]
    (call,) = read(recording, recording.body, usage="cohere")
    assert (5, 28) == (call.billed_input_tokens, call.billed_output_tokens)


def test_a_residual_is_remarked_on() -> None:
    noted = {
        name: call.notes
        for name in ("openai-xai-residual", "openai-hidden-thinking", "openai-total-below", "openai-chat")
        for call in read(BY_NAME[name], BY_NAME[name].body, usage="openai")
    }
    assert {
        "openai-xai-residual": ("residual",),
        "openai-hidden-thinking": ("residual",),
        "openai-total-below": (),
        "openai-chat": (),
    } == noted
