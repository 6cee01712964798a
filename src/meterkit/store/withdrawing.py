"""Takes an intent back whose own invoice is final: its usage is pending again, and is then late."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError
from meterkit.store.intents import CANNOT_BE_COUNTED

if TYPE_CHECKING:
    from meterkit.store.kept_intents import Kept
    from meterkit.store.store import Store

__all__ = ["withdraw"]

_CHANGED: Final = 1


async def withdraw(store: Store, kept: Kept, *, cause: str, why: str) -> bool:
    """Have the usage of an intent be pending again, unless the intent has changed since it was read.

    Args:
        store: where it is.
        kept: as it was read, queued or parked; Stripe does not have it.
        cause: for the ledger of its customer.
        why: for that ledger, what is known of it; empty: nothing is entered.

    Raises:
        StoreError: the store does not answer, or the customer's totals cannot be counted in.
    """
    keys, admin = store.keys.customer(kept.customer), (await store.admin()).for_delivery()
    entry = ("intent", str(store.now_ms()), kept.in_words(), f"not sent: {why}", cause)
    shard = (store.keys.shard(kept.shard, name) for name in ("intents", "outbox", "parked", "compare"))
    reply: list[Any] = await admin.run(
        store.scripts["withdraw"],
        [*shard, keys.totals, keys.dirty, keys.history],
        *(kept.identifier, kept.text, json.dumps([entry] if why else [])),
    )
    if reply[0] == CANNOT_BE_COUNTED:
        raise StoreError(
            f"intent {kept.identifier} stays as it is: what the store keeps under {keys.totals} cannot be"
            " counted in"
        )
    return bool(reply[0] != _CHANGED)
