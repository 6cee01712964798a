from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict

from meterkit.tokens.merging import each_once
from meterkit.tokens.objects import calls_of, usage_of
from meterkit.tokens.plain_values import ITEMS_MAX, table_of
from meterkit.tokens.response import ResponseReader
from meterkit.tokens.tap import StreamTap
from tokens.recordings import (
    ANTHROPIC_LAST,
    DETAILED,
    DETAILED_FIGURES,
    Figures,
    anthropic_events,
    chat,
    chat_usage,
    compact,
    figures,
    gemini_chunk,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from meterkit.tokens.call_usage import CallUsage

pytestmark = pytest.mark.anyio


class Model(BaseModel):
    """As the SDKs' models are: unknown fields are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Details(Model):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(Model):
    reasoning_tokens: int | None = None


class OpenAIUsage(Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | None = None
    completion_tokens_details: OutputDetails | None = None


class Choice(Model):
    index: int = 0
    finish_reason: str | None = None


class Completion(Model):
    id: str
    object: str
    model: str
    choices: list[Choice]
    usage: OpenAIUsage | None = None


class GeminiUsage(Model):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    total_token_count: int | None = None


class Candidate(Model):
    content: dict[str, Any] | None = None
    finish_reason: str | None = None


class GeminiResponse(Model):
    candidates: list[Candidate] | None = None
    usage_metadata: GeminiUsage | None = None
    model_version: str | None = None
    response_id: str | None = None


class AnthropicUsage(Model):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class Message(Model):
    id: str
    type: str = "message"
    model: str
    usage: AnthropicUsage


class Dumped:
    """An object of the kind that only dumps itself."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def to_dict(self) -> object:
        return self.value


class Broken:
    def to_dict(self) -> object:
        raise RuntimeError("no")


@dataclass
class Plain:
    choices: list[Any]
    usage: dict[str, Any]


COMPLETION = Completion(
    id="c1",
    object="chat.completion",
    model="m",
    choices=[Choice(finish_reason="stop")],
    usage=OpenAIUsage(
        prompt_tokens=1420,
        completion_tokens=310,
        total_tokens=1730,
        prompt_tokens_details=Details(cached_tokens=1280, cache_write_tokens=0),
        completion_tokens_details=OutputDetails(reasoning_tokens=256),
    ),
)
GEMINI = GeminiResponse(
    candidates=[Candidate(finish_reason="STOP")],
    usage_metadata=GeminiUsage(
        prompt_token_count=5, candidates_token_count=3, thoughts_token_count=2, total_token_count=10
    ),
    model_version="g",
    response_id="r",
)
MESSAGE = Message(
    id="msg",
    model="c",
    usage=AnthropicUsage(input_tokens=9, output_tokens=16, cache_read_input_tokens=1),
)
CONVERSE: dict[str, Any] = {
    "ResponseMetadata": {"HTTPStatusCode": 200},
    "output": {"message": {}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11},
}


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (COMPLETION, DETAILED_FIGURES),
        (COMPLETION.usage, DETAILED_FIGURES),
        (COMPLETION.model_dump(), DETAILED_FIGURES),
        (DETAILED, DETAILED_FIGURES),
        (Dumped(COMPLETION.model_dump()), DETAILED_FIGURES),
        (Plain(choices=[], usage=chat_usage(3, 4)), ("reported", 3, 4, None, None, None)),
        (SimpleNamespace(choices=[], usage=COMPLETION.usage), DETAILED_FIGURES),
        (SimpleNamespace(data=COMPLETION), DETAILED_FIGURES),
        (chat({"content": "a"}, usage=chat_usage(3, 1)), ("partial", 3, 1, None, None, None)),
        (chat(None, usage=chat_usage(3, 4)), ("reported", 3, 4, None, None, None)),
        ({"input_tokens": 3, "output_tokens": 4, "total_tokens": 9}, ("reported", 3, 6, None, None, 2)),
        (GEMINI, ("reported", 5, 5, None, None, 2)),
        (GEMINI.usage_metadata, ("reported", 5, 5, None, None, 2)),
        ({"promptTokenCount": 5, "totalTokenCount": 5}, ("reported", 5, 0, None, None, None)),
        (MESSAGE, ("reported", 10, 16, 1, None, None)),
        (MESSAGE.usage, ("reported", 10, 16, 1, None, None)),
        (CONVERSE, ("reported", 5, 6, None, None, None)),
        ({"metadata": {"usage": CONVERSE["usage"]}}, ("reported", 5, 6, None, None, None)),
        (CONVERSE["usage"], ("reported", 5, 6, None, None, None)),
        (
            {"tokens": {"input_tokens": 7.0, "output_tokens": 2.0}, "billed_units": None},
            ("reported", 7, 2, None, None, None),
        ),
    ],
)
def test_usage_is_found_in_objects_and_dicts_of_the_sdks(obj: object, expected: Figures) -> None:
    assert [expected] == [figures(call) for call in calls_of(obj)]


@pytest.mark.parametrize(
    "obj",
    [
        None,
        5,
        "usage",
        b"usage",
        [],
        {},
        object(),
        Broken(),
        Dumped(5),
        Dumped,
        {"usage": {"cpu": 1}},
        {"input_tokens": 2095},
        SimpleNamespace(usage=None),
        {"chunk": {"bytes": b"{"}},
    ],
)
def test_objects_without_usage_have_none(obj: object) -> None:
    assert usage_of(obj) is None


def test_an_object_that_contains_itself_ends() -> None:
    loop: dict[str, Any] = {"choices": [], "usage": chat_usage(1, 2)}
    loop["self"] = loop
    assert [("reported", 1, 2)] == [figures(call)[:3] for call in calls_of(loop)]


def test_long_lists_are_not_copied_whole() -> None:
    event = table_of({"vectors": [0.5] * 100_000})
    assert event is not None
    assert ITEMS_MAX == len(event["vectors"])


CHUNKS = [
    chat({"content": "Hello, "}),
    chat({"content": "wörld"}),
    chat({}, finish="stop"),
    chat(None, usage=chat_usage(3, 4)),
]


class Reports:
    def __init__(self) -> None:
        self.found: list[tuple[CallUsage, ...]] = []

    def __call__(self, calls: tuple[CallUsage, ...]) -> None:
        self.found.append(calls)

    def figures(self) -> list[list[tuple[str, int | None, int | None]]]:
        return [[figures(call)[:3] for call in calls] for calls in self.found]


async def stream_of(chunks: list[Any], fail_at: int | None = None) -> AsyncIterator[Any]:
    for at, chunk in enumerate(chunks):
        if at == fail_at:
            raise ConnectionResetError
        yield chunk


async def test_a_tap_passes_on_the_very_same_chunks_and_reports_once() -> None:
    reports = Reports()
    tap = StreamTap(stream_of(CHUNKS), report=reports)
    passed = [chunk async for chunk in tap]
    assert all(given is taken for given, taken in zip(CHUNKS, passed, strict=True))
    await tap.aclose()
    del tap
    gc.collect()
    assert [[("reported", 3, 4)]] == reports.figures()


def test_a_tap_takes_streams_that_are_not_asynchronous() -> None:
    reports = Reports()
    assert CHUNKS == list(StreamTap(CHUNKS, report=reports))
    assert [[("reported", 3, 4)]] == reports.figures()


def test_a_synchronous_stream_that_raises_is_reported() -> None:
    def stream() -> Iterator[Any]:
        yield from CHUNKS[:2]
        raise ConnectionResetError

    reports = Reports()
    tap = StreamTap(stream(), report=reports)
    with pytest.raises(ConnectionResetError):
        list(tap)
    assert [[("missing", None, None)]] == reports.figures()


async def test_a_stream_that_raises_is_reported_before_the_error_is_passed_on() -> None:
    reports = Reports()
    tap = StreamTap(stream_of(CHUNKS, fail_at=3), report=reports)
    with pytest.raises(ConnectionResetError):
        _ = [chunk async for chunk in tap]
    assert [[("missing", None, None)]] == reports.figures()
    assert ("ended_early",) == reports.found[0][0].notes
    assert len("Hello, wörld".encode()) // 4 == tap.estimated_output_tokens


async def test_a_cancelled_stream_is_reported() -> None:
    reports = Reports()
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[Any]:
        start = {"id": "m", "type": "message", "usage": {"input_tokens": 9, "output_tokens": 1}}
        yield {"type": "message_start", "message": start}
        reached.set()
        await asyncio.Event().wait()

    async def consume() -> None:
        async for _ in StreamTap(endless(), report=reports):
            pass

    task = asyncio.create_task(consume())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [[("partial", 9, 1)]] == reports.figures()


async def test_a_generator_that_is_closed_in_its_loop_reports_at_once() -> None:
    reports = Reports()

    async def answer() -> AsyncIterator[Any]:
        async for chunk in StreamTap(stream_of(CHUNKS), report=reports):
            yield chunk["choices"]

    body = answer()
    await anext(body)
    assert [] == reports.found
    await body.aclose()  # type: ignore[attr-defined]  # an async generator, declared as an iterator
    assert [[("missing", None, None)]] == reports.figures()


async def test_closing_a_tap_closes_its_stream() -> None:
    closed: list[str] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[Any]:
            return stream_of(CHUNKS)

        async def close(self) -> None:
            closed.append("stream")

    reports = Reports()
    tap = StreamTap(Stream(), report=reports)
    await anext(tap)
    await tap.aclose()
    assert ["stream"] == closed
    assert 1 == len(reports.found)
    await StreamTap([1, 2], report=reports).aclose()
    assert 2 == len(reports.found)


def test_the_objects_of_a_stream_come_to_the_same_as_its_bytes() -> None:
    seen: list[dict[str, Any]] = []

    def keep(value: dict[str, Any]) -> bytes:
        seen.append(value)
        return sse(value)

    events = anthropic_events(keep)
    reports = Reports()
    list(StreamTap([Model.model_validate(value) for value in seen], report=reports))
    reader = ResponseReader.open("auto", status=200, headers=[(b"content-type", b"text/event-stream")])
    assert reader is not None
    reader.feed(b"".join(events))
    assert [reader.close(complete=True)] == reports.found
    assert [ANTHROPIC_LAST] == [figures(call) for call in reports.found[0]]
    assert 1 == len(each_once([*reports.found[0], *reader.close(complete=True)]))


def test_boto3_streams_are_read() -> None:
    seen = anthropic_events(compact)
    reports = Reports()
    list(StreamTap([{"chunk": {"bytes": data}} for data in seen[:1]], report=reports))
    assert [("reported", 13, 1)] == [figures(call)[:3] for call in reports.found[0]]


def test_gemini_chunks_are_not_added_up() -> None:
    chunks = [
        gemini_chunk("a", promptTokenCount=2, candidatesTokenCount=1, totalTokenCount=3),
        gemini_chunk("b", "STOP", promptTokenCount=2, candidatesTokenCount=5, totalTokenCount=7),
    ]
    reports = Reports()
    list(StreamTap(chunks, report=reports))
    assert [[("reported", 2, 5)]] == reports.figures()


def test_a_stream_of_anything_else_reports_nothing() -> None:
    reports = Reports()
    list(StreamTap([1, "a", {"a": 1}, object()], report=reports))
    assert [()] == reports.found
