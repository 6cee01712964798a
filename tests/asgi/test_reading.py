"""Reading of responses behind the app: how long a step takes, and what is made of the rest."""

# Internals: no other seam counts what is done between two pauses.

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from time import thread_time
from typing import Any

import pytest

from drivers.app import http_scope, no_more
from drivers.sampled import pairs
from llm_payloads.recordings import (
    EVENTSTREAM_TYPE,
    JSON_TYPE,
    NDJSON_TYPE,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    figures,
    invoked,
    sse,
)
from llm_usage import CallUsage
from meterkit.asgi.buffered_body import KeptRequest
from meterkit.asgi.response_usage import ResponseUsage
from meterkit.catalog import Route

pytestmark = pytest.mark.anyio

# Reading behind the app: the rest of a response without a client.


CALLS_MAX = 100_000
SAID = "some words "
OPENAI = Route(match="*", method=None, path=None, usage="openai")


COMPLAINTS: list[str] = []


def opened(
    kind: str, coding: bytes = b"", route: Route = OPENAI, complain: Callable[[str], None] = COMPLAINTS.append
) -> ResponseUsage:
    reading = ResponseUsage(route, KeptRequest(http_scope("/"), no_more), complain=complain)
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    reading.begin({"type": "http.response.start", "status": 200, "headers": headers})
    return reading


@contextmanager
def calls_of_functions() -> Generator[Callable[[], float]]:
    found = 0

    def called(_: Any, event: str, __: Any) -> None:
        nonlocal found
        found += event in {"call", "c_call"}

    sys.setprofile(called)
    try:
        yield lambda: found
    finally:
        sys.setprofile(None)


def closed(reading: ResponseUsage) -> CallUsage:
    """The only call, without much work."""
    with calls_of_functions() as found:
        (call,) = reading.close(complete=False, gone=True)
        assert found() <= CALLS_MAX
    return call


def document(choices: int) -> bytes:
    """An answer that takes a while, with its usage at the end."""
    inner = [{"index": 0, "message": {"role": "assistant", "content": SAID}}] * choices
    return compact({**chat(None), "choices": inner, "usage": chat_usage(3, 4)})


async def test_whoever_cancels_waits_until_what_was_sent_is_read() -> None:
    reading = opened(JSON_TYPE)
    assert reading.read(document(5_000))
    task = asyncio.create_task(reading.catch_up())
    await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    (call,) = reading.close(complete=False, gone=True)
    assert ("partial", 3, 4) == figures(call)[:3]


async def test_whoever_cancels_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.response_usage._PAUSES_MAX", 3)
    reading = opened(JSON_TYPE)
    reading.read(document(50_000))
    task = asyncio.create_task(reading.catch_up())
    await asyncio.sleep(0)
    pauses = 0
    while not task.done():
        task.cancel()
        pauses += 1
        await asyncio.sleep(0)
    assert task.cancelled()
    assert pauses <= 5
    (call,) = reading.close(complete=False, gone=True)
    assert "estimated" == call.source


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (JSON_TYPE, document(100_000), 100_000),
        (SSE_TYPE, sse(chat({"content": SAID})) * 100_000, 100_000),
        (SSE_TYPE, sse(chat({"content": SAID * 500_000})), 500_000),
    ],
    ids=["document", "events", "one event"],
)
async def test_with_nobody_waiting_the_rest_is_extrapolated(kind: str, body: bytes, words: int) -> None:
    reading = opened(kind)
    assert reading.read(body)
    call = closed(reading)
    assert "estimated" == call.source
    expected = words * len(SAID) // 4
    assert 0.9 * expected <= (call.output_tokens or 0) <= 1.05 * expected


async def test_messages_sent_while_others_are_read_keep_order() -> None:
    reading = opened(SSE_TYPE)
    assert reading.read(sse(chat({"content": "x" * 100_000})))
    assert reading.read(sse(chat(None, usage=chat_usage(3, 4))))
    await reading.catch_up()
    (call,) = reading.close(complete=True, gone=False)
    assert ("reported", 3, 4) == figures(call)[:3]


async def test_with_nobody_waiting_a_short_rest_is_read() -> None:
    reading = opened(JSON_TYPE)
    assert reading.read(document(270))
    (call,) = reading.close(complete=False, gone=True)
    assert ("partial", 3, 4) == figures(call)[:3]


async def test_where_nobody_can_wait_no_piece_is_read_on_and_on() -> None:
    coded = gzip.compress(document(150_000))
    reading = opened(JSON_TYPE, b"gzip")
    assert reading.read(coded)
    call = closed(reading)
    assert "estimated" == call.source
    assert 0 < (call.output_tokens or 0) < 150_000 * len(SAID) // 4


# However an answer is made, reading it never holds the event loop for long.


BODY_BYTES = 40_000
EVENT_BYTES = 16_200
PIECE_BYTES_MAX = 16 << 10
# What 5 ms are enough for, several times over.
PAUSES_CALLS_MAX = 3_000
STEP_S_MAX = 0.005


def many(part: bytes, size: int = BODY_BYTES) -> bytes:
    return part * (size // len(part))


def items(part: bytes, size: int = BODY_BYTES) -> bytes:
    return many(part + b",", size)[:-1]


def choices(inner: bytes) -> bytes:
    return b'{"object":"chat.completion","choices":[' + inner + b'],"usage":{"prompt_tokens":3}}'


def events(inner: bytes, end: bytes = b"]}") -> bytes:
    """Events just small enough to be kept."""
    return many(b'data: {"choices":[' + items(inner, EVENT_BYTES) + end + b"\n\n")


ITERATIONS = b'data: {"type":"message_delta","usage":{"output_tokens":1,"iterations":['
TOKEN_FIGURES = items(b'{"a_tokens":0,"max_tokens":1}', EVENT_BYTES // 2)
CASES: dict[str, tuple[str, bytes, bytes]] = {
    "tiny choices": (JSON_TYPE, choices(items(b'{"index":0,"message":{"content":"a"}}')), b""),
    "deep choices": (JSON_TYPE, choices(items(b"[" * 12 + b'"a"' + b"]" * 12)), b""),
    "brackets": (JSON_TYPE, b'{"x":[' + items(b"[" * 400 + b"]" * 400) + b"]}", b""),
    "open brackets": (JSON_TYPE, b'{"x":' + b"[" * 900 + items(b"[[[[[[[[[[]],1"), b""),
    "objects without an array": (JSON_TYPE, many(b"{}", 20_000), b""),
    "a line of objects": (NDJSON_TYPE, many(b"{}", 20_000) + b"\n", b""),
    "torn lines": (NDJSON_TYPE, many(b'{"message":{"content":"a"}}' * 580 + b"x\n"), b""),
    "comments": (SSE_TYPE, many(b":\n\n"), b""),
    "one event's lines": (SSE_TYPE, b'data: {"a":' + many(b"\ndata:"), b""),
    "events without blank lines": (SSE_TYPE, many(b"data:{}\n" * 2_000 + b"\n"), b""),
    "dense events": (SSE_TYPE, events(b'{"text":"a"}'), b""),
    "iterations": (SSE_TYPE, many(ITERATIONS + items(b"{}", EVENT_BYTES) + b"]}}\n\n"), b""),
    "token figures": (JSON_TYPE, b'{"x":[' + TOKEN_FIGURES + b"]}", b""),
    "a large frame": (EVENTSTREAM_TYPE, invoked({"content": [{"text": "a"}] * (BODY_BYTES // 14)}), b""),
    "compressed choices": (JSON_TYPE, gzip.compress(choices(items(b'{"text":"a"}'))), b"gzip"),
    "nothing compressed": (JSON_TYPE, many(gzip.compress(b"")), b"gzip"),
    "nothing compressed twice": (JSON_TYPE, gzip.compress(many(gzip.compress(b""), 300_000)), b"gzip, gzip"),
}


def longest_step(
    reading: ResponseUsage, body: bytes, piece_bytes: int, measure: Callable[[], float]
) -> float:
    """Read a body as the middleware does; the most that is done without others being let run."""
    most = 0.0

    def step(work: Callable[[], Any]) -> Any:
        nonlocal most
        before = measure()
        done = work()
        most = max(most, measure() - before)
        return done

    for at in range(0, len(body), piece_bytes):
        is_last = at + piece_bytes >= len(body)
        if step(partial(reading.read, body[at : at + piece_bytes])) or is_last:
            catching_up = partial(next_of, reading.catch_up(complete=is_last))
            while step(catching_up):
                pass
    step(partial(reading.close, complete=True, gone=False))
    return most


def next_of(coroutine: Any) -> bool:
    try:
        coroutine.send(None)
    except StopIteration:
        return False
    return True


USAGE = Route(match="*", method=None, path=None, usage="auto")
# Its last names are in nearly every event above.
USED = {"words": ("a", "choices.text", "x.content")}
FIELDS = Route(match="*", method=None, path=None, usage="fields", usage_fields=USED)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which it is always time for a pause."""
    ticks: Iterator[int] = count()
    monkeypatch.setattr("meterkit.asgi.response_usage.monotonic", lambda: float(next(ticks)))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("route", "piece_bytes", "name"), pairs([USAGE, FIELDS], [PIECE_BYTES_MAX, 1 << 20], [*CASES])
)
def test_whatever_an_answer_is_made_of_no_step_is_long(route: Route, name: str, piece_bytes: int) -> None:
    """By the number of functions that are called, which no other load on the machine changes."""
    kind, body, coding = CASES[name]
    # A process compiles its patterns once: that is no part of reading a response.
    longest_step(opened(kind, coding, route), body, piece_bytes, thread_time)
    with calls_of_functions() as measure:
        most = longest_step(opened(kind, coding, route), body, piece_bytes, measure)
    assert 0 < most <= PAUSES_CALLS_MAX


@pytest.mark.whole
@pytest.mark.parametrize("name", CASES)
def test_no_step_takes_five_milliseconds(name: str) -> None:
    """Of this thread's own time, and by the best of some runs."""
    kind, body, coding = CASES[name]
    best = float("inf")
    for _ in range(5):
        best = min(best, longest_step(opened(kind, coding, USAGE), body, 1 << 20, thread_time))
        if best <= STEP_S_MAX:
            break
    assert best <= STEP_S_MAX


async def test_an_answer_that_was_cut_is_not_told_to_lack_a_figure() -> None:
    told: list[str] = []
    route = replace(FIELDS, usage_fields={"searches": ("used",)})
    for gone, complete in ((True, False), (False, False), (False, True)):
        reading = opened(JSON_TYPE, route=route, complain=told.append)
        reading.read(b'{"text": 1}')
        await reading.catch_up(complete=complete)
        reading.close(complete=complete, gone=gone)
        assert len(told) == complete
