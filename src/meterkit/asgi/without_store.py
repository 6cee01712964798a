"""Requests that the store cannot decide: limited within this process, by what is known of their customer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.asgi.headers import fields, merge, policy_field
from meterkit.decisions.decision import Decision
from meterkit.store.fallback import is_plan_known
from meterkit.store.prepared_decisions import read_limits
from meterkit.store.replies import ALLOWED
from meterkit.store.settlement_parts import UsedQuantities, add_quantities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Route
    from meterkit.catalog.models import Headers
    from meterkit.decisions.program import Program
    from meterkit.store.fallback import FallbackDecision
    from meterkit.store.store import Prepare, Store
    from meterkit.store.views import CustomerView

_logger: Final = logging.getLogger("meterkit.asgi")
_NOTHING: Final[Mapping[str, int]] = {}


def decide_in_process(
    store: Store, view: CustomerView, route: Route, prepare: Prepare | None
) -> tuple[Decision | None, FallbackDecision | None]:
    """What the route has for a request that the store cannot decide, and how that was decided.

    A decision of None is one that just allows. Who is not known yet goes by the default plan's rates, and
    lacks no feature: it may be one who pays. Never raises: what cannot be decided here either is served as
    the route says.

    Args:
        store: which is away.
        view: the customer.
        route: the line.
        prepare: makes what is asked; None: what the line asks of each request.
    """
    store.degraded.note()
    is_shadow = route.enforcement == "shadow"
    if is_shadow or route.on_store_failure == "allow":
        try:
            decided, reply = weighed = store.fallback.decide(view, route, prepare)
            if decided.refusal is not None and is_plan_known(view):
                return replace(decided.refusal, degraded=True), weighed
            if reply[0] == ALLOWED and not decided.shadow:
                return None, weighed
            return read_limits(decided, reply, degraded=True), weighed
        except Exception:
            _logger.exception("a request under the line %a could not be decided in this process", route.match)
    allowed = is_shadow or route.on_store_failure == "allow"
    return Decision(
        customer=view.customer,
        plan=view.effective.plan.key,
        allowed=allowed,
        reason=None if allowed else "store",
        degraded=True,
        shadow=is_shadow,
    ), None


def count_in_process(store: Store, view: CustomerView, route: Route, rated: Mapping[str, int]) -> None:
    """Count into rates what a request used beyond what it had asked for, as a model's tokens."""
    asked = {*route.consume, *(reserve.meter for reserve in route.reserve)}
    beyond = {meter: quantity for meter, quantity in rated.items() if meter not in asked}
    if beyond:
        store.fallback.count(view, beyond)


def undecided_usage(
    view: CustomerView, route: Route, recorded: Mapping[str, int], *, is_counted: bool, billed: bool
) -> UsedQuantities:
    """The usage of a request that was decided without the store: its rates have not seen it either.

    Args:
        view: the customer.
        route: the line.
        recorded: by the app.
        is_counted: whether the store may have counted what the line consumes.
        billed: whether the request's outcome is billed; the recorded usage is in either case.
    """
    if is_counted:  # The rest is only recorded, not rated again: in doubt for the customer.
        settled = view.prepare(route).program.settled if billed else _NOTHING
        return UsedQuantities(add_quantities(settled, recorded), recorded)
    total = add_quantities(route.consume, recorded)
    return UsedQuantities(total if billed else recorded, total)


class PolicyFields:
    """Writes the one limit field that is true without the store: which policies there are.

    The rest counted in this process is not the rest that the customer has.

    Args:
        program: what was asked of the plan.
        mode: which family of fields the route sends.
    """

    __slots__ = ("_ours",)

    def __init__(self, program: Program, mode: Headers) -> None:
        policies = policy_field([measure.policy for measure in program.measures])
        self._ours = fields(mode, policies=policies, limit=None, remaining=None, reset_s=None, now_s=0)

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: object,
        reply: object,
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """See :meth:`meterkit.asgi.headers.LimitFields.add_quantities`."""
        del decided, reply
        exposed = False
        for name, _ in request_headers:
            if name == b"origin":
                exposed = True
                break
        return merge(headers, self._ours, expose=exposed)
