"""CORS preflights to apps of other frameworks, with their CORS layer and without: no gated handler runs."""

from __future__ import annotations

import sys
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.app import served
from drivers.llm_apps import listening

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

ORIGIN: Final = "https://app.example"
ASKS: Final = {"origin": ORIGIN, "access-control-request-method": "GET", "x-customer-id": ""}
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
features: [exports]
routes:
  - {match: "/export", feature: exports}
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
Ran = list[str]
_numbers = count()


def django(ran: Ran, *, cors: bool, pattern: str = "^/.*$") -> Any:
    """A view function, which takes OPTIONS as it takes GET."""
    pytest.importorskip("corsheaders")
    conf: Any = __import__("django.conf", fromlist=["settings"])
    urls: Any = __import__("django.urls", fromlist=["path"])
    http: Any = __import__("django.http", fromlist=["HttpResponse"])
    asgi: Any = __import__("django.core.handlers.asgi", fromlist=["ASGIHandler"])
    if not conf.settings.configured:
        conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="field_urls", MIDDLEWARE=[], USE_TZ=True)
        __import__("django").setup()
    conf.settings.MIDDLEWARE = ["corsheaders.middleware.CorsMiddleware"] if cors else []
    conf.settings.CORS_ALLOWED_ORIGINS = [ORIGIN]
    conf.settings.CORS_URLS_REGEX = pattern

    async def export(_: Any) -> Any:
        ran.append("export")
        return http.HttpResponse("the export")

    module: Any = ModuleType("field_urls")
    module.urlpatterns = [urls.path("export", export)]
    sys.modules["field_urls"] = module
    urls.clear_url_caches()
    return asgi.ASGIHandler()


def litestar(ran: Ran, *, cors: bool) -> Any:
    module: Any = pytest.importorskip("litestar")
    config: Any = pytest.importorskip("litestar.config.cors")

    async def export() -> str:
        ran.append("export")
        return "the export"

    handler = module.route("/export", http_method=["GET", "OPTIONS"])(export)
    cors_config = config.CORSConfig(allow_origins=[ORIGIN]) if cors else None
    return module.Litestar([handler], cors_config=cors_config, openapi_config=None)


def blacksheep(ran: Ran, *, cors: bool) -> Any:
    module: Any = pytest.importorskip("blacksheep")
    app = module.Application(router=module.Router())
    if cors:
        app.use_cors(allow_origins=ORIGIN, allow_methods="*")

    async def export() -> str:
        ran.append("export")
        return "the export"

    app.router.add_get("/export", export)
    if not cors:
        app.router.add_options("/export", export)
    return app


def quart(ran: Ran, folder: Path, *, methods: tuple[str, ...]) -> Any:
    module: Any = pytest.importorskip("quart")
    quart_cors: Any = pytest.importorskip("quart_cors")
    app = quart_cors.cors(module.Quart("field", root_path=str(folder)), allow_origin=ORIGIN)

    async def export() -> str:
        ran.append("export")
        return "the export"

    app.route("/export", methods=list(methods))(export)
    return app


def flask(ran: Ran, folder: Path) -> Any:
    module: Any = pytest.importorskip("flask")
    flask_cors: Any = pytest.importorskip("flask_cors")
    adapter: Any = pytest.importorskip("a2wsgi")
    app = module.Flask("field", root_path=str(folder))
    flask_cors.CORS(app, origins=[ORIGIN])

    def export() -> str:
        ran.append("export")
        return "the export"

    app.route("/export")(export)
    return adapter.WSGIMiddleware(app)


def sanic(ran: Ran, *, methods: tuple[str, ...]) -> Any:
    module: Any = pytest.importorskip("sanic")
    app = module.Sanic(f"preflights{next(_numbers)}", configure_logging=False)
    app.config.TOUCHUP = False  # It rewrites methods of its classes, once a process.

    async def export(_: Any) -> Any:
        ran.append("export")
        return module.text("the export")

    app.add_route(export, "/export", methods=list(methods))
    return app


def falcon(ran: Ran) -> Any:
    module: Any = pytest.importorskip("falcon.asgi")

    class Export:
        async def on_get(self, _: Any, response: Any) -> None:
            ran.append("export")
            response.text = "the export"

        on_options = on_get

    app = module.App(cors_enable=True)
    app.add_route("/export", Export())
    return app


ANSWERING: Final[dict[str, Callable[[Ran, Path], ASGIApp]]] = {
    "django": lambda ran, _: django(ran, cors=True),
    "django in a mount": lambda ran, _: Starlette(routes=[Mount("/", django(ran, cors=True))]),
    "litestar": lambda ran, _: litestar(ran, cors=True),
    "blacksheep": lambda ran, _: blacksheep(ran, cors=True),
    "quart": lambda ran, folder: quart(ran, folder, methods=("GET",)),
    "flask": flask,
}
OPEN: Final[dict[str, Callable[[Ran, Path], ASGIApp]]] = {
    "django": lambda ran, _: django(ran, cors=False),
    "django, for other paths": lambda ran, _: django(ran, cors=True, pattern="^/api/.*$"),
    "django in a mount": lambda ran, _: Starlette(routes=[Mount("/", django(ran, cors=False))]),
    "litestar": lambda ran, _: litestar(ran, cors=False),
    "blacksheep": lambda ran, _: blacksheep(ran, cors=False),
    "quart": lambda ran, folder: quart(ran, folder, methods=("GET", "OPTIONS")),
    "sanic": lambda ran, _: sanic(ran, methods=("GET", "OPTIONS")),
    "falcon": lambda ran, _: falcon(ran),
}


@pytest.mark.parametrize("name", ANSWERING)
async def test_the_frameworks_own_layer_answers(name: str, tmp_path: Path) -> None:
    ran: Ran = []
    async with served(ANSWERING[name](ran, tmp_path), plans=PLANS) as at:
        answer = await at.client.options("/export", headers=ASKS)
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert ran == []


@pytest.mark.parametrize("name", OPEN)
async def test_without_a_known_layer_no_handler_runs(name: str, tmp_path: Path) -> None:
    """F-20a: a view function of Django answered preflights with the gated export."""
    ran: Ran = []
    async with served(OPEN[name](ran, tmp_path), plans=PLANS, cors=[ORIGIN]) as at:
        answer = await at.client.options("/export", headers=ASKS)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert (await at.client.get("/export")).status_code == 403
    assert ran == []


async def test_sanic_refuses_where_no_route_takes_options() -> None:
    ran: Ran = []
    async with (
        served(sanic(ran, methods=("GET",)), plans=PLANS) as at,
        listening(at.app, lifespan="auto") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.options("/export", headers=ASKS)).status_code == 405
    assert ran == []
