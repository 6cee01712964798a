"""The Stripe customers that webhooks have named and that are to be looked at: how many, and since when."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meterkit.insights.deliveries import Waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["read_webhooks"]


async def read_webhooks(store: Store) -> Mapping[str, Waiting]:
    """All of it, in one round trip.

    Returns:
        ``due``: they are to be looked at now, the oldest since ``age_s``; ``later``: somebody looks at them,
        or they are to be looked at again; ``dead``: they are given up, the oldest since ``age_s``.

    Raises:
        StoreError: the store does not answer.
    """
    admin, now_ms = await store.admin(), store.now_ms()
    due_key, dead_key = store.keys.hooks("due"), store.keys.hooks("dead")
    asking = admin.client.pipeline(transaction=False)
    asking.zcount(due_key, "-inf", now_ms)
    asking.zcount(due_key, f"({now_ms}", "+inf")
    asking.zrange(due_key, 0, 0, withscores=True)
    asking.hgetall(dead_key)
    due, later, first, dead = await admin.ask(asking.execute())
    given_up: list[dict[str, Any]] = [json.loads(kept) for kept in dead.values()]
    return {
        "due": Waiting(due, _age_s(now_ms, [at for _, at in first])),
        "later": Waiting(later, 0.0),
        "dead": Waiting(len(dead), _age_s(now_ms, [entry["at"] for entry in given_up])),
    }


def _age_s(now_ms: int, instants_ms: list[float]) -> float:
    """How long ago the first of some instants was; 0 where it is ahead, or there is none."""
    return max(0.0, now_ms - min(instants_ms, default=now_ms)) / 1000
