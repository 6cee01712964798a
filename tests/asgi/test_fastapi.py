"""`meterkit.fastapi`: a feature required at the endpoint, and the refusals in the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import jsonschema
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from starlette.testclient import WebSocketDenialResponse

from drivers.app import HEADERS, PLANS, served
from drivers.sampled import pairs
from meterkit import Decision, MeterKit, MeterkitError, MeterMiddleware, UnknownFeatureError, allows, identify
from meterkit.catalog import loads
from meterkit.fastapi import Current, requires, responses

if TYPE_CHECKING:
    from starlette.types import Scope

pytestmark = pytest.mark.anyio

FULL = [Depends(requires("full"))]
ORIGIN = {"origin": "https://app.example"}
PROBLEM = "application/problem+json"


def an_app(**options: Any) -> FastAPI:
    """Two endpoints that need the feature `full`, and two that do not."""
    app = FastAPI(**options)

    @app.get("/v1/sync", dependencies=FULL)
    @app.get("/attempt", dependencies=FULL)
    @app.get("/billing/export", dependencies=FULL)
    @app.get("/nowhere", dependencies=FULL)
    @app.get("/healthz", dependencies=FULL)
    def sync() -> str:
        return "served"

    @app.get("/v1/async", dependencies=FULL)
    @app.head("/v1/async", dependencies=FULL)
    @app.get("/both", dependencies=FULL)
    @app.get("/quiet", dependencies=FULL)
    async def asynchronous() -> str:
        return "served"

    @app.get("/full")
    @app.head("/full")
    async def by_the_plans_file() -> str:
        return "served"

    @app.get("/v1/me")
    async def me(caller: Current) -> list[str]:
        return [caller.customer, caller.plan]

    return app


def told(response: Any) -> tuple[int, list[tuple[bytes, bytes]], dict[str, Any]]:
    """A response, of whichever client, without what names its occurrence."""
    body: dict[str, Any] = response.json() if response.content else {}
    body.pop("instance", None)
    return response.status_code, sorted(response.headers.raw), body


@pytest.mark.parametrize(
    ("cors", "asked", "path"),
    pairs(
        [(), ("https://app.example",), ("*",)],
        [{}, ORIGIN, {"origin": "https://other.example"}],
        ["/v1/sync", "/v1/async"],
    ),
)
async def test_it_refuses_as_the_plans_file_does(
    path: str, asked: dict[str, str], cors: tuple[str, ...]
) -> None:
    async with served(an_app(), cors=cors) as at:
        assert (await at.client.get("/attempt")).status_code == 403
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
    assert refused.headers["cache-control"] == "no-store"
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/both", "/quiet"])
async def test_the_fields_are_those_of_the_line(path: str) -> None:
    plans = PLANS.replace(f'"{path}", consume', f'"{path}", feature: full, consume')
    async with served(an_app()) as at, served(an_app(), plans=plans) as by_the_file:
        assert told(await at.client.get(path)) == told(await by_the_file.client.get(path))


@pytest.mark.parametrize("enforcement", ["shadow", "off"])
async def test_nobody_is_refused_where_limits_are_not_enforced(
    enforcement: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(an_app(), settings={"enforcement": enforcement}) as at:
        for customer in ("acme", ""):
            answer = await at.client.get("/v1/sync", headers={"x-customer-id": customer})
            assert answer.json() == "served"
    lines = [record.getMessage() for record in caplog.records if record.name == "meterkit.refusals"]
    said = "would be refused, but enforcement is shadow: customer='acme' plan='free' reason='feature'"
    assert (f"{said} route='/v1/{{path:path}}'" in lines) == (enforcement == "shadow")


async def test_the_suspended_are_told_to_pay() -> None:
    async with served(an_app()) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.customers.set_status("acme", "unpaid")
        refused = await at.client.get("/billing/export")
        assert (refused.status_code, refused.json()["reason"]) == (402, "suspended")


OUTSIDE = r"^requires\(\) was called outside of a request that MeterMiddleware has decided: no route"


async def test_a_requirement_of_the_whole_app_passes_exempt_lines() -> None:
    """F-20h: a health check of an app that requires a feature everywhere was answered 500."""
    app = FastAPI(dependencies=FULL)

    @app.get("/healthz")
    @app.get("/v1/plain")
    @app.get("/nowhere")
    async def plain() -> str:
        return "served"

    async with served(app) as at:
        assert (await at.client.get("/healthz")).json() == "served"
        assert (await at.client.get("/v1/plain")).status_code == 403
        with pytest.raises(MeterkitError, match=OUTSIDE):
            await at.client.get("/nowhere")


async def test_a_feature_that_the_plans_file_does_not_have_is_an_error() -> None:
    app = FastAPI()

    @app.get("/v1/x", dependencies=[Depends(requires("ful"))])
    async def serve() -> str:
        raise AssertionError

    async with served(app) as at:
        with pytest.raises(UnknownFeatureError, match=r"found 'ful'; .* did you mean 'full'\?"):
            await at.client.get("/v1/x")


async def test_an_app_that_answers_something_else_is_left_to_it() -> None:
    app = an_app()

    @app.exception_handler(403)
    async def served_all_the_same(request: Request, error: HTTPException) -> JSONResponse:
        del request, error
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


def has_basic(caller: Current) -> bool:
    return allows("basic") and caller.decision.allowed


async def test_the_caller_is_an_argument_of_endpoints() -> None:
    app = FastAPI()
    seen: list[tuple[str, bool]] = []

    @app.get("/v1/sync")
    def sync(
        caller: Current, basic: Annotated[bool, Depends(has_basic)], after: BackgroundTasks
    ) -> list[Any]:
        after.add_task(lambda: seen.append((caller.customer, allows("full"))))
        return [caller.customer, caller.plan, caller.decision.reason, basic]

    async with served(app) as at:
        assert (await at.client.get("/v1/sync")).json() == ["acme", "free", None, True]
    assert seen == [("acme", False)]
    assert app.openapi()["paths"]["/v1/sync"]["get"].get("parameters", []) == []


DOCUMENTED = an_app(responses=responses).openapi()


def check_document(document: dict[str, Any]) -> None:
    """See that a problem document is as the OpenAPI document says, and has no member that this leaves out."""
    answer = DOCUMENTED["paths"]["/v1/sync"]["get"]["responses"][str(document["status"])]
    schema = answer["content"][PROBLEM]["schema"]
    Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, Draft202012Validator)
    for kind in schema.get("oneOf", [schema]):
        if kind["properties"]["type"]["const"] == document["type"]:
            assert document.keys() - kind["properties"].keys() == set()


async def test_what_clients_meet_is_as_the_document_says() -> None:
    assert sorted(responses) == [400, 401, 402, 403, 409, 413, 429, 503]
    async with served(an_app()) as at:
        for customer, status in (("acme", 403), ("", 401), ("a" * 257, 400), ("acme", 429), ("acme", 402)):
            if status == 429:
                await at.kit.consume("acme", "requests", 5)
            if status == 402:
                await at.kit.customers.set_status("acme", "unpaid")
            answer = await at.client.get("/v1/sync", headers={"x-customer-id": customer})
            assert answer.status_code == status
            check_document(answer.json())
