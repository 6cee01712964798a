"""Requests that the store cannot decide: limited within this process, by what is known of their customer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.decisions.decision import Decision
from meterkit.decisions.fallback_rules import IN_DOUBT
from meterkit.store.prepared_decisions import read_limits
from meterkit.store.replies import ALLOWED
from meterkit.store.settlement_parts import UsedQuantities, add_quantities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Route
    from meterkit.store.fallback_decider import FallbackDecision
    from meterkit.store.store import Prepare, Store
    from meterkit.store.views import CustomerView

_logger: Final = logging.getLogger("meterkit.asgi")
_NOTHING: Final[Mapping[str, int]] = {}


def decide_in_process(
    store: Store, view: CustomerView, route: Route, prepare: Prepare | None
) -> tuple[Decision | None, FallbackDecision | None]:
    """Decide a request in this process, as its route has it for an outage of the store.

    A decision of None just allows. What a new customer of the default plan would be refused, an unknown one
    is refused for the store's sake: it may be a paying one. Never raises: a request that cannot be decided
    here either is served as the route says.

    Args:
        store: the store, which is down.
        view: the customer.
        route: the line.
        prepare: prepares the decision; None: the line's own.
    """
    store.degraded.note()
    is_shadow = route.enforcement == "shadow"
    if is_shadow or route.on_store_failure == "allow":
        try:
            decided, reply = fallback = store.fallback.decide(view, route, prepare)
            is_known = decided.view.is_plan_known
            if decided.refusal is not None and is_known:
                return replace(decided.refusal, degraded=True), fallback
            if decided.refusal is not None or reply[0] == IN_DOUBT:
                return replace(_undecided(view, allowed=decided.shadow), shadow=decided.shadow), fallback
            if reply[0] == ALLOWED and not decided.shadow:
                return None, fallback
            return read_limits(decided, reply, degraded=True), fallback
        except Exception:
            _logger.exception("a request of the route %a could not be decided in this process", route.match)
    allowed = is_shadow or route.on_store_failure == "allow"
    return replace(_undecided(view, allowed=allowed), shadow=is_shadow), None


def _undecided(view: CustomerView, *, allowed: bool) -> Decision:
    """Decision where the truth is not known."""
    return Decision(
        customer=view.customer,
        plan=view.effective.plan.key,
        allowed=allowed,
        reason=None if allowed else "store",
        degraded=True,
    )


def count_in_process(store: Store, view: CustomerView, route: Route, rated: Mapping[str, int]) -> None:
    """Count usage beyond the decided quantities in rates, such as a model's tokens."""
    asked = {*route.consume, *(reserve.meter for reserve in route.reserve)}
    beyond = {meter: quantity for meter, quantity in rated.items() if meter not in asked}
    if beyond:
        store.fallback.count(view, beyond)


def record_in_process(
    store: Store,
    view: CustomerView,
    fallback: FallbackDecision | None,
    parts: Iterable[UsedQuantities] = (),
) -> None:
    """Count what a request has recorded, in place of what its decision without the store has admitted."""
    recorded: Mapping[str, int] = _NOTHING
    for part in parts:
        recorded = add_quantities(recorded, part.recorded)
    store.fallback.record(view, recorded, None if fallback is None else fallback.decided)


def undecided_usage(
    view: CustomerView,
    route: Route,
    fallback: FallbackDecision | None,
    recorded: Mapping[str, int],
    *,
    is_counted: bool,
    billed: bool,
) -> UsedQuantities:
    """Usage of a request that was decided without the store: its rates have not counted it either.

    Args:
        view: the customer.
        route: the line.
        fallback: how this process has decided it; None: it has not.
        recorded: by the app.
        is_counted: whether the store may have counted what the line consumes.
        billed: whether the request's outcome is billed; the recorded usage is in either case.
    """
    if is_counted:  # The rest is only recorded, not rated again: in doubt for the customer.
        decided = view.prepare(route) if fallback is None else fallback.decided
        return UsedQuantities(add_quantities(decided.recorded if billed else _NOTHING, recorded), recorded)
    total = add_quantities(route.consume, recorded)
    return UsedQuantities(total if billed else recorded, total)
