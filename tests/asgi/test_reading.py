"""Reading behind the app: what is made of a response that nobody waits for any more."""

from __future__ import annotations

import asyncio
import gzip
import sys
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import http_scope, no_more
from meterkit.asgi.kept_request import KeptRequest
from meterkit.asgi.reading import Reading
from meterkit.catalog import Route
from tokens.recordings import JSON_TYPE, SSE_TYPE, chat, chat_usage, compact, figures, sse

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

pytestmark = pytest.mark.anyio

CALLS_MAX = 100_000
SAID = "some words "


def opened(kind: str, *more: tuple[bytes, bytes]) -> Reading:
    reading = Reading(
        Route(match="*", method=None, path=None, usage="openai"),
        KeptRequest(http_scope("/"), no_more),
        complain=pytest.fail,
    )
    headers = [(b"content-type", kind.encode()), *more]
    reading.begin({"type": "http.response.start", "status": 200, "headers": headers})
    return reading


def closed(reading: Reading) -> CallUsage:
    """The only call, without much work."""
    found = 0

    def called(_: Any, event: str, __: Any) -> None:
        nonlocal found
        found += event in {"call", "c_call"}

    sys.setprofile(called)
    try:
        (call,) = reading.close(complete=False, gone=True)
    finally:
        sys.setprofile(None)
    assert found <= CALLS_MAX
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
async def test_where_nobody_can_wait_the_rest_is_taken_to_be_like_its_beginning(
    kind: str, body: bytes, words: int
) -> None:
    reading = opened(kind)
    assert reading.read(body)
    call = closed(reading)
    assert "estimated" == call.source
    expected = words * len(SAID) // 4
    assert 0.9 * expected <= (call.output_tokens or 0) <= 1.05 * expected


async def test_messages_that_are_sent_while_others_are_read_stay_in_their_order() -> None:
    reading = opened(SSE_TYPE)
    assert reading.read(sse(chat({"content": "x" * 100_000})))
    assert reading.read(sse(chat(None, usage=chat_usage(3, 4))))
    await reading.catch_up()
    (call,) = reading.close(complete=True, gone=False)
    assert ("reported", 3, 4) == figures(call)[:3]


async def test_where_nobody_can_wait_what_is_soon_read_is_read_to_its_end() -> None:
    reading = opened(JSON_TYPE)
    assert reading.read(document(270))
    (call,) = reading.close(complete=False, gone=True)
    assert ("partial", 3, 4) == figures(call)[:3]


async def test_where_nobody_can_wait_no_piece_is_read_on_and_on() -> None:
    coded = gzip.compress(document(400_000))
    reading = opened(JSON_TYPE, (b"content-encoding", b"gzip"))
    assert reading.read(coded)
    call = closed(reading)
    assert "estimated" == call.source
    assert 0 < (call.output_tokens or 0) < 400_000 * len(SAID) // 4
