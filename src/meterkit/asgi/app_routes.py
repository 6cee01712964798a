"""The routes of a Starlette or FastAPI app, as clients see them: those of mounts and hosts too."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from sys import modules
from typing import TYPE_CHECKING, Any, Final

from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import PARAM_REGEX, Host, Mount, WebSocketRoute, compile_path
from starlette.staticfiles import StaticFiles

from meterkit.asgi.middleware import MeterMiddleware
from meterkit.asgi.routing import own_root_path
from meterkit.catalog.match_syntax import WEBSOCKET
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from meterkit.catalog import Catalog

__all__ = ["AppRoute", "Decider", "example_path", "routes_of"]

_WRAPPERS_MAX: Final = 100
ANY_METHOD: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""What stands for all methods where an app does not say which it takes."""

_READING: Final = ("GET", "HEAD")
_ALL_METHODS: Final = (*ANY_METHOD, "HEAD", "OPTIONS")
_EXAMPLES: Final = {
    "str": "~",
    "path": "~/~",
    "int": "7340033",
    "float": "7340033.5",
    "uuid": "9f1c2b7e-54a3-4d0f-8a6e-0c1d2e3f4a5b",
}
"""What a parameter stands for where a path is made of a template: no line is written for just that."""
_FURTHER_EXAMPLES: Final = (*_EXAMPLES.values(), "a", "aa", "aaa", "2031-06-10", "2031-06-10T12:00:00")
_GROUP: Final = re.compile(r"\(\?P<\w+>")


@dataclass(frozen=True, slots=True, eq=False)
class Decider:
    """A MeterMiddleware, as far as it says which line takes a request.

    Attributes:
        catalog: its kit's.
        root_path: what the app that it wraps takes for its root path, whatever the server says.
        mount: an example of the path at which it is mounted; empty where it is not.
    """

    catalog: Catalog
    root_path: str
    mount: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoute:
    """A route, or a mounted app that does not tell its routes.

    Attributes:
        methods: ``("WS",)`` for a websocket.
        pieces: the path template, cut where mounts end.
        host: the template of the host it is for, or None.
        decider: what decides its requests; None where none does.
    """

    methods: tuple[str, ...]
    pieces: tuple[str, ...]
    host: str | None
    decider: Decider | None

    @property
    def path(self) -> str:
        """The path template as clients see it."""
        return "".join(self.pieces)

    def pattern(self) -> re.Pattern[str]:
        """What matches its paths, by Starlette's own patterns. Mounts may repeat the name of a parameter."""
        bodies = [compile_path(piece)[0].pattern[1:-1] for piece in self.pieces if piece]
        return re.compile(_GROUP.sub("(?:", "".join(bodies)))


def example_path(template: str) -> str:
    """A path that falls under a template."""
    return PARAM_REGEX.sub(lambda parameter: _example(parameter[2] or ":str"), template)


def _example(convertor: str) -> str:
    name = convertor.removeprefix(":")
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    pattern = getattr(CONVERTOR_TYPES.get(name), "regex", "")  # One of the app's own.
    return next((text for text in _FURTHER_EXAMPLES if re.fullmatch(pattern, text)), _EXAMPLES["str"])


@dataclass(frozen=True, slots=True)
class _Place:
    pieces: tuple[str, ...] = ()
    host: str | None = None
    decider: Decider | None = None


def routes_of(app: object) -> list[AppRoute]:
    """All routes of an app, in the order in which it tries them; looked through what wraps it.

    Raises:
        MeterkitError: the app does not tell its routes.
    """
    inner, place = _unwrapped(app, _Place())
    if not hasattr(inner, "routes"):
        raise MeterkitError(
            f"the app does not tell its routes: found a value of type {type(inner).__name__}; allowed is an"
            " app of Starlette or FastAPI, or what wraps one and has it as `.app`"
        )
    return list(_walk(inner, place))


def _unwrapped(app: Any, place: _Place) -> tuple[Any, _Place]:
    """What is wrapped in the end, and what decides its requests: the outermost of the middlewares."""
    for _ in range(_WRAPPERS_MAX):
        if isinstance(app, MeterMiddleware):
            place = _decided(place, app.catalog, app.app)
        for added in getattr(app, "user_middleware", ()):
            if isinstance(added.cls, type) and issubclass(added.cls, MeterMiddleware):
                place = _decided(place, added.kwargs["kit"].store.catalog, app)
        if hasattr(app, "routes"):
            stack = getattr(app, "middleware_stack", None)  # A router's own.
            return app, place if stack is None else _unwrapped(stack, place)[1]
        inner = getattr(app, "app", None)
        if inner is None:
            break
        app = inner
    return app, place


def _decided(place: _Place, catalog: Catalog, app: object) -> _Place:
    if place.decider is not None:
        return place
    mount = example_path("".join(place.pieces))
    return replace(place, decider=Decider(catalog, own_root_path(app), mount))


def _walk(app: Any, place: _Place) -> Iterator[AppRoute]:
    for told in _told(app):
        kind = getattr(told, "original_route", told)
        # Where FastAPI made one anew, with the prefix; its first releases that do so do not look there.
        route = getattr(told, "starlette_route", None) or told
        if isinstance(kind, Host):
            yield from _below(route.app, replace(place, host=route.host))
        elif isinstance(kind, Mount):
            yield from _below(route.app, replace(place, pieces=(*place.pieces, route.path)))
        elif isinstance(getattr(route, "path", None), str):
            yield AppRoute(
                methods=(WEBSOCKET,) if isinstance(kind, WebSocketRoute) else _methods(route),
                pieces=(*place.pieces, route.path),
                host=place.host,
                decider=_unwrapped(getattr(route, "app", None), place)[1].decider,
            )


def _told(app: Any) -> Iterable[Any]:
    # FastAPI keeps the routers that an app includes, and tells what their routes come to there.
    resolve: Callable[[Any], Iterable[Any]] = getattr(
        modules.get("fastapi.routing"), "iter_route_contexts", iter
    )
    return resolve(app.routes)


def _below(app: Any, place: _Place) -> Iterator[AppRoute]:
    inner, place = _unwrapped(app, place)
    if hasattr(inner, "routes"):
        yield from _walk(inner, place)
        return
    yield AppRoute(
        methods=_READING if isinstance(inner, StaticFiles) else ANY_METHOD,
        pieces=(*place.pieces, "/{path:path}"),
        host=place.host,
        decider=place.decider,
    )


def _methods(route: Any) -> tuple[str, ...]:
    told: Sequence[str] = sorted(route.methods or ())
    if not told:  # A class of Starlette's has them as functions; any other app takes what it likes.
        endpoint = getattr(route, "endpoint", None)
        told = [name for name in _ALL_METHODS if hasattr(endpoint, name.lower())]
    return tuple(told) or ANY_METHOD
