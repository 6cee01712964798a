"""Features of plans: `requires` and the OpenAPI document of `meterkit.fastapi`, `kit.allows` and `allows`."""

from __future__ import annotations

import asyncio
import logging
import re
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import jsonschema
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.routing import Route
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Scope

from drivers.app import HEADERS, PLANS, served
from drivers.sampled import pairs
from faults.proxy import TcpProxy
from faults.refusals import evalsha_calls
from meterkit import (
    Decision,
    MeterKit,
    MeterkitError,
    MeterMiddleware,
    StoreError,
    UnknownFeatureError,
    allows,
    identify,
)
from meterkit.catalog import loads
from meterkit.fastapi import Current, requires, responses
from servers.stores import Server, free_port

pytestmark = pytest.mark.anyio

FULL = [Depends(requires("full"))]


class Feature(str, Enum):  # noqa: UP042 - a StrEnum is formatted by its value
    """Features of an app that writes each once."""

    FULL = "full"


def an_app(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    async def serve() -> str:
        return "served"

    @app.get("/v1/sync", dependencies=[Depends(requires(Feature.FULL))])
    def sync() -> str:
        return "served"

    for method in ("GET", "HEAD"):
        for path in ("/v1/async", "/attempt", "/billing/export", "/both", "/quiet"):
            app.add_api_route(path, serve, methods=[method], dependencies=FULL)
        app.add_api_route("/full", serve, methods=[method])
    return app


def told(response: Any) -> tuple[int, list[tuple[bytes, bytes]], dict[str, Any]]:
    """A response, of whichever client, without what names its occurrence."""
    body: dict[str, Any] = response.json() if response.content else {}
    body.pop("instance", None)
    return response.status_code, sorted(response.headers.raw), body


@pytest.mark.parametrize(
    ("cors", "origin", "path"),
    pairs(
        [(), ("https://app.example",), ("*",)],
        ["", "https://app.example", "https://other.example"],
        ["/v1/sync", "/v1/async"],
    ),
)
async def test_requires_refuses_as_the_plans_file_does(path: str, origin: str, cors: tuple[str, ...]) -> None:
    asked = {"origin": origin} if origin else {}
    async with served(an_app(), cors=cors) as at:
        assert await at.statuses("/attempt") == [403]
        refused = await at.client.get(path, headers=asked)
        by_the_file = await at.client.get("/full", headers=asked)
        heads = [await at.client.head(where, headers=asked) for where in ("/v1/async", "/full")]
        assert await at.counted() == (0, 0)
        await at.kit.customers.set_plan("acme", "pro")
        assert (await at.client.get(path)).json() == "served"
    assert told(refused) == told(by_the_file)
    assert told(heads[0]) == told(heads[1])
    assert (heads[0].status_code, heads[0].content) == (403, b"")
    document = refused.json()
    UUID(document.pop("instance").removeprefix("urn:uuid:"))
    assert document == {
        "type": "urn:meterkit:problem:feature-not-in-plan",
        "title": "Feature Not In Plan",
        "status": 403,
        "detail": "The plan 'free' does not include the feature 'full'. It is available in 'pro'.",
        "feature": "full",
        "plan": "free",
        "available_in": ["pro"],
    }
    assert (refused.headers["cache-control"], refused.headers["x-should-retry"]) == ("no-store", "false")


@pytest.mark.parametrize("path", ["/both", "/quiet"])
async def test_the_fields_are_those_of_the_line(path: str) -> None:
    plans = PLANS.replace(f'"{path}", consume', f'"{path}", feature: full, consume')
    async with served(an_app()) as at, served(an_app(), plans=plans) as by_the_file:
        assert told(await at.client.get(path)) == told(await by_the_file.client.get(path))


@pytest.mark.parametrize("enforcement", ["shadow", "off"])
async def test_unenforced_limits_refuse_nobody(enforcement: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(an_app(), settings={"enforcement": enforcement}) as at:
        for customer in ("acme", ""):
            assert (await at.client.get("/v1/sync", headers={"x-customer-id": customer})).json() == "served"
    said = "would be refused, but enforcement is shadow: customer='acme' plan='free' reason='feature'"
    assert (f"{said} route='/v1/{{path:path}}'" in caplog.messages) == (enforcement == "shadow")


async def test_the_suspended_are_told_to_pay() -> None:
    async with served(an_app()) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.customers.set_status("acme", "unpaid")
        refused = await at.client.get("/billing/export")
        assert (refused.status_code, refused.json()["reason"]) == (402, "suspended")


async def test_a_requirement_of_the_whole_app_passes_exempt_lines() -> None:
    """F-20h: a health check of an app that requires a feature everywhere was answered 500."""
    app = FastAPI(dependencies=FULL)

    @app.get("/healthz")
    @app.get("/v1/plain")
    @app.get("/nowhere")
    async def plain() -> str:
        return "served"

    outside = r"^requires\(\) was called outside of a request that MeterMiddleware has decided: no route"
    async with served(app) as at:
        assert ((await at.client.get("/healthz")).json(), await at.statuses("/v1/plain")) == ("served", [403])
        with pytest.raises(MeterkitError, match=outside):
            await at.client.get("/nowhere")


async def test_a_feature_that_the_plans_file_does_not_have_is_an_error() -> None:
    app = FastAPI()
    app.add_api_route("/v1/x", lambda: "served", dependencies=[Depends(requires("ful"))])
    async with served(app) as at:
        with pytest.raises(UnknownFeatureError, match=r"found 'ful'; .* did you mean 'full'\?"):
            await at.client.get("/v1/x")


async def test_an_app_that_answers_something_else_is_left_to_it() -> None:
    app = an_app()

    @app.exception_handler(403)
    async def served_all_the_same(_request: Request, _error: HTTPException) -> JSONResponse:
        return JSONResponse("a lesser answer")

    async with served(app) as at:
        answer = await at.client.get("/v1/sync")
        assert (answer.status_code, answer.json()) == (200, "a lesser answer")
        assert "ratelimit" in answer.headers
        assert await at.counted() == (1, 0)


async def test_on_denied_is_asked_as_for_any_refusal() -> None:
    seen: list[Decision] = []

    def on_denied(scope: Scope, decision: Decision) -> JSONResponse | None:
        seen.append(decision)
        return None if scope["path"] == "/v1/async" else JSONResponse({"buy": "pro"}, status_code=402)

    async with served(an_app(), on_denied=on_denied) as at:
        refused = await at.client.get("/v1/sync")
        assert (refused.status_code, refused.json()) == (402, {"buy": "pro"})
        assert (refused.headers["cache-control"], refused.headers["x-should-retry"]) == ("no-store", "false")
        assert (await at.client.get("/v1/async")).json()["feature"] == "full"
    assert seen == [Decision(allowed=False, reason="feature", customer="acme", plan="free")] * 2


def test_a_websocket_is_refused_before_it_opens() -> None:
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "WS /v1/{path:path}", consume: {requests: 1}}\n')
    app, kit = an_app(), MeterKit(loads(plans), redis_url="memory://")
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))

    @app.websocket("/v1/live")
    async def live(websocket: WebSocket, caller: Current, _: Annotated[None, FULL[0]]) -> None:
        await websocket.accept()
        await websocket.send_text(caller.plan)
        await websocket.close()

    with TestClient(app, headers=HEADERS) as client:
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/v1/live"):
            raise AssertionError
        assert told(refused.value) == told(client.get("/v1/sync"))
        app.dependency_overrides[requires("full")] = lambda: None
        with client.websocket_connect("/v1/live") as websocket:
            assert websocket.receive_text() == "free"


async def test_the_caller_is_an_argument_of_endpoints() -> None:
    app = FastAPI()
    seen: list[tuple[str, bool]] = []

    @app.get("/v1/sync")
    def sync(caller: Current, after: BackgroundTasks) -> list[Any]:
        after.add_task(lambda: seen.append((caller.customer, allows("full"))))
        return [caller.customer, caller.plan, caller.decision.allowed, allows("basic")]

    async with served(app) as at:
        assert (await at.client.get("/v1/sync")).json() == ["acme", "free", True, True]
    assert (seen, app.openapi()["paths"]["/v1/sync"]["get"].get("parameters", [])) == ([("acme", False)], [])


DOCUMENTED = an_app(responses=responses).openapi()


async def test_what_clients_meet_is_as_the_document_says() -> None:
    assert sorted(responses) == [400, 401, 402, 403, 409, 413, 429, 503]
    documented = DOCUMENTED["paths"]["/v1/sync"]["get"]["responses"]
    async with served(an_app()) as at:
        for customer, status in (("acme", 403), ("", 401), ("a" * 257, 400), ("acme", 429), ("acme", 402)):
            if status == 429:
                await at.kit.consume("acme", "requests", 5)
            if status == 402:
                await at.kit.customers.set_status("acme", "unpaid")
            answer = await at.client.get("/v1/sync", headers={"x-customer-id": customer})
            assert answer.status_code == status
            document = answer.json()
            schema = documented[str(status)]["content"]["application/problem+json"]["schema"]
            Draft202012Validator.check_schema(schema)
            jsonschema.validate(document, schema, Draft202012Validator)
            for kind in schema.get("oneOf", [schema]):
                if kind["properties"]["type"]["const"] == document["type"]:
                    assert document.keys() - kind["properties"].keys() == set()


NO_FEATURES = re.sub(r"^ *features: .*\n", "", PLANS, flags=re.MULTILINE).replace("feature: full, ", "")


# Whether a customer has a feature: `kit.allows`, and `meterkit.allows` in a request.


async def tell(request: Request) -> JSONResponse:
    there = await asyncio.to_thread(allows, "full")
    after = BackgroundTask(lambda: request.app.state.later.append(allows("full")))
    return JSONResponse([allows("basic"), allows("full"), there], background=after)


def tell_in_a_thread(_: Request) -> JSONResponse:
    return JSONResponse([allows("basic"), allows("full"), allows("full")])


TOLD = {"GET": tell, "POST": tell_in_a_thread}
APP = Starlette(routes=[Route("/{path:path}", app, methods=[method]) for method, app in TOLD.items()])
APP.state.later = []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_knows_the_features_of_its_plan(method: str) -> None:
    APP.state.later = later = list[bool]()
    async with served(APP) as at:
        assert (await at.client.request(method, "/v1/x")).json() == [True, False, False]
        await at.kit.customers.set_plan("acme", "pro")
        assert (await at.client.request(method, "/v1/x")).json() == [True, True, True]
    assert later == ([False, True] if method == "GET" else [])


async def test_allows_within_a_request_asks_no_store(valkey: Server, store_url: str) -> None:
    async with served(APP, redis_url=store_url) as at:
        await at.client.get("/quiet")
        before = evalsha_calls(valkey)
        await at.client.get("/quiet")
        assert evalsha_calls(valkey) - before == 2  # Decided, and settled.
        await at.kit.allows("acme", "full")
        assert evalsha_calls(valkey) - before == 3


async def test_a_change_binds_the_next_question_in_every_process(store_url: str) -> None:
    async with (
        MeterKit(loads(PLANS), redis_url=store_url) as one,
        MeterKit(loads(PLANS), redis_url=store_url) as other,
    ):
        for plan in ("pro", "free", "pro"):
            await one.customers.set_plan("acme", plan)
            assert await other.allows("acme", "full") == (plan == "pro")
            assert not await other.allows("zoe", "full")
            assert await other.allows("zoe", "basic")
        await one.customers.set_status("acme", "unpaid")
        assert not await other.allows("acme", "full")


@pytest.mark.parametrize(
    ("enforcement", "plans", "name", "message"),
    [
        ("on", PLANS, "ful", "found 'ful'; allowed are the features basic, full; did you mean 'full'?"),
        ("shadow", PLANS, "zzz", "found 'zzz'; allowed are the features basic, full"),
        ("off", PLANS, "", "found ''; allowed are the features basic, full"),
        ("on", NO_FEATURES, "full", "found 'full'; the plans file has no features"),
    ],
)
async def test_unknown_features_suggest_another(
    enforcement: str, plans: str, name: str, message: str
) -> None:
    async def ask(_: Request) -> JSONResponse:
        return JSONResponse(allows(name))

    app = Starlette(routes=[Route("/v1/x", ask)])
    async with served(app, plans=plans, settings={"enforcement": enforcement}) as at:
        for asking in (at.kit.allows("acme", name), at.client.get("/v1/x")):
            with pytest.raises(UnknownFeatureError) as caught:
                await asking
            assert (str(caught.value), caught.value.feature) == (f"feature: {message}", name)
            assert isinstance(caught.value, MeterkitError)
            assert isinstance(caught.value, ValueError)


def test_allows_outside_of_a_request_says_so() -> None:
    with pytest.raises(MeterkitError, match=r"^allows\(\) was called outside of a request that MeterMiddlew"):
        allows("full")


async def test_in_shadow_a_customer_has_every_feature() -> None:
    async with served(APP, settings={"enforcement": "shadow"}) as at:
        assert (await at.client.get("/v1/x")).json() == [True, True, True]
        assert await at.kit.allows("acme", "full")


async def test_off_asks_no_store() -> None:
    settings: dict[str, Any] = {"enforcement": "off", "store_timeout": 10}
    async with served(APP, redis_url=f"redis://127.0.0.1:{free_port()}", settings=settings) as at:
        assert await at.kit.allows("acme", "full")


async def test_outages_raise_and_let_requests_pass(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    settings = {"store_timeout": 5}
    async with TcpProxy(valkey.port) as proxy, served(APP, redis_url=proxy.url, settings=settings) as at:
        assert (await at.client.get("/v1/x")).json() == [True, False, False]
        await proxy.set("refuse")
        with pytest.raises(StoreError):
            await at.kit.allows("acme", "full")
        assert (await at.client.get("/full")).status_code == 403  # By what is known.
        # What a new customer's plan lacks is not known of this one.
        unknown = await at.client.get("/full", headers={"x-customer-id": "other"})
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1")
