"""Apps that route, or let a client say how to route, in ways that their routes do not tell."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import HEADERS, hello, served

pytestmark = pytest.mark.anyio

PLANS = """
meters: {requests: {unit: request}}
features: [full]
routes:
  - {match: "GET /api/healthz", exempt: true}
  - {match: "/public/{path:path}", exempt: true}
  - {match: "POST /v1/chat", feature: full, consume: {requests: 1}}
  - {match: "/{path:path}", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {rank: 10, price: {amount_cents: 2900, interval: month}, features: [full]}
"""


async def status_of(app: ASGIApp, path: str, method: str = "POST", root_path: str = "") -> int:
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, headers=HEADERS) as client:
        return (await client.request(method, f"http://app{path}")).status_code


async def answer(_: Any) -> PlainTextResponse:
    return PlainTextResponse("ran")


@pytest.mark.parametrize("app", [Starlette(routes=[Route("/v1/chat", answer, methods=["POST"])]), hello])
async def test_no_root_path_gets_around_a_gate(app: ASGIApp) -> None:
    """Daphne takes the root path from the client: the router strips it, and an exempt line began with it."""
    async with served(app, plans=PLANS) as at:
        for root_path in ("/public", "/api", ""):
            for prefix in ("", root_path):
                path = f"{prefix}/v1/chat"
                assert await status_of(at.app, path, root_path=root_path) == 403, (root_path, path)
        # A route written with the root path stays exempt, whichever route takes the path without.
        for path in ("/healthz", "/api/healthz"):
            await status_of(at.app, path, "GET", root_path="/api")
        assert await at.counted() == (0, 0)


class Named(HTTPEndpoint):
    """An endpoint that runs the function called as the method, as any of Starlette's did before 1.1."""

    async def dispatch(self) -> None:
        await getattr(self, self.scope["method"].lower())()

    async def post(self) -> None:
        await self.search()

    async def search(self) -> None:
        await hello(self.scope, self.receive, self.send)


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
@pytest.mark.parametrize("mount", [Mount, Host])
async def test_a_root_path_of_an_inner_app_leads_around_no_gate(mount: Any) -> None:
    """FastAPI strips its own root path, in place of the server's and of that of mounts."""
    inner = FastAPI(root_path="/x")
    inner.add_route("/v1/chat", answer, methods=["POST", "OPTIONS"])
    async with served(Starlette(routes=[mount("app" if mount is Host else "/", inner)]), plans=PLANS) as at:
        assert [await status_of(at.app, path) for path in ("/v1/chat", "/x/v1/chat")] == [403] * 2
        assert await status_of(at.app, "/proxy/v1/chat", root_path="/proxy") == 403
        assert await at.statuses("/x/v1/chat", method="OPTIONS", headers=PREFLIGHT) == [204]


async def test_a_helper_called_as_a_method_is_gated() -> None:
    async with served(Starlette(routes=[Route("/v1/chat", Named)]), plans=PLANS) as at:
        assert [await status_of(at.app, "/v1/chat", name) for name in ("POST", "SEARCH", "search")] == [
            403
        ] * 3


async def test_an_app_in_a_route_takes_every_method() -> None:
    """Quart and Sanic have `get` and `post`: these are for decorators, and say nothing of their rules."""

    class Other:
        get = post = None

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await hello(scope, receive, send)

    async with served(Starlette(routes=[Route("/{path:path}", Other())]), plans=PLANS) as at:
        assert [await status_of(at.app, "//V1/chat/", name) for name in ("POST", "SEARCH")] == [403] * 2


@pytest.mark.parametrize(
    "app",
    [
        hello,
        Starlette(routes=[Mount("/", hello)]),
        Starlette(routes=[Route("/v1/chat", answer), Mount("/v1", hello)]),
    ],
)
async def test_a_gate_of_an_unknown_app_is_of_every_method(app: ASGIApp) -> None:
    """Views of Pyramid and apps of GraphQL take GET beside POST; an exempt route below opens none."""
    for below in ("consume: {requests: 1}", "exempt: true"):
        plans = PLANS.replace('"/{path:path}", consume: {requests: 1}', f'"/{{path:path}}", {below}')
        async with served(app, plans=plans) as at:
            methods = ("POST", "PUT", "DELETE", "BREW")
            assert [await status_of(at.app, "/v1/chat", name) for name in methods] == [403] * 4
            assert await at.statuses("/v1/chat") == [200 if len(getattr(app, "routes", ())) == 2 else 403]


async def test_a_gate_of_a_tool_is_of_messages_only() -> None:
    plans = PLANS.replace("routes:", 'routes:\n  - {match: "MCP tools/call report", feature: full}')
    async with served(hello, plans=plans) as at:
        assert [await status_of(at.app, "/mcp", name) for name in ("GET", "DELETE", "PUT")] == [200, 200, 403]


class Quart:
    """An app whose class dispatches to `asgi_app`, which may be another one."""

    url_map = SimpleNamespace(iter_rules=list[Any])

    async def asgi_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.asgi_app(scope, receive, send)


Quart.__module__ = "quart.app"


class Wrapper:
    """What stands before the app, and hands requests on; a dispatcher has further apps."""

    def __init__(self, app: ASGIApp, **further: Any) -> None:
        self.app = app
        self.__dict__ |= further

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def test_a_dispatcher_before_an_app_is_gated() -> None:
    """Werkzeug's takes the place of `wsgi_app`: its further apps take what the app itself does not."""
    for further, methods, preflight in (({}, [403, 200], 200), ({"mounts": {"/v1": hello}}, [403, 403], 204)):
        for app in (Wrapper(Quart(), **further), quart := Quart()):
            if app is quart:
                quart.asgi_app = Wrapper(quart.asgi_app, **further)  # type: ignore[method-assign]
            async with served(app, plans=PLANS) as at:
                assert [await status_of(at.app, "/v1/chat", name) for name in ("POST", "GET")] == methods
                assert await at.statuses("/v1/chat", method="OPTIONS", headers=PREFLIGHT) == [preflight]


def routed(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(iter_rules=lambda: [SimpleNamespace(**parts)])


FURTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "litestar": ({"routes": []}, {"routes": [type("ASGIRoute", (), {})()]}),
    "blacksheep": (
        {"mount_registry": SimpleNamespace(mounted_apps=[]), "router": SimpleNamespace(fallback=None)},
        {"mount_registry": SimpleNamespace(mounted_apps=[hello]), "_cors_strategy": "use_cors()"},
    ),
    "falcon": ({"_sinks": []}, {"_sinks": [hello]}),
    "flask": ({"url_map": routed(methods={"POST"})}, {"url_map": routed(methods=None)}),
}
"""By package: an app whose handlers name their methods, and one with a mount, a sink or a bare rule."""


@pytest.mark.parametrize("package", FURTHER)
async def test_mounts_and_sinks_take_every_method(package: str) -> None:
    for parts, status in zip(FURTHER[package], (200, 403), strict=True):
        kind: Any = type("App", (), {"__call__": staticmethod(hello), "__module__": package, **parts})
        async with served(kind(), plans=PLANS) as at:
            assert [await status_of(at.app, "/v1/chat", name) for name in ("POST", "GET")] == [403, status]
            if status == 403:
                assert await at.statuses("/v1/chat", method="OPTIONS", headers=PREFLIGHT) == [204]


class DjangoHandler:
    __call__ = staticmethod(hello)


DjangoHandler.__module__ = "django.core.handlers.asgi"


def django(force_script_name: str | None = None, **settings: Any) -> dict[str, ModuleType]:
    """Modules of a process that serves Django."""
    conf: Any = ModuleType("django.conf")
    conf.settings = SimpleNamespace(configured=True, FORCE_SCRIPT_NAME=force_script_name, **settings)
    return {"django.conf": conf, "django.core.handlers.asgi": ModuleType("django.core.handlers.asgi")}


async def test_djangos_forced_script_name_is_a_root_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django strips it and serves the path without it too, whatever the server's root path is."""
    for name, module in django("/api").items():
        monkeypatch.setitem(sys.modules, name, module)

    async with served(DjangoHandler(), plans=PLANS) as at:
        paths = ("/v1/chat", "/api/v1/chat", "/V1/Chat")  # A `re_path` with `(?i)` takes the last one.
        assert [await status_of(at.app, path, name) for path in paths for name in ("POST", "PUT")] == [
            403
        ] * 6


async def test_what_may_hand_requests_to_django_is_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels' router is one: Django's views take methods that no line names. Starlette may stand before."""
    for name, module in django().items():
        monkeypatch.setitem(sys.modules, name, module)
    own = Route("/v1/chat", answer, methods=["GET"])
    for app, taken in ((hello, 403), (Starlette(routes=[own, Mount("/", hello)]), 200)):
        async with served(app, plans=PLANS) as at:
            methods = ("POST", "PUT", "BREW", "GET")
            assert [await status_of(at.app, "/v1/chat", name) for name in methods] == [403] * 3 + [taken]


async def test_django_answers_preflights_behind_a_root_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """django-cors-headers looks at the path without it, and so browsers could not call the API."""
    layers = ["corsheaders.middleware.CorsMiddleware"]
    for name, module in django(MIDDLEWARE=layers, CORS_URLS_REGEX="^/v1/.*$").items():
        monkeypatch.setitem(sys.modules, name, module)
    async with served(DjangoHandler(), plans=PLANS) as at:
        transport = httpx.ASGITransport(app=at.app, root_path="/api")
        async with httpx.AsyncClient(transport=transport, base_url="http://app/api") as client:
            for path, status in (("/v1/chat", 200), ("/v2/chat", 204)):
                assert (await client.options(path, headers=PREFLIGHT)).status_code == status


class Unreadable:
    """A proxy of an app, which raises for attributes as long as there is no app."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} outside of an application context")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)


class Layered(Unreadable):
    """An app of a framework that calls its layers otherwise."""

    user_middleware = ("cors",)
    app = staticmethod(hello)


class OwnSyntax(Route):
    """A route whose path is no template of Starlette's."""

    def __init__(self, path: str, endpoint: Any) -> None:
        super().__init__(path, endpoint)
        self.path = "/<name:unknown>/{name:unknown}"
        self.param_convertors = {}


PREFLIGHT = {"origin": "https://o", "access-control-request-method": "POST"}


UNREADABLE: dict[str, Any] = {
    "proxy": Unreadable(),
    "layers": Layered(),
    "route": Starlette(routes=[OwnSyntax("/v1/chat", answer)]),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_i9_an_app_that_cannot_be_read_is_served(name: str) -> None:
    async with served(UNREADABLE[name], plans=PLANS) as at:
        assert await status_of(at.app, "//V1/chat/") == 403
        assert await at.statuses("/v1/chat", method="OPTIONS", headers=PREFLIGHT) == [204]
        assert await at.statuses("/public/x") == [404 if name == "route" else 200]


SHADOWED = """
features: [full]
meters: {requests: {unit: request}}
routes:
  - {match: "POST /v1/chat", feature: full, FIRST}
  - {match: "/v1/{path:path}", consume: {requests: 1}}
  - {match: "POST /v2/chat", feature: full, FIRST}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 100, interval: month}, features: all}
"""


@pytest.mark.parametrize("how", ["line", "file", "shadow", "off"])
async def test_what_shadow_or_off_refuses_nobody_gates_no_method(how: str) -> None:
    first = "enforcement: shadow" if how == "line" else "consume: {requests: 1}"
    plans = ("enforcement: shadow\n" if how == "file" else "") + SHADOWED.replace("FIRST", first)
    settings = {"enforcement": how} if how in {"shadow", "off"} else {}
    async with served(DjangoHandler(), plans=plans, settings=settings) as at:
        for path in ("/v1/chat", "/v2/chat"):
            assert [await status_of(at.app, path, name) for name in ("POST", "PUT", "GET")] == [200] * 3


async def test_no_spelling_leads_from_a_limit_to_a_line_in_shadow() -> None:
    plans = """
features: [full]
meters: {requests: {unit: request}}
routes:
  - {match: "POST /v1/chat", consume: {requests: 1}}
  - {match: "/{path:path}", feature: full, enforcement: shadow}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 0, overage: deny}}}
"""
    async with served(hello, plans=plans) as at:
        paths = ("/v1/chat", "//v1/chat", "/V1/chat/", "/v1/other")
        assert [await status_of(at.app, path) for path in paths] == [429, 429, 429, 200]
