"""Holds of a gauge while something else is done: a presigned upload, fewer seats at Stripe."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.store import replies
from meterkit.store.prepared_decisions import prepare_holding, read_decision
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from meterkit.decisions.decision import Decision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision


@asynccontextmanager
async def held_meanwhile(
    store: Store, customer: str, growth: Callable[[CustomerView], Mapping[str, int]]
) -> AsyncGenerator[tuple[Decision, bool]]:
    """Decide whether gauges may grow, and hold the growth while the block runs; also say whether it is held.

    Args:
        store: of the kit.
        customer: whose gauges they are.
        growth: returns it by gauge, given the customer's newest state.

    Raises:
        StoreError: the store does not answer.
    """

    def prepare(view: CustomerView, mode: str) -> PreparedDecision:
        return prepare_holding(view, growth(view), mode)

    decided, reply = await store.decide(store.cache.get(customer), prepare)
    decision = read_decision(decided, reply)
    held = {gauge: quantity for gauge, quantity in decided.held.items() if quantity}
    is_held = decision.allowed and bool(held) and reply[0] in replies.HELD
    try:
        yield decision, is_held
    finally:
        if is_held:
            released = HeldQuantities(held, (), reply[1] // HOLD_SLOT_MS)
            await store.settle_acknowledged([Settlement(decided.view, held=released)])
