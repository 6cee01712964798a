"""Apps of other frameworks with two handlers, each written as its own documentation says."""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

__all__ = ["ANY", "APPS", "CHAT", "ITEM", "MCP_CALL"]

CHAT: Final = "/v1/chat"
ITEM: Final = "/v1/items"
ANY: Final = "/v1/any"
"""A handler that takes every method, as a function does with Django."""
MCP_CALL: Final = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "search", "arguments": {}},
    }
).encode()

Ran = list[str]
_numbers = count()


def litestar(ran: Ran) -> ASGIApp:
    """Litestar: https://docs.litestar.dev/latest/usage/routing/"""
    module: Any = pytest.importorskip("litestar")

    async def chat() -> str:
        ran.append(CHAT)
        return "ran"

    async def item() -> str:
        ran.append(ITEM)
        return "ran"

    handlers = [module.post(CHAT)(chat), module.post(f"{ITEM}/{{name:str}}")(item)]
    return module.Litestar(handlers, openapi_config=None)  # type: ignore[no-any-return]


def quart(ran: Ran) -> ASGIApp:
    """Quart: https://quart.palletsprojects.com/en/latest/how_to_guides/routing.html"""
    module: Any = pytest.importorskip("quart")
    app = module.Quart("field", root_path=str(Path(__file__).parent))

    async def chat() -> str:
        ran.append(CHAT)
        return "ran"

    async def item(name: str) -> str:
        ran.append(f"{ITEM}/{name}")
        return "ran"

    app.post(CHAT)(chat)
    app.post(f"{ITEM}/<name>")(item)
    return app  # type: ignore[no-any-return]


def blacksheep(ran: Ran) -> ASGIApp:
    """BlackSheep: https://www.neoteroi.dev/blacksheep/routing/"""
    module: Any = pytest.importorskip("blacksheep")
    app = module.Application(router=module.Router())

    async def chat() -> str:
        ran.append(CHAT)
        return "ran"

    async def item(name: str) -> str:
        ran.append(f"{ITEM}/{name}")
        return "ran"

    app.router.add_post(CHAT, chat)
    app.router.add_post(f"{ITEM}/{{name}}", item)
    return app  # type: ignore[no-any-return]


def django(ran: Ran) -> ASGIApp:
    """Django: https://docs.djangoproject.com/en/5.2/howto/deployment/asgi/"""
    pytest.importorskip("django")
    conf: Any = __import__("django.conf", fromlist=["settings"])
    urls: Any = __import__("django.urls", fromlist=["path"])
    http: Any = __import__("django.http", fromlist=["HttpResponse"])
    asgi: Any = __import__("django.core.handlers.asgi", fromlist=["ASGIHandler"])
    setup: Any = __import__("django")
    if not conf.settings.configured:
        conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="field_urls", MIDDLEWARE=[], USE_TZ=True)
        setup.setup()

    async def chat(request: Any) -> Any:
        del request
        ran.append(CHAT)
        return http.HttpResponse("ran")

    async def item(request: Any, name: str) -> Any:
        del request
        ran.append(f"{ITEM}/{name}")
        return http.HttpResponse("ran")

    async def anything(request: Any) -> Any:
        del request
        ran.append(ANY)
        return http.HttpResponse("ran")

    module = ModuleType("field_urls")
    module.urlpatterns = [  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        urls.path(CHAT[1:], chat),
        urls.path(f"{ITEM[1:]}/<str:name>", item),
        urls.path(ANY[1:], anything),
    ]
    sys.modules["field_urls"] = module
    urls.clear_url_caches()
    return asgi.ASGIHandler()  # type: ignore[no-any-return]


def fastmcp(ran: Ran) -> ASGIApp:
    """FastMCP, mounted in Starlette: https://gofastmcp.com/deployment/http"""
    module: Any = pytest.importorskip("fastmcp")
    routing: Any = pytest.importorskip("starlette.routing")
    applications: Any = pytest.importorskip("starlette.applications")
    server = module.FastMCP("field")

    def search() -> str:
        """Find something."""
        ran.append(CHAT)
        return "ran"

    server.tool(search)
    inner = server.http_app(path="/chat", stateless_http=True, json_response=True)
    return applications.Starlette(  # type: ignore[no-any-return]
        routes=[routing.Mount("/v1", inner)], lifespan=inner.lifespan
    )


def sanic(ran: Ran) -> ASGIApp:
    """Sanic: https://sanic.dev/en/guide/deployment/running.html#asgi"""
    module: Any = pytest.importorskip("sanic")
    app = module.Sanic(f"field{next(_numbers)}", configure_logging=False)
    app.config.TOUCHUP = False  # It rewrites methods of its classes, once a process.

    async def chat(request: Any) -> Any:
        del request
        ran.append(CHAT)
        return module.text("ran")

    async def item(request: Any, name: str) -> Any:
        del request
        ran.append(f"{ITEM}/{name}")
        return module.text("ran")

    app.add_route(chat, CHAT, methods=["POST"], name="chat")
    app.add_route(item, f"{ITEM}/<name>", methods=["POST"], name="item")
    return app  # type: ignore[no-any-return]


def falcon(ran: Ran) -> ASGIApp:
    """Falcon: https://falcon.readthedocs.io/en/stable/api/routing.html"""
    module: Any = pytest.importorskip("falcon.asgi")

    class Chat:
        async def on_post(self, _request: Any, response: Any) -> None:
            ran.append(CHAT)
            response.text = "ran"

    class Item:
        async def on_post(self, _request: Any, response: Any, name: str) -> None:
            ran.append(f"{ITEM}/{name}")
            response.text = "ran"

    app = module.App()
    app.add_route(CHAT, Chat())
    app.add_route(f"{ITEM}/{{name}}", Item())
    return app  # type: ignore[no-any-return]


def _flask(ran: Ran) -> Any:
    """Flask: https://flask.palletsprojects.com/en/stable/quickstart/#routing"""
    module: Any = pytest.importorskip("flask")
    app = module.Flask("field", root_path=str(Path(__file__).parent))

    def chat() -> str:
        ran.append(CHAT)
        return "ran"

    def item(name: str) -> str:
        ran.append(f"{ITEM}/{name}")
        return "ran"

    app.post(CHAT)(chat)
    app.post(f"{ITEM}/<name>")(item)
    return app


def flask_a2wsgi(ran: Ran) -> ASGIApp:
    """Flask behind a2wsgi: https://github.com/abersheeran/a2wsgi"""
    module: Any = pytest.importorskip("a2wsgi")
    return module.WSGIMiddleware(_flask(ran))  # type: ignore[no-any-return]


def flask_asgiref(ran: Ran) -> ASGIApp:
    """Flask behind asgiref: https://flask.palletsprojects.com/en/stable/deploying/asgi/"""
    module: Any = pytest.importorskip("asgiref.wsgi")
    return module.WsgiToAsgi(_flask(ran))  # type: ignore[no-any-return]


APPS: Final[dict[str, Callable[[Ran], ASGIApp]]] = {
    "litestar": litestar,
    "quart": quart,
    "blacksheep": blacksheep,
    "django": django,
    "fastmcp": fastmcp,
    "sanic": sanic,
    "falcon": falcon,
    "flask, a2wsgi": flask_a2wsgi,
    "flask, asgiref": flask_asgiref,
}
