"""Token usage that the app reports: record_usage and tap."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

import meterkit
from drivers.llm_apps import PLANS, PROMPT, metered, stream_of, tokens
from faults.refusals import eventually
from meterkit import MeterkitError
from tokens.recordings import (
    anthropic_events,
    chat,
    chat_usage,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from drivers.app import Served

pytestmark = pytest.mark.anyio

CHUNKS = [chat({"content": "Hello, "}), chat({}, finish="stop"), chat(None, usage=chat_usage(3, 4))]
WHOLE = {
    "id": "c1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": chat_usage(3, 4),
}


EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}


class Model(BaseModel):
    """As the SDKs' models are: unknown fields are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def anthropic() -> list[dict[str, Any]]:
    """The events of a stream that comes to 16 tokens in and 16 out."""
    seen: list[dict[str, Any]] = []

    def keep(value: dict[str, Any]) -> bytes:
        seen.append(value)
        return b""

    anthropic_events(keep)
    return seen


def app_of(answer: Callable[[], Awaitable[Response]]) -> Starlette:
    """An app that answers everything in the same way."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        return await answer()

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])])


async def ask(at: Served, path: str = "/none") -> int:
    return (await at.client.post(path, content=PROMPT)).status_code


def reporting(*objects: Any) -> Starlette:
    """An app that reports objects, and answers with something else."""

    async def answer() -> Response:
        for obj in objects:
            meterkit.record_usage(obj)
        return PlainTextResponse("done")

    return app_of(answer)


OLLAMA = {"model": "m", "created_at": "t", "done": True, "prompt_eval_count": 8, "eval_count": 9}


@pytest.mark.parametrize(
    ("path", "objects", "recorded"),
    [
        ("/none", [Model.model_validate(WHOLE)], (3, 4)),
        ("/auto", [SimpleNamespace(**WHOLE)], (3, 4)),
        ("/none", [WHOLE, WHOLE, Model.model_validate(WHOLE)], (3, 4)),
        ("/auto", [WHOLE, {**WHOLE, "id": "c2"}], (6, 8)),
        ("/none", [WHOLE["usage"], WHOLE["usage"]], (6, 8)),
        ("/auto", [Model.model_validate(chunk) for chunk in CHUNKS], (3, 4)),
        ("/none", [*CHUNKS, {**WHOLE, "id": "c2"}], (6, 8)),
        ("/auto", [chat({"content": "x"}, usage=chat_usage(7, n)) for n in range(5)], (7, 4)),
        ("/none", [*anthropic(), *anthropic()], (16, 16)),
        ("/auto", anthropic()[:5], (13, 10)),
        ("/none", [EMBEDDINGS, EMBEDDINGS], (16, 0)),
        ("/auto", [OLLAMA, OLLAMA], (16, 18)),
    ],
)
async def test_what_the_app_reports_is_counted_each_call_once(
    path: str, objects: list[Any], recorded: tuple[int, int], store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    route = '"/none", consume: {requests: 1}'
    plans = PLANS.replace(route, f"{route}, records: [output_tokens]")
    async with metered(reporting(*objects), store_url, plans=plans) as at:
        assert 200 == await ask(at, path)
        assert recorded == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    assert [] == caplog.records


async def test_outside_of_a_request_both_say_so() -> None:
    for call, name in ((meterkit.record_usage, "record_usage"), (meterkit.tap, "tap")):
        with pytest.raises(MeterkitError, match=rf"^{name}\(\) was called outside of a request"):
            call([])


async def test_a_tap_passes_on_the_very_same_chunks(store_url: str) -> None:
    taken: list[list[Any]] = []

    def sync() -> Iterator[Any]:
        yield from CHUNKS

    async def answer() -> Response:
        taken.append([chunk async for chunk in meterkit.tap(stream_of(CHUNKS))])
        taken.append(list(meterkit.tap(sync())))
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        assert 200 == await ask(at)
        assert (3, 4) == await tokens(at.kit)  # Of one id, and so of one call.
    for passed in taken:
        assert all(given is chunk for given, chunk in zip(CHUNKS, passed, strict=True))


# The same call from several sides.


async def test_a_better_report_of_a_call_wins(store_url: str) -> None:
    async def answer() -> Response:
        meterkit.record_usage(chat({"content": "x"}, usage=chat_usage(3, 1)))
        return PlainTextResponse(b"".join(map(sse, CHUNKS)), media_type="text/event-stream")

    async with metered(app_of(answer), store_url) as at:
        await ask(at, "/openai")
        assert (3, 4) == await tokens(at.kit)


# Streams that are cut, and what comes late.


@pytest.mark.parametrize(("path", "entered"), [("/none", 0), ("/auto", True)])
async def test_a_tapped_stream_without_usage_is_estimated(path: str, entered: int, store_url: str) -> None:
    async def answer() -> Response:
        _ = [chunk async for chunk in meterkit.tap(stream_of(CHUNKS[:2]))]
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at, path)
        input_tokens, output_tokens = await tokens(at.kit)
    assert (entered, True) == (input_tokens > 0, output_tokens > 0)


@pytest.mark.parametrize("path", ["/none", "/auto"])
async def test_what_is_reported_after_the_response_is_counted(path: str, store_url: str) -> None:
    async def later() -> None:
        await asyncio.to_thread(meterkit.record_usage, {**WHOLE, "id": "c2"})
        _ = [chunk async for chunk in meterkit.tap(stream_of([{**chunk, "id": "c3"} for chunk in CHUNKS]))]

    async def answer() -> Response:
        meterkit.record_usage(WHOLE)
        return PlainTextResponse("done", background=BackgroundTask(later))

    async with metered(app_of(answer), store_url) as at:
        await ask(at, path)
        await eventually(lambda: amounts_to(at, (9, 12)))


async def amounts_to(at: Served, expected: tuple[int, int]) -> bool:
    return await tokens(at.kit) == expected


async def test_a_late_report_counts_beyond_what_was_counted(store_url: str) -> None:
    def later() -> None:
        for output in (2, 9, 5, 9):
            meterkit.record_usage({**WHOLE, "usage": chat_usage(3, output)})

    async def answer() -> Response:
        return JSONResponse(WHOLE, background=BackgroundTask(later))

    async with metered(app_of(answer), store_url) as at:
        await ask(at, "/auto")
        await eventually(lambda: amounts_to(at, (3, 9)))
