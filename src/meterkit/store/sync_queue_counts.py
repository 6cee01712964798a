"""Counts and entries of the sync queue, over all shards: waiting, due and dead Stripe customers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from meterkit.store.sharded_queue import QueueKeys, read_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store


def sync_keys(store: Store) -> QueueKeys:
    """Keys of the sync queue, whose entries are Stripe customers."""
    return QueueKeys(store, store.keys.hints)


async def read_alarms(store: Store) -> Mapping[str, int]:
    """Alarms of the last 400 days, counted by kind.

    Raises:
        StoreError: the store does not answer.
    """
    alarms = Counter[str]()
    for counted in await sync_keys(store).read_hashes("alarms"):
        alarms.update({kind.decode(): int(count) for kind, count in counted.items() if count.isdigit()})
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
    queues = sync_keys(store).all("due")
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
        entries = {name.decode(): read_entry(data, store.now_ms()) for name, data in pairs if data} | entries
    return list(entries.items())
