"""Who does what one process at a time is to do: whoever has its lease."""

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

__all__ = ["TaskLease"]

_PAUSE_S: Final = 0.1


class TaskLease:
    """The lease of a task. Each object is another holder, also within one process.

    Args:
        store: where it is.
        key: its name there.
        lasts_ms: how long it is held; whoever dies with it keeps others from the task for so long.
    """

    def __init__(self, store: Store, key: str, *, lasts_ms: int) -> None:
        self._store = store
        self._key = key
        self._lasts_ms = lasts_ms
        self._token = token_hex(16)

    async def take(self) -> bool:
        """Take it, or keep it, from now on; whether nobody else has it.

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
            within_s: how long to wait for whoever has it, in real seconds.

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
        return bool(await admin.run(self._store.scripts["lease"], [self._key], self._token, span_ms))
