"""A chat service with the API of OpenAI and a model of a few lines. It knows nothing of billing."""

from __future__ import annotations

import asyncio
import json
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

app = FastAPI(title="Chat")

STORY: Final = "the sea was calm and the harbour slept until a small boat came in from the fog"
WORDS: Final = 40
PACE_S: Final = 0.002


class Message(BaseModel):
    """One turn of the conversation."""

    role: str
    content: str


class Chat(BaseModel):
    """What is asked of the model; its answer is always streamed."""

    model: str = "storyteller-1"
    messages: list[Message] = Field(min_length=1)
    max_tokens: int = Field(default=256, ge=1)


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


@app.post("/v1/chat/completions")
async def complete(chat: Chat) -> StreamingResponse:
    """Answer word by word, as server-sent events."""
    return StreamingResponse(answer(chat), media_type="text/event-stream")


async def answer(chat: Chat) -> AsyncGenerator[str]:
    """Events of an answer; the last one with data says what it used. A token is a word here."""
    head = {"id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion.chunk", "model": chat.model}
    said = 0
    async for word in tell(chat.messages[-1].content, at_most=chat.max_tokens):
        said += 1
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
        yield event({**head, "choices": [choice]})
    reason = "length" if said == chat.max_tokens else "stop"
    yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    heard = sum(len(message.content.split()) for message in chat.messages)
    usage = {"prompt_tokens": heard, "completion_tokens": said, "total_tokens": heard + said}
    yield event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


async def tell(prompt: str, *, at_most: int) -> AsyncGenerator[str]:
    """The model: as many words as the prompt asks for by its first number."""
    wanted = next((int(word) for word in prompt.split() if word.isdecimal()), WORDS)
    for word in islice(cycle(STORY.split()), min(wanted, at_most)):
        await asyncio.sleep(PACE_S)
        yield word


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
