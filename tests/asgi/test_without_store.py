"""While the store is away, requests are limited in this process; what it decided too late is given back."""

# pyright: reportPrivateUsage=false
# Whether the last late reply has come is asked of the connections, which nothing shows.

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

import meterkit
from drivers.app import HEADERS
from drivers.delivery import NOW
from drivers.health_findings import looked_at
from drivers.kit_parts import count_excess
from drivers.llm_apps import answering, openai_stream
from drivers.process_metrics import told
from faults.proxy import TcpProxy
from faults.refusals import Client, answer_ok, eventually, kit_at, metered, settled, used
from llm_payloads.recordings import JSON_TYPE, chat, chat_usage, compact, sse
from meterkit import Caller, MeterKit, MeterMiddleware
from meterkit.catalog import Catalog, loads
from meterkit.errors import StoreError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}, output_tokens: {unit: token}, pages: {unit: page},
  calls: {unit: call}}
features: [exports]
credits: {coins: {costs: {pages: 1}}}
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
    meters: {requests: {rate: [5/minute, 8/hour], included: 100, overage: deny},
      output_tokens: {rate: 50/hour}, pages: {included: 0, overage: deny}}
  bucket:
    price: {amount_cents: 0, interval: month}
    features: [exports]
    meters:
      requests: {rate: {limit: 1/second, algorithm: token-bucket, burst: 4}, included: 2, overage: deny}
  pro:
    price: {amount_cents: 0, interval: month}
    trial: 14d
    features: [exports]
    meters: {requests: {rate: {limit: 20/minute, algorithm: fixed-window}, included: 100, overage: deny},
      calls: {rate: 5/minute}}
"""


class Outage:
    """A kit that has lost its store, or will."""

    def __init__(self, kit: MeterKit, proxy: TcpProxy, clock: Clock) -> None:
        self.kit, self.clock, self._proxy = kit, clock, proxy
        self.app: Any = metered(kit)

    @property
    def lane(self) -> Any:
        return self.kit.store.lanes[asyncio.get_running_loop()]

    async def begins(self) -> None:
        await settled(self.kit)
        await self._proxy.set("refuse")
        await eventually(lambda: self.lane.is_down)

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
        return status, headers, json.loads(client.messages[1]["body"])


@asynccontextmanager
async def outage(server: Server, plans: Catalog | Path | None = None) -> AsyncGenerator[Outage]:
    clock = Clock()
    async with (
        TcpProxy(server.port) as proxy,
        kit_at(proxy.url, plans=plans or loads(PLANS), clock=clock, store_timeout=1.0) as kit,
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
        with suppress(StoreError):  # What cannot be sent now is sent later.
            await store.kit.store.degraded.send()
        await store.ends()
        # What was refused counts nowhere; all else is billed.
        assert (await used(store.kit, "unknown"), await used(store.kit, "pro")) == ((8, 0), (21, 0))
        await store.kit.store.degraded.send()
        assert await store.kit.store.degraded.read(2) == {began + 2: 5, began: 7 + 22}


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
    output = {b"acme": 60, b"bolt": 30}

    async def answers(scope: Any, _receive: Any, send: Any) -> None:
        said = compact(chat(None, usage=chat_usage(1, output[dict(scope["headers"])[b"x-customer-id"]])))
        headers = [(b"content-type", JSON_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async with outage(valkey) as store:
        await store.begins()
        store.app = metered(store.kit, answers)
        assert await store.statuses("acme", 3, "/chat") == [200, 429, 429]
        assert await store.statuses("bolt", 3, "/chat") == [200, 200, 429]
        store.clock.advance(timedelta(hours=2))
        assert await store.get("acme", "/chat") == 200
        await store.ends()
        assert await used(store.kit, "acme", "output_tokens") == (120, 0)


async def test_i11_an_attempt_is_settled_once_before_the_app_runs(valkey: Server) -> None:
    waiting: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.append(store.lane.unsettled)
        if scope["path"] == "/tries/more":
            meterkit.record(calls=10, requests=10)
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
        assert await store.statuses("acme", 2, "/tries/") == [200, 429]
        assert waiting == [1, 2, 4, 5, 6]  # What the app has recorded waits besides.
        await store.ends()
        meters = (await store.kit.usage("acme"))["meters"]
        assert [meters[name]["recorded"] for name in ("calls", "requests")] == [1 + 5 + 10, 10]


async def test_i3_known_suspensions_and_features_still_refuse(valkey: Server) -> None:
    async with outage(valkey) as store:
        for customer in ("owes", "pays"):
            await store.kit.customers.set_plan(customer, "pro")
            await store.kit.customers.set_status(customer, "unpaid" if customer == "owes" else "active")
            await store.get(customer)
        for customer, path in (("free", "/"), ("refused", "/exports")):
            await store.get(customer, path)
        await store.begins()
        assert [await store.get("pays", path) for path in ("/", "/exports")] == [200, 200]
        assert [await store.get(customer, "/exports") for customer in ("free", "refused")] == [403, 403]
        # The default plan lacks the feature, but it may be one who pays.
        status, headers, _ = await store.asked("unknown", "/exports")
        assert (status, headers["retry-after"]) == (503, "1")
        tallies = store.kit.store.tally()
        status, _, problem = await store.asked("owes")
        assert (status, problem["reason"], tallies.degraded) == (402, "suspended", 1)
        assert await store.get("owes", "/billing/portal") == 200


async def test_f_312_what_the_state_refuses_uses_nothing_up(valkey: Server) -> None:
    """Requests refused for want of a feature counted in rates and under ceilings."""
    async with outage(valkey) as store:
        assert await store.get("free") == 200
        await store.begins()
        assert await store.statuses("free", 6, "/exports") == [403] * 6
        assert not store.kit.store.fallback.pop_unchecked()
        assert await store.statuses("free", 6) == [200] * 5 + [429]


async def test_i3_who_was_out_of_credit_stays_refused(valkey: Server) -> None:
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
        assert ((status, problem["reason"]), await store.get("rich", "/pages")) == ((402, "credits"), 200)
        assert await store.get("poor") == 200  # Another meter.
        status, headers, problem = await store.asked("full")
        assert (status, problem["violated-policies"]) == (429, ["requests-period"])
        assert headers["retry-after"] == healthy["retry-after"]
        store.clock.advance(timedelta(seconds=int(headers["retry-after"])))
        assert await store.get("full") == 200  # A new period has begun.


@pytest.mark.parametrize(("plan", "served"), [("free", 5), ("bucket", 4), ("pro", 20)])
async def test_i3_a_clock_that_jitters_restarts_no_window(valkey: Server, plan: str, served: int) -> None:
    """A host's clock that went back over the end of a window admitted its quantity once more."""
    async with outage(valkey, loads(PLANS.replace("included: 2", "included: 100"))) as store:
        store.clock.advance(timedelta(seconds=60.1 - store.clock() % 60))
        await store.kit.customers.set_plan("acme", plan)
        assert await store.get("acme", "/billing/x") == 200
        await store.begins()
        assert await store.statuses("acme", served - 1) == [200] * (served - 1)
        store.clock.advance(timedelta(seconds=-1))
        assert await store.statuses("acme", 2) == [200, 429]
        for seconds in (1, -1):
            store.clock.advance(timedelta(seconds=seconds))
            assert await store.get("acme") == 429


LEFT_PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}, pages: {unit: page}, words: {unit: word}, scans: {unit: scan}}
credits: {coins: {costs: {pages: 1, scans: 4}}}
routes:
  - {match: "GET /pages", consume: {pages: 1}}
  - {match: "GET /scans", consume: {scans: 1}}
  - {match: "GET /words", consume: {requests: 1}, records: [words]}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 1000/minute, included: 6, overage: deny}
      pages: {rate: 1000/minute, included: 0, overage: deny}
      scans: {included: 0, overage: deny}
      words: {included: 100, overage: deny}
"""


async def test_i3_an_outage_opens_what_the_last_reply_left(valkey: Server) -> None:
    """F-312: the rates, which are nearer to their limits, hide what is left of a balance."""
    async with outage(valkey, loads(LEFT_PLANS)) as store:
        await store.kit.grants.add("acme", {"coins": 12}, grant_id="first")
        assert await store.statuses("acme", 2, "/pages") == [200] * 2
        await settled(store.kit)
        assert await store.statuses("acme", 1, "/scans") == [200]
        assert await store.statuses("acme", 2) == [200] * 2
        await settled(store.kit)
        assert await store.statuses("acme", 1, "/pages") == [200]
        await store.begins()
        # 5 coins are left: one page costs one, one scan costs four.
        assert await store.statuses("acme", 3, "/pages") == [200] * 3
        status, _, problem = await store.asked("acme", "/scans")
        assert (status, problem["reason"]) == (402, "credits")
        assert await store.statuses("acme", 3, "/pages") == [200] * 2 + [402]
        assert await store.statuses("acme", 5) == [200] * 4 + [429]
        await store.ends()
        assert await used(store.kit, "acme", "pages") == (8, 0)
        assert await store.statuses("acme", 1, "/pages") == [402]


async def test_f_312_an_error_of_the_fallback_loses_no_usage(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        meterkit.record(words=20)
        await answer_ok(scope, receive, send)
        meterkit.record(words=3)

    def fails(_: object) -> int:
        raise ZeroDivisionError("a bug")

    async with outage(valkey, loads(LEFT_PLANS)) as store:
        assert await store.get("acme", "/words") == 200
        await store.begins()
        store.app = metered(store.kit, app)
        with monkeypatch.context() as patched:
            patched.setattr("meterkit.store.fallback_decider.ceiling_of", fails)
            assert await store.statuses("acme", 2, "/words") == [200] * 2
            recording = asyncio.create_task(store.kit.record("acme", "words", 5))
            await asyncio.sleep(0)
        await store.ends()
        await recording
        assert await used(store.kit, "acme", "words") == (2 * 23 + 5, 0)
        assert "usage could not be counted in this process" in caplog.text


async def test_i3_excess_is_counted_beside_damage_and_shown(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One customer whose data is damaged, or usage on its way at each look, put the count off for good."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        meterkit.record(words=1)
        await answer_ok(scope, receive, send)

    monkeypatch.setattr("meterkit.store.daily_counts._SEND_EVERY_S", 600)
    async with (
        outage(valkey, loads(LEFT_PLANS)) as store,
        kit_at(valkey.url, plans=loads(LEFT_PLANS), clock=store.clock) as other,
    ):
        assert (await told(store.kit))["units_beyond_limits_total requests"] == 0
        for customer in ("acme", "bolt"):
            assert await store.get(customer) == 200
        await store.begins()
        for customer in ("acme", "bolt"):
            assert await store.statuses(customer, 5) == [200] * 5
            assert [(await other.consume(customer, "requests")).allowed for _ in range(5)] == [True] * 5
        await store.ends()
        damaged = store.kit.store.keys.customer("bolt").counters
        valkey.command("DEL", damaged)
        valkey.command("SET", damaged, "text")
        store.app = metered(store.kit, app)
        assert await store.get("cara", "/words") == 200
        assert store.lane.unsettled
        await count_excess(store.kit)
        await store.kit.store.degraded.send()
        assert "units of 'bolt' admitted without the store are not counted" in caplog.text
        assert "units admitted beyond limits while the store was down: 5 requests" in caplog.text
        assert (await told(store.kit))["units_beyond_limits_total requests"] == 5
        shown, (finding,) = await looked_at(store.kit, "degraded")
        assert shown == "1 minute without the store in 30 days; units admitted beyond limits: 5 requests"
        assert finding.problem.endswith("counted today or yesterday (UTC): 5 requests")
        store.clock.advance(timedelta(days=2))
        assert await looked_at(store.kit, "degraded") == (shown, [])


async def test_f_312_a_reply_counts_what_other_meters_had_used(valkey: Server) -> None:
    """What a meter that shares a credit had used in one outage was subtracted again in the next one."""
    async with outage(valkey, loads(LEFT_PLANS)) as store:
        await store.kit.grants.add("acme", {"coins": 20}, grant_id="first")
        assert await store.statuses("acme", 2, "/pages") == [200] * 2
        assert await store.statuses("acme", 1, "/scans") == [200]
        await settled(store.kit)
        assert await store.statuses("acme", 1, "/pages") == [200]
        await store.begins()
        assert await store.statuses("acme", 1, "/scans") == [200]
        await store.ends()
        store.clock.advance(timedelta(seconds=1))
        assert await store.statuses("acme", 1, "/pages") == [200]
        await settled(store.kit)
        await store.begins()
        # By the last reply: 20 - 2 - 4 - 1 - 4 - 1.
        assert await store.statuses("acme", 9, "/pages") == [200] * 8 + [402]


async def test_i3_failures_and_records_change_what_is_left(valkey: Server) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise RuntimeError(scope["path"])
        if scope["path"] == "/words":
            meterkit.record(words=60)
        await answer_ok(scope, receive, send)

    async with outage(valkey, loads(LEFT_PLANS)) as store:
        assert await store.statuses("acme", 1, "/words") == [200]
        await store.begins()
        store.app = metered(store.kit, app)
        for _ in range(5):  # What fails is not billed.
            with suppress(RuntimeError):
                assert await store.get("acme", "/fails") == 200
        assert await store.statuses("acme", 3, "/words") == [200, 200, 429]
        assert await store.statuses("acme", 4) == [200] * 3 + [429]
        await store.ends()
        assert await used(store.kit, "acme", "words") == (120, 0)


async def test_i3_an_unknown_customer_gets_what_a_new_one_gets(valkey: Server) -> None:
    async with outage(valkey, loads(LEFT_PLANS)) as store:
        assert await store.get("known") == 200
        await store.begins()
        # The truth is not known: there may be a plan with more, or a balance.
        assert await store.statuses("acme", 7) == [200] * 6 + [503]
        for customer in ("acme", "known"):
            status, headers, _ = await store.asked(customer, "/pages")
            assert (status, headers["retry-after"]) == (503, "1")
        # A new period has begun.
        store.clock.advance(timedelta(days=32))
        assert await store.statuses("acme", 7) == [200] * 6 + [503]
        assert await store.statuses("known", 7) == [200] * 6 + [503]


async def test_i3_i9_a_plan_without_limits_is_served_in_an_outage(valkey: Server) -> None:
    plans = LEFT_PLANS.replace("    meters:\n", "    meters: {}\n").partition("      requests: {rate")[0]
    async with outage(valkey, loads(plans.replace("consume: {pages: 1}", "consume: {requests: 1}"))) as store:
        await store.begins()
        assert await store.statuses("acme", 20) == [200] * 20


async def test_i3_refusals_hold_for_all_users_of_the_customer(valkey: Server, tmp_path: Path) -> None:
    users = "    subjects: {user: {requests: {included: 1}}}\n  bucket:"
    file = tmp_path / "plans.yaml"
    file.write_text(PLANS.replace("  bucket:", users, 1))
    async with outage(valkey, file) as store:
        store.app = MeterMiddleware(answer_ok, kit=store.kit, identify=of_user)
        for customer in ("poor", "rich"):
            await store.kit.grants.add(customer, {"coins": 1}, grant_id="first")
            assert await store.get(f"{customer}/ann", "/pages") == 200
            await settled(store.kit)
            assert await store.get(f"{customer}/ann", "/pages") == 402
        await store.kit.grants.add("rich", {"coins": 9}, grant_id="second")
        assert await store.get("rich/ben", "/pages") == 200
        assert await store.get("rich/ann") == 200
        await settled(store.kit)
        assert await store.get("rich/ann") == 429
        await store.begins()
        file.write_text(file.read_text().replace("8/hour", "9/hour"))
        assert await store.kit.reload()
        assert [await store.get(f"poor/{user}", "/pages") for user in ("ann", "ben", "new")] == [402] * 3
        assert [await store.get(f"rich/{user}", "/pages") for user in ("ann", "ben", "new")] == [200] * 3
        # What one of them has used up stays that one's.
        assert [await store.get(f"rich/{user}") for user in ("ann", "ben", "new")] == [429, 200, 200]


def of_user(scope: Any) -> Caller:
    customer, _, user = dict(scope["headers"])[b"x-customer-id"].decode().partition("/")
    return Caller(customer, {"user": user})


async def test_f_312_what_is_left_is_known_of_any_number_of_users(valkey: Server, tmp_path: Path) -> None:
    """What an early user used was not known any more once there were many: it could be used again."""
    users = "    subjects: {user: {words: {included: 100}}}\n"
    file = tmp_path / "plans.yaml"
    file.write_text(LEFT_PLANS.replace("included: 6", "included: 50") + users)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/words":
            meterkit.record(words=100)
        await answer_ok(scope, receive, send)

    async with outage(valkey, file) as store:
        store.app = MeterMiddleware(app, kit=store.kit, identify=of_user)
        assert await store.statuses("acme/ann", 1) == [200]
        for nth in range(40):
            assert await store.get(f"acme/u{nth}") == 200
        assert await store.statuses("acme/ann", 6) == [200] * 6
        await store.begins()
        file.write_text(file.read_text().replace("1000/minute", "900/minute"))
        assert await store.kit.reload()
        assert await store.statuses("acme/ben", 4) == [200] * 3 + [429]


async def test_i3_a_reload_forgets_no_customer(valkey: Server, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text(PLANS)
    async with outage(valkey, file) as store:
        await store.kit.customers.set_status("owes", "unpaid")
        await store.kit.customers.set_plan("pays", "pro")
        await store.kit.grants.add("poor", {"coins": 1}, grant_id="first")
        await store.statuses("poor", 1, "/pages")
        await settled(store.kit)
        assert await store.statuses("poor", 1, "/pages") == [402]
        assert [await store.get(customer) for customer in ("owes", "pays")] == [402, 200]
        await store.begins()
        for limit in (7, 6):
            file.write_text(PLANS.replace("rate: [5/minute", f"rate: [{limit}/minute"))
            assert await store.kit.reload()
        assert [await store.get("owes"), await store.get("poor", "/pages")] == [402, 402]
        assert await store.statuses("pays", 22) == [200] * 20 + [429] * 2
        assert await store.statuses("unknown", 7) == [200] * 6 + [429]


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


async def test_i3_the_end_of_a_period_makes_no_customer_unknown(valkey: Server) -> None:
    async with outage(valkey) as store:
        assert await store.get("free") == 200
        await store.begins()
        assert await store.get("free", "/exports") == 403
        store.clock.advance(timedelta(days=32))
        assert await store.statuses("free", 2, "/exports") == [403] * 2


async def test_without_the_store_only_policies_are_told(valkey: Server) -> None:
    async with outage(valkey) as store:
        await store.begins()
        client = Client(store.app)
        assert await client.get("acme") == 200
        fields = dict(client.messages[0]["headers"])
        assert fields[b"ratelimit-policy"].startswith(b'"requests-1m"')
        assert b"ratelimit" not in fields


async def test_the_quietest_of_many_customers_goes(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.store.fallback_decider._CUSTOMERS_MAX", 2)
    async with outage(valkey) as store:
        await store.begins()
        assert await store.statuses("busy", 5) == await store.statuses("quiet", 5) == [200] * 5
        asked = [await store.get(customer) for customer in ("busy", "third", "busy", "quiet")]
        assert asked == [429, 200, 429, 200]


# Decisions that are heard too late: what they held, and what rates counted of it, is given back.


LATE_PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}, input_tokens: {unit: token}, output_tokens: {unit: token}}
routes:
  - match: "/deny"
    consume: {requests: 1}
    usage: auto
    reserve: &reserve {output_tokens: {from: max_tokens, default: 100, ceiling: 1000}}
    on_store_failure: deny
  - {match: "/allow", consume: {requests: 1}, usage: auto, reserve: *reserve, on_store_failure: allow}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 100/hour, concurrency: 5}, input_tokens: {included: 100_000, overage: deny},
      output_tokens: {rate: [5000/hour, 20_000/day], included: 100_000, overage: deny}}
"""
RESERVED, SPENT, PROMPT = 400, 150, 4
ASKED = [{"role": "user", "content": "0123456789ab"}]
BODY = compact({"model": "m", "messages": ASKED, "max_tokens": RESERVED})
Heard = Literal["made at once", "made late"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A kit over a slow network, and one that looks past it."""

    kit: MeterKit
    auditor: MeterKit
    proxy: TcpProxy
    client: httpx.AsyncClient

    async def keep(self, heard: Heard) -> None:
        """Keep replies, or requests, until they are let through."""
        if heard == "made late":
            await self.proxy.set("blackhole")
        else:
            self.proxy.replies.clear()

    async def left(self, meter: str = "output_tokens") -> int:
        """How much more the customer may use now, over all limits."""
        low, high = 0, 10_000
        while low < high:
            middle = (low + high + 1) // 2
            is_allowed = (await self.auditor.check("acme", meter, middle)).allowed
            low, high = (middle, high) if is_allowed else (low, middle - 1)
        return low

    async def is_held(self, heard: Heard) -> None:

        async def holds() -> bool:
            _, held = await used(self.auditor, "acme", "output_tokens")
            return held == (RESERVED if heard == "made at once" else 0)

        await eventually(holds)

    async def mended(self) -> None:
        """Let through what was kept, and wait until it was heard and all is told to the store."""
        lane = self.kit.store.lanes[asyncio.get_running_loop()]
        connections: list[Any] = [*lane._reconnector._ended, lane._connection]
        self.proxy.replies.set()
        await self.proxy.set("pass")
        await eventually(lambda: not any(link._pending for link in connections if link is not None))
        await settled(self.kit)

    async def comes_to(self, *, recorded: int, left: int, meter: str = "output_tokens") -> None:

        async def holds() -> bool:
            await settled(self.kit)
            return await used(self.auditor, "acme", meter) == (recorded, 0)

        await eventually(holds)
        assert await self.left(meter) == left


@asynccontextmanager
async def late(valkey: Server, *, timeout_s: float) -> AsyncGenerator[Late]:
    """A model behind a kit that hears its store late."""
    usage = chat_usage(PROMPT, SPENT)
    model = answering([*openai_stream("Hello"), sse(chat(None, usage=usage))], "text/event-stream")
    settings: dict[str, Any] = {"clock": Clock(NOW), "flush": False, "shards": 4}
    async with (
        TcpProxy(valkey.port) as proxy,
        MeterKit(loads(LATE_PLANS), redis_url=valkey.url, store_timeout=10.0, **settings) as auditor,
        MeterKit(loads(LATE_PLANS), redis_url=proxy.url, store_timeout=timeout_s, **settings) as kit,
    ):
        for route in kit.catalog.routes:  # Known already: nothing but the decision is asked.
            kit.store.cache.get("acme").prepare(route)
        transport = httpx.ASGITransport(app=metered(kit, model))
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=HEADERS) as client:
            yield Late(kit=kit, auditor=auditor, proxy=proxy, client=client)


HEARD = pytest.mark.parametrize("heard", ["made at once", "made late"])


@HEARD
@pytest.mark.parametrize(
    ("path", "status", "spent"), [("/allow", 200, (PROMPT, SPENT)), ("/deny", 503, (0, 0))]
)
async def test_a_request_served_without_an_answer_is_counted(
    valkey: Server, heard: Heard, path: str, status: int, spent: tuple[int, int]
) -> None:
    async with late(valkey, timeout_s=0.2) as at:
        await at.keep(heard)
        assert (await at.client.post(path, content=BODY)).status_code == status
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=spent[1], left=5000 - spent[1])
        assert await used(at.auditor, "acme", "input_tokens") == (spent[0], 0)
        # Also a refused one was admitted, if nobody heard of it: the rate of requests counts it.
        await at.comes_to(recorded=int(status == 200), left=99, meter="requests")


@HEARD
async def test_a_request_cancelled_before_its_decision_returns_all(valkey: Server, heard: Heard) -> None:
    async with late(valkey, timeout_s=20.0) as at:
        await at.keep(heard)
        sent = at.proxy.requests
        request = asyncio.create_task(at.client.post("/deny", content=BODY))
        if heard == "made at once":
            await eventually(lambda: at.proxy.requests > sent)
        await at.is_held(heard)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
        assert await used(at.auditor, "acme", "input_tokens") == (0, 0)


@HEARD
@pytest.mark.parametrize("ended", ["by the timeout", "by a cancellation"])
async def test_a_late_reservation_holds_nothing(valkey: Server, heard: Heard, ended: str) -> None:
    async with late(valkey, timeout_s=0.2 if ended == "by the timeout" else 20.0) as at:
        assert (await at.kit.check("acme", "output_tokens")).allowed

        async def reserve() -> None:
            async with at.kit.reserve("acme", {"output_tokens": RESERVED}):
                raise AssertionError("it was not to begin")

        await at.keep(heard)
        asked = asyncio.create_task(reserve())
        await asyncio.sleep(0)
        if ended == "by a cancellation":
            await at.is_held(heard)
            asked.cancel()
        (error,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(error, StoreError | asyncio.CancelledError)
        await at.is_held(heard)
        await at.mended()
        await at.comes_to(recorded=0, left=5000)
