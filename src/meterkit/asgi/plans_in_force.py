"""A plans file as the edge asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.degraded import PolicyFields
from meterkit.asgi.headers import LimitFields
from meterkit.asgi.identify import client_ip

if TYPE_CHECKING:
    from meterkit.asgi.routing import Router
    from meterkit.catalog import Route
    from meterkit.decisions.program import Program
    from meterkit.store.views import CustomerCache, CustomerView

__all__ = ["PlansInForce"]

_PROGRAMS_MAX: Final = 1_000


class PlansInForce:
    """A plans file as the edge asks it; a request is decided by one, whichever is in force when it ends."""

    def __init__(self, cache: CustomerCache, router: Router) -> None:
        self.cache = cache
        self.router = router
        self.limit_fields: dict[Program, LimitFields] = {}
        self.policy_fields: dict[Program, PolicyFields] = {}
        anonymous = cache.catalog.anonymous
        self.by_ip = None if anonymous is None else client_ip(trusted_proxies=anonymous.trusted_proxies)

    def nobody(self) -> CustomerView:
        """Whose requests are that pass although nobody is known."""
        return self.cache.get("unknown", anonymous=True)

    def fields_of(self, program: Program, route: Route) -> LimitFields:
        """The fields of a decision's answer, made once."""
        if len(self.limit_fields) >= _PROGRAMS_MAX:
            self.limit_fields.clear()
        fields = self.limit_fields[program] = LimitFields(program, route.headers)
        return fields

    def policies_of(self, program: Program, route: Route) -> PolicyFields:
        """The fields of an answer that was decided without the store, made once."""
        if len(self.policy_fields) >= _PROGRAMS_MAX:
            self.policy_fields.clear()
        fields = self.policy_fields[program] = PolicyFields(program, route.headers)
        return fields
