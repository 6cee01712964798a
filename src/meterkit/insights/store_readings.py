"""Readings of the store for metrics: waiting deliveries and webhooks, durability of the servers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from redis.exceptions import ResponseError

from meterkit.errors import StoreError
from meterkit.outbox.intents import count_members
from meterkit.redis.durability import Durability, DurabilityCheck
from meterkit.redis.server import count_replicas
from meterkit.store.sharded_queue import sync_keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

STATES: Final = {
    "pending": "dirty",
    "unlinked": "unlinked",
    "queued": "outbox",
    "invoice_items": "items",
    "parked": "parked",
    "dead": "dead",
    "unconfirmed": "unclosed",
}
"""A state to the sorted set of each shard that has what is in it."""
_STATE_OF: Final = {name: state for state, name in STATES.items()}
_BY_EXPIRY: Final = "unlinked"  # Its set is sorted by when usage expires, not by since when it waits.


class QueueReading(NamedTuple):
    """The entries in one state.

    Attributes:
        items: customers (pending, unlinked), intents, invoice items for late usage and invoice lines, or
            periods whose close is not confirmed in time.
        age_s: how long the oldest is overdue (pending, queued, invoice_items), in this state (parked, dead),
            or over (unconfirmed); of unlinked 0, whose time of expiry is kept instead.
    """

    items: int
    age_s: float


async def read_deliveries(store: Store) -> Mapping[str, QueueReading]:
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
    waiting = dict.fromkeys(STATES, QueueReading(0, 0.0))
    for ((_, name), number), first in zip(counts.items(), found, strict=True):
        state = _STATE_OF[name]
        before = waiting[state]
        overdue_s = max(0.0, (now_ms - first[0][1]) / 1000) if first and state != _BY_EXPIRY else 0.0
        waiting[state] = QueueReading(before.items + number, max(before.age_s, overdue_s))
    return waiting


async def read_webhooks(store: Store) -> Mapping[str, QueueReading]:
    """All of it, in a few round trips.

    Returns:
        ``due``: their sync is due, the oldest since ``age_s``; ``later``: a worker syncs them now,
        or they wait for a retry; ``dead``: their sync was given up, the oldest since ``age_s``.

    Raises:
        StoreError: the store does not answer.
    """
    found, now_ms = await sync_keys(store).count(), store.now_ms()
    return {
        "due": QueueReading(found.due, _age_s(now_ms, [] if found.oldest_ms is None else [found.oldest_ms])),
        "later": QueueReading(found.later, 0.0),
        "dead": QueueReading(len(found.dead), _age_s(now_ms, [entry["at"] for entry in found.dead.values()])),
    }


def _age_s(now_ms: int, instants_ms: list[float]) -> float:
    """Age of the oldest instant in seconds; 0 if there is none, or it is ahead."""
    return max(0.0, now_ms - min(instants_ms, default=now_ms)) / 1000


class StoreDurability(NamedTuple):
    """The durability of a server.

    Attributes:
        ways: how deliveries are made durable, to how many servers do it so.
        replicas: that follow, of the server with the fewest; None: the user of one may not ask.
    """

    ways: Mapping[Durability, int]
    replicas: int | None


async def read_durability(store: Store) -> StoreDurability:
    """Ask each server; nothing is logged.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    servers = [admin] if store.address.kind == "memory" else await admin.servers()
    ways, replicas = Counter[Durability](), list[int | None]()
    for server in servers:
        keeping = DurabilityCheck(
            server, server.address, needed=False, kind=store.address.kind, logs_warnings=False
        )
        ways[await _find_method(keeping)] += 1
        replicas.append(await _read_replicas(server) if store.address.kind != "memory" else 0)
    known = [number for number in replicas if number is not None]
    return StoreDurability(ways, min(known) if len(known) == len(replicas) else None)


async def _find_method(keeping: DurabilityCheck) -> Durability:
    try:
        return await keeping.find_method()
    except StoreError as error:
        if error.executed is not False:
            raise
        return "none"  # It has answered, and is configured never to save to disk.


async def _read_replicas(server: Admin) -> int | None:
    """Number of a server's replicas; None: the user may not read INFO."""
    told = await ask_server(server, server.client.info("replication"))
    return None if told is None else count_replicas({name: info_text(value) for name, value in told.items()})


async def ask_server(server: Admin, asked: Awaitable[Any]) -> Mapping[str, Any] | None:
    """Ask a server for INFO or the like; None: it refuses the command.

    Raises:
        StoreError: the server does not answer.
    """
    try:
        told: Mapping[str, Any] = await server.ask(asked)
    except StoreError as error:
        if isinstance(error.__cause__, ResponseError):
            return None
        raise
    return told


def info_text(value: object) -> str:
    """A value of INFO as the server wrote it, restored from redis-py's dictionary."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return ",".join(f"{name}={field}" for name, field in fields.items())
    return str(value)
