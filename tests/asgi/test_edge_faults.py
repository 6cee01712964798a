"""The edge under bad input, clients that leave, and requests that are cancelled anywhere."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect

import meterkit
from drivers.counters import put_head
from faults.refusals import (
    PLANS,
    Client,
    answer_ok,
    catalog,
    counters,
    eventually,
    in_flight,
    kit_at,
    metered,
    settled,
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


# Customers.

IMPOSSIBLE: list[Any] = ["", "🦆" * 65, "a\r\nX-Evil: 1", "acme\udcff", 7]


def identified(kit: MeterKit, answer: Callable[[], Any]) -> MeterMiddleware:
    return MeterMiddleware(answer_ok, kit=kit, identify=lambda _: answer())


@pytest.mark.parametrize("customer", IMPOSSIBLE, ids=ascii)
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
    assert is_text or "return str(...)" in caplog.text
    assert f"refused: reason='{'invalid_customer' if is_text else 'identify'}' route=" in caplog.text


async def test_an_identify_that_returns_false_names_no_customer(
    kit: MeterKit, caplog: pytest.LogCaptureFixture
) -> None:
    # F-22a: `user.is_authenticated and user.id` is False, which was 503.
    no: Any = False
    client = Client(identified(kit, lambda: no))
    assert await client.get("ignored", "/deny") == 401
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def raises(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


async def fails_later(error: BaseException) -> str:
    await asyncio.sleep(0)
    raise error


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
        body = b"".join(message.get("body", b"") for message in client.messages)
        assert b"temporary-reduced-capacity" in body
        assert b"The customer of this request could not be determined" in body
        assert b"sk_live" not in body
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["the customer of a request under the line" in line for line in logged] == [True, True]
    assert valkey.command("DBSIZE") == before


# Quantities.


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
    assert await used(kit, "acme", "tokens") == (10**15 - 1, 0)
    assert await used(kit, "acme") == (1, 0)


async def test_a_meter_that_is_not_there_is_refused(kit: MeterKit) -> None:
    for meter in ("", "requests ", "x" * 10_000, "\ud800"):
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
@pytest.mark.parametrize("data", ["{", '{"plan": 7}'])
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
    assert await Client(app).get("other", "/deny") == 200
    # A good state heals it, and what was served meanwhile is there.
    valkey.command("HSET", f"{shard}:s:acme", "rev", "2:good", "data", "{}")
    put_head(valkey, f"{shard}:c:acme", r="2:good")
    assert await Client(app).get("acme", "/deny") == 200
    await settled(kit)
    assert (await used(kit, "acme"))[0] >= 3
    assert counters(valkey, "acme")["r"] == "2:good"
