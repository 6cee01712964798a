"""Which line of the plans file decides a request: paths, methods, root paths, and the mark in the scope."""

# Internals: a pure table of paths and lines, next to the routers that dispatch them.

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from drivers.app import HEADERS, SentMessages, hello, http_scope, no_more, served, staying
from drivers.llm_apps import answering, tokens
from drivers.sampled import few_examples
from llm_payloads.recordings import chat, chat_usage, compact
from meterkit import MeterMiddleware, identify
from meterkit.asgi import route_matching
from meterkit.asgi.route_matching import AMBIGUOUS
from meterkit.asgi.route_matching import Router as LineRouter
from meterkit.catalog import Route as Line

pytestmark = pytest.mark.anyio

FILES = ("gate /files/reports/{path:path}", "exempt /files/public/{path:path}", "price /files/{path:path}")
API = ("gate POST /v1/chat", "price /v1/{path:path}", "exempt GET /healthz")
KINDS: dict[str, Any] = {
    "gate": {"feature": "full"},
    "press": {"feature": "press"},
    "price": {"consume": {"requests": 1}},
    "exempt": {"exempt": True},
    "shadow": {"feature": "full", "enforcement": "shadow"},
    "watch": {"consume": {"requests": 1}, "enforcement": "shadow"},
    "keys": {"consume": {"requests": 1}, "paths": "as_sent"},
    "line": {},
}


def router(*lines: str, **options: Any) -> LineRouter:
    routes: list[Line] = []
    for line in lines:
        kind, _, match = line.partition(" ")
        method, _, path = match.rpartition(" ")
        template = None if path == "*" else path
        routes.append(Line(match=match, method=method or None, path=template, **KINDS[kind]))
    return LineRouter(routes, **options)


def target(written: str, method: str = "POST", **more: Any) -> dict[str, Any]:
    """What uvicorn makes of a target; ``WS`` stands for a websocket."""
    kind = {"type": "websocket"} if method == "WS" else {"type": "http", "method": method}
    return {**kind, "path": unquote(written), "raw_path": written.encode(), **more}


def found(lines: LineRouter, written: str, method: str = "POST", **more: Any) -> str | None:
    """The match of the line that decides, with features that it has from others; 400 for none of them."""
    line = lines.match(target(written, method, **more))
    if line is None or line is AMBIGUOUS:
        return None if line is None else "400"
    extra = [name for name in line.further_features if name]
    return line.match + "".join(f" +{name}" for name in extra)


FILE_ROWS = """
# One reading, or several that match one line.
/files/reports/a                            /files/reports/{path:path}
/files/reports/a%20b%3Fc                    /files/reports/{path:path}
/files/reports//a                           /files/reports/{path:path}
/files/reports/x/../a                       /files/reports/{path:path}
/files%2Freports/a                          /files/reports/{path:path}
/files/b/x%2Fy                              /files/{path:path}
/files/100%25                               /files/{path:path}
/files/a;v=1                                /files/{path:path}
/files/public/./a.txt                       /files/public/{path:path}
# Several that match different lines.
/files/public/..;/reports/a                 400
/files/public/%252e%252E/reports/a          400
/files/public%2f..%2freports%2fa            400
/files/public\\..\\reports/a                400
/files/x;/../reports/a                      400
"""
LINE_ROWS = """
price /café/{name}, price *                 | GET /caf%C3%A9/100%25             | /café/{name}
price /v1/items/{id}, price *               | GET /v1/items/a%2Fb               | 400
gate POST /v1/chat                          | POST http://h/v1/chat             | 400
gate POST /v1/chat                          | POST /v1/chat;p=1                 | 400
gate POST /v1/chat                          | POST /v1/chat%00.png              | 400
# What no line names stays undecided; what all readings exempt stays exempt.
gate POST /v1/chat                          | GET /other/../x                   | None
exempt /public/{path:path}                  | GET /public//a                    | /public/{path:path}
# As sent: the line takes what it matches, unless a reading leaves its own paths.
keys PUT /v1/o/{key:path}, gate POST /v1/chat, price * | PUT /v1/o/a/../b%2Fc;d | PUT /v1/o/{key:path}
keys PUT /v1/o/{key:path}, gate POST /v1/chat, price * | PUT /v1/o/../chat      | 400
gate POST /v1/chat, keys /v1/{key:path}     | POST /v1/Chat/                    | POST /v1/chat
# Capitals, and a slash at the end: the stricter line decides.
gate POST /v1/chat, price /v1/{path:path}   | POST /V1/CHAT/                    | POST /v1/chat
exempt GET /healthz                         | GET /HEALTHZ                      | None
exempt GET /healthz                         | GET /healthz/                     | None
exempt GET /healthz, price *                | GET /healthz                      | GET /healthz
exempt GET /healthz, price *                | GET /Healthz/                     | *
exempt GET /files, gate /files/{path:path}  | GET /files                        | GET /files
gate /items/, price *                       | GET /items                        | /items/
price /v1/{path:path}, gate *               | GET /v1/                          | *
price /v1/{n:int}, gate /v1/{name}          | GET /V1/abc                       | /v1/{name}
price GET /i/{id}/, gate GET /i/{id}        | GET /I/7                          | GET /i/{id}
press /v1/{path:path}, gate /v1/chat        | GET /v1/chat                      | /v1/{path:path}
gate /v1/chat, press /v1/{path:path}        | GET /v1/CHAT                      | /v1/{path:path} +full
gate GET /admin/{rest:path}, price *        | GET /admin                        | GET /admin/{rest:path}
gate /i/{id}/{p:path}, exempt /i/{id}       | GET /i/7                          | /i/{id}
# A parameter takes what frameworks convert to its type, and no other word.
gate /runs/{n:int}, price *                 | GET /runs/+7/                     | /runs/{n:int}
gate /runs/{n:int}, price *                 | GET /runs/1_000                   | /runs/{n:int}
gate /runs/{n:int}, price *                 | GET /runs/7.0e1                   | /runs/{n:int}
gate /runs/{n:int}, price *                 | GET /runs/%D9%A7                  | /runs/{n:int}
gate /runs/{n:int}, price *                 | GET /runs/latest                  | *
gate /j/{id:uuid}, price *                  | GET /j/uuid:6f2c1f0e8a554c399d7a2f1f6a1f0c11 | /j/{id:uuid}
# Further readings count if they lead to a feature that the request does not need.
gate /{a}/{b}, price *                      | POST http://h/v1/chat             | 400
gate POST /v1/items/{name}, price *         | POST /v1/items/a%2F%C3%A9         | 400
gate /{a}/{b}/{c}, price *                  | GET /files/../../parent/data/r/a  | 400
price GET /v1/search/{q}, price *           | GET /v1/search/%23py              | GET /v1/search/{q}
price GET /v1/search/{q}, price *           | GET /v1/search/a%3Fb              | GET /v1/search/{q}
gate POST /v1/chat, price /proxy/{url:path} | POST /proxy/https://h/v1/chat     | /proxy/{url:path}
exempt /files/public/{p:path}, gate /files/{p:path} | GET /files/public/../../../files/public/r/a | 400
# In shadow nothing is refused, and no gate is lost.
shadow /f/r/{path:path}, exempt /f/p/{path:path} | GET /f/p/../r/a              | /f/p/{path:path}
"""


def rows(text: str, *, at: str | None = None) -> list[list[str]]:
    """Cells of each row; comments are left out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [[cell.strip() for cell in line.split(at)] for line in lines]


@pytest.mark.parametrize(
    ("lines", "request_line", "expected"),
    [
        *((FILES, f"GET {written}", expected) for written, expected in rows(FILE_ROWS)),
        *((lines.split(", "), asked, expected) for lines, asked, expected in rows(LINE_ROWS, at="|")),
    ],
)
def test_the_line_of_a_path(lines: Sequence[str], request_line: str, expected: str) -> None:
    """F-311, F-201, F-202, F-130."""
    method, written = request_line.split(" ", 1)
    table = router(*lines)
    assert [str(found(table, written, method)) for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("lines", "method", "expected"),
    [
        (API[:1], "POST", "POST /v1/chat"),
        (API[:1], "post", "POST /v1/chat"),
        *((API[:1], method, "POST /v1/chat") for method in ("GET", "PUT", "OPTIONS", "BREW")),
        (API[:2], "GET", "/v1/{path:path}"),
        (("gate GET /v1/chat",), "HEAD", "GET /v1/chat"),
        # A line that names the method opens it; a gate of the same path takes its place.
        (("line GET /v1/chat", *API), "GET", "GET /v1/chat"),
        ((*API[:1], "line GET /v1/{path:path}"), "HEAD", "GET /v1/{path:path}"),
        (("exempt /v1/{path:path}", *API), "GET", "/v1/{path:path}"),
        ((*API[:1], "exempt /v1/{path:path}"), "GET", "/v1/{path:path}"),
        ((*API[:1], "press DELETE /v1/chat"), "PUT", "POST /v1/chat +press"),
        ((*API[:1], "press *"), "PUT", "* +full"),
        ((*API[:1], "press /v1/chat"), "PUT", "/v1/chat"),
        # A line in shadow refuses nothing: the gate beside it decides.
        ((*API[:1], "watch *"), "PUT", "POST /v1/chat"),
    ],
)
def test_a_feature_holds_for_every_method_that_no_line_names(
    lines: Sequence[str], method: str, expected: str
) -> None:
    """F-315."""
    assert found(router(*lines), "/v1/chat", method) == expected


async def test_gated_methods_are_refused_and_only_named_ones_consume() -> None:
    plans = """
features: [full]
meters: {requests: {unit: request}}
routes:
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}}
  - {match: "MCP tools/call report", feature: full}
  - {match: "WS /v1/live"}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 100, interval: month}, features: all}
"""
    async with served(hello, plans=plans) as at:
        for method in ("POST", "PUT", "GET", "BREW"):
            assert await at.statuses("/v1/chat", method=method) == [403]
        # The session of an MCP endpoint has no message that a gated line could name.
        for method, status in (("GET", 200), ("DELETE", 200), ("PUT", 403)):
            assert await at.statuses("/mcp", method=method) == [status]
        await at.kit.customers.set_plan("acme", "pro")
        for method in ("POST", "PUT", "GET", "BREW"):
            assert await at.statuses("/v1/chat", method=method) == [200]
        assert await at.counted() == (1, 0)


def test_websockets_have_lines_of_their_own() -> None:
    """F-315."""
    lines = router("gate /v1/live", "gate WS /v1/live", "price WS /v1/open", "price *")
    asked = ("/v1/live", "/V1/live/", "/v1/x/../live", "/v1/other")
    assert [found(lines, written, "WS") for written in asked] == ["WS /v1/live", "WS /v1/live", "400", "*"]
    assert found(router("gate /v1/live"), "/v1/live", "WS") is None


@pytest.mark.parametrize("path", ["/v1/chat", "/api/v1/chat"])
@pytest.mark.parametrize("line", ["gate POST /v1/chat", "gate POST /api/v1/chat"])
@pytest.mark.parametrize("root", [{"root_path": "/api"}, {"root_path": "/api/"}, {}])
def test_a_line_may_have_the_root_path_or_not(path: str, line: str, root: dict[str, str]) -> None:
    """F-3: a proxy may strip it, and uvicorn puts it before the path."""
    lines = router(line, "price *", root_path="" if root else "/api")
    assert found(lines, path, **root) == line.removeprefix("gate ")
    for written in ("/apihttp://h/v1/chat", "/x/api/v1/chat", "/apiv1/chat", "/api//v1/chat"):
        assert found(lines, written, **root) in {"400", line.removeprefix("gate ")}, written


def test_one_root_path_does_not_replace_the_other() -> None:
    """Apps of Flask and Quart have their folder as `root_path`."""
    lines = router("gate POST /v1/chat", "price *", root_path="/srv/app")
    for path in ("/v1/chat", "/api/v1/chat", "/x/api//v1//chat", "/public/apiz/api/v1/chat"):
        assert found(lines, path, root_path="/api") in {"POST /v1/chat", "400"}, path
    assert found(lines, "/public//v1/chat", root_path="//") == "400"


def test_a_root_path_of_the_client_opens_no_gate() -> None:
    """Daphne takes it from a header: with that of an exempt line a gate was not reached."""
    lines = router(
        "exempt GET /api/healthz", "exempt /public/{path:path}", "gate POST /v1/chat", "price /{path:path}"
    )
    for root in ("/public", "/api"):
        for path in ("/v1/chat", f"{root}/v1/chat"):
            assert found(lines, path, root_path=root) == "POST /v1/chat"
    assert found(lines, "/healthz", "GET", root_path="/api") == "GET /api/healthz"


@pytest.mark.parametrize(
    ("lines", "is_logged"),
    [
        (("gate POST /v1/chat", "price *"), True),
        (("gate POST /api/v1/chat", "price *"), False),
        (("price *", "gate POST /v1/chat"), False),
    ],
)
def test_a_line_without_the_path_of_the_mount_is_logged_once(lines: Sequence[str], is_logged: bool) -> None:
    calls: list[tuple[str, str]] = []

    def note(missed: Line, _: Line | None, mount: str) -> None:
        calls.append((missed.match, mount))

    table = router(*lines, without_mount=note)
    for path in ("/api/v1/chat", "/api/v1/chat", "/root/api/v1/chat"):
        found(table, path, root_path="/root/api", app_root_path="/root")
    assert calls == ([("POST /v1/chat", "/api")] if is_logged else [])


def test_what_is_cached_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_matching, "CACHE_ENTRIES_MAX", 10)
    lines = router("price GET /a/{x}")
    for number in range(35):
        assert found(lines, f"/a/{number}", "GET") == "GET /a/{x}"
        assert 1 <= len(lines) <= 10
    # Behind Daphne a client chooses the root path: 4,096 of 16 KB took 64 MB.
    assert found(lines, "/a/1", "GET", root_path="/" + 4_000 * "x") == "GET /a/{x}"
    assert max(len(str(key)) for key in lines) < 1_000


@pytest.mark.parametrize("method", ["POST", "WS"])
def test_past_a_bound_all_gates_hold(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client can write paths between many gates: each combination is kept for good."""
    monkeypatch.setattr(route_matching, "COMBINATIONS_MAX", 0)
    lines = router(f"gate {method} /v1/chat", f"press {method} /v1/{{name}}")
    assert found(lines, "/v1/CHAT", method) == f"{method} /v1/chat +press"


TAILS = ("{name}", "{name}/runs/{n:int}", "{name:path}/runs", "", "{id:uuid}/x")
WORDS = ("a", "runs", "x", "7", "9" * 5000, "6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11", "{name}", "%2F", "é", "٣")
MARKS = ("\n", "\x00", "\u2028", "\r\n", ".", "..", "", "/", "//", " ", "?", "a\n", "\n/", "*")


async def dispatched(app: ASGIApp, scope: dict[str, Any]) -> bool:
    sent = SentMessages()
    try:
        await app({**scope, "query_string": b"", "headers": [], "server": ("a.example", 80)}, no_more, sent)
    except ValueError:  # An {n:int} of more digits than Python reads.
        return False
    return bool(sent[0]["status"] == 200)


async def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ran")


@few_examples(100)
@given(end=st.sampled_from(TAILS), pieces=st.lists(st.sampled_from(WORDS + MARKS), max_size=8))
@example(end="{name}", pieces=["a", "\n", "x"])
async def test_a_line_covers_the_handlers_below_it(*, end: str, pieces: list[str]) -> None:
    """F-2: a newline in the path was dispatched by ``{name}``, and missed by ``{path:path}``."""
    template, tail = f"/v1/a/{end}", "".join(pieces)
    scope = {**target("/"), "path": f"/v1/a/{tail}", "raw_path": None, "root_path": ""}
    ran = await dispatched(
        Router([Route(template, answer, methods=["POST"])], redirect_slashes=False), dict(scope)
    )
    for lines in (("gate POST /v1/a/{rest:path}", "price *"), (f"gate POST {template}", "price *")):
        line = router(*lines).match(scope)
        assert not ran or (line is not None and (line is AMBIGUOUS or line.feature == "full"))
    exempt = router("exempt /v1/a/{name:path}", "price *").match(scope)
    assert exempt is not None
    assert not exempt.exempt or exempt is AMBIGUOUS or "\n" not in tail.removesuffix("\n")


# Through the middleware.

PLANS = """
features: [full, press]
meters: {requests: {unit: request}, input_tokens: {unit: token}, output_tokens: {unit: token}}
routes:
  - {match: "/healthz", exempt: true}
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}, usage: auto}
  - {match: "POST /v1/talk", consume: {requests: 1}, usage: auto}
  - {match: "/v1/talk/{path:path}", feature: press, consume: {requests: 1}}
  - {match: "POST /batch", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  press: {price: {amount_cents: 100, interval: month}, features: [press]}
  pro: {price: {amount_cents: 100, interval: month}, features: all}
"""


async def test_a_refused_path_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "meterkit.asgi"):
        async with served(hello, plans=PLANS, cors=["https://o"]) as at:
            for _ in range(3):
                response = await at.client.post("/healthz%2f..%2fv1/chat", headers={"origin": "https://o"})
                assert (response.status_code, response.headers["cache-control"]) == (400, "no-store")
                assert response.json()["type"] == "urn:meterkit:problem:path-ambiguous"
                assert response.headers["x-should-retry"] == "false"
                assert response.headers["access-control-allow-origin"] == "https://o"
            assert await at.counted() == (0, 0)
    (told,) = [message for message in caplog.messages if "can be read" in message]
    assert "'/v1/chat' (POST /v1/chat)" in told
    assert "`paths: as_sent`" in told


async def test_i4_a_refusal_names_the_new_plan() -> None:
    """The first refusal of a process after a change of plan named the plan before it."""
    async with served(hello, plans=PLANS) as at:
        for plan in ("free", "press", "free"):
            await at.kit.customers.set_plan("acme", plan)
            assert (await at.client.post("/v1/chat")).json()["plan"] == plan


async def test_capitals_and_a_slash_make_no_tokens_free() -> None:
    model = answering([compact(chat({"content": "hi"}, usage=chat_usage(7, 5)))], "application/json")
    async with served(model, plans=PLANS) as at:
        assert await at.statuses("/v1/talk", "/V1/Talk", "/v1/talk/", method="POST", json={}) == [
            200,
            200,
            403,
        ]
        assert await tokens(at.kit) == (14, 10)
        await at.kit.customers.set_plan("acme", "pro")
        assert await at.statuses("/v1/talk/", "/v1/CHAT", method="POST", json={}) == [200, 200]
        assert await tokens(at.kit) == (28, 20)


def batching(change: Callable[[Scope], Scope]) -> FastAPI:
    """An endpoint that hands a request on to another path, as batch endpoints and redirects within do."""
    app = FastAPI()

    @app.post("/batch")
    async def batch(request: Request) -> dict[str, int]:
        sent = SentMessages()
        await app(change(request.scope), staying(b"{}"), sent)
        return {"status": sent[0]["status"]}

    app.add_api_route("/v1/chat", lambda: "ran", methods=["POST", "PUT"])
    return app


def rewrite(scope: Scope) -> Scope:
    scope["path"] = "/v1/chat"
    return scope


DISPATCHES: dict[str, Callable[[Scope], Scope]] = {
    "a copy": lambda scope: {**scope, "path": "/v1/chat", "raw_path": b"/v1/chat"},
    "another method too": lambda scope: {**scope, "path": "/v1/chat", "method": "PUT"},
    "in place": rewrite,
}


@pytest.mark.parametrize("name", DISPATCHES)
async def test_a_request_that_an_endpoint_dispatches_is_another_one(name: str) -> None:
    """F-313: it passed every gate, uncounted."""
    app = batching(DISPATCHES[name])
    async with served(hello, plans=PLANS) as at:
        app.add_middleware(MeterMiddleware, kit=at.kit, identify=identify.header("x-customer-id"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), headers=HEADERS) as client:
            assert (await client.post("http://app/batch")).json() == {"status": 403}
            assert await at.counted() == (1, 0)
            await at.kit.customers.set_plan("acme", "pro")
            assert (await client.post("http://app/batch")).json() == {"status": 200}
            assert await at.counted() == (2 if "method" in name else 3, 0)


async def test_a_mount_may_dispatch_to_the_app_itself() -> None:
    """F-313: cut by the mount's path, the gated path looked like the one that was decided."""
    app = batching(DISPATCHES["a copy"])

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": scope["path"].removeprefix("/pub")}, receive, send)

    app.mount("/pub", dispatch)
    async with served(hello, plans=PLANS) as at:
        app.add_middleware(MeterMiddleware, kit=at.kit, identify=identify.header("x-customer-id"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), headers=HEADERS) as client:
            assert (await client.post("http://app/pub/v1/chat")).status_code == 403


@pytest.mark.parametrize("more", [{"root_path": "/v1"}, {}])
async def test_middlewares_that_wrap_it_again_count_once(more: dict[str, str]) -> None:
    """F-313: a mount, or a prefix, that cuts the path off makes no other request."""

    async def cutting(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "path": scope["path"][3:], **more}, receive, send)

    async with served(cutting, plans=PLANS) as at:
        inner = MeterMiddleware(hello, kit=at.kit, identify=identify.header("x-customer-id"))
        assert await at.statuses("/v1/talk", method="POST") == [200]
        assert await at.counted() == (1, 0)


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
async def test_root_paths_that_the_app_sets_itself_open_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """F-3: FastAPI and Django strip it, and serve the path without it, too."""
    async with served(FastAPI(root_path="/api"), plans=PLANS) as at:
        assert await at.statuses("/api/v1/chat", "/v1/chat", method="POST") == [403, 403]
    settings = SimpleNamespace(configured=True, FORCE_SCRIPT_NAME="/api")
    monkeypatch.setitem(sys.modules, "django.conf", SimpleNamespace(settings=settings))
    async with served(hello, plans=PLANS) as at:
        assert await at.statuses("/api/v1/chat", "/v1/chat", method="POST") == [403, 403]


class Unreadable:
    """A proxy of an app, which raises for attributes as long as there is no app."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} outside of an application context")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)


async def test_i9_an_app_that_cannot_be_read_is_served() -> None:
    async with served(Unreadable(), plans=PLANS) as at:
        assert await at.statuses("/v1/chat", "/V1/chat/", method="POST") == [403, 403]
        assert await at.statuses("/healthz") == [200]


PREFLIGHT = {"origin": "https://o", "access-control-request-method": "POST", "x-customer-id": ""}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"content-length": "0"}, 204),
        *(
            ({name: value}, 403)
            for name, value in (("cookie", "a=b"), ("authorization", "x"), ("content-length", "2"))
        ),
    ],
)
async def test_a_preflight_has_neither_credentials_nor_a_body(headers: dict[str, str], status: int) -> None:
    """It is answered without a customer, and a handler of any method would serve it."""
    async with served(hello, plans=PLANS) as at:
        given = PREFLIGHT | headers | ({"x-customer-id": "acme"} if status == 403 else {})
        assert await at.statuses("/v1/chat", method="OPTIONS", headers=given) == [status]


async def test_a_preflight_runs_no_handler() -> None:
    ran: list[str] = []

    async def handle(request: Request) -> PlainTextResponse:
        ran.append(request.method)
        return PlainTextResponse("ran")

    bare = Starlette(
        routes=[Route("/v1/chat", handle, methods=["POST", "OPTIONS"]), Mount("/", handle_all(ran))]
    )
    for app, origins, allowed in (
        (CORSMiddleware(bare, allow_origins=["https://o"], allow_methods=["*"]), [], "https://o"),
        (bare, ["https://o"], "https://o"),
        (bare, [], None),
    ):
        async with served(app, plans=PLANS, cors=origins) as at:
            response = await at.client.options("/v1/chat", headers=PREFLIGHT)
            assert response.is_success
            assert response.headers.get("access-control-allow-origin") == allowed
            assert await at.counted() == (0, 0)
    assert [path for path in ran if path != "*"] == []


async def test_a_preflight_that_a_handler_streams_is_stopped() -> None:
    """All of a stream was collected for one anonymous request."""
    sent = 0

    async def stream(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        headers = [(b"access-control-allow-origin", b"https://o")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            sent += 1
            await send({"type": "http.response.body", "body": b"of a customer", "more_body": True})
            await asyncio.sleep(0)

    async with served(stream, plans=PLANS) as at:
        response = await at.client.options("/v1/chat", headers=PREFLIGHT)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == "https://o"
    assert sent < 10


async def test_a_preflight_lets_an_app_end_that_has_answered() -> None:
    """Django was cancelled while it ended, and left tasks behind that logged errors."""
    ended: list[str] = []

    async def answer_at_length(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"not found" * 99})
        for _ in range(9):  # Turns of the loop, as an app that closes files takes them.
            await asyncio.sleep(0)
        ended.append("by itself")

    async with served(answer_at_length, plans=PLANS) as at:
        assert (await at.client.options("/v1/chat", headers=PREFLIGHT)).status_code == 204
    assert ended == ["by itself"]


def handle_all(ran: list[str]) -> ASGIApp:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        ran.append(scope["path"])
        await hello(scope, receive, send)

    return handle


async def test_a_websocket_of_two_readings_is_refused() -> None:
    async def talk(socket: WebSocket) -> None:
        await socket.accept()

    plans = PLANS.replace(
        "routes:\n", 'routes:\n  - {match: "WS /v1/live", feature: full}\n  - {match: "WS /v1/open"}\n'
    )
    async with served(Starlette(routes=[WebSocketRoute("/v1/{path:path}", talk)]), plans=plans) as at:
        sent = SentMessages()
        scope: Scope = {**http_scope("/v1/open/../live"), "type": "websocket", "subprotocols": []}
        await at.app(scope, staying(), sent)
        assert [message["type"] for message in sent] == ["websocket.close"]
