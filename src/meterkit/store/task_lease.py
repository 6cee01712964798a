"""Leases of tasks that one process at a time runs, and when buckets and queues were last read."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from meterkit.store.store import Store

_PAUSE_S: Final = 0.1


class TaskLease:
    """The lease of a task. Each object is another holder, also within one process.

    Args:
        store: where it is.
        key: its name there.
        lasts_ms: how long it is held; a process that dies with it keeps others from the task for so long.
    """

    def __init__(self, store: Store, key: str, *, lasts_ms: int) -> None:
        self._store = store
        self._key = key
        self._lasts_ms = lasts_ms
        self._token = token_hex(16)

    async def take(self) -> bool:
        """Take or renew it; whether no other process has it.

        Raises:
            StoreError: the store does not answer.
        """
        return await self._ask(self._lasts_ms)

    async def left_s(self) -> int:
        """In how many seconds, at least 1, it runs out unless its holder keeps it.

        Raises:
            StoreError: the store does not answer.
        """
        admin = await self._store.admin()
        left_ms: int = await admin.ask(admin.client.pttl(self._key))
        return max(1, -(-left_ms // 1000))

    @asynccontextmanager
    async def held(self, *, within_s: float = 0.0) -> AsyncGenerator[bool]:
        """Hold it while a block runs; what the block gets is whether it could be had.

        Args:
            within_s: how long to wait for its holder, in real seconds.

        Raises:
            StoreError: the store does not answer.
        """
        deadline = monotonic() + within_s
        is_held = await self.take()
        while not is_held and monotonic() < deadline:
            await anyio.sleep(_PAUSE_S)
            is_held = await self.take()
        try:
            yield is_held
        finally:
            if is_held:
                with anyio.CancelScope(shield=True), suppress(StoreError):  # It runs out by itself.
                    await self._ask(0)

    async def _ask(self, span_ms: int) -> bool:
        admin = await self._store.admin()
        return bool(await admin.run(self._store.scripts["lease_shard"], [self._key], self._token, span_ms))


_KEPT_MS: Final = 7 * 86_400_000
_QUEUE: Final = "queue:"


class UpkeepState(NamedTuple):
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


class StorageUpkeep:
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

    async def seen(self) -> UpkeepState:
        """The state now."""
        admin, least_ms = await self._store.admin(), self._store.now_ms() - _KEPT_MS
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key))
        found = {name.decode(): int(value) for name, value in kept.items()}
        read = [at for name, at in found.items() if name.startswith(_QUEUE) and at > least_ms]
        listed = found.get("listed", 0)
        return UpkeepState(
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
