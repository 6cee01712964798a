"""What the app of the field tests does: answer, stream, fail, record late, go on until somebody hangs up."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from meterkit import record

PLANS: Final = Path(__file__).with_name("plans.yaml")
LATE_WORDS: Final = 3
CHAT_INPUT: Final = 11
CHAT_OUTPUT: Final = 7
EVENTS: Final = {
    "requests": "api_requests",
    "words": "api_words",
    "input_tokens": "ai_input_tokens",
    "output_tokens": "ai_output_tokens",
}
_DRIPS: Final = 2_000


async def healthz(request: Request) -> PlainTextResponse:
    del request
    return PlainTextResponse("ok")


async def echo(request: Request) -> JSONResponse:
    words = len((await request.body()).split())
    record(words=words)
    return JSONResponse({"words": words})


async def chat(request: Request) -> StreamingResponse:
    await request.body()

    async def events() -> AsyncGenerator[str]:
        for text in ("one ", "two ", "three"):
            yield chunk({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None})
        yield chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
        yield chunk({"choices": [], "usage": _USAGE})
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


_USAGE: Final = {
    "prompt_tokens": CHAT_INPUT,
    "completion_tokens": CHAT_OUTPUT,
    "total_tokens": CHAT_INPUT + CHAT_OUTPUT,
}


def chunk(fields: dict[str, Any]) -> str:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps(head | fields)}\n\n"


async def broken(request: Request) -> JSONResponse:
    raise RuntimeError(f"this endpoint is broken on purpose: {request.url.path}")


async def late(request: Request) -> JSONResponse:
    """Record some words once the answer is out."""
    del request
    return JSONResponse({"words": LATE_WORDS}, background=BackgroundTask(record, words=LATE_WORDS))


async def drip(request: Request) -> StreamingResponse:

    async def drops() -> AsyncGenerator[bytes]:
        for _ in range(_DRIPS):
            if await request.is_disconnected():
                return
            # Nothing that a compressor could keep back.
            yield os.urandom(20_000)
            await anyio.sleep(0.01)

    return StreamingResponse(drops(), media_type="application/octet-stream")


async def live(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def routes(prefix: str) -> list[BaseRoute]:
    return [
        Route(f"{prefix}/healthz", healthz),
        Route(f"{prefix}/v1/echo", echo, methods=["POST"]),
        Route(f"{prefix}/v1/chat", chat, methods=["POST"]),
        Route(f"{prefix}/v1/broken", broken),
        Route(f"{prefix}/v1/late", late),
        Route(f"{prefix}/v1/drip", drip),
        WebSocketRoute(f"{prefix}/v1/live", live),
    ]
