"""Clients that leave: what the outcome is, and what is billed of their model calls."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import meterkit
from drivers.app import http_scope
from drivers.llm_apps import (
    PLANS,
    PROMPT,
    PROMPT_TOKENS,
    listening,
    metered,
    openai_stream,
    stream_of,
    text_tokens,
    tokens,
)
from faults.refusals import eventually, settled
from meterkit import current
from meterkit.llm import stop_on_disconnect
from tokens.recordings import chat, chat_usage, sse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from drivers.app import Served


pytestmark = pytest.mark.anyio

TEXTS = ("Hello, ", "wörld. ", "All is well.")
USAGE = sse(chat(None, usage=chat_usage(50, 60)))
OUTCOMES = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "/gone", consume: {requests: 1}, usage: auto, charge_on: [client_gone]}\n'
    '  - {match: "/failed", consume: {requests: 1}, charge_on: [server_error]}\n',
)


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


async def gone(request: Request) -> None:
    """Until the client is."""
    while not await request.is_disconnected():  # noqa: ASYNC110 - it is what apps do
        await asyncio.sleep(0.002)


async def polling(request: Request) -> Response:
    """Streams a text, and its usage only while somebody is there."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        await gone(request)

    return Unheard(body(), media_type="text/event-stream")


class Unheard(StreamingResponse):
    """Leaves it to its body to look whether the client is there, as servers of ASGI 2.4 have it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self.stream_response(send)


async def waiting(request: Request) -> Response:
    """Streams a text, and its usage too late."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        await asyncio.Event().wait()

    return StreamingResponse(body(), media_type="text/event-stream")


async def figures_first(request: Request) -> Response:
    """Streams a text and its usage, and goes on."""
    await request.body()

    async def body() -> AsyncIterator[bytes]:
        for chunk in openai_stream(*TEXTS):
            yield chunk
        yield USAGE
        await gone(request)

    return Unheard(body(), media_type="text/event-stream")


def app_of(endpoint: Any, *inside: Any) -> Starlette:
    return Starlette(
        routes=[Route("/{path:path}", endpoint, methods=["POST"])],
        middleware=[Middleware(each) for each in inside],
    )


async def hang_up(port: int, path: str, *, after: bytes = b"", until: asyncio.Event | None = None) -> None:
    """Ask, and leave as soon as some bytes have come, at an event, or at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\ncontent-length: {len(PROMPT)}\r\n\r\n"
    writer.write(head.encode() + PROMPT)
    if after:
        await reader.readuntil(after)
    if until is not None:
        await until.wait()
    writer.close()
    await writer.wait_closed()


class Watched:
    """Tells when the app is done with a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.over = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            self.over.set()


async def left(
    at: Served,
    path: str,
    protocol: str,
    *,
    after: bytes,
    outside: Any = None,
    until: asyncio.Event | None = None,
) -> None:
    """A client asks and leaves; until what it came to is settled."""
    watched = Watched(at.app if outside is None else outside(at.app))
    async with listening(watched, http=protocol) as port:
        await hang_up(port, path, after=after, until=until)
        await watched.over.wait()
    lane = at.kit.store.lanes[asyncio.get_running_loop()]
    await eventually(lambda: lane.unsettled == 0)


@pytest.mark.parametrize(
    ("how", "path", "protocol"),
    [
        ("polling", "/auto", "h11"),
        ("base inside", "/attempt", "httptools"),
        ("base outside", "/gone", "h11"),
        ("gzip outside", "/auto", "httptools"),
        ("figures first", "/auto", "h11"),
    ],
)
async def test_leaving_before_the_usage_pays_for_the_text(
    how: str, path: str, protocol: str, store_url: str
) -> None:
    """F-7: the response ends as it should, but nobody was there to get it."""
    # Behind BaseHTTPMiddleware is_disconnected() never says so: there the response listens.
    endpoint = figures_first if how == "figures first" else waiting if "base" in how else polling
    app = app_of(endpoint, *([PassingOn] if how == "base inside" else []))
    outside = {"base outside": PassingOn, "gzip outside": GZipMiddleware}.get(how)
    after = b'"total_tokens":110' if how == "figures first" else TEXTS[-1].encode()
    async with metered(app, store_url, plans=OUTCOMES) as at:
        await left(at, path, protocol, after=after, outside=outside)
        found = (50, 60) if how == "figures first" else (PROMPT_TOKENS, text_tokens(*TEXTS))
        assert found == await tokens(at.kit)
        assert await at.counted() == (1, 0)


@pytest.mark.each_loop
@pytest.mark.parametrize(
    ("path", "requests", "protocol"), [("/none", 1, "h11"), ("/gone", 0, "httptools"), ("/failed", 0, "h11")]
)
async def test_leaving_before_the_first_byte_pays_if_answered(
    path: str, requests: int, protocol: str, store_url: str
) -> None:
    """F-20e: the work was done, whether the app has looked or not; uvicorn drops what is sent then."""

    asked = asyncio.Event()

    async def answers(request: Request) -> Response:
        assert await request.body() == PROMPT
        asked.set()
        await gone(request)
        assert current().customer == "acme"
        return JSONResponse({"choices": [{"message": {"content": "x" * 300}}], "usage": chat_usage(5, 6)})

    async with metered(app_of(answers), store_url, plans=OUTCOMES) as at:
        await left(at, path, protocol, after=b"", until=asked)
        assert await at.counted() == (requests, 0)


OUTCOME_NAMES: Final = ("success", "client_gone", "client_error", "server_error")
EARLY_PLANS: Final = (
    """
schema: 1
currency: usd
default_plan: free
meters:
  requests:      {unit: request}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
  pages:         {unit: page}
routes:
"""
    + "".join(
        f'  - {{match: "/{name}", consume: {{requests: 1}}, charge_on: [{name}]}}\n' for name in OUTCOME_NAMES
    )
    + """
  - {match: "/chat", consume: {requests: 1}, usage: openai}
  - {match: "/plain", consume: {requests: 1}}
  - {match: "/repeated", consume: {requests: 1}, idempotency_header: idempotency-key}
  - match: "/reserved"
    consume: {requests: 1}
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 500, ceiling: 500}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      output_tokens: {included: 1000, overage: deny}
"""
)


class EarlyLeaver:
    """A client that sends its request and leaves at once, or once the response has started.

    Args:
        raises: whether the server's ``send`` raises then.
        waits: whether it waits for the start of the response.
    """

    def __init__(self, *, raises: bool = False, waits: bool = False) -> None:
        self._gone = asyncio.Event()
        if not waits:
            self._gone.set()
        self._said: list[Message] = [{"type": "http.request", "body": PROMPT, "more_body": False}]
        self._raises = raises

    async def receive(self) -> Message:
        if self._said:
            return self._said.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._gone.set()
        if self._raises and message["type"] == "http.response.body":
            raise OSError("the client has hears_leaving")

    async def ask(self, at: Served, path: str, *, headers: Any = ()) -> None:
        version = "2.4" if self._raises else "2.3"
        asgi = {"version": "3.0", "spec_version": version}
        scope = http_scope(path, method="POST", asgi=asgi)
        scope["headers"] = [*scope["headers"], *headers]
        await asyncio.gather(at.app(scope, self.receive, self.send), return_exceptions=True)
        await settled(at.kit)


async def hears_leaving(request: Request) -> None:
    """Read the request, and hear that its client has hears_leaving."""
    await request.body()
    assert await request.is_disconnected()


def answers(make: Any, *, looks: bool = True) -> Any:
    async def endpoint(request: Request) -> Response:
        if looks:
            await hears_leaving(request)
        response: Response = make()
        return response

    return endpoint


def a_document() -> Response:
    return JSONResponse({"answer": 42})


def a_stream() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b"piece"

    return StreamingResponse(pieces())


def pieces_at_once() -> Response:
    return StreamingResponse(stream_of([b"piece", b"piece"]))


async def raising(request: Request) -> Response:
    await hears_leaving(request)
    raise RuntimeError("there is no client to work for")


async def cancelled(request: Request) -> Response:
    await hears_leaving(request)
    raise asyncio.CancelledError


async def silent(scope: Any, receive: Any, send: Any) -> None:
    del scope, send
    while (await receive())["type"] != "http.disconnect":
        pass


async def begun_too_late(scope: Any, receive: Any, send: Any) -> None:
    """Begin an answer once the client has hears_leaving, and be cancelled in the midst of it."""
    await silent(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"piece", "more_body": True})
    raise asyncio.CancelledError


RAW: Final = (silent, begun_too_late)
CASES: Final[dict[str, tuple[Any, bool, str]]] = {
    # The app finished its work: an answer that no client takes is an answer.
    "a document by an app that looks": (answers(a_document), False, "success"),
    "a document by an app that does not look": (answers(a_document, looks=False), False, "success"),
    "a document where sending raises": (answers(a_document, looks=False), True, "success"),
    "not found": (answers(lambda: JSONResponse({}, 404)), False, "client_error"),
    "not found where sending raises": (answers(lambda: JSONResponse({}, 404)), True, "client_error"),
    "an error of the server": (answers(lambda: JSONResponse({}, 500)), False, "server_error"),
    # It was stopped, or stopped by itself.
    "an app that raises": (raising, False, "server_error"),
    "an app that is cancelled": (cancelled, False, "server_error"),
    "an app without an answer": (silent, False, "server_error"),
    "a stream that begins when nobody listens": (begun_too_late, False, "server_error"),
    "a stream that is cancelled": (answers(a_stream, looks=False), False, "server_error"),
    "a stream whose first piece cannot be sent": (answers(pieces_at_once), True, "server_error"),
}


@pytest.mark.parametrize("case", CASES)
async def test_f20e_only_an_app_that_answers_has_succeeded(case: str, store_url: str) -> None:
    endpoint, raises, expected = CASES[case]
    app: ASGIApp = endpoint if endpoint in RAW else app_of(endpoint)
    async with metered(app, store_url, plans=EARLY_PLANS) as at:
        billed: list[str] = []
        for name in OUTCOME_NAMES:
            before = (await at.counted())[0]
            await EarlyLeaver(raises=raises).ask(at, f"/{name}")
            billed += [name] * ((await at.counted())[0] - before)
    assert billed == [expected]


@pytest.mark.parametrize("path", ["/success", "/reserved"])
async def test_f20e_an_answer_to_a_part_of_a_request_is_not_billed(path: str, store_url: str) -> None:
    """The client hears_leaving within its own body; the app answers to the part that came."""
    client = EarlyLeaver()
    said: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]

    async def receive() -> Message:
        return said.pop() if len(said) > 1 else said[0]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await a_document()(scope, receive, send)

    async with metered(app, store_url, plans=EARLY_PLANS) as at:
        scope = http_scope(path, method="POST")
        scope["headers"] = [*scope["headers"], (b"content-length", b"100")]
        await at.app(scope, receive, client.send)
        await settled(at.kit)
        assert await at.counted() == (0, 0)
        # A request without a body is whole, though its client had hears_leaving when the app first listened.
        await at.app(http_scope("/success"), receive, client.send)
        await settled(at.kit)
        assert await at.counted() == (1, 0)


# Usage.


def told(how: str) -> Any:
    """An endpoint that has called a model when it hears that its client has hears_leaving."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        if how == "tap":
            with suppress(asyncio.CancelledError):
                async for _ in meterkit.tap(three_texts()):
                    break
        elif how == "record":
            meterkit.record(output_tokens=7, pages=2)
        else:
            meterkit.record_usage(chat({"content": "Four."}, usage=chat_usage(5, 6)))
        assert await request.is_disconnected()
        if how == "status 499":
            return Response(status_code=499)
        if how == "status 500":
            return Response(status_code=500)
        raise RuntimeError("there is no client to work for")

    return endpoint


async def three_texts() -> AsyncIterator[Any]:
    for text in ("Hello, ", "world. ", "All is well."):
        yield chat({"content": text})


@pytest.mark.parametrize(
    ("how", "path", "recorded"),
    [
        ("usage", "/chat", (5, 6)),
        ("status 499", "/plain", (5, 6)),
        ("status 500", "/reserved", (5, 6)),
        ("record", "/chat", (0, 7)),
        ("tap", "/reserved", (PROMPT_TOKENS, text_tokens("Hello, "))),
        ("tap", "/plain", (0, text_tokens("Hello, "))),
    ],
)
async def test_f20e_usage_by_then_is_billed_and_the_request_is_not(
    how: str, path: str, recorded: tuple[int, int], store_url: str
) -> None:
    async with metered(app_of(told(how)), store_url, plans=EARLY_PLANS) as at:
        await EarlyLeaver().ask(at, path)
        assert recorded == await tokens(at.kit)
        assert (0, 0) == await at.counted()
        assert (recorded[1], 0) == await at.counted(meter="output_tokens")
        assert (2 if how == "record" else 0, 0) == await at.counted(meter="pages")


async def test_f20e_a_repeat_of_a_billed_request_bills_nothing(store_url: str) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        meterkit.record(output_tokens=7)
        if request.url.query:
            return a_document()
        assert await request.is_disconnected()
        raise RuntimeError("there is no client to work for")

    async with metered(app_of(endpoint), store_url, plans=EARLY_PLANS) as at:
        await at.client.post("/repeated?answer", content=PROMPT, headers={"idempotency-key": "k1"})
        await EarlyLeaver().ask(at, "/repeated", headers=[(b"idempotency-key", b"k1")])
        assert await at.counted(meter="output_tokens") == (7, 0)
        assert await at.counted() == (1, 0)


# A call that is stopped.


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
        ("/chat", False, (PROMPT_TOKENS, 1)),
        ("/reserved", False, (PROMPT_TOKENS, 1)),
        ("/chat", True, (1, 2)),
        ("/plain", False, (0, 0)),
    ],
)
async def test_f20e_a_stopped_call_bills_its_prompt(
    path: str, reports: bool, recorded: tuple[int, int], store_url: str
) -> None:
    provider = Provider()
    async with metered(asking(provider, reports=reports), store_url, plans=EARLY_PLANS) as at:
        await EarlyLeaver().ask(at, path)
        assert provider.is_stopped
        assert recorded == await tokens(at.kit)
        assert await at.counted() == (0, 0)
        assert (await at.counted(meter="output_tokens"))[1] == 0


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

    async with metered(app_of(endpoint), store_url, plans=EARLY_PLANS) as at:
        assert (await at.client.post("/chat", content=PROMPT)).status_code == 200
        await settled(at.kit)
        assert (5, 6) == await tokens(at.kit)


async def test_f20e_a_server_that_cancels_stops_the_call(store_url: str) -> None:
    provider, client = Provider(), EarlyLeaver()
    said = iter([{"type": "http.request", "body": PROMPT, "more_body": False}])

    async def receive() -> Message:
        for message in said:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async with metered(asking(provider), store_url, plans=EARLY_PLANS) as at:
        task = asyncio.ensure_future(at.app(http_scope("/chat", method="POST"), receive, client.send))
        await provider.begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled(at.kit)
        assert provider.is_stopped
        assert (PROMPT_TOKENS, 1) == await tokens(at.kit)
        assert await at.counted() == (0, 0)
