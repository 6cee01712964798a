"""Counts and entries of the sync queue, over all shards: waiting, due and dead Stripe customers."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.store.store import Store


@lru_cache(maxsize=8)
def due_keys(keys: Keys) -> tuple[str, ...]:
    """Keys of the sorted sets of all shards: Stripe customers by the time they are due."""
    return tuple(keys.hints(shard, "due") for shard in range(keys.shards))


class SyncQueueCounts(NamedTuple):
    """Counts of the queue.

    Attributes:
        due: number of syncs that are due.
        later: number of syncs that are leased or wait for a retry.
        oldest_ms: due time of the longest overdue sync; None: none is due.
        dead: Stripe customer to entry of each sync that was given up.
    """

    due: int
    later: int
    oldest_ms: int | None
    dead: Mapping[str, Mapping[str, Any]]


async def count_syncs(store: Store) -> SyncQueueCounts:
    """Count the entries of all shards.

    Raises:
        StoreError: the store does not answer.
    """
    admin, now_ms, keys = await store.admin(), store.now_ms(), store.keys
    queues = due_keys(keys)
    due = await store.count_members(admin, queues, limit=now_ms)
    waiting = await store.count_members(admin, queues, limit="+inf")
    pipe = admin.client.pipeline(transaction=False)
    for nth in due:
        pipe.zrange(queues[nth], 0, 0, withscores=True)
    for shard in range(keys.shards):
        pipe.hgetall(keys.hints(shard, "dead"))
    found: list[Any] = await admin.ask(pipe.execute())
    number = sum(due.values())
    return SyncQueueCounts(
        due=number,
        later=sum(waiting.values()) - number,
        oldest_ms=min((int(first[0][1]) for first in found[: len(due)] if first), default=None),
        dead=_merge_dead(found[len(due) :]),
    )


async def read_dead_syncs(store: Store) -> Mapping[str, Mapping[str, Any]]:
    """Stripe customer to entry of each sync that was given up.

    Raises:
        StoreError: the store does not answer.
    """
    return _merge_dead(await _read_hashes(store, "dead"))


def _merge_dead(found: Iterable[Mapping[bytes, bytes]]) -> dict[str, Any]:
    return {name.decode(): json.loads(kept) for each in found for name, kept in each.items()}


async def _read_hashes(store: Store, name: str) -> list[dict[bytes, bytes]]:
    admin = await store.admin()
    pipe = admin.client.pipeline(transaction=False)
    for shard in range(store.keys.shards):
        pipe.hgetall(store.keys.hints(shard, name))
    found: list[dict[bytes, bytes]] = await admin.ask(pipe.execute())
    return found


async def read_alarms(store: Store) -> Mapping[str, int]:
    """Alarms of the last 400 days, counted by kind.

    Raises:
        StoreError: the store does not answer.
    """
    alarms = Counter[str]()
    for counted in await _read_hashes(store, "alarms"):
        alarms.update({kind.decode(): int(count) for kind, count in counted.items()})
    return dict(alarms)


async def read_waiting_syncs(store: Store, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Waiting entries with their Stripe customers; in each shard the longest due first.

    Args:
        store: where they are.
        most: limit over all shards together.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys
    queues = due_keys(keys)
    entries: dict[str, dict[str, Any]] = {}
    for shard in await store.count_members(admin, queues, limit="+inf"):
        left = most - len(entries)
        if left <= 0:
            break
        names: list[bytes] = await admin.ask(admin.client.zrange(queues[shard], 0, left - 1))
        if not names:
            continue
        found: list[bytes | None] = await admin.ask(admin.client.hmget(keys.hints(shard, "entries"), names))
        pairs = zip(names, found, strict=True)
        entries = {name.decode(): json.loads(data) for name, data in pairs if data} | entries
    return list(entries.items())
