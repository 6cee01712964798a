"""A decision's reply that comes after its request was cancelled: what it holds is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.store.hold import Correction, Held, Mark
from meterkit.store.settlement import Settlement, settlement_of

if TYPE_CHECKING:
    from meterkit.store.views import PreparedDecision


def give_back(decision: PreparedDecision, decided_ms: int) -> Settlement:
    """The settlement that undoes an allowed decision whose caller is gone.

    Args:
        decision: what was asked.
        decided_ms: when that was allowed, by the store's clock.
    """
    slot = decided_ms // HOLD_SLOT_MS
    if not decision.reserved:
        return settlement_of(decision, slot, billed=False)
    correction = Correction(decision.reserved, decision.program.rates, decided_ms)
    mark = Mark.of(decision, billed=False)
    return Settlement(decision.view, held=Held.of(decision, slot), correction=correction, mark=mark)
