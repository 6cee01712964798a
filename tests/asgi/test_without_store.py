"""While the store is away, requests are limited in this process, by what is known of their customer."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import meterkit
from faults.proxy import TcpProxy
from faults.refusals import Client, answer_ok, eventually, kit_at, metered, settled, used
from meterkit.catalog import loads
from meterkit.testing import Clock
from tokens.recordings import JSON_TYPE, compact

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import MeterKit
    from servers.stores import Server

pytestmark = [pytest.mark.anyio]

PLANS = """
schema: 1
currency: usd
default_plan: free
anonymous: {plan: free, by: ip}
meters:
  requests: {unit: request}
  output_tokens: {unit: token}
  pages: {unit: page}
  calls: {unit: call}
features: [exports]
credits:
  coins: {costs: {pages: 1}}
routes:
  - {match: "GET /exports", feature: exports, consume: {requests: 1}}
  - {match: "GET /pages", consume: {pages: 1}}
  - {match: "GET /chat", usage: openai}
  - {match: "GET /tries/{path:path}", consume: {calls: 1}, charge_on: attempt}
  - {match: "/billing/{path:path}", always: true}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: [5/minute, 8/hour], included: 100, overage: deny}
      output_tokens: {rate: 50/hour}
      pages: {included: 0, overage: deny}
  bucket:
    price: {amount_cents: 0, interval: month}
    features: [exports]
    meters:
      requests: {rate: {limit: 1/second, algorithm: token-bucket, burst: 4}, included: 2, overage: deny}
  pro:
    price: {amount_cents: 0, interval: month}
    trial: 14d
    features: [exports]
    meters:
      requests: {rate: {limit: 20/minute, algorithm: fixed-window}, included: 100, overage: deny}
      calls: {rate: 5/minute}
"""


class Outage:
    """A kit that has lost its store, or will."""

    def __init__(self, kit: MeterKit, proxy: TcpProxy, clock: Clock) -> None:
        self.kit = kit
        self.app = metered(kit)
        self.clock = clock
        self._proxy = proxy

    @property
    def lane(self) -> Any:
        return self.kit.store.lanes[asyncio.get_running_loop()]

    async def begins(self) -> None:
        await settled(self.kit)
        await self._proxy.set("refuse")
        await eventually(lambda: self.lane.is_away)

    async def ends(self) -> None:
        await self._proxy.set("pass")
        await eventually(lambda: self.lane.connected)
        await settled(self.kit)

    async def get(self, customer: str, path: str = "/") -> int:
        return await Client(self.app).get(customer, path)

    async def statuses(self, customer: str, times: int, path: str = "/") -> list[int]:
        return [await self.get(customer, path) for _ in range(times)]

    async def asked(self, customer: str, path: str = "/") -> tuple[int, dict[str, str], dict[str, Any]]:
        client = Client(self.app)
        status = await client.get(customer, path)
        headers = {name.decode(): value.decode() for name, value in client.messages[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in client.messages)
        return status, headers, json.loads(body) if body.startswith(b"{") else {}


@asynccontextmanager
async def outage(server: Server) -> AsyncGenerator[Outage]:
    clock = Clock()
    async with (
        TcpProxy(server.port) as proxy,
        kit_at(proxy.url, plans=loads(PLANS), clock=clock, store_timeout=1.0) as kit,
    ):
        yield Outage(kit, proxy, clock)


async def test_i3_each_process_admits_what_the_rates_allow(valkey: Server) -> None:
    async with outage(valkey) as store:
        await store.kit.customers.set_plan("pro", "pro")
        await store.get("pro")
        await store.begins()
        began = store.kit.store.now_ms() // 60_000
        assert await store.statuses("unknown", 7) == [200] * 5 + [429] * 2
        assert await store.statuses("pro", 22) == [200] * 20 + [429] * 2
        store.clock.advance(timedelta(minutes=2))
        # The hour goes on.
        assert await store.statuses("unknown", 5) == [200] * 3 + [429] * 2
        await store.ends()
        # What was refused counts nowhere; all else is billed.
        assert await used(store.kit, "unknown") == (8, 0)
        assert await used(store.kit, "pro") == (21, 0)
        await store.kit.store.degraded.send()
        assert list(await store.kit.store.degraded.read(2)) == [began + 2, began]


async def test_what_fails_without_the_store_is_rated_and_not_billed(valkey: Server) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise RuntimeError(scope["path"])
        meterkit.record("requests", 10)
        await answer_ok(scope, receive, send)

    async with outage(valkey) as store:
        await store.begins()
        store.app = metered(store.kit, app)
        for path in ("/", "/fails", "/", "/fails"):
            with suppress(RuntimeError):
                assert await store.get("acme", path) == 200
        # What the app has added is no part of the rate.
        assert await store.statuses("acme", 2) == [200, 429]
        await store.ends()
        assert await used(store.kit, "acme") == (3 * 11, 0)


async def test_model_usage_counts_in_the_rates_of_this_process(valkey: Server) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 60, "total_tokens": 61}
    answer = compact({"object": "chat.completion", "model": "m", "choices": [], "usage": usage})

    async def chat(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        headers = [(b"content-type", JSON_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async with outage(valkey) as store:
        await store.begins()
        store.app = metered(store.kit, chat)
        assert await store.statuses("acme", 3, "/chat") == [200, 429, 429]
        store.clock.advance(timedelta(hours=2))
        assert await store.get("acme", "/chat") == 200
        await store.ends()
        assert await used(store.kit, "acme", "output_tokens") == (120, 0)


async def test_i11_an_attempt_is_settled_once_before_the_app_runs(
    valkey: Server,
) -> None:
    waiting: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.append(store.lane.unsettled)
        if scope["path"] == "/tries/more":
            meterkit.record("calls", 10)
            meterkit.record("requests", 10)
        if scope["path"] == "/tries/fails":
            raise RuntimeError(scope["path"])
        await answer_ok(scope, receive, send)

    async with outage(valkey) as store:
        await store.kit.customers.set_plan("acme", "pro")
        await store.get("acme", "/tries/")
        await store.begins()
        store.app = metered(store.kit, app)
        for path in ("/tries/", "/tries/more", "/tries/fails", "/tries/"):
            with suppress(RuntimeError):
                assert await store.get("acme", path) == 200
        assert await store.get("acme", "/tries/") == 200
        assert await store.get("acme", "/tries/") == 429
        assert waiting == [1, 2, 4, 5, 6]  # What the app has recorded waits besides.
        await store.ends()
        meters = (await store.kit.usage("acme"))["meters"]
        assert [meters[name]["recorded"] for name in ("calls", "requests")] == [1 + 5 + 10, 10]


async def test_i3_known_suspensions_and_features_still_refuse(
    valkey: Server,
) -> None:
    async with outage(valkey) as store:
        for customer in ("owes", "pays"):
            await store.kit.customers.set_plan(customer, "pro")
            await store.kit.customers.set_status(customer, "unpaid" if customer == "owes" else "active")
            await store.get(customer)
        for customer, path in (("free", "/"), ("refused", "/exports")):
            await store.get(customer, path)
        await store.begins()
        assert await store.get("pays") == 200
        assert await store.get("pays", "/exports") == 200
        assert await store.get("free", "/exports") == 403
        assert await store.get("refused", "/exports") == 403
        # It may be one who pays.
        assert await store.statuses("unknown", 6, "/exports") == [200] * 5 + [429]
        status, _, problem = await store.asked("owes")
        assert (status, problem["reason"]) == (402, "suspended")
        assert await store.get("owes", "/billing/portal") == 200


async def test_i3_who_was_out_of_credit_stays_refused(
    valkey: Server,
) -> None:
    async with outage(valkey) as store:
        for customer in ("poor", "rich"):
            await store.kit.grants.add(customer, {"coins": 1}, grant_id="first")
            assert await store.statuses(customer, 1, "/pages") == [200]
            await settled(store.kit)
            assert await store.statuses(customer, 1, "/pages") == [402]
        await store.kit.grants.add("rich", {"coins": 9}, grant_id="second")
        assert await store.statuses("rich", 1, "/pages") == [200]
        await store.kit.customers.set_plan("full", "bucket")
        assert await store.statuses("full", 2) == [200] * 2
        await settled(store.kit)
        status, healthy, _ = await store.asked("full")
        assert status == 429
        assert await store.get("poor") == 200  # That it is allowed another meter says nothing of this one.
        await store.begins()
        status, _, problem = await store.asked("poor", "/pages")
        assert (status, problem["reason"]) == (402, "credits")
        assert await store.get("rich", "/pages") == 200
        assert await store.get("poor") == 200  # Another meter.
        status, headers, problem = await store.asked("full")
        assert (status, problem["violated-policies"]) == (429, ["requests-period"])
        assert headers["retry-after"] == healthy["retry-after"]
        store.clock.advance(timedelta(seconds=int(headers["retry-after"])))
        assert await store.get("full") == 200  # A new period has begun.


async def test_i4_what_the_clock_changes_it_changes_without_the_store(valkey: Server) -> None:
    async with outage(valkey) as store:
        await store.kit.customers.set_plan("late", "pro")
        await store.kit.customers.set_status("late", "past_due")
        assert await store.get("late", "/exports") == 200
        await store.begins()
        assert await store.get("late", "/exports") == 200
        store.clock.advance(timedelta(days=7))
        assert await store.get("late", "/exports") == 403  # Restricted to the default plan: grace is over.
        store.clock.advance(timedelta(days=14))
        assert await store.get("late") == 402


async def test_known_customers_are_bounded_and_the_quietest_goes(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.store.fallback._CUSTOMERS_MAX", 2)
    async with outage(valkey) as store:
        await store.begins()
        assert await store.statuses("busy", 5) == [200] * 5
        assert await store.statuses("quiet", 5) == [200] * 5
        assert await store.get("busy") == 429
        assert await store.get("third") == 200
        assert await store.get("busy") == 429
        assert await store.get("quiet") == 200
