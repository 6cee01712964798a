"""Websockets: decided when they open and per message, looked at every minute, closed with 1008."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from drivers.app import Served, served
from drivers.plans import completed
from faults.proxy import TcpProxy
from faults.refusals import eventually, settled
from meterkit import record
from servers.stores import Server, spawn_server

pytestmark = pytest.mark.anyio

PLANS = """
meters: {requests: {unit: request}, messages: {unit: message}}
features: [live]
routes:
  - {match: "WS /live", consume: {requests: 1}, per_message: {messages: 1}}
  - {match: "WS /listen", consume: {requests: 1}}
  - {match: "WS /attempt", consume: {requests: 1}, charge_on: attempt}
  - {match: "WS /feature", feature: live, consume: {requests: 1}}
  - {match: "WS /shadow", per_message: {messages: 1}, enforcement: shadow}
  - {match: "WS /strict", per_message: {messages: 1}, on_store_failure: deny}
  - {match: "WS /always", always: true, consume: {requests: 1}, per_message: {messages: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 20/hour, concurrency: 2, included: 10, overage: deny},
      messages: {rate: 8/hour, included: 5, overage: deny}}
"""
CONNECT: Message = {"type": "websocket.connect"}
ANSWERS: Final[dict[str, dict[str, str]]] = {"websocket.http.response": {}}


class Socket:
    """The server's side of one websocket: what the client does, and what the app has sent.

    Attributes:
        sent: the app's messages, as the server gets them.
        task: the app.
    """

    def __init__(self, app: ASGIApp, path: str, *, query: bytes = b"", extensions: Any = None) -> None:
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "path": path,
        }
        scope |= {"headers": [(b"x-customer-id", b"acme")], "query_string": query, "extensions": extensions}
        self.sent: list[Message] = []
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait(CONNECT)
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.close":
            # As servers do: the app hears of it, whoever closes.
            self._incoming.put_nowait({"type": "websocket.disconnect", "code": message["code"]})

    def say(self, *texts: str) -> None:
        for text in texts:
            self._incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task

    def heard(self) -> list[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]

    @property
    def is_open(self) -> bool:
        return self.kinds()[:1] == ["websocket.accept"] and "websocket.close" not in self.kinds()

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.sent]


def closed(reason: str) -> Message:
    return {"type": "websocket.close", "code": 1008, "reason": reason}


@asynccontextmanager
async def opened(at: Served, path: str = "/live", **options: Any) -> AsyncGenerator[Socket]:
    socket = Socket(at.app, path, **options)
    await eventually(lambda: bool(socket.sent) or socket.task.done())
    try:
        yield socket
    finally:
        if not socket.task.done():
            await socket.leave()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    assert await receive() == CONNECT
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def test_each_message_is_counted_before_the_app_has_it() -> None:
    async with served(echo, plans=PLANS) as at, opened(at) as socket:
        socket.say(*map(str, range(3)))
        await eventually(lambda: len(socket.heard()) == 3)
        assert await at.counted(meter="messages") == (3, 0)
        assert dict(socket.sent[0]["headers"])[b"ratelimit-policy"].startswith(b'"requests-1h"')


async def test_i3_a_flooding_client_gets_no_more_than_its_plan() -> None:
    async with served(echo, plans=PLANS) as at:
        async with opened(at) as first, opened(at) as second:
            for socket in (first, second):
                socket.say(*map(str, range(100)))
            await asyncio.wait([first.task, second.task], timeout=300)
        assert len(first.heard()) + len(second.heard()) == 5
        for socket in (first, second):
            assert closed("messages-period") in socket.sent
        assert (await at.counted(meter="messages"), await at.counted()) == ((5, 0), (2, 0))


async def test_nothing_is_sent_after_a_close() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        with pytest.raises(OSError, match="meterkit has closed this websocket"):
            await send({"type": "websocket.send", "text": "too late"})

    async with served(app, plans=PLANS) as at, opened(at) as socket:
        socket.say(*map(str, range(9)))
        await socket.task
    assert socket.kinds() == ["websocket.accept", "websocket.close"]


async def test_it_is_refused_like_a_request_where_the_server_can() -> None:
    async with served(echo, plans=PLANS) as at:
        async with opened(at, "/feature", extensions=ANSWERS) as socket:
            start, body = socket.sent
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
        assert (b"content-type", b"application/problem+json") in start["headers"]
        assert body["type"] == "websocket.http.response.body"
        assert b'"feature":"live"' in body["body"]
        others: tuple[Any, ...] = (None, {"http.response.push": {}})
        for extensions in others:
            async with opened(at, "/feature", extensions=extensions) as socket:
                assert socket.sent == [closed("Feature Not In Plan")]
        assert await at.counted() == (0, 0)


async def test_concurrency_counts_open_websockets() -> None:
    async with served(echo, plans=PLANS) as at:
        async with opened(at) as first, opened(at, "/listen") as second:
            async with opened(at, extensions=ANSWERS) as third:
                assert third.sent[0]["status"] == 429
            assert first.is_open
            assert second.is_open
            await second.leave()
            async with opened(at) as again:
                assert again.is_open
        assert await at.counted() == (3, 0)


START: Message = {"type": "websocket.http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "websocket.http.response.body", "body": b""}


@pytest.mark.parametrize(
    ("messages", "recorded"),
    [
        ([{"type": "websocket.close", "code": 1000}], 0),
        ([START, BODY], 1),
        ([{"type": "websocket.accept"}], 0),
    ],
    ids=["rejecting", "answering", "raising"],
)
async def test_what_did_not_succeed_is_not_billed(messages: list[Message], recorded: int) -> None:
    raises = messages[0]["type"] == "websocket.accept"

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)
        if raises:
            raise RuntimeError("broken")

    async with served(app, plans=PLANS) as at:
        for path in ("/listen", "/attempt"):
            async with opened(at, path) as socket:
                await asyncio.wait([socket.task])
                assert isinstance(socket.task.exception(), RuntimeError) is raises
        assert await at.counted() == (recorded + 1, 0)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few milliseconds in place of every minute."""
    monkeypatch.setattr("meterkit.asgi.websocket._CHECK_EVERY_S", 0.005)


@pytest.mark.usefixtures("soon")
async def test_i4_a_customer_who_is_suspended_is_disconnected() -> None:
    async with served(echo, plans=PLANS) as at, opened(at) as socket, opened(at, "/always") as always:
        assert socket.is_open
        await at.kit.customers.set_status("acme", "unpaid")
        await eventually(lambda: not socket.is_open)
        assert socket.sent[-1] == closed("suspended")
        assert always.is_open
        await socket.task


@pytest.mark.usefixtures("soon")
async def test_a_websocket_that_the_app_closed_is_not_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        await ended.wait()

    async with served(app, plans=PLANS) as at, opened(at) as socket:
        await at.kit.customers.set_status("acme", "unpaid")
        await looked(at, socket, 2, monkeypatch)
        ended.set()
        assert socket.kinds() == ["websocket.accept", "websocket.close"]


async def looked(at: Served, socket: Socket, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until an open websocket was looked at some times, or has sent more than so many messages."""
    seen, decide = list[str](), at.kit.store.decide

    async def watched(*given: Any, **more: Any) -> Any:
        found = await decide(*given, **more)
        seen.append(more.get("mode", "d"))
        return found

    monkeypatch.setattr(at.kit.store, "decide", watched)
    await eventually(lambda: seen.count("c") >= 3 or len(socket.sent) > sent)


@pytest.mark.usefixtures("soon")
async def test_looking_counts_nothing_and_does_not_mind_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = PLANS.replace("rate: 8/hour, included: 5", "rate: 2/hour, included: 5")
    async with served(echo, plans=plans) as at, opened(at, "/live") as socket:
        await at.kit.record("acme", "messages", 2)
        await looked(at, socket, 1, monkeypatch)
        assert socket.is_open
        assert (await at.counted(meter="messages"), await at.counted()) == ((2, 0), (0, 1))


async def test_in_shadow_nothing_is_closed_and_all_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with served(echo, plans=PLANS) as at, opened(at, "/shadow") as socket:
        socket.say(*map(str, range(7)))
        await eventually(lambda: len(socket.heard()) == 7)
        assert socket.is_open
        assert await at.counted(meter="messages") == (7, 0)
    first, _ = [line for line in caplog.messages if line.startswith("would be refused, but enforcement is")]
    assert "customer='acme'" in first
    assert "limit='messages-period'" in first


async def test_i9_without_the_store_messages_pass_by_the_line(caplog: pytest.LogCaptureFixture) -> None:
    with spawn_server() as server:
        async with (
            served(echo, plans=PLANS, redis_url=server.url, settings={"store_timeout": 0.2}) as at,
            opened(at) as allowed,
            opened(at, "/strict") as strict,
        ):
            server.stop()
            for socket in (allowed, strict):
                socket.say("anybody?")
            await eventually(lambda: allowed.heard() == ["anybody?"] and not strict.is_open)
            assert allowed.is_open
            assert (strict.heard(), strict.sent[-1]) == ([], closed("store"))
    assert "requests are decided without the store" in caplog.text


async def test_i3_a_message_in_doubt_counts_once_in_its_rate(valkey: Server) -> None:
    async with (
        TcpProxy(valkey.port) as proxy,
        served(echo, plans=PLANS, redis_url=proxy.url, settings={"store_timeout": 0.25}) as at,
        opened(at) as socket,
    ):
        await proxy.set("drop_reply")
        socket.say("one")
        await eventually(lambda: socket.heard() == ["one"])
        await proxy.set("pass")

        async def is_counted() -> bool:
            return (await at.counted(meter="messages"))[0] == 1

        await eventually(is_counted)
        (rate,) = [rate for rate in await at.kit.rates("acme") if rate["meter"] == "messages"]
        assert rate["used"] == 1


async def test_i7_a_websockets_hold_is_returned_at_the_stop() -> None:
    async with served(echo, plans=PLANS, redis_url="memory://") as at, opened(at, "/listen"):
        assert await at.counted() == (0, 1)
        await at.kit.stop()
        await at.kit.start()
        assert await at.counted() == (1, 0)


async def starlettes(scope: Scope, receive: Receive, send: Send) -> None:
    """As Starlette's endpoints do: they raise where the client has left."""
    websocket = WebSocket(scope, receive, send)
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


async def test_the_opening_is_billed_where_the_app_raises_a_leave() -> None:
    async with served(starlettes, plans=PLANS) as at:
        async with opened(at) as closed_here:
            closed_here.say(*map(str, range(6)))
            await asyncio.wait([closed_here.task])
            assert isinstance(closed_here.task.exception(), WebSocketDisconnect)
        async with opened(at) as left:
            with suppress(WebSocketDisconnect):
                await left.leave()
            assert isinstance(left.task.exception(), WebSocketDisconnect)
        assert await at.counted() == (2, 0)


async def test_a_message_is_not_lost_to_an_app_that_gives_up() -> None:
    heard: list[str] = []

    async def impatient(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            while waiting.cancel():
                with suppress(asyncio.CancelledError):
                    await waiting
                waiting = asyncio.ensure_future(receive())
                await asyncio.sleep(0)
            message = await waiting
            if message["type"] != "websocket.receive":
                return
            heard.append(message["text"])

    async with served(impatient, plans=PLANS) as at:
        async with opened(at) as socket:
            socket.say("one", "two")
            await eventually(lambda: heard == ["one", "two"])
        assert await at.counted(meter="messages") == (2, 0)


SAID: Final = ["one", "two", "three", "four"]


async def test_i8_each_of_two_receivers_gets_messages_of_its_own() -> None:
    heard: list[str] = []
    of_first: list[str] = []

    async def hear(receive: Receive, own: list[str]) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            heard.append(message["text"])
            own.append(message["text"])

    async def shared(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        waiting = [asyncio.ensure_future(hear(receive, own)) for own in (of_first, [])]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async with served(shared, plans=PLANS) as at:
        async with opened(at) as socket:
            for n, said in enumerate(SAID, 1):
                socket.say(said)
                await eventually(partial(SAID[:n].__eq__, heard))
        assert of_first == SAID[::2]  # They take turns: neither waits in vain.
        assert await at.counted(meter="messages") == (4, 0)


async def test_i4_an_open_websocket_goes_by_the_plans_file_of_now(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(completed(PLANS))
    async with served(echo, plans=path) as at:
        socket = Socket(at.app, "/live")
        path.write_text(completed(PLANS.replace("rate: 8/hour, included: 5", "included: 7")))
        assert await at.kit.reload()
        socket.say(*map(str, range(9)))
        await asyncio.wait([socket.task])
        assert len(socket.heard()) == 7


async def test_an_open_websocket_counts_on_a_plan_that_came_later(tmp_path: Path) -> None:
    """Its customer's plan is in the edited file only: by the former one the default plan had counted."""
    path = tmp_path / "plans.yaml"
    meters = "meters: {pages: {unit: page, stripe: {event_name: pages}}}\n"
    plans = (
        meters
        + 'routes: [{match: "WS /live"}]\nplans:\n  free: {price: {amount_cents: 0, interval: month}}\n'
    )
    bill = "{pages: {included: 1, overage: {bill: {per: 1, amount_cents: 10}}}}"
    later = f"  pro: {{price: {{amount_cents: 100, interval: month}}, meters: {bill}}}\n"
    path.write_text(completed(plans))

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        path.write_text(completed(plans + later))
        await at.kit.reload()
        await at.kit.customers.set_plan("acme", "pro")
        record(pages=4)

    async with served(app, plans=path) as at:
        async with opened(at) as socket:
            await socket.task
        await settled(at.kit)
        pages = (await at.kit.usage("acme"))["meters"]["pages"]
        assert (pages["recorded"], pages["overage_cents"]) == (4, 30)


async def test_i7_an_open_websocket_goes_on_uncounted_at_a_stop() -> None:
    async with served(echo, plans=PLANS) as at, opened(at) as socket:
        socket.say("one")
        await eventually(lambda: socket.heard() == ["one"])
        await at.kit.stop()
        socket.say("two")
        await eventually(lambda: socket.heard() == ["one", "two"])
        assert at.kit.store.lanes == {}
        await at.kit.start()
        assert await at.counted(meter="messages") == (1, 0)


async def test_a_spelling_makes_no_message_free_and_keeps_gates() -> None:
    """`/live/` of an app that ignores the slash fell under `*`, which counts no messages."""
    plans = PLANS.replace("plans:", '  - {match: "*", feature: live}\nplans:').replace(
        "    meters: {requests", "    features: [live]\n    meters: {requests"
    )
    plans += "  bare: {price: {amount_cents: 0, interval: month}}\n"
    async with served(echo, plans=plans) as at, opened(at, "/live/") as socket:
        socket.say("one")
        await eventually(lambda: socket.heard() == ["one"])
        assert await at.counted(meter="messages") == (1, 0)
        await at.kit.customers.set_plan("acme", "bare")
        socket.say("two")
        await eventually(lambda: not socket.is_open)
        assert socket.sent[-1] == closed("feature")
