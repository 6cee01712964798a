"""Work queue with a part in each shard: which parts have due entries, and how many entries there are.

The scripts ``queue_sync``, ``lease_entries`` and ``finish_entry`` work on the keys of one part.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from meterkit.errors import StoreError
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.store.store import Store

    T = TypeVar("T")

_SHARDS_AT_ONCE: Final = 32
"""If a call asks some of them."""
_shuffle = SystemRandom().shuffle


def read_entry(kept: bytes, now_ms: int) -> dict[str, Any]:
    """Parse an entry; one that cannot be read has no notes, began now, and its ``why`` says so."""
    try:
        found = json.loads(kept)
        numbers = {name: int(found[name]) for name in ("n", "attempts", "since")}
        texts = {name: str(found[name]) for name in ("token", "cause", "why")}
        return {**numbers, **texts, "at": int(found.get("at", 0)), "notes": dict(found["notes"])}
    except UNREADABLE:
        return {
            **dict.fromkeys(("n", "attempts"), 0),
            **dict.fromkeys(("since", "at"), now_ms),
            **dict.fromkeys(("token", "cause"), ""),
            "why": "what is stored of it cannot be read",
            "notes": {},
        }


class QueueCounts(NamedTuple):
    """Counts of the queue.

    Attributes:
        due: number of entries that are due.
        later: number of entries that are leased or wait for a retry.
        oldest_ms: due time of the longest overdue entry; None: none is due.
        dead: entries that were given up, by name.
    """

    due: int
    later: int
    oldest_ms: int | None
    dead: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Names of the keys of a queue.

    Attributes:
        store: has the queue.
        name_key: returns a key's name, given a shard and a part such as ``due``.
    """

    store: Store
    name_key: Callable[[int, str], str]

    def all(self, part: str) -> list[str]:
        """The keys of one part in all shards."""
        return [self.name_key(shard, part) for shard in range(self.store.keys.shards)]

    async def read_hashes(self, part: str) -> list[dict[bytes, bytes]]:
        """Read a hash of each shard. Raises StoreError."""
        admin = await self.store.admin()
        return await admin.ask_all(("hgetall", key) for key in self.all(part))

    async def read_dead(self) -> dict[str, Any]:
        """Read the entries that were given up, by name. Raises StoreError."""
        hashes, now_ms = await self.read_hashes("dead"), self.store.now_ms()
        return {name.decode(): read_entry(kept, now_ms) for each in hashes for name, kept in each.items()}

    async def count(self) -> QueueCounts:
        """Count the entries of all shards. Raises StoreError."""
        store, admin, queues = self.store, await self.store.admin(), self.all("due")
        due = await store.count_members(admin, queues, limit=store.now_ms())
        waiting = await store.count_members(admin, queues, limit="+inf")
        pipe = admin.client.pipeline(transaction=False)
        for nth in due:
            pipe.zrange(queues[nth], 0, 0, withscores=True)
        found: list[list[tuple[bytes, float]]] = await admin.ask(pipe.execute()) if due else []
        number = sum(due.values())
        return QueueCounts(
            due=number,
            later=sum(waiting.values()) - number,
            oldest_ms=min((int(first[0][1]) for first in found if first), default=None),
            dead=await self.read_dead(),
        )


class DueShards:
    """Leases due entries: of each shard the longest due first, the shards in random order.

    On a cluster each call asks some of the shards, and those that this process knows to have something due.

    Args:
        keys: of the queue.
        asks_some: ask only some of the shards on one server, too.
    """

    def __init__(self, keys: QueueKeys, *, asks_some: bool = False) -> None:
        self._store = keys.store
        self._asks_some = asks_some
        self._due_keys = keys.all("due")
        self._near = set[int]()  # Shards that may have something due, as far as this process knows.
        self._next_shard = 0

    def add(self, *shards: int) -> None:
        """Ask shards in the next call, or all shards if none is named, also on a cluster."""
        self._near.update(shards or range(len(self._due_keys)))

    async def lease(self, most: int, lease_in: Callable[[int, int], Awaitable[Sequence[T]]]) -> list[T]:
        """Lease due entries.

        Args:
            most: largest number of entries.
            lease_in: leases due entries of a shard, given the shard and their largest number.

        Raises:
            StoreError: the store does not answer.
        """
        leased: list[T] = []
        failed: StoreError | None = None
        for shard in await self._find():
            free = most - len(leased)
            if not free:
                break
            try:
                leased += await lease_in(shard, free)
            except StoreError as error:  # Of one node of a cluster: the shards of the others go on.
                failed = error
        if failed is not None and not leased:
            raise failed
        return leased

    async def _find(self) -> list[int]:
        """Find shards that have something due, in random order: workers do not all begin at the same one."""
        store, admin, shards = self._store, await self._store.admin(), self._next_shards()
        self._near.difference_update(shards)  # Before they are asked: what comes meanwhile is kept.
        keys = [self._due_keys[shard] for shard in shards]
        due = [shards[nth] for nth in await store.count_members(admin, keys, limit=store.now_ms())]
        self._near.update(due)
        _shuffle(due)
        return due

    def _next_shards(self) -> list[int]:
        """The shards to ask: all, or some of them and those that may have something due."""
        shards = len(self._due_keys)
        asks_some = self._asks_some or self._store.address.kind == "cluster"
        if not asks_some or shards <= _SHARDS_AT_ONCE:
            return list(range(shards))
        first, self._next_shard = self._next_shard, (self._next_shard + _SHARDS_AT_ONCE) % shards
        chosen = {(first + nth) % shards for nth in range(_SHARDS_AT_ONCE)}
        return list(chosen | self._near)


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
