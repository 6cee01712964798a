"""A model with the wire of OpenAI's API, to try the app without a key: uvicorn model:app --port 9000

It answers with the question's words in reverse. A token is a word here.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body, FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.post("/v1/chat/completions", response_model=None)
def complete(asked: Annotated[dict[str, Any], Body()]) -> dict[str, Any] | StreamingResponse:
    words = asked["messages"][-1]["content"].split()
    usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
    head = {"id": f"chatcmpl-{uuid4().hex}", "created": 1, "model": asked["model"]}
    if asked.get("stream"):
        with_usage = asked.get("stream_options", {}).get("include_usage")
        events = stream(words[::-1], head, usage if with_usage else None)
        return StreamingResponse(events, media_type="text/event-stream")
    message = {"role": "assistant", "content": " ".join(words[::-1])}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


def stream(words: list[str], head: dict[str, Any], usage: dict[str, int] | None) -> Iterator[str]:
    chunk = {**head, "object": "chat.completion.chunk"}
    for word in words:
        yield event({**chunk, "choices": [{"index": 0, "delta": {"content": f"{word} "}}]})
    yield event({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:  # Only where the request asks for it, as OpenAI has it.
        yield event({**chunk, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
