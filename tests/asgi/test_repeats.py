"""A repeat of a billed request counts in rates and is not recorded again; it gets 409 while that runs."""

from __future__ import annotations

from asyncio import Event, create_task
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import meterkit
from drivers.app import answering, hello, served
from faults.refusals import settled, stopped

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served
    from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
anonymous: {plan: free, by: ip}
billing: {idempotency_header: Idempotency-Key}
meters:
  requests: {unit: request, stripe: {event_name: r}}
  tokens:   {unit: token}
credits:
  coin: {costs: {tokens: 1}}
routes:
  - {match: "/own", consume: {requests: 1}, idempotency_header: x-own}
  - {match: "/without", consume: {requests: 1}, idempotency_header: null}
  - match: "POST /ask"
    consume: {requests: 1}
    reserve: {tokens: {from: max, default: 1, ceiling: 50}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 10/hour, included: 3, overage: deny, concurrency: 2}
      tokens:   {rate: 1000/hour, included: 100}
    grants: [{meter: requests, quantity: 1, every: period}]
"""
KEY = {"idempotency-key": "abc"}


async def recorded(http: Served, meter: str = "requests", customer: str = "acme") -> tuple[int, int]:
    """What is recorded of a meter, and what is held."""
    await settled(http.kit)
    return await http.counted(customer, meter)


def rated(answer: Any) -> str:
    """How much is left of the rate, by the answer."""
    return str(answer.headers["ratelimit"])


async def test_a_repeat_counts_in_rates_and_is_recorded_once() -> None:
    async with served(hello, plans=PLANS) as http:
        for nth in range(6):
            answer = await http.client.post("/v1/x", headers=KEY)
            assert answer.status_code == 200
            assert await recorded(http) == (1, 0)
            left = await http.kit.check("acme", "requests", 0)
            assert left.allowed
            assert nth < 4 or rated(answer).startswith(f'"requests-1h";r={9 - nth}')
        # Another one is recorded, and so is one without a key.
        await http.client.post("/v1/x", headers={"idempotency-key": "abd"})
        await http.client.post("/v1/x")
        assert await recorded(http) == (3, 0)


async def test_what_makes_a_request_the_same() -> None:
    async with served(
        hello, plans=PLANS.replace("included: 3", "included: 300").replace("10/h", "99/h")
    ) as http:
        others: list[tuple[str, str, list[tuple[str, str]]]] = [
            ("POST", "/v1/x", [("idempotency-key", "abc")]),
            ("PUT", "/v1/x", [("idempotency-key", "abc")]),
            ("POST", "/v1/y", [("idempotency-key", "abc")]),
            ("POST", "/v1/x", [("idempotency-key", "ABC")]),
            ("POST", "/v1/x", [("idempotency-key", "a" * 60_000)]),
            ("POST", "/v1/x", [("idempotency-key", "abc"), ("idempotency-key", "d")]),
            ("POST", "/v1/x", [("idempotency-key", "ab"), ("idempotency-key", "cd")]),
            ("POST", "/own", [("x-own", "abc")]),
        ]
        for nth, (method, path, headers) in enumerate(others, 1):
            for _ in range(2):
                assert (await http.client.request(method, path, headers=headers)).status_code == 200
            assert await recorded(http) == (nth, 0)
        # The query is no part of it, as the app finds its stored answer by the key.
        await http.client.post("/v1/x?again=1", headers=KEY)
        assert await recorded(http) == (len(others), 0)
        for no_key in ({"idempotency-key": ""}, {"x-own": "abc"}):
            for _ in range(2):
                await http.client.post("/v1/x", headers=no_key)
        for _ in range(2):
            await http.client.post("/without", headers=KEY)
        assert await recorded(http) == (len(others) + 6, 0)
        await http.client.post("/v1/x", headers={**KEY, "x-customer-id": "ida"})
        assert await recorded(http, customer="ida") == (1, 0)


class Waits:
    """An app that answers when it may."""

    def __init__(self, status: int = 200) -> None:
        self.entered, self.may_end, self.status = Event(), Event(), status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        await self.may_end.wait()
        await answering(self.status)(scope, receive, send)


async def test_while_the_first_is_in_flight_a_second_is_refused(any_store_url: str) -> None:
    app = Waits()
    async with served(app, plans=PLANS, redis_url=any_store_url) as http:
        first = create_task(http.client.post("/v1/x", headers=KEY))
        await app.entered.wait()
        answer = await http.client.post("/v1/x", headers=KEY)
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
        assert answer.headers["cache-control"] == "no-store"
        told = answer.json()
        assert told["type"] == "urn:meterkit:problem:request-in-flight"
        assert told["title"] == "Request In Flight"
        app.may_end.set()
        assert (await first).status_code == 200
        # It counted nowhere: of ten an hour the first took one, this repeat another.
        assert await recorded(http) == (1, 0)
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (1, 0)


async def test_a_first_that_was_not_billed_leaves_no_mark() -> None:
    app = Waits(404)
    app.may_end.set()
    async with served(app, plans=PLANS) as http:
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 404
        await settled(http.kit)
        app.status = 200
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (1, 0)
        app.status = 500
        await http.client.post("/v1/x", headers=KEY)
        assert await recorded(http) == (1, 0)


async def test_a_key_is_remembered_for_a_day_after_settlement() -> None:
    async with served(hello, plans=PLANS) as http:
        await http.client.post("/v1/x", headers=KEY)
        await settled(http.kit)
        http.clock.advance(timedelta(days=1, milliseconds=-1))
        await http.client.post("/v1/x", headers=KEY)
        assert await recorded(http) == (1, 0)
        http.clock.advance(timedelta(milliseconds=1))
        await http.client.post("/v1/x", headers=KEY)
        assert await recorded(http) == (2, 0)


async def test_a_repeat_reserves_and_records_nothing() -> None:
    async def records(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(tokens=7)
        await hello(scope, receive, send)
        meterkit.record(tokens=1)

    async with served(records, plans=PLANS) as http:
        await http.kit.record("acme", "tokens", 45)
        for _ in range(3):
            assert (await http.client.post("/ask", json={"max": 50}, headers=KEY)).status_code == 200
            assert await recorded(http) == (1, 0)
            assert await recorded(http, "tokens") == (53, 0)
        assert (await http.client.post("/ask", json={"max": 50})).status_code == 429


async def test_what_is_served_in_an_outage_is_billed_once_too(valkey: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record("tokens", 7)
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, redis_url=valkey.url) as http:
        await http.client.post("/v1/x")
        await settled(http.kit)
        with stopped(valkey):  # The first of these may have been decided, the second was not.
            for _ in range(2):
                assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (2, 0)
        assert await recorded(http, "tokens") == (14, 0)
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (2, 0)


async def test_i10_no_key_is_stored_and_its_digest_expires(valkey: Server) -> None:
    async with served(hello, plans=PLANS, redis_url=valkey.url) as http:
        await http.client.post("/v1/x", headers={"idempotency-key": "s3cret-value"})
        await settled(http.kit)
        keys: Any = valkey.command("KEYS", "*:i:acme")
        assert len(keys) == 1
        members: Any = valkey.command("ZRANGE", keys[0], 0, -1)
        assert len(members) == 1
        assert len(members[0]) == 32
        assert "s3cret" not in str(members)
        lives: Any = valkey.command("PEXPIRETIME", keys[0])
        assert lives == http.kit.store.now_ms() + 86_400_000


async def test_ten_thousand_keys_are_remembered_and_no_more(
    valkey: Server,
) -> None:
    async with served(
        hello, plans=PLANS.replace("included: 3", "included: 300"), redis_url=valkey.url
    ) as http:
        await http.client.post("/v1/x", headers=KEY)
        await settled(http.kit)
        found: Any = valkey.command("KEYS", "*:i:acme")
        key = found[0]
        until = http.kit.store.now_ms() + 1000
        for start in range(0, 9_998, 1000):
            some = [word for nth in range(start, min(start + 1000, 9_998)) for word in (until, f"m{nth}")]
            valkey.command("ZADD", key, *some)
        for _ in range(2):  # The last one that there is room for.
            await http.client.post("/v1/x", headers={"idempotency-key": "last"})
        assert await recorded(http) == (2, 0)
        for _ in range(2):
            await http.client.post("/v1/x", headers={"idempotency-key": "beyond"})
        assert await recorded(http) == (4, 0)
        assert valkey.command("ZCARD", key) == 10_000
        http.clock.advance(timedelta(seconds=1))
        for _ in range(2):
            await http.client.post("/v1/x", headers={"idempotency-key": "room"})
        assert await recorded(http) == (5, 0)
