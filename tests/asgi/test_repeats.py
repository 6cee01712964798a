"""A repeat of a billed request counts in rates and is not recorded again; it gets 409 while that runs."""

from __future__ import annotations

from asyncio import Event, create_task, gather, get_running_loop
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import meterkit
from drivers.app import answering, hello, http_scope, served
from faults.refusals import renew_holds, settled, stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

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
  pages:    {unit: page}
  tokens:   {unit: token}
  storage:  {unit: byte, kind: gauge}
credits:
  coin: {costs: {tokens: 1}}
routes:
  - {match: "GET /pages", consume: {pages: 1}, charge_on: attempt}
  - {match: "/own", consume: {requests: 1}, idempotency_header: x-own}
  - {match: "/without", consume: {requests: 1}, idempotency_header: null}
  - {match: "/shadow", consume: {requests: 1}, enforcement: shadow}
  - {match: "PUT /files", consume: {requests: 1}, storage: content-length}
  - match: "POST /ask"
    consume: {requests: 1}
    reserve: {tokens: {from: max, default: 1, ceiling: 50}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 10/hour, included: 3, overage: deny, concurrency: 2}
      pages:    {rate: 1000/hour}
      tokens:   {rate: 1000/hour, included: 100}
      storage:  {included: 1000}
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
        others: list[dict[str, Any]] = [
            {"method": "POST", "url": "/v1/x", "headers": KEY},
            {"method": "PUT", "url": "/v1/x", "headers": KEY},
            {"method": "POST", "url": "/v1/y", "headers": KEY},
            {"method": "POST", "url": "/v1/x", "headers": {"idempotency-key": "ABC"}},
            {"method": "POST", "url": "/v1/x", "headers": {"idempotency-key": "a" * 60_000}},
            {
                "method": "POST",
                "url": "/v1/x",
                "headers": [("idempotency-key", "abc"), ("idempotency-key", "d")],
            },
            {
                "method": "POST",
                "url": "/v1/x",
                "headers": [("idempotency-key", "ab"), ("idempotency-key", "cd")],
            },
            {
                "method": "POST",
                "url": "/v1/x",
                "headers": [("idempotency-key", "d"), ("idempotency-key", "abc")],
            },
            {"method": "POST", "url": "/own", "headers": {"x-own": "abc"}},
        ]
        for nth, other in enumerate(others, 1):
            for _ in range(2):
                assert (await http.client.request(**other)).status_code == 200
            assert await recorded(http) == (nth, 0)
        # The query is no part of it, as the app finds its stored answer by the key.
        await http.client.post("/v1/x?again=1", headers=KEY)
        assert await recorded(http) == (len(others), 0)
        for headers in ({"idempotency-key": ""}, {"x-own": "abc"}):
            for _ in range(2):
                await http.client.post("/v1/x", headers=headers)
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


@pytest.mark.parametrize("redis_url", ["memory", "server"])
async def test_while_the_first_is_in_flight_a_second_is_refused(redis_url: str, valkey: Server) -> None:
    app = Waits()
    url = "memory://" if redis_url == "memory" else valkey.url
    async with served(app, plans=PLANS, redis_url=url) as http:
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


async def test_one_round_trip_decides_and_one_settles(valkey: Server) -> None:
    async with served(hello, plans=PLANS, redis_url=valkey.url) as http:
        for headers in ({}, KEY, KEY):
            await http.client.post("/v1/x", headers=headers)
            await settled(http.kit)
        valkey.command("CONFIG", "RESETSTAT")
        await http.client.post("/v1/x", headers=KEY)
        await http.client.post("/v1/x", headers={"idempotency-key": "new"})
        await settled(http.kit)
        calls: Any = valkey.command("INFO", "commandstats")
        assert calls["cmdstat_evalsha"]["calls"] == 4


@pytest.mark.parametrize("status", [404, 500])
async def test_a_first_that_was_not_billed_leaves_no_mark(status: int) -> None:
    app = Waits(status)
    app.may_end.set()
    async with served(app, plans=PLANS) as http:
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == status
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


async def test_a_repeat_is_refused_by_its_rate_alone() -> None:
    async with served(hello, plans=PLANS) as http:
        await http.client.post("/v1/x", headers=KEY)
        for _ in range(3):
            assert (await http.client.post("/v1/x")).status_code == 200
            await settled(http.kit)
        assert (await http.client.post("/v1/x")).status_code == 402  # A grant is used up, too.
        for _ in range(6):
            assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
            await settled(http.kit)
        answer = await http.client.post("/v1/x", headers=KEY)
        assert (answer.status_code, answer.json()["violated-policies"]) == (429, ["requests-1h"])
        assert int(answer.headers["retry-after"]) <= 3600 * 2
        assert await recorded(http) == (4, 0)


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


async def test_a_repeat_records_nothing_a_decision_records() -> None:
    async with served(answering(500), plans=PLANS) as http:
        for _ in range(3):
            assert (await http.client.get("/pages", headers=KEY)).status_code == 500
            assert await recorded(http, "pages") == (1, 0)


async def test_a_repeat_of_an_upload_asks_nothing_of_the_gauge() -> None:
    async def stores(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await hello(scope, receive, send)

    async with served(stores, plans=PLANS) as http:
        assert (await http.client.put("/files", content=b"x" * 600, headers=KEY)).status_code == 200
        await http.kit.gauges.set("acme", "storage", 600)
        assert (await http.client.put("/files", content=b"x" * 600, headers=KEY)).status_code == 200

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(6):
                yield b"x" * 100

        assert (await http.client.put("/files", content=pieces(), headers=KEY)).status_code == 200
        assert (await http.client.put("/files", content=b"x" * 600)).status_code == 413
        assert await recorded(http) == (1, 0)


async def test_a_stream_is_in_flight_until_its_last_byte() -> None:
    go_on = Event()

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        entered.set()
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"b"})

    async with served(streams, plans=PLANS) as http:
        entered = Event()
        first = create_task(http.client.post("/v1/x", headers=KEY))
        await entered.wait()
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 409
        go_on.set()
        await first
        await settled(http.kit)
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (1, 0)


async def test_a_long_requests_mark_lasts_a_dead_ones_vanishes(valkey: Server) -> None:
    app = Waits()
    async with served(app, plans=PLANS, redis_url=valkey.url) as http:
        lane = http.kit.store.lanes[get_running_loop()]
        first = create_task(http.client.post("/v1/x", headers=KEY))
        await app.entered.wait()
        for _ in range(31):
            http.clock.advance(timedelta(minutes=1))
            await renew_holds(lane)
            await settled(http.kit)
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 409
        # Nobody renews it any more.
        http.clock.advance(timedelta(minutes=10))
        second = create_task(http.client.post("/v1/x", headers=KEY))
        app.entered.clear()
        await app.entered.wait()
        app.may_end.set()
        assert [(await first).status_code, (await second).status_code] == [200, 200]
        # Both were served, one is billed.
        assert await recorded(http) == (1, 0)
        assert lane.live == set()


async def test_a_client_that_leaves_before_the_answer_leaves_no_mark() -> None:
    entered = Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, send
        entered.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with served(waits, plans=PLANS) as http:
        scope = http_scope("/v1/x", method="POST")
        scope["headers"] = [*scope["headers"], (b"idempotency-key", b"abc")]

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        async def nowhere(_: Message) -> None:
            raise AssertionError

        await http.app(scope, gone, nowhere)
        assert await recorded(http) == (0, 0)
        assert [lane.live for lane in http.kit.store.lanes.values()] == [set()]
        entered.clear()
        task = create_task(http.client.post("/v1/x", headers=KEY))
        await entered.wait()  # It was admitted.
        task.cancel()


async def test_in_shadow_nobody_is_refused_and_one_is_billed() -> None:
    app = Waits()
    async with served(app, plans=PLANS) as http:
        first = create_task(http.client.post("/shadow", headers=KEY))
        await app.entered.wait()
        app.may_end.set()
        second = await http.client.post("/shadow", headers=KEY)
        assert [(await first).status_code, second.status_code] == [200, 200]
        assert await recorded(http) == (1, 0)
        assert (await http.client.post("/shadow", headers=KEY)).status_code == 200
        assert await recorded(http) == (1, 0)


async def test_of_two_at_once_in_shadow_one_is_recorded() -> None:
    both_came, came = Event(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal came
        came += 1
        if came == 2:
            both_came.set()
        await both_came.wait()
        meterkit.record("tokens", 7)
        await hello(scope, receive, send)

    async with served(app, plans=PLANS) as http:
        await gather(*(http.client.post("/shadow", headers=KEY) for _ in range(2)))
        assert await recorded(http) == (1, 0)
        assert await recorded(http, "tokens") == (7, 0)


@pytest.mark.parametrize("path", ["/shadow", "/v1/x"])
async def test_answers_of_several_models_are_recorded_for_one_of_two(path: str, valkey: Server) -> None:
    both_came, came = Event(), 0
    derived = "output_tokens: {unit: token}\n  large: {unit: token, from: output_tokens, where: {model: l}}"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal came
        came += 1
        if came == 2:
            both_came.set()
        await both_came.wait()
        for model in ("l", "s"):
            usage = {"prompt_tokens": 1, "completion_tokens": 10, "total_tokens": 11}
            meterkit.record_usage(
                {"object": "chat.completion", "model": model, "choices": [], "usage": usage}
            )
        await hello(scope, receive, send)

    plans = PLANS.replace("tokens:   {unit: token}", f"{derived}\n  tokens: {{unit: token}}")
    async with served(app, plans=plans, redis_url=valkey.url) as http:
        with stopped(valkey) if path == "/v1/x" else nullcontext():
            await gather(*(http.client.post(path, headers=KEY) for _ in range(2)))
        assert await recorded(http) == (1, 0)
        assert [await recorded(http, meter) for meter in ("output_tokens", "large")] == [(20, 0), (10, 0)]


@pytest.mark.parametrize("is_first_before", [True, False])
async def test_what_is_served_in_an_outage_is_billed_once_too(is_first_before: bool, valkey: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record("tokens", 7)
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, redis_url=valkey.url) as http:
        await http.client.post("/v1/x", headers=KEY if is_first_before else None)
        await settled(http.kit)
        with stopped(valkey):  # The first of these may have been decided, the second was not.
            for _ in range(2):
                assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        count = 1 if is_first_before else 2
        assert await recorded(http) == (count, 0)
        assert await recorded(http, "tokens") == (7 * count, 0)
        assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
        assert await recorded(http) == (count, 0)


async def test_who_goes_by_an_address_repeats_too() -> None:
    async with served(hello, plans=PLANS) as http:
        del http.client.headers["x-customer-id"]
        for _ in range(5):
            assert (await http.client.post("/v1/x", headers=KEY)).status_code == 200
            await settled(http.kit)


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
