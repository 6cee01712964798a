"""An app that answers as OpenAI's Chat Completions do, bare and behind meterkit."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.routing import Route

from meterkit import MeterKit, MeterMiddleware, identify
from peers.bare import CUSTOMER_HEADER
from peers.meterkit_app import PLANS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH: Final = "/v1/chat/completions"
CHUNKS: Final = 20
HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8")]


def event(**said: object) -> bytes:
    """One event of a stream, as OpenAI sends it."""
    body = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion.chunk",
        "created": 1741569952,
        "model": "gpt-5.6-2026-08-01",
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
        "choices": [{"index": 0, "delta": {"content": " and the"}, "logprobs": None, "finish_reason": None}],
        **said,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def answer(chunks: int, tokens: int) -> list[bytes]:
    """The whole stream: text, the reason of its end, usage, and the end."""
    ended = [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}
    return [
        *([event(usage=None)] * (chunks - 3)),
        event(choices=ended, usage=None),
        event(choices=[], usage=usage),
        b"data: [DONE]\n\n",
    ]


def question(*, chunks: int = CHUNKS, tokens: int = 300, max_tokens: int = 1024) -> bytes:
    """The body of a request; what is beside OpenAI's own members tells the app what to answer."""
    said = {
        "model": "gpt-5.6",
        "messages": [{"role": "user", "content": "Tell me of the sea. " * 20}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "answer": {"chunks": chunks, "tokens": tokens},
    }
    return json.dumps(said).encode()


class Chat:
    """Answers chunk by chunk, and lets others run between two chunks.

    Attributes:
        sends_ns: how long it took to send each chunk, where they are watched.
        last_ns: the same of the last message of each stream, with which it is settled.
    """

    sends_ns: list[int] | None = None
    last_ns: list[int] | None = None

    def __init__(self) -> None:
        self._answers: dict[tuple[int, int], list[bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body)["answer"]
        key = asked["chunks"], asked["tokens"]
        pieces = self._answers.get(key) or self._answers.setdefault(key, answer(*key))
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        sends, last = Chat.sends_ns, Chat.last_ns
        for piece in pieces:
            await asyncio.sleep(0)
            begun = time.perf_counter_ns()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if sends is not None:
                sends.append(time.perf_counter_ns() - begun)
        begun = time.perf_counter_ns()
        await send({"type": "http.response.body", "body": b""})
        if last is not None:
            last.append(time.perf_counter_ns() - begun)


def starlette_app() -> Starlette:
    return Starlette(routes=[Route(PATH, Chat(), methods=["POST"])])


def build(_redis_url: str) -> ASGIApp:
    return starlette_app()


def metered(plans: str, redis_url: str, **settings: object) -> MeterMiddleware:
    kit = MeterKit(PLANS / plans, redis_url=redis_url, flush="off", **settings)
    return MeterMiddleware(starlette_app(), kit=kit, identify=identify.header(CUSTOMER_HEADER.decode()))


def build_settle(redis_url: str) -> ASGIApp:
    """Decided and settled like any request; nobody reads what the stream says."""
    return metered("settle.yaml", redis_url)


def build_reserve(redis_url: str) -> ASGIApp:
    """Reserved before, read as it passes, captured after."""
    return metered("stream.yaml", redis_url)
