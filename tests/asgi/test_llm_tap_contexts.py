"""Taps of asynchronous context managers, as pydantic-ai's `run_stream_events` returns one, and JSON texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import meterkit
from drivers.llm_apps import metered, tokens
from llm_payloads.recordings import chat, chat_usage

pytestmark = pytest.mark.anyio

CHUNKS: Final = [chat({"content": "Hello"}), chat(None, usage=chat_usage(3, 4))]
UNTIL: Final = {"end": 2, "close": 1, "error": 2}


@asynccontextmanager
async def run_events(left: list[str], *, fails: bool) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
    async def events() -> AsyncGenerator[dict[str, Any]]:
        for chunk in CHUNKS:
            yield chunk
        if fails:
            raise ConnectionError

    try:
        yield events()
    finally:
        left.append("left")


@pytest.mark.parametrize("until", UNTIL)
async def test_f_327_a_tapped_context_is_entered_and_left(until: str, store_url: str) -> None:
    left, seen = list[str](), list[dict[str, Any]]()

    async def endpoint(_: Request) -> PlainTextResponse:
        tap = meterkit.tap(run_events(left, fails=until == "error"))
        try:
            async for chunk in tap:
                seen.append(chunk)
                if until == "close":
                    await tap.aclose()
                    break
        except ConnectionError:
            seen.append({})
        return PlainTextResponse(f"{left}")

    app = Starlette(routes=[Route("/auto", endpoint, methods=["POST"])])
    async with metered(app, store_url) as at:
        answer = await at.client.post("/auto", json={"messages": []})
        assert (answer.text, left) == ("['left']", ["left"])  # Before the response.
        assert seen == CHUNKS[: UNTIL[until]] + ([{}] if until == "error" else [])
        assert await tokens(at.kit) == ((1, 1) if until == "close" else (3, 4))


@pytest.mark.parametrize("usage", ["auto", "openai"])
async def test_f_327_a_json_text_needs_no_words(
    usage: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        await request.body()
        return PlainTextResponse('"ok"', media_type="application/json")

    app = Starlette(routes=[Route(f"/{usage}", endpoint, methods=["POST"])])
    async with metered(app, store_url) as at:
        assert (await at.client.post(f"/{usage}", json={"vote": 1})).text == '"ok"'
        assert caplog.messages == []
        assert (await at.client.post(f"/{usage}", json={"messages": []})).text == '"ok"'
    lost = (
        f"/{usage}: token usage of a response is missing, and counts nothing: it ended without usage figures"
    )
    assert caplog.messages == ([lost] if usage == "openai" else [])
