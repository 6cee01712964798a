"""Shared record of the last listing of buckets, its drift, and the last read of each queue."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.keys import HOOKS_SHARD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["Upkeep", "UpkeepSeen"]

_KEPT_MS: Final = 7 * 86_400_000
_QUEUE: Final = "queue:"


class UpkeepSeen(NamedTuple):
    """The state of upkeep.

    Attributes:
        listed_ms: when the last recalculation of all customers ended; None: not within seven days.
        drift_bytes: by how many bytes levels were wrong then, in sum.
        drift_customers: of how many customers.
        read_ms: when the queue that has waited longest was read; None: no queue was within seven days.
    """

    listed_ms: int | None
    drift_bytes: int
    drift_customers: int
    read_ms: int | None


class Upkeep:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.keys.shard(HOOKS_SHARD, "storage")

    async def listed(self, drift: Mapping[str, int]) -> None:
        """Note that all customers were recalculated now."""
        figures = {"drift": sum(map(abs, drift.values())), "customers": len(drift)}
        await self._note({"listed": self._store.now_ms(), **figures})

    async def read(self, queue_url: str) -> None:
        """Note that a queue was read now."""
        digest = blake2b(queue_url.encode(), digest_size=6).hexdigest()
        await self._note({f"{_QUEUE}{digest}": self._store.now_ms()})

    async def seen(self) -> UpkeepSeen:
        """The state now."""
        admin, least_ms = await self._store.admin(), self._store.now_ms() - _KEPT_MS
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key))
        found = {name.decode(): int(value) for name, value in kept.items()}
        read = [at for name, at in found.items() if name.startswith(_QUEUE) and at > least_ms]
        listed = found.get("listed", 0)
        return UpkeepSeen(
            listed if listed > least_ms else None,
            found.get("drift", 0),
            found.get("customers", 0),
            min(read, default=None),
        )

    async def _note(self, values: Mapping[str, int]) -> None:
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hset(self._key, mapping=dict(values))
        pipe.pexpire(self._key, _KEPT_MS)
        await admin.ask(pipe.execute())
