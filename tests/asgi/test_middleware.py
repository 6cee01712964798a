"""What a client is answered, and what the middleware leaves alone."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.responses import JSONResponse

from drivers.app import HEADERS, PLANS, hello, served
from drivers.delivery import NOW
from meterkit import MeterKit, MeterMiddleware, current, identify
from meterkit.catalog import loads
from meterkit.testing import Clock

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from meterkit import Decision

pytestmark = pytest.mark.anyio

IANA = "https://iana.org/assignments/http-problem-types#"
ANONYMOUS = PLANS.replace("meters:\n  requests", "anonymous: {plan: free, by: ip}\nmeters:\n  requests", 1)


def body(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()
    assert found.pop("instance").startswith("urn:uuid:")
    return found


async def test_an_allowed_answer_names_the_nearest_policy() -> None:
    async with served(hello) as at:
        response = await at.client.get("/v1/x")
    assert (response.status_code, response.text) == (200, "hello")
    assert response.headers["ratelimit-policy"] == '"requests-1h";q=20;w=3600, "requests-period";q=5'
    # 4 of 5 are left until the month ends: 20 days, 11 h, 59 min, 30 s.
    assert response.headers["ratelimit"] == '"requests-period";r=4;t=1771170'


async def test_included_used_up() -> None:
    async with served(hello) as at:
        for _ in range(5):
            assert (await at.client.get("/v1/x")).status_code == 200
        response = await at.client.get("/v1/x")
        assert await at.counted() == (5, 0)
    assert response.status_code == 429
    assert dict(response.headers) == {
        "content-type": "application/problem+json",
        "content-length": str(len(response.content)),
        "cache-control": "no-store",
        "ratelimit-policy": '"requests-1h";q=20;w=3600, "requests-period";q=5',
        "ratelimit": '"requests-period";r=0;t=1771170',
        "retry-after": "1771170",
        "x-should-retry": "false",
    }
    assert body(response) == {
        "type": f"{IANA}quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": 'Policy "requests-period" allows 5 requests per billing period. Retry in 21 days.',
        "violated-policies": ["requests-period"],
    }


async def test_a_bucket_that_fills_soon_may_be_retried() -> None:
    plans = PLANS.replace("rate: 20/hour", "rate: {limit: 20/second, algorithm: token-bucket, burst: 2}")
    async with served(hello, plans=plans) as at:
        for _ in range(2):
            await at.client.get("/v1/x")
        response = await at.client.get("/v1/x")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "x-should-retry" not in response.headers


async def test_concurrency_counts_requests_in_flight() -> None:
    async def nested(scope: Scope, receive: Receive, send: Send) -> None:
        inner = await at.client.get("/pages", headers={"x-inner": "yes"}) if outer(scope) else None
        answer = JSONResponse({"inner": None if inner is None else inner.status_code})
        if inner is not None:
            answer.headers["x-policies"] = json.dumps(body(inner)["violated-policies"])
            answer.headers["x-retry"] = inner.headers["retry-after"]
        await answer(scope, receive, send)

    def outer(scope: Scope) -> bool:
        return (b"x-inner", b"yes") not in scope["headers"]

    async with served(nested) as at:
        for _ in range(2):
            response = await at.client.get("/pages")
            assert (response.status_code, response.json()) == (200, {"inner": 429})
            assert json.loads(response.headers["x-policies"]) == ["pages-concurrency"]
            assert response.headers["x-retry"] == "1"
            assert response.headers["ratelimit-policy"] == (
                '"pages-concurrency";q=1;qu="concurrent-requests"'
            )
        assert await at.counted(meter="pages") == (2, 0)


async def test_a_feature_not_in_the_plan() -> None:
    async with served(hello) as at:
        response = await at.client.get("/full")
        assert response.status_code == 403
        told = body(response)
        assert (told["feature"], told["plan"], told["available_in"]) == ("full", "free", ["pro"])
        await at.kit.customers.set_plan("acme", "pro")
        assert (await at.client.get("/full")).status_code == 200


async def test_suspended_comes_before_all_else_and_always_is_served() -> None:
    plans = PLANS + "billing: {portal_url: https://pay.example}\n"
    async with served(hello, plans=plans) as at:
        await at.kit.customers.set_status("acme", "unpaid")
        for path in ("/v1/x", "/full"):
            response = await at.client.get(path)
            assert response.status_code == 402
            told = body(response)
            assert (told["reason"], told["portal_url"]) == ("suspended", "https://pay.example")
        assert (await at.client.get("/billing/portal")).status_code == 200


async def test_always_is_decided_by_its_rates_only() -> None:
    async with served(hello) as at:
        for _ in range(20):
            assert (await at.client.post("/billing/pay")).status_code == 200
        assert (await at.client.post("/billing/pay")).status_code == 429
        assert await at.counted() == (20, 0)


async def test_without_a_customer_the_answer_is_a_challenge() -> None:
    async with served(hello) as at:
        response = await at.client.get("/v1/x", headers={"x-customer-id": ""})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="api"'
    assert body(response)["type"] == "urn:meterkit:problem:customer-unknown"
    assert "ratelimit" not in response.headers


async def test_anonymous_by_ip_has_a_key_space_of_its_own() -> None:
    async with served(hello, plans=ANONYMOUS, who=lambda _: None) as at:
        for _ in range(5):
            assert (await at.client.get("/v1/x")).status_code == 200
        assert (await at.client.get("/v1/x")).status_code == 429
        assert await at.counted("127.0.0.1") == (0, 0)  # A customer of that name is somebody else.


async def test_anonymous_customers_behind_a_proxy_are_told_apart() -> None:
    """F-66: behind a balancer all of them were one customer, the balancer."""
    proxies = "by: ip, trusted_proxies: [127.0.0.0/8]}"
    plans = ANONYMOUS.replace("by: ip}", proxies)
    async with served(hello, plans=plans, who=lambda _: None) as at:
        for client in ("203.0.113.1", "203.0.113.2", "2001:db8:1:2::1"):
            header = {"x-forwarded-for": f"198.51.100.9, {client}"}
            found = [(await at.client.get("/v1/x", headers=header)).status_code for _ in range(6)]
            assert found == [200] * 5 + [429]
        header = {"x-forwarded-for": "2001:db8:1:2:ffff::7"}  # Another address of the same /64.
        assert (await at.client.get("/v1/x", headers=header)).status_code == 429
        at.kit.store.use(loads(ANONYMOUS))  # Who is believed follows the plans file.
        assert (await at.client.get("/v1/x", headers=header)).status_code == 200


async def test_anonymous_usage_is_never_billed() -> None:
    async with served(
        hello,
        plans=ANONYMOUS.replace(
            "requests: {unit: request}", "requests: {unit: request, stripe: {event_name: r, report: usage}}"
        ),
        who=lambda _: None,
    ) as at:
        await at.client.get("/v1/x")
        client: Any = (await at.kit.store.admin()).client
        prefix = at.kit.settings.key_prefix
        keys = [key.decode() for key in await client.keys(f"{prefix}:*")]
    assert not [key for key in keys if key.endswith(("dirty", "unlinked"))]
    assert [key for key in keys if key.endswith(":a:127.0.0.1")]


@pytest.mark.parametrize("path", ["/healthz", "/elsewhere"])
async def test_exempt_and_unknown_paths_are_left_alone(path: str) -> None:
    asked: list[Scope] = []

    def who(scope: Scope) -> str:
        asked.append(scope)
        return "acme"

    async with served(hello, who=who) as at:
        for _ in range(6):
            response = await at.client.get(path)
            assert (response.status_code, dict(response.headers)) == (200, {"content-length": "5"})
        assert await at.counted() == (0, 0)
    assert asked == []


async def test_a_preflight_is_not_counted_and_a_plain_options_is() -> None:
    async with served(hello) as at:
        preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
        response = await at.client.options("/v1/x", headers={"x-customer-id": "", **preflight})
        assert (response.status_code, response.content) == (204, b"")
        assert await at.counted() == (0, 0)
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


async def test_identify_may_be_async() -> None:
    async def who(scope: Scope) -> str | None:
        return "zeta" if scope["path"] == "/v1/x" else None

    async with served(hello, who=who) as at:
        assert (await at.client.get("/v1/x")).status_code == 200
        assert (await at.client.get("/v1/y")).status_code == 401
        assert await at.counted("zeta") == (1, 0)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_identify_that_raises_is_a_503_and_does_not_say_why(
    *, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Scope) -> str:
        raise LookupError("the directory is away")

    async def fails_later(_: Scope) -> str:
        raise LookupError("the directory is away")

    async with served(hello, who=fails_later if asynchronous else fails) as at:
        response = await at.client.get("/v1/x")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert body(response)["type"] == f"{IANA}temporary-reduced-capacity"
    assert "directory" not in response.text
    assert "the directory is away" in caplog.text


async def test_without_the_store_the_route_says_pass_or_refuse(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.01)
    decisions: list[Decision] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        decisions.append(current().decision)
        await hello(scope, receive, send)

    kit = MeterKit(
        loads(PLANS), redis_url="redis://127.0.0.1:1", store_timeout=0.05, start_timeout=0.1, clock=Clock(NOW)
    )
    wrapped = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
    transport = httpx.ASGITransport(app=wrapped)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=HEADERS) as client:
        response = await client.get("/v1/x")
        assert (response.status_code, response.text) == (200, "hello")
        assert "ratelimit" not in response.headers
        strict = await client.get("/strict")
        assert (strict.status_code, strict.headers["retry-after"]) == (503, "1")
        assert body(strict)["type"] == f"{IANA}temporary-reduced-capacity"
    assert [decision.degraded for decision in decisions] == [True]
    assert "on_store_failure: allow" in caplog.text


async def test_what_is_remembered_of_limit_fields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.arguments._PROGRAMS_MAX", 2)
    async with served(hello) as at:
        paths = ("/attempt", "/errors", "/both", "/strict", "/v1/x")
        left = [(await at.client.get(path)).headers["ratelimit"] for path in paths]
        assert len(at.app._plans.limit_fields) <= 2  # type: ignore[attr-defined] # nothing else shows it
    assert [field.partition(";t=")[0] for field in left] == [
        f'"requests-period";r={n}' for n in (4, 3, 3, 2, 1)
    ]
