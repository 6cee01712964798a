"""Sentences of the first pages, tried in configurations that the pages do not show."""

from __future__ import annotations

import json
import re
from asyncio import gather
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

import meterkit
from drivers.app import hello, served
from drivers.command_line import Shell
from drivers.plans import completed as completed_plans
from meterkit.catalog import loads
from meterkit.fastapi import requires
from servers.model_providers import OPENAI_KEY, USAGE, FakeProviders
from test_readme import NAMES, RECIPES, ROOT, blocks, completed

ADA: Final = {"x-customer-id": "ada"}


def recipe(having: str) -> str:
    """The plans file of the recipes page, with the one recipe that contains a text."""
    (part,) = (text for text in blocks(RECIPES, "yaml")[1:] if having in text)
    return completed(part, RECIPES)


def answer_of(model: str, tokens: int = 10_000) -> dict[str, Any]:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return {"object": "chat.completion", "model": model, "choices": [], "usage": usage}


def test_each_model_pattern_that_is_shown_matches_dated_names() -> None:
    found = {
        (name, pattern)
        for name in NAMES
        for text in blocks(ROOT / name, "yaml")
        for line in text.splitlines()
        if "models:" in line or "where:" in line
        for pattern in re.findall(r'"([^"]*[*][^"]*)"', line)
    }
    assert len(found) > 5
    # A provider answers `gpt-4o-mini` with `gpt-4o-mini-2024-07-18`, which `gpt-*-mini` does not match.
    assert [(name, pattern) for name, pattern in found if not pattern.endswith("*")] == []


@pytest.mark.anyio
async def test_model_prices_charge_a_dated_name_as_its_model() -> None:
    async with served(hello, plans=recipe("prices.output")) as app:
        await app.kit.record("ada", "output_tokens", 100_000)  # What the plan includes.
        await app.kit.grants.add("ada", {"ai": 100}, grant_id="payment")
        for left, model in ((90, "gpt-4o-mini"), (80, "gpt-4o-mini-2024-07-18"), (40, "gpt-4o-2024-08-06")):
            await app.kit.record_usage("ada", answer_of(model))
            assert (await app.kit.usage("ada"))["balance"] == {"ai": left}


@pytest.mark.anyio
async def test_the_large_model_recipe_refuses_one_or_no_model() -> None:
    async def call_model(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record_usage(answer_of("our-large-2"))
        await hello(scope, receive, send)

    async with served(call_model, plans=recipe("large_output")) as app:
        for method, body, status in (
            ("POST", {"model": "our-large-2"}, 200),
            ("POST", {"model": "our-large-2"}, 429),
            ("POST", {"text": "hi"}, 429),
            ("GET", None, 429),
            ("POST", {"model": "our-small"}, 200),
        ):
            assert (await app.client.request(method, "/v1/ask", json=body)).status_code == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    "asked", [{}, {"n": 3}, {"n": 50}, {"max_tokens": None}, {"n": None}, {"max_tokens": 70}]
)
async def test_answers_stay_in_the_quota_if_the_model_gets_the_hold(asked: dict[str, Any]) -> None:
    (shown,) = (text for text in blocks(ROOT / "docs/llm.md", "python") if "def limit_output" in text)
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(shown, "llm.md", "exec", dont_inherit=True), names)  # noqa: S102 - It is our own documentation.
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> dict[str, Any]:
        body = names["limit_output"](await request.json())
        return answer_of("m", body["max_tokens"] * (body.get("n") or 1))

    async with served(app, plans=recipe("reserve: {output_tokens")) as at:
        await at.kit.record("acme", "output_tokens", 98_500)
        responses = await gather(*(at.client.post("/v1/chat/completions", json=asked) for _ in range(3)))
        answers = [response.json() for response in responses if response.is_success]
        used = sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert (await at.counted(meter="output_tokens")) == (98_500 + used, 0)
        assert used <= 1_500


@pytest.mark.anyio
async def test_refusals_count_in_rates_only_while_the_app_runs() -> None:
    app = FastAPI()

    @app.get("/report", dependencies=[Depends(requires("export"))])
    async def report() -> None: ...

    @app.put("/files/a")
    async def store(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(3):
            yield b"1234"

    plans = """
        schema: 1
        currency: usd
        default_plan: free
        meters: {requests: {unit: request}, storage: {unit: byte, kind: gauge}}
        features: [export]
        routes:
          - {match: "GET /export", feature: export, consume: {requests: 1}}
          - {match: "PUT /files/{key:path}", storage: content-length, consume: {requests: 1}}
          - {match: "*", consume: {requests: 1}}
        plans:
          free:
            price: {amount_cents: 0, interval: month}
            meters: {requests: {rate: 100/hour, included: 100}, storage: {included: 10}}
    """
    async with served(app, plans=plans) as at:
        for method, path, content, status, counted in (
            ("GET", "/export", None, 403, 0),
            ("PUT", "/files/a", b"x" * 11, 413, 0),
            ("GET", "/report", None, 403, 1),
            ("PUT", "/files/a", pieces(), 413, 2),
        ):
            assert (await at.client.request(method, path, content=content)).status_code == status
            (rate,) = await at.kit.rates("acme")
            assert (rate["used"], await at.counted()) == (counted, (0, 0)), path


@pytest.mark.anyio
async def test_an_override_replaces_included_and_a_grant_adds() -> None:
    async with served(hello, plans=blocks(RECIPES, "yaml")[0]) as at:
        await at.kit.customers.override("ada", {"requests": {"included": 5_000}})
        await at.kit.grants.add("ada", {"requests": 4_000}, grant_id="two weeks")
        await at.kit.customers.set_plan("ada", "pro")
        assert (await at.kit.usage("ada"))["meters"]["requests"]["included"] == 5_000
        await at.kit.customers.override("ada", {"requests": {}})
        requests = (await at.kit.usage("ada"))["meters"]["requests"]
        assert (requests["included"], requests["granted"]) == (100_000, 4_000)


@pytest.mark.anyio
async def test_overage_is_due_in_shadow_too() -> None:
    plans = "enforcement: shadow\n" + blocks(RECIPES, "yaml")[0]
    async with served(hello, plans=plans) as at:
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.record("acme", "requests", 100_000)
        assert (await at.client.get("/v1/ask")).status_code == 200
        requests = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (requests["overage"], requests["unlinked"]) == (1, 1)


def shown_app(page: str) -> dict[str, Any]:
    """Write the plans file of a page, and make its app: the names of the module."""
    (plans,) = (text for text in blocks(ROOT / page, "yaml") if text.startswith("schema: 1"))
    (app,) = (text for text in blocks(ROOT / page, "python") if "add_middleware" in text)
    Path("plans.yaml").write_text(plans)
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(app, page, "exec", dont_inherit=True), names)  # noqa: S102 - It is our own documentation.
    return names


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("page", "elsewhere"), [("README.md", 404), ("docs/quickstart.md", 401), ("docs/frameworks.md", 401)]
)
async def test_anyone_can_open_the_docs_of_the_shown_apps(
    page: str, elsewhere: int, tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-233: `match: "*"` answered 401 to FastAPI's own pages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERKIT_REDIS_URL", store_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    names = shown_app(page)
    transport = httpx.ASGITransport(app=names["app"])
    async with names["kit"], httpx.AsyncClient(transport=transport, base_url="http://app") as anyone:
        for path, status in (
            ("/docs", 200),
            ("/redoc", 200),
            ("/openapi.json", 200),
            ("/elsewhere", elsewhere),
        ):
            assert (path, (await anyone.get(path)).status_code) == (path, status)


@pytest.mark.anyio
async def test_the_request_after_the_last_included_word_is_refused(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERKIT_REDIS_URL", store_url)
    names = shown_app("docs/quickstart.md")
    transport = httpx.ASGITransport(app=names["app"])
    async with (
        names["kit"],
        httpx.AsyncClient(transport=transport, base_url="http://app", headers=ADA) as ada,
    ):
        for words in (9_999, 1):
            answer = await ada.post("/translate", params={"text": " ".join("a" * words)})
            assert answer.status_code == 200
        refused = await ada.post("/translate", params={"text": "hello"})
        assert refused.status_code == 429
        assert refused.json()["violated-policies"] == ["words-period"]


@pytest.mark.anyio
async def test_the_shown_app_refuses_before_it_calls_the_model(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERKIT_REDIS_URL", store_url)
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    with FakeProviders().running() as providers:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{providers.openai}/v1")
        names = shown_app("README.md")
        transport = httpx.ASGITransport(app=names["app"])
        async with (
            names["kit"] as kit,
            httpx.AsyncClient(transport=transport, base_url="http://app", headers=ADA) as ada,
        ):
            for _ in range(10_000 // USAGE["response"]["total_tokens"]):
                answer = await ada.post("/ask", params={"question": "Who?"}, json=["To be", "or not"])
                assert answer.status_code == 200
            meters = (await kit.usage("ada"))["meters"]
            refused = await ada.post("/ask", params={"question": "Who?"}, json=["To be"])
    assert [meters[name]["recorded"] for name in ("requests", "total_tokens", "pages")] == [4, 10_000, 8]
    assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["total_tokens-period"])
    assert [body["input"] for body in providers.bodies] == ["Who?\nTo be\nor not"] * 4


def test_check_names_the_records_that_a_plans_file_lacks(tmp_path: Path) -> None:
    (plans,) = (text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("schema: 1"))
    (tmp_path / "plans.yaml").write_text(plans.replace(", records: [pages]", ""))
    done = Shell(tmp_path).run("check")
    assert done.code == 0
    assert "note: plans.yaml:13:76 plans.free.meters.pages: no route asks for pages" in done.out
    assert "write `records: [pages]` on the routes" in done.out


def test_the_graphql_recipe_gates_all_methods_and_its_websocket() -> None:
    """F-315: a route with a method left GET and subscriptions open."""
    (shown,) = (text for text in blocks(RECIPES, "python") if "resolve_report" in text)
    names: dict[str, Any] = {"record": meterkit.record}
    exec(compile(shown, "recipes.md", "exec", dont_inherit=True), names)  # noqa: S102 - It is our own documentation.

    async def answer(request: Request) -> PlainTextResponse:
        for query in [request.query_params.get("query"), *await operations_of(request)]:
            for _ in range((query or "").count("report")):
                await names["resolve_report"](None, None)
        return PlainTextResponse("{}")

    async def operations_of(request: Request) -> list[str]:
        sent = await request.body()
        return [one["query"] for one in json.loads(sent)] if sent else []

    async def subscribe(websocket: WebSocket) -> None:
        await websocket.accept()
        await names["resolve_report"](None, None)
        await websocket.close()

    app = Starlette(
        routes=[
            Route("/graphql", answer, methods=["GET", "POST", "PUT"]),
            WebSocketRoute("/graphql", subscribe),
        ]
    )
    kit = meterkit.MeterKit(loads(recipe("operations")), redis_url="memory://", flush=False)
    app.add_middleware(meterkit.MeterMiddleware, kit=kit, identify=meterkit.identify.header("x-customer-id"))
    assert [note for note in kit.catalog.notes if "operations" in str(note)] == []
    with TestClient(app, headers=ADA) as client:
        for method in ("GET", "HEAD", "POST", "PUT"):
            assert client.request(method, "/graphql?query={report}").status_code == 403
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/graphql"):
            pass
        assert client.portal is not None
        client.portal.call(kit.customers.set_plan, "ada", "pro")
        assert client.get("/graphql?query={report}").status_code == 200
        batch = [{"query": "{report}"}, {"query": "{a: report, b: report}"}]
        assert client.post("/graphql", json=batch).status_code == 200
        with client.websocket_connect("/graphql") as socket, pytest.raises(WebSocketDisconnect):
            socket.receive_text()
        client.portal.call(kit.record, "ada", "operations", 9_950)
        used = client.portal.call(kit.usage, "ada")["meters"]["operations"]["recorded"]
        assert (used, client.get("/graphql").status_code) == (10_000, 429)


@pytest.mark.parametrize(("is_outside", "status"), [(True, 403), (False, 200)])
def test_a_method_override_that_is_added_last_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_outside: bool, status: int
) -> None:
    """F-314: inside of meterkit it runs what was not decided."""
    (shown,) = (text for text in blocks(ROOT / "docs/deployment.md", "python") if "MethodOverride" in text)
    routes = '[{match: "POST /reports", consume: {requests: 1}}, {match: "DELETE /reports", feature: full}]'
    (tmp_path / "plans.yaml").write_text(
        completed_plans(f"meters: {{requests: {{unit: request}}}}\nfeatures: [full]\nroutes: {routes}\n")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERKIT_REDIS_URL", "memory://")
    monkeypatch.setenv("METERKIT_FLUSH", "off")
    names: dict[str, Any] = {}
    exec(compile(shown, "deployment.md", "exec", dont_inherit=True), names)  # noqa: S102 - It is our own documentation.
    app: Starlette = names["app"]

    async def run_method(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.method)

    app.routes.append(Route("/reports", run_method, methods=["POST", "DELETE"]))
    if not is_outside:
        app.user_middleware.reverse()
    with TestClient(app, headers=ADA) as client:
        response = client.post("/reports", headers={"x-http-method-override": "delete"})
        assert response.status_code == status
        assert client.post("/reports").text == "POST"
    assert is_outside or response.text == "DELETE"
