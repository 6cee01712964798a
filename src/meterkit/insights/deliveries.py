"""What waits to be delivered to Stripe, in how many customers or intents, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.store.waiting import count_members

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["STATES", "Waiting", "read_deliveries"]

STATES: Final = {
    "pending": "dirty",
    "unlinked": "unlinked",
    "queued": "outbox",
    "parked": "parked",
    "dead": "dead",
    "unconfirmed": "unclosed",
}
"""A state to the sorted set of each shard that has what is in it."""
_STATE_OF: Final = {name: state for state, name in STATES.items()}
_BY_EXPIRY: Final = "unlinked"  # Its set is sorted by when usage expires, not by since when it waits.


class Waiting(NamedTuple):
    """What is in one state.

    Attributes:
        items: customers (pending, unlinked), intents, or periods whose close is not confirmed in time.
        age_s: how long the oldest is overdue (pending, queued), in this state (parked, dead), or over
            (unconfirmed); of unlinked 0, whose time of expiry is kept instead.
    """

    items: int
    age_s: float


async def read_deliveries(store: Store) -> Mapping[str, Waiting]:
    """All of it, in two round trips.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    counts = await count_members(store, admin, _STATE_OF, limit="+inf")
    oldest = admin.client.pipeline(transaction=False)
    for shard, name in counts:
        oldest.zrange(store.keys.shard(shard, name), 0, 0, withscores=True)
    found: list[list[tuple[bytes, float]]] = await admin.ask(oldest.execute()) if counts else []
    now_ms = store.now_ms()
    waiting = dict.fromkeys(STATES, Waiting(0, 0.0))
    for ((_, name), number), first in zip(counts.items(), found, strict=True):
        state = _STATE_OF[name]
        before = waiting[state]
        overdue_s = max(0.0, (now_ms - first[0][1]) / 1000) if first and state != _BY_EXPIRY else 0.0
        waiting[state] = Waiting(before.items + number, max(before.age_s, overdue_s))
    return waiting
