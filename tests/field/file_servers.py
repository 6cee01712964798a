"""Apps that serve the files of a folder below /files, each as its own documentation says."""

from __future__ import annotations

import sys
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import ASGIApp

__all__ = ["APPS"]

_numbers = count()


def starlette(folder: Path) -> Any:
    """Starlette: https://www.starlette.io/staticfiles/"""
    return Starlette(routes=[Mount("/files", static(folder))])


def static(folder: Path) -> StaticFiles:
    return StaticFiles(directory=folder, html=True)


def fastapi(folder: Path) -> Any:
    """FastAPI: https://fastapi.tiangolo.com/tutorial/static-files/"""
    app = FastAPI(openapi_url=None)
    app.mount("/files", static(folder))
    return app


def found_in(folder: Path, name: str) -> Path | None:
    path = (folder / name.lstrip("/")).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def by_hand(folder: Path) -> Any:
    """A handler that serves files as many apps do."""

    async def read(request: Request) -> FileResponse | PlainTextResponse:
        try:
            path = found_in(folder, request.path_params["path"])
            if path is not None:
                return FileResponse(path)
        except (OSError, ValueError):
            pass  # Too long, or with a NUL.
        return PlainTextResponse("none", status_code=404)

    return Starlette(routes=[Route("/files/{path:path}", read)])


def litestar(folder: Path) -> Any:
    """Litestar: https://docs.litestar.dev/latest/usage/static-files.html"""
    module: Any = pytest.importorskip("litestar")
    files: Any = pytest.importorskip("litestar.static_files")
    router = files.create_static_files_router(path="/files", directories=[folder])
    return module.Litestar([router], openapi_config=None)


def quart(folder: Path) -> Any:
    """Quart: https://quart.palletsprojects.com/en/latest/how_to_guides/serving_static_files.html"""
    module: Any = pytest.importorskip("quart")
    return module.Quart(
        "field", root_path=str(folder.parent), static_folder=str(folder), static_url_path="/files"
    )


def django(folder: Path) -> Any:
    """Django: https://docs.djangoproject.com/en/5.2/howto/static-files/"""
    pytest.importorskip("django")
    conf: Any = __import__("django.conf", fromlist=["settings"])
    urls: Any = __import__("django.urls", fromlist=["re_path"])
    views: Any = __import__("django.views.static", fromlist=["serve"])
    asgi: Any = __import__("django.core.handlers.asgi", fromlist=["ASGIHandler"])
    if not conf.settings.configured:
        conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="field_urls", MIDDLEWARE=[], USE_TZ=True)
        __import__("django").setup()
    module: Any = ModuleType("field_urls")
    module.urlpatterns = [urls.re_path(r"^files/(?P<path>.*)$", views.serve, {"document_root": str(folder)})]
    sys.modules["field_urls"] = module
    urls.clear_url_caches()
    return asgi.ASGIHandler()


def falcon(folder: Path) -> Any:
    """Falcon: https://falcon.readthedocs.io/en/stable/api/app.html"""
    module: Any = pytest.importorskip("falcon.asgi")
    app = module.App()
    app.add_static_route("/files", str(folder))
    return app


def blacksheep(folder: Path) -> Any:
    """BlackSheep: https://www.neoteroi.dev/blacksheep/static-files/"""
    module: Any = pytest.importorskip("blacksheep")
    app = module.Application(router=module.Router())
    app.serve_files(str(folder), root_path="files", extensions={".txt"})
    return app


def sanic(folder: Path) -> Any:
    """Sanic: https://sanic.dev/en/guide/basics/static.html"""
    module: Any = pytest.importorskip("sanic")
    app = module.Sanic(f"files{next(_numbers)}", configure_logging=False)
    app.config.TOUCHUP = False  # It rewrites methods of its classes, once a process.
    app.static("/files", str(folder), name="files")
    return app


def flask_a2wsgi(folder: Path) -> Any:
    """Flask behind a2wsgi: https://flask.palletsprojects.com/en/stable/tutorial/static/"""
    module: Any = pytest.importorskip("flask")
    adapter: Any = pytest.importorskip("a2wsgi")
    app = module.Flask(
        "field", root_path=str(folder.parent), static_folder=str(folder), static_url_path="/files"
    )
    return adapter.WSGIMiddleware(app)


APPS: Final[dict[str, Callable[[Path], ASGIApp]]] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "fastapi behind a root path": fastapi,
    "litestar behind a root path": litestar,
    "handler with a path": by_hand,
    "mount in a mount": lambda folder: Starlette(
        routes=[Mount("", routes=[Mount("/files", static(folder))])]
    ),
    "mount in a host": lambda folder: Starlette(
        routes=[Host("x", app=Router([Mount("/files", static(folder))]))]
    ),
    "host in a mount": lambda folder: Starlette(
        routes=[Mount("/files", routes=[Host("x", app=Router([Mount("", static(folder))]))])]
    ),
    "litestar": litestar,
    "litestar in a host": lambda folder: Starlette(routes=[Host("x", app=litestar(folder))]),
    "litestar in a route": lambda folder: Starlette(routes=[Route("/{path:path}", litestar(folder))]),
    "quart": quart,
    "quart in a host": lambda folder: Starlette(routes=[Host("x", app=quart(folder))]),
    "django": django,
    "django in a route": lambda folder: Starlette(routes=[Route("/{path:path}", django(folder))]),
    "falcon": falcon,
    "blacksheep": blacksheep,
    "blacksheep in a route": lambda folder: Starlette(routes=[Route("/{path:path}", blacksheep(folder))]),
    "sanic": sanic,
    "flask, a2wsgi": flask_a2wsgi,
}
