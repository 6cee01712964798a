"""I8: with nothing to deny, the wrapped app behaves as if unwrapped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse as FastStreaming
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drivers.app import HEADERS, PLANS, hello, http_scope, no_more, served, staying
from drivers.llm_apps import listening
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads

pytestmark = [pytest.mark.anyio, pytest.mark.each_loop]

GENEROUS = PLANS.replace("included: 5,", "included: 1_000,").replace("20/hour", "1000/hour")
colour: ContextVar[str] = ContextVar("colour")


async def messages(app: ASGIApp, scope: Scope, receive: Receive = no_more) -> list[Message]:
    """Everything that an app sends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def without_fields(message: Message) -> Message:
    if message["type"] != "http.response.start":
        return message
    headers = [field for field in message["headers"] if not field[0].startswith(b"ratelimit")]
    return {**message, "headers": headers}


async def test_i8_the_app_runs_in_the_servers_task_and_context() -> None:
    tasks: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks.append(asyncio.current_task())
        assert colour.get() == "red"
        colour.set("blue")
        await hello(scope, receive, send)

    async with served(app, plans=GENEROUS) as at:
        colour.set("red")
        await messages(at.app, http_scope())
        assert (colour.get(), [asyncio.current_task()]) == ("blue", tasks)


async def test_i8_each_chunk_is_sent_before_the_next_is_made() -> None:
    order: list[str] = []

    async def chunks() -> AsyncIterator[bytes]:
        for n in range(4):
            order.append(f"made {n}")
            yield str(n).encode()

    async def send(message: Message) -> None:
        if message.get("body"):
            order.append(f"sent {message['body'].decode()}")

    async with served(StreamingResponse(chunks()), plans=GENEROUS) as at:
        await at.app(http_scope(), staying(), send)
    assert order == [f"{what} {n}" for n in range(4) for what in ("made", "sent")]


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers], **more}


def part(kind: str = "body", **members: Any) -> Message:
    return {"type": f"http.response.{kind}", **members}


UNHEARD: dict[str, Any] = {"unheard-of": 1}


@pytest.mark.parametrize("path", ["/v1/x", "/quiet"])
@pytest.mark.parametrize(
    "sent",
    [
        [start(), part()],
        [start(204, (b"x-one", b"1"), (b"x-one", b"2")), part(body=b"", more_body=False)],
        [
            start(trailers=True),
            part(body=b"a", more_body=True),
            part(body=b"b", more_body=False),
            part("trailers", headers=[(b"x-t", b"1")], more_trailers=True),
            part("trailers", headers=[(b"x-u", b"2")], more_trailers=False),
        ],
        [start(), part("pathsend", path="/tmp/file")],  # noqa: S108 - a name, not a file
        [
            start(),
            part("zerocopysend", file=7, count=3, more_body=True),
            part("zerocopysend", file=7, more_body=False),
        ],
        [
            part("debug", info={"template": "x"}),
            part("early_hint", links=[b"</style.css>; rel=preload; as=style"]),
            part("push", path="/style.css", headers=[]),
            start(500, **UNHEARD),
            part(body=b"", more_body=True),
            part(body=b"x", more_body=True, **UNHEARD),
            part(body=b"", more_body=False),
        ],
    ],
    ids=["bare", "204", "trailers", "pathsend", "zerocopysend", "rare"],
)
async def test_i8_messages_pass_as_they_are_and_the_request_is_counted(
    path: str, sent: list[Message]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        for message in sent:
            await send(dict(message))

    async with served(app, plans=GENEROUS) as at:
        assert list(map(without_fields, (await messages(at.app, http_scope(path))))) == sent
        assert await at.counted() == (0 if sent[0]["type"] == "http.response.debug" else 1, 0)


async def test_i8_the_app_hears_what_the_client_says() -> None:
    said: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
        {"type": "http.disconnect"},
    ]
    heard: list[Message] = []

    async def receive() -> Message:
        return said[len(heard)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while len(heard) < len(said):
            heard.append(await receive())
        await hello(scope, receive, send)

    async with served(app, plans=GENEROUS) as at:
        await messages(at.app, http_scope(), receive)
    assert heard == said


async def test_i8_scopes_pass_as_they_are() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        if scope["type"] == "http":
            await hello(scope, receive, send)

    async with served(app, plans=GENEROUS) as at:
        scopes: tuple[Scope, ...] = (
            http_scope(root_path="/v1", extensions={"http.response.pathsend": {}}),
            http_scope(method="HEAD"),
            {"type": "websocket", "path": "/v1/live", "headers": [], "subprotocols": []},
            {"type": "unheard.of"},
        )
        for scope in scopes:
            before = dict(scope)
            await messages(at.app, scope)
            assert seen[-1] is scope
            assert scope == before
        assert await at.counted() == (2, 0)


async def test_i8_exceptions_and_groups_pass_as_the_same_object() -> None:
    for error in (KeyError("x"), ExceptionGroup("several", [ValueError()]), asyncio.CancelledError()):

        async def app(scope: Scope, receive: Receive, send: Send, error: BaseException = error) -> None:
            del scope, receive, send
            raise error

        async with served(app, plans=GENEROUS) as at:
            with pytest.raises(type(error)) as caught:
                await messages(at.app, http_scope())
            assert caught.value is error
            assert await at.counted() == (0, 0)


async def test_i8_the_lifespan_and_its_state_are_the_apps() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[dict[str, Any]]:
        events.append("startup")
        assert kit.store.lanes, "the kit serves what the app does when it starts"
        await kit.record("acme", "tokens", 1)
        yield {"answer": 42}
        await kit.record("acme", "tokens", 1)
        events.append("shutdown")

    kit = MeterKit(loads(GENEROUS), redis_url="memory://", key_prefix="i8life", shards=1, flush=False)
    metering = Middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    app = Starlette(lifespan=lifespan, middleware=[metering])
    said, sent = asyncio.Queue[Any](), asyncio.Queue[Any]()
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
    serving = asyncio.create_task(app(scope, said.get, sent.put))
    said.put_nowait({"type": "lifespan.startup"})
    assert ((await sent.get())["type"], state) == ("lifespan.startup.complete", {"answer": 42})
    said.put_nowait({"type": "lifespan.shutdown"})
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    await serving
    assert events == ["startup", "shutdown"]
    assert not kit.store.lanes


async def test_i8_usage_is_settled_before_the_shutdown_is_complete() -> None:
    kit = MeterKit(loads(GENEROUS), redis_url="memory://", key_prefix="i8stop", shards=1, flush=False)
    app = MeterMiddleware(Starlette(), kit=kit, identify=lambda _: None)
    said = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    open_then: list[tuple[str, bool]] = []

    async def receive() -> Message:
        return next(said)

    async def send(message: Message) -> None:
        open_then.append((message["type"], bool(kit.store.lanes)))

    await app({"type": "lifespan", "state": {}}, receive, send)
    assert open_then == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]


async def test_i8_an_app_without_a_lifespan_says_so_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        raise NotImplementedError(scope["type"])

    kit = MeterKit(loads(GENEROUS), redis_url="memory://", flush=False)
    wrapped = MeterMiddleware(app, kit=kit, identify=lambda _: None)
    with pytest.raises(NotImplementedError, match="lifespan"):
        await wrapped({"type": "lifespan"}, no_more, lambda _: asyncio.sleep(0))
    assert not kit.store.lanes


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.scope.get('root_path')} {request.url.path}")


def mounted() -> Starlette:
    inner = Starlette(routes=[Route("/x", answer)])
    return Starlette(routes=[Mount("/v1", routes=[Mount("/deep", app=inner)])])


def included() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/deep")
    router.add_api_route("/x", lambda: "included")
    app.include_router(router, prefix="/v1")
    return app


@pytest.mark.parametrize("make", [mounted, included])
async def test_i8_under_mounts_the_path_of_the_client_decides(make: Any) -> None:
    app = make()
    plain = await messages(app, http_scope("/v1/deep/x"))
    async with served(app, plans=GENEROUS) as at:
        wrapped = await messages(at.app, http_scope("/v1/deep/x"))
        assert (list(map(without_fields, wrapped)), plain[0]["status"]) == (plain, 200)
        assert await at.counted() == (1, 0)
        # Mounted itself: the template is still matched with what the client asked for.
        inner = MeterMiddleware(hello, kit=at.kit, identify=lambda _: "acme")
        outer = Starlette(routes=[Mount("/v1", app=inner)])
        await messages(outer, http_scope("/v1/x"))
        assert await at.counted() == (2, 0)


async def test_i8_background_tasks_run_after_the_answer_in_its_context() -> None:
    order: list[str] = []

    async def later() -> None:
        order.append(f"background {colour.get()}")

    async def send(message: Message) -> None:
        order.append(message["type"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        colour.set("green")
        await PlainTextResponse("x", background=BackgroundTask(later))(scope, receive, send)

    async with served(app, plans=GENEROUS) as at:
        await at.app(http_scope(), no_more, send)
    assert order == ["http.response.start", "http.response.body", "background green"]


async def raw(response: httpx.Response) -> AsyncGenerator[bytes]:
    async for chunk in response.aiter_raw():
        yield chunk


async def test_i8_under_a_real_server(store_url: str) -> None:
    released, never = asyncio.Event(), asyncio.Event()
    kit = MeterKit(loads(GENEROUS), redis_url=store_url, shards=4, flush=False, store_timeout=60.0)
    app = FastAPI()
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))

    async def chunks(goes_on: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"first"
        await goes_on.wait()
        yield b"second"

    @app.get("/v1/stream")
    async def stream() -> FastStreaming:
        return FastStreaming(chunks(released))

    @app.get("/v1/forever")
    async def forever() -> FastStreaming:
        return FastStreaming(chunks(never))

    @app.get("/v1/raises")
    async def raises() -> None:
        raise ValueError

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app.add_route("/v1/echo", echo, methods=["POST"])

    async def recorded() -> int:
        return (await kit.usage("acme"))["meters"]["requests"]["recorded"]

    async with (
        listening(app, lifespan="on") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=300) as client,
    ):
        async with client.stream("GET", "/v1/stream") as response, aclosing(raw(response)) as read:
            assert await anext(read) == b"first"  # While the app still waits to make the second.
            released.set()
            assert await anext(read) == b"second"
        assert await recorded() == 1
        async with client.stream("GET", "/v1/forever") as response, aclosing(raw(response)) as read:
            assert await anext(read) == b"first"
        found = 0
        while found < 2:  # Hung up after the first byte: billed, as soon as the server has noticed.
            found = await recorded()
        assert (await client.get("/v1/raises")).status_code == 500
        assert (await client.post("/v1/echo", content=b"x" * 300_000)).text == "300000"
        head = await client.head("/v1/nowhere")
        assert (head.status_code, "ratelimit" in head.headers, await recorded()) == (404, True, 3)
    assert not kit.store.lanes
