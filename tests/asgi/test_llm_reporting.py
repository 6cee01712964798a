"""Token usage that the app reports: record_usage and tap."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

import meterkit
from drivers.llm_apps import PLANS, PROMPT, metered, stream_of, tokens
from faults.refusals import eventually
from meterkit import MeterkitError
from tokens.recordings import (
    anthropic_events,
    chat,
    chat_usage,
    gemini_chunk,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

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


@pytest.mark.parametrize("path", ["/none", "/auto"])
@pytest.mark.parametrize(
    ("objects", "recorded"),
    [
        ([WHOLE], (3, 4)),
        ([Model.model_validate(WHOLE)], (3, 4)),
        ([WHOLE["usage"]], (3, 4)),
        ([SimpleNamespace(**WHOLE)], (3, 4)),
        ([WHOLE, WHOLE, Model.model_validate(WHOLE)], (3, 4)),
        ([WHOLE, {**WHOLE, "id": "c2"}], (6, 8)),
        ([WHOLE["usage"], WHOLE["usage"]], (6, 8)),
        (CHUNKS, (3, 4)),
        ([Model.model_validate(chunk) for chunk in CHUNKS], (3, 4)),
        ([*CHUNKS, {**WHOLE, "id": "c2"}], (6, 8)),
        ([chat({"content": "x"}, usage=chat_usage(7, n)) for n in range(5)], (7, 4)),
        (anthropic(), (16, 16)),
        (anthropic()[:5], (13, 10)),
        ([*anthropic(), *anthropic()], (16, 16)),
        (
            [
                gemini_chunk("a", promptTokenCount=2, candidatesTokenCount=1, totalTokenCount=3),
                gemini_chunk("b", "STOP", promptTokenCount=2, candidatesTokenCount=5, totalTokenCount=7),
            ],
            (2, 5),
        ),
        (
            [
                {**gemini_chunk("a", "STOP", promptTokenCount=2, totalTokenCount=7), "responseId": name}
                for name in "ab"
            ],
            (4, 10),
        ),
        ([EMBEDDINGS, EMBEDDINGS], (16, 0)),
        ([{"metadata": {"usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 11}}}], (5, 6)),
        (
            [{"model": "m", "created_at": "t", "done": True, "prompt_eval_count": 8, "eval_count": 9}] * 2,
            (16, 18),
        ),
    ],
)
async def test_what_the_app_reports_is_counted_each_call_once(
    objects: list[Any], recorded: tuple[int, int], path: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    route = '"/none", consume: {requests: 1}'
    plans = PLANS.replace(route, f"{route}, records: [output_tokens]")
    async with metered(reporting(*objects), store_url, plans=plans) as at:
        assert 200 == await ask(at, path)
        assert recorded == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    assert [] == caplog.records


@pytest.mark.parametrize("obj", [None, "usage", object(), {"usage": {"cpu": 1}}, {**WHOLE, "usage": None}])
async def test_an_object_without_usage_is_warned_of_once(
    obj: Any, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with metered(reporting(obj, obj), store_url) as at:
        assert 200 == await ask(at)
        assert (0, 0) == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    said = record.getMessage()
    assert said.startswith(
        f"/none: record_usage() found no token usage in an object of type {type(obj).__name__}: "
    )


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


async def test_several_taps_add_up(store_url: str) -> None:
    async def one(name: str) -> None:
        async for _ in meterkit.tap(stream_of([{**chunk, "id": name} for chunk in CHUNKS])):
            await asyncio.sleep(0)

    async def answer() -> Response:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(one(name))
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at)
        assert (9, 12) == await tokens(at.kit)


@pytest.mark.parametrize("path", ["/none", "/auto"])
async def test_in_threads_both_count(path: str, store_url: str) -> None:
    def work(name: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        meterkit.record_usage({**WHOLE, "id": name})
        list(meterkit.tap([{**chunk, "id": f"{name}-tap"} for chunk in CHUNKS]))

    async def answer() -> Response:
        await asyncio.gather(*(asyncio.to_thread(work, str(n)) for n in range(20)))
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at, path)
        assert (120, 160) == await tokens(at.kit)


# The same call from several sides.


def relaying(*, ids: bool, also: Callable[[], None]) -> Starlette:
    """An app that relays a stream as it is while it taps it."""
    chunks = [{**chunk} for chunk in CHUNKS]
    for chunk in chunks:
        if not ids:
            del chunk["id"]

    async def answer() -> Response:
        async def body() -> AsyncIterator[bytes]:
            async for chunk in meterkit.tap(stream_of(chunks)):
                yield sse(chunk)
            also()

        return StreamingResponse(body(), media_type="text/event-stream")

    return app_of(answer)


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("path", ["/none", "/openai", "/auto"])
async def test_a_call_that_is_tapped_recorded_and_sent_counts_once(
    path: str, store_url: str, *, ids: bool
) -> None:
    app = relaying(ids=ids, also=lambda: meterkit.record_usage(WHOLE["usage"]))
    async with metered(app, store_url) as at:
        await ask(at, path)
        assert (3, 4) == await tokens(at.kit)


async def test_usage_objects_without_an_id_are_separate_calls(store_url: str) -> None:
    async def answer() -> Response:
        meterkit.record_usage(chat_usage(10, 20))
        return JSONResponse(WHOLE)

    async with metered(app_of(answer), store_url) as at:
        await ask(at, "/auto")
        assert (13, 24) == await tokens(at.kit)


async def test_a_better_report_of_a_call_wins(store_url: str) -> None:
    async def answer() -> Response:
        meterkit.record_usage(chat({"content": "x"}, usage=chat_usage(3, 1)))
        return PlainTextResponse(b"".join(map(sse, CHUNKS)), media_type="text/event-stream")

    async with metered(app_of(answer), store_url) as at:
        await ask(at, "/openai")
        assert (3, 4) == await tokens(at.kit)


# Streams that are cut, and what comes late.


async def test_a_tap_that_is_given_up_counts_what_it_has_seen(store_url: str) -> None:
    async def answer() -> Response:
        async for _ in meterkit.tap(stream_of(CHUNKS)):
            break
        gc.collect()
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at, "/none")
        assert (0, 1) == await tokens(at.kit)  # What went in is not known there.
        await ask(at, "/auto")
        assert (3, 2) == await tokens(at.kit)


async def test_a_stream_that_its_provider_breaks_off_is_not_estimated(store_url: str) -> None:
    async def breaks() -> AsyncIterator[Any]:
        yield CHUNKS[0]
        raise ConnectionResetError

    async def answer() -> Response:
        with pytest.raises(ConnectionResetError):
            _ = [chunk async for chunk in meterkit.tap(breaks())]
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at)
        assert (0, 0) == await tokens(at.kit)


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


@pytest.mark.parametrize(
    ("status", "path", "recorded"), [(500, "/none", 0), (200, "/none", 4), (500, "/attempt", 4)]
)
async def test_reports_are_billed_by_the_outcome(
    status: int, path: str, recorded: int, store_url: str
) -> None:
    async def answer() -> Response:
        meterkit.record_usage(WHOLE)
        return PlainTextResponse("done", status_code=status)

    async with metered(app_of(answer), store_url) as at:
        await ask(at, path)
        assert (recorded,) == await tokens(at.kit, "output_tokens")


async def test_tokens_that_the_app_records_itself_are_counted_beside(store_url: str) -> None:
    async def answer() -> Response:
        meterkit.record(output_tokens=100, input_tokens=10**15 - 1)
        meterkit.record_usage(WHOLE)
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url) as at:
        await ask(at)
        assert (10**15 - 1, 104) == await tokens(at.kit)


DERIVED = PLANS.replace(
    "routes:",
    '  mini_output: {unit: token, from: output_tokens, where: {model: "*-mini"}}\nroutes:',
)


async def test_derived_meters_count_each_model_for_itself(store_url: str) -> None:
    async def answer() -> Response:
        meterkit.record(output_tokens=1)
        for n, model in enumerate(("a-mini", "b", "a-mini", None)):
            meterkit.record_usage({**WHOLE, "id": f"c{n}", "model": model})
        return PlainTextResponse("done")

    async with metered(app_of(answer), store_url, plans=DERIVED) as at:
        await ask(at)
        assert (12, 17) == await tokens(at.kit)
        # Two of the four calls were of a mini model, four tokens each.
        assert (8,) == await tokens(at.kit, "mini_output")


def nobody(scope: Scope) -> None:
    del scope


async def test_nobodys_usage_is_counted_nowhere(store_url: str) -> None:
    plans = PLANS.replace(
        '  - {match: "/none", consume: {requests: 1}}',
        '  - {match: "/none", usage: auto, enforcement: shadow}',
    )
    async with metered(reporting(WHOLE), store_url, plans=plans, who=nobody) as at:
        assert 200 == await ask(at)
        assert (0, 0) == await tokens(at.kit, customer="unknown")
