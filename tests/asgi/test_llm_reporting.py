"""Token usage that the app reports: record_usage and tap. Each call counts once, and in rates."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import meterkit
from drivers.llm_apps import METERS, PLANS, PROMPT, metered, openai_stream, stream_of, tokens
from faults.refusals import eventually
from meterkit import MeterkitError
from tokens.recordings import (
    anthropic_events,
    chat,
    chat_usage,
    compact,
    sse,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from starlette.requests import Request

    from drivers.app import Served


pytestmark = pytest.mark.anyio

# What is counted is asked, not how soon.
PATIENT = {"store_timeout": 10.0}

DETAILED = chat_usage(
    1000,
    50,
    prompt_tokens_details={"cached_tokens": 400},
    completion_tokens_details={"reasoning_tokens": 30},
)
ALL = (1000, 50, 400, 0, 30, 1050)


def whole(identity: str | None = "c1", usage: Any = DETAILED, **more: Any) -> dict[str, Any]:
    named = {} if identity is None else {"id": identity}
    choices = [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]
    return {**named, "object": "chat.completion", "model": "m", "choices": choices, "usage": usage, **more}


CHUNKS = [chat({"content": "Hello, "}), chat({}, finish="stop"), chat(None, usage=chat_usage(3, 4))]
WHOLE = whole("c1", chat_usage(3, 4))
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


def calling(answer: Callable[[], Response], *reported: Any, tapped: Sequence[Any] = ()) -> Starlette:
    """An app that reports, taps, and answers."""

    async def endpoint(request: Request) -> Response:
        del request
        for obj in reported:
            meterkit.record_usage(obj)
        for chunks in tapped:
            _ = [chunk async for chunk in meterkit.tap(stream_of(chunks))]
        return answer()

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])


def done() -> Response:
    return PlainTextResponse("done")


async def ask(at: Served, path: str = "/none") -> int:
    return (await at.client.post(path, content=PROMPT)).status_code


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
    async with metered(calling(done, *objects), store_url, plans=plans) as at:
        assert 200 == await ask(at, path)
        assert recorded == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    assert [] == caplog.records


async def test_an_object_without_usage_is_warned_of_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    unused = whole("c1", None)
    async with metered(calling(done, unused, unused), store_url) as at:
        assert 200 == await ask(at)
        assert (0, 0) == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    (record,) = caplog.records
    assert "/none: record_usage() found no token usage in an object of type dict: " in record.getMessage()


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
    def answer() -> Response:
        return PlainTextResponse(b"".join(map(sse, CHUNKS)), media_type="text/event-stream")

    async with metered(calling(answer, chat({"content": "x"}, usage=chat_usage(3, 1))), store_url) as at:
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


MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "model": "claude",
    "content": [],
    "usage": {"input_tokens": 600, "output_tokens": 50, "cache_read_input_tokens": 400},
}


def answering(call: dict[str, Any]) -> Callable[[], Response]:
    return lambda: JSONResponse(call)


async def counted(app: Starlette, store_url: str, path: str = "/auto") -> tuple[int, ...]:
    async with metered(app, store_url, settings=PATIENT) as at:
        assert 200 == (await at.client.post(path, json={})).status_code
        return await tokens(at.kit, *METERS)


@pytest.mark.parametrize(
    ("reported", "identity"), [(whole(), "c1"), (MESSAGE, "own-1"), (DETAILED, None), (whole(None), "c1")]
)
async def test_an_answer_of_the_app_without_details_counts_once(  # F-32
    reported: Any, identity: str | None, store_url: str
) -> None:
    short = whole(identity, chat_usage(1000, 50))
    expected = (*ALL[:4], 0 if reported is MESSAGE else ALL[4], ALL[5])
    assert expected == await counted(calling(answering(short), reported), store_url)
    chunks = [chat({"content": "Hi"}, id="c1"), chat(None, id="c1", usage=DETAILED)]
    assert ALL == await counted(calling(answering(short), tapped=[chunks]), store_url)


async def test_what_only_the_answer_knows_is_counted_too(store_url: str) -> None:  # F-32
    app = calling(answering(whole()), whole(None, chat_usage(1000, 50)))
    assert ALL == await counted(app, store_url)
    # A figure that differs is of another call.
    other = chat_usage(1000, 50, prompt_tokens_details={"cached_tokens": 1})
    app = calling(answering(whole("own-1", other)), whole())
    assert (2000, 100, 401) == (await counted(app, store_url))[:3]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_response_and_its_usage_object_are_one_call(order: int, store_url: str) -> None:  # F-33
    objects = [DETAILED, whole()][::order]
    assert ALL == await counted(calling(done, *objects), store_url)
    assert ALL == await counted(calling(answering(whole("own-1")), *objects), store_url)


FIRST, SECOND = whole("c1"), whole("c2", chat_usage(30, 7))
SUM = (1030, 57)


async def test_the_sum_of_reported_calls_is_no_call_of_its_own(store_url: str) -> None:  # F-33
    total = whole("own-1", chat_usage(*SUM))
    app = calling(answering(total), FIRST, SECOND)
    assert SUM == (await counted(app, store_url))[:2]
    chunks = [[chat({"content": "Hi"}, id=n), chat(None, id=n, usage=chat_usage(5, 6))] for n in "ab"]
    app = calling(answering(whole(None, chat_usage(10, 12))), tapped=chunks)
    assert (10, 12) == (await counted(app, store_url))[:2]
    # The calls, and then the usage of the whole run.
    assert SUM == (await counted(calling(done, FIRST, SECOND, chat_usage(*SUM)), store_url))[:2]
    # Another figure than the sum is of another call.
    app = calling(answering(whole("own-1", chat_usage(1030, 58))), FIRST, SECOND)
    assert (2060, 115) == (await counted(app, store_url))[:2]


def streaming(texts: Sequence[str], identity: str) -> Callable[[], Response]:
    """An answer in the shape of OpenAI's, without figures, under an id of the app's own."""
    events = [event.replace(b"chatcmpl-1", identity.encode()) for event in openai_stream(*texts)]
    return lambda: Response(b"".join([*events, b"data: [DONE]\n\n"]), media_type="text/event-stream")


async def test_a_text_without_figures_is_what_the_app_has_reported(store_url: str) -> None:  # F-31, F-33
    """Billed by its text, the answer would be paid twice."""
    app = calling(streaming(["words "] * 40, "own-1"), whole("c1", chat_usage(1000, 50)))
    assert (1000, 50) == (await counted(app, store_url))[:2]


def cut(body: bytes) -> list[Any]:
    return [body[at : at + 7] for at in range(0, len(body), 7)]


def as_lines(body: bytes) -> list[Any]:
    return [*body.decode().splitlines()]


def as_texts(body: bytes) -> list[Any]:
    return [event + "\n\n" for event in body.decode().split("\n\n")]


@pytest.mark.parametrize("piece", [cut, as_lines, as_texts])
async def test_a_tap_reads_what_an_http_client_gives(  # F-34
    piece: Callable[[bytes], list[Any]], store_url: str
) -> None:
    events = [sse(chat({"content": "grüß"})), sse(chat(None, usage=DETAILED)), b"data: [DONE]\n\n"]
    for body in (b"".join(events), compact(whole())):
        assert ALL == await counted(calling(done, tapped=[piece(body)]), store_url, "/none")
    said = {"model": "m", "created_at": "t", "message": {"content": "Hi"}, "done": False}
    body = compact(said) + b"\n" + compact(OLLAMA) + b"\n"
    if len(piece(body)[0]) > 7:  # A line that is cut is not known for one.
        assert (8, 9) == (await counted(calling(done, tapped=[piece(body)]), store_url, "/none"))[:2]


@pytest.mark.parametrize("chunks", [["Hel", "lo"], [object(), object()]])
async def test_a_tap_that_could_read_nothing_says_so_at_its_end(  # F-34
    chunks: list[Any], store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (0, 0) == (await counted(calling(done, tapped=[chunks, chunks, []]), store_url, "/auto"))[:2]
    (record,) = caplog.records
    said = record.getMessage()
    assert f"/auto: tap() found no token usage in a stream of type {type(chunks[0]).__name__}: " in said
    assert "get_final_message()" in said


class Refuses:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


async def test_reporting_never_raises_into_the_app(  # F-35
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    unread = httpx.Response(200, stream=httpx.ByteStream(b"{}"), request=httpx.Request("POST", "http://p"))
    for obj in (Refuses(), unread):
        assert (0, 0) == (await counted(calling(done, obj), store_url))[:2]
        assert "record_usage() found no token usage" in caplog.records[-1].getMessage()
    assert (0, 0) == (await counted(calling(done, tapped=[[Refuses()]]), store_url))[:2]
    raw = httpx.Response(200, content=compact(whole()), request=httpx.Request("POST", "http://p"))
    assert ALL == await counted(calling(done, raw), store_url)


LIMIT = 1_000_000_000
BARE = PLANS.replace(
    "routes:",
    """routes:
  - {match: "/bare", usage: auto}
  - match: "/reserved"
    usage: auto
    reserve: {output_tokens: {from: max_tokens, default: 9, ceiling: 9}}
""",
)
BY_MODEL = BARE.replace(
    "routes:", '  mini: {unit: token, from: output_tokens, where: {model: "*-mini"}}\nroutes:', 1
)
ROUGH = BARE + "billing: {sources: [estimated]}\n"


def sent(status: int) -> Response:
    answer: dict[str, Any] = {"id": "c1", "object": "chat.completion", "model": "a-mini", "choices": []}
    return JSONResponse(answer | {"usage": chat_usage(3, 4)}, status)


def reported(status: int) -> Response:
    meterkit.record_usage(chat_usage(3, 4))
    return PlainTextResponse("done", status)


def late(status: int) -> Response:
    return PlainTextResponse(
        "done", status, background=BackgroundTask(meterkit.record_usage, chat_usage(3, 4))
    )


async def have_seen(at: Served, used: int) -> bool:
    """Whether so much, and not more, counts in the hour's rate."""
    fits = await at.kit.check("acme", "output_tokens", LIMIT - used)
    beyond = await at.kit.check("acme", "output_tokens", LIMIT - used + 1)
    return fits.allowed and not beyond.allowed


@pytest.mark.parametrize(
    ("answer", "status", "plans", "path"),
    [
        (reported, 500, BARE, "/none"),
        (reported, 404, BY_MODEL, "/reserved"),
        (late, 500, BARE, "/reserved"),
        (late, 500, BY_MODEL, "/bare"),
        (sent, 200, ROUGH, "/bare"),
        (sent, 200, ROUGH, "/reserved"),
        (reported, 200, ROUGH, "/none"),
        (late, 200, ROUGH, "/none"),
    ],
)
async def test_what_is_not_billed_counts_in_rates_all_the_same(
    answer: Callable[[int], Response], status: int, plans: str, path: str, store_url: str
) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return answer(status)

    app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])
    async with metered(app, store_url, plans=plans, settings=PATIENT) as at:
        assert status == (await at.client.post(path, json={})).status_code
        await eventually(lambda: have_seen(at, 4))
        assert (0, 0) == await tokens(at.kit)
