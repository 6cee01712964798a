"""Leases of tasks that one process runs at a time, and times of the storage upkeep."""

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
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping

    from meterkit.store.store import Store

_PAUSE_S: Final = 0.1
_KEPT_MS: Final = 7 * 86_400_000
_QUEUE: Final = "queue:"


class RepeatedTask(NamedTuple):
    """A task that keeps a promise of delivery, run in an app or a worker, or one pass of it.

    Attributes:
        run: repeats it, until cancelled.
        once: does what is due now, unless another process does.
    """

    run: Callable[[], Coroutine[object, object, None]]
    once: Callable[[], Coroutine[object, object, object]]


class TaskLease:
    """Lease of a task. Each object is another holder, also within one process.

    Args:
        store: has the lease.
        key: name of its key.
        lasts_ms: length of the lease; a holder that dies blocks others for that time.
    """

    def __init__(self, store: Store, key: str, *, lasts_ms: int) -> None:
        self._store = store
        self._key = key
        self._lasts_ms = lasts_ms
        self._token = token_hex(16)
        self._blocks = 0

    async def acquire(self) -> bool:
        """Acquire or renew the lease; False: another holder has it.

        Raises:
            StoreError: the store does not answer.
        """
        return await self._ask(self._lasts_ms)

    async def renew(self) -> None:
        """Renew the lease within a block that holds it; elsewhere this does nothing, as none would end it.

        Raises:
            StoreError: the store does not answer.
        """
        if self._blocks:
            await self.acquire()

    async def left_s(self) -> int:
        """Seconds until it expires unless its holder renews it, at least 1.

        Raises:
            StoreError: the store does not answer.
        """
        left_ms: int = await self._store.ask("pttl", self._key)
        return max(1, -(-left_ms // 1000))

    @asynccontextmanager
    async def held(self, *, within_s: float = 0.0) -> AsyncGenerator[bool]:
        """Hold the lease while a block runs, which gets whether it was acquired.

        Args:
            within_s: longest wait for its holder, in real seconds.

        Raises:
            StoreError: the store does not answer.
        """
        deadline = monotonic() + within_s
        is_held = await self.acquire()
        while not is_held and monotonic() < deadline:
            await anyio.sleep(_PAUSE_S)
            is_held = await self.acquire()
        self._blocks += is_held
        try:
            yield is_held
        finally:
            self._blocks -= is_held
            if is_held and not self._blocks:
                with anyio.CancelScope(shield=True), suppress(StoreError):  # It expires.
                    await self._ask(0)

    async def _ask(self, span_ms: int) -> bool:
        admin = await self._store.admin()
        return bool(await admin.run(self._store.scripts["lease_shard"], [self._key], self._token, span_ms))


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
