"""Apps of other frameworks with two handlers, each written as its own documentation says."""

from __future__ import annotations

import json
import sys
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
    decorators: Any = __import__("django.views.decorators.http", fromlist=["require_POST"])
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
        urls.path(CHAT[1:], decorators.require_POST(chat)),
        urls.path(f"{ITEM[1:]}/<str:name>", decorators.require_POST(item)),
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


APPS: Final[dict[str, Callable[[Ran], ASGIApp]]] = {
    "litestar": litestar,
    "quart": quart,
    "blacksheep": blacksheep,
    "django": django,
    "fastmcp": fastmcp,
}
