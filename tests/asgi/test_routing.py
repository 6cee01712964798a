"""Which line of the plans file a request falls under, as routers read its path: pure tables."""

# Internals: pure tables and properties of paths, next to the routers themselves.

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as StarletteRoute

from drivers.app import hello, served
from meterkit.asgi import routing
from meterkit.asgi.loose_paths import EXACT, LOOSE, Reading, reading_of
from meterkit.asgi.routing import Router, client_paths, is_preflight
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send


def line(match: str, *, exempt: bool = False) -> Route:
    method, _, path = match.rpartition(" ")
    return Route(match=match, method=method or None, path=None if path == "*" else path, exempt=exempt)


def router(*matches: str) -> Router:
    return Router([line(match) for match in matches])


def http(method: str, path: str, root_path: str = "", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": named}


def websocket(path: str, root_path: str = "") -> dict[str, Any]:
    return {"type": "websocket", "path": path, "root_path": root_path, "headers": []}


def name_of(route: Route | None) -> str | None:
    return None if route is None else route.match


MATCHES = [
    "GET /healthz",
    "/billing/{path:path}",
    "GET /v1/files/{name}",
    "PUT /v1/files/{key:path}",
    "GET /v1/items/{number:int}",
    "GET /v1/items/{name}",
    "GET /v1/things/{id:uuid}",
    "GET /café/{name}",
    "WS /v1/live",
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
    assert name_of(lines.match_http(http("BREW", "/any\nthing"))) == "*"
    assert name_of(lines.match_http(http("GET", ""))) == "*"
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
    monkeypatch.setattr(routing, "CACHE_ENTRIES_MAX", 10)
    lines = router("GET /a/{x}", "WS /a/{x}")
    for number in range(35):
        assert name_of(lines.match_http(http("GET", f"/a/{number}"))) == "GET /a/{x}"
        assert name_of(lines.match_websocket(websocket(f"/a/{number}"))) == "WS /a/{x}"
        assert 1 <= len(lines._found) <= 10  # pyright: ignore[reportPrivateUsage] - the memory is the point


# Agreement with Starlette: an app whose handlers carry the names of our lines gives the same answers.


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["route"].name)


class Recorder:
    """A middleware that stands where MeterMiddleware would and notes the line of each request."""

    def __init__(self, app: ASGIApp, lines: Router, seen: list[str | None]) -> None:
        self.app = app
        self.lines = lines
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append(name_of(self.lines.match_http(scope)))
        await self.app(scope, receive, send)


async def seen_by(app: ASGIApp, path: str, *, root_path: str = "") -> int:
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://a.example") as client:
        return (await client.get(path)).status_code


@pytest.mark.anyio
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
    inner = Starlette(
        routes=[
            StarletteRoute("/items/{name}", answer, name="items"),
            StarletteRoute("/", answer, name="root"),
        ],
        middleware=[Middleware(Recorder, lines=lines, seen=seen)],
    )
    middle = Starlette(
        routes=[Mount("/inner", inner)], middleware=[Middleware(Recorder, lines=lines, seen=seen)]
    )
    outer = Recorder(Starlette(routes=[Mount("/outer", middle)]), lines, seen)
    assert await seen_by(outer, path) == 200
    assert [expected] * 3 == seen


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/plain", "/proxy/plain"])
@pytest.mark.parametrize("line", ["GET /plain", "GET /proxy/plain"])
async def test_behind_a_proxy_a_line_may_have_the_prefix_or_not(path: str, line: str) -> None:
    seen: list[str | None] = []
    app = Starlette(routes=[StarletteRoute("/plain", answer, name="plain")])
    recorder = Recorder(app, router(line), seen)
    assert await seen_by(recorder, path, root_path="/proxy") == 200
    assert seen == [line]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("POST /v1/chat", "*"), ("POST /v1/chat", "*", "/api")),
        (("POST /v1/{path:path}", "/{path:path}"), ("POST /v1/{path:path}", "/{path:path}", "/api")),
        (("POST /api/v1/chat", "*"), None),
        (("*", "POST /v1/chat"), None),
    ],
)
def test_a_line_without_the_mounts_path_is_told_once(
    lines: Sequence[str], told: tuple[str, str | None, str] | None
) -> None:
    """Such requests fell to `*` in silence, and the tokens of their answers were not counted."""
    calls: list[tuple[str, str | None, str]] = []
    found = Router(
        [line(match) for match in lines],
        without_mount=lambda missed, found, mount: calls.append((missed.match, name_of(found), mount)),
    )
    for path in ("/api/v1/chat", "/api/v1/chat", "/root/api/v1/chat"):
        found.match_http({**http("POST", path, "/root/api"), "app_root_path": "/root"})
    assert calls == ([] if told is None else [told])


# Routers that read a path in more than one way: what a request falls under then. F-130.


GATE = "POST /v1/chat"
DJANGO = Reading(any_method=True, every_method=True)
DJANGO_PLANS = """
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


def test_a_parameter_of_any_type_is_a_segment() -> None:
    """Other routers read ``+7`` and ``1_000`` as whole numbers, too."""
    for written in ("/v1/runs/7", "/v1/runs/+7", "/v1/runs/1_000", "/v1/runs/-7/"):
        assert found(lines("/v1/runs/{n:int}"), written) == "/v1/runs/{n:int}"


def test_an_encoded_slash_is_read_both_ways() -> None:
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
    router = lines(GATE, "GET /healthz", "*", exempt=["GET /healthz"])
    assert found(router, "/v1/chat", "BREW") == GATE
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
    # The gate stands above a weaker line, also where a path has too many readings.
    routes = [replace(line(GATE), feature="full"), replace(line("/v1/{path:path}"), always=True)]
    weak = Router(routes, reading=replace(DJANGO, resolves=True))
    for written in ("/v1/chat", f"/v1/{'x/../' * 300}chat"):
        route = weak.match_http(target(written, "PUT"))
        assert route is not None
        assert (route.feature, route.always) == ("full", False)


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
    for app in (Starlette(), GZipMiddleware(FastAPI()), Starlette().__call__):
        assert reading_of(app) is EXACT
    for app in (opaque, opaque.__call__, GZipMiddleware(opaque), hello):
        assert reading_of(app) is LOOSE
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
    async with served(hello, plans=DJANGO_PLANS) as at:
        for written in ("/v1/chat", "/v1/chat/", "//v1/chat", "/V1/CHAT"):
            assert (await at.client.post(f"http://app{written}")).status_code == 403
    async with served(hello, plans=DJANGO_PLANS, paths="exact") as at:
        assert (await at.client.post("/v1/chat/")).status_code == 200


@pytest.mark.anyio
async def test_a_mounted_app_is_told_which_line_lacks_its_path(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=DJANGO_PLANS) as at:
        app = Starlette(routes=[Mount("/api", at.app)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            for _ in range(2):
                await client.post("/api/v1/chat")
    (told,) = [message for message in caplog.messages if "is mounted at" in message]
    assert "the line 'POST /v1/chat' does not match, as this app is mounted at '/api'" in told
    assert "write 'POST /api/v1/chat'; until then such requests match no line" in told


def test_a_preflight_is_told_by_method_and_both_headers() -> None:
    asks = {"origin": "https://a.example", "access_control_request_method": "PUT"}
    assert is_preflight(http("OPTIONS", "/", **asks))
    assert not is_preflight(http("POST", "/", **asks))
    for name, value in asks.items():
        assert not is_preflight(http("OPTIONS", "/", **{name: value}))


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
