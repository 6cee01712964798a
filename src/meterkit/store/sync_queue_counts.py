"""Readings of the sync queue: Stripe customers that wait and those given up, of all shards."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.decisions.keys import shard_of
from meterkit.store.counting import count_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store


@lru_cache(maxsize=8)
def due_keys(keys: Keys) -> tuple[str, ...]:
    """The keys of the sorted sets of all shards, which have Stripe customers by when they are due."""
    return tuple(keys.hints(shard, "due") for shard in range(keys.shards))


class SyncQueueCounts(NamedTuple):
    """Counts of the queue.

    Attributes:
        due: how many syncs are due.
        later: how many are made now, or wait for a retry.
        oldest_ms: since when the first has been due; None: none is.
        dead: Stripe customer to entry, of those that were given up.
    """

    due: int
    later: int
    oldest_ms: int | None
    dead: Mapping[str, Mapping[str, Any]]


async def count_syncs(store: Store) -> SyncQueueCounts:
    """Count the entries of all shards and of older releases, a Stripe customer of both once.

    Raises:
        StoreError: the store does not answer.
    """
    admin, now_ms, keys = await store.admin(), store.now_ms(), store.keys
    homes = due_keys(keys)
    due = await count_at(store, admin, homes, limit=now_ms)
    waiting = await count_at(store, admin, homes, limit="+inf")
    pipe = admin.client.pipeline(transaction=False)
    pipe.zrange(keys.hooks("due"), 0, -1, withscores=True)
    for nth in due:
        pipe.zrange(homes[nth], 0, 0, withscores=True)
    for name in _everywhere(keys, "dead"):
        pipe.hgetall(name)
    found: list[Any] = await admin.ask(pipe.execute())
    older = await _only_older(store, admin, found[0])
    firsts = [int(first[0][1]) for first in found[1 : 1 + len(due)] if first]
    overdue = [at for at in older if at <= now_ms]
    number = sum(due.values()) + len(overdue)
    return SyncQueueCounts(
        due=number,
        later=sum(waiting.values()) + len(older) - number,
        oldest_ms=min((*firsts, *overdue), default=None),
        dead=_dead_in(found[1 + len(due) :]),
    )


async def read_dead_syncs(store: Store) -> Mapping[str, Mapping[str, Any]]:
    """Stripe customer to entry, of those that were given up.

    Raises:
        StoreError: the store does not answer.
    """
    return _dead_in(await _hashes(store, "dead"))


def _dead_in(found: Iterable[Mapping[bytes, bytes]]) -> dict[str, Any]:
    return {name.decode(): json.loads(kept) for each in found for name, kept in each.items()}


def _everywhere(keys: Keys, name: str) -> tuple[str, ...]:
    """A key of older releases, then of each shard."""
    return keys.hooks(name), *(keys.hints(shard, name) for shard in range(keys.shards))


async def _hashes(store: Store, name: str) -> list[dict[bytes, bytes]]:
    admin = await store.admin()
    pipe = admin.client.pipeline(transaction=False)
    for key in _everywhere(store.keys, name):
        pipe.hgetall(key)
    found: list[dict[bytes, bytes]] = await admin.ask(pipe.execute())
    return found


async def _only_older(store: Store, admin: Admin, found: list[tuple[bytes, float]]) -> list[int]:
    """When entries of older releases are due whose Stripe customers have no other."""
    if not found:
        return []
    pipe = admin.client.pipeline(transaction=False)
    for name, _ in found:
        pipe.zscore(store.keys.hints(shard_of(name.decode(), store.keys.shards), "due"), name)
    scores: list[float | None] = await admin.ask(pipe.execute())
    return [int(at) for (_, at), score in zip(found, scores, strict=True) if score is None]


async def read_alarms(store: Store) -> Mapping[str, int]:
    """Of each kind of alarm, how many came in the last 400 days.

    Raises:
        StoreError: the store does not answer.
    """
    alarms = Counter[str]()
    for counted in await _hashes(store, "alarms"):
        alarms.update({kind.decode(): int(count) for kind, count in counted.items()})
    return dict(alarms)


async def read_waiting_syncs(store: Store, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Entries that wait, each with its Stripe customer; of each shard the longest due first.

    Args:
        store: where they are.
        most: how many, of all shards together.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys
    places = [(keys.hints(shard, "due"), keys.hints(shard, "entries")) for shard in range(keys.shards)]
    places.append((keys.hooks("due"), keys.hooks("entries")))
    counted = await count_at(store, admin, [due for due, _ in places], limit="+inf")
    entries: dict[str, dict[str, Any]] = {}
    for nth in counted:
        due, kept = places[nth]
        left = most - len(entries)
        if left <= 0:
            break
        names: list[bytes] = await admin.ask(admin.client.zrange(due, 0, left - 1))
        found: list[bytes | None] = await admin.ask(admin.client.hmget(kept, names)) if names else []
        pairs = zip(names, found, strict=True)
        entries = {name.decode(): json.loads(data) for name, data in pairs if data} | entries
    return list(entries.items())
