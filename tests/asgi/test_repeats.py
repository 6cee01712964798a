"""A repeat of a billed request counts in rates and is not recorded again; it gets 409 while that runs."""

from __future__ import annotations

from asyncio import CancelledError, Event, create_task, get_running_loop, sleep
from datetime import timedelta

import pytest
from starlette.types import Receive, Scope, Send

import meterkit
from drivers.app import Served, answering, hello, http_scope, ignore, no_more, served
from faults.proxy import Mode, TcpProxy
from faults.refusals import eventually, settled, stopped
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
anonymous: {plan: free, by: ip}
billing: {idempotency_header: Idempotency-Key}
meters: {requests: {unit: request, stripe: {event_name: r}}, tokens: {unit: token}}
credits: {coin: {costs: {tokens: 1}}}
routes:
  - {match: "/own", consume: {requests: 1}, idempotency_header: x-own}
  - {match: "/without", consume: {requests: 1}, idempotency_header: null}
  - {match: "POST /ask", consume: {requests: 1}, reserve: {tokens: {from: max, default: 1, ceiling: 50}}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 10/hour, included: 3, overage: deny, concurrency: 2},
      tokens: {rate: 1000/hour, included: 100}}
    grants: [{meter: requests, quantity: 1, every: period}]
"""
KEY = {"idempotency-key": "abc"}
ONE_MS = timedelta(milliseconds=1)


async def recorded(http: Served, meter: str = "requests", customer: str = "acme") -> tuple[int, int]:
    await settled(http.kit)
    return await http.counted(customer, meter)


async def test_a_repeat_counts_in_rates_and_is_recorded_once() -> None:
    async with served(hello, plans=PLANS) as http:
        for nth in range(6):
            answer = await http.client.post("/v1/x", headers=KEY)
            assert (answer.status_code, await recorded(http)) == (200, (1, 0))
            assert (await http.kit.check("acme", "requests", 0)).allowed
            assert nth < 4 or answer.headers["ratelimit"].startswith(f'"requests-1h";r={9 - nth}')
        # Another one is recorded, and so is one without a key.
        await http.client.post("/v1/x", headers={"idempotency-key": "abd"})
        await http.client.post("/v1/x")
        assert await recorded(http) == (3, 0)


async def test_a_repeat_spends_nothing_of_a_budget() -> None:
    plans = PLANS.replace(
        "included: 3, overage: deny", "included: 0, overage: {bill: {per: 1, amount_cents: 60}}"
    )
    plans = plans.replace(
        "    grants: [{meter: requests, quantity: 1, every: period}]", "    budget: {amount_cents: 100}"
    )
    async with served(hello, plans=plans) as http:
        assert await http.statuses("/v1/x", "/v1/x", "/v1/x", method="POST", headers=KEY) == [200, 200, 200]
        assert (await http.client.post("/v1/x")).status_code == 402
        assert await recorded(http) == (1, 0)


async def test_what_makes_a_request_the_same() -> None:
    plans = PLANS.replace("included: 3", "included: 300").replace("10/h", "99/h")
    key = "idempotency-key"
    others: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("POST", "/v1/x", [(key, "abc")]),
        ("PUT", "/v1/x", [(key, "abc")]),
        ("POST", "/v1/y", [(key, "abc")]),
        ("POST", "/v1/x", [(key, "ABC")]),
        ("POST", "/v1/x", [(key, "a" * 60_000)]),
        ("POST", "/v1/x", [(key, "abc"), (key, "d")]),
        ("POST", "/v1/x", [(key, "ab"), (key, "cd")]),
        ("POST", "/own", [("x-own", "abc")]),
    ]
    async with served(hello, plans=plans) as http:
        for nth, (method, path, headers) in enumerate(others, 1):
            assert await http.statuses(path, path, method=method, headers=headers) == [200, 200]
            assert await recorded(http) == (nth, 0)
        # The query is no part of it, as the app finds its stored answer by the key.
        await http.client.post("/v1/x?again=1", headers=KEY)
        assert await recorded(http) == (len(others), 0)
        for path, no_key in (("/v1/x", {key: ""}), ("/v1/x", {"x-own": "abc"}), ("/without", KEY)):
            await http.statuses(path, path, method="POST", headers=no_key)
        assert await recorded(http) == (len(others) + 6, 0)
        await http.client.post("/v1/x", headers={**KEY, "x-customer-id": "ida"})
        assert await recorded(http, customer="ida") == (1, 0)


async def test_equal_paths_under_two_mounts_are_not_the_same() -> None:
    async with served(hello, plans=PLANS) as http:
        headers = [(b"x-customer-id", b"acme"), (b"idempotency-key", b"abc")]
        for root_path, billed in (("/a", 1), ("/b", 2), ("/a", 2)):
            scope = http_scope("/x", method="POST", root_path=root_path, headers=headers)
            await http.app(scope, no_more, ignore)
            assert await recorded(http) == (billed, 0)


class Waits:
    def __init__(self) -> None:
        self.entered, self.may_end, self.status = Event(), Event(), 200

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
        assert (told["type"], told["title"]) == (
            "urn:meterkit:problem:request-in-flight",
            "Request In Flight",
        )
        app.may_end.set()
        assert (await first).status_code == 200
        # It counted nowhere: of ten an hour the first took one, this repeat another.
        assert await recorded(http) == (1, 0)
        assert await http.statuses("/v1/x", method="POST", headers=KEY) == [200]
        assert await recorded(http) == (1, 0)


async def test_a_request_that_is_cancelled_undecided_leaves_no_mark(valkey: Server) -> None:
    """A plan may limit only rates, so that such a request holds nothing else."""
    plans = PLANS.replace(", included: 3, overage: deny, concurrency: 2", "")
    async with served(hello, plans=plans, redis_url=valkey.url) as http:
        await http.client.post("/v1/x")
        first = create_task(http.client.post("/v1/x", headers=KEY))
        await sleep(0)  # The store is asked by then, and has not replied.
        first.cancel()
        with pytest.raises(CancelledError):
            await first
        await http.kit.check("acme", "requests")  # Its reply comes after the other.
        assert await http.statuses("/v1/x", method="POST", headers=KEY) == [200]
        assert await recorded(http) == (2, 0)


async def test_a_first_that_was_not_billed_leaves_no_mark() -> None:
    app = Waits()
    app.may_end.set()
    async with served(app, plans=PLANS) as http:
        for app.status, billed in ((404, 0), (200, 1), (500, 1)):
            assert await http.statuses("/v1/x", method="POST", headers=KEY) == [app.status]
            assert await recorded(http) == (billed, 0)


async def test_a_key_is_remembered_for_a_day_after_settlement() -> None:
    async with served(hello, plans=PLANS) as http:
        for later, billed in ((timedelta(0), 1), (timedelta(days=1, milliseconds=-1), 1), (ONE_MS, 2)):
            http.clock.advance(later)
            await http.client.post("/v1/x", headers=KEY)
            assert await recorded(http) == (billed, 0)


async def test_a_repeat_reserves_and_records_nothing() -> None:
    async def records(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(tokens=7)
        await hello(scope, receive, send)
        meterkit.record(tokens=1)

    async with served(records, plans=PLANS) as http:
        await http.kit.record("acme", "tokens", 45)
        for _ in range(3):
            assert (await http.client.post("/ask", json={"max": 50}, headers=KEY)).status_code == 200
            assert (await recorded(http), await recorded(http, "tokens")) == ((1, 0), (53, 0))
        assert (await http.client.post("/ask", json={"max": 50})).status_code == 429


@pytest.mark.parametrize(
    ("path", "meter", "mode"),
    [
        ("/v1/x", "requests", "drop_reply"),
        ("/call", "calls", "blackhole"),
        ("/long", "calls", "drop_reply"),
    ],
)
async def test_a_request_whose_reply_is_lost_counts_once_as_well(
    path: str, meter: str, mode: Mode, valkey: Server
) -> None:
    """Its mark in flight goes; those of the last two are attempts, of a meter without a limit."""
    plans = PLANS.replace("meters: {", "meters: {calls: {unit: call}, words: {unit: word}, ", 1).replace(
        "routes:\n",
        """routes:
  - {match: "/call", consume: {calls: 1}, charge_on: attempt}
  - match: "/long"
    consume: {calls: 1}
    charge_on: attempt
    reserve: {words: {from: max, default: 1, ceiling: 50}}
""",
    )
    app = Waits()
    app.may_end.set()
    async with (
        TcpProxy(valkey.port) as proxy,
        served(app, plans=plans, redis_url=proxy.url, settings={"store_timeout": 0.1}) as http,
    ):
        lane = http.kit.store.lanes[get_running_loop()]
        await eventually(lambda: lane.connected)
        await proxy.set(mode)
        for app.status in (500, 200, 200):
            assert await http.statuses(path, method="POST", headers=KEY) == [app.status]
            await proxy.set("pass")
            await eventually(lambda: lane.connected and not lane.is_open and lane.unsettled == 0)
        assert (await recorded(http, meter))[0] == 1


async def test_what_is_served_in_an_outage_is_billed_once_too(valkey: Server) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(root_path="/v1", path="/x")  # As routers do for what is mounted.
        meterkit.record("tokens", 7)
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, redis_url=valkey.url, settings={"store_timeout": 5}) as http:
        await http.client.post("/v1/x")
        await settled(http.kit)
        with stopped(valkey):  # The first of these may have been decided, the second was not.
            assert await http.statuses("/v1/x", "/v1/x", method="POST", headers=KEY) == [200, 200]
        assert (await recorded(http), await recorded(http, "tokens")) == ((2, 0), (14, 0))
        for _ in range(2):
            assert await http.statuses("/v1/x", method="POST", headers=KEY) == [200]
            assert await recorded(http) == (2, 0)


async def test_i10_no_key_is_stored_and_its_digest_expires(valkey: Server) -> None:
    async with served(hello, plans=PLANS, redis_url=valkey.url) as http:
        await http.client.post("/v1/x", headers={"idempotency-key": "s3cret-value"})
        await settled(http.kit)
        (key,) = valkey.command("KEYS", "*:i:acme")
        (member,) = valkey.command("ZRANGE", key, 0, -1)
        assert len(member) == 32
        assert "s3cret" not in str(member)
        assert valkey.command("PEXPIRETIME", key) == http.kit.store.now_ms() + 86_400_000


async def test_ten_thousand_keys_are_remembered_and_no_more(valkey: Server) -> None:
    plans = PLANS.replace("included: 3", "included: 300")
    async with served(hello, plans=plans, redis_url=valkey.url) as http:

        async def twice(name: str) -> int:
            """Send a request and its repeat; how many are recorded by then."""
            await http.statuses("/v1/x", "/v1/x", method="POST", headers={"idempotency-key": name})
            return (await recorded(http))[0]

        assert await twice("first") == 1
        (key,) = valkey.command("KEYS", "*:i:acme")
        until = http.kit.store.now_ms() + 1000
        for start in range(0, 9_998, 1000):
            some = [word for nth in range(start, min(start + 1000, 9_998)) for word in (until, f"m{nth}")]
            valkey.command("ZADD", key, *some)
        assert await twice("last") == 2  # The last one that there is room for.
        assert (await twice("beyond"), valkey.command("ZCARD", key)) == (4, 10_000)
        http.clock.advance(timedelta(seconds=1))
        assert await twice("room") == 5
