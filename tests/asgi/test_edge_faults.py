"""The edge under bad input, clients that leave, and requests that are cancelled anywhere."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect

import meterkit
from drivers.counters import put_head
from drivers.sampled import some
from faults.refusals import (
    PLANS,
    Client,
    answer_ok,
    catalog,
    counters,
    eventually,
    http_scope,
    in_flight,
    kit_at,
    metered,
    settled,
    stopped,
    used,
)
from meterkit import MeterMiddleware
from meterkit.errors import CustomerError, QuantityError, UnknownMeterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from meterkit import MeterKit
    from servers.stores import Server

pytestmark = pytest.mark.anyio

CHARGED = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "GET /attempt", consume: {requests: 1}, charge_on: attempt}\n'
    '  - {match: "GET /gone", consume: {requests: 1}, charge_on: [client_gone]}\n',
)


@pytest.fixture
async def kit(valkey: Server) -> AsyncIterator[MeterKit]:
    async with kit_at(valkey.url, plans=catalog(CHARGED)) as kit:
        yield kit


async def nothing_held(kit: MeterKit, valkey: Server, customer: str) -> bool:
    await settled(kit)
    return (await used(kit, customer))[1] == 0 and in_flight(valkey, customer) == 0


# Clients that leave.


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for n in range(5):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"%d" % n, "more_body": True})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


class Hanging(Client):
    """A client that is gone when it is sent its n-th message."""

    def __init__(self, app: Any, after: int, error: BaseException) -> None:
        super().__init__(app)
        self.after = after
        self.error = error

    async def _take(self, message: Message) -> None:
        if len(self.messages) == self.after:
            raise self.error
        await super()._take(message)


@pytest.mark.each_loop
@pytest.mark.parametrize("error", [OSError("gone"), ClientDisconnect(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize(
    ("path", "after", "recorded"),
    [
        ("/", 0, 0),
        ("/", 1, 0),
        ("/", 2, 1),
        ("/", 7, 1),
        ("/attempt", 0, 1),
        ("/attempt", 3, 1),
        ("/gone", 1, 0),
        ("/gone", 2, 1),
        ("/gone", 7, 0),
    ],
)
async def test_a_hang_up_is_billed_from_the_first_body_byte(
    kit: MeterKit, valkey: Server, error: BaseException, path: str, after: int, recorded: int
) -> None:
    client = Hanging(metered(kit, streams), after, error)
    task = asyncio.ensure_future(client.get("acme", path))
    await asyncio.gather(task, return_exceptions=True)
    assert len(client.messages) == min(after, 7)
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (recorded, 0)


async def test_an_app_that_fails_after_the_first_byte_is_not_billed(kit: MeterKit, valkey: Server) -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        raise ValueError("a bug of the app")

    with pytest.raises(ValueError, match="a bug of the app"):
        await Client(metered(kit, breaks)).get("acme")
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (0, 0)


@pytest.mark.each_loop
@pytest.mark.parametrize("steps", some(range(30), range(0, 30, 4)))
async def test_a_cancelled_request_counts_what_was_sent(kit: MeterKit, valkey: Server, steps: int) -> None:
    client = Client(metered(kit, streams))
    task = asyncio.create_task(client.get("acme", "/deny"))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    begun = any(message.get("body") for message in client.messages)
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (int(begun), 0)


async def test_a_request_cancelled_as_its_decision_comes_holds_nothing(kit: MeterKit, valkey: Server) -> None:
    app = metered(kit)
    await Client(app).get("acme")  # Known, so that the next is decided by the first reply.
    await settled(kit)
    lane = kit.store.lanes[asyncio.get_running_loop()]
    plain = lane.call

    def call_and_watch(call: Any) -> asyncio.Future[Any]:
        reply = plain(call)
        # Called before the task that waits is woken.
        reply.add_done_callback(lambda _: task.cancel())
        return reply

    lane.call = call_and_watch  # The moment is hit by no other means.
    task = asyncio.create_task(Client(app).get("acme"))
    with pytest.raises(asyncio.CancelledError):
        await task
    lane.call = plain
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (1, 0)


async def test_a_request_cancelled_at_its_second_decision_holds_0(kit: MeterKit, valkey: Server) -> None:
    app = metered(kit)
    await Client(app).get("acme")
    await settled(kit)
    lane = kit.store.lanes[asyncio.get_running_loop()]
    plain, calls = lane.call, 0

    def call_and_watch(call: Any) -> asyncio.Future[Any]:
        nonlocal calls
        calls += 1
        reply = plain(call)
        if calls == 2:
            reply.add_done_callback(lambda _: task.cancel())
        return reply

    await kit.customers.set_plan("acme", "other")
    lane.call = call_and_watch  # The moment is hit by no other means.
    task = asyncio.create_task(Client(app).get("acme"))
    with pytest.raises(asyncio.CancelledError):
        await task
    lane.call = plain
    assert calls == 2
    await eventually(lambda: nothing_held(kit, valkey, "acme"))
    assert await used(kit, "acme") == (1, 0)


async def test_a_request_cancelled_while_the_store_hangs_holds_nothing(valkey: Server) -> None:
    async with kit_at(valkey.url, store_timeout=0.5) as kit:
        app = metered(kit)
        await Client(app).get("acme")
        await settled(kit)
        with stopped(valkey):
            tasks = [asyncio.create_task(Client(app).get("acme", "/deny")) for _ in range(20)]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: nothing_held(kit, valkey, "acme"))
        assert await used(kit, "acme") == (1, 0)


async def test_a_stream_without_an_end_is_settled_at_return(kit: MeterKit, valkey: Server) -> None:
    async def forgets(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})

    await Client(metered(kit, forgets)).get("acme")
    assert await nothing_held(kit, valkey, "acme")


# Customers.

ODD = [
    "{1}",
    "a}:c:b",
    "mk:{0}:c:acme",
    "*",
    "a b",
    "acme\u2028",
    "%00",
    "ünï",
    "🦆" * 64,
    "x" * 256,
    "'; DROP TABLE customers; --",
    "$(reboot)",
    "__proto__",
]
REFUSED = [
    "",
    "x" * 257,
    "x" * 10_000,
    "🦆" * 65,
    "a\nb",
    "a\r\nX-Evil: 1",
    "a\x00b",
    "\x7f",
    "\x85",
    "\ud800",
    "acme\udcff",
]


def identified(kit: MeterKit, answer: Callable[[], Any]) -> MeterMiddleware:
    return MeterMiddleware(answer_ok, kit=kit, identify=lambda _: answer())


@pytest.mark.parametrize("customer", ODD)
async def test_an_odd_customer_has_counters_of_its_own(kit: MeterKit, customer: str) -> None:
    app = identified(kit, lambda: customer)
    for _ in range(3):
        assert await Client(app).get("ignored", "/deny") == 200
    await kit.record(customer, "tokens", 7)
    await settled(kit)
    assert await used(kit, customer) == (3, 0)
    assert await used(kit, customer, "tokens") == (7, 0)
    for other in ("acme", "b", "1", "a", f"{customer[:50]}x"):
        assert await used(kit, other) == (0, 0)


WRONG_TYPES: list[Any] = [7, b"acme", ["acme"], True, 1.5]


@pytest.mark.parametrize("customer", [*REFUSED, *WRONG_TYPES], ids=ascii)
async def test_an_impossible_customer_is_refused_and_not_counted(
    kit: MeterKit, valkey: Server, customer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = valkey.command("DBSIZE")
    app = identified(kit, lambda: customer)
    client = Client(app)
    is_text = isinstance(customer, str)
    assert await client.get("acme", "/deny") == (400 if is_text else 503)
    body = b"".join(message.get("body", b"") for message in client.messages)
    assert (b"customer-invalid" if is_text else b"temporary-reduced-capacity") in body
    for ask in (kit.check, kit.consume, kit.record):
        with pytest.raises(CustomerError):
            await ask(customer, "requests", 1)
    for look in (kit.usage, kit.customers.get):
        with pytest.raises(CustomerError):
            await look(customer)
    with pytest.raises(CustomerError):
        await kit.customers.set_plan(customer, "other")
    assert valkey.command("DBSIZE") == before
    # One line, in which nothing stands of what the client sent; and one of the app's error, where it is one.
    names = ["meterkit.refusals"] if is_text else ["meterkit.asgi", "meterkit.refusals"]
    assert names == [record.name for record in caplog.records]
    assert f"refused: reason='{'invalid_customer' if is_text else 'identify'}' route=" in caplog.text


async def test_identify_of_another_type_is_logged_with_its_cure(
    kit: MeterKit, caplog: pytest.LogCaptureFixture
) -> None:
    """Every request was a 400, blamed on the client, and nothing said what had been returned."""
    answers: list[Any] = [91_779_177_917, 91_779_177_917, b"secret-id", 91_779_177_917]
    client = Client(identified(kit, iter(answers).__next__))
    for _ in answers:
        assert await client.get("ignored", "/deny") == 503
    body = b"".join(message.get("body", b"") for message in client.messages)
    assert b"The customer of this request could not be determined; the request was not served." in body
    told = [record for record in caplog.records if record.name == "meterkit.asgi"]
    assert [record.levelno for record in told] == [logging.ERROR] * 2
    said = [record.getMessage() for record in told]
    assert "identify returned a value of type int; " in said[0]
    assert "return str(...)" in said[0]
    assert "identify returned a value of type bytes; " in said[1]
    assert "91779177917" not in caplog.text
    assert "secret-id" not in caplog.text


async def test_an_identify_that_returns_false_names_no_customer(
    kit: MeterKit, caplog: pytest.LogCaptureFixture
) -> None:
    # F-22a: `user.is_authenticated and user.id` is False, which was 503.
    no: Any = False
    client = Client(identified(kit, lambda: no))
    assert await client.get("ignored", "/deny") == 401
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_headers_that_cannot_be_a_customer_are_refused(kit: MeterKit) -> None:
    app = metered(kit)
    for value in (b"x" * 10_000, b"a\x00b", b"\x85", b"\xff\xfe" * 200):
        scope = http_scope("acme", "/deny")
        scope["headers"] = [(b"x-customer-id", value)]
        assert await Client(app).ask(scope) in {400, 401}


def raises(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


async def fails_later(error: BaseException) -> str:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize(
    "error",
    [ValueError("sk_live_secret"), KeyError("x"), OSError("db"), TimeoutError(), StopIteration()],
    ids=repr,
)
@pytest.mark.parametrize("path", ["/", "/deny"])
async def test_i9_a_resolver_that_raises_is_503_and_not_counted(
    kit: MeterKit, valkey: Server, error: Exception, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = valkey.command("DBSIZE")
    with caplog.at_level(logging.ERROR):
        for app in (identified(kit, raises(error)), identified(kit, lambda: fails_later(error))):
            client = Client(app)
            assert await client.get("acme", path) == 503
            body = b"".join(message.get("body", b"") for message in client.messages)
            assert b"temporary-reduced-capacity" in body
            assert b"The customer of this request could not be determined" in body
            assert b"sk_live" not in body
    assert len(caplog.records) == 2
    assert "the customer of a request under the line" in caplog.text
    assert valkey.command("DBSIZE") == before


async def test_a_request_cancelled_in_its_resolver_is_cancelled(kit: MeterKit) -> None:
    waiting = asyncio.Event()

    async def resolve() -> str:
        waiting.set()
        await asyncio.Event().wait()
        return "acme"

    task = asyncio.create_task(Client(identified(kit, resolve)).get("acme"))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Quantities.

BAD_QUANTITIES = [-1, 10**15, 10**30, math.nan, math.inf, 1.0, 1.5, True, False, "1", None, b"1", [1]]


@pytest.mark.parametrize("quantity", BAD_QUANTITIES, ids=repr)
async def test_an_impossible_quantity_is_refused_and_not_counted(
    kit: MeterKit, valkey: Server, quantity: Any
) -> None:
    before = valkey.command("DBSIZE")
    for ask in (kit.check, kit.consume, kit.record):
        with pytest.raises(QuantityError):
            await ask("acme", "tokens", quantity)
    assert valkey.command("DBSIZE") == before


@pytest.mark.parametrize("quantity", BAD_QUANTITIES, ids=repr)
async def test_an_impossible_quantity_spoils_no_earlier_record(kit: MeterKit, quantity: Any) -> None:
    refused: list[type[BaseException]] = []
    attempts: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {"tokens": quantity}),
        ((), {"requests": 1, "tokens": quantity}),
        (("tokens", quantity), {}),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(tokens=5)
        for positional, named in attempts:
            try:
                meterkit.record(*positional, **named)
            except (QuantityError, TypeError) as error:
                refused.append(type(error))
        await answer_ok(scope, receive, send)

    assert await Client(metered(kit, app)).get("acme", "/deny") == 200
    await settled(kit)
    # None as the second argument is a call that is no call: a TypeError.
    assert refused == [QuantityError, QuantityError, TypeError if quantity is None else QuantityError]
    assert await used(kit, "acme", "tokens") == (5, 0)
    assert await used(kit, "acme") == (1, 0)


async def test_too_large_a_sum_is_refused_and_the_rest_stays(kit: MeterKit) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(tokens=10**15 - 1)
        with pytest.raises(QuantityError):
            meterkit.record(requests=5, tokens=1)
        await answer_ok(scope, receive, send)

    assert await Client(metered(kit, app)).get("acme", "/deny") == 200
    await settled(kit)
    assert await used(kit, "acme", "tokens") == (10**15 - 1, 0)
    assert await used(kit, "acme") == (1, 0)


async def test_what_several_threads_record_adds_up(kit: MeterKit) -> None:
    def work() -> None:
        for _ in range(500):
            meterkit.record(tokens=1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
        finally:
            sys.setswitchinterval(interval)
        await answer_ok(scope, receive, send)

    assert await Client(metered(kit, app)).get("acme") == 200
    await settled(kit)
    assert await used(kit, "acme", "tokens") == (2000, 0)


async def test_an_answer_that_failed_and_was_cut_is_not_billed(kit: MeterKit) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    assert await Client(metered(kit, app)).get("acme") == 500
    await settled(kit)
    assert await used(kit, "acme") == (0, 0)


async def test_what_the_app_itself_consumes_is_no_request_in_flight(kit: MeterKit) -> None:
    await kit.customers.override("acme", {"requests": {"concurrency": 1}})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await kit.consume("acme", "requests", 2)).allowed
        await answer_ok(scope, receive, send)

    assert await Client(metered(kit, app)).get("acme") == 200
    await settled(kit)
    assert await used(kit, "acme") == (3, 0)


@pytest.mark.parametrize("meter", ["", "token", "requests ", "x" * 10_000, "\ud800"], ids=ascii)
async def test_a_meter_that_is_not_there_is_refused(kit: MeterKit, meter: str) -> None:
    for ask in (kit.check, kit.consume, kit.record):
        with pytest.raises(UnknownMeterError) as caught:
            await ask("acme", meter, 1)
        assert len(str(caught.value)) < 500


async def test_the_largest_and_the_smallest_quantity_are_exact(kit: MeterKit) -> None:
    await kit.record("acme", "tokens", 0)
    await kit.record("acme", "tokens", 10**15 - 1)
    await kit.record("acme", "tokens", 2)
    assert await used(kit, "acme", "tokens") == (10**15 + 1, 0)


# States that cannot be.


@pytest.mark.leaves_keys("a state written by hand")
@pytest.mark.parametrize("data", ["{", "[]", "null", '{"later": 1}', '{"plan": 7}', "\x00"])
async def test_i9_a_state_that_cannot_be_read_takes_nobody_else_down(
    kit: MeterKit, valkey: Server, data: str
) -> None:
    await Client(metered(kit)).get("acme")
    await settled(kit)
    shard = next(key for key in valkey.command("KEYS", "*:c:acme")).partition(":c:")[0]
    valkey.command("HSET", f"{shard}:s:acme", "rev", "2:broken", "data", data)
    put_head(valkey, f"{shard}:c:acme", r="2:broken")
    app = metered(kit)
    assert await Client(app).get("acme", "/deny") in {200, 503}
    assert await Client(app).get("acme", "/") == 200
    for n in range(20):
        assert await Client(app).get(f"other-{n}", "/deny") == 200
    # A good state heals it, and what was served meanwhile is there.
    valkey.command("HSET", f"{shard}:s:acme", "rev", "2:good", "data", "{}")
    put_head(valkey, f"{shard}:c:acme", r="2:good")
    assert await Client(app).get("acme", "/deny") == 200
    await settled(kit)
    assert (await used(kit, "acme"))[0] >= 3
    assert counters(valkey, "acme")["r"] == "2:good"
