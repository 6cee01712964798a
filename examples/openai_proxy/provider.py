"""A stand-in for the provider: OpenAI's wire, and a model of a few lines. It knows nothing of the proxy."""

from __future__ import annotations

import asyncio
import json
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

app = FastAPI(title="Provider")

STORY: Final = "the sea was calm and the harbour slept until a small boat came in from the fog"
WORDS: Final = 20
PACE_S: Final = 0.002
FAILURES: Final = {
    429: ("rate_limit_error", "You are sending requests too quickly.", {"retry-after": "7"}),
    500: ("server_error", "The server had an error while processing your request.", None),
}
# What the provider will put on its own bill.
reported = {"prompt_tokens": 0, "completion_tokens": 0}
calls = {"begun": 0, "stopped": 0}


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


@app.get("/reported")
async def totals() -> dict[str, int]:
    return reported | calls


@app.post("/v1/chat/completions")
async def complete(request: Request) -> Response:
    """Say as many words as the last message asks for, fail with its status, call a tool, or never answer."""
    asked: dict[str, Any] = await request.json()
    if request.headers.get("authorization") != "Bearer sk-provider":
        return failure(401, "invalid_request_error", "Incorrect API key provided.")
    words = str(asked["messages"][-1]["content"]).split()
    wanted = next((int(word) for word in words if word.isdecimal()), WORDS)
    calls["begun"] += 1
    if "ponder" in words:
        return StreamingResponse(pondering(), media_type="text/event-stream")
    if "think" in words:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        calls["stopped"] += 1
        return failure(499, "client_closed", "The client has left.")
    if "fail" in words:
        return failure(wanted, *FAILURES[wanted])
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or wanted
    count = 1 if asked.get("tools") else min(wanted, limit)
    usage = {
        "prompt_tokens": sum(len(str(message["content"]).split()) for message in asked["messages"]),
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    answer = {"id": f"chatcmpl-{uuid4().hex}", "created": 1, "model": asked["model"]}
    if asked.get("stream"):
        options = asked.get("stream_options") or {}
        stream = told(answer, asked, usage, reports=bool(options.get("include_usage")))
        return StreamingResponse(stream, media_type="text/event-stream")
    message = whole(asked, count)
    finish = "tool_calls" if asked.get("tools") else "stop"
    bill(usage)
    return JSONResponse(
        {
            **answer,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage,
        }
    )


async def pondering() -> AsyncGenerator[str]:
    """A stream that has begun and says nothing until the client leaves."""
    try:
        await asyncio.Event().wait()
        yield ""
    finally:
        calls["stopped"] += 1


async def told(
    answer: dict[str, Any], asked: dict[str, Any], usage: dict[str, Any], *, reports: bool
) -> AsyncGenerator[str]:
    """The events of an answer; the one before the last says what it used, if that was asked for."""
    head = {**answer, "object": "chat.completion.chunk"} | ({"usage": None} if reports else {})
    if asked.get("tools"):
        call = {"index": 0, **called(asked)}
        yield event({**head, "choices": [choice({"role": "assistant", "tool_calls": [call]})]})
        yield event({**head, "choices": [choice({}, "tool_calls")]})
    else:
        for word in islice(cycle(STORY.split()), usage["completion_tokens"]):
            await asyncio.sleep(PACE_S)
            yield event({**head, "choices": [choice({"content": f"{word} "})]})
        yield event({**head, "choices": [choice({}, "stop")]})
    if reports:
        bill(usage)
        yield event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def whole(asked: dict[str, Any], count: int) -> dict[str, Any]:
    if asked.get("tools"):
        return {"role": "assistant", "content": None, "tool_calls": [called(asked)]}
    return {"role": "assistant", "content": " ".join(islice(cycle(STORY.split()), count))}


def called(asked: dict[str, Any]) -> dict[str, Any]:
    name = asked["tools"][0]["function"]["name"]
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"city": "Bergen"}'}}


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def bill(usage: dict[str, Any]) -> None:
    for name in reported:
        reported[name] += usage[name]


def failure(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers
    )
