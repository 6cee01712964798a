"""Hot customers are admitted by allotments: without a round trip, and counted like all others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from starlette.types import Receive, Scope, Send

import meterkit
from drivers.app import Served, answering, hello, ignore, served
from faults.refusals import eventually, http_scope
from meterkit import MeterKit

pytestmark = [pytest.mark.anyio]

PLANS = """
default_plan: pro
allotment: 250ms
meters: {requests: {unit: request, stripe: {event_name: requests}}, calls: {unit: call},
  tokens: {unit: token}, output_tokens: {unit: token}, projects: {unit: project, kind: gauge},
  files: {unit: byte, kind: gauge}}
routes:
  - {match: "GET /asked", consume: {requests: 1}, allotment: off}
  - {match: "GET /always", always: true, consume: {requests: 1}}
  - {match: "GET /rate", rate: 4000/minute, consume: {requests: 1}}
  - {match: "GET /usage", usage: auto, consume: {requests: 1}}
  - {match: "GET /usage_fields", usage_fields: {output_tokens: used}, consume: {requests: 1}}
  - {match: "GET /reserve", reserve: {output_tokens: {default: 1}}, consume: {requests: 1}}
  - {match: "GET /storage", storage: content-length, consume: {requests: 1}}
  - {match: "GET /idempotency_header", idempotency_header: Idempotency-Key, consume: {requests: 1}}
  - {match: "GET /shadow", enforcement: shadow, consume: {requests: 1}}
  - {match: "GET /bucket", consume: {calls: 1}}
  - {match: "GET /grow", consume: {requests: 1}, grow: {projects: 1}}
  - {match: "WS /live", consume: {requests: 1}}
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 5000/minute, concurrency: 500, included: 4000, overage: deny},
      calls: {rate: {limit: 100/second, algorithm: token-bucket, burst: 4000}},
      tokens: {rate: 5000/minute}, output_tokens: {included: 100_000, overage: deny},
      files: {included: 1GB}}
  limited: {extends: pro, rank: 1, meters: {projects: {included: 300}}}
  asked: {extends: pro, rank: 1, allotment: "off"}
  small: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 0, overage: deny}}}
  granted: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 5, overage: deny}}}
"""
CHANGES: Final[dict[str, tuple[Callable[[MeterKit], Awaitable[object]], int]]] = {
    "plan": (lambda kit: kit.customers.set_plan("acme", "small"), 429),
    "status": (lambda kit: kit.customers.set_status("acme", "unpaid"), 402),
    "override": (lambda kit: kit.customers.override("acme", {"requests": {"included": 0}}), 429),
    "grant": (lambda kit: kit.grants.void("acme", "inv_1"), 429),
}
"""What leaves a customer nothing, and the answer then."""


class Watched:
    def __init__(self, at: Served) -> None:
        self.at = at
        (self.lane,) = at.kit.store.lanes.values()
        self.asked = 0
        call = self.lane.call

        def counting(asked: Any) -> Any:
            self.asked += 1
            return call(asked)

        self.lane.call = counting

    @property
    def allotments(self) -> Any:
        assert self.lane.allotments is not None
        return self.lane.allotments

    async def get(self, times: int, path: str = "/x") -> Counter[int]:
        """Send requests one after the other; how often each status came."""
        return Counter(await self.at.statuses(*[path] * times))

    async def warm(self) -> int:
        """Send requests until units are there; how many."""
        for sent in range(1, 2000):
            await self.get(1)
            await asyncio.sleep(0)
            if self.allotments.unused:
                return sent
        raise AssertionError("no allotment was granted")


@asynccontextmanager
async def watched(store: str, app: Any = hello, plans: str = PLANS) -> AsyncGenerator[Watched]:
    async with served(app, redis_url=store, plans=plans) as at:
        await at.client.get("/warm")
        yield Watched(at)


@pytest.fixture(params=["server", "memory"])
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    url: str = request.getfixturevalue("store_url")
    return url


async def test_i3_hot_requests_ask_nothing_and_are_counted_exactly(store: str) -> None:
    async with watched(store) as watch:
        before = (await watch.at.kit.health()).looked_at["allotments"]
        assert await watch.get(400) == {200: 400}
        assert watch.asked < 200  # Far fewer, on a machine that is not busy.
        allotments = watch.allotments
        assert allotments.granted > 200
        # What ended is settled within 50 ms, and at once where this process looks.
        assert (await watch.at.counted())[0] == 401
        await eventually(lambda: allotments.unused == 0)
        assert await watch.at.counted() == (401, 0)
        (rate, *_) = await watch.at.kit.store.rates("acme")
        assert rate["used"] == 401
        after = (await watch.at.kit.health()).looked_at["allotments"]
    granted, returned = f"{allotments.granted:,}", f"{allotments.returned:,}"
    units = f"; of {granted} units of this process, 0 are unused and {returned} were returned"
    assert after == before + units


async def test_i3_hot_requests_are_refused_where_the_last_unit_is_used(store: str) -> None:
    async with watched(store, plans=PLANS.replace("included: 4000", "included: 400")) as watch:
        assert await watch.get(460) == {200: 399, 429: 61}  # One was sent before.
        await eventually(lambda: watch.allotments.unused == 0)
        assert await watch.at.counted() == (400, 0)


async def test_unbilled_outcomes_give_back_what_they_hold() -> None:
    async with watched("memory://", answering(500)) as watch:
        await watch.get(200)
        assert watch.allotments.granted
        await eventually(lambda: watch.allotments.unused == 0)
        assert await watch.at.counted() == (0, 0)


async def test_lines_decided_one_by_one_ask_the_store_each_time(store_url: str) -> None:
    async with watched(store_url) as watch:
        *lines, _, _, _ = (route.match.removeprefix("GET ") for route in watch.at.kit.catalog.routes)
        for at, path in enumerate(lines):
            watch.asked = 0
            for nth in range(40):
                asked: dict[str, Any] = {"content": b"hello"} if at % 2 else {}
                asked["headers"] = {"idempotency-key": f"{path}{nth}"}
                assert await watch.at.statuses(path, **asked) == [200]
            assert (watch.asked, watch.allotments.granted) == (40, 0), path
        # The same customer gets allotments of other lines.
        await watch.get(60)
        assert watch.allotments.granted > 0


@pytest.mark.parametrize(("plan", "path"), [("asked", "/x"), ("limited", "/grow")])
async def test_plans_and_gauges_may_ask_the_store_each_time(store_url: str, plan: str, path: str) -> None:
    async with watched(store_url) as watch:
        await watch.at.kit.customers.set_plan("acme", plan)
        await watch.get(1)
        watch.asked = 0
        assert await watch.get(40, path) == {200: 40}
        assert (watch.asked, watch.allotments.granted) == (40, 0)


async def hot(watch: Watched, change: str) -> None:
    """Send requests until units are out, of a customer to whom a change leaves nothing."""
    if change == "grant":
        await watch.at.kit.customers.set_plan("acme", "granted")
        await watch.at.kit.grants.add("acme", {"requests": 4000}, grant_id="inv_1")
    await watch.warm()


@asynccontextmanager
async def elsewhere(watch: Watched, store_url: str) -> AsyncGenerator[MeterKit]:
    """Another process with the same customers."""
    kit, keys = watch.at.kit, watch.at.kit.store.keys
    own: dict[str, Any] = {"key_prefix": keys.prefix, "shards": keys.shards, "flush": False}
    async with MeterKit(kit.store.catalog, clock=watch.at.clock, redis_url=store_url, **own) as other:
        yield other


@pytest.mark.parametrize("change", CHANGES)
async def test_i4_a_change_in_another_process_binds_within_a_term(store_url: str, change: str) -> None:
    async with watched(store_url) as watch:
        make, status = CHANGES[change]
        async with elsewhere(watch, store_url) as other:
            await hot(watch, change)
            await make(other)
            watch.at.clock.advance(timedelta(milliseconds=250))
            assert await watch.get(1) == {status: 1}


@pytest.mark.parametrize("change", CHANGES)
async def test_i4_a_change_binds_at_once_in_the_process_that_makes_it(store_url: str, change: str) -> None:
    async with watched(store_url) as watch:
        await hot(watch, change)
        make, status = CHANGES[change]
        await make(watch.at.kit)
        assert await watch.get(1) == {status: 1}


async def test_i4_a_learned_plan_change_binds_at_once(store_url: str) -> None:
    async with watched(store_url) as watch, elsewhere(watch, store_url) as other:
        await watch.warm()
        await other.customers.set_plan("acme", "small")
        await watch.at.kit.check("acme", "requests")  # Its reply tells of the new plan.
        assert await watch.get(1) == {429: 1}


async def test_i4_two_plan_changes_in_a_term_leave_no_old_units(store_url: str) -> None:
    async with watched(store_url) as watch, elsewhere(watch, store_url) as other:
        await watch.warm()
        for plan in ("small", "pro"):
            await other.customers.set_plan("acme", plan)
        await watch.at.kit.check("acme", "requests")  # Its reply tells of the newest state.
        allotments = watch.allotments
        kept = allotments.granted - allotments.returned - allotments.unused
        assert await watch.get(1) == {200: 1}
        assert allotments.granted - allotments.returned - allotments.unused == kept
        await eventually(lambda: watch.allotments.unused == 0 and watch.lane.unsettled == 0)
        recorded, held = await watch.at.counted()
        (rate, *_) = await watch.at.kit.store.rates("acme")
        assert (rate["used"], held) == (recorded, 0)


async def recording(scope: Scope, receive: Receive, send: Send) -> None:
    meterkit.record(tokens=7)
    await hello(scope, receive, send)


async def test_recording_a_limited_meter_decides_one_by_one(store_url: str) -> None:
    """F-200: by units of an allotment they would be admitted for 250 ms after the last token."""
    limited = PLANS.replace("tokens: {rate: 5000/minute}", "tokens: {included: 350, overage: deny}")
    async with watched(store_url, recording, plans=limited) as watch:
        assert await watch.get(60) == {200: 49, 429: 11}  # One came before them.
        assert watch.allotments.granted == 0


async def test_i7_a_kit_that_stops_gives_all_back(store_url: str) -> None:
    async with watched(store_url) as watch:
        await watch.warm()
        kit, lane, allotments = watch.at.kit, watch.lane, watch.allotments
        unused = allotments.unused
        assert unused > 0
        await watch.at.kit.stop()
        assert (allotments.unused, (allotments.returned, lane.unsettled, lane.lost)) == (0, (unused, 0, 0))
        await kit.start()
        meters = (await kit.usage("acme"))["meters"]
        assert [meter["held"] for meter in meters.values()] == [0] * len(meters)


async def test_requests_in_flight_at_a_stop_are_settled(store_url: str) -> None:
    leave = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await leave.wait()
        await hello(scope, receive, send)

    async with watched(store_url, waiting) as watch:
        await watch.warm()
        unused = watch.allotments.unused
        inside = [asyncio.create_task(watch.at.client.get("/wait")) for _ in range(min(4, unused))]
        await eventually(lambda: watch.allotments.unused <= unused - len(inside))
        kit, lane = watch.at.kit, watch.lane
        await kit.stop()
        assert (lane.unsettled, lane.lost) == (0, 0)
        leave.set()
        await asyncio.gather(*inside)
        await kit.start()
        assert (await watch.at.counted())[1] == 0


@pytest.mark.parametrize("before_ms", [49, 3])
async def test_the_last_milliseconds_of_a_period_count_in_it(before_ms: int) -> None:
    """Settlements wait up to 50 ms for equal ones, but never for the next period."""
    async with watched("memory://", plans=PLANS.replace("concurrency: 500, ", "")) as watch:
        kit, clock = watch.at.kit, watch.at.clock
        june = clock.now()
        july = datetime(june.year, june.month + 1, 1, tzinfo=UTC)
        clock.set(july - timedelta(milliseconds=100))
        sent = 1 + await watch.warm()
        assert (await watch.at.counted())[0] == sent
        clock.set(july - timedelta(milliseconds=before_ms))
        assert await watch.get(2) == {200: 2}
        clock.set(july + timedelta(milliseconds=1))
        assert (await kit.usage("acme", period=june))["meters"]["requests"]["recorded"] == sent + 2
        assert (await kit.usage("acme"))["meters"]["requests"]["recorded"] == 0


async def test_websockets_are_decided_one_by_one(store_url: str) -> None:
    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async with watched(store_url) as watch:
        await watch.warm()
        watch.asked = 0
        scope = {**http_scope("acme", "/live"), "type": "websocket", "scheme": "ws"}
        del scope["method"]
        for _ in range(40):
            await watch.at.app(scope, receive, ignore)
        assert watch.asked == 40
