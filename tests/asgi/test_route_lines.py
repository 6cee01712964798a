"""Which line of the plans file takes each route of an app, compared with what the middleware itself does."""

# Internals: the list of routes, next to what the middleware does.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.asgi.app_routes import Decider, described, routes_of, take
from meterkit.asgi.routing import own_root_path
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from meterkit.catalog import Catalog

HEAD = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  output_tokens: {unit: token}
  disk: {unit: byte, kind: gauge}
  seats: {unit: seat, kind: gauge}
features: [full_ai]
plans:
  free: {price: {amount_cents: 0, interval: month}}
routes:
"""


def plans(*lines: str) -> Catalog:
    return loads(HEAD + "".join(f"  - {{{line}}}\n" for line in lines), source="plans.yaml")


def counted(match: str) -> str:
    return f'match: "{match}", consume: {{requests: 1}}'


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("")


async def talk(_: WebSocket) -> None:
    """A websocket that nobody opens."""


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that tells nothing of itself."""


def route(path: str, *methods: str) -> Route:
    return Route(path, answer, methods=methods or None)


def lines_of(app: Any, catalog: Catalog) -> tuple[dict[str, list[str | None]], list[str]]:
    """By methods and path, the lines that take parts of it and the one that takes the rest; idle lines."""
    found, idle = take(routes_of(app), Decider(catalog, own_root_path(app)))
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
    assert shown == {f"GET,HEAD {path}": [match, None]}
    assert idle == ["GET /gone"]


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
    inner.mount("/mounted", Starlette(routes=[route("/y")]))
    outer.include_router(inner)
    app.include_router(outer, prefix="/shop")
    app.add_api_route("/items/{id}", answer, methods=["PUT"])
    shown, idle = lines_of(app, plans(counted("GET /shop/v1/{p:path}"), counted("WS /shop/v1/deep/live")))
    assert shown == {
        "GET /shop/v1/deep/x": ["GET /shop/v1/{p:path}"],
        "WS /shop/v1/deep/live": ["WS /shop/v1/deep/live"],
        # A router's own prefix is given to what is added to it, that of an inclusion to all.
        "GET,HEAD /shop/v1/mounted/y": ["GET /shop/v1/{p:path}"],
        "PUT /items/{id}": [None],
    }
    assert idle == []


def test_the_plans_file_is_that_of_the_middleware() -> None:
    catalog = plans(counted("GET /a"))
    given: Any = {
        "kit": MeterKit(catalog, redis_url="memory://"),
        "identify": identify.header("x-customer-id"),
    }
    added, plain = Starlette(routes=[route("/a")]), Starlette(routes=[route("/a")])
    added.add_middleware(MeterMiddleware, **given)
    for app in (added, GZipMiddleware(GZipMiddleware(MeterMiddleware(plain, **given)))):
        (taken,), idle = take(routes_of(app), None)
        assert (taken.line, idle) == (catalog.routes[0], [])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            (
                'match: "POST /a", feature: full_ai, consume: {requests: 5_000}, usage: auto,'
                " reserve: {output_tokens: {default: 1}}"
            ),
            "feature full_ai; consume 5,000 requests; usage auto; reserve output_tokens",
        ),
        ('match: "GET /a", rate: [1_000/hour, 5 per 10 seconds]', "rate 1,000 per 1h; rate 5 per 10s"),
        ('match: "POST /a", grow: {seats: 1}, enforcement: shadow', "grow 1 seats; shadow"),
        ('match: "*"', "decided, counts nothing"),
    ],
)
def test_what_a_line_does_is_told_in_short(line: str, says: str) -> None:
    assert described(plans(line).routes[0]) == says
