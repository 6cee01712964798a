"""Queue of customers by when the price of an override begins or ends at Stripe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.store.store import Store

_KEPT_MS: Final = 400 * 86_400_000
"""The nightly sync finds a customer again whose turn is later, or was lost."""


class DuePrices:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, customer: str, due_ms: int) -> None:
        """Set when a customer is due; it replaces an earlier instant."""
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.zadd(self._key, {customer: due_ms})
        pipe.pexpire(self._key, _KEPT_MS)
        await admin.ask(pipe.execute())

    async def remove(self, customer: str) -> None:
        """Drop a customer whose prices do not change by the clock."""
        admin = await self._store.admin()
        await admin.ask(admin.client.zrem(self._key, customer))

    async def due(self) -> list[str]:
        """The customers that are due."""
        admin = await self._store.admin()
        found: list[bytes] = await admin.ask(
            admin.client.zrangebyscore(self._key, "-inf", self._store.now_ms())
        )
        return [member.decode() for member in found]

    @property
    def _key(self) -> str:
        return self._store.keys.hooks("prices")
