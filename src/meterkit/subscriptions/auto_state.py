"""The state of a customer's automatic top-ups: whether one may begin, has begun, or was declined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.grants import target_of

if TYPE_CHECKING:
    from meterkit.store.store import Store

Step = Literal["begin", "paid", "failed", "none", "bought", "on", "off"]


_PATIENCE_MS: Final = 3_600_000
"""After so long another event takes over a top-up that has begun and not ended, as the same purchase."""


async def step(
    store: Store, customer: str, credit: str, what: Step, *, event: str = "-", month: str = "-", most: int = 0
) -> tuple[str, str] | None:
    """Move the state of a customer's automatic top-ups; see ``lua/top_up.lua``.

    Returns:
        Of ``begin``, the month and the event of the top-up that is to be bought; None: none is.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    asked = (target_of("credit", credit), what, event, month, most, _PATIENCE_MS)
    reply = await admin.run(store.scripts["top_up"], [keys.ledger], *asked)
    return (reply[1].decode(), reply[2].decode()) if reply[0] else None
