"""A call counts once, from however many sides it is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import meterkit
from drivers.llm_apps import METERS, metered, openai_stream, stream_of, tokens
from tokens.recordings import chat, chat_usage, compact, sse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

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
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "model": "claude",
    "content": [],
    "usage": {"input_tokens": 600, "output_tokens": 50, "cache_read_input_tokens": 400},
}


def whole(identity: str | None = "c1", usage: Any = DETAILED, **more: Any) -> dict[str, Any]:
    named = {} if identity is None else {"id": identity}
    choices = [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]
    return {**named, "object": "chat.completion", "model": "m", "choices": choices, "usage": usage, **more}


def app_of(answer: Callable[[], Response], *reported: Any, tapped: Sequence[Any] = ()) -> Starlette:
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
    assert expected == await counted(app_of(answering(short), reported), store_url)
    chunks = [chat({"content": "Hi"}, id="c1"), chat(None, id="c1", usage=DETAILED)]
    assert ALL == await counted(app_of(answering(short), tapped=[chunks]), store_url)


async def test_what_only_the_answer_knows_is_counted_too(store_url: str) -> None:  # F-32
    app = app_of(answering(whole()), whole(None, chat_usage(1000, 50)))
    assert ALL == await counted(app, store_url)
    # A figure that differs is of another call.
    other = chat_usage(1000, 50, prompt_tokens_details={"cached_tokens": 1})
    app = app_of(answering(whole("own-1", other)), whole())
    assert (2000, 100, 401) == (await counted(app, store_url))[:3]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_response_and_its_usage_object_are_one_call(order: int, store_url: str) -> None:  # F-33
    objects = [DETAILED, whole()][::order]
    assert ALL == await counted(app_of(done, *objects), store_url)
    assert ALL == await counted(app_of(answering(whole("own-1")), *objects), store_url)


FIRST, SECOND = whole("c1"), whole("c2", chat_usage(30, 7))
SUM = (1030, 57)


async def test_the_sum_of_reported_calls_is_no_call_of_its_own(store_url: str) -> None:  # F-33
    total = whole("own-1", chat_usage(*SUM))
    app = app_of(answering(total), FIRST, SECOND)
    assert SUM == (await counted(app, store_url))[:2]
    chunks = [[chat({"content": "Hi"}, id=n), chat(None, id=n, usage=chat_usage(5, 6))] for n in "ab"]
    app = app_of(answering(whole(None, chat_usage(10, 12))), tapped=chunks)
    assert (10, 12) == (await counted(app, store_url))[:2]
    # The calls, and then the usage of the whole run.
    assert SUM == (await counted(app_of(done, FIRST, SECOND, chat_usage(*SUM)), store_url))[:2]
    # Another figure than the sum is of another call.
    app = app_of(answering(whole("own-1", chat_usage(1030, 58))), FIRST, SECOND)
    assert (2060, 115) == (await counted(app, store_url))[:2]


def streaming(texts: Sequence[str], identity: str) -> Callable[[], Response]:
    """An answer in the shape of OpenAI's, without figures, under an id of the app's own."""
    events = [event.replace(b"chatcmpl-1", identity.encode()) for event in openai_stream(*texts)]
    return lambda: Response(b"".join([*events, b"data: [DONE]\n\n"]), media_type="text/event-stream")


async def test_a_text_without_figures_is_what_the_app_has_reported(store_url: str) -> None:  # F-31, F-33
    """Billed by its text, the answer would be paid twice."""
    app = app_of(streaming(["words "] * 40, "own-1"), whole("c1", chat_usage(1000, 50)))
    assert (1000, 50) == (await counted(app, store_url))[:2]


def cut(body: bytes) -> list[Any]:
    return [body[at : at + 7] for at in range(0, len(body), 7)]


def lines(body: bytes) -> list[Any]:
    return [*body.decode().splitlines()]


def texts(body: bytes) -> list[Any]:
    return [event + "\n\n" for event in body.decode().split("\n\n")]


@pytest.mark.parametrize("piece", [cut, lines, texts])
async def test_a_tap_reads_what_an_http_client_gives(  # F-34
    piece: Callable[[bytes], list[Any]], store_url: str
) -> None:
    events = [sse(chat({"content": "grüß"})), sse(chat(None, usage=DETAILED)), b"data: [DONE]\n\n"]
    for body in (b"".join(events), compact(whole())):
        assert ALL == await counted(app_of(done, tapped=[piece(body)]), store_url, "/none")
    head = {"model": "m", "created_at": "t"}
    said = {**head, "message": {"role": "assistant", "content": "Hi"}, "done": False}
    body = b"".join(
        compact(line) + b"\n"
        for line in (said, {**head, "done": True, "prompt_eval_count": 8, "eval_count": 9})
    )
    if len(piece(body)[0]) > 7:  # A line that is cut is not known for one.
        assert (8, 9) == (await counted(app_of(done, tapped=[piece(body)]), store_url, "/none"))[:2]


@pytest.mark.parametrize("chunks", [["Hel", "lo"], [object(), object()]])
async def test_a_tap_that_could_read_nothing_says_so_at_its_end(  # F-34
    chunks: list[Any], store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (0, 0) == (await counted(app_of(done, tapped=[chunks, chunks, []]), store_url, "/auto"))[:2]
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
        assert (0, 0) == (await counted(app_of(done, obj), store_url))[:2]
        assert "record_usage() found no token usage" in caplog.records[-1].getMessage()
    assert (0, 0) == (await counted(app_of(done, tapped=[[Refuses()]]), store_url))[:2]
    raw = httpx.Response(200, content=compact(whole()), request=httpx.Request("POST", "http://p"))
    assert ALL == await counted(app_of(done, raw), store_url)
