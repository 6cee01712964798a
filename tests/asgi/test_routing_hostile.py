"""Whatever a router would dispatch is matched by the line that stands for it, however the path is written."""

# Internals: properties of paths: what the middleware matches, next to the routers that dispatch.

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router

from asgi.test_routing import Recorder, http, line
from drivers.app import PLANS, answering, served
from drivers.llm_apps import listening
from drivers.sampled import few_examples, pairs
from meterkit.asgi import routing
from meterkit.asgi.routing import own_root_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message


def lines(*matches: str, root_path: str = "", exempt: Sequence[str] = ()) -> routing.Router:
    return routing.Router(
        [line(match, exempt=match in exempt) for match in (*matches, *exempt)], root_path=root_path
    )


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["route"].name)


async def dispatched(app: ASGIApp, scope: dict[str, Any]) -> str | None:
    """The name of the route whose handler ran; "redirect" for a redirect, None for neither."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    try:
        await app({**scope, "query_string": b"", "server": ("a.example", 80)}, receive, send)
    except ValueError:  # An {x:int} of more digits than Python reads.
        return None
    if sent[0]["status"] in {307, 308}:
        return "redirect"
    if sent[0]["status"] != 200:
        return None
    return b"".join(message.get("body", b"") for message in sent).decode()


# Paths.

TEMPLATES = (
    "/v1/agents/{name}",
    "/v1/agents/{name}/runs/{run:int}",
    "/v1/agents/{name:path}/runs",
    "/v1/agents/",
    "/v1/agents/{id:uuid}/x",
    "/v1/agents/{price:float}/y",
    "/v1/agents//{name}",
    "/v1/agents/..",
)
PIECES = (
    *("a", "runs", "x", "y", "7", "1.5", "٣", "9" * 5000, "6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11"),
    *"\n\r\x00\x0b\x0c\x1c\x85\u2028\u2029\ufffdé",
    "\r\n",
    *("%2F", "%0A", "..", ".", "", "/", "//", " ", "?", "#", "{name}", "x" * 3000, "a\n", "\n/", "*"),
)
tails = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
METHODS = ("GET", "HEAD", "POST", "get", "pOsT", "OPTIONS", "QUERY", "BREW")


@pytest.mark.anyio
@few_examples(100)
@given(
    template=st.sampled_from(TEMPLATES), method=st.sampled_from(METHODS), tail=tails, redirects=st.booleans()
)
@example(template="/v1/agents/{name}", method="POST", tail="a\nb", redirects=True)
@example(template="/v1/agents/{name}/runs/{run:int}", method="HEAD", tail="\n/runs/7", redirects=False)
async def test_a_line_covers_every_handler_that_stands_below_it(
    *, template: str, method: str, tail: str, redirects: bool
) -> None:
    """F-2: a newline in the path was dispatched by ``{name}``, and missed by ``{path:path}``."""
    app = Router(
        [Route(template, answer, methods=["GET"]), Route(template, answer, methods=["POST"])],
        redirect_slashes=redirects,
    )
    scope = http(method, f"/v1/agents/{tail}")
    found = lines("GET /v1/agents/{rest:path}", "POST /v1/agents/{rest:path}", "*").match_http(scope)
    handled = await dispatched(app, dict(scope))
    assert found is not None
    if handled == "answer":
        assert found.match == f"{'GET' if method == 'HEAD' else method} /v1/agents/{{rest:path}}"


@pytest.mark.anyio
@few_examples(100)
@given(template=st.sampled_from(TEMPLATES), tail=tails)
async def test_a_line_written_as_a_route_matches_its_requests(template: str, tail: str) -> None:
    scope = http("GET", f"/v1/agents/{tail}")
    handled = await dispatched(Router([Route(template, answer)], redirect_slashes=False), dict(scope))
    found = lines(f"GET {template}").match_http(scope)
    assert found is not None or handled is None
    # And by no more, but for line breaks where the template has {x:path}.
    if "\n" not in tail and len(tail) < 4000:
        assert (found is None) is (handled is None)


@few_examples(30)
@given(tails)
def test_an_exempt_line_takes_no_more_than_starlettes_pattern(tail: str) -> None:
    """F-2: what gives something away must not grow; ``/{section}/{name}`` may stand behind it."""
    path = f"/public/{tail}"
    found = lines("/{section}/{name:path}", exempt=["/public/{name:path}"]).match_http(http("GET", path))
    assert found is not None
    first = lines("*", exempt=["/public/{name:path}"])
    assert first.match_http(http("GET", path)) is not None
    exempt = lines(exempt=["/public/{name:path}"]).match_http(http("GET", path)) is not None
    assert exempt is (re.match("^/public/.*$", path) is not None)


GATED = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "POST /v1/agents/{rest:path}", feature: full, consume: {requests: 2}}\n',
)


@pytest.mark.anyio
async def test_no_spelling_of_a_path_gets_around_a_gate() -> None:
    """F-2, over a socket: the path as servers decode it."""
    ran: list[str] = []

    async def run(request: Request) -> PlainTextResponse:
        ran.append(request.path_params["name"])
        return PlainTextResponse("ran")

    app = Starlette(routes=[Route("/v1/agents/{name}", run, methods=["POST"])])
    async with served(app, plans=GATED) as at, listening(at.app) as port:
        for name in ("a", "a%0Ab", "%0A", "a%0D%0Ab", "%00", "a%E2%80%A8b", "%ff", "a%252Fb", "..", "%2e%2e"):
            head = (
                f"POST /v1/agents/{name} HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\nconnection: close\r\n"
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + b"content-length: 0\r\n\r\n")
            status = (await reader.read()).split(b" ", 2)[1]
            writer.close()
            await writer.wait_closed()
            assert status == b"403", name
        assert ran == []
        assert await at.counted() == (0, 0)


# Root paths.


Noter = Any


def routes() -> list[Route]:
    return [Route("/items/{name}", answer, name="items"), Route("/", answer, name="root")]


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


def added(app: Any, noter: Noter) -> Any:
    app.add_middleware(noter)
    return app


# How an app is put together, and the path of its routes within it.
APPS: dict[str, tuple[str, Callable[[Noter], ASGIApp]]] = {
    "starlette, outside": ("", lambda noter: noter(Starlette(routes=routes()))),
    "fastapi, added": ("", lambda noter: added(fast(), noter)),
    "fastapi with a root path, outside": ("", lambda noter: noter(fast(root_path="/api"))),
    "fastapi with a root path, outside of another": (
        "",
        lambda noter: noter(GZipMiddleware(GZipMiddleware(fast(root_path="/api")))),
    ),
    "fastapi with a root path, added": ("", lambda noter: added(fast(root_path="/api"), noter)),
    "fastapi with a root path and a slash, added": ("", lambda noter: added(fast(root_path="/api/"), noter)),
    "mounts, within": (
        "/deep/er",
        lambda noter: Starlette(
            routes=[Mount("/deep", routes=[Mount("/er", noter(Starlette(routes=routes())))])]
        ),
    ),
    "mount with a parameter, within": (
        "/{tenant}",
        lambda noter: Starlette(routes=[Mount("/{tenant}", noter(Starlette(routes=routes())))]),
    ),
    "mount below fastapi with a root path": (
        "/deep",
        lambda noter: mounted(FastAPI(openapi_url=None, root_path="/api"), noter(Starlette(routes=routes()))),
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


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize(("prefixed", "name"), pairs([True, False], [*APPS]))
async def test_what_is_dispatched_is_matched_behind_every_root_path(*, name: str, prefixed: bool) -> None:
    """F-3: a root path that ends in a slash, one that only the app knows, proxies that strip it or do not."""
    within, build = APPS[name]
    before = "/api" if prefixed and not within.startswith("/api") else ""
    matches = [f"GET {before}{within}/items/{{name}}", f"GET {before}{within}/"]
    seen: list[str | None] = []

    def noter(app: ASGIApp) -> Recorder:
        return Recorder(app, lines(*matches, root_path=own_root_path(app)), seen)

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


@pytest.mark.anyio
@pytest.mark.parametrize("root_path", ["/api", "/api/"])
async def test_behind_uvicorns_root_path_the_lines_are_matched(root_path: str) -> None:
    """F-3, over a socket."""
    plans = PLANS.replace("/v1/{path:path}", "/api/v1/{path:path}")
    async with (
        served(answering(200), plans=plans) as at,
        listening(at.app, root_path=root_path) as port,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-customer-id: acme\r\nconnection: close\r\n\r\n")
        assert b"\r\nratelimit:" in await reader.read()
        writer.close()
        await writer.wait_closed()
        assert await at.counted() == (1, 0)
