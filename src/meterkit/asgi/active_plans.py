"""The active plans file, compiled for the middleware: routers, MCP lines, preflights, limit fields."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from meterkit.asgi.buffered_body import has_body
from meterkit.asgi.identify import client_ip
from meterkit.asgi.limit_fields import FixedFields, LimitFields
from meterkit.asgi.mcp import McpLines
from meterkit.asgi.path_readings import path_rules_of_app
from meterkit.asgi.preflights import Preflights
from meterkit.asgi.route_matching import Router, root_path_of_app
from meterkit.catalog.routes import charging_meters, is_fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from starlette.types import ASGIApp, Scope

    from meterkit.asgi.logs import TroubleLog
    from meterkit.asgi.path_readings import Paths
    from meterkit.catalog import Route
    from meterkit.decisions.compiled_decision import Program
    from meterkit.store.views import CustomerCache, CustomerView

    _RouterOf = Callable[[Sequence[Route]], Router]

_PROGRAMS_MAX: Final = 1_000


class ActivePlans:
    """Plans file, compiled for the middleware; a request is decided by one, also if it changes meanwhile."""

    def __init__(
        self, cache: CustomerCache, router_of: _RouterOf, mcp_router_of: _RouterOf, preflights: Preflights
    ) -> None:
        self.cache = cache
        self.preflights = preflights
        self._router_of = mcp_router_of
        self._polls: dict[tuple[int, tuple[str, ...]], Route] = {}
        self._former: list[object] = []  # The identity of a route stands for it as long as it lives.
        cache.routes.subscribe(self._use_learned)
        routes = cache.routes.current
        self.router = router_of(routes)
        self.mcp = McpLines(routes, mcp_router_of)
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
            preflights = Preflights(app, app, cors, troubles)
        except Exception as error:  # noqa: BLE001 - whatever its attributes raise; logged there
            troubles.log_unread_app(error)
            reading, root_path = path_rules_of_app(None, paths), ""
            preflights = Preflights(app, None, cors, troubles)
        router_of = partial(Router, root_path=root_path, reading=reading)
        without_mount = partial(troubles.log_without_mount, cache.catalog.source)
        return cls(cache, partial(router_of, without_mount=without_mount), router_of, preflights)

    def _use_learned(self) -> None:
        """Decide by the routes with the meters learned from recorded usage."""
        routes = self.cache.routes.current
        self._former += (self.router, self.mcp)
        self.router, self.mcp = self._router_of(routes), McpLines(routes, self._router_of)

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

    def route_for(self, route: Route, scope: Scope) -> Route:
        """Route of an HTTP request; its poll route if the request can only fetch work."""
        is_poll = is_fetched(route.usage, scope["method"].upper()) and not has_body(scope)
        return self.poll_route(route) if is_poll else route

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
