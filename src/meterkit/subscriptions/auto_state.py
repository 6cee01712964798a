"""The state of a customer's automatic top-ups: whether one may begin, has begun, or was declined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from meterkit.decisions.grants import target_of

if TYPE_CHECKING:
    from meterkit.store.store import Store

Step = Literal["begin", "paid", "failed", "none", "bought", "on", "off"]


async def step(
    store: Store, customer: str, credit: str, what: Step, *, event: str = "-", month: str = "-", most: int = 0
) -> list[int | bytes]:
    """Move the state of a customer's automatic top-ups; see ``lua/top_up.lua``. Raises StoreError."""
    admin, keys = await store.admin(), store.keys.customer(customer)
    asked = (target_of("credit", credit), what, event, month, most)
    reply: list[int | bytes] = await admin.run(store.scripts["top_up"], [keys.ledger], *asked)
    return reply
