"""Which line of the plans file a request falls under, next to the routers that dispatch it."""

# Internals: pure tables and properties of paths, next to the routers themselves.

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import PLANS, SentMessages, answering, hello, no_more, served
from drivers.installed import installed
from drivers.llm_apps import listening
from drivers.plans import completed
from drivers.sampled import few_examples, pairs
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.asgi import combined_lines, route_matching
from meterkit.asgi.app_routes import RequestDecider, describe_line, match_lines, routes_of
from meterkit.asgi.path_readings import EXACT, LOOSE, PathRules, path_rules_of_router
from meterkit.asgi.route_matching import Router as LineRouter
from meterkit.asgi.route_matching import client_paths, is_preflight, root_path_of_app
from meterkit.catalog import Catalog, loads
from meterkit.catalog import Route as Line

pytestmark = pytest.mark.anyio


def line(match: str, *, exempt: bool = False) -> Line:
    method, _, path = match.rpartition(" ")
    return Line(match=match, method=method or None, path=None if path == "*" else path, exempt=exempt)


def router(*matches: str) -> LineRouter:
    return LineRouter([line(match) for match in matches])


def http(method: str, path: str, root_path: str = "", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": named}


def websocket(path: str, root_path: str = "") -> dict[str, Any]:
    return {"type": "websocket", "path": path, "root_path": root_path, "headers": []}


def name_of(route: Line | None) -> str | None:
    return None if route is None else route.match


MATCHES = [
    *("GET /healthz", "/billing/{path:path}", "GET /v1/files/{name}", "PUT /v1/files/{key:path}"),
    *("GET /v1/items/{number:int}", "GET /v1/items/{name}", "GET /v1/things/{id:uuid}"),
    *("GET /café/{name}", "WS /v1/live"),
]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/healthz", "GET /healthz"),
        ("HEAD", "/healthz", "GET /healthz"),
        ("POST", "/healthz", None),
        # As Django, which asks for the method in capitals; to Starlette it is another one.
        ("get", "/healthz", "GET /healthz"),
        # Starlette's patterns let a handler have this one, so its line must have it too.
        ("GET", "/healthz\n", "GET /healthz"),
        ("GET", "/HEALTHZ", None),
        ("OPTIONS", "/billing/", "/billing/{path:path}"),
        ("GET", "/billing", None),
        ("GET", "/v1/files/a/b", None),
        ("PUT", "/v1/files/", "PUT /v1/files/{key:path}"),
        ("GET", "/v1/items/42", "GET /v1/items/{number:int}"),
        ("GET", "/v1/things/6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11", "GET /v1/things/{id:uuid}"),
        ("GET", unquote("/caf%C3%A9/%E6%97%A5"), "GET /café/{name}"),
        ("GET", unquote("/v1/files/a%2Fb"), None),
        ("WS", "/v1/live", None),
        ("GET", "", None),
        ("OPTIONS", "*", None),
    ],
)
def test_the_first_line_that_matches_decides(method: str, path: str, expected: str | None) -> None:
    lines = router(*MATCHES)
    assert expected == name_of(lines.match_http(http(method, path)))
    assert expected == name_of(lines.match_http(http(method, path)))


def test_the_star_takes_everything_that_is_left() -> None:
    lines = router("GET /a", "*", "WS /late")
    assert name_of(lines.match_http(http("GET", "/a"))) == "GET /a"
    for method, path in (("BREW", "/any\nthing"), ("GET", "")):
        assert name_of(lines.match_http(http(method, path))) == "*"
    assert name_of(lines.match_websocket(websocket("/a"))) == "*"
    assert name_of(lines.match_websocket(websocket("/late"))) == "*"
    assert name_of(router("POST *", "WS *").match_websocket(websocket("/a"))) == "WS *"
    assert router("POST *", "WS *").match_http(http("GET", "/a")) is None


def test_a_request_and_a_websocket_of_one_path_differ() -> None:
    lines = router("GET /x", "WS /x", "/y")
    for _ in range(2):
        assert name_of(lines.match_http(http("GET", "/x"))) == "GET /x"
        assert name_of(lines.match_websocket(websocket("/x"))) == "WS /x"
        assert lines.match_http(http("WS", "/x")) is None
        assert name_of(lines.match_http(http("GET", "/y"))) == "/y"
        assert lines.match_websocket(websocket("/y")) is None


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/items", "/", "/items"),
        ("/api/items", "/api", "/api/items"),
        ("/items", "/api", "/api/items"),
        ("/items", "/api/", "/api/items"),
        ("/apiitems", "/api", "/api/apiitems"),
        ("/", "/api", "/api/"),
    ],
)
def test_the_path_is_the_one_that_the_client_wrote(path: str, root_path: str, expected: str) -> None:
    assert expected == client_paths(http("GET", path, root_path))[-1]


def test_a_path_that_is_no_template_is_refused_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"^route 'GET /a/.*': .* path .*for example /files/\{key:path\}"):
        router("GET /a/{x:nothing}")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_matching, "CACHE_ENTRIES_MAX", 10)
    lines = router("GET /a/{x}", "WS /a/{x}")
    for number in range(35):
        assert name_of(lines.match_http(http("GET", f"/a/{number}"))) == "GET /a/{x}"
        assert name_of(lines.match_websocket(websocket(f"/a/{number}"))) == "WS /a/{x}"
        assert 1 <= len(lines._found) <= 10  # pyright: ignore[reportPrivateUsage] - the memory is the point
    # Behind Daphne a client chooses the root path: 4,096 of 16 KB took 64 MB.
    assert name_of(lines.match_http(http("GET", "/a/1", "/" + 1_000 * "x"))) == "GET /a/{x}"
    assert len(max(map(str, lines._found), key=len)) < 1_000  # pyright: ignore[reportPrivateUsage]


# Agreement with Starlette: an app whose handlers carry the names of our lines gives the same answers.


async def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("answer")


def items() -> list[BaseRoute]:
    async def item(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("items")

    async def root(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("root")

    return [Route("/items/{name}", item), Route("/", root)]


class Recorder:
    """A middleware that stands where MeterMiddleware would and notes the line of each request."""

    def __init__(self, app: ASGIApp, lines: LineRouter, seen: list[str | None]) -> None:
        self.app, self.lines, self.seen = app, lines, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append(name_of(self.lines.match_http(scope)))
        await self.app(scope, receive, send)


async def status_of(app: ASGIApp, path: str, *, root_path: str = "", method: str = "GET") -> int:
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://a.example") as client:
        return (await client.request(method, path)).status_code


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/outer/inner/items/caf%C3%A9", "GET /outer/inner/items/{name}"),
        ("/outer/inner/", "GET /outer/inner/"),
    ],
)
async def test_inside_a_mount_the_line_is_still_the_clients(path: str, expected: str) -> None:
    seen: list[str | None] = []
    lines = router("GET /outer/inner/items/{name}", "GET /outer/inner/")
    inner = Recorder(Starlette(routes=items()), lines, seen)
    middle = Recorder(Starlette(routes=[Mount("/inner", inner)]), lines, seen)
    assert await status_of(Recorder(Starlette(routes=[Mount("/outer", middle)]), lines, seen), path) == 200
    assert [expected] * 3 == seen


@pytest.mark.parametrize("path", ["/items/a", "/proxy/items/a"])
@pytest.mark.parametrize("line", ["GET /items/a", "GET /proxy/items/a"])
async def test_behind_a_proxy_a_line_may_have_the_prefix_or_not(path: str, line: str) -> None:
    seen: list[str | None] = []
    app = Recorder(Starlette(routes=items()), router(line), seen)
    assert (await status_of(app, path, root_path="/proxy"), seen) == (200, [line])


@pytest.mark.parametrize("matches", list(permutations(["POST /items", "POST /proxy/items"])))
def test_behind_a_proxy_the_first_of_two_lines_decides(matches: Sequence[str]) -> None:
    found = LineRouter([replace(line(match), consume={"requests": 1}) for match in matches])
    assert name_of(found.match_http(http("POST", "/proxy/items", "/proxy"))) == matches[0]


@pytest.mark.parametrize(
    ("matches", "is_told"),
    [
        (("POST /v1/chat", "*"), True),
        (("POST /v1/{path:path}", "/{path:path}"), True),
        (("POST /api/v1/chat", "*"), False),
        (("*", "POST /v1/chat"), False),
    ],
)
def test_a_line_without_the_mounts_path_is_told_once(matches: Sequence[str], is_told: bool) -> None:
    """Such requests fell to `*` in silence, and the tokens of their answers were not counted."""
    calls: list[tuple[str, str | None, str]] = []
    found = LineRouter(
        [line(match) for match in matches],
        without_mount=lambda missed, found, mount: calls.append((missed.match, name_of(found), mount)),
    )
    for path in ("/api/v1/chat", "/api/v1/chat", "/root/api/v1/chat"):
        found.match_http({**http("POST", path, "/root/api"), "app_root_path": "/root"})
    assert calls == ([(*matches, "/api")] if is_told else [])


# Routers that read a path in more than one way: what a request falls under then. F-130.


GATE = "POST /v1/chat"
DJANGO = PathRules(any_method=True, every_method=True)
DJANGO_PLANS = """
meters: {requests: {unit: request}}
features: [full]
routes:
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}}
"""


def target(written: str, method: str = "POST") -> Scope:
    """What uvicorn makes of a target."""
    return {**http(method, unquote(written)), "raw_path": written.encode()}


def lines(
    *matches: str, reading: PathRules = LOOSE, exempt: Sequence[str] = (), root_path: str = ""
) -> LineRouter:
    features = {GATE, "/v1/items/{id}", "/v1/items/{id}/secret"}
    routes = [line(match, exempt=match in exempt) for match in (*matches, *exempt)]
    gated = [replace(one, feature="full") if one.match in features else one for one in routes]
    return LineRouter(gated, reading=reading, root_path=root_path)


exact = partial(lines, reading=EXACT)


def found(router: LineRouter, written: str, method: str = "POST") -> str | None:
    return name_of(router.match_http(target(written, method)))


@pytest.mark.parametrize(
    "written",
    [
        *("/v1/chat", "/v1/chat/", "//v1/chat", "/V1/CHAT", "/v1%2Fchat", "/v1/%63hat", "v1/chat"),
        *("HTTP://H//v1/chat/", "https://u:p@h:1/V1/chat", "/v1/chat#f", "/v1/chat%23f", "/v1/chat#/v1/free"),
    ],
)
def test_each_spelling_a_router_takes_falls_under_its_line(written: str) -> None:
    for others in ((), ("/v1/{path:path}", "*")):
        assert found(lines(GATE, *others), written) == GATE
        assert found(lines(GATE, *others), written, "post") == GATE


def test_what_no_router_takes_for_the_path_is_left_alone() -> None:
    for written in ("/v1/chats", "/v1/cha", "/v2/v1/chat", "/v1/chat/x", "/v1/chat;p", "/v1/./chat", "/"):
        assert found(lines(GATE), written) is None
    assert found(lines(GATE, reading=EXACT), "/v1/chat/") is None


def test_behind_a_root_path_the_target_may_stand_behind_it() -> None:
    """Uvicorn puts ``--root-path`` before whatever the client sent."""
    for written in ("/api/v1/chat/", "/apihttp://h/v1/chat", "/api//v1/chat", "/v1/chat/"):
        assert found(lines(GATE, root_path="/api"), written) == GATE
        assert found(lines("POST /api/v1/chat", root_path="/api"), written) == "POST /api/v1/chat"
    # Litestar takes what stands behind the root path, wherever that is.
    for written in ("/apiv1/chat", "/x/api/v1/chat"):
        assert found(lines(GATE, root_path="/api"), written) == GATE


def test_an_encoded_slash_is_read_both_ways() -> None:
    """Most routers go by the decoded path, others by the raw one."""
    assert found(lines("/v1/items/{id}", "*"), "/v1/items/a%2Fb") == "/v1/items/{id}"
    secret = "/v1/items/{id}/secret"
    assert found(lines("/v1/{one}/{two}", secret), "/v1/items/a%2Fsecret") == secret
    # The answer is kept for what was asked, not for the other spelling.
    router = lines("/v1/items/{id}", "/v1/items/{id}/{more}")
    assert found(router, "/v1/items/a/b") == "/v1/items/{id}/{more}"
    assert found(router, "/v1/items/a%2Fb") == "/v1/items/{id}"
    # Other routers read ``+7`` and ``1_000`` as whole numbers, too.
    for written in ("/v1/runs/7", "/v1/runs/+7", "/v1/runs/1_000", "/v1/runs/-7/"):
        assert found(lines("/v1/runs/{n:int}"), written) == "/v1/runs/{n:int}"


def test_a_path_that_is_a_lines_own_is_that_lines() -> None:
    both = lines("GET /v1/Chat", "GET /v1/chat", "POST /v1/{path:path}", GATE)
    assert found(both, "/v1/chat", "GET") == "GET /v1/chat"
    assert found(both, "/v1/Chat", "GET") == "GET /v1/Chat"
    # The line above takes it, and would exactly.
    assert found(both, "/v1/chat") == "POST /v1/{path:path}"


def test_a_line_that_asks_for_less_is_matched_exactly() -> None:
    routes = [line("/public/{path:path}", exempt=True), line("GET /healthz", exempt=True), line("*")]
    router = LineRouter(routes, reading=LOOSE)
    assert found(router, "/public/a/b") == "/public/{path:path}"
    assert found(router, "/healthz", "GET") == "GET /healthz"
    for written in ("/PUBLIC/a", "/healthz/", "//healthz", "http://h/healthz", "/healthz#f"):
        assert found(router, written, "GET") == "*"
    assert found(router, "/healthz", "BREW") == "*"


def test_paths_between_many_gates_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a bound a path between gates takes the features of all, and what the dearest consumes."""
    monkeypatch.setattr(combined_lines, "COMBINATIONS_MAX", 2)
    several = [
        replace(line(f"/{n}/{{path:path}}"), feature=f"of {n}", consume={"requests": n}) for n in range(1, 6)
    ]
    router = LineRouter(several, reading=replace(LOOSE, resolves=True))
    taken = [router.match_http(http("GET", f"/{n}/../{n + 1}/x")) for n in range(1, 5)]
    features = [{route.feature, *route.further_features} for route in taken if route is not None]
    every = {route.feature for route in several}
    assert features == [{"of 1", "of 2"}, every, every, every]
    assert [route.consume["requests"] for route in taken if route is not None] == [2, 5, 5, 5]


def test_a_method_that_no_line_names_falls_under_the_paths_line() -> None:
    """Django's functions take any method."""
    assert found(lines(GATE, "*"), "/v1/chat", "BREW") == GATE
    assert found(lines(GATE, "*"), "/v1/chat", "GET") == "*"
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
    # The gate stands above a weaker line, also where a path has too many readings.
    routes = [replace(line(GATE), feature="full"), replace(line("/v1/{path:path}"), always=True)]
    weak = LineRouter(routes, reading=replace(DJANGO, resolves=True))
    for written in ("/v1/chat", f"/v1/{'x/../' * 300}chat"):
        route = weak.match_http(target(written, "PUT"))
        assert route is not None
        assert (route.feature, route.always) == ("full", False)


def test_websockets_are_read_as_requests_are() -> None:
    router = lines("WS /v1/live")
    for written in ("/v1/live/", "//v1/live", "/V1/LIVE", "http://h/v1/live"):
        scope = {"type": "websocket", "path": written, "raw_path": written.encode()}
        assert name_of(router.match_websocket(scope)) == "WS /v1/live"


class Opaque:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


def test_the_reading_goes_by_the_class_of_the_innermost_app() -> None:
    opaque: Any = Opaque()
    for app in (Starlette(), GZipMiddleware(FastAPI()), Starlette().__call__):
        assert path_rules_of_router(app) is EXACT
    for app in (opaque, opaque.__call__, GZipMiddleware(opaque), hello):
        assert path_rules_of_router(app) == replace(LOOSE, every_method=True)
    assert path_rules_of_router(opaque, "exact") is EXACT
    assert path_rules_of_router(FastAPI(), "loose") is LOOSE


def test_below_a_mount_the_mounted_apps_reading_counts() -> None:
    app = FastAPI()
    app.mount("/other", Opaque())
    app.mount("/ours", Starlette(routes=[Mount("/deep", Opaque()), Mount("/static", Starlette())]))
    router = lines(
        "POST /v1/chat", "POST /other/v1/chat", "POST /ours/deep/v1/chat", reading=path_rules_of_router(app)
    )
    assert found(router, "/other//V1/chat/") == "POST /other/v1/chat"
    assert found(router, "/ours/deep/v1/chat/") == "POST /ours/deep/v1/chat"
    assert found(router, "/v1/chat/") is None
    assert found(router, "/v1/chat") == GATE


async def test_by_default_an_unknown_app_is_read_loosely() -> None:
    async with served(hello, plans=DJANGO_PLANS) as at:
        paths = [f"http://app{written}" for written in ("/v1/chat", "/v1/chat/", "//v1/chat", "/V1/CHAT")]
        assert await at.statuses(*paths, method="POST") == [403] * 4
    async with served(hello, plans=DJANGO_PLANS, paths="exact") as at:
        assert await at.statuses("/v1/chat/", method="POST") == [200]


async def test_a_mounted_app_is_told_which_line_lacks_its_path(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=DJANGO_PLANS) as at:
        for _ in range(2):
            await status_of(Starlette(routes=[Mount("/api", at.app)]), "/api/v1/chat", method="POST")
    (told,) = [message for message in caplog.messages if "is mounted at" in message]
    assert "the route 'POST /v1/chat' does not match, because this app is mounted at '/api'" in told
    assert "write 'POST /api/v1/chat'; until then such requests match no route" in told


ASKS = [(b"origin", b"https://o"), (b"access-control-request-method", b"POST")]


def test_a_preflight_is_told_by_method_and_both_headers() -> None:
    for method, asks in (("POST", ASKS), ("OPTIONS", ASKS[:1]), ("OPTIONS", ASKS[1:])):
        assert not is_preflight({"type": "http", "method": method, "headers": asks})


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        *((b"content-length", b"0", True), (b"x-other", b"1", True), (b"content-length", b"2", False)),
        *((b"authorization", b"x", False), (b"cookie", b"a=b", False), (b"transfer-encoding", b"x", False)),
    ],
)
def test_a_preflight_has_neither_credentials_nor_a_body(name: bytes, value: bytes, is_one: bool) -> None:
    """It passes undecided, and a handler of any method would serve it."""
    assert is_preflight({"type": "http", "method": "OPTIONS", "headers": [*ASKS, (name, value)]}) is is_one


async def dispatched(app: ASGIApp, scope: dict[str, Any]) -> str | None:
    """The name of the route whose handler ran; None for a redirect, or where none did."""
    sent = SentMessages()
    try:
        await app({**scope, "query_string": b"", "server": ("a.example", 80)}, no_more, sent)
    except ValueError:  # An {x:int} of more digits than Python reads.
        return None
    body = b"".join(message.get("body", b"") for message in sent).decode()
    return body if sent[0]["status"] == 200 else None


TEMPLATES = (
    *("/v1/agents/{name}", "/v1/agents/{name}/runs/{run:int}", "/v1/agents/{name:path}/runs", "/v1/agents/"),
    *("/v1/agents/{id:uuid}/x", "/v1/agents/{price:float}/y", "/v1/agents//{name}", "/v1/agents/.."),
)
PIECES = (
    *("a", "runs", "x", "y", "7", "1.5", "٣", "9" * 5000, "6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11"),
    *"\n\r\x00\x0b\x0c\x1c\x85\u2028\u2029\ufffdé",
    "\r\n",
    *("%2F", "%0A", "..", ".", "", "/", "//", " ", "?", "#", "{name}", "x" * 3000, "a\n", "\n/", "*"),
)
tails = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
METHODS = ("GET", "HEAD", "POST", "get", "pOsT", "OPTIONS", "QUERY", "BREW")


@few_examples(100)
@given(
    template=st.sampled_from(TEMPLATES), method=st.sampled_from(METHODS), tail=tails, redirects=st.booleans()
)
@example(template="/v1/agents/{name}", method="POST", tail="a\nb", redirects=True)
@example(template="/v1/agents/{name}/runs/{run:int}", method="HEAD", tail="\n/runs/7", redirects=False)
async def test_lines_cover_handlers_below(*, template: str, method: str, tail: str, redirects: bool) -> None:
    """F-2: a newline in the path was dispatched by ``{name}``, and missed by ``{path:path}``."""
    handlers = [Route(template, answer, methods=[taken]) for taken in ("GET", "POST")]
    scope = http(method, f"/v1/agents/{tail}")
    found = exact("GET /v1/agents/{rest:path}", "POST /v1/agents/{rest:path}", "*").match_http(scope)
    assert found is not None
    if await dispatched(Router(handlers, redirect_slashes=redirects), dict(scope)) == "answer":
        assert found.match == f"{'GET' if method == 'HEAD' else method} /v1/agents/{{rest:path}}"


@few_examples(100)
@given(template=st.sampled_from(TEMPLATES), tail=tails)
async def test_a_line_written_as_a_route_matches_its_requests(template: str, tail: str) -> None:
    scope = http("GET", f"/v1/agents/{tail}")
    handled = await dispatched(Router([Route(template, answer)], redirect_slashes=False), dict(scope))
    found = exact(f"GET {template}").match_http(scope)
    assert found is not None or handled is None
    # And by no more, but for line breaks where the template has {x:path}.
    if "\n" not in tail and len(tail) < 4000:
        assert (found is None) is (handled is None)


@few_examples(30)
@given(tails)
def test_an_exempt_line_takes_no_more_than_starlettes_pattern(tail: str) -> None:
    """F-2: what gives something away must not grow; ``/{section}/{name}`` may stand behind it."""
    scope, public = http("GET", f"/public/{tail}"), ["/public/{name:path}"]
    for first in ("/{section}/{name:path}", "*"):
        assert exact(first, exempt=public).match_http(scope) is not None
    exempt = exact(exempt=public).match_http(scope) is not None
    assert exempt is (re.match("^/public/.*$", scope["path"]) is not None)


GATED = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "POST /v1/agents/{rest:path}", feature: full, consume: {requests: 2}}\n',
)


async def over_socket(port: int, target: str) -> bytes:
    """The answer to a request that no client has tidied."""
    head = f"{target} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"content-length: 0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_no_spelling_of_a_path_gets_around_a_gate() -> None:
    """F-2, over a socket: the path as servers decode it."""
    ran: list[str] = []

    async def run(request: Request) -> PlainTextResponse:
        ran.append(request.path_params["name"])
        return PlainTextResponse("ran")

    app = Starlette(routes=[Route("/v1/agents/{name}", run, methods=["POST"])])
    async with served(app, plans=GATED) as at, listening(at.app) as port:
        for name in ("a", "a%0Ab", "%0A", "a%0D%0Ab", "%00", "a%E2%80%A8b", "%ff", "a%252Fb", "..", "%2e%2e"):
            assert (await over_socket(port, f"POST /v1/agents/{name}")).split(b" ", 2)[1] == b"403", name
        assert (ran, await at.counted()) == ([], (0, 0))


def fast(**options: Any) -> FastAPI:
    app = FastAPI(openapi_url=None, **options)

    @app.get("/items/{name}")
    async def items(name: str) -> PlainTextResponse:
        del name
        return PlainTextResponse("items")

    @app.get("/")
    async def root() -> PlainTextResponse:
        return PlainTextResponse("root")

    return app


def added(app: Any, noter: Any) -> Any:
    app.add_middleware(noter)
    return app


def below(noter: Any, *paths: str) -> Any:
    app = noter(Starlette(routes=items()))
    for path in reversed(paths):
        app = Starlette(routes=[Mount(path, app)])
    return app


# How an app is put together, and the path of its routes within it.
APPS: dict[str, tuple[str, Callable[[Any], ASGIApp]]] = {
    "starlette, outside": ("", lambda noter: noter(Starlette(routes=items()))),
    "fastapi, added": ("", lambda noter: added(fast(), noter)),
    "fastapi with a root path, outside": ("", lambda noter: noter(fast(root_path="/api"))),
    "fastapi with a root path, outside of another": (
        "",
        lambda noter: noter(GZipMiddleware(GZipMiddleware(fast(root_path="/api")))),
    ),
    "fastapi with a root path, added": ("", lambda noter: added(fast(root_path="/api"), noter)),
    "fastapi with a root path and a slash, added": ("", lambda noter: added(fast(root_path="/api/"), noter)),
    "mounts, within": ("/deep/er", lambda noter: below(noter, "/deep", "/er")),
    "mount with a parameter, within": ("/{tenant}", lambda noter: below(noter, "/{tenant}")),
    "mount below fastapi with a root path": (
        "/deep",
        lambda noter: mounted(FastAPI(openapi_url=None, root_path="/api"), noter(Starlette(routes=items()))),
    ),
}


def mounted(outer: FastAPI, inner: ASGIApp) -> FastAPI:
    outer.mount("/deep", inner)
    return outer


ROOT_PATHS = ("", "/", "/api", "/api/", "api")
TARGETS = (
    *("/items/a", "/api/items/a", "/api//items/a", "/api/api/items/a", "//items/a", "/apiitems/a"),
    *("/deep/items/a", "/api/deep/items/a", "/deep/deep/items/a", "/api/deep//items/a"),
    *("/deep/er/items/a", "/api/deep/er/items/a", "/acme/items/a", "/api/acme/items/a", "/deep/items/a\n"),
    *("/", "", "/api", "/api/", "/deep", "/deep/", "/api/deep/", "/deep/er/", "/api/deep/er/", "/acme/"),
)


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize(("prefixed", "name"), pairs([True, False], [*APPS]))
async def test_what_is_dispatched_is_matched_behind_every_root_path(*, name: str, prefixed: bool) -> None:
    """F-3: a root path that ends in a slash, one that only the app knows, proxies that strip it or do not."""
    within, build = APPS[name]
    before = "/api" if prefixed and not within.startswith("/api") else ""
    matches = [f"GET {before}{within}/items/{{name}}", f"GET {before}{within}/"]
    seen: list[str | None] = []

    def noter(app: ASGIApp) -> Recorder:
        return Recorder(app, exact(*matches, root_path=root_path_of_app(app)), seen)

    app = build(noter)
    ran = 0
    for root_path in ROOT_PATHS:
        for target in TARGETS:
            # uvicorn puts the root path before the path; hypercorn and daphne leave that to the proxy.
            for path in (root_path + target, target):
                seen.clear()
                handled = await dispatched(app, http("GET", path, root_path))
                if handled not in {"items", "root"} or (prefixed and not prefix_is_known(name, root_path)):
                    continue
                ran += 1
                assert seen == [matches[handled == "root"]], (root_path, target, path)
    assert ran >= 8


def prefix_is_known(name: str, root_path: str) -> bool:
    """Whether anything in the app or the server speaks of the prefix; a proxy may keep it to itself."""
    return root_path.strip("/") == "api" or "with a root path" in name


@pytest.mark.parametrize("root_path", ["/api", "/api/"])
async def test_behind_uvicorns_root_path_the_lines_are_matched(root_path: str) -> None:
    """F-3, over a socket."""
    plans = PLANS.replace("/v1/{path:path}", "/api/v1/{path:path}")
    async with served(answering(200), plans=plans) as at, listening(at.app, root_path=root_path) as port:
        assert b"\r\nratelimit:" in await over_socket(port, "GET /v1/x")
        assert await at.counted() == (1, 0)


# Which line takes each route of an app, compared with what the middleware itself does.
HEAD = """
meters: {requests: {unit: request}, output_tokens: {unit: token}, disk: {unit: byte, kind: gauge},
  seats: {unit: seat, kind: gauge}}
features: [full_ai]
routes:
"""


def plans(*lines: str) -> Catalog:
    return loads(completed(HEAD + "".join(f"  - {{{line}}}\n" for line in lines)), source="plans.yaml")


def counted(match: str) -> str:
    return f'match: "{match}", consume: {{requests: 1}}'


async def talk(_: WebSocket) -> None:
    """A websocket that nobody opens."""


async def bare(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An app that tells nothing of itself."""


def route(path: str, *methods: str) -> Route:
    return Route(path, answer, methods=methods or None)


def lines_of(app: Any, catalog: Catalog) -> tuple[dict[str, list[str | None]], list[str]]:
    """By methods and path, the lines that take parts of it and the one that takes the rest; idle lines."""
    found, idle = match_lines(routes_of(app), RequestDecider(catalog, root_path_of_app(app)))
    shown: dict[str, list[str | None]] = {}
    for one in found:
        name = f"{','.join(one.methods)} {one.route.host or ''}{one.route.path}"
        shown[name] = [*(line.match for line in one.parts), one.line.match if one.line else None]
    return shown, [one.line.match for one in idle]


def of(routes: Sequence[BaseRoute], *matches: str) -> tuple[dict[str, list[str | None]], list[str]]:
    return lines_of(Starlette(routes=routes), plans(*map(counted, matches)))


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/items/{id}", "GET /items/special"),
        ("/{a}/b", "GET /a/{b}"),
        ("/v1/{p:path}", "GET /v1/admin/{p:path}"),
        ("/v1/a/{b}/{c}", "GET /v1/{p:path}/x"),
    ],
)
def test_a_line_that_takes_a_part_of_a_route_is_told_of(path: str, match: str) -> None:
    # A route and a line may meet at paths that are written in neither of the two.
    shown, idle = of([route(path)], match, "GET /gone")
    assert (shown, idle) == ({f"GET,HEAD {path}": [match, None]}, ["GET /gone"])


def test_mounts_hosts_and_websockets_are_listed() -> None:
    inner = Starlette(routes=[route("/{id}"), WebSocketRoute("/live", talk)])
    shown, idle = of(
        [
            Mount("/a/{id}", routes=[Mount("/b", app=inner)]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent)),
            Mount("/other", bare),
            Host("api.{domain}", Router([route("/hosted")])),
            WebSocketRoute("/live", talk),
        ],
        *("GET /a/{id}/b/{id2}", "WS /a/{id}/b/live", "GET /static/{path:path}", "POST /other/{path:path}"),
        "GET /hosted",
    )
    assert shown == {
        "GET,HEAD /a/{id}/b/{id}": ["GET /a/{id}/b/{id2}"],
        "WS /a/{id}/b/live": ["WS /a/{id}/b/live"],
        "GET,HEAD /static/{path:path}": ["GET /static/{path:path}"],
        "GET,PUT,PATCH,DELETE /other/{path:path}": [None],
        "POST /other/{path:path}": ["POST /other/{path:path}"],
        "GET,HEAD api.{domain}/hosted": ["GET /hosted"],
        "WS /live": [None],
    }
    assert idle == []


def test_included_fastapi_routers_have_their_prefixes() -> None:
    app = FastAPI(openapi_url=None)
    outer, inner = APIRouter(prefix="/v1"), APIRouter(prefix="/deep")
    inner.add_api_route("/x", answer, methods=["GET"])
    inner.add_api_websocket_route("/live", talk)
    outer.include_router(inner)
    app.include_router(outer, prefix="/shop")
    app.add_api_route("/items/{id}", answer, methods=["PUT"])
    shown, idle = lines_of(app, plans(counted("GET /shop/v1/{p:path}"), counted("WS /shop/v1/deep/live")))
    assert shown == {
        "GET /shop/v1/deep/x": ["GET /shop/v1/{p:path}"],
        "WS /shop/v1/deep/live": ["WS /shop/v1/deep/live"],
        "PUT /items/{id}": [None],
    }
    assert idle == []


@pytest.mark.skipif(
    installed("fastapi") < (0, 138), reason="it leaves mounts out of a router that is included"
)
def test_a_mount_of_an_included_router_has_its_prefix() -> None:
    app = FastAPI(openapi_url=None)
    inner = APIRouter(prefix="/deep")
    inner.mount("/mounted", Starlette(routes=[route("/y")]))
    app.include_router(inner, prefix="/shop")
    shown, idle = lines_of(app, plans(counted("GET /shop/{p:path}")))
    # A router's own prefix is given to what is added to it, that of an inclusion to all.
    assert (shown, idle) == ({"GET,HEAD /shop/mounted/y": ["GET /shop/{p:path}"]}, [])


def test_the_plans_file_is_that_of_the_middleware() -> None:
    catalog = plans(counted("GET /a"))
    kit: Any = MeterKit(catalog, redis_url="memory://")
    given: Any = {"kit": kit, "identify": identify.header("x-customer-id")}
    added, plain = Starlette(routes=[route("/a")]), Starlette(routes=[route("/a")])
    added.add_middleware(MeterMiddleware, **given)
    for app in (added, GZipMiddleware(GZipMiddleware(MeterMiddleware(plain, **given)))):
        (taken,), idle = match_lines(routes_of(app), None)
        assert (taken.line, idle) == (catalog.routes[0], [])


SOLD = 'match: "POST /a", feature: full_ai, consume: {requests: 5_000}, usage: auto'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            f"{SOLD}, reserve: {{output_tokens: {{default: 1}}}}",
            "feature full_ai; consume 5,000 requests; usage auto; reserve output_tokens",
        ),
        ('match: "GET /a", rate: [1_000/hour, 5 per 10 seconds]', "rate 1,000 per 1h; rate 5 per 10s"),
        ('match: "POST /a", grow: {seats: 1}, enforcement: shadow', "grow 1 seats; shadow"),
        ('match: "*"', "decided, counts nothing"),
    ],
)
def test_what_a_line_does_is_told_in_short(line: str, says: str) -> None:
    assert describe_line(plans(line).routes[0]) == says
