"""`meterkit.fastapi`: a feature required at the endpoint, and the refusals in the OpenAPI document."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import httpx
import jsonschema
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import WebSocketDenialResponse

from drivers.app import HEADERS, PLANS, Served, served
from drivers.delivery import NOW
from drivers.sampled import pairs
from meterkit import Decision, MeterKit, MeterkitError, MeterMiddleware, UnknownFeatureError, allows, identify
from meterkit.catalog import loads
from meterkit.fastapi import Current, requires, responses
from meterkit.testing import Clock
from servers.stores import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

    from starlette.requests import HTTPConnection
    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio

FULL = [Depends(requires("full"))]
ORIGIN = {"origin": "https://app.example"}
PROBLEM = "application/problem+json"
UNBILLED = (0, 0)


def an_app(**options: Any) -> FastAPI:
    """Two endpoints that need the feature `full`, and two that do not."""
    app = FastAPI(**options)

    @app.get("/v1/sync", dependencies=FULL)
    @app.get("/attempt", dependencies=FULL)
    @app.get("/errors", dependencies=FULL)
    @app.get("/shadow", dependencies=FULL)
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
        refused = await at.client.get(path, headers=asked)
        by_the_file = await at.client.get("/full", headers=asked)
        heads = [await at.client.head(where, headers=asked) for where in ("/v1/async", "/full")]
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


async def test_a_new_feature_serves_the_very_next_request(any_store_url: str) -> None:
    async with served(an_app(), redis_url=any_store_url) as at:
        found: list[int] = []
        for plan in ("free", "pro", "free"):
            await at.kit.customers.set_plan("acme", plan)
            found += [(await at.client.get(path)).status_code for path in ("/v1/sync", "/v1/async")]
        assert found == [403, 403, 200, 200, 403, 403]


@pytest.mark.parametrize("path", ["/v1/sync", "/attempt", "/errors"])
async def test_a_refused_caller_pays_nothing(any_store_url: str, path: str) -> None:
    async with served(an_app(), redis_url=any_store_url) as at:
        assert [(await at.client.get(path)).status_code for _ in range(7)] == [403] * 7
        assert await at.counted() == UNBILLED
        # The rate had let it in.
        await at.kit.customers.override("acme", {"requests": {"rate": "8/hour"}})
        assert [(await at.client.get(path)).status_code for _ in range(2)] == [403, 429]


async def test_the_suspended_are_told_to_pay(any_store_url: str) -> None:
    async with served(an_app(), redis_url=any_store_url) as at:
        await at.kit.customers.set_plan("acme", "pro")
        assert (await at.client.get("/billing/export")).status_code == 200
        await at.kit.customers.set_status("acme", "unpaid")
        refused = await at.client.get("/billing/export")
        assert told(refused)[::2] == told(await at.client.get("/v1/me"))[::2]
        assert (refused.status_code, refused.json()["reason"]) == (402, "suspended")


async def test_each_refusal_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served(an_app()) as at:
        instance = (await at.client.get("/v1/sync")).json()["instance"]
    lines = [record for record in caplog.records if record.name == "meterkit.refusals"]
    said = "refused: customer='acme' plan='free' reason='feature' route='/v1/{path:path}' status=403"
    assert [record.getMessage() for record in lines] == [f"{said} instance='{instance}'"]


async def test_in_shadow_it_is_only_said(caplog: pytest.LogCaptureFixture) -> None:
    async with served(an_app()) as at:
        assert (await at.client.get("/shadow")).json() == "served"
        assert await at.counted() == (1, 0)
        assert (await at.client.get("/v1/sync")).status_code == 403
    lines = [record.getMessage() for record in caplog.records if record.name == "meterkit.refusals"]
    said = "would be refused, but enforcement is shadow: customer='acme' plan='free' reason='feature'"
    assert lines[0] == f"{said} route='/shadow'"
    assert len(lines) == 2


@pytest.mark.parametrize("enforcement", ["shadow", "off"])
async def test_nobody_is_refused_where_limits_are_not_enforced(enforcement: str) -> None:
    async with served(an_app(), settings={"enforcement": enforcement}) as at:
        for customer in ("acme", ""):
            answer = await at.client.get("/v1/sync", headers={"x-customer-id": customer})
            assert answer.json() == "served"


async def test_while_the_store_is_away_the_line_decides_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    settings: dict[str, Any] = {"start_timeout": 0.01}
    async with served(an_app(), redis_url=f"redis://127.0.0.1:{free_port()}", settings=settings) as at:
        assert (await at.client.get("/v1/sync")).json() == "served"
        assert (await at.client.get("/full")).json() == "served"


OUTSIDE = r"^requires\(\) was called outside of a request that MeterMiddleware has decided: no route"


@pytest.mark.parametrize("path", ["/nowhere", "/healthz"])
async def test_where_no_line_decides_it_says_so(path: str) -> None:
    async with served(an_app()) as at:
        with pytest.raises(MeterkitError, match=OUTSIDE):
            await at.client.get(path)


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


async def test_without_the_middleware_it_says_so() -> None:
    transport = httpx.ASGITransport(app=an_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        with pytest.raises(MeterkitError, match=OUTSIDE):
            await client.get("/v1/sync")
        with pytest.raises(MeterkitError, match=r"^current\(\) was called outside"):
            await client.get("/v1/me")


async def test_an_app_asked_within_a_request_does_not_refuse_it() -> None:
    inner = httpx.AsyncClient(transport=httpx.ASGITransport(app=an_app()), base_url="http://inner")
    app = FastAPI()

    @app.get("/v1/x")
    async def ask() -> str:
        with pytest.raises(MeterkitError, match=OUTSIDE):
            await inner.get("/v1/sync")
        raise HTTPException(403, "of the app's own")

    async with inner, served(app) as at:
        assert (await at.client.get("/v1/x")).json() == {"detail": "of the app's own"}


async def test_a_feature_that_the_plans_file_does_not_have_is_an_error() -> None:
    app = FastAPI()

    @app.get("/v1/x", dependencies=[Depends(requires("ful"))])
    async def serve() -> str:
        raise AssertionError

    async with served(app) as at:
        with pytest.raises(UnknownFeatureError, match=r"found 'ful'; .* did you mean 'full'\?"):
            await at.client.get("/v1/x")


@pytest.mark.parametrize("query", ["", "?feature=basic"])
async def test_the_dependency_without_its_feature_lets_nobody_pass(query: str) -> None:
    """`Depends(requires)` would make of the feature a parameter that the client sends."""
    app = FastAPI()

    @app.get("/v1/x", dependencies=[Depends(requires)])
    async def serve() -> str:
        raise AssertionError

    async with served(app, raise_app_exceptions=False) as at:
        assert (await at.client.get(f"/v1/x{query}")).status_code == (500 if query else 422)


async def test_the_first_missing_requirement_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plans = PLANS.replace("[basic, full]", "[basic, full, more, most]", 1)
    router = APIRouter(dependencies=[Depends(requires("basic"))])
    swallowed: list[int] = []

    async def either(connection: Request) -> None:
        for feature in ("more", "most"):
            try:
                await requires(feature)(connection)
            except HTTPException as error:
                swallowed.append(error.status_code)
        raise HTTPException(403, "neither")

    @router.get("/v1/x", dependencies=[*FULL, Depends(requires("more"))])
    @router.get("/v1/y", dependencies=[Depends(requires("more")), *FULL])
    @router.get("/v1/z", dependencies=[Depends(either)])
    async def serve() -> str:
        raise AssertionError

    app = FastAPI()
    app.include_router(router)
    async with served(app, plans=plans) as at:
        await at.kit.customers.set_plan("acme", "pro")
        named = [(await at.client.get(f"/v1/{path}")).json()["feature"] for path in "xyz"]
    assert named == ["more", "more", "more"]
    assert swallowed == [403, 403]
    assert len([record for record in caplog.records if record.name == "meterkit.refusals"]) == len(named)


async def test_handlers_see_the_error_and_their_answer_gives_way() -> None:
    seen: list[tuple[int, str]] = []
    app = an_app()

    @app.exception_handler(HTTPException)
    async def in_our_words(request: Request, error: HTTPException) -> JSONResponse:
        del request
        seen.append((error.status_code, error.detail))
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers={"x-own": "1"})

    async with served(app) as at:
        assert told(await at.client.get("/v1/sync")) == told(await at.client.get("/full"))
    assert seen == [(403, "Feature Not In Plan")]


async def test_an_app_that_answers_something_else_is_left_to_it(any_store_url: str) -> None:
    app = an_app()

    @app.exception_handler(403)
    async def served_all_the_same(request: Request, error: HTTPException) -> JSONResponse:
        del request, error
        return JSONResponse("a lesser answer")

    async with served(app, redis_url=any_store_url) as at:
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


async def passing_on(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
    response = await call_next(request)
    response.headers["x-inner"] = "1"
    return response


@pytest.mark.parametrize("around", ["base", "gzip", "mounted", "copied", "outermost"])
async def test_it_works_wherever_the_middleware_stands(around: str, any_store_url: str) -> None:
    inner = app = an_app()
    path = "/v1/sync"
    if around == "base":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing_on)
    elif around == "gzip":
        app.add_middleware(GZipMiddleware, minimum_size=1)
    elif around == "mounted":
        app = FastAPI()
        app.mount("/v1/mounted", inner)
        path = "/v1/mounted/v1/sync"
    kit = MeterKit(loads(PLANS), redis_url=any_store_url, clock=Clock(NOW))
    wrapping: dict[str, Any] = {"kit": kit, "identify": identify.header("x-customer-id")}
    served_by: Any = app
    if around == "copied":

        async def copying(scope: Scope, receive: Receive, send: Send) -> None:
            await inner({**scope}, receive, send)

        served_by = MeterMiddleware(copying, **wrapping)
    elif around == "outermost":
        served_by = MeterMiddleware(app, **wrapping)
    else:
        app.add_middleware(MeterMiddleware, **wrapping)
    transport = httpx.ASGITransport(app=served_by)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=HEADERS) as client:
        refused = await client.get(path)
        assert told(refused) == told(await client.get("/full" if path == "/v1/sync" else path))
        assert refused.json()["feature"] == "full"
        await kit.customers.set_plan("acme", "pro")
        assert (await client.get(path)).json() == "served"


@contextmanager
def as_in_tests(app: FastAPI, plans: str = PLANS) -> Generator[TestClient]:
    """Starlette's client, which runs the app's lifespan in a thread of its own."""
    kit = MeterKit(loads(plans), redis_url="memory://")
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    with TestClient(app, headers=HEADERS) as client:
        yield client


def test_the_client_of_starlettes_tests_is_refused_alike() -> None:
    with as_in_tests(an_app()) as client:
        refused = client.get("/v1/sync")
        assert (refused.status_code, refused.json()["feature"]) == (403, "full")
        assert refused.headers["content-type"] == PROBLEM
        assert client.get("/v1/me").json() == ["acme", "free"]


def test_a_websocket_is_refused_before_it_opens() -> None:
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "WS /v1/{path:path}", consume: {requests: 1}}\n')
    app = an_app()

    @app.websocket("/v1/live")
    async def live(websocket: WebSocket, caller: Current, _: Annotated[None, FULL[0]]) -> None:
        await websocket.accept()
        await websocket.send_text(caller.plan)
        await websocket.close()

    with as_in_tests(app, plans) as client:
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/v1/live"):
            raise AssertionError
        assert told(refused.value) == told(client.get("/v1/sync"))
        app.dependency_overrides[requires("full")] = lambda: None
        with client.websocket_connect("/v1/live") as websocket:
            assert websocket.receive_text() == "free"


def test_a_test_may_override_it() -> None:
    app = an_app()
    app.dependency_overrides[requires("full")] = lambda: None
    with as_in_tests(app) as client:
        assert client.get("/v1/sync").json() == "served"


def test_what_dependencies_opened_is_closed() -> None:
    done: list[str] = []

    async def opened() -> AsyncIterator[None]:
        try:
            yield
        except HTTPException as error:
            done.append(error.detail)
            raise
        finally:
            done.append("closed")

    app = FastAPI()

    @app.get("/v1/x", dependencies=[Depends(opened), *FULL])
    async def serve(after: BackgroundTasks) -> None:
        after.add_task(done.append, "after")

    with as_in_tests(app) as client:
        assert client.get("/v1/x").status_code == 403
    assert done == ["Feature Not In Plan", "closed"]


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


def test_the_dependency_is_no_parameter_of_the_endpoint() -> None:
    operation = an_app().openapi()["paths"]["/v1/sync"]["get"]
    assert "parameters" not in operation
    assert list(operation["responses"]) == ["200"]


DOCUMENTED = an_app(responses=responses).openapi()


def schema_of(status: int, path: str = "/v1/sync") -> dict[str, Any]:
    """What the OpenAPI document says of the body of an answer."""
    answer = DOCUMENTED["paths"][path]["get"]["responses"][str(status)]
    assert list(answer["content"]) == [PROBLEM]
    schema: dict[str, Any] = answer["content"][PROBLEM]["schema"]
    return schema


def check_document(document: dict[str, Any]) -> None:
    """See that a problem document is as the OpenAPI document says, and has no member that this leaves out."""
    schema = schema_of(document["status"])
    Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, Draft202012Validator)
    for kind in schema.get("oneOf", [schema]):
        if kind["properties"]["type"]["const"] == document["type"]:
            assert document.keys() - kind["properties"].keys() == set()


def test_the_document_has_every_status_that_refused_clients_get() -> None:
    assert sorted(responses) == [400, 401, 402, 403, 409, 413, 429, 503]
    found = {int(status) for status in DOCUMENTED["paths"]["/v1/sync"]["get"]["responses"]}
    assert found == {200, *responses}
    assert json.loads(json.dumps(DOCUMENTED)) == DOCUMENTED


async def spent(at: Served) -> None:
    await at.kit.consume("acme", "requests", 5)


async def suspended(at: Served) -> None:
    await at.kit.customers.set_status("acme", "unpaid")


async def nothing(_: Served) -> None:
    """No steps."""


@pytest.mark.parametrize(
    ("steps", "customer", "status"),
    [
        (nothing, "acme", 403),
        (nothing, "", 401),
        (nothing, "a" * 257, 400),
        (spent, "acme", 429),
        (suspended, "acme", 402),
    ],
)
async def test_what_clients_meet_is_as_the_document_says(
    steps: Callable[[Served], Awaitable[None]], customer: str, status: int
) -> None:
    async with served(an_app()) as at:
        await steps(at)
        answer = await at.client.get("/v1/sync", headers={"x-customer-id": customer})
    assert answer.status_code == status
    check_document(answer.json())


def test_what_is_not_such_a_document_is_noticed() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_document({"status": 403, "type": "urn:meterkit:problem:feature-not-in-plan"})


def test_a_route_may_say_only_what_concerns_it() -> None:
    app = FastAPI()

    @app.get("/v1/x", responses={403: responses[403], 404: {"description": "No such thing"}})
    async def serve() -> None: ...

    found = app.openapi()["paths"]["/v1/x"]["get"]["responses"]
    assert sorted(found) == ["200", "403", "404"]
    assert found["403"]["description"] == "Feature Not In Plan or Seats Limit Exceeded"


def test_without_fastapi_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "import meterkit\n"
        "from meterkit import MeterKit, MeterMiddleware, allows\n"
        "try:\n    import meterkit.fastapi\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "meterkit.fastapi needs FastAPI: pip install 'meterkit[fastapi]'"


async def test_it_may_be_called_with_the_request_of_a_starlette_app() -> None:
    """A dependency is a function: what has a scope may be given to it."""
    seen: list[HTTPConnection] = []
    app = FastAPI()

    async def serve(request: Request) -> JSONResponse:
        seen.append(request)
        await requires("full")(request)
        raise AssertionError

    app.add_route("/v1/x", serve)
    async with served(app) as at:
        assert (await at.client.get("/v1/x")).json()["feature"] == "full"
    assert len(seen) == 1
