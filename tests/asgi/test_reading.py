"""Reading of responses behind the app: how long a step takes, and what is made of the rest."""

# Internals: no other seam counts what is done between two pauses.

from __future__ import annotations

import asyncio
import gzip
import sys
from contextlib import contextmanager
from functools import partial
from itertools import count
from time import thread_time
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import http_scope, no_more
from drivers.sampled import pairs
from meterkit.asgi.kept_request import KeptRequest
from meterkit.asgi.reading import Reading
from meterkit.catalog import Route
from tokens.recordings import (
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

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from meterkit.tokens.call_usage import CallUsage

pytestmark = pytest.mark.anyio

# Reading behind the app: the rest of a response without a client.


CALLS_MAX = 100_000
SAID = "some words "
OPENAI = Route(match="*", method=None, path=None, usage="openai")


def opened(kind: str, coding: bytes = b"", route: Route = OPENAI) -> Reading:
    complaints: list[str] = []
    reading = Reading(route, KeptRequest(http_scope("/"), no_more), complain=complaints.append)
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    reading.begin({"type": "http.response.start", "status": 200, "headers": headers})
    return reading


@contextmanager
def calls_of_functions() -> Generator[Callable[[], float]]:
    """Count the functions that are called."""
    found = 0

    def called(_: Any, event: str, __: Any) -> None:
        nonlocal found
        found += event in {"call", "c_call"}

    sys.setprofile(called)
    try:
        yield lambda: found
    finally:
        sys.setprofile(None)


def closed(reading: Reading) -> CallUsage:
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


async def test_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.reading._PAUSES_MAX", 3)
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


BODIES: dict[str, tuple[str, bytes]] = {
    "tiny choices": (JSON_TYPE, choices(items(b'{"index":0,"message":{"content":"a"}}'))),
    "deep choices": (JSON_TYPE, choices(items(b"[" * 12 + b'"a"' + b"]" * 12))),
    "brackets": (JSON_TYPE, b'{"x":[' + items(b"[" * 400 + b"]" * 400) + b"]}"),
    "open brackets": (JSON_TYPE, b'{"x":' + b"[" * 900 + items(b"[[[[[[[[[[]],1")),
    "objects without an array": (JSON_TYPE, many(b"{}", 20_000)),
    "a line of objects": (NDJSON_TYPE, many(b"{}", 20_000) + b"\n"),
    "torn lines": (NDJSON_TYPE, many(b'{"message":{"content":"a"}}' * 580 + b"x\n")),
    "comments": (SSE_TYPE, many(b":\n\n")),
    "one event's lines": (SSE_TYPE, b'data: {"a":' + many(b"\ndata:")),
    "events without blank lines": (SSE_TYPE, many(b"data:{}\n" * 2_000 + b"\n")),
    "dense events": (SSE_TYPE, events(b'{"text":"a"}')),
    "iterations": (
        SSE_TYPE,
        many(
            b'data: {"type":"message_delta","usage":{"output_tokens":1,"iterations":['
            + items(b"{}", EVENT_BYTES)
            + b"]}}\n\n"
        ),
    ),
    "token figures": (
        JSON_TYPE,
        items(b'{"a_tokens":0,"max_tokens":1}', EVENT_BYTES // 2).join((b'{"x":[', b"]}")),
    ),
    "a large frame": (EVENTSTREAM_TYPE, invoked({"content": [{"text": "a"}] * (BODY_BYTES // 14)})),
}
CODED: dict[str, tuple[str, bytes, bytes]] = {
    "compressed choices": (JSON_TYPE, gzip.compress(choices(items(b'{"text":"a"}'))), b"gzip"),
    "nothing compressed": (JSON_TYPE, many(gzip.compress(b"")), b"gzip"),
    "nothing compressed twice": (
        JSON_TYPE,
        gzip.compress(many(gzip.compress(b""), 300_000)),
        b"gzip, gzip",
    ),
}


class Steps:
    """Reads a body as the middleware does, and measures what is done without others being let run.

    Args:
        measure: what a step is measured by; the difference counts.
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure = measure
        self.most = 0.0

    def read(self, reading: Reading, body: bytes, piece_bytes: int) -> None:
        for at in range(0, len(body), piece_bytes):
            piece = body[at : at + piece_bytes]
            is_last = at + piece_bytes >= len(body)
            if self._step(partial(reading.read, piece)) or is_last:
                step = partial(next_of, reading.catch_up(complete=is_last))
                while self._step(step):
                    pass
        self._step(partial(reading.close, complete=True, gone=False))

    def _step(self, step: Callable[[], Any]) -> Any:
        before = self._measure()
        done = step()
        self.most = max(self.most, self._measure() - before)
        return done


def next_of(coroutine: Any) -> bool:
    try:
        coroutine.send(None)
    except StopIteration:
        return False
    return True


USAGE = Route(match="*", method=None, path=None, usage="auto")
# Its last names are in nearly every event above.
FIELDS = Route(
    match="*",
    method=None,
    path=None,
    usage="fields",
    usage_fields={"words": ("a", "choices.text", "x.content")},
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which it is always time for a pause."""
    ticks: Iterator[int] = count()
    monkeypatch.setattr("meterkit.asgi.reading.monotonic", lambda: float(next(ticks)))


CASES = {**{name: (*case, b"") for name, case in BODIES.items()}, **CODED}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("route", "piece_bytes", "name"), pairs([USAGE, FIELDS], [PIECE_BYTES_MAX, 1 << 20], [*CASES])
)
def test_whatever_an_answer_is_made_of_no_step_is_long(route: Route, name: str, piece_bytes: int) -> None:
    """By the number of functions that are called, which no other load on the machine changes."""
    kind, body, coding = CASES[name]
    with calls_of_functions() as measure:
        steps = Steps(measure)
        steps.read(opened(kind, coding, route), body, piece_bytes)
    assert 0 < steps.most <= PAUSES_CALLS_MAX


@pytest.mark.whole
@pytest.mark.parametrize("name", CASES)
def test_no_step_takes_five_milliseconds(name: str) -> None:
    """Of this thread's own time, and by the best of some runs."""
    kind, body, coding = CASES[name]
    best = float("inf")
    for _ in range(5):
        steps = Steps(thread_time)
        steps.read(opened(kind, coding, USAGE), body, 1 << 20)
        best = min(best, steps.most)
        if best <= STEP_S_MAX:
            break
    assert best <= STEP_S_MAX


async def test_an_answer_that_was_cut_is_not_told_to_lack_a_figure() -> None:
    told: list[str] = []
    route = Route(match="*", method=None, path=None, usage="fields", usage_fields={"searches": ("used",)})
    for gone, complete in ((True, False), (False, False), (False, True)):
        reading = Reading(route, KeptRequest(http_scope("/"), no_more), complain=told.append)
        reading.begin({"type": "http.response.start", "status": 200, "headers": []})
        reading.read(b'{"text": 1}')
        await reading.catch_up(complete=complete)
        reading.close(complete=complete, gone=gone)
        assert len(told) == complete
