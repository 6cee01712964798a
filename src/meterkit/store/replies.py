"""What replies of the decision script say, and of the others that confirm a customer's state.

What each replies its head says: ``lua/decide.lua``, ``seal.lua``, ``restore.lua``, ``rebuild.lua``,
``level.lua``. The settle script numbers its own; see :mod:`meterkit.redis.settling`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions import verdict
from meterkit.decisions.in_process import NOTHING_LEFT, left_by

if TYPE_CHECKING:
    from meterkit.decisions.decision import Decision
    from meterkit.store.views import PreparedDecision

ALLOWED: Final = 0
REFUSED: Final = 1
STALE: Final = 2
"""The store has another state of the customer, which comes with it."""
CLOCK: Final = 3
"""The store's clock and the caller's are too far apart to decide."""
BROKEN: Final = 4
"""A field that must be a whole number is none, says whatever confirms counters."""
_COUNTED: Final = 5
"""Refused, but counted and held (shadow mode)."""
REPEAT: Final = 6
"""Allowed: its first was billed, and it holds no quantities."""
IN_FLIGHT: Final = 7
"""Its first has not ended yet: refused, but in shadow."""
REFUSED_REPEAT: Final = 8
HELD: Final = frozenset({ALLOWED, _COUNTED})
"""The request is held."""


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
