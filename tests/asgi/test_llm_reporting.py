"""Token usage that the app reports (record_usage, tap), and usage that it asks the provider for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from copy import deepcopy
from functools import partial
from time import thread_time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ConfigDict, create_model
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import meterkit
from drivers.app import Served
from drivers.llm_apps import METERS, PLANS, PROMPT, metered, openai_stream, stream_of, tokens
from drivers.plans import free_plan
from faults.refusals import eventually
from llm_payloads.recordings import LIE, anthropic_events, chat, chat_usage, compact, sse
from meterkit import MeterkitError
from meterkit.llm import ask_for_usage

pytestmark = pytest.mark.anyio

# What is counted is asked, not how soon.
PATIENT = {"store_timeout": 10.0}
LAST = b"data: [DONE]\n\n"
DETAILED = chat_usage(
    1000, 50, prompt_tokens_details={"cached_tokens": 400}, completion_tokens_details={"reasoning_tokens": 30}
)
ALL = (1000, 50, 400, 0, 30, 1050)


def whole(identity: str | None = "c1", usage: Any = DETAILED, **more: Any) -> dict[str, Any]:
    named = {} if identity is None else {"id": identity}
    choices = [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]
    return {**named, "object": "chat.completion", "model": "m", "choices": choices, "usage": usage, **more}


# As the SDKs' models are: unknown fields are kept.
MODEL = create_model("Model", __config__=ConfigDict(extra="allow", protected_namespaces=()))
CHUNKS = [chat({"content": "Hello, "}), chat({}, finish="stop"), chat(None, usage=chat_usage(3, 4))]
VECTORS = [{"object": "embedding", "index": 0, "embedding": [0.1]}]
EMBEDDINGS = {"object": "list", "data": VECTORS, "usage": {"prompt_tokens": 8, "total_tokens": 8}}
WHOLE = whole("c1", chat_usage(3, 4))


def anthropic() -> list[dict[str, Any]]:
    """The events of a stream that comes to 16 tokens in and 16 out."""
    seen: list[dict[str, Any]] = []

    def keep(value: dict[str, Any]) -> bytes:
        seen.append(value)
        return b""

    anthropic_events(keep)
    return seen


def calling(
    answer: Response | Callable[[], Response], *reported: Any, tapped: Sequence[Any] = ()
) -> Starlette:

    async def endpoint(request: Request) -> Response:
        await request.body()
        for obj in reported:
            meterkit.record_usage(obj)
        for chunks in tapped:
            _ = [chunk async for chunk in meterkit.tap(stream_of(chunks))]
        return answer if isinstance(answer, Response) else answer()

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])])


DONE = PlainTextResponse("done")


async def post(at: Served, path: str = "/none") -> int:
    return (await at.client.post(path, content=PROMPT)).status_code


async def becomes(at: Served, expected: tuple[int, int]) -> None:
    async def is_counted() -> bool:
        return await tokens(at.kit) == expected

    await eventually(is_counted)


OLLAMA = {"model": "m", "created_at": "t", "done": True, "prompt_eval_count": 8, "eval_count": 9}


@pytest.mark.parametrize(
    ("path", "objects", "recorded"),
    [
        ("/none", [MODEL.model_validate(WHOLE)], (3, 4)),
        ("/auto", [SimpleNamespace(**WHOLE)], (3, 4)),
        ("/none", [WHOLE, WHOLE, MODEL.model_validate(WHOLE)], (3, 4)),
        ("/auto", [WHOLE, {**WHOLE, "id": "c2"}], (6, 8)),
        ("/none", [WHOLE["usage"], WHOLE["usage"]], (6, 8)),
        ("/auto", [MODEL.model_validate(chunk) for chunk in CHUNKS], (3, 4)),
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
    async with metered(calling(DONE, *objects), store_url, plans=plans) as at:
        assert await post(at, path) == 200
        assert recorded == await tokens(at.kit)
        assert (1, 0) == await at.counted()
    assert [] == caplog.records


async def test_more_than_a_thousand_calls_of_a_request_count(store_url: str) -> None:
    calls = [{**WHOLE, "id": f"c{n}"} for n in range(1_010)]
    async with metered(calling(DONE, *calls), store_url) as at:
        await post(at)
        assert (3 * 1_010, 4 * 1_010) == await tokens(at.kit)


async def test_calls_beyond_the_bound_of_a_request_are_named(
    store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_usage.objects._REPORTED_MAX", 2)
    calls = [{**WHOLE, "id": f"c{n}"} for n in range(3)]
    async with metered(calling(DONE, *calls), store_url) as at:
        await post(at)
        assert (6, 8) == await tokens(at.kit)
    assert "reports more model calls than meterkit distinguishes" in caplog.text


async def test_an_object_without_usage_warns_once(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with metered(calling(DONE, *[whole("c1", None)] * 2), store_url) as at:
        assert (await post(at), await tokens(at.kit), await at.counted()) == (200, (0, 0), (1, 0))
    (said,) = caplog.messages
    assert "/none: record_usage() found no token usage in an object of type dict: " in said


MISNAMED = free_plan(
    "{requests: {unit: request}, tokens: {unit: token}, web_searches: {unit: search}}",
    top="""routes:
  - {match: "/auto", usage: auto}
  - {match: "/fields", usage: auto, usage_fields: {tokens: usage.total_tokens}}
  - {match: "*"}""",
)


@pytest.mark.parametrize(
    "app", [calling(DONE, WHOLE), calling(DONE, tapped=[CHUNKS]), calling(JSONResponse(WHOLE))]
)
async def test_usage_that_no_meter_counts_is_logged_once(
    app: Starlette, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with metered(app, store_url, plans=MISNAMED) as at:
        assert [await post(at, "/auto") for _ in range(3)] == [200] * 3
        assert (0, 0) == await tokens(at.kit, "tokens", "web_searches")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "no meter counts the usage of a model call: its figures are input_tokens, output_tokens,"
        " total_tokens, and the meters of plans.yaml that can count are requests, tokens, web_searches; usage"
        " counts only on a meter with the name of a figure: call one total_tokens, or input_tokens and"
        " output_tokens; logged once for these figures"
    )


async def test_each_set_of_uncounted_figures_is_logged(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with metered(calling(DONE, whole("c1"), whole("c2")), store_url, plans=MISNAMED) as at:
        await post(at)
        await at.kit.record_usage("acme", WHOLE)
        await at.kit.record_usage("acme", {**WHOLE, "id": "c3"})
    assert len(caplog.messages) == 2
    assert "cache_read_tokens, cached_input_tokens" in caplog.messages[0]


async def test_a_figure_of_usage_fields_is_counted(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with metered(calling(JSONResponse(WHOLE)), store_url, plans=MISNAMED) as at:
        await post(at, "/fields")
        assert (7,) == await tokens(at.kit, "tokens")
    assert [] == caplog.messages


async def test_outside_of_a_request_all_say_so() -> None:
    restore = ask_for_usage(ASKED).restore
    for call, name in ((meterkit.record_usage, "record_usage"), (meterkit.tap, "tap"), (restore, r"\w+")):
        with pytest.raises(MeterkitError, match=rf"{name}\(\) was called outside of a request"):
            call([])


async def test_a_tap_passes_on_the_very_same_chunks(store_url: str) -> None:
    async def endpoint(_: Request) -> Response:
        for taken in (
            [chunk async for chunk in meterkit.tap(stream_of(CHUNKS))],
            [*meterkit.tap(iter(CHUNKS))],
        ):
            assert all(given is chunk for given, chunk in zip(CHUNKS, taken, strict=True))
        return DONE

    async with metered(Starlette(routes=[Route("/none", endpoint, methods=["POST"])]), store_url) as at:
        assert await post(at) == 200
        assert (3, 4) == await tokens(at.kit)  # Of one id, and so of one call.


async def test_a_better_report_of_a_call_wins(store_url: str) -> None:
    stream = Response(b"".join(map(sse, CHUNKS)), media_type="text/event-stream")
    async with metered(calling(stream, chat({"content": "x"}, usage=chat_usage(3, 1))), store_url) as at:
        await post(at, "/openai")
        assert (3, 4) == await tokens(at.kit)


@pytest.mark.parametrize(("path", "entered"), [("/none", False), ("/auto", True)])
async def test_a_tapped_stream_without_usage_is_estimated(path: str, entered: bool, store_url: str) -> None:
    async with metered(calling(DONE, tapped=[CHUNKS[:2]]), store_url) as at:
        await post(at, path)
        input_tokens, output_tokens = await tokens(at.kit)
    assert (entered, True) == (input_tokens > 0, output_tokens > 0)


@pytest.mark.parametrize("path", ["/none", "/auto"])
async def test_what_is_reported_after_the_response_is_counted(path: str, store_url: str) -> None:
    async def later() -> None:
        await asyncio.to_thread(meterkit.record_usage, {**WHOLE, "id": "c2"})
        _ = [chunk async for chunk in meterkit.tap(stream_of([{**chunk, "id": "c3"} for chunk in CHUNKS]))]

    answer = PlainTextResponse("done", background=BackgroundTask(later))
    async with metered(calling(answer, WHOLE), store_url) as at:
        await post(at, path)
        await becomes(at, (9, 12))


async def test_a_late_report_counts_beyond_what_was_counted(store_url: str) -> None:
    def later() -> None:
        for output in (2, 9, 5, 9):
            meterkit.record_usage({**WHOLE, "usage": chat_usage(3, output)})

    async with metered(calling(JSONResponse(WHOLE, background=BackgroundTask(later))), store_url) as at:
        await post(at, "/auto")
        await becomes(at, (3, 9))


MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "model": "claude",
    "content": [],
    "usage": {"input_tokens": 600, "output_tokens": 50, "cache_read_input_tokens": 400},
}


async def counted(app: Starlette, store_url: str, path: str = "/auto") -> tuple[int, ...]:
    async with metered(app, store_url, settings=PATIENT) as at:
        assert 200 == (await at.client.post(path, json={})).status_code
        return await tokens(at.kit, *METERS)


@pytest.mark.parametrize(
    ("reported", "identity"), [(whole(), "c1"), (MESSAGE, "own-1"), (DETAILED, None), (whole(None), "c1")]
)
async def test_an_answer_without_details_counts(reported: Any, identity: str | None, store_url: str) -> None:
    short = whole(identity, chat_usage(1000, 50))
    expected = (*ALL[:4], 0 if reported is MESSAGE else ALL[4], ALL[5])
    assert expected == await counted(calling(JSONResponse(short), reported), store_url)
    chunks = [chat({"content": "Hi"}, id="c1"), chat(None, id="c1", usage=DETAILED)]
    assert ALL == await counted(calling(JSONResponse(short), tapped=[chunks]), store_url)


async def test_what_only_the_answer_knows_is_counted_too(store_url: str) -> None:  # F-32
    app = calling(JSONResponse(whole()), whole(None, chat_usage(1000, 50)))
    assert ALL == await counted(app, store_url)
    # A figure that differs is of another call.
    other = chat_usage(1000, 50, prompt_tokens_details={"cached_tokens": 1})
    app = calling(JSONResponse(whole("own-1", other)), whole())
    assert (2000, 100, 401) == (await counted(app, store_url))[:3]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_response_and_its_usage_object_are_one_call(order: int, store_url: str) -> None:  # F-33
    objects = [DETAILED, whole()][::order]
    assert ALL == await counted(calling(DONE, *objects), store_url)
    assert ALL == await counted(calling(JSONResponse(whole("own-1")), *objects), store_url)


FIRST, SECOND = whole("c1"), whole("c2", chat_usage(30, 7))
SUM = (1030, 57)


async def test_the_sum_of_reported_calls_is_no_call_of_its_own(store_url: str) -> None:  # F-33
    app = calling(JSONResponse(whole("own-1", chat_usage(*SUM))), FIRST, SECOND)
    assert SUM == (await counted(app, store_url))[:2]
    chunks = [[chat({"content": "Hi"}, id=n), chat(None, id=n, usage=chat_usage(5, 6))] for n in "ab"]
    app = calling(JSONResponse(whole(None, chat_usage(10, 12))), tapped=chunks)
    assert (10, 12) == (await counted(app, store_url))[:2]
    # The calls, and then the usage of the whole run.
    assert SUM == (await counted(calling(DONE, FIRST, SECOND, chat_usage(*SUM)), store_url))[:2]
    # Another figure than the sum is of another call.
    app = calling(JSONResponse(whole("own-1", chat_usage(1030, 58))), FIRST, SECOND)
    assert (2060, 115) == (await counted(app, store_url))[:2]


async def test_a_text_without_figures_is_what_the_app_has_reported(store_url: str) -> None:  # F-31, F-33
    """Billed by its text, the answer would be paid twice."""
    events = [event.replace(b"chatcmpl-1", b"own-1") for event in openai_stream(*["words "] * 40)]
    answer = Response(b"".join([*events, LAST]), media_type="text/event-stream")
    assert (1000, 50) == (await counted(calling(answer, whole("c1", chat_usage(1000, 50))), store_url))[:2]


def pieces(body: bytes, size: int) -> list[Any]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def texts(body: bytes, size: int) -> list[Any]:
    return pieces(body.decode(), size)  # type: ignore[arg-type] # a text is cut as bytes are


def lines(body: bytes, _: int) -> list[Any]:
    return [*body.decode().splitlines()]


@pytest.mark.parametrize(("piece", "size"), [(pieces, 7), (lines, 0), (texts, 7), (texts, 10_000)])
async def test_a_tap_reads_what_an_http_client_gives(
    piece: Callable[[bytes, int], list[Any]], size: int, store_url: str
) -> None:
    events = [sse(chat({"content": "grüß"})), sse(chat(None, usage=DETAILED)), LAST]
    for body in (b"".join(events), compact(whole())):
        assert ALL == await counted(calling(DONE, tapped=[piece(body, size)]), store_url, "/none")
    said = {"model": "m", "created_at": "t", "message": {"content": "Hi"}, "done": False}
    body = compact(said) + b"\n" + compact(OLLAMA) + b"\n"
    if size != 7:  # A line that is cut is not known for one.
        assert (8, 9) == (await counted(calling(DONE, tapped=[piece(body, size)]), store_url, "/none"))[:2]


@pytest.mark.parametrize("chunks", [["Hel", "lo"], [object(), object()]])
async def test_a_tap_that_could_read_nothing_says_so_at_its_end(
    chunks: list[Any], store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (0, 0) == (await counted(calling(DONE, tapped=[chunks, chunks, []]), store_url, "/auto"))[:2]
    (said,) = caplog.messages
    assert f"/auto: tap() found no token usage in a stream of type {type(chunks[0]).__name__}: " in said
    assert "get_final_message()" in said


class Refuses:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


async def test_reporting_never_raises_into_the_app(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    unread = httpx.Response(200, stream=httpx.ByteStream(b"{}"), request=httpx.Request("POST", "http://p"))
    for obj in (Refuses(), unread):
        assert (0, 0) == (await counted(calling(DONE, obj), store_url))[:2]
        assert "record_usage() found no token usage" in caplog.records[-1].getMessage()
    assert (0, 0) == (await counted(calling(DONE, tapped=[[Refuses()]]), store_url))[:2]
    raw = httpx.Response(200, content=compact(whole()), request=httpx.Request("POST", "http://p"))
    assert ALL == await counted(calling(DONE, raw), store_url)


BARE = PLANS.replace(
    "routes:",
    'routes:\n  - {match: "/bare", usage: auto}\n  - {match: "/reserved", usage: auto,'
    " reserve: {output_tokens: {from: max_tokens, default: 9, ceiling: 9}}}",
)
BY_MODEL = BARE.replace(
    "routes:", '  mini: {unit: token, from: output_tokens, where: {model: "*-mini"}}\nroutes:', 1
)
ROUGH = BARE + "billing: {sources: [estimated]}\n"


def sent(status: int) -> Response:
    return JSONResponse({**WHOLE, "model": "a-mini"}, status)


def reported(status: int) -> Response:
    meterkit.record_usage(chat_usage(3, 4))
    return PlainTextResponse("done", status)


def late(status: int) -> Response:
    return PlainTextResponse(
        "done", status, background=BackgroundTask(meterkit.record_usage, chat_usage(3, 4))
    )


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
    async with metered(calling(partial(answer, status)), store_url, plans=plans, settings=PATIENT) as at:

        async def is_rated() -> bool:
            fits, beyond = [await at.kit.check("acme", "output_tokens", 10**9 - n) for n in (4, 3)]
            return fits.allowed and not beyond.allowed

        assert status == await post(at, path)
        await eventually(is_rated)
        assert (0, 0) == await tokens(at.kit)


ASKED: dict[str, Any] = {"model": "m", "messages": [], "stream": True}
SAID = [chat({"content": "Hi"}, usage=None), chat({"content": LIE}, usage=None), chat({}, finish="stop")]
EXTRA = chat(None, usage=chat_usage(3, 4))
AZURES = chat(None, prompt_filter_results=[], usage=None)  # As Azure begins its streams.


@pytest.mark.parametrize(
    ("more", "options", "hides"),
    [
        ({"stream_options": None}, {"include_usage": True}, True),
        ({"stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}, True),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}, False),
        ({"stream_options": "odd"}, "odd", False),
        ({"stream": False}, None, False),
    ],
)
def test_the_provider_is_always_asked(more: dict[str, Any], options: object, *, hides: bool) -> None:
    given = {**ASKED, **more}
    before = deepcopy(given)
    body, restore = ask_for_usage(given)
    assert (options, hides) == (body.get("stream_options"), restore.hides)
    assert before == given
    assert {**body, "stream_options": 0} == {**given, "stream_options": 0}
    assert ask_for_usage(given, supported=False).body == given


async def through(
    chunks: Sequence[Any], store_url: str, *, asked: dict[str, Any] = ASKED, sync: bool = False
) -> tuple[list[Any], tuple[int, ...]]:
    left: list[Any] = []

    async def endpoint(_request: Request) -> Response:
        _, restore = ask_for_usage(asked)
        if sync:
            left.extend(await asyncio.to_thread(lambda: list(restore(chunks))))
        else:
            left.extend([chunk async for chunk in restore(stream_of(chunks))])
        return DONE

    async with metered(Starlette(routes=[Route("/none", endpoint)]), store_url, settings=PATIENT) as at:
        assert await at.statuses("/none") == [200]
        return left, await tokens(at.kit)


@pytest.mark.parametrize(("kind", "sync"), [(dict, False), (SimpleNamespace, True)])
async def test_an_extra_object_counts_hidden(kind: Callable[..., Any], store_url: str, *, sync: bool) -> None:
    chunks = [kind(**chunk) for chunk in (AZURES, *SAID, EXTRA)]
    left, counted = await through(chunks, store_url, sync=sync)
    assert chunks[:-1] == left
    assert all(given is kept for given, kept in zip(chunks, left, strict=False))
    assert (3, 4) == counted
    asked = {**ASKED, "stream_options": {"include_usage": True}}
    assert chunks == (await through(chunks, store_url, asked=asked, sync=sync))[0]


@pytest.mark.parametrize(
    ("cut", "sizes", "end"),
    [
        (pieces, (1, 64, 10_000), b"\r\n"),
        (pieces, (1, 64), b"\r"),
        (texts, (64,), b"\n"),
        (lines, (0,), b"\n"),
    ],
)
async def test_of_bytes_texts_and_lines_too(
    cut: Callable[[bytes, int], list[Any]], sizes: list[int], end: bytes, store_url: str
) -> None:
    def stream(*chunks: Any) -> bytes:
        return b": hello" + end + end + b"".join(sse(chunk, end=end) for chunk in chunks) + LAST

    whole, expected = stream(AZURES, *SAID, EXTRA), stream(AZURES, *SAID)
    for size in sizes:
        left, counted = await through(cut(whole, size), store_url)
        assert (3, 4) == counted
        if cut is lines:
            assert [line for line in lines(expected, 0) if line] == [line for line in left if line]
        else:
            assert expected == b"".join(part if cut is pieces else part.encode() for part in left)


async def test_texts_that_begin_within_a_line_count_hidden(store_url: str) -> None:
    whole, expected = (b"".join(map(sse, some)) + LAST for some in ((*SAID, EXTRA), SAID))
    for size in (1, 5, 64):
        left, counted = await through(texts(whole, size), store_url)
        assert ("".join(left).encode(), counted) == (expected, (3, 4))
    event, rest = sse(SAID[0]).decode(), [sse(EXTRA).decode(), LAST.decode()]
    left, counted = await through(["data: ", *event.removeprefix("data: ").partition("\n"), *rest], store_url)
    assert ("".join(left), counted) == (event + LAST.decode(), (3, 4))


async def test_an_event_byte_by_byte_takes_linear_time(store_url: str) -> None:
    """Each byte is searched once; looking from the event's start each time takes ten seconds and more."""
    event = sse({**SAID[0], "padding": "x" * 60_000})
    chunks = [event[at : at + 1] for at in range(len(event))]
    begun = thread_time()
    left, _ = await through([*chunks, sse(EXTRA), LAST], store_url)
    assert thread_time() - begun < 8
    assert event + LAST == b"".join(left)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
async def test_the_end_of_a_large_event_is_found_however_cut(end: bytes, store_url: str) -> None:
    long = b"data: " + b"b" * 70_000
    for size in (1, 3):
        cut = [end[at : at + size] for at in range(0, len(end), size)]
        left, counted = await through([long, *cut, sse(EXTRA, end=b"\r\n")[:-1], b"\n", LAST], store_url)
        assert (b"".join(left), counted) == (long + end + LAST, (3, 4))


@pytest.mark.parametrize("sync", [False, True])
async def test_a_stream_whose_end_is_torn_off_passes_to_the_last_byte(store_url: str, *, sync: bool) -> None:
    torn = sse(SAID[0]) + b'data: {"choices": [], "usage": {"prom'
    left, _ = await through([torn[:50], torn[50:]], store_url, sync=sync)
    assert torn == b"".join(left)
    left, counted = await through([sse(SAID[0]), sse(EXTRA).rstrip()], store_url, sync=sync)
    assert [sse(SAID[0])] == left
    assert (3, 4) == counted


async def test_closing_closes_the_stream_and_counts_what_has_come(store_url: str) -> None:
    closed: list[bool] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[Any]:
            return stream_of([SAID[0], EXTRA])

        async def aclose(self) -> None:
            closed.append(True)

    async def endpoint(_: Request) -> Response:
        stream = ask_for_usage(ASKED).restore(Stream())
        assert SAID[0] == await anext(stream)
        await stream.aclose()
        return DONE

    async with metered(Starlette(routes=[Route("/attempt", endpoint)]), store_url, settings=PATIENT) as at:
        assert await at.statuses("/attempt") == [200]
        assert (await tokens(at.kit))[1] > 0
    assert [True] == closed
