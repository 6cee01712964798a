"""The active plans file, compiled for the middleware: routers, MCP lines, preflights, limit fields."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from sys import modules
from typing import TYPE_CHECKING, Any, Final, Self

from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from meterkit.asgi.app_walk import packages_of, path_pattern, walk_app
from meterkit.asgi.buffered_body import has_body
from meterkit.asgi.identify import client_ip
from meterkit.asgi.limit_fields import FixedFields, LimitFields
from meterkit.asgi.mcp import McpLines
from meterkit.asgi.path_readings import path_rules_of_app
from meterkit.asgi.route_matching import Router, is_preflight, root_path_of_app, routed_paths
from meterkit.catalog.routes import charging_meters, is_fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from meterkit.asgi.app_walk import AppPlace
    from meterkit.asgi.logs import TroubleLog
    from meterkit.asgi.path_readings import Paths
    from meterkit.catalog import Route
    from meterkit.decisions.compiled_decision import Program
    from meterkit.store.views import CustomerCache, CustomerView

    _RouterOf = Callable[..., Router]

_PROGRAMS_MAX: Final = 1_000
_OPTIONS: Final = "OPTIONS"


class ActivePlans:
    """Plans file, compiled for the middleware; a request is decided by one, also if it changes meanwhile."""

    def __init__(
        self,
        cache: CustomerCache,
        router_of: _RouterOf,
        without_mount: Callable[[Route, Route | None, str], None],
        preflights: Preflights,
    ) -> None:
        self.cache = cache
        self.preflights = preflights
        self._router_of = router_of
        self._polls: dict[tuple[int, tuple[str, ...]], Route] = {}
        self._former: list[object] = []  # The identity of a route stands for it as long as it lives.
        cache.routes.subscribe(self._use_learned)
        routes = cache.routes.current
        self.router = router_of(routes, messages_first=True, without_mount=without_mount)
        self.mcp = McpLines(routes, router_of)
        self.limit_fields: dict[Program, LimitFields] = {}
        self.policy_fields: dict[Program, FixedFields] = {}
        anonymous = cache.catalog.anonymous
        self.by_ip = None if anonymous is None else client_ip(trusted_proxies=anonymous.trusted_proxies)

    @classmethod
    def adopt(
        cls,
        cache: CustomerCache,
        app: ASGIApp,
        paths: Paths | None,
        cors: Collection[str],
        troubles: TroubleLog,
    ) -> Self:
        """Compile a plans file for an app, whose routes are walked once.

        An app that cannot be walked is served nevertheless: like one of unknown kind.
        """
        try:
            reading, root_path = path_rules_of_app(app, paths), root_path_of_app(app)
            preflights = Preflights(app, app, cors, troubles, inner_root=reading.inner_root)
        except Exception as error:  # noqa: BLE001 - whatever its attributes raise; logged there
            troubles.log_unread_app(error)
            reading, root_path = path_rules_of_app(None, paths), ""
            preflights = Preflights(app, None, cors, troubles)
        router_of = partial(Router, root_path=root_path, reading=reading)
        without_mount = partial(troubles.log_without_mount, cache.catalog.source)
        return cls(cache, router_of, without_mount, preflights)

    def _use_learned(self) -> None:
        """Decide by the routes with the meters learned from recorded usage."""
        routes = self.cache.routes.current
        self._former += (self.router, self.mcp)
        self.router = self._router_of(routes, messages_first=True)
        self.mcp = McpLines(routes, self._router_of)

    def poll_route(self, route: Route) -> Route:
        """Route for requests that only fetch work: they ask for no tokens, and reserve none."""
        return self._cached_poll_route(route, route.records)

    def job_poll_route(self, route: Route) -> Route:
        """Route for a request that fetches its customer's job: it asks for no recorded tokens either."""
        tokens = charging_meters(self.cache.catalog.meters)
        return self._cached_poll_route(route, tuple(name for name in route.records if name not in tokens))

    def _cached_poll_route(self, route: Route, records: tuple[str, ...]) -> Route:
        key = id(route), records
        found = self._polls.get(key)
        if found is None:
            found = replace(
                route, is_poll=True, reserve=(), reads_model=False, refuses_unpriced=(), records=records
            )
            self._polls[key] = found
            self._former.append(route)
        return found

    @staticmethod
    def may_be_poll(route: Route, scope: Scope) -> bool:
        """Whether an HTTP request can only fetch work, unless it has a body that no header announces."""
        return is_fetched(route.usage, scope["method"].upper()) and not has_body(scope)

    def unknown_customer(self) -> CustomerView:
        """View for requests that pass although their customer is unknown."""
        return self.cache.get("unknown", anonymous=True)

    def fields_of(self, program: Program, route: Route) -> LimitFields:
        """Compile the limit fields of a decision, once."""
        if len(self.limit_fields) >= _PROGRAMS_MAX:
            self.limit_fields.clear()
        fields = self.limit_fields[program] = LimitFields(program, route.headers)
        return fields

    def policies_of(self, program: Program, route: Route) -> FixedFields:
        """Compile the limit fields of a decision without the store, once."""
        if len(self.policy_fields) >= _PROGRAMS_MAX:
            self.policy_fields.clear()
        fields = self.policy_fields[program] = FixedFields.of_policies(program, route.headers)
        return fields


class Preflights:
    """Serves CORS preflights that fall under a line that decides.

    Args:
        app: what the middleware wraps.
        known: the same; None where it cannot be walked.
        cors: the origins whose scripts may read refusals.
        troubles: takes preflights that browsers will not accept.
        inner_root: root path that an inner app sets itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        known: ASGIApp | None,
        cors: Collection[str],
        troubles: TroubleLog,
        *,
        inner_root: str = "",
    ) -> None:
        self._app = app
        self._roots = (root_path_of_app(known), inner_root)
        self._places = [place for place in walk_app(known) if place.accepts(_OPTIONS)]
        self._cors = frozenset(cors)
        self._troubles = troubles

    async def serve(self, route: Route, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a preflight, and return whether the request was one.

        The app gets it where a CORS layer answers it, or no handler takes its path with OPTIONS; and where
        the line refuses nothing.
        """
        if not is_preflight(scope):
            return False
        routed = [path for root in self._roots for path in routed_paths(scope, scope["path"], root)]
        if route.enforcement != "on" or not any(
            any(map(place.matches, routed)) and not _is_safe(place, routed[0]) for place in self._places
        ):
            await self._app(scope, receive, send)
            return True
        fields = self._cors_fields(dict(scope["headers"]))
        if len(fields) == 1:
            self._troubles.log_preflight(route, scope)
        await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT.value, "headers": fields})
        await send({"type": "http.response.body", "body": b""})
        return True

    def _cors_fields(self, asked: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        fields = [(b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
        origin = asked[b"origin"]
        is_any = "*" in self._cors
        if is_any or origin.decode("latin-1") in self._cors:
            fields += [
                (b"access-control-allow-origin", b"*" if is_any else origin),
                (b"access-control-allow-methods", asked[b"access-control-request-method"]),
            ]
            if not is_any:  # As in refusals: browsers else send no request with cookies.
                fields.append((b"access-control-allow-credentials", b"true"))
            if b"access-control-request-headers" in asked:
                fields.append((b"access-control-allow-headers", asked[b"access-control-request-headers"]))
        return fields


def _is_safe(place: AppPlace, path: str) -> bool:
    """Whether a preflight at a place runs no handler: a CORS layer answers it, or the framework does.

    Args:
        place: takes it.
        path: without the root path.
    """
    with suppress(Exception):  # What cannot be read may run a handler.
        return (
            isinstance(place.app, StaticFiles)
            or any(_is_cors_layer(wrapper.app) for wrapper in place.way.wrappers)
            or any(
                is_answered(place.app, _path_within(place, path))
                for name, is_answered in _ANSWERED.items()
                if name in packages_of(place.app)
            )
        )
    return False


def _path_within(place: AppPlace, path: str) -> str:
    """Strip the mounts from a path, as the mounted app sees it."""
    mounts = path_pattern(place.pieces[:-1]).match(path)
    return path if mounts is None else path[mounts.end() :]


def _is_cors_layer(wrapper: Any) -> bool:
    kinds: list[Any] = [type(wrapper), *(each.cls for each in getattr(wrapper, "user_middleware", ()))]
    return any(
        # A subclass may pass preflights on.
        isinstance(kind, type)
        and issubclass(kind, CORSMiddleware)
        and kind.__call__ is CORSMiddleware.__call__
        for kind in kinds
    )


def _by_litestar(app: Any, _: str) -> bool:
    return app.cors_config is not None


def _by_blacksheep(app: Any, _: str) -> bool:
    """Whether it has a CORS layer, and no mounted app, which takes a request before that layer."""
    return getattr(app, "_cors_strategy", None) is not None and not app.mount_registry.mounted_apps


def _by_django(_: object, path: str) -> bool:
    """Whether django-cors-headers answers, which it does for each preflight of the paths in its settings."""
    settings: Any = getattr(modules.get("django.conf"), "settings", None)
    pattern = getattr(settings, "CORS_URLS_REGEX", r"^.*$")
    return (
        "corsheaders.middleware.CorsMiddleware" in getattr(settings, "MIDDLEWARE", ())
        and re.match(pattern, path) is not None
    )


def _by_werkzeug(app: Any, _: str) -> bool:
    """Whether Quart or Flask itself answers OPTIONS of all rules, as they do but where a rule names it."""
    rules = app.url_map.iter_rules()
    return all(
        rule.provide_automatic_options for rule in rules if rule.methods is None or _OPTIONS in rule.methods
    )


def _by_sanic(app: Any, _: str) -> bool:
    return all(_OPTIONS not in route.methods for route in app.router.routes)


_ANSWERED: Final[dict[str, Callable[[Any, str], bool]]] = {
    "litestar": _by_litestar,
    "blacksheep": _by_blacksheep,
    "django": _by_django,
    "quart": _by_werkzeug,
    "flask": _by_werkzeug,
    "sanic": _by_sanic,
}
"""By package of the app: whether a preflight runs none of its handlers."""
