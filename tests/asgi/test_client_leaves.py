"""Clients that leave: what the outcome is, and what is billed of the model calls that they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import meterkit
from drivers.app import Served, http_scope, ignore, staying
from drivers.installed import installed
from drivers.llm_apps import (
    PLANS,
    PROMPT,
    PROMPT_TOKENS,
    RaisingServer,
    answering,
    listening,
    metered,
    openai_stream,
    stream_of,
    text_tokens,
    tokens,
)
from faults.refusals import eventually, settled
from llm_payloads.recordings import chat, chat_usage, compact, gemini_chunk, sse
from meterkit import current
from meterkit.llm import stop_on_disconnect

pytestmark = pytest.mark.anyio

SSE: Final = "text/event-stream"
TEXTS: Final = ("Hello, ", "wörld. ", "All is well.")
CHUNKS: Final = openai_stream(*TEXTS)
USAGE: Final = sse(chat(None, usage=chat_usage(50, 60)))
ASKED: Final = "What is in my file?"
OUTCOMES: Final = ("success", "client_gone", "client_error", "server_error")
LEFT: Final = PLANS.replace(
    "routes:\n",
    "  pages: {unit: page}\nroutes:\n"
    + "".join(
        f'  - {{match: "/{name}", consume: {{requests: 1}}, usage: auto, charge_on: [{name}]}}\n'
        for name in OUTCOMES
    )
    + '  - {match: "/repeated", consume: {requests: 1}, idempotency_header: idempotency-key}\n'
    '  - {match: "/reserved", consume: {requests: 1}, usage: openai,'
    " reserve: {output_tokens: {from: max_tokens, default: 500, ceiling: 500}}}\n",
)


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


async def gone(request: Request) -> None:
    while not await request.is_disconnected():  # noqa: ASYNC110 - it is what apps do
        await asyncio.sleep(0.002)


class Unheard(StreamingResponse):
    """Leaves it to its body to look whether the client is there, as servers of ASGI 2.4 have it."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def app_of(endpoint: Any, *inside: Any) -> Starlette:
    return Starlette(
        routes=[Route("/{path:path}", endpoint, methods=["POST"])],
        middleware=[Middleware(each) for each in inside],
    )


async def forever(_: Request) -> None:
    await anyio.sleep_forever()


def streaming(
    chunks: Sequence[bytes],
    kind: str = SSE,
    *inside: Any,
    rest: Callable[[Request], Awaitable[object]] = forever,
    response: type[StreamingResponse] = StreamingResponse,
) -> Starlette:
    """An app that streams, and ends once its client is gone, or does not end before."""

    async def endpoint(request: Request) -> Response:
        assert await request.body()

        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk
            await rest(request)
            if rest is not gone:
                yield b": too late\n\n"
                raise AssertionError("the app was not stopped")

        return response(body(), headers={"content-type": kind})

    return app_of(endpoint, *inside)


class LeavingClient:
    """A client that sends its request and leaves at once, or when it has got so many chunks.

    Args:
        raises: whether the server's ``send`` raises then.
        waits: whether it leaves when the response has started.
    """

    def __init__(
        self, *, after: int = 0, raises: bool = False, waits: bool = False, body: bytes = PROMPT
    ) -> None:
        self._left, self._raises = after, raises
        half = len(body) // 2
        self._said: list[Message] = [
            {"type": "http.request", "body": body[half:], "more_body": False},
            {"type": "http.request", "body": body[:half], "more_body": True},
        ]
        self._gone = asyncio.Event()
        if not (after or waits):
            self._gone.set()

    async def receive(self) -> Message:
        if self._said:
            return self._said.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._raises and self._gone.is_set() and message["type"] == "http.response.body":
            raise OSError("the client has left")
        if message.get("body"):
            self._left -= 1
        if self._left <= 0:
            self._gone.set()

    async def ask(self, at: Served, path: str, *, headers: Any = ()) -> None:
        asgi = {"version": "3.0", "spec_version": "2.4" if self._raises else "2.3"}
        scope = http_scope(path, method="POST", asgi=asgi)
        scope["headers"] = [*scope["headers"], *headers]
        await asyncio.gather(at.app(scope, self.receive, self.send), return_exceptions=True)
        await settled(at.kit)


async def left(
    at: Served,
    path: str,
    protocol: str,
    *,
    after: bytes,
    outside: Any = None,
    until: asyncio.Event | None = None,
) -> None:
    """A client asks, and leaves once some bytes have come or at an event; until all is settled."""
    app, over = at.app if outside is None else outside(at.app), asyncio.Event()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            over.set()

    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\ncontent-length: {len(PROMPT)}\r\n\r\n"
    async with listening(watched, http=protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + PROMPT)
        if after:
            await reader.readuntil(after)
        if until is not None:
            await until.wait()
        writer.close()
        await writer.wait_closed()
        await over.wait()
    lane = at.kit.store.lanes[asyncio.get_running_loop()]
    await eventually(lambda: lane.unsettled == 0)


@pytest.mark.parametrize(
    ("how", "path", "protocol"),
    [
        ("polling", "/auto", "h11"),
        ("base inside", "/attempt", "httptools"),
        ("base outside", "/client_gone", "h11"),
        ("gzip outside", "/auto", "httptools"),
        ("figures first", "/auto", "h11"),
    ],
)
async def test_leaving_before_usage_pays_for_text(how: str, path: str, protocol: str, store_url: str) -> None:
    """F-7: the response ends as it should, but nobody was there to get it."""
    has_figures = how == "figures first"
    after, found = TEXTS[-1].encode(), (PROMPT_TOKENS, text_tokens(*TEXTS))
    if has_figures:
        after, found = b'"total_tokens":110', (50, 60)
    if "base" in how:  # Behind it is_disconnected() never says so: there the response listens.
        app = streaming(CHUNKS, SSE, *([PassingOn] if how == "base inside" else []))
    else:
        app = streaming([*CHUNKS, *([USAGE] if has_figures else [])], rest=gone, response=Unheard)
    outside = {"base outside": PassingOn, "gzip outside": GZipMiddleware}.get(how)
    async with metered(app, store_url, plans=LEFT) as at:
        await left(at, path, protocol, after=after, outside=outside)
        assert found == await tokens(at.kit)
        assert await at.counted() == (1, 0)


@pytest.mark.each_loop
@pytest.mark.parametrize(
    ("path", "requests", "protocol"),
    [("/none", 1, "h11"), ("/client_gone", 0, "httptools"), ("/server_error", 0, "h11")],
)
async def test_leaving_early_pays_an_answer(path: str, requests: int, protocol: str, store_url: str) -> None:
    """F-20e: the work was done, whether the app has looked or not; uvicorn drops what is sent then."""
    asked = asyncio.Event()

    async def answers(request: Request) -> Response:
        assert await request.body() == PROMPT
        asked.set()
        await gone(request)
        assert current().customer == "acme"
        return JSONResponse({"choices": [{"message": {"content": "x" * 300}}], "usage": chat_usage(5, 6)})

    async with metered(app_of(answers), store_url, plans=LEFT) as at:
        await left(at, path, protocol, after=b"", until=asked)
        assert await at.counted() == (requests, 0)


@pytest.mark.parametrize(
    ("spec", "path", "sent", "recorded", "requests"),
    [
        ("2.3", "/openai", 0, (0, 0), 0),
        ("2.4", "/attempt", 0, (0, 0), 1),
        ("2.3", "/openai", 1, (PROMPT_TOKENS, text_tokens(TEXTS[0])), 1),
        ("2.4", "/auto", 3, (PROMPT_TOKENS, text_tokens(*TEXTS)), 1),
    ],
)
async def test_a_hang_up_is_billed_what_was_generated_by_then(
    spec: str, path: str, sent: int, recorded: tuple[int, int], requests: int, store_url: str
) -> None:
    gone = asyncio.Event()

    def raising(app: ASGIApp) -> ASGIApp:
        server = RaisingServer(app)
        server.gone = gone
        return server

    outside = raising if spec == "2.4" else None
    async with metered(streaming(CHUNKS[:sent], rest=lambda _: gone.wait()), store_url) as at:
        await left(at, path, "h11", after=CHUNKS[sent - 1][-20:] if sent else b"\r\n\r\n", outside=outside)
        assert recorded == await tokens(at.kit)
        assert (requests, 0) == await at.counted()


def answers(make: Any, *, looks: bool = True) -> Any:
    """An endpoint that answers once it has heard that its client has left, or without a look."""

    async def endpoint(request: Request) -> Response:
        if looks:
            await request.body()
            assert await request.is_disconnected()
        if isinstance(made := make(), BaseException):
            raise made
        return made  # type: ignore[no-any-return]

    return endpoint


def a_document() -> Response:
    return JSONResponse({"answer": 42})


def a_stream() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b"piece"

    return StreamingResponse(pieces())


async def silent(_scope: Any, receive: Any, _send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def begun_too_late(scope: Any, receive: Any, send: Any) -> None:
    """Begin an answer once the client has left, and be cancelled in the midst of it."""
    await silent(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"piece", "more_body": True})
    raise asyncio.CancelledError


STREAMED: Final = answers(lambda: StreamingResponse(stream_of([b"piece", b"piece"])))
CASES: Final[dict[str, tuple[Any, bool, str]]] = {
    # The app finished its work: an answer that no client takes is an answer.
    "a document by an app that looks": (answers(a_document), False, "success"),
    "a document by an app that does not look": (answers(a_document, looks=False), False, "success"),
    "a document where sending raises": (answers(a_document, looks=False), True, "success"),
    "no content": (answers(lambda: Response(status_code=204)), False, "success"),
    "not found": (answers(lambda: JSONResponse({}, 404)), False, "client_error"),
    "not found where sending raises": (answers(lambda: JSONResponse({}, 404)), True, "client_error"),
    "an error of the server": (answers(lambda: JSONResponse({}, 500)), False, "server_error"),
    # It was stopped, or stopped by itself.
    "an app that raises": (answers(RuntimeError), False, "server_error"),
    "an app that is cancelled": (answers(asyncio.CancelledError), False, "server_error"),
    "an app without an answer": (silent, False, "server_error"),
    "a stream that begins when nobody listens": (begun_too_late, False, "server_error"),
    "a stream that is cancelled": (answers(a_stream, looks=False), False, "server_error"),
    "a stream whose first piece cannot be sent": (STREAMED, True, "server_error"),
}


@pytest.mark.parametrize("case", CASES)
async def test_f20e_only_an_app_that_answers_has_succeeded(case: str, store_url: str) -> None:
    endpoint, raises, expected = CASES[case]
    app: ASGIApp = endpoint if endpoint in {silent, begun_too_late} else app_of(endpoint)
    async with metered(app, store_url, plans=LEFT) as at:
        billed: list[str] = []
        for name in OUTCOMES:
            before = (await at.counted())[0]
            await LeavingClient(raises=raises).ask(at, f"/{name}")
            billed += [name] * ((await at.counted())[0] - before)
    assert billed == [expected]


async def test_f20e_a_stream_cut_behind_a_middleware_is_no_answer(store_url: str) -> None:
    """Such a middleware ends the response as if it were whole: nothing was in it."""
    async with metered(app_of(answers(a_stream, looks=False), PassingOn), store_url, plans=LEFT) as at:
        for path, requests in (("/success", 0), ("/client_gone", 0), ("/server_error", 1)):
            await LeavingClient(waits=True).ask(at, path)
            assert await at.counted() == (requests, 0)


async def test_f20e_an_answer_to_a_part_of_a_request_is_not_billed(store_url: str) -> None:
    """The client left within its own body; the app answers to the part that came."""
    leaves: Message = {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await silent(scope, receive, send)
        await a_document()(scope, receive, send)

    async with metered(app, store_url, plans=LEFT) as at:

        async def begin(method: str, path: str) -> None:
            said: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, leaves, leaves]
            scope = http_scope(path, method=method)
            scope["headers"] = [*scope["headers"], (b"content-length", b"100")]

            async def receive() -> Message:
                return said.pop(0)

            await at.app(scope, receive, ignore)
            await settled(at.kit)

        for path in ("/success", "/reserved"):
            await begin("POST", path)
            assert await at.counted() == (0, 0)
        # An app that does not look has not answered to the part.
        for nth, path in enumerate(("/success", "/reserved"), 1):
            await begin("PUT", path)
            assert await at.counted() == (nth, 0)
        # A request without a body is whole, though its client had left when it was first read.
        for nth, asked in enumerate(("POST /success", "POST /reserved", "GET /success", "GET /reserved"), 3):
            method, _, path = asked.partition(" ")
            await at.app(http_scope(path, method=method), lambda: asyncio.sleep(0, leaves), ignore)
            await settled(at.kit)
            assert await at.counted() == (nth, 0)


def told(how: str) -> Any:
    """An endpoint that has called a model when it hears that its client has left."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        if how == "tap":
            with suppress(asyncio.CancelledError):
                async for _ in meterkit.tap(stream_of([chat({"content": text}) for text in TEXTS])):
                    break
        elif how == "record":
            meterkit.record(output_tokens=7, pages=2)
        else:
            meterkit.record_usage(chat({"content": "Four."}, usage=chat_usage(5, 6)))
        assert await request.is_disconnected()
        if how.startswith("status"):
            return Response(status_code=int(how[-3:]))
        raise RuntimeError("there is no client to work for")

    return endpoint


@pytest.mark.parametrize(
    ("how", "path", "recorded"),
    [
        ("usage", "/openai", (5, 6)),
        ("status 499", "/none", (5, 6)),
        ("status 500", "/reserved", (5, 6)),
        ("record", "/openai", (0, 7)),
        ("tap", "/reserved", (PROMPT_TOKENS, text_tokens(TEXTS[0]))),
        ("tap", "/none", (0, text_tokens(TEXTS[0]))),
    ],
)
async def test_f20e_usage_by_then_is_billed_and_the_request_is_not(
    how: str, path: str, recorded: tuple[int, int], store_url: str
) -> None:
    async with metered(app_of(told(how)), store_url, plans=LEFT) as at:
        await LeavingClient().ask(at, path)
        assert recorded == await tokens(at.kit)
        assert (await at.counted(), await at.counted(meter="output_tokens")) == ((0, 0), (recorded[1], 0))
        assert (2 if how == "record" else 0, 0) == await at.counted(meter="pages")


@pytest.mark.skipif(installed("starlette") < (0, 42), reason="it reads a stream to its end")
@pytest.mark.parametrize(
    ("path", "prompt"), [("/auto", text_tokens(ASKED)), ("/openai", text_tokens(ASKED)), ("/none", 0)]
)
async def test_a_tap_closed_after_its_request_counts_the_prompt(
    path: str, prompt: int, store_url: str
) -> None:
    async def words() -> AsyncIterator[str]:
        async for chunk in meterkit.tap(stream_of([chat({"content": text}) for text in TEXTS])):
            yield chunk["choices"][0]["delta"]["content"]

    async def endpoint(request: Request) -> Response:
        await request.body()
        return StreamingResponse(words(), media_type="text/plain")

    async with metered(app_of(endpoint), store_url, plans=LEFT) as at:
        await LeavingClient(after=1, raises=True, body=compact({"text": ASKED})).ask(at, path)
        expected = (prompt, text_tokens(*TEXTS[:2]))

        async def is_counted() -> bool:
            return await tokens(at.kit) == expected

        await eventually(is_counted)


@pytest.mark.parametrize("goes_on", [False, True])
async def test_an_open_tap_counts_as_its_request_ends(goes_on: bool, store_url: str) -> None:
    """Only the garbage collector ends a generator that is in a cycle; one that goes on adds the rest."""
    ended = asyncio.Event()
    held: list[AsyncIterator[bytes]] = []
    reading: list[asyncio.Task[None]] = []

    async def words(said: list[Any]) -> AsyncIterator[bytes]:
        async for chunk in meterkit.tap(stream_of(said)):
            for choice in chunk["choices"]:
                yield (choice["delta"].get("content") or "").encode()

    async def read_on(stream: AsyncIterator[bytes]) -> None:
        await ended.wait()
        async for _ in stream:
            pass

    async def endpoint(request: Request) -> Response:
        await request.body()
        texts = [chat({"content": text}) for text in TEXTS]
        stream = words([*texts, chat(None, usage=chat_usage(9, 500))])
        first = [await anext(stream), await anext(stream)]
        held.append(stream)
        if goes_on:
            reading.append(asyncio.create_task(read_on(stream)))

        async def body() -> AsyncIterator[bytes]:
            yield b"".join(first)
            await anyio.sleep_forever()

        return StreamingResponse(body(), media_type="text/plain")

    async with metered(app_of(endpoint), store_url) as at:
        await LeavingClient(after=1).ask(at, "/openai")
        assert (PROMPT_TOKENS, text_tokens(*TEXTS[:2])) == await tokens(at.kit)
        ended.set()
        await asyncio.gather(*reading)
        held.clear()
        await settled(at.kit)
        expected = (9, 500) if goes_on else (PROMPT_TOKENS, text_tokens(*TEXTS[:2]))
        assert expected == await tokens(at.kit)


@pytest.mark.skipif(installed("starlette") < (0, 42), reason="it reads a stream to its end")
async def test_f20e_text_that_could_not_be_sent_any_more_is_estimated(store_url: str) -> None:
    app = StreamingResponse(stream_of(openai_stream("Hello, world.")), media_type=SSE)
    async with metered(app, store_url, plans=LEFT) as at:
        await LeavingClient(raises=True).ask(at, "/openai")
        assert await tokens(at.kit) == (1, text_tokens("Hello, world."))
        assert await at.counted() == (0, 0)


async def test_f20e_a_repeat_of_a_billed_request_bills_nothing(store_url: str) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        meterkit.record(output_tokens=7)
        if request.url.query:
            return a_document()
        assert await request.is_disconnected()
        raise RuntimeError("there is no client to work for")

    async with metered(app_of(endpoint), store_url, plans=LEFT) as at:
        await at.client.post("/repeated?answer", content=PROMPT, headers={"idempotency-key": "k1"})
        await LeavingClient().ask(at, "/repeated", headers=[(b"idempotency-key", b"k1")])
        assert (await at.counted(meter="output_tokens"), await at.counted()) == ((7, 0), (1, 0))


async def test_text_after_the_last_figures_is_estimated_on_top(store_url: str) -> None:
    """Anthropic tells of the output first at the start, and then only at the end."""
    start = {"id": "m", "type": "message", "model": "c", "usage": {"input_tokens": 9, "output_tokens": 1}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 300}}
    chunks = [sse({"type": "message_start", "message": start}), sse(text)]
    # F-125: without estimates the bill has the provider's last report, and never nothing.
    cases = {"[reported, partial, estimated]": (9, 76), "[reported, partial]": (9, 1), "[reported]": (0, 0)}
    for sources, recorded in cases.items():
        plans = PLANS + f"billing: {{sources: {sources}}}\n"
        async with metered(streaming(chunks), store_url, plans=plans) as at:
            await LeavingClient(after=2).ask(at, "/anthropic")
            assert recorded == await tokens(at.kit)
            (rates,) = [rate for rate in await at.kit.rates("acme") if rate["meter"] == "output_tokens"]
            assert 76 == rates["used"]


ONLY_INPUT: Final = [gemini_chunk(text, promptTokenCount=9, totalTokenCount=9) for text in TEXTS]
ZEROS: Final = [chat({"content": text}, usage=chat_usage(0, 0)) for text in TEXTS]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("path", "chunks", "entered"),
    [
        ("/gemini", ONLY_INPUT, 9),
        ("/auto", ONLY_INPUT, 9),
        ("/openai", ZEROS, PROMPT_TOKENS),
        ("/auto", ZEROS, PROMPT_TOKENS),
    ],
)
async def test_figures_without_output_do_not_make_text_free(
    path: str, chunks: list[dict[str, Any]], entered: int, ends: bool
) -> None:
    """Gemini names the output in its last chunk, and some servers say zeros until then."""

    async def words() -> AsyncIterator[str]:
        async for chunk in meterkit.tap(stream_of(chunks)):
            yield str(chunk)

    async def endpoint(request: Request) -> Response:
        await request.body()
        return StreamingResponse(words(), media_type="text/plain")

    sent = [sse(chunk) for chunk in chunks]
    for app in (answering(sent, SSE) if ends else streaming(sent), app_of(endpoint)):
        async with metered(app, "memory://") as at:
            await LeavingClient(after=len(TEXTS) + ends).ask(at, path)
            assert await tokens(at.kit) == (entered, text_tokens(*TEXTS))


async def test_zeros_before_the_first_text_do_not_make_the_prompt_free() -> None:
    """A client that leaves then has had its prompt read."""
    async with metered(
        streaming([sse(chat({"role": "assistant"}, usage=chat_usage(0, 0)))]), "memory://"
    ) as at:
        await LeavingClient(after=1).ask(at, "/openai")
        assert await tokens(at.kit) == (PROMPT_TOKENS, 1)


WRITTEN: Final = compact({"choices": [{"message": {"content": "x" * 300}}]})


@pytest.mark.parametrize(
    ("kind", "chunk", "recorded"),
    [
        (SSE, CHUNKS[0][:20], (PROMPT_TOKENS, 1)),
        ("application/json", WRITTEN[:-40], (PROMPT_TOKENS, 66)),
        ("application/json", b'{"items": [1, 2', (0, 0)),
        (SSE, sse({"tick": 1}), (0, 0)),
    ],
)
async def test_an_answer_torn_in_its_first_event_may_be_a_models(
    kind: str, chunk: bytes, recorded: tuple[int, int], store_url: str
) -> None:
    async with metered(streaming([chunk], kind), store_url) as at:
        await LeavingClient(after=1).ask(at, "/auto")
        assert recorded == await tokens(at.kit)


LONG: Final = [{"content": "y. " * 200_000}, {"content": "y. " * 500_000}]


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        (b"\xff\xd8\xff\xe0" * 500, 85, 85),
        (compact({"question": "x" * 300}), 75, 75),
        (compact({"question": "x" * 303}), 75, 75),
        (compact({"messages": LONG}), 340_000, 352_000),
        (compact({"messages": [{"content": "A" * 3_000_000}]}), 85, 700),
    ],
    ids=["binary", "own shape", "rounded down", "long", "image"],
)
async def test_any_request_is_estimated(body: bytes, least: int, most: int, store_url: str) -> None:
    async with metered(streaming(CHUNKS), store_url) as at:
        await LeavingClient(after=1, body=body).ask(at, "/auto")
        (found,) = await tokens(at.kit, "input_tokens")
        assert least <= found <= most


class Provider:
    """A model that answers once an event is set; it notes when it is stopped."""

    def __init__(self) -> None:
        self.may_answer, self.begun = asyncio.Event(), asyncio.Event()
        self.is_stopped = False

    async def send(self) -> Any:
        self.begun.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.is_stopped = True
            raise
        return chat({"content": "Four."}, usage=chat_usage(5, 6))


def asking(provider: Provider, *, reports: bool = False) -> Starlette:
    async def endpoint(request: Request) -> Response:
        await request.body()
        if reports:
            meterkit.record_usage(chat({"content": "Two."}, usage=chat_usage(1, 2)))
        try:
            answer = await stop_on_disconnect(request.receive, provider.send())
        except ClientDisconnect:
            return Response(status_code=499)
        return JSONResponse(answer)

    return app_of(endpoint)


@pytest.mark.parametrize(
    ("path", "reports", "recorded"),
    [
        ("/openai", False, (PROMPT_TOKENS, 1)),
        ("/reserved", False, (PROMPT_TOKENS, 1)),
        ("/openai", True, (1, 2)),
        ("/none", False, (0, 0)),
    ],
)
async def test_f20e_a_stopped_call_bills_its_prompt(
    path: str, reports: bool, recorded: tuple[int, int], store_url: str
) -> None:
    provider = Provider()
    async with metered(asking(provider, reports=reports), store_url, plans=LEFT) as at:
        await LeavingClient().ask(at, path)
        assert provider.is_stopped
        assert recorded == await tokens(at.kit)
        assert (await at.counted(), (await at.counted(meter="output_tokens"))[1]) == ((0, 0), 0)


async def test_f20e_an_ended_call_gives_its_result_or_error(store_url: str) -> None:
    provider = Provider()
    provider.may_answer.set()

    async def fails() -> None:
        raise LookupError("no such model")

    async def endpoint(request: Request) -> Response:
        await request.body()
        with pytest.raises(LookupError, match="no such model"):
            await stop_on_disconnect(request.receive, fails())
        return JSONResponse(await stop_on_disconnect(request.receive, provider.send()))

    async with metered(app_of(endpoint), store_url, plans=LEFT) as at:
        assert (await at.client.post("/openai", content=PROMPT)).status_code == 200
        await settled(at.kit)
        assert (5, 6) == await tokens(at.kit)


async def test_f20e_a_server_that_cancels_stops_the_call(store_url: str) -> None:
    provider = Provider()
    async with metered(asking(provider), store_url, plans=LEFT) as at:
        task = asyncio.ensure_future(at.app(http_scope("/openai", method="POST"), staying(PROMPT), ignore))
        await provider.begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled(at.kit)
        assert provider.is_stopped
        assert (await tokens(at.kit), await at.counted()) == ((PROMPT_TOKENS, 1), (0, 0))
