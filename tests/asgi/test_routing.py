from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router as StarletteRouter

from meterkit.asgi import routing
from meterkit.asgi.routing import Router, client_paths, is_preflight
from meterkit.catalog.billing_terms import BILLED_ON_SUCCESS
from meterkit.catalog.models import Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def line(match: str, *, exempt: bool = False) -> Route:
    method, _, path = match.rpartition(" ")
    return Route(
        match=match,
        method=method or None,
        path=None if path == "*" else path,
        exempt=exempt,
        always=False,
        feature=None,
        consume={},
        per_message={},
        grow={},
        storage=None,
        storage_meter=None,
        usage="none",
        reserve=(),
        charge_on=BILLED_ON_SUCCESS,
        enforcement="on",
        on_store_failure="allow",
        headers="ietf",
        idempotency_header=None,
    )


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
    "POST /v1/chat/completions",
    "GET /v1/files/{name}",
    "PUT /v1/files/{key:path}",
    "GET /v1/items/{number:int}",
    "GET /v1/items/{name}",
    "GET /v1/items/{name}/",
    "GET /v1/things/{id:uuid}",
    "GET /v1/prices/{price:float}",
    "GET /café/{name}",
    "WS /v1/live",
    "HEAD /head",
    "GET /a.b",
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
        ("GET", "/healthz/", None),
        ("GET", "/healthz/x", None),
        ("GET", "/HEALTHZ", None),
        ("PATCH", "/billing/invoices/1", "/billing/{path:path}"),
        ("OPTIONS", "/billing/", "/billing/{path:path}"),
        ("GET", "/billing", None),
        ("POST", "/v1/chat/completions", "POST /v1/chat/completions"),
        ("GET", "/v1/files/a", "GET /v1/files/{name}"),
        ("GET", "/v1/files/a/b", None),
        ("GET", "/v1/files/", None),
        ("PUT", "/v1/files/a/b", "PUT /v1/files/{key:path}"),
        ("PUT", "/v1/files/", "PUT /v1/files/{key:path}"),
        ("GET", "/v1/items/42", "GET /v1/items/{number:int}"),
        ("GET", "/v1/items/4x", "GET /v1/items/{name}"),
        ("GET", "/v1/items/4x/", "GET /v1/items/{name}/"),
        ("GET", "/v1/things/6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11", "GET /v1/things/{id:uuid}"),
        ("GET", "/v1/things/7", None),
        ("GET", "/v1/prices/1.5", "GET /v1/prices/{price:float}"),
        ("GET", "/café/日本", "GET /café/{name}"),
        ("GET", unquote("/caf%C3%A9/%E6%97%A5"), "GET /café/{name}"),
        ("GET", unquote("/v1/files/a%2Fb"), None),
        ("GET", "/v1/live", None),
        ("WS", "/v1/live", None),
        ("HEAD", "/head", "HEAD /head"),
        ("GET", "/head", None),
        ("GET", "/axb", None),
        ("GET", "", None),
        ("OPTIONS", "*", None),
    ],
)
def test_the_first_line_that_matches_decides(method: str, path: str, expected: str | None) -> None:
    lines = router(*MATCHES)
    assert expected == name_of(lines.match_http(http(method, path)))
    assert expected == name_of(lines.match_http(http(method, path)))


@pytest.mark.parametrize(
    ("path", "expected"), [("/v1/live", "WS /v1/live"), ("/v1/live/", None), ("/billing/x", None)]
)
def test_a_websocket_is_matched_by_its_own_lines(path: str, expected: str | None) -> None:
    assert expected == name_of(router(*MATCHES).match_websocket(websocket(path)))


def test_the_star_takes_everything_that_is_left() -> None:
    lines = router("GET /a", "*", "WS /late")
    assert name_of(lines.match_http(http("GET", "/a"))) == "GET /a"
    assert name_of(lines.match_http(http("BREW", "/any\nthing"))) == "*"
    assert name_of(lines.match_http(http("GET", ""))) == "*"
    assert name_of(lines.match_websocket(websocket("/a"))) == "*"
    assert name_of(lines.match_websocket(websocket("/late"))) == "*"


def test_a_star_with_a_method_is_for_that_method() -> None:
    lines = router("POST *", "WS *")
    assert name_of(lines.match_http(http("POST", "/a"))) == "POST *"
    assert lines.match_http(http("GET", "/a")) is None
    assert name_of(lines.match_websocket(websocket("/a"))) == "WS *"


def test_an_http_request_and_a_websocket_of_one_path_are_not_confused() -> None:
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
        ("/items", "", "/items"),
        ("/items", "/", "/items"),
        ("/api/items", "/api", "/api/items"),
        ("/items", "/api", "/api/items"),
        ("/items", "/api/", "/api/items"),
        ("/apiitems", "/api", "/api/apiitems"),
        ("/api", "/api", "/api"),
        ("/api/", "/api", "/api/"),
        ("/", "/api", "/api/"),
        ("", "/api", "/api"),
    ],
)
def test_the_path_is_the_one_that_the_client_wrote(path: str, root_path: str, expected: str) -> None:
    assert expected == client_paths(http("GET", path, root_path))[-1]
    lines = router("GET /api/items", "GET /items", "WS /api/items", "WS /items")
    route = lines.match_http(http("GET", path, root_path))
    assert name_of(route) == (f"GET {expected}" if expected.endswith("/items") else None)
    route = lines.match_websocket(websocket(path, root_path))
    assert name_of(route) == (f"WS {expected}" if expected.endswith("/items") else None)


def test_a_scope_without_root_path_will_do() -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/a", "headers": []}
    assert name_of(router("GET /a").match_http(scope)) == "GET /a"
    assert client_paths(scope) == ["/a"]


@pytest.mark.parametrize("path", ["/a/{x:nothing}", "/a/{x}/{x}"])
def test_a_path_that_is_no_template_is_refused_with_its_line(path: str) -> None:
    with pytest.raises(ValueError, match=r"^route 'GET /a/.*': .* path .*for example /files/\{key:path\}"):
        router(f"GET {path}")


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (http("OPTIONS", "/", origin="https://a.example", access_control_request_method="PUT"), True),
        (http("OPTIONS", "/", origin="https://a.example"), False),
        (http("OPTIONS", "/", access_control_request_method="PUT"), False),
        (http("OPTIONS", "/"), False),
        (http("POST", "/", origin="https://a.example", access_control_request_method="PUT"), False),
    ],
)
def test_a_preflight_is_told_by_method_and_both_headers(scope: dict[str, Any], expected: bool) -> None:
    assert expected is is_preflight(scope)


methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "WS", "X" * 17])
segments = st.sampled_from(
    ["v1", "files", "items", "live", "billing", "a", "42", "1.5", "", "é", "\n", "a\n", "{name}", "x" * 600]
)
paths = st.lists(segments, max_size=5).map(lambda found: "/" + "/".join(found))
requests = st.tuples(methods, paths, st.sampled_from(["", "/v1", "/v1/files", "/", "/other"]))


@given(st.lists(requests, max_size=30))
def test_what_is_remembered_never_changes_an_answer(asked: list[tuple[str, str, str]]) -> None:
    lines = router(*MATCHES)
    for method, path, root_path in asked:
        scope = http(method, path, root_path)
        assert lines.match_http(scope) is lines.match_http(scope)
        assert name_of(lines.match_http(scope)) == name_of(router(*MATCHES).match_http(scope))
        scope = websocket(path, root_path)
        assert name_of(lines.match_websocket(scope)) == name_of(router(*MATCHES).match_websocket(scope))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "CACHE_ENTRIES_MAX", 10)
    lines = router("GET /a/{x}", "WS /a/{x}")
    for number in range(35):
        assert name_of(lines.match_http(http("GET", f"/a/{number}"))) == "GET /a/{x}"
        assert name_of(lines.match_websocket(websocket(f"/a/{number}"))) == "WS /a/{x}"
        assert 1 <= len(lines._found) <= 10  # pyright: ignore[reportPrivateUsage] - the memory is the point


@pytest.mark.parametrize(("method", "path"), [("GET", "/a/" + "x" * 510), ("X" * 17, "/a/x")])
def test_what_only_an_attacker_would_send_is_not_remembered(method: str, path: str) -> None:
    lines = router("/a/{x}")
    assert name_of(lines.match_http(http(method, path))) == "/a/{x}"
    assert lines._found == {}  # pyright: ignore[reportPrivateUsage] - the memory is the point


# Agreement with Starlette: an app whose handlers carry the names of our lines gives the same answers.


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["route"].name)


def starlette_routes(matches: Sequence[str]) -> list[StarletteRoute | WebSocketRoute]:
    routes: list[StarletteRoute | WebSocketRoute] = []
    for match in matches:
        method, _, path = match.rpartition(" ")
        if method == "WS":
            routes.append(WebSocketRoute(path, no_socket, name=match))
        elif method:
            routes.append(StarletteRoute(path, answer, methods=[method], name=match))
        else:
            routes.append(StarletteRoute(path, AnyMethod(match), name=match))
    return routes


async def no_socket(_: object) -> None:
    raise AssertionError


class AnyMethod:
    """An endpoint that Starlette does not ask for its methods."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(self.name)(scope, receive, send)


async def handled_by(app: ASGIApp, scope: dict[str, Any]) -> str | None:
    """The name of the handler that answered, or None where none did."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    await app(scope | {"query_string": b"", "server": ("a.example", 80)}, receive, send)
    if messages[0]["status"] != 200:
        return None
    return b"".join(message.get("body", b"") for message in messages[1:]).decode()


@pytest.mark.anyio
@given(method=methods, path=paths)
async def test_starlette_hands_a_request_to_the_handler_of_its_line(method: str, path: str) -> None:
    # A partial match of Starlette (405) is no match of ours, so the later lines are looked at in both.
    app = StarletteRouter(starlette_routes(MATCHES), redirect_slashes=False)
    handled = await handled_by(app, http(method, path))
    found = name_of(router(*MATCHES).match_http(http(method, path)))
    if "\n" not in path:
        assert found == handled
    elif handled is not None:
        # {key:path} of ours takes line breaks too: it covers whatever stands below it.
        assert found is not None
        assert MATCHES.index(found) <= MATCHES.index(handled)


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


CLIENT_LINES = (
    "GET /outer/inner/items/{name}",
    "GET /outer/inner/",
    "GET /api/v1/items/{number}",
    "GET /api/v1/items/{number}/parts",
    "GET /plain",
    "GET /proxy/plain",
)


async def seen_by(app: ASGIApp, path: str, *, root_path: str = "") -> int:
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://a.example") as client:
        return (await client.get(path)).status_code


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/outer/inner/items/a", "GET /outer/inner/items/{name}"),
        ("/outer/inner/items/caf%C3%A9", "GET /outer/inner/items/{name}"),
        ("/outer/inner/", "GET /outer/inner/"),
    ],
)
async def test_inside_a_mount_the_line_is_still_the_clients(path: str, expected: str) -> None:
    seen: list[str | None] = []
    lines = router(*CLIENT_LINES)
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
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/items/7", "GET /api/v1/items/{number}"),
        ("/api/v1/items/7/parts", "GET /api/v1/items/{number}/parts"),
        ("/plain", "GET /plain"),
    ],
)
async def test_a_fastapi_router_is_matched_by_its_whole_path(path: str, expected: str) -> None:
    async def nothing() -> None: ...

    seen: list[str | None] = []
    items = APIRouter(prefix="/items")
    items.add_api_route("/{number}", nothing)
    items.add_api_route("/{number}/parts", nothing)
    versioned = APIRouter(prefix="/v1")
    versioned.include_router(items)
    app = FastAPI()
    app.include_router(versioned, prefix="/api")
    app.add_api_route("/plain", nothing)
    app.add_middleware(Recorder, lines=router(*CLIENT_LINES), seen=seen)
    assert await seen_by(app, path) == 200
    assert [expected] == seen


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
        (("POST /v1/chat",), ("POST /v1/chat", None, "/api")),
        (("POST /v1/{path:path}", "/{path:path}"), ("POST /v1/{path:path}", "/{path:path}", "/api")),
        (("POST /api/v1/chat", "*"), None),
        (("POST /v1/{path:path}", "/api/{path:path}"), None),
        (("GET /v1/chat", "*"), None),
        (("/{path:path}",), None),
        (("*", "POST /v1/chat"), None),
    ],
)
@pytest.mark.parametrize("server", ["", "/root"])
def test_a_line_without_the_mounts_path_is_told_once(
    lines: Sequence[str], told: tuple[str, str | None, str] | None, server: str
) -> None:
    """Such requests fell to `*` in silence, and the tokens of their answers were not counted."""
    calls: list[tuple[str, str | None, str]] = []
    found = Router(
        [line(match) for match in lines],
        without_mount=lambda missed, found, mount: calls.append((missed.match, name_of(found), mount)),
    )
    for path in ("/api/v1/chat", "/api/v1/chat", f"{server}/api/v1/chat"):
        found.match_http({**http("POST", path, f"{server}/api"), "app_root_path": server})
    assert calls == ([] if told is None else [told])


def test_without_a_mount_nothing_is_told_of_one() -> None:
    calls: list[str] = []
    found = Router(
        [line("POST /v1/chat"), line("*")], without_mount=lambda missed, _, __: calls.append(missed.match)
    )
    found.match_http(http("POST", "/api/v1/chat", "/api"))
    found.match_http(http("POST", "/v1/other"))
    assert calls == []
