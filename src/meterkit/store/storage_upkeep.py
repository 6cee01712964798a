"""Times of the storage upkeep: the last recalculation of all customers, and the last read of each queue."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.keys import HOOKS_SHARD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

_KEPT_MS: Final = 7 * 86_400_000
_QUEUE: Final = "queue:"


class UpkeepState(NamedTuple):
    """State of the storage upkeep.

    Attributes:
        listed_ms: end of the last recalculation of all customers; None: not within seven days.
        drift_bytes: sum of the wrong bytes in levels then.
        drift_customers: number of customers with wrong levels.
        read_ms: last read of the queue that has waited longest; None: no queue within seven days.
    """

    listed_ms: int | None
    drift_bytes: int
    drift_customers: int
    read_ms: int | None


class StorageUpkeep:
    """Times of the storage upkeep. Each method raises :class:`~meterkit.errors.StoreError`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.keys.shard(HOOKS_SHARD, "storage")

    async def record_listing(self, drift: Mapping[str, int]) -> None:
        """Store that all customers were recalculated now."""
        figures = {"drift": sum(map(abs, drift.values())), "customers": len(drift)}
        await self._write_fields({"listed": self._store.now_ms(), **figures})

    async def record_queue_read(self, queue_url: str) -> None:
        """Store that a queue was read now."""
        digest = blake2b(queue_url.encode(), digest_size=6).hexdigest()
        await self._write_fields({f"{_QUEUE}{digest}": self._store.now_ms()})

    async def read_state(self) -> UpkeepState:
        """Read the state."""
        admin, least_ms = await self._store.admin(), self._store.now_ms() - _KEPT_MS
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key))
        found = {name.decode(): int(value) for name, value in kept.items() if value.isdigit()}
        read = [at for name, at in found.items() if name.startswith(_QUEUE) and at > least_ms]
        listed = found.get("listed", 0)
        return UpkeepState(
            listed if listed > least_ms else None,
            found.get("drift", 0),
            found.get("customers", 0),
            min(read, default=None),
        )

    async def _write_fields(self, values: Mapping[str, int]) -> None:
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hset(self._key, mapping=dict(values))
        pipe.pexpire(self._key, _KEPT_MS)
        await admin.ask(pipe.execute())
