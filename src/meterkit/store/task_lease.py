"""Leases of tasks that one process runs at a time."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

_PAUSE_S: Final = 0.1


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
        admin = await self._store.admin()
        left_ms: int = await admin.ask(admin.client.pttl(self._key))
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
