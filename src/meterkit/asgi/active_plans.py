"""The active plans file, compiled for the middleware: routers, MCP lines, limit fields."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from meterkit.asgi.buffered_body import has_body
from meterkit.asgi.identify import client_ip
from meterkit.asgi.limit_fields import FixedFields, LimitFields
from meterkit.asgi.mcp import McpLines
from meterkit.asgi.route_matching import Router
from meterkit.catalog.routes import charging_meters, is_fetched

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.decisions.compiled_decision import Program
    from meterkit.store.views import CustomerCache, CustomerView

_PROGRAMS_MAX: Final = 1_000


class ActivePlans:
    """Plans file, compiled for the middleware; a request is decided by one, also if it changes meanwhile.

    Args:
        cache: the plans file, and what is known of its customers.
        root_path: the root path that the wrapped app has.
        without_mount: logs a line that lacks the path of a mount; see :class:`Router`.
    """

    def __init__(
        self,
        cache: CustomerCache,
        root_path: str,
        without_mount: Callable[[Route, Route | None, str], None],
    ) -> None:
        self.cache = cache
        self._router_of = partial(Router, root_path=root_path)
        self._polls: dict[tuple[int, tuple[str, ...]], Route] = {}
        self._former: list[object] = []  # The identity of a route stands for it as long as it lives.
        cache.routes.subscribe(self._use_learned)
        routes = cache.routes.current
        self.router = self._router_of(routes, without_mount=without_mount)
        self.mcp = McpLines(routes, self._router_of)
        self.limit_fields: dict[Program, LimitFields] = {}
        self.policy_fields: dict[Program, FixedFields] = {}
        anonymous = cache.catalog.anonymous
        self.by_ip = None if anonymous is None else client_ip(trusted_proxies=anonymous.trusted_proxies)

    def _use_learned(self) -> None:
        """Decide by the routes with the meters learned from recorded usage."""
        routes = self.cache.routes.current
        self._former += (self.router, self.mcp)
        self.router = self._router_of(routes)
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
