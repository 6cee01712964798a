"""Apps that answer as language models do, and what tests of their metering share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.app import Served, http_scope, ignore, served, staying
from drivers.delivery import until
from llm_payloads.recordings import Figures, Recording, chat, compact, sse
from meterkit import MeterKit
from servers.stores import free_port

WORDS = ("auto", "openai", "anthropic", "gemini", "bedrock", "cohere", "mistral", "ollama")
PLANS = (
    """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  input_tokens: {unit: token}
  output_tokens: {unit: token}
  cached_input_tokens: {unit: token}
  cache_write_tokens: {unit: token}
  reasoning_tokens: {unit: token}
  total_tokens: {unit: token}
routes:
"""
    + "".join(f'  - {{match: "/{word}", consume: {{requests: 1}}, usage: {word}}}\n' for word in WORDS)
    + """
  - {match: "/attempt", consume: {requests: 1}, usage: auto, charge_on: attempt}
  - {match: "/errors", consume: {requests: 1}, usage: auto, charge_on: [client_error, server_error]}
  - {match: "/none", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 10000/hour}
      output_tokens: {rate: 1_000_000_000/hour}
"""
)
PROMPT = compact({"model": "m", "messages": [{"role": "user", "content": "0123456789ab"}]})
PROMPT_TOKENS = 3
METERS = (
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
    "total_tokens",
)


@asynccontextmanager
async def metered(app: ASGIApp, url: str, *, plans: str = PLANS, **options: Any) -> AsyncGenerator[Served]:
    async with served(app, plans=plans, redis_url=url, **options) as at:
        yield at


async def tokens(kit: MeterKit, *names: str, customer: str = "acme") -> tuple[int, ...]:
    """What is recorded, of input and output tokens if no meters are named."""
    meters = (await kit.usage(customer))["meters"]
    return tuple(meters[name]["recorded"] for name in names or METERS[:2])


def text_tokens(*texts: str) -> int:
    return len("".join(texts).encode()) // 4


def amounts(expected: Sequence[Figures]) -> tuple[int, ...]:
    """What figures come to on :data:`METERS`."""
    columns = [0] * 5
    for _, *values in expected:
        columns = [total + (value or 0) for total, value in zip(columns, values, strict=True)]
    totals = [call[1] + call[2] for call in expected if call[1] is not None and call[2] is not None]
    return (*columns, sum(totals))


def answering(
    chunks: Sequence[bytes], kind: str, *, status: int = 200, coding: str | None = None, ends: bool = True
) -> ASGIApp:
    """An app that answers in so many pieces; unless it ``ends``, the last one is never sent."""
    headers = [(b"content-type", kind.encode())]
    if coding is not None:
        headers.append((b"content-encoding", coding.encode()))

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if ends:
            await send({"type": "http.response.body", "body": b""})

    return app


async def ask(at: Served, path: str, *, method: str = "POST", body: bytes = PROMPT) -> None:
    """Send a prompt, and do not look at the answer."""
    await at.app(http_scope(path, method=method), staying(body), ignore)


async def read_all(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        piece: bytes = message.get("body", b"")
        body += piece
        if not message.get("more_body"):
            return body


def replaying(recording: Recording) -> ASGIApp:
    return answering(recording.events, recording.content_type)


def openai_stream(*texts: str) -> list[bytes]:
    return [sse(chat({"content": text})) for text in texts]


async def stream_of(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def listening(
    app: ASGIApp, *, lifespan: Literal["on", "off", "auto"] = "off", **options: Any
) -> AsyncGenerator[int]:
    """The app under uvicorn; the port."""
    config = uvicorn.Config(app, port=free_port(), log_config=None, lifespan=lifespan, ws="none", **options)
    server = QuietServer(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started or serving.done())
    try:
        yield config.port
    finally:
        server.should_exit = True
        await serving


class RaisingServer:
    """As servers of ASGI spec 2.4: once the client is gone, sending raises; nobody is cancelled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_all(receive)
        listener = asyncio.create_task(self._listen(receive))
        said = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def hear() -> Message:
            for message in said:
                return message
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def speak(message: Message) -> None:
            if self.gone.is_set():
                raise OSError("the client is gone")
            await send(message)

        try:
            await self._app({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, hear, speak)
        finally:
            listener.cancel()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
