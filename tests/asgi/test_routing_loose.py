"""Routers that read a path in more than one way: what a request falls under then. F-130."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from asgi.test_routing import http, line
from drivers.app import hello, http_scope, no_more, served
from meterkit.asgi.loose_paths import EXACT, LOOSE, Reading, reading_of
from meterkit.asgi.routing import Router, is_preflight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Scope

GATE = "POST /v1/chat"
DJANGO = Reading(any_method=True, every_method=True)
PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
features: [full]
routes:
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


def target(written: str, method: str = "POST") -> Scope:
    """What uvicorn makes of a target."""
    return {**http(method, unquote(written)), "raw_path": written.encode()}


def lines(*matches: str, reading: Reading = LOOSE, exempt: Sequence[str] = (), root_path: str = "") -> Router:
    features = {GATE, "/v1/items/{id}", "/v1/items/{id}/secret"}
    routes = [
        replace(line(match, exempt=match in exempt), feature="full" if match in features else None)
        for match in matches
    ]
    return Router(routes, reading=reading, root_path=root_path)


def found(router: Router, written: str, method: str = "POST") -> str | None:
    route = router.match_http(target(written, method))
    return None if route is None else route.match


@pytest.mark.parametrize(
    "written",
    [
        *("/v1/chat", "/v1/chat/", "//v1/chat", "/v1//chat", "/v1/chat//", "/V1/CHAT", "/v1/Chat/"),
        *("/v1%2Fchat", "/v1%2fchat", "%2Fv1/chat", "/v1/chat%2F", "/v1/%63hat", "v1/chat"),
        *("http://h/v1/chat", "HTTP://H//v1/chat/", "https://u:p@h:1/V1/chat", "ws://h/v1/chat"),
        *("/v1/chat#f", "/v1/chat/#f", "/v1/chat%23f", "http://h/v1/chat#f", "/v1/chat#/v1/free"),
    ],
)
def test_each_spelling_that_some_router_takes_falls_under_the_line(written: str) -> None:
    for others in ((), ("*",), ("/v1/{path:path}", "*")):
        assert found(lines(GATE, *others), written) == GATE
        assert found(lines(GATE, *others), written, "post") == GATE


def test_what_no_router_takes_for_the_path_is_left_alone() -> None:
    for written in ("/v1/chats", "/v1/cha", "/v2/v1/chat", "/v1/chat/x", "/v1/chat;p", "/v1/./chat", "/"):
        assert found(lines(GATE), written) is None


def test_an_exact_router_reads_exactly() -> None:
    assert found(lines(GATE, reading=EXACT), "/v1/chat/") is None
    assert found(lines(GATE, reading=EXACT), "/V1/chat") is None


def test_behind_a_root_path_the_target_may_stand_behind_it() -> None:
    """Uvicorn puts ``--root-path`` before whatever the client sent."""
    for written in ("/api/v1/chat/", "/apihttp://h/v1/chat", "/api//v1/chat", "/v1/chat/"):
        assert found(lines(GATE, root_path="/api"), written) == GATE
        assert found(lines("POST /api/v1/chat", root_path="/api"), written) == "POST /api/v1/chat"
    # Litestar takes what stands behind the root path, wherever that is.
    for written in ("/apiv1/chat", "/x/api/v1/chat"):
        assert found(lines(GATE, root_path="/api"), written) == GATE


def test_a_parameter_of_any_type_is_a_segment() -> None:
    """Other routers read ``+7`` and ``1_000`` as whole numbers, too."""
    for written in ("/v1/runs/7", "/v1/runs/+7", "/v1/runs/1_000", "/v1/runs/-7/"):
        assert found(lines("/v1/runs/{n:int}"), written) == "/v1/runs/{n:int}"


def test_an_encoded_slash_is_read_both_ways_and_a_feature_comes_first() -> None:
    """Most routers go by the decoded path, others by the raw one."""
    gated = lines("/v1/items/{id}", "*")
    assert found(gated, "/v1/items/a%2Fb") == "/v1/items/{id}"
    assert found(lines("/v1/{one}/{two}", "/v1/items/{id}/secret"), "/v1/items/a%2Fsecret") == (
        "/v1/items/{id}/secret"
    )
    # The answer is kept for what was asked, not for the other spelling.
    router = lines("/v1/items/{id}", "/v1/items/{id}/{more}")
    assert found(router, "/v1/items/a/b") == "/v1/items/{id}/{more}"
    assert found(router, "/v1/items/a%2Fb") == "/v1/items/{id}"


def test_a_path_that_is_a_lines_own_is_that_lines() -> None:
    both = lines("GET /v1/Chat", "GET /v1/chat", "POST /v1/{path:path}", GATE)
    assert found(both, "/v1/chat", "GET") == "GET /v1/chat"
    assert found(both, "/v1/Chat", "GET") == "GET /v1/Chat"
    # The line above takes it, and would exactly.
    assert found(both, "/v1/chat") == "POST /v1/{path:path}"


def test_a_line_that_asks_for_less_is_matched_exactly() -> None:
    router = lines("/public/{path:path}", "/healthz", "*", exempt=["/public/{path:path}", "/healthz"])
    assert found(router, "/public/a/b") == "/public/{path:path}"
    assert found(router, "/healthz") == "/healthz"
    for written in ("/PUBLIC/a", "/healthz/", "//healthz", "http://h/healthz", "/healthz#f"):
        assert found(router, written) == "*"


def test_a_method_that_no_line_names_falls_under_the_paths_line() -> None:
    """Django's functions take any method."""
    router = lines(GATE, "QUERY /v1/search", "POST /v1/search", "GET /healthz", "*", exempt=["GET /healthz"])
    assert found(router, "/v1/chat", "BREW") == GATE
    assert found(router, "/v1/chat/", "trace") == GATE
    assert found(router, "/v1/search", "QUERY") == "QUERY /v1/search"
    assert found(router, "/v1/chat", "GET") == "*"
    assert found(router, "/healthz", "BREW") == "*"
    assert found(lines(GATE, "*", reading=EXACT), "/v1/chat", "BREW") == "*"


def test_behind_django_a_gate_holds_for_every_method() -> None:
    """F-130: its functions take GET and PUT, too, which `POST /v1/chat` did not name."""
    router = lines("GET /v1/items/{id}", "/v1/open", GATE, "POST /v1/open", "*", reading=DJANGO)
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"):
        route = router.match_http(target("/v1/chat", method))
        assert route is not None
        assert route.feature == "full"
        # The same object each time: decisions are kept by it.
        assert route is router.match_http(target("/v1/chat", method))
    assert found(router, "/v1/open", "PUT") == "/v1/open"
    # A line that names the method opens it, and a line above the gate comes first.
    opened = lines("GET /v1/chat", GATE, "*", reading=DJANGO)
    assert opened.match_http(target("/v1/chat", "GET")) is opened.match_http(target("/v1/chat", "HEAD"))
    assert found(opened, "/v1/chat", "GET") == "GET /v1/chat"
    assert found(lines("/v1/{path:path}", GATE, reading=DJANGO), "/v1/chat", "GET") == "/v1/{path:path}"


def test_what_a_gate_adds_to_other_methods_is_the_feature_alone() -> None:
    consuming = replace(line(GATE), feature="full", consume={"requests": 5})
    (alone, beside) = (Router([consuming], reading=DJANGO), Router([consuming, line("*")], reading=DJANGO))
    for router in (alone, beside):
        route = router.match_http(target("/v1/chat", "PUT"))
        assert route is not None
        assert ("full", {}) == (route.feature, route.consume)
        assert (router.match_http(target("/v1/other", "PUT")) is None) is (router is alone)


@pytest.mark.anyio
async def test_behind_django_a_gate_stands_above_lines_that_ask_for_less_or_for_something_else() -> None:
    class Handler:
        __module__ = "django.core.handlers.asgi"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await hello(scope, receive, send)

    folded = f"/v1/{'x/../' * 300}chat"
    for other in ("always: true", "consume: {requests: 1}"):
        more = f'consume: {{requests: 1}}}}\n  - {{match: "/v1/{{path:path}}", {other}}}\n'
        async with served(Handler(), plans=PLANS.replace("consume: {requests: 1}}\n", more)) as at:
            for path in ("/v1/chat", folded):
                scope = http_scope(path, method="PUT")
                assert await status_of(at.app, scope) == 403
            assert await status_of(at.app, http_scope("/v1/other", method="PUT")) == 200


async def status_of(app: ASGIApp, scope: Scope) -> int:
    """Ask an app directly: a client would tidy the path."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, no_more, send)
    status: int = sent[0]["status"]
    return status


def test_below_a_mount_of_django_odd_methods_fall_under_the_paths_line() -> None:
    class Handler(Opaque):
        __module__ = "django.core.handlers.asgi"

    app = FastAPI()
    app.mount("/inner", Handler())
    router = lines("POST /inner/v1/chat", "*", reading=reading_of(app))
    assert found(router, "/inner/v1/chat", "BREW") == "POST /inner/v1/chat"
    assert found(router, "/inner/v1/chat", "GET") == "*"


def test_websockets_are_read_as_requests_are() -> None:
    router = Router([line("WS /v1/live")], reading=LOOSE)
    for written in ("/v1/live/", "//v1/live", "/V1/LIVE", "http://h/v1/live"):
        scope = {"type": "websocket", "path": written, "raw_path": written.encode()}
        route = router.match_websocket(scope)
        assert route is not None
        assert route.match == "WS /v1/live"


class Opaque:
    """An app that shows nothing of its routes."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


def test_the_reading_goes_by_the_class_of_the_innermost_app() -> None:
    opaque: Any = Opaque()
    for app in (Starlette(), FastAPI(), FastAPI().router, GZipMiddleware(FastAPI()), Starlette().__call__):
        assert reading_of(app) is EXACT
    for app in (opaque, opaque.__call__, GZipMiddleware(opaque), hello):
        assert reading_of(app) is LOOSE
    assert isinstance(hello, FunctionType)
    assert reading_of(opaque, "exact") is EXACT
    assert reading_of(FastAPI(), "loose") is LOOSE


def test_below_a_mount_the_mounted_apps_reading_counts() -> None:
    app = FastAPI()
    app.mount("/other", Opaque())
    app.mount("/ours", Starlette(routes=[Mount("/deep", Opaque()), Mount("/static", Starlette())]))
    router = lines("POST /v1/chat", "POST /other/v1/chat", "POST /ours/deep/v1/chat", reading=reading_of(app))
    assert found(router, "/other//V1/chat/") == "POST /other/v1/chat"
    assert found(router, "/ours/deep/v1/chat/") == "POST /ours/deep/v1/chat"
    assert found(router, "/v1/chat/") is None
    assert found(router, "/v1/chat") == GATE


@pytest.mark.anyio
async def test_by_default_an_unknown_app_is_read_loosely() -> None:
    async with served(hello, plans=PLANS) as at:
        for written in ("/v1/chat", "/v1/chat/", "//v1/chat", "/V1/CHAT"):
            assert (await at.client.post(f"http://app{written}")).status_code == 403
    async with served(hello, plans=PLANS, paths="exact") as at:
        assert (await at.client.post("/v1/chat/")).status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        *((b"content-length", b"0", True), (b"x-other", b"1", True), (b"content-length", b"2", False)),
        *((b"authorization", b"x", False), (b"cookie", b"a=b", False), (b"transfer-encoding", b"x", False)),
    ],
)
def test_a_preflight_has_neither_credentials_nor_a_body(name: bytes, value: bytes, is_one: bool) -> None:
    """It passes undecided, and a handler of any method would serve it."""
    asks = [(b"origin", b"https://o"), (b"access-control-request-method", b"POST")]
    assert is_preflight({"type": "http", "method": "OPTIONS", "headers": [*asks, (name, value)]}) is is_one
