"""What a client is answered, what a request is counted as, and what the middleware leaves alone."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from drivers.app import PLANS, Served, answering, are_refused_in_child, hello, served
from drivers.delivery import NOW
from meterkit import Decision, MeterKit, MeterkitError, UnknownMeterError, current, record
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

ANONYMOUS = PLANS + "anonymous: {plan: free, by: ip}\n"


def body(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()
    assert found.pop("instance").startswith("urn:uuid:")
    return found


async def test_answers_name_the_nearest_policy_until_it_is_used_up() -> None:
    policies = '"requests-1h";q=20;w=3600, "requests-period";q=5'
    async with served(hello) as at:
        allowed = await at.client.get("/v1/x")
        assert (allowed.status_code, allowed.text) == (200, "hello")
        assert allowed.headers["ratelimit-policy"] == policies
        # 4 of 5 are left until the month ends: 20 days, 11 h, 59 min, 30 s.
        assert allowed.headers["ratelimit"] == '"requests-period";r=4;t=1771170'
        assert await at.statuses(*["/v1/x"] * 4) == [200] * 4
        response = await at.client.get("/v1/x")
        assert await at.counted() == (5, 0)
    assert response.status_code == 429
    assert dict(response.headers) == {
        "content-type": "application/problem+json",
        "content-length": str(len(response.content)),
        "cache-control": "no-store",
        "ratelimit-policy": policies,
        "ratelimit": '"requests-period";r=0;t=1771170',
        "retry-after": "1771170",
        "x-should-retry": "false",
    }
    assert body(response) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": 'Policy "requests-period" allows 5 requests in this billing period. Retry in 21 days.',
        "violated-policies": ["requests-period"],
    }


async def test_a_bucket_that_fills_soon_may_be_retried() -> None:
    plans = PLANS.replace("rate: 20/hour", "rate: {limit: 20/second, algorithm: token-bucket, burst: 2}")
    async with served(hello, plans=plans) as at:
        await at.statuses("/v1/x", "/v1/x")
        response = await at.client.get("/v1/x")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "x-should-retry" not in response.headers


async def test_concurrency_counts_requests_in_flight() -> None:
    refused: list[httpx.Response] = []

    async def nested(scope: Scope, receive: Receive, send: Send) -> None:
        refused.append(await at.client.get("/pages"))
        await hello(scope, receive, send)

    async with served(nested) as at:
        for _ in range(2):
            response = await at.client.get("/pages")
            assert response.status_code == 200
            assert response.headers["ratelimit-policy"] == '"pages-concurrency";q=1;qu="concurrent-requests"'
        assert await at.counted(meter="pages") == (2, 0)
    for inner in refused:
        assert (inner.status_code, inner.headers["retry-after"]) == (429, "1")
        assert body(inner)["violated-policies"] == ["pages-concurrency"]


async def test_suspended_comes_before_all_else_and_always_is_served() -> None:
    async with served(hello, plans=PLANS + "billing: {portal_url: https://pay.example}\n") as at:
        await at.kit.customers.set_status("acme", "unpaid")
        for path in ("/v1/x", "/full"):
            told = body(await at.client.get(path))
            assert (told["status"], told["reason"]) == (402, "suspended")
            assert told["portal_url"] == "https://pay.example"
        assert await at.statuses("/billing/portal") == [200]


async def test_always_is_decided_by_its_rates_only() -> None:
    async with served(hello) as at:
        assert await at.statuses(*["/billing/pay"] * 21, method="POST") == [200] * 20 + [429]
        assert await at.counted() == (20, 0)


async def test_without_a_customer_the_answer_is_a_challenge() -> None:
    async with served(hello) as at:
        response = await at.client.get("/v1/x", headers={"x-customer-id": ""})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="api"')
    assert body(response)["type"] == "urn:meterkit:problem:customer-unknown"
    assert "ratelimit" not in response.headers


async def test_anonymous_by_ip_has_a_key_space_of_its_own() -> None:
    async with served(hello, plans=ANONYMOUS, who=lambda _: None) as at:
        assert await at.statuses(*["/v1/x"] * 6) == [200] * 5 + [429]
        assert await at.counted("127.0.0.1") == (0, 0)  # A customer of that name is somebody else.


async def test_anonymous_customers_behind_a_proxy_are_told_apart() -> None:
    """F-66: behind a balancer all of them were one customer, the balancer."""
    plans = ANONYMOUS.replace("by: ip}", "by: ip, trusted_proxies: [127.0.0.0/8]}")
    async with served(hello, plans=plans, who=lambda _: None) as at:
        for client in ("203.0.113.1", "203.0.113.2", "2001:db8:1:2::1"):
            header = {"x-forwarded-for": f"198.51.100.9, {client}"}
            assert await at.statuses(*["/v1/x"] * 6, headers=header) == [200] * 5 + [429]
        header = {"x-forwarded-for": "2001:db8:1:2:ffff::7"}  # Another address of the same /64.
        assert await at.statuses("/v1/x", headers=header) == [429]
        at.kit.store.use(loads(ANONYMOUS))  # Who is believed follows the plans file.
        assert await at.statuses("/v1/x", headers=header) == [200]


async def test_an_anonymous_address_is_no_customer_of_the_kit() -> None:
    """What the app recorded for `current().customer` was of a customer, who had that address as its id."""
    kits: list[MeterKit] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kit, caller = kits[0], current()
        assert caller.anonymous is (caller.customer == "127.0.0.1")
        await kit.record(caller.customer, "requests", 2)
        assert (await kit.check(caller.customer, "requests", 2)).allowed
        assert not (await kit.check(caller.customer, "requests", 3)).allowed
        await hello(scope, receive, send)

    def who(scope: Scope) -> str | None:
        return dict(scope["headers"]).get(b"x-customer-id", b"").decode() or None

    async with served(app, plans=ANONYMOUS, who=who) as at:
        kits.append(at.kit)
        assert await at.statuses("/v1/x", headers={"x-customer-id": ""}) == [200]
        assert await at.counted("127.0.0.1") == (0, 0)
        assert await at.statuses("/v1/x") == [200]
        assert await at.counted() == (3, 0)


async def test_anonymous_usage_is_never_billed() -> None:
    stripe = "requests: {unit: request, stripe: {event_name: r, report: usage}}"
    plans = ANONYMOUS.replace("requests: {unit: request}", stripe)
    async with served(hello, plans=plans, who=lambda _: None) as at:
        await at.client.get("/v1/x")
        client: Any = (await at.kit.store.admin()).client
        keys = [key.decode() for key in await client.keys(f"{at.kit.settings.key_prefix}:*")]
    assert not [key for key in keys if key.endswith(("dirty", "unlinked"))]
    assert [key for key in keys if key.endswith(":a:127.0.0.1")]


@pytest.mark.parametrize("path", ["/healthz", "/elsewhere"])
async def test_exempt_and_unknown_paths_are_left_alone(path: str) -> None:
    asked: list[Scope] = []
    async with served(hello, who=asked.append) as at:
        for _ in range(6):
            response = await at.client.get(path)
            assert (response.status_code, dict(response.headers)) == (200, {"content-length": "5"})
        assert await at.counted() == (0, 0)
    assert asked == []


async def test_a_preflight_is_not_counted_and_a_plain_options_is() -> None:
    async with served(hello) as at:
        preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
        response = await at.client.options("/v1/x", headers={"x-customer-id": "", **preflight})
        assert ((response.status_code, response.content), await at.counted()) == ((204, b""), (0, 0))
        assert (await at.client.options("/v1/x")).headers["ratelimit"]
        assert await at.counted() == (1, 0)


async def test_scripts_of_other_origins_may_read_the_fields() -> None:
    async with served(hello, cors=["https://app.example"]) as at:
        response = await at.client.get("/v1/x", headers={"origin": "https://app.example"})
        exposed = response.headers["access-control-expose-headers"].lower()
        assert {"ratelimit", "ratelimit-policy"} <= {name.strip() for name in exposed.split(",")}
        denied = await at.client.get("/full", headers={"origin": "https://app.example"})
        assert denied.headers["access-control-allow-origin"] == "https://app.example"
        other = await at.client.get("/full", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        await at.kit.consume("acme", "requests", 4)
        # Shadow mode serves what a limit would have refused.
        shadowed = await at.client.get("/shadow", headers={"origin": "https://app.example"})
        assert shadowed.status_code == 200
        assert shadowed.headers["access-control-expose-headers"].lower() == exposed


async def test_headers_none_and_both() -> None:
    async with served(hello) as at:
        assert dict((await at.client.get("/quiet")).headers) == {"content-length": "5"}
        both = (await at.client.get("/both")).headers
    assert both["ratelimit"].startswith('"requests-period";r=3')
    assert (both["x-ratelimit-limit"], both["x-ratelimit-remaining"]) == ("5", "3")
    period_end = NOW.replace(month=7, day=1, hour=0, minute=0, second=0)
    assert int(both["x-ratelimit-reset"]) == period_end.timestamp()


async def test_fields_that_the_app_set_are_replaced() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # asgiref's `WsgiToAsgi` warns of a `send` that is no coroutine function.
        asks: Any = inspect if hasattr(inspect, "markcoroutinefunction") else asyncio
        assert asks.iscoroutinefunction(send)
        headers = {"RateLimit": '"mine";r=1', "RateLimit-Policy": '"mine";q=1'}
        await JSONResponse({}, headers=headers)(scope, receive, send)

    async with served(app) as at:
        response = await at.client.get("/v1/x")
    assert response.headers.get_list("ratelimit") == ['"requests-period";r=4;t=1771170']
    assert len(response.headers.get_list("ratelimit-policy")) == 1


async def test_no_field_of_the_app_stays_beside_ours() -> None:
    """The limit on requests at a time has no reset: the app's own would be read as that of this limit."""
    own = {f"X-RateLimit-{name}": "9" for name in ("Limit", "Remaining", "Reset")}
    plans = PLANS.replace('"/pages", ', '"/pages", headers: both, ')
    async with served(JSONResponse({}, headers=own), plans=plans) as at:
        headers = (await at.client.get("/pages")).headers
    found = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
    assert found == {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0"}


async def test_identify_may_be_async() -> None:
    async def who(scope: Scope) -> str | None:
        return "zeta" if scope["path"] == "/v1/x" else None

    async with served(hello, who=who) as at:
        assert (await at.statuses("/v1/x", "/v1/y"), await at.counted("zeta")) == ([200, 401], (1, 0))


async def test_without_the_store_the_route_says_pass_or_refuse(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.01)
    decisions: list[Decision] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        decisions.append(current().decision)
        await hello(scope, receive, send)

    settings = {"store_timeout": 0.05, "start_timeout": 0.1, "flush": None}
    async with served(app, redis_url="redis://127.0.0.1:1", settings=settings) as at:
        response = await at.client.get("/v1/x")
        assert (response.status_code, response.text) == (200, "hello")
        assert "ratelimit" not in response.headers
        strict = await at.client.get("/strict")
        assert (strict.status_code, strict.headers["retry-after"]) == (503, "1")
        assert body(strict)["type"].endswith("#temporary-reduced-capacity")
    assert [decision.degraded for decision in decisions] == [True]
    assert "on_store_failure: allow" in caplog.text


async def test_what_is_remembered_of_limit_fields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.active_plans._PROGRAMS_MAX", 2)
    async with served(hello) as at:
        left = [await at.left(path) for path in ("/attempt", "/errors", "/both", "/strict", "/v1/x")]
        assert len(at.app._plans.limit_fields) <= 2  # type: ignore[attr-defined] # nothing else shows it
    assert [int(field[len('"requests-period";r=')]) for field in left] == [4, 3, 3, 2, 1]


async def rate_used(at: Served) -> int:
    return next(rate["used"] for rate in await at.kit.rates("acme") if rate["meter"] == "requests")


@pytest.mark.parametrize(
    ("status", "path", "recorded"),
    [
        (200, "/v1/x", 1),
        (304, "/v1/x", 1),
        (400, "/v1/x", 0),
        (500, "/v1/x", 0),
        (404, "/attempt", 1),
        (503, "/attempt", 1),
        (200, "/errors", 0),
        (404, "/errors", 1),
        (503, "/errors", 1),
    ],
)
async def test_billing_goes_by_the_outcome_and_rates_count_all(status: int, path: str, recorded: int) -> None:
    async with served(answering(status)) as at:
        response = await at.client.get(path)
        assert (response.status_code, "ratelimit" in response.headers) == (status, True)
        assert (await at.counted(), await rate_used(at)) == ((recorded, 0), 1)


@pytest.mark.parametrize("error", [ValueError("broken"), ConnectionResetError("broken")])
async def test_an_app_that_raises_is_a_server_error(error: Exception) -> None:
    """A model behind the app that hangs up is not a client that does."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["query_string"] == b"late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise error

    async with served(app) as at:
        for path in ("/v1/x", "/v1/x?late", "/attempt", "/errors"):
            with pytest.raises(type(error), match="broken") as caught:
                await at.client.get(path)
            assert caught.value is error
        assert await at.counted() == (2, 0)  # The routes that bill server errors.
        assert await rate_used(at) == 4


async def test_a_request_is_settled_before_background_tasks() -> None:
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        seen.append(await at.counted())
        raise ValueError("too late")

    async with served(PlainTextResponse("done", background=BackgroundTask(look))) as at:
        with pytest.raises(ValueError, match="too late"):
            await at.client.get("/v1/x")
        assert seen == [await at.counted()] == [(1, 0)]


def recording_app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/sync")
    def sync_endpoint() -> dict[str, str]:
        assert threading.current_thread() is not threading.main_thread()
        record("tokens", 3)
        record(tokens=4, pages=1)
        with pytest.raises(UnknownMeterError):
            record(tokens=1, nothing=2)
        return {"customer": current().customer, "plan": current().plan}

    @app.get("/v1/async")
    async def async_endpoint() -> None:
        async def nested() -> None:
            record("tokens", 5)

        async with asyncio.TaskGroup() as group:
            group.create_task(nested())
        record("tokens", 1, pages=2)

    @app.get("/v1/background/{kind}")
    async def background(kind: str, status: int = 200) -> PlainTextResponse:
        async def later() -> None:
            record("tokens", 7)

        def later_in_a_thread() -> None:
            assert threading.current_thread() is not threading.main_thread()
            record("tokens", 7)

        task = BackgroundTask(later if kind == "async" else later_in_a_thread)
        return PlainTextResponse("", status_code=status, background=task)

    @app.get("/shadow")
    async def consumed_too() -> None:
        record("requests", 2)

    return app


@pytest.mark.parametrize(
    ("path", "tokens", "pages"),
    [("/v1/sync", 7, 1), ("/v1/async", 6, 2), ("/v1/background/async", 7, 0), ("/v1/background/sync", 7, 0)],
)
async def test_recorded_from_anywhere_in_a_request(path: str, tokens: int, pages: int) -> None:
    # In debug mode, asyncio refuses what a thread must not do.
    asyncio.get_running_loop().set_debug(enabled=True)
    async with served(recording_app()) as at:
        assert (await at.client.get(path)).status_code == 200
        asyncio.get_running_loop().set_debug(enabled=False)
        await at.kit.check("acme", "tokens")  # What a thread has handed over comes first.
        assert await at.counted(meter="tokens") == (tokens, 0)
        assert await at.counted(meter="pages") == (pages, 0)


async def test_current_says_who_is_served() -> None:
    async with served(recording_app()) as at:
        assert (await at.client.get("/v1/sync")).json() == {"customer": "acme", "plan": "free"}
    with pytest.raises(MeterkitError, match="outside of a request"):
        current()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_child_process_does_not_record_for_a_request() -> None:
    """It has a copy of the request, and what it records there would be lost."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        copied = partial(copy_context().run, record)  # As a pool of the child may run it.
        found.append(await are_refused_in_child(record, copied))
        record("pages", 2)
        await hello(scope, receive, send)

    found: list[bool] = []
    async with served(app) as at:
        await at.client.get("/v1/x")
        assert (found, await at.counted(meter="pages")) == ([True], (2, 0))


async def test_what_a_background_task_records_goes_by_the_outcome_too() -> None:
    async with served(recording_app()) as at:
        assert (await at.client.get("/v1/background/sync?status=404")).status_code == 404
        assert (await at.kit.check("acme", "tokens", 993)).allowed
        assert not (await at.kit.check("acme", "tokens", 994)).allowed
        assert await at.counted(meter="tokens") == (0, 0)


async def test_what_the_route_consumes_and_the_app_records_adds_up() -> None:
    async with served(recording_app()) as at:
        assert (await at.statuses("/shadow"), await at.counted()) == ([200], (3, 0))


async def test_in_shadow_a_refused_request_counts_in_rates() -> None:
    async with served(answering(500)) as at:
        await at.kit.record("acme", "requests", 5)
        assert (await at.statuses("/shadow"), await at.counted()) == ([500], (5, 0))
        assert await rate_used(at) == 6


async def test_a_thread_of_the_app_records_for_its_request() -> None:
    """F-20h: run_in_executor() hands no context on, and the error did not say what does."""

    async def compute(scope: Scope, receive: Receive, send: Send) -> None:
        work = partial(record, tokens=7)
        handed_on = partial(copy_context().run, work) if scope["path"] == "/v1/x" else work
        await asyncio.get_running_loop().run_in_executor(None, handed_on)
        await hello(scope, receive, send)

    async with served(compute) as at:
        assert (await at.statuses("/v1/x"), await at.counted(meter="tokens")) == ([200], (7, 0))
        with pytest.raises(MeterkitError, match=r"asyncio\.to_thread\(f\) does, and so does pool\.submit\("):
            await at.client.get("/v1/y")


# ``rate:`` on a line of the plans file: what each customer may ask of it, whatever the plan.
RATED = """
meters: {requests: {unit: request}}
routes:
  - {match: "POST /export", rate: 2/hour, consume: {requests: 5}}
  - {match: "/login", rate: [3/minute, {limit: 10/hour, algorithm: fixed-window}]}
  - {match: "/pay", always: true, rate: 1/hour}
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: 100/hour}}}
  big: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: unlimited}}}
"""


async def test_a_lines_rate_holds_beside_plans_and_for_each_customer() -> None:
    async with served(hello, plans=RATED) as at:
        await at.kit.customers.set_plan("globex", "big")
        paths = ["/export"] * 3
        for customer in ({"x-customer-id": "acme"}, {"x-customer-id": "globex"}):
            assert await at.statuses(*paths, method="POST", headers=customer) == [200, 200, 429]
            assert await at.statuses(*paths, headers=customer) == [200, 200, 200]
        at.clock.advance(timedelta(hours=2))
        assert await at.statuses(*paths, method="POST") == [200, 200, 429]


async def test_i2_a_lines_rate_counts_requests_and_no_refused_one() -> None:
    async with served(hello, plans=RATED) as at:
        assert await at.statuses(*["/export"] * 9, method="POST") == [200] * 2 + [429] * 7
        assert await at.counted() == (10, 0)
        assert '"requests-1h";r=89' in await at.left("/other")


async def test_a_lines_policies_are_named_route_and_the_window() -> None:
    async with served(hello, plans=RATED) as at:
        allowed = await at.client.get("/login")
        assert allowed.headers["ratelimit-policy"] == '"route-1m";q=3;w=60, "route-1h";q=10;w=3600'
        assert allowed.headers["ratelimit"] == '"route-1m";r=2;t=90'
        await at.statuses("/login", "/login")
        refused = (await at.client.get("/login")).json()
        assert refused["violated-policies"] == ["route-1m"]
        assert refused["detail"].startswith('Policy "route-1m" allows 3 requests per minute.')
        # Lines that are always served go by it, too.
        await at.kit.customers.set_status("acme", "unpaid")
        assert await at.statuses("/pay", "/pay") == [200, 429]
