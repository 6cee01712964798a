"""Gauges at the edge: uploads ask the gauge of bytes, other lines ask theirs, and the app sets the levels."""

from __future__ import annotations

from asyncio import Event, create_task, ensure_future, get_running_loop, sleep, wait
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from json import loads
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from drivers.app import Served, hello, http_scope, served
from drivers.plans import completed
from faults.refusals import before_asking, renew_holds, settled, stopped
from meterkit import MeterKit, MeterMiddleware, current, identify
from meterkit.catalog import loads as plans_of
from meterkit.errors import StoreError
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
anonymous: {plan: free, by: ip}
meters: {requests: {unit: request}, tokens: {unit: token}, storage: {unit: byte, kind: gauge},
  seats: {unit: seat, kind: gauge}, rooms: {unit: room, kind: gauge}}
routes:
  - {match: "PUT /files/{key:path}", storage: content-length}
  - {match: "/shadow/{key:path}", storage: content-length, enforcement: shadow}
  - {match: "POST /members", grow: {seats: 1}, consume: {requests: 1}}
  - {match: "POST /rooms", grow: {rooms: 2}}
  - {match: "POST /both", storage: content-length, grow: {seats: 1}, consume: {requests: 1}}
  - match: "POST /ask"
    storage: content-length
    consume: {requests: 1}
    reserve: {tokens: {from: max, default: 1, ceiling: 50}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 5/hour}, tokens: {included: 100}, storage: {included: 1000},
      seats: {included: 2}, rooms: {included: 5, overage: {percent: 20, grace: 7d}}}
  pro: {price: {amount_cents: 100, interval: month}, meters: {storage: {included: 1_000_000}}}
"""


CHUNKED: Any = ()
LYING: Any = (("content-length", "10"),)
SHORT: Any = (("content-length", "300"),)
TWICE: Any = (("content-length", "10"), ("content-length", "20"))


@dataclass
class Call:
    """A request without a server: what it is answered, and what the app got of it."""

    messages: list[Message]
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    error: BaseException | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")

    async def receive(self) -> Message:
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}


def pieces(*sizes: int, ends: bool = True) -> list[Message]:
    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes
    ]
    messages[-1]["more_body"] = not ends
    return messages


async def put(
    app: Served,
    messages: list[Message],
    *headers: tuple[str, str],
    path: str = "/files/a",
    method: str = "PUT",
) -> Call:
    """Send a request with these messages and no other headers than these."""
    call = Call(messages)
    scope = http_scope(path, method=method)
    scope["headers"] = [*scope["headers"], *((name.encode(), value.encode()) for name, value in headers)]
    try:
        await app.app(scope, call.receive, call.send)
    except Exception as error:  # noqa: BLE001 - what the server would get
        call.error = error
    return call


class Reads:
    """An app that reads all of a body, then answers how much that was; ``gone``: the client left."""

    def __init__(self) -> None:
        self.read, self.gone, self.was_asked = 0, False, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.was_asked = True
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return
            self.read += len(message["body"])
            more = message["more_body"]
        await hello(scope, receive, send)


async def test_too_large_a_body_is_refused_by_its_length(valkey: Server) -> None:
    app = Reads()
    async with served(app, plans=PLANS, redis_url=valkey.url) as http:
        await http.kit.gauges.set("acme", "storage", 600)
        valkey.command("CONFIG", "RESETSTAT")
        refused = await put(http, pieces(401), ("content-length", "401"))
        calls: Any = valkey.command("INFO", "commandstats")
        assert calls["cmdstat_evalsha"]["calls"] == 1
        assert (refused.messages, app.was_asked) == (pieces(401), False)
        assert (await put(http, pieces(400), ("content-length", "400"))).status == 200
        # Who lies about a length gets no more in: what was read counts.
        lied = await put(http, pieces(10, 400), ("content-length", "10"))
        assert (lied.status, app.read - 400) == (413, 10)
    assert (refused.status, refused.headers["content-type"]) == (413, "application/problem+json")
    assert refused.headers["x-should-retry"] == "false"
    assert not {"retry-after", "ratelimit", "ratelimit-policy"} & refused.headers.keys()
    told = loads(refused.body)
    assert told["type"] == "urn:meterkit:problem:storage-limit-exceeded"
    assert (told["limit"], told["used"], told["requested"]) == (1000, 600, 401)


@dataclass
class Storing:
    """An app that stands still until it may go on, then says how far the gauge is filled."""

    sets: bool
    entered: Event = field(default_factory=Event)
    may_set: Event = field(default_factory=Event)
    has_set: Event = field(default_factory=Event)
    may_end: Event = field(default_factory=Event)
    kit: Any = None
    complete: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        self.complete += 1
        self.entered.set()
        await self.may_set.wait()
        if self.sets:
            await self.kit.gauges.adjust(current().customer, "storage", size)
        self.has_set.set()
        await self.may_end.wait()
        await hello(scope, receive, send)


@asynccontextmanager
async def storing(url: str = "memory://", *, sets: bool = True) -> AsyncGenerator[tuple[Served, Storing]]:
    app = Storing(sets)
    async with served(app, plans=PLANS, redis_url=url) as http:
        app.kit = http.kit
        yield http, app


async def held_of(http: Served, meter: str = "storage") -> tuple[int, int]:
    """How much of a gauge is used, and what of that is held, once all that was settled is in the store."""
    for lane in http.kit.store.lanes.values():
        await lane.await_replies()
    shown = (await http.kit.usage("acme"))["meters"][meter]
    return shown["used"], shown["held"]


async def test_a_body_of_unknown_length_is_counted_and_ends_in_413() -> None:
    app = Reads()
    async with served(app, plans=PLANS) as http:
        tallies = http.kit.store.tally()
        call = await put(http, pieces(500, 400, 101, 7), ("transfer-encoding", "chunked"))
        assert (call.status, call.error) == (413, None)
        told = loads(call.body)
        assert (told["limit"], told["used"], told["requested"]) == (1000, 0, 1001)
        # The piece that did not fit is not handed on, and the rest is not asked for.
        assert ((app.read, app.gone, len(call.messages)), await held_of(http)) == ((900, True, 1), (0, 0))
        assert (await put(http, pieces(500, 400, 100))).status == 200
        assert tallies.requests == {("free", "refused", "storage"): 1, ("free", "success", "none"): 1}
        # A client that leaves within its body leaves nothing held.
        assert ((await put(http, pieces(500, 300, ends=False))).status, await held_of(http)) == (0, (0, 0))


async def test_bytes_that_were_read_count_whatever_was_announced() -> None:
    app = Reads()
    async with served(app, plans=PLANS) as http:
        call = await put(http, pieces(700, 301), *LYING, path="/ask", method="POST")
        assert ((call.status, app.was_asked), loads(call.body)["requested"]) == ((413, False), 1001)


async def test_a_begun_answer_is_cut_where_the_body_does_not_fit() -> None:
    caught: list[BaseException] = []

    async def echo(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        try:
            await send({"type": "http.response.body", "body": b"stored"})
        except ConnectionAbortedError as error:
            caught.append(error)
            raise

    async with served(echo, plans=PLANS) as http:
        call = await put(http, pieces(900, 200))
        assert ((call.status, call.body, call.error), len(caught)) == ((200, b"", None), 1)
        assert await held_of(http) == (0, 0)


async def test_growth_is_refused_when_full_and_held_until_set() -> None:
    taken: list[tuple[int, int]] = []

    async def invite(scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(await held_of(http, "seats"))
        await http.kit.gauges.adjust("acme", "seats", 1)
        taken.append(await held_of(http, "seats"))
        await hello(scope, receive, send)

    async with served(invite, plans=PLANS) as http:
        assert await http.statuses("/members", "/members", method="POST") == [200, 200]
        assert taken == [(1, 1), (1, 0), (2, 1), (2, 0)]
        told = (await http.client.post("/members")).json()
        assert (told["status"], told["type"]) == (403, "urn:meterkit:problem:seats-limit-exceeded")
        assert (told["limit"], told["used"]) == (2, 2)
        assert "Free a seat" in told["detail"]
        # Of the rate the refused one has taken nothing.
        assert await http.counted() == (2, 0)
        await http.kit.gauges.adjust("acme", "seats", -1)
        assert await http.statuses("/members", method="POST") == [200]


async def test_what_refuses_first_is_told_and_nothing_is_counted() -> None:
    async with served(hello, plans=PLANS) as http:
        await http.kit.gauges.set("acme", "storage", 990)
        await http.kit.gauges.set("acme", "seats", 2)
        answer = await http.client.post("/both", content=b"x" * 11)
        assert (answer.status_code, answer.json()["requested"]) == (413, 11)
        # Of policies, those that a window or a period frees are told; a gauge is not.
        assert answer.headers["ratelimit-policy"] == '"requests-1h";q=5;w=3600'
        answer = await http.client.post("/both", content=b"x" * 10)
        assert ((answer.status_code, answer.json()["used"]), await http.counted()) == ((403, 2), (0, 0))
        assert await held_of(http) == (990, 0)
        await http.kit.gauges.set("acme", "seats", 1)
        answer = await http.client.post("/both", content=b"x" * 10)
        assert (answer.status_code, answer.headers["ratelimit"][:17]) == (200, '"requests-1h";r=4')
        assert await held_of(http) == (990, 0)


async def test_a_tolerance_lasts_its_time_and_begins_anew() -> None:
    async with served(hello, plans=PLANS) as http:

        async def grown() -> dict[str, Any]:
            """The answer to a request for two rooms more; nothing where it is served."""
            answer = await http.client.post("/rooms")
            return {} if answer.status_code == 200 else answer.json()

        assert await grown() == {}
        await http.kit.gauges.set("acme", "rooms", 4)  # 5 are included, 6 tolerated.
        assert await grown() == {}
        await http.kit.gauges.set("acme", "rooms", 6)
        told = await grown()
        assert (told["limit"], told["used"]) == (6, 6)
        assert "Free a room" in told["detail"]
        http.clock.advance(timedelta(days=7, milliseconds=-1))
        assert (await http.kit.check("acme", "rooms", 0)).allowed
        await http.kit.gauges.set("acme", "rooms", 5 + 1, event_id="again")
        http.clock.advance(timedelta(milliseconds=1))
        told = await grown()
        assert (told["limit"], told["used"]) == (5, 6)
        for rooms in (3, 4):
            await http.kit.gauges.set("acme", "rooms", rooms)
            assert await grown() == {}


async def test_i4_a_plan_binds_at_once_and_its_tolerance_begins() -> None:
    async with served(hello, plans=PLANS) as http:
        await http.kit.customers.set_plan("acme", "pro")
        await http.kit.gauges.set("acme", "storage", 5000)
        await http.kit.gauges.set("acme", "rooms", 6)
        assert (await http.client.put("/files/a", content=b"x" * 5000)).status_code == 200
        await http.kit.customers.set_plan("acme", "free")
        answer = await http.client.put("/files/a", content=b"x")
        assert (answer.status_code, answer.json()["limit"]) == (413, 1000)
        shown = (await http.kit.usage("acme"))["meters"]
        assert (shown["storage"]["used"], shown["storage"]["remaining"]) == (5000, 0)
        assert (await http.kit.check("acme", "storage")).remaining == 0
        # 6 rooms were never too many for pro: the 7 days begin now.
        answer = await http.client.post("/rooms")
        assert (answer.status_code, answer.json()["limit"]) == (403, 6)
        http.clock.advance(timedelta(days=7))
        answer = await http.client.post("/rooms")
        assert (answer.status_code, answer.json()["limit"]) == (403, 5)


async def test_i8_a_piece_is_not_lost_to_an_app_that_gives_up(valkey: Server) -> None:
    got: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting = ensure_future(receive())
        with stopped(valkey):
            while len(coming) == 2:  # noqa: ASYNC110 - Tasks of this loop only: nothing else tells.
                await sleep(0)
            for _ in range(9):  # The store is asked about the piece.
                await sleep(0)
            waiting.cancel()
            await wait([waiting])
        got.extend([len((await receive())["body"]) for _ in range(2)])
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, redis_url=valkey.url, settings={"store_timeout": 5}) as http:
        coming = pieces(300, 400)
        assert ((await put(http, coming)).status, got, await held_of(http)) == (200, [300, 400], (0, 0))


async def test_in_shadow_nobody_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    app = Reads()
    async with served(app, plans=PLANS) as http:
        for headers in ((("content-length", "1500"),), CHUNKED):
            call = await put(http, pieces(700, 800), *headers, path="/shadow/a")
            assert (call.status, app.read) == (200, 1500)
            app.read = 0
            assert await held_of(http) == (0, 0)
        assert ["reason='storage'" in message for message in caplog.messages] == [True, True]
        # What fits is not logged.
        assert ((await put(http, pieces(700), path="/shadow/a")).status, len(caplog.records)) == (200, 2)


@pytest.mark.parametrize(
    ("line", "status", "read"),
    [
        ("on_store_failure: deny", 503, 0),
        ("on_store_failure: allow", 200, 200),
        ("on_store_failure: deny, enforcement: shadow", 200, 200),
    ],
)
async def test_an_upload_that_loses_the_store_goes_by_its_line(line: str, status: int, read: int) -> None:
    rest = Reads()

    async def away() -> None:
        raise StoreError("the store does not answer")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        end = await before_asking(http.kit, away)
        await rest(scope, receive, send)
        end()

    plans = PLANS.replace("storage: content-length}", f"storage: content-length, {line}}}", 1)
    async with served(app, plans=plans) as http:
        call = await put(http, pieces(700, 200))
        assert ((call.status, call.error), (rest.read, rest.gone)) == ((status, None), (read, status == 503))
        assert await held_of(http) == (0, 0)


async def test_who_goes_by_an_address_has_gauges_of_their_own() -> None:
    async def store(scope: Scope, receive: Receive, send: Send) -> None:
        await http.kit.gauges.adjust(current().customer, "storage", 400)
        await hello(scope, receive, send)

    async with served(store, plans=PLANS, who=lambda _: None) as http:
        for size, status in ((400, 200), (601, 413)):
            assert await http.statuses("/files/a", method="PUT", content=b"x" * size) == [status]
        # The customer who is called like that is another one.
        assert await http.kit.gauges.get("127.0.0.1", "storage") == 0


async def test_i3_a_long_upload_keeps_its_hold_and_returns_it(valkey: Server) -> None:
    async def hold_for_a_while() -> None:
        for _ in range(8):
            http.clock.advance(timedelta(minutes=2))
            await renew_holds(lane)
            await settled(http.kit)

    for headers, sets in ((SHORT, False), (CHUNKED, True)):
        async with storing(valkey.url, sets=sets) as (http, app):
            lane = http.kit.store.lanes[get_running_loop()]
            first = create_task(put(http, pieces(300, 400), *headers))
            await app.entered.wait()
            await hold_for_a_while()
            assert await held_of(http) == (700, 700)
            app.may_set.set()
            await app.has_set.wait()
            await hold_for_a_while()
            assert await held_of(http) == ((700, 0) if sets else (700, 700))
            app.may_end.set()
            assert ((await first).status, await held_of(http)) == (200, (700, 0) if sets else (0, 0))
            assert lane.live == set()


@pytest.mark.parametrize("headers", [(("content-length", "100"),), ()])
async def test_i3_uploads_at_once_pass_as_they_fit(
    valkey: Server, headers: Sequence[tuple[str, str]]
) -> None:
    async with storing(valkey.url) as (http, app):
        await http.kit.gauges.set("acme", "storage", 350)
        calls = [create_task(put(http, pieces(60, 40), *headers)) for _ in range(20)]
        await app.entered.wait()
        while (await held_of(http))[1] > app.complete * 100:
            pass  # Until all that did not fit are refused.
        app.may_set.set()
        app.may_end.set()
        served_ = [(await call).status for call in calls].count(200)
        # With their lengths known, as many as fit; without, at least one.
        assert served_ == 6 if headers else 1 <= served_ <= 6
        assert await held_of(http) == (350 + 100 * served_, 0)


@pytest.mark.parametrize(
    ("sizes", "headers"),
    [
        ([(500, 500)] * 2, CHUNKED),
        ([(100,) * 10] * 5, LYING),
        ([(999, 1), (1, 999)], SHORT),
        ([(400, 600), (600, 1), (300, 701)], CHUNKED),
        ([(501,), (250, 251), (10,) * 60], TWICE),
    ],
)
async def test_i3_of_uploads_that_fit_alone_one_passes(
    any_store_url: str, sizes: Sequence[Sequence[int]], headers: Sequence[tuple[str, str]]
) -> None:
    async with served(Reads(), plans=PLANS, redis_url=any_store_url) as http:
        calls = [create_task(put(http, pieces(*one), *headers)) for one in sizes]
        statuses = [(await call).status for call in calls]
        assert 200 in statuses
        assert set(statuses) <= {200, 413}
        assert (await held_of(http), (await put(http, pieces(1000))).status) == ((0, 0), 200)


async def test_i3_of_uploads_in_two_processes_one_passes(valkey: Server) -> None:
    async with served(Reads(), plans=PLANS, redis_url=valkey.url) as http:
        settings: Any = {"key_prefix": http.kit.store.keys.prefix, "shards": 4, "flush": False}
        async with MeterKit(
            plans_of(completed(PLANS)), redis_url=valkey.url, clock=http.clock, **settings
        ) as other:
            beside = MeterMiddleware(Reads(), kit=other, identify=identify.header("x-customer-id"))
            both = [http, replace(http, app=beside, kit=other)] * 3
            calls = [create_task(put(one, pieces(*[250] * 4))) for one in both]
            assert 200 in [(await call).status for call in calls]
            await settled(other)
            assert await held_of(http) == (0, 0)


async def test_i3_an_upload_keeps_its_bytes_beside_a_refused_one() -> None:
    """Who holds the bytes of its whole body passes, whatever comes at the same time."""
    async with storing(sets=False) as (http, app):
        first = create_task(put(http, pieces(300, 300)))
        await app.entered.wait()
        assert await held_of(http) == (600, 600)
        app.may_set.set()
        others = [(await put(http, pieces(200, 201), *lengths)).status for lengths in (CHUNKED, LYING)]
        assert (others, await held_of(http)) == ([413, 413], (600, 600))
        app.may_end.set()
        assert ((await first).status, await held_of(http)) == (200, (0, 0))


@pytest.mark.parametrize(("included", "ahead"), [((16 << 20) + (256 << 10) - 1, 700), (17 << 20, 256 << 10)])
async def test_bytes_are_set_aside_ahead_only_where_much_is_left(included: int, ahead: int) -> None:
    """Else what an upload may never send would refuse another one that fits."""
    held: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        held.append((await held_of(http))[1])
        await hello(scope, receive, send)

    plans = PLANS.replace("storage: {included: 1000}", f"storage: {{included: {included}}}")
    async with served(app, plans=plans) as http:
        await put(http, pieces(700, ends=False))
        assert (held, await held_of(http)) == ([ahead], (0, 0))


async def test_an_event_id_of_an_address_is_not_one_of_a_customer() -> None:
    """A customer's id may be the text of an IP address: each of the two counts its own changes."""
    levels: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        levels.append(await at.kit.gauges.adjust(current().customer, "rooms", 1, event_id="e1"))
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, who=lambda _: None) as at:
        assert (await put(at, pieces(0), path="/rooms", method="POST")).status == 200
        levels.append(await at.kit.gauges.adjust("127.0.0.1", "rooms", 3, event_id="e1"))
    assert levels == [1, 3]
