"""Token usage read off responses: what is counted of which answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from drivers.app import http_scope, no_more
from drivers.llm_apps import (
    METERS,
    PLANS,
    PROMPT,
    amounts,
    answering,
    metered,
    openai_stream,
    replaying,
    tokens,
)
from tokens.recordings import (
    DETAILED,
    DONE,
    JSON_TYPE,
    RECORDINGS,
    SSE_TYPE,
    chat,
    chat_usage,
    compact,
    sse,
)

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

BY_NAME = {recording.name: recording for recording in RECORDINGS}
WHOLE = compact({"id": "c1", "object": "chat.completion", "model": "m", "choices": [], "usage": DETAILED})


async def rated(at: Served) -> int:
    """How many output tokens the hourly rate has seen."""
    return next(rate["used"] for rate in await at.kit.rates("acme") if rate["meter"] == "output_tokens")


async def ask(at: Served, path: str = "/auto") -> bytes:
    return (await at.client.post(path, content=PROMPT)).content


@pytest.mark.parametrize("name", BY_NAME)
async def test_each_recorded_answer_is_counted_and_passed_on(name: str, store_url: str) -> None:
    recording = BY_NAME[name]
    expected = amounts(recording.expected)
    async with metered(replaying(recording), store_url) as at:
        assert recording.body == await ask(at, f"/{recording.usage}")
        assert expected == await tokens(at.kit, *METERS)
        assert expected[1] == await rated(at)
        if recording.auto:
            await ask(at, "/auto")
            assert tuple(2 * value for value in expected) == await tokens(at.kit, *METERS)
        assert (1 + recording.auto, 0) == await at.counted()


async def ignore(message: Message) -> None:
    del message


@pytest.mark.parametrize(
    ("chunks", "kind", "coding", "cause"),
    [
        ([*openai_stream(""), sse(chat({}, finish="stop")), DONE], SSE_TYPE, None, "include_usage"),
        ([b"{" * 90], JSON_TYPE, None, "no JSON"),
        ([WHOLE], JSON_TYPE, "gzip", "compressed in another way"),
    ],
    ids=["no usage", "no JSON", "no gzip"],
)
async def test_an_answer_without_usage_and_text_is_warned_of_once(
    chunks: list[bytes],
    kind: str,
    coding: str | None,
    cause: str,
    store_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with metered(answering(chunks, kind, coding=coding), store_url) as at:
        for _ in range(3):
            await at.app(http_scope("/openai"), no_more, ignore)
        assert (0, 0) == await tokens(at.kit)
        assert (3, 0) == await at.counted()
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert record.getMessage().startswith("/openai: token usage of a response is missing")
    assert cause in record.getMessage()


@pytest.mark.parametrize(
    ("path", "status", "recorded", "seen"),
    [("/errors", 200, (0, 0), 310), ("/auto", 400, (0, 0), 0), ("/attempt", 500, (0, 0), 0)],
)
async def test_billing_goes_by_outcome_and_rates_by_usage(
    path: str, status: int, recorded: tuple[int, int], seen: int, store_url: str
) -> None:
    async with metered(answering([WHOLE], JSON_TYPE, status=status), store_url) as at:
        await ask(at, path)
        assert recorded == await tokens(at.kit)
        assert seen == await rated(at)


@pytest.mark.parametrize(
    ("sources", "whole", "cut"),
    [("[reported]", (1420, 310), (0, 0)), ("[partial, estimated]", (0, 0), (7, 2))],
)
async def test_sources_that_are_not_listed_are_rated_and_not_billed(
    sources: str, whole: tuple[int, int], cut: tuple[int, int], store_url: str
) -> None:
    plans = PLANS + f"billing: {{sources: {sources}}}\n"
    async with metered(answering([WHOLE], JSON_TYPE), store_url, plans=plans) as at:
        await ask(at)
        assert whole == await tokens(at.kit)
        assert 310 == await rated(at)
    chunk = sse(chat({"content": "x"}, usage=chat_usage(7, 2)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async with metered(app, store_url, plans=plans) as at:
        await at.app(http_scope("/auto", method="POST"), no_more, ignore)
        assert cut == await tokens(at.kit)
        assert 2 == await rated(at)


async def test_only_declared_counters_are_fed(store_url: str) -> None:
    plans = PLANS.replace("  cached_input_tokens: {unit: token}\n", "").replace(
        "total_tokens: {unit: token}", "total_tokens: {unit: token, kind: gauge}"
    )
    async with metered(answering([WHOLE], JSON_TYPE), store_url, plans=plans) as at:
        await ask(at)
        assert (1420, 310, 0, 256, 0) == await tokens(at.kit, *METERS[:2], *METERS[3:])


@pytest.mark.parametrize("where", ["open", "read", "close"])
async def test_i8_a_reader_that_breaks_is_not_heard_of_by_the_app(
    where: str, store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "the words of a customer"

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError(words)

    monkeypatch.setattr(f"meterkit.tokens.response.ResponseReader.{where}", breaks)
    async with metered(answering([WHOLE[:50], WHOLE[50:]], JSON_TYPE), store_url) as at:
        for _ in range(2):
            assert WHOLE == await ask(at)
        assert (0, 0) == await tokens(at.kit)
        assert (2, 0) == await at.counted()
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
    assert words not in caplog.text
