"""The edge under bad input, clients that leave, doubt, and requests that are cancelled or collected."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

import meterkit
from drivers.app import PLANS as APP_PLANS
from drivers.app import answering, hello, http_scope, ignore, no_more, served
from drivers.counters import put_head
from drivers.llm_apps import PLANS as LLM_PLANS
from drivers.llm_apps import PROMPT_TOKENS, openai_stream, tokens
from drivers.llm_apps import answering as llm_answering
from drivers.llm_apps import ask as llm_ask
from drivers.llm_apps import metered as llm_metered
from faults.refusals import (
    PLANS,
    Client,
    answer_ok,
    counters,
    eventually,
    in_flight,
    kit_at,
    metered,
    settled,
    stopped,
    used,
)
from meterkit import MeterKit, MeterMiddleware, record
from meterkit.catalog import loads
from meterkit.errors import CustomerError, QuantityError, UnknownMeterError
from servers.stores import Server

pytestmark = pytest.mark.anyio

CHARGED = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "GET /attempt", consume: {requests: 1}, charge_on: attempt}\n'
    '  - {match: "GET /gone", consume: {requests: 1}, charge_on: [client_gone]}\n',
)


@pytest.fixture
async def kit(valkey: Server) -> AsyncIterator[MeterKit]:
    async with kit_at(valkey.url, plans=loads(CHARGED)) as kit:
        yield kit


async def nothing_held(kit: MeterKit, valkey: Server, customer: str) -> bool:
    await settled(kit)
    return (await used(kit, customer))[1] == 0 and in_flight(valkey, customer) == 0


async def streams(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for n in range(6):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"%d" % n if n < 5 else b"", "more_body": n < 5})


class Hanging(Client):
    """A client that is gone when it is sent its n-th message."""

    def __init__(self, app: Any, after: int, error: BaseException) -> None:
        super().__init__(app)
        self.after, self.error = after, error

    async def _take(self, message: Message) -> None:
        if len(self.messages) == self.after:
            raise self.error
        await super()._take(message)


@pytest.mark.each_loop
@pytest.mark.parametrize(
    ("path", "after", "error", "recorded"),
    [
        ("/", 0, OSError, 0),
        ("/", 1, ClientDisconnect, 0),
        ("/", 2, asyncio.CancelledError, 1),
        ("/", 2, OSError, 1),
        ("/attempt", 0, asyncio.CancelledError, 1),
        ("/attempt", 3, OSError, 1),
        ("/gone", 1, asyncio.CancelledError, 0),
        ("/gone", 2, ClientDisconnect, 1),
        ("/gone", 7, OSError, 0),
    ],
)
async def test_a_hang_up_is_billed_from_the_first_body_byte(
    kit: MeterKit, valkey: Server, path: str, after: int, error: type[BaseException], recorded: int
) -> None:
    client = Hanging(metered(kit, streams), after, error())
    await asyncio.gather(asyncio.ensure_future(client.get("acme", path)), return_exceptions=True)
    assert len(client.messages) == min(after, 7)
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (recorded, 0)


def identified(kit: MeterKit, answer: Callable[[], Any]) -> MeterMiddleware:
    return MeterMiddleware(answer_ok, kit=kit, identify=lambda _: answer())


def body_of(client: Client) -> bytes:
    return b"".join(message.get("body", b"") for message in client.messages)


@pytest.mark.parametrize("customer", ["", "🦆" * 65, "a\r\nX-Evil: 1", "acme\udcff", 7], ids=ascii)
async def test_an_impossible_customer_is_refused_and_not_counted(
    kit: MeterKit, valkey: Server, customer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = valkey.command("DBSIZE")
    client = Client(identified(kit, lambda: customer))
    is_text = isinstance(customer, str)
    assert await client.get("acme", "/deny") == (400 if is_text else 503)
    assert (b"customer-invalid" if is_text else b"temporary-reduced-capacity") in body_of(client)
    for ask in (kit.check, kit.consume, kit.record):
        with pytest.raises(CustomerError):
            await ask(customer, "requests", 1)
    for look in (kit.usage(customer), kit.customers.get(customer), kit.customers.set_plan(customer, "other")):
        with pytest.raises(CustomerError):
            await look
    assert valkey.command("DBSIZE") == before
    # One line, in which nothing stands of what the client sent; and one of the app's error, where it is one.
    names = ["meterkit.refusals"] if is_text else ["meterkit.asgi", "meterkit.refusals"]
    assert names == [record.name for record in caplog.records]
    assert is_text or "return str(...)" in caplog.text
    assert f"refused: reason='{'invalid_customer' if is_text else 'identify'}' route=" in caplog.text


async def test_identify_returning_false_is_anonymous(kit: MeterKit, caplog: pytest.LogCaptureFixture) -> None:
    # F-22a: `user.is_authenticated and user.id` is False, which was 503.
    no: Any = False
    assert await Client(identified(kit, lambda: no)).get("ignored", "/deny") == 401
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("error", [ValueError("sk_live_secret"), StopIteration()], ids=repr)
async def test_i9_a_resolver_that_raises_is_503_and_not_counted(
    kit: MeterKit, valkey: Server, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails_later() -> str:
        await asyncio.sleep(0)
        raise error

    def fails() -> Any:
        raise error

    before = valkey.command("DBSIZE")
    for path, fail in (("/", fails), ("/deny", fails_later)):
        client = Client(identified(kit, fail))
        assert await client.get("acme", path) == 503
        assert b"temporary-reduced-capacity" in body_of(client)
        assert b"The customer of this request could not be determined" in body_of(client)
        assert b"sk_live" not in body_of(client)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["the customer of a request of the route" in line.getMessage() for line in logged] == [
        True,
        True,
    ]
    assert all(line.exc_info is not None for line in logged)
    assert valkey.command("DBSIZE") == before


async def test_an_impossible_quantity_spoils_no_earlier_record(kit: MeterKit) -> None:
    wrong: list[Any] = [-1, 10**15, math.nan, 1.5, True, "1", None]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(tokens=10**15 - 1)
        for quantity in wrong:
            for named in ({"tokens": quantity}, {"requests": 1, "tokens": quantity}):
                with pytest.raises(QuantityError):
                    meterkit.record(**named)
        # The sum would be too large.
        with pytest.raises(QuantityError):
            meterkit.record(requests=5, tokens=1)
        await answer_ok(scope, receive, send)

    for quantity in wrong:
        for ask in (kit.check, kit.consume, kit.record):
            with pytest.raises(QuantityError):
                await ask("acme", "tokens", quantity)
    assert await Client(metered(kit, app)).get("acme", "/deny") == 200
    await settled(kit)
    assert (await used(kit, "acme", "tokens"), await used(kit, "acme")) == ((10**15 - 1, 0), (1, 0))


async def test_the_largest_and_the_smallest_quantity_are_exact(kit: MeterKit) -> None:
    for quantity in (0, 10**15 - 1, 2):
        await kit.record("acme", "tokens", quantity)
    assert await used(kit, "acme", "tokens") == (10**15 + 1, 0)
    for meter in ("", "requests ", "x" * 10_000, "\ud800"):
        for ask in (kit.check, kit.consume, kit.record):
            with pytest.raises(UnknownMeterError) as caught:
                await ask("acme", meter, 1)
            assert len(str(caught.value)) < 500


@pytest.mark.leaves_keys("a state written by hand")
@pytest.mark.parametrize("data", ["{", '{"plan": 7}'])
async def test_i9_an_unreadable_state_harms_nobody_else(kit: MeterKit, valkey: Server, data: str) -> None:
    await Client(metered(kit)).get("acme")
    await settled(kit)
    shard = next(key for key in valkey.command("KEYS", "*:c:acme")).partition(":c:")[0]
    valkey.command("HSET", f"{shard}:s:acme", "rev", "2:broken", "data", data)
    put_head(valkey, f"{shard}:c:acme", r="2:broken")
    app = metered(kit)
    assert await Client(app).get("acme", "/deny") in {200, 503}
    assert (await Client(app).get("acme", "/"), await Client(app).get("other", "/deny")) == (200, 200)
    # A good state heals it, and what was served meanwhile is there.
    valkey.command("HSET", f"{shard}:s:acme", "rev", "2:good", "data", "{}")
    put_head(valkey, f"{shard}:c:acme", r="2:good")
    assert await Client(app).get("acme", "/deny") == 200
    await settled(kit)
    assert (await used(kit, "acme"))[0] >= 3
    assert counters(valkey, "acme")["r"] == "2:good"


LASTS = ({"type": "http.response.body", "body": b"y"}, {"type": "http.response.pathsend", "path": "/f"})


@pytest.mark.parametrize("last", LASTS, ids=["body", "pathsend"])
async def test_with_trailers_a_response_ends_when_they_are_sent(last: dict[str, Any], store_url: str) -> None:
    """F-87: settling before the trailers."""
    settled_before: list[tuple[int, int]] = []
    trailers: Message = {"type": "http.response.trailers", "headers": [], "more_trailers": False}

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        for message in (last, trailers):
            await send(message)
            await settled(at.kit)
            settled_before.append(await at.counted())

    async with served(app, redis_url=store_url) as at:
        await at.app(http_scope("/v1/x"), no_more, ignore)
        assert settled_before == [(0, 1), (1, 0)]


@pytest.mark.parametrize("path", ["/attempt", "/v1/x"])
async def test_i3_late_threads_count_once(path: str, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()
    checked: list[int] = []

    def check(quantity: int) -> int:
        checked.append(quantity)
        begun.set()  # Of what it adds up to: it is about to be kept.
        assert over.wait(60)
        return quantity

    # The moment is hit by no other means.
    monkeypatch.setattr("meterkit.asgi.exchange.check_quantity", check)
    recording: list[asyncio.Task[None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        recording.append(asyncio.create_task(asyncio.to_thread(record, tokens=7)))
        await asyncio.to_thread(begun.wait, 20)
        await hello(scope, receive, send)

    async with served(app, redis_url=store_url) as at:
        await at.app(http_scope(path), no_more, ignore)
        over.set()
        await asyncio.gather(*recording)
        await settled(at.kit)
        assert (checked, await at.counted(meter="tokens"), await at.counted()) == ([7], (7, 0), (1, 0))


async def test_in_doubt_a_request_is_billed_by_its_outcome_like_any(valkey: Server) -> None:
    """F-87: in-doubt requests were billed whatever their outcome, and no test failed."""
    async with kit_at(valkey.url, store_timeout=0.2) as kit:
        await kit.record("acme", "tokens", 1)
        await settled(kit)
        with stopped(valkey):
            assert await Client(metered(kit, answering(500))).get("acme") == 500
        await eventually(lambda: nothing_held(kit, valkey, "acme"))
        assert await used(kit, "acme") == (0, 0)


async def test_a_route_that_reads_usage_wants_one_token_left(store_url: str) -> None:
    """F-87: with nothing left of a meter that the answer is counted on, the model is not asked."""
    plans = LLM_PLANS.replace("{rate: 1_000_000_000/hour}", "{included: 10, overage: deny}")
    async with llm_metered(hello, store_url, plans=plans) as at:
        await at.kit.record("acme", "output_tokens", 9)
        assert await at.statuses("/auto", method="POST") == [200]
        await at.kit.record("acme", "output_tokens", 1)
        refused = await at.client.post("/auto")
        assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["output_tokens-period"])
        assert (await at.statuses("/none", method="POST"), await at.counted()) == ([200], (2, 0))


async def test_a_customer_and_an_anonymous_namesake_are_two(store_url: str) -> None:
    """F-87: in one process, in either order, as in the store."""
    plans = APP_PLANS.replace(
        "meters:\n  requests", "anonymous: {plan: free, by: ip}\nmeters:\n  requests", 1
    )

    def who(scope: Scope) -> str | None:
        return "127.0.0.1" if (b"x-named", b"1") in scope["headers"] else None

    for order in ("01", "10"):
        async with served(hello, plans=plans, who=who, redis_url=store_url) as at:
            for named in order:
                assert await at.statuses(*["/v1/x"] * 6, headers={"x-named": named}) == [200] * 5 + [429]
            assert await at.counted("127.0.0.1") == (5, 0)


async def test_a_failing_reader_makes_nothing_free(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def breaks(*_: object) -> None:
        raise RuntimeError("a bug of the reader")

    monkeypatch.setattr("llm_usage.response.ResponseReader.read", breaks)
    app = llm_answering(openai_stream("x" * 300), "text/event-stream", ends=False)
    async with llm_metered(app, store_url) as at:
        await llm_ask(at, "/auto")
        found = await tokens(at.kit)
        assert ((found[0], found[1] >= 1), await at.counted()) == ((PROMPT_TOKENS, True), (1, 0))


async def test_of_a_large_request_a_part_is_kept(store_url: str) -> None:
    """F-87: however much the client sends, one MiB."""
    piece = b"x" * 900_000
    kept: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": piece, "more_body": True}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracemalloc.start()
        try:
            for _ in range(8):
                await receive()
            kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        await hello(scope, receive, send)

    async with llm_metered(app, store_url) as at:
        await at.app(http_scope("/auto", method="POST"), receive, ignore)
    assert 1 << 20 <= kept[0] < 1.3 * (1 << 20)


async def collected(serving: Any, entered: asyncio.Event) -> None:
    """Run until a coroutine has come so far; then close it as the collector does: in another context."""
    task = asyncio.create_task(serving)
    await entered.wait()
    await asyncio.sleep(0)
    contextvars.Context().run(serving.close)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_lifespan_that_is_collected_ends_without_a_word() -> None:
    """F-18: it awaited the kit's end in ``finally``, which nothing can wait for by then."""
    kit = kit_at("memory://", flush=False)
    started = asyncio.Event()

    async def receive() -> Message:
        if started.is_set():
            await asyncio.Event().wait()
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        assert message["type"] == "lifespan.startup.complete"
        started.set()

    async def lasting(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    # RuntimeError: coroutine ignored GeneratorExit
    await collected(metered(kit, lasting)({"type": "lifespan", "state": {}}, receive, send), started)
    assert kit.store.lanes
    await kit.stop()
    assert not kit.store.lanes


async def test_a_stop_amid_a_request_says_what_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Where the plan limits nothing that is held, the log said that usage is lost; else it said nothing."""

    async def stopping(scope: Scope, receive: Receive, send: Send) -> None:
        await at.kit.stop()
        await hello(scope, receive, send)

    async with served(stopping) as at:
        assert await at.statuses("/v1/x") == [200]
        assert "1 requests or websockets had not ended when the kit stopped" in caplog.text
        await at.kit.start()
        assert await at.counted() == (0, 0)


async def test_a_collected_request_is_settled_and_holds_nothing(store_url: str) -> None:
    """F-18: in another context the request's own cannot be put back."""
    entered = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        entered.set()
        await asyncio.Event().wait()

    async with served(app, redis_url=store_url) as at:
        await collected(at.app(http_scope("/pages"), no_more, ignore), entered)
        lane = at.kit.store.lanes[asyncio.get_running_loop()]
        await eventually(lambda: lane.unsettled == 0)
        assert await at.counted(meter="pages") == (1, 0)
