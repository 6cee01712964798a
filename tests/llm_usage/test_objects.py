"""Objects of SDKs and of providers that an app reports: pure tables."""

# Internals: pure tables of objects.

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, Final, NoReturn, cast

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from llm_payloads.recordings import (
    DETAILED,
    DETAILED_FIGURES,
    DONE,
    EVENTSTREAM_TYPE,
    MISSING,
    SSE_TYPE,
    Figures,
    anthropic_events,
    chat,
    chat_usage,
    compact,
    figures,
    frame,
    gemini_chunk,
    invoked,
    read,
    sse,
)
from llm_usage import StreamTap, calls_of, sum_calls
from llm_usage.batch_lines import read_batch_line
from llm_usage.call_usage import RANKS, Source, fill_estimates
from llm_usage.joined_reports import deduplicate_calls, join_reports, join_response
from llm_usage.plain_values import MEMBERS_MAX, body_of, table_of
from llm_usage.reported_calls import CALLS_MAX
from meterkit import CallUsage, usage_of

pytestmark = pytest.mark.anyio


class Model(BaseModel):
    """As the SDKs' models are: unknown fields are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Dumped:
    """An object of the kind that only dumps itself."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def to_dict(self) -> object:
        return self.value


class Slotted:
    """An object with slots; one was never set."""

    __slots__ = ("choices", "finish_reason", "usage")

    def __init__(self, usage: object) -> None:
        self.choices, self.usage = list[object](), usage


class Broken:
    def to_dict(self) -> object:
        raise RuntimeError("no")


@dataclass
class Plain:
    choices: list[Any]
    usage: dict[str, Any]


def models(value: Any) -> Any:
    """Objects of an SDK, as a document has them."""
    if isinstance(value, list):
        return [models(item) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    members = {name: models(inner) for name, inner in cast("dict[str, Any]", value).items()}
    return Model.model_validate(members)


COMPLETION, GEMINI, MESSAGE = map(
    models,
    yaml.safe_load_all("""
id: c1
object: chat.completion
model: m
choices: [{index: 0, finish_reason: stop}]
usage: {prompt_tokens: 1420, completion_tokens: 310, total_tokens: 1730,
        prompt_tokens_details: {cached_tokens: 1280, cache_write_tokens: 0},
        completion_tokens_details: {reasoning_tokens: 256}}
---
candidates: [{finish_reason: STOP}]
usage_metadata: {prompt_token_count: 5, candidates_token_count: 3, thoughts_token_count: 2,
                 total_token_count: 10}
model_version: g
---
{id: msg, type: message, model: c,
 usage: {input_tokens: 9, output_tokens: 16, cache_read_input_tokens: 1}}
"""),
)
CONVERSE: dict[str, Any] = {
    "ResponseMetadata": {"HTTPStatusCode": 200},
    "output": {"message": {}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11},
}


def test_usage_is_found_in_objects_and_dicts_of_the_sdks() -> None:
    converse: Figures = ("reported", 5, 6, None, None, None)
    cases: tuple[tuple[object, Figures], ...] = (
        (COMPLETION, DETAILED_FIGURES),
        (COMPLETION.usage, DETAILED_FIGURES),
        (DETAILED, DETAILED_FIGURES),
        (Dumped(COMPLETION.model_dump()), DETAILED_FIGURES),
        (Plain(choices=[], usage=chat_usage(3, 4)), ("reported", 3, 4, None, None, None)),
        (SimpleNamespace(choices=[], usage=COMPLETION.usage), DETAILED_FIGURES),
        (Slotted(COMPLETION.usage), DETAILED_FIGURES),
        (SimpleNamespace(data=COMPLETION), DETAILED_FIGURES),
        (chat({"content": "a"}, usage=chat_usage(3, 1)), ("partial", 3, 1, None, None, None)),
        ({"input_tokens": 3, "output_tokens": 4, "total_tokens": 9}, ("reported", 3, 6, None, None, 2)),
        (GEMINI, ("reported", 5, 5, None, None, 2)),
        (GEMINI.usage_metadata, ("reported", 5, 5, None, None, 2)),
        (MESSAGE, ("reported", 10, 16, 1, None, None)),
        (CONVERSE, converse),
        ({"metadata": {"usage": CONVERSE["usage"]}}, converse),
        (CONVERSE["usage"], converse),
    )
    for obj, expected in cases:
        assert [figures(call) for call in calls_of(obj)] == [expected], obj


def test_objects_without_usage_have_none() -> None:
    without: list[Any] = [None, "usage", object(), Broken(), Dumped(5), {"usage": {"cpu": 1}}]
    without += [{"input_tokens": 2095}, {"chunk": {"bytes": b"{"}}]
    assert [usage_of(obj) for obj in without] == [None] * 8


CHUNKS = [
    chat({"content": "Hello, "}),
    chat({"content": "wörld"}),
    chat({}, finish="stop"),
    chat(None, usage=chat_usage(3, 4)),
]


async def stream_of(chunks: list[Any], fail_at: int | None = None) -> AsyncIterator[Any]:
    for at, chunk in enumerate(chunks):
        if at == fail_at:
            raise ConnectionResetError
        yield chunk


async def test_a_tap_passes_on_the_very_same_chunks_and_reports_once() -> None:
    reports = list[tuple[CallUsage, ...]]()
    tap = StreamTap(stream_of(CHUNKS), report=reports.append)
    passed = [chunk async for chunk in tap]
    assert all(given is taken for given, taken in zip(CHUNKS, passed, strict=True))
    await tap.aclose()
    del tap
    gc.collect()
    ((call,),) = reports
    assert figures(call)[:3] == ("reported", 3, 4)


async def test_a_raising_stream_is_reported_before_its_error() -> None:
    reports = list[tuple[CallUsage, ...]]()
    tap = StreamTap(stream_of(CHUNKS, fail_at=3), report=reports.append)
    with pytest.raises(ConnectionResetError):
        _ = [chunk async for chunk in tap]
    ((call,),) = reports
    assert (figures(call), call.notes) == (MISSING, ("ended_early",))
    assert len("Hello, wörld".encode()) // 4 == tap.estimated_output_tokens


async def test_closing_a_tap_closes_its_stream() -> None:
    closed: list[str] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[Any]:
            return stream_of(CHUNKS)

        async def close(self) -> None:
            closed.append("stream")

    reports = list[tuple[CallUsage, ...]]()
    tap = StreamTap(Stream(), report=reports.append)
    await anext(tap)
    await tap.aclose()
    assert (closed, len(reports)) == (["stream"], 1)
    await StreamTap([1, 2], report=reports.append).aclose()
    assert len(reports) == 2


# Foreign objects: read at a bounded cost, and without running code of theirs.


WHOLE: dict[str, Any] = {"id": "c1", "object": "chat.completion", "choices": [], "usage": DETAILED}


class Touchy:
    """An object whose attributes all raise, except the one that it has."""

    def __init__(self, **more: Any) -> None:
        self.__dict__.update(more)

    @property
    def text(self) -> NoReturn:
        raise AssertionError("a property was read")

    def read(self) -> NoReturn:
        raise AssertionError("a method was called")

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked for")


class Liar:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Endless(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def found(obj: object) -> Any:
    usage = usage_of(obj)
    return None if usage is None else figures(usage)


def test_neither_properties_nor_methods_are_run() -> None:  # F-35
    assert DETAILED_FIGURES == found(Touchy(choices=[], usage=DETAILED))
    assert found(Touchy(other=1)) is None


def test_what_cannot_be_looked_at_says_nothing() -> None:  # F-35
    objects: list[Any] = [Liar(), Endless(a=1), Touchy(usage=Liar()), type, Liar, [], (), ((),)]
    for obj in objects:
        assert usage_of(obj) is None
    assert DETAILED_FIGURES == found(Touchy(choices=[], usage=DETAILED, other=Liar(), more=Endless(a=1)))


def graph(size: int) -> SimpleNamespace:
    """Objects that all know each other."""
    nodes = [SimpleNamespace() for _ in range(size)]
    for node in nodes:
        node.__dict__.update({f"n{at}": other for at, other in enumerate(nodes)})
    return nodes[0]


def test_objects_that_know_each_other_are_each_read_once() -> None:  # F-35
    began = time.process_time()
    assert usage_of(graph(20)) is None
    # It took 20 ** 8 steps before; a loaded machine may need the bound.
    assert time.process_time() - began < 0.5


def test_usage_is_found_before_a_large_object_is_cut_off() -> None:  # F-35
    tokens = [{"token": "a", "logprob": -1, "top": [{"token": "b"}] * 20} for _ in range(5_000)]
    large = {
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": {"content": tokens}}] * 100,
        "more": graph(40),
        "object": "chat.completion",
        "usage": DETAILED,
    }
    assert DETAILED_FIGURES == found(large)
    wide = table_of({f"n{at}": {"a": 1, "b": 2} for at in range(MEMBERS_MAX)})
    assert wide is not None
    assert sum(map(len, wide.values())) <= MEMBERS_MAX


def test_an_http_response_is_read_only_if_it_was_read() -> None:  # F-35
    request = httpx.Request("POST", "http://provider/v1/chat/completions")
    whole = httpx.Response(200, content=compact(WHOLE), request=request)
    assert DETAILED_FIGURES == found(whole)
    stream = b"".join([sse(chat({"content": "a"})), sse(chat(None, usage=chat_usage(3, 4))), DONE])
    assert ("reported", 3, 4) == found(httpx.Response(200, content=stream, request=request))[:3]
    unread = httpx.Response(200, stream=httpx.ByteStream(compact(WHOLE)), request=request)
    assert usage_of(unread) is None
    assert not hasattr(unread, "_content")
    assert body_of(SimpleNamespace(http_response=whole)) == compact(WHOLE)
    assert DETAILED_FIGURES == found(SimpleNamespace(http_response=whole, _options=Touchy()))


def test_a_body_may_be_given_itself() -> None:
    body = compact(WHOLE)
    assert [found(body), found(body.decode())] == [DETAILED_FIGURES] * 2


# Reports of one call from several sides: what only one of them knows is kept.


AT: Final = datetime(2026, 9, 1, tzinfo=UTC)
PLAIN: Final = CallUsage(input_tokens=100, output_tokens=50, model="m", response_id="a", source="reported")
RICH: Final = CallUsage(
    input_tokens=100,
    output_tokens=50,
    details={"input_audio_tokens": 7},
    context=(("service_tier", "flex"),),
    reported_cost_micros=Fraction(3),
    response_id="a",
    source="reported",
)


def test_two_reports_of_a_call_have_all_that_either_knows() -> None:
    expected = replace(RICH, model="m")
    for first, second in ((PLAIN, RICH), (RICH, PLAIN)):
        assert deduplicate_calls([first, second]) == [expected]
        assert join_reports([first], [second]) == [expected]
        assert join_reports([replace(first, response_id=None)], [second]) == [expected]
        assert len(join_reports([first], [replace(second, response_id="b")])) == 2


def test_of_what_both_know_the_better_report_counts() -> None:
    sound = {"input_audio_tokens": 9}
    better = replace(RICH, output_tokens=60, details=sound, reported_cost_micros=Fraction(4))
    fast = (("service_tier", "priority"), ("speed", "fast"))
    worse = replace(RICH, details={"input_audio_tokens": 7, "web_searches": 1}, context=fast)
    (joined,) = deduplicate_calls([worse, better])
    assert joined.details == {"input_audio_tokens": 9, "web_searches": 1}
    assert joined.context == (("service_tier", "flex"), ("speed", "fast"))
    assert joined == replace(better, details=joined.details, context=joined.context)
    estimated = replace(RICH, source="estimated", details={"input_image_tokens": 5})
    (joined,) = deduplicate_calls([estimated, PLAIN])
    # Figures of an estimate are not mixed with reported ones.
    assert (joined.details, joined.context, joined.source) == ({}, RICH.context, "reported")


def test_an_amount_comes_with_the_provider_that_reports_it() -> None:
    """F-210. An app's framework may keep the tokens of a gateway's answer, and not what it charges."""
    plain, paid = replace(PLAIN, provider="openai"), replace(RICH, provider="openrouter")
    for first, second in ((plain, paid), (paid, plain)):
        (joined,) = join_reports([first], [second])
        assert (joined.provider, joined.reported_cost_micros) == ("openrouter", Fraction(3))


def test_a_report_of_input_without_its_cache_is_the_same_call() -> None:
    """An app may put Anthropic's `input_tokens`, which are without the cache, into an answer of its own."""
    cached = replace(PLAIN, input_tokens=1_000, cached_input_tokens=600, cache_write_tokens=300)
    for own in (replace(PLAIN, response_id="b"), replace(PLAIN, response_id=None)):
        assert len(join_response([cached], [own])) == 1
        assert len(join_response([own], [cached])) == 1
    for other in (replace(PLAIN, input_tokens=500), replace(PLAIN, output_tokens=51)):
        assert len(join_response([cached], [replace(other, response_id="b")])) == 2


BY_INPUT: Final = CallUsage(output_tokens=0, source="estimated")


@pytest.mark.parametrize("entered", [None, 0])
def test_billed_input_is_no_cheaper_for_an_answers_cache(entered: int | None) -> None:
    own = replace(BY_INPUT, input_tokens=entered, billed_input_tokens=100)
    (joined,) = join_response([own], [replace(BY_INPUT, input_tokens=100, cached_input_tokens=100)])
    before, after = (replace(call, model="gpt-5", provider="openai").cost(AT) for call in (own, joined))
    assert before is not None
    assert after is not None
    assert after >= before


FIGURES: Final = st.none() | st.integers(0, 3)


@st.composite
def reports(draw: st.DrawFn) -> CallUsage:
    entered, left = draw(FIGURES), draw(FIGURES)
    named = draw(st.sampled_from([None, "a", "b"]))
    source: Source = draw(st.sampled_from(sorted(RANKS)))
    return CallUsage(
        input_tokens=entered,
        output_tokens=left,
        cached_input_tokens=None if entered is None else draw(st.none() | st.integers(0, entered)),
        billed_input_tokens=draw(FIGURES),
        reported_cost_micros=draw(st.none() | st.just(Fraction(0))),
        provider=draw(st.sampled_from([None, "openai", "openrouter"])),
        response_id=named,
        outlives=draw(st.booleans()),
        source=source,
    )


@given(
    own=st.lists(reports(), max_size=3, unique_by=lambda call: call.response_id or object()), read=reports()
)
def test_no_answer_takes_away_from_what_is_reported(own: list[CallUsage], read: CallUsage) -> None:
    """Under an id of the customer's own, or none, it adds figures, and leaves what has a price as it is."""
    forged = replace(read, response_id=read.response_id and "forged")
    for answer in ([forged], [forged, replace(forged, input_tokens=1, response_id=None)], [read]):
        joined = join_response(own, answer)
        for before, after in zip(own, joined, strict=False):
            figures = before.quantities()
            assert all(after.quantities()[name] >= count for name, count in figures.items())
            if answer == [read]:
                continue
            kept = (
                "model",
                "provider",
                "context",
                "reported_cost_micros",
                "response_id",
                "outlives",
                "source",
            )
            assert all(getattr(before, name) == getattr(after, name) for name in kept)
            priced = [replace(call, model="gpt-5", provider="openai").cost(AT) for call in (before, after)]
            assert priced[0] is None or (priced[1] is not None and priced[1] >= priced[0])


def test_a_sum_is_no_call_though_some_calls_were_seen() -> None:
    one, two = PLAIN, replace(PLAIN, input_tokens=30, response_id="b", details={"input_audio_tokens": 2})
    total = replace(sum_calls([one, two]), response_id=None)
    assert total.notes == ("summed",)
    assert join_reports([one, two], [total]) == [one, two]
    assert join_reports([total], [one, two]) == [one, two]
    assert join_reports([one, two], [one, total]) == [two, one]
    other = replace(total, details={"input_audio_tokens": 3})
    assert join_reports([one, two], [other]) == [one, two, other]


def test_a_batch_with_one_usage_is_a_sum_and_each_line_a_call() -> None:
    """F-214"""
    usage = {"input_tokens": 300_000, "output_tokens": 2000, "total_tokens": 302_000}
    batch = {"id": "batch_1", "object": "batch", "model": "gpt-5.4", "status": "completed", "usage": usage}
    (call,) = calls_of(batch)
    assert "summed" in call.notes
    (alone,) = calls_of({**batch, "object": "response"})
    priced, dearer = call.cost(AT), alone.cost(AT)
    # 2.50 and 15 dollars a million up to 272,000 tokens of input, 5.00 and 22.50 beyond.
    assert (priced, dearer) == (300_000 * Fraction(5, 2) + 2000 * 15, 300_000 * 5 + 2000 * Fraction(45, 2))
    half = [replace(alone, input_tokens=150_000, output_tokens=1000, response_id=name) for name in "ab"]
    assert sum_calls(half).cost(AT) == sum(one.cost(AT) or 0 for one in half) == priced


def stream(*events: bytes, kind: str = SSE_TYPE) -> list[tuple[str, int | None, int | None]]:
    return [figures(call)[:3] for call in read(*events, kind=kind)]


def completion(identity: str, prompt: int, tokens: int, *, alone: bool = True) -> bytes:
    chunk = chat(None if alone else {"content": "x"}, finish=None if alone else "stop")
    return sse({**chunk, "id": identity, "usage": chat_usage(prompt, tokens)})


def test_a_call_that_comes_back_by_its_id_is_not_another_call() -> None:
    found = stream(completion("a", 10, 1), completion("b", 20, 2), completion("a", 10, 5))
    assert found == [("reported", 10, 5), ("reported", 20, 2)]


def test_long_ids_that_begin_alike_are_of_two_calls() -> None:
    first, second = ("resp_" + "x" * 400 + name for name in "ab")
    found = stream(completion(first, 10, 1), completion(second, 20, 2), completion(first, 10, 5))
    assert found == [("reported", 10, 5), ("reported", 20, 2)]
    named = [call.response_id for call in read(completion(first, 1, 1), kind=SSE_TYPE)]
    assert [len(name or "") for name in named] == [128 + 1 + 64]


def embeddings(tokens: int, size: int = 1) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": [{"object": "embedding", "embedding": [0.1] * size}], "usage": usage}


def answer(tokens: int) -> dict[str, Any]:
    choices = [{"message": {"content": ""}, "finish_reason": "stop"}]
    return {"object": "chat.completion", "choices": choices, "usage": chat_usage(tokens, 0)}


def drawing(tokens: int) -> dict[str, Any]:
    usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
    return {"type": "image_generation.completed", "b64_json": "AAAA", "usage": usage}


def titan(tokens: int) -> dict[str, Any]:
    return {"embedding": [0.1], "inputTextTokenCount": tokens}


def gemini(tokens: int, left: int = 1) -> dict[str, Any]:
    usage = {"promptTokenCount": tokens, "candidatesTokenCount": left, "totalTokenCount": tokens + left}
    return {**gemini_chunk("x" * 8, "STOP"), "responseId": None, "usageMetadata": usage}


@pytest.mark.parametrize("document", [embeddings, answer, drawing, titan, gemini])
def test_answers_without_an_id_are_calls_of_their_own(document: Callable[[int], dict[str, Any]]) -> None:
    several = [document(10), document(20), document(20)]
    lines = b"\n".join(map(compact, several))
    for calls in (stream(*map(sse, several)), read(compact(several)), calls_of(lines)):
        assert [call[1] if isinstance(call, tuple) else call.input_tokens for call in calls] == [10, 20, 20]


def test_large_answers_without_an_id_are_calls_of_their_own() -> None:
    calls = read(compact([embeddings(10, 5_000), embeddings(20, 5_000)]))
    assert [call.input_tokens for call in calls] == [10, 20]


def test_figures_that_grow_with_each_ended_chunk_are_one_call() -> None:
    assert stream(*(sse(gemini(10, left)) for left in (1, 2, 3))) == [("reported", 10, 3)]


def test_chunks_that_each_have_an_id_of_their_own_are_one_call() -> None:
    chunks = [sse({**chat({"content": "x"}, usage=chat_usage(7, at)), "id": f"id-{at}"}) for at in range(5)]
    last = sse({**chat({}, finish="stop", usage=chat_usage(7, 5)), "id": "id-5"})
    repeated = sse({**chat(None, usage=chat_usage(7, 5)), "id": "id-6"})
    assert [("reported", 7, 5)] == stream(*chunks, last, repeated, DONE)


def test_another_id_and_figures_at_the_end_are_another_call() -> None:
    found = stream(completion("a", 7, 5, alone=False), completion("b", 8, 2, alone=False))
    assert found == [("reported", 7, 5), ("reported", 8, 2)]


def test_what_follows_the_end_of_a_stream_is_another_call() -> None:
    nameless = {**chat(None, usage=chat_usage(1, 2)), "id": None}
    assert [("reported", 1, 2), ("reported", 1, 2)] == stream(sse(nameless), DONE, sse(nameless), DONE)
    assert [("reported", 1, 2)] == stream(sse(nameless), sse(nameless), DONE)


def test_an_error_in_the_middle_leaves_the_call_partial() -> None:
    events = anthropic_events(lambda value: sse(value, event=value["type"]))[:5]
    overloaded = {"type": "overloaded_error", "message": "Overloaded"}
    error = sse({"type": "error", "error": overloaded}, event="error")
    assert [("reported", 13, 10)] == stream(*events)
    assert [("partial", 13, 10)] == stream(*events, error)


def test_an_exception_in_the_middle_leaves_the_call_partial() -> None:
    events = anthropic_events(invoked)[:5]
    broken = frame(b'{"message":"slow down"}', exception_type="throttlingException", message_type="exception")
    assert [("partial", 13, 10)] == stream(*events, broken, kind=EVENTSTREAM_TYPE)


def test_calls_beyond_the_bound_are_not_counted_and_that_is_said() -> None:
    calls = read(*(completion(f"c{at}", 1, 1) for at in range(CALLS_MAX + 5)), kind=SSE_TYPE)
    assert CALLS_MAX == len(calls)
    assert ("too_many_calls",) == calls[0].notes


def call(source: Source = "reported", identity: str | None = "r1", output: int | None = 5) -> CallUsage:
    return CallUsage(input_tokens=1, output_tokens=output, response_id=identity, source=source)


def test_of_two_sides_the_better_source_stays() -> None:
    pairs: tuple[tuple[Source, Source], ...] = (
        ("missing", "reported"),
        ("estimated", "partial"),
        ("reported", "partial"),
    )
    found = [deduplicate_calls([call(first), call(second)]) for first, second in pairs]
    assert [[one.source for one in calls] for calls in found] == [["reported"], ["partial"], ["reported"]]


def test_reports_of_a_call_count_once_without_an_id_each() -> None:
    assert deduplicate_calls([call(), call(identity="r2"), call()]) == [call(), call(identity="r2")]
    assert [found.output_tokens for found in deduplicate_calls([call(output=5), call(output=6)])] == [6]
    for identity in (None, ""):
        assert len(deduplicate_calls([call(identity=identity)] * 2)) == 2


def test_estimates_fill_only_what_is_unknown() -> None:
    calls = fill_estimates([call("missing", output=None)], input_tokens=lambda: 70, output_tokens=30)
    assert [("estimated", 1, 30)] == [figures(guessed)[:3] for guessed in calls]


def test_the_edge_does_not_load_the_readers() -> None:
    program = "import sys, meterkit.asgi; print('llm_usage.response' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False" == ran.stdout.strip()


def test_other_objects_are_no_lines() -> None:
    objects: tuple[object, ...] = (None, b"{", {"custom_id": "a"}, {"response": {}})
    assert [read_batch_line(obj) for obj in objects] == [None] * 4
