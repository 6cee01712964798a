"""Apps of frameworks, each written as its own documentation says: with two handlers, or a folder of files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ANY", "APPS", "CHAT", "FILES", "ITEM", "MCP_CALL", "ORIGIN"]

CHAT: Final = "/v1/chat"
ITEM: Final = "/v1/items"
ANY: Final = "/v1/any"
"""A handler that takes every method, as a function does with Django."""
ORIGIN: Final = "https://app.example"
MCP_CALL: Final = json.dumps(
    {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {}}}
).encode()

Ran = list[str]
_POST: Final = ("POST",)
_FIELD: Final[Any] = {"root_path": str(Path(__file__).parent)}
_numbers = count()


def _needed(name: str) -> Any:
    return pytest.importorskip(name)


def _handler(ran: Ran, path: str, *, is_named: bool = False) -> Callable[..., Any]:
    """A handler that is given no request, and what the path has if ``is_named``."""

    async def handle() -> str:
        ran.append(path)
        return "ran"

    async def handle_name(name: str) -> str:
        ran.append(f"{path}{name}")
        return "ran"

    return handle_name if is_named else handle


def _request_handler(ran: Ran, path: str, answer: Callable[[str], Any]) -> Callable[..., Any]:
    async def handle(_request: Any, name: str = "") -> Any:
        ran.append(f"{path}{name}")
        return answer("ran")

    return handle


def litestar(ran: Ran, *, methods: Sequence[str] = _POST, cors: bool = False) -> Any:
    """Litestar: https://docs.litestar.dev/latest/usage/routing/"""
    module, config = _needed("litestar"), _needed("litestar.config.cors")
    paths = (CHAT, f"{ITEM}/{{name:str}}")
    routes = [module.route(path, http_method=[*methods])(_handler(ran, path)) for path in paths]
    layer = config.CORSConfig(allow_origins=[ORIGIN]) if cors else None
    return module.Litestar(routes, cors_config=layer, openapi_config=None)


def quart(ran: Ran, *, methods: Sequence[str] = _POST, cors: bool = False) -> Any:
    """Quart: https://quart.palletsprojects.com/en/latest/how_to_guides/routing.html"""
    app = _needed("quart").Quart("field", **_FIELD)
    app = _needed("quart_cors").cors(app, allow_origin=ORIGIN) if cors else app
    for path in (CHAT, f"{ITEM}/<name>"):
        app.route(path, methods=[*methods], endpoint=path)(_handler(ran, path, is_named="name" in path))
    return app


def blacksheep(ran: Ran, *, methods: Sequence[str] = _POST, cors: bool = False) -> Any:
    """BlackSheep: https://www.neoteroi.dev/blacksheep/routing/"""
    module = _needed("blacksheep")
    app = module.Application(router=module.Router())
    if cors:
        app.use_cors(allow_origins=ORIGIN, allow_methods="*")
    for method in methods:
        for path in (CHAT, f"{ITEM}/{{name}}"):
            app.router.add(method, path, _handler(ran, path, is_named="name" in path))
    return app


def _django(*patterns: Any, middleware: Sequence[str] = (), cors_urls: str = "^.*$") -> Any:
    """Django: https://docs.djangoproject.com/en/5.2/howto/deployment/asgi/"""
    conf, urls = import_module("django.conf"), import_module("django.urls")
    if not conf.settings.configured:
        conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="field_urls", USE_TZ=True)
        import_module("django").setup()
    conf.settings.MIDDLEWARE = middleware
    conf.settings.CORS_ALLOWED_ORIGINS = [ORIGIN]
    conf.settings.CORS_URLS_REGEX = cors_urls
    module: Any = ModuleType("field_urls")
    module.urlpatterns = patterns
    sys.modules["field_urls"] = module
    urls.clear_url_caches()
    return import_module("django.core.handlers.asgi").ASGIHandler()


def django(ran: Ran, *, cors: bool = False, cors_urls: str = "^.*$") -> Any:
    """View functions, which take every method."""
    _needed("corsheaders")
    path, answer = import_module("django.urls").path, import_module("django.http").HttpResponse
    routes = {CHAT: CHAT, f"{ITEM}/<str:name>": ITEM, ANY: ANY}
    views = [path(route[1:], _request_handler(ran, noted, answer)) for route, noted in routes.items()]
    layers = ["corsheaders.middleware.CorsMiddleware"] if cors else []
    return _django(*views, middleware=layers, cors_urls=cors_urls)


def fastmcp(ran: Ran) -> Any:
    """FastMCP, mounted in Starlette: https://gofastmcp.com/deployment/http"""
    server = _needed("fastmcp").FastMCP("field")

    def search() -> str:
        ran.append(CHAT)
        return "ran"

    server.tool(search)
    inner = server.http_app(path="/chat", stateless_http=True, json_response=True)
    return Starlette(routes=[Mount("/v1", inner)], lifespan=inner.lifespan)


def _sanic() -> Any:
    app = _needed("sanic").Sanic(f"field{next(_numbers)}", configure_logging=False)
    app.config.TOUCHUP = False  # It rewrites methods of its classes, once a process.
    return app


def sanic(ran: Ran, *, methods: Sequence[str] = _POST) -> Any:
    """Sanic: https://sanic.dev/en/guide/deployment/running.html#asgi"""
    app = _sanic()
    for name, path in (("chat", CHAT), ("item", f"{ITEM}/<name>")):
        app.add_route(_request_handler(ran, path, _needed("sanic").text), path, methods=[*methods], name=name)
    return app


def falcon(ran: Ran, *, cors: bool = False) -> Any:
    """Falcon: https://falcon.readthedocs.io/en/stable/api/routing.html"""

    class Resource:
        async def on_post(self, _request: Any, response: Any, name: str = "") -> None:
            ran.append(name)
            response.text = "ran"

    class CorsResource(Resource):
        on_get = on_options = Resource.on_post

    app = _needed("falcon.asgi").App(cors_enable=cors)
    for path in (CHAT, f"{ITEM}/{{name}}"):
        app.add_route(path, CorsResource() if cors else Resource())
    return app


def flask(ran: Ran, *, methods: Sequence[str] = _POST, cors: bool = False) -> Any:
    """Flask: https://flask.palletsprojects.com/en/stable/quickstart/#routing"""
    app = _needed("flask").Flask("field", **_FIELD)
    if cors:
        _needed("flask_cors").CORS(app, origins=[ORIGIN])

    def handle(name: str = "") -> str:
        ran.append(name)
        return "ran"

    for path in (CHAT, f"{ITEM}/<name>"):
        app.route(path, methods=[*methods], endpoint=path)(handle)
    return app


def behind_a2wsgi(app: Any) -> Any:
    """https://github.com/abersheeran/a2wsgi"""
    return _needed("a2wsgi").WSGIMiddleware(app)


APPS: Final[dict[str, Callable[[Ran], ASGIApp]]] = {
    "litestar": litestar,
    "quart": quart,
    "blacksheep": blacksheep,
    "django": django,
    "fastmcp": fastmcp,
    "sanic": sanic,
    "falcon": falcon,
    "flask, a2wsgi": lambda ran: behind_a2wsgi(flask(ran)),
    # https://flask.palletsprojects.com/en/stable/deploying/asgi/
    "flask, asgiref": lambda ran: _needed("asgiref.wsgi").WsgiToAsgi(flask(ran)),
}


def static(folder: Path) -> StaticFiles:
    """Starlette: https://www.starlette.io/staticfiles/"""
    return StaticFiles(directory=folder, html=True)


def fastapi_files(folder: Path) -> Any:
    """FastAPI: https://fastapi.tiangolo.com/tutorial/static-files/"""
    app = FastAPI(openapi_url=None)
    app.mount("/files", static(folder))
    return app


def _reading(folder: Path) -> Callable[..., Any]:
    """A handler that reads a file below a folder, as its path is handed on."""

    async def read(request: Request, _: object = None) -> FileResponse | PlainTextResponse:
        with suppress(OSError, ValueError):  # Too long, with a NUL, or of another folder.
            below = request.url.path.removeprefix("/files/")
            file = (folder / below.lstrip("/")).resolve()
            if below != request.url.path and file.is_relative_to(folder.resolve()) and file.is_file():  # noqa: ASYNC240
                return FileResponse(file)
        return PlainTextResponse("none", status_code=404)

    return read


def litestar_files(folder: Path) -> Any:
    """Litestar: https://docs.litestar.dev/latest/usage/static-files.html"""
    create = _needed("litestar.static_files").create_static_files_router
    return _needed("litestar").Litestar([create(path="/files", directories=[folder])], openapi_config=None)


def quart_files(folder: Path) -> Any:
    """Quart: https://quart.palletsprojects.com/en/latest/how_to_guides/serving_static_files.html"""
    return _needed("quart").Quart("field", static_folder=str(folder), static_url_path="/files", **_FIELD)


def django_files(folder: Path) -> Any:
    """Django: https://docs.djangoproject.com/en/5.2/howto/static-files/"""
    _needed("django")
    serve, re_path = import_module("django.views.static").serve, import_module("django.urls").re_path
    return _django(re_path(r"^files/(?P<path>.*)$", serve, {"document_root": str(folder)}))


def falcon_files(folder: Path) -> Any:
    """Falcon: https://falcon.readthedocs.io/en/stable/api/app.html"""
    app = _needed("falcon.asgi").App()
    app.add_static_route("/files", str(folder))
    return app


def blacksheep_files(folder: Path) -> Any:
    """BlackSheep: https://www.neoteroi.dev/blacksheep/static-files/"""
    module = _needed("blacksheep")
    app = module.Application(router=module.Router())
    app.serve_files(str(folder), root_path="files", extensions={".txt"})
    return app


def sanic_files(folder: Path) -> Any:
    """Sanic: https://sanic.dev/en/guide/basics/static.html"""
    app = _sanic()
    app.static("/files", str(folder), name="files")
    return app


def flask_files(folder: Path) -> Any:
    """Flask: https://flask.palletsprojects.com/en/stable/tutorial/static/"""
    app = _needed("flask").Flask("field", static_folder=str(folder), static_url_path="/files", **_FIELD)
    return behind_a2wsgi(app)


def late_mount(folder: Path) -> Any:
    """A mount that is added by the first request."""
    app = Starlette()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if not app.routes:
            app.mount("/files", static(folder))
        await app(scope, receive, send)

    return serve


def function_middleware(folder: Path) -> Any:
    """FastAPI: https://fastapi.tiangolo.com/tutorial/middleware/"""
    app = FastAPI(openapi_url=None)
    app.middleware("http")(_reading(folder))
    return app


def cadwyn_files(folder: Path) -> Any:
    """Cadwyn: https://docs.cadwyn.dev/quickstart/setup/"""
    module = _needed("cadwyn")
    app = module.Cadwyn(versions=module.VersionBundle(module.HeadVersion(), module.Version("2026-01-01")))
    app.mount("/files", static(folder))
    return app


FILES: Final[dict[str, Callable[[Path], ASGIApp]]] = {
    "mount": lambda folder: Starlette(routes=[Mount("/files", static(folder))]),
    "fastapi": fastapi_files,
    "fastapi behind a root path": fastapi_files,
    "handler": lambda folder: Starlette(routes=[Route("/files/{path:path}", _reading(folder))]),
    "late mount": late_mount,
    "error handler": lambda folder: Starlette(exception_handlers={404: _reading(folder)}),
    "function middleware": function_middleware,
    "cadwyn": cadwyn_files,
    "litestar": litestar_files,
    "quart": quart_files,
    "django": django_files,
    "falcon": falcon_files,
    "blacksheep": blacksheep_files,
    "sanic": sanic_files,
    "flask, a2wsgi": flask_files,
}
