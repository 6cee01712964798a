"""Which plan route takes each route of an app, as ``meterkit routes`` lists them."""

# Internals: a table of routes and lines.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from drivers.installed import installed
from drivers.plans import completed
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.asgi.app_routes import RequestDecider, match_lines, routes_of
from meterkit.asgi.route_matching import root_path_of_app
from meterkit.catalog import Catalog, loads


async def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("answer")


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
    """A websocket that stays closed."""


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
