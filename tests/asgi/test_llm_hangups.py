"""Clients that hang up in the middle of a model's answer: what that comes to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from asgi.test_client_leaves import left
from drivers.app import http_scope
from drivers.llm_apps import (
    PLANS,
    PROMPT,
    PROMPT_TOKENS,
    RaisingServer,
    metered,
    openai_stream,
    text_tokens,
    tokens,
)
from tokens.recordings import (
    compact,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message

    from drivers.app import Served

pytestmark = pytest.mark.anyio

SSE = "text/event-stream"
TEXTS = ("Hello, ", "wörld. ", "All is well.")
CHUNKS = openai_stream(*TEXTS)


# Under a real server.


def streaming(chunks: Sequence[bytes], gone: asyncio.Event) -> Starlette:
    """An app that sends chunks, and one more once the client is gone; until then it waits."""

    async def answer(request: Request) -> StreamingResponse:
        assert await request.body() == PROMPT

        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk
            await gone.wait()
            yield b": too late\n\n"
            raise AssertionError("the app was not stopped")

        return StreamingResponse(body(), media_type=SSE)

    return Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("spec", "path", "sent", "recorded", "requests"),
    [
        ("2.3", "/openai", 0, (0, 0), 0),
        ("2.4", "/attempt", 0, (0, 0), 1),
        ("2.3", "/openai", 1, (PROMPT_TOKENS, text_tokens(TEXTS[0])), 1),
        ("2.4", "/auto", 3, (PROMPT_TOKENS, text_tokens(*TEXTS)), 1),
    ],
)
async def test_a_hang_up_is_billed_what_was_generated_by_then(
    spec: str, path: str, sent: int, recorded: tuple[int, int], requests: int, store_url: str
) -> None:
    gone = asyncio.Event()

    def raising(app: ASGIApp) -> ASGIApp:
        server = RaisingServer(app)
        server.gone = gone
        return server

    outside = raising if spec == "2.4" else None
    async with metered(streaming(CHUNKS[:sent], gone), store_url) as at:
        after = CHUNKS[sent - 1][-20:] if sent else b"\r\n\r\n"
        await left(at, path, "h11", after=after, outside=outside)
        assert recorded == await tokens(at.kit)
        assert (requests, 0) == await at.counted()


# Without one, and so at every place.


class Leaving:
    """A client that leaves when it has got so many chunks; told to the app in either way."""

    def __init__(self, *, after: int, spec: str, body: bytes = PROMPT) -> None:
        self._left = after
        self._spec = spec
        half = len(body) // 2
        self._said: list[Message] = [
            {"type": "http.request", "body": body[half:], "more_body": False},
            {"type": "http.request", "body": body[:half], "more_body": True},
        ]
        self._gone = asyncio.Event()
        if not after:
            self._gone.set()

    async def receive(self) -> Message:
        if self._said:
            return self._said.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._gone.is_set() and self._spec == "2.4":
            raise OSError("the client is gone")
        if message.get("body"):
            self._left -= 1
            if not self._left:
                self._gone.set()

    async def ask(self, at: Served, path: str) -> None:
        scope = http_scope(path, method="POST", asgi={"version": "3.0", "spec_version": self._spec})
        await asyncio.gather(at.app(scope, self.receive, self.send), return_exceptions=True)


def pausing(chunks: Sequence[bytes], kind: str = SSE, *, waits_at: int) -> Starlette:
    """An app that is overtaken by its client's leaving before a chunk."""

    async def answer(request: Request) -> StreamingResponse:
        await request.body()

        async def body() -> AsyncIterator[bytes]:
            for at, chunk in enumerate(chunks):
                if at == waits_at:
                    await anyio.sleep_forever()
                yield chunk
            await anyio.sleep_forever()

        return StreamingResponse(body(), headers={"content-type": kind})

    return Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])


async def test_text_after_the_last_figures_is_estimated_on_top(store_url: str) -> None:
    """Anthropic tells of the output first at the start, and then only at the end."""
    start = {"id": "m", "type": "message", "model": "c", "usage": {"input_tokens": 9, "output_tokens": 1}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 300}}
    chunks = [sse({"type": "message_start", "message": start}), sse(text)]
    # F-125: without estimates the bill has the provider's last report, and never nothing.
    cases = {"[reported, partial, estimated]": (9, 76), "[reported, partial]": (9, 1), "[reported]": (0, 0)}
    for sources, recorded in cases.items():
        plans = PLANS + f"billing: {{sources: {sources}}}\n"
        async with metered(pausing(chunks, waits_at=9), store_url, plans=plans) as at:
            await Leaving(after=2, spec="2.3").ask(at, "/anthropic")
            assert recorded == await tokens(at.kit)
            (rates,) = [rate for rate in await at.kit.rates("acme") if rate["meter"] == "output_tokens"]
            assert 76 == rates["used"]


@pytest.mark.parametrize(
    ("kind", "chunk", "recorded"),
    [
        (SSE, CHUNKS[0][:20], (PROMPT_TOKENS, 1)),
        (
            "application/json",
            compact({"choices": [{"message": {"content": "x" * 300}}]})[:-40],
            (PROMPT_TOKENS, 66),
        ),
        ("application/json", b'{"items": [1, 2', (0, 0)),
        (SSE, sse({"tick": 1}), (0, 0)),
    ],
)
async def test_an_answer_torn_in_its_first_event_may_be_a_models(
    kind: str, chunk: bytes, recorded: tuple[int, int], store_url: str
) -> None:
    async with metered(pausing([chunk], kind, waits_at=9), store_url) as at:
        await Leaving(after=1, spec="2.3").ask(at, "/auto")
        assert recorded == await tokens(at.kit)


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        (b"\xff\xfe" * 1000, 85, 85),
        (compact({"question": "x" * 300}), 75, 75),
        (
            compact({"messages": [{"content": "y. " * 200_000}, {"content": "y. " * 500_000}]}),
            340_000,
            352_000,
        ),
        (compact({"messages": [{"content": "A" * 3_000_000}]}), 85, 700),
    ],
    ids=["binary", "own shape", "long", "image"],
)
async def test_the_request_is_estimated_whatever_it_is(
    body: bytes, least: int, most: int, store_url: str
) -> None:
    async with metered(pausing(CHUNKS, waits_at=9), store_url) as at:
        await Leaving(after=1, spec="2.3", body=body).ask(at, "/auto")
        (found,) = await tokens(at.kit, "input_tokens")
        assert least <= found <= most
