"""What a reply of the decision script says as a :class:`~meterkit.decisions.decision.Decision`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterkit.decisions import verdict
from meterkit.decisions.in_process import NOTHING_LEFT, left_by
from meterkit.store.replies import ALLOWED, IN_FLIGHT, REFUSED

if TYPE_CHECKING:
    from meterkit.decisions.decision import Decision
    from meterkit.store.views import PreparedDecision


def decision_of(decided: PreparedDecision, reply: Any) -> Decision:
    """What a concluded reply says; what is left by a refusal is remembered for when the store is away."""
    view = decided.view
    view.left = view.left or NOTHING_LEFT
    if reply[0] == REFUSED and decided.refusal is None:
        view.left = {**view.left, **left_by(decided.exact(), reply, decided.period_end_ms(reply[1]))}
    return decided.refusal or decision_on_limits(decided, reply)


def decision_on_limits(decided: PreparedDecision, reply: Any, *, degraded: bool = False) -> Decision:
    """What a reply says of the limits, whatever follows from the customer's state alone."""
    view, end_ms = decided.view, decided.period_end_ms(reply[1])
    customer, plan = view.customer, view.effective.plan.key
    if reply[0] == ALLOWED:
        found = verdict.allowed(
            decided.program, reply, end_ms, customer=customer, plan=plan, degraded=degraded
        )
    else:
        is_in_flight = reply[0] == IN_FLIGHT
        found = verdict.IN_FLIGHT if is_in_flight else verdict.refused(decided.exact(), reply, end_ms)
        found = replace(found, customer=customer, plan=plan, degraded=degraded)
    if not decided.shadow:
        return found
    return replace(decided.waived or found, allowed=True, shadow=True, degraded=degraded)
