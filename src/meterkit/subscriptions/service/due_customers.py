"""Queues of customers with due changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import DAY_MS, HOUR_MS
from meterkit.store.unreadable_data import skip_unreadable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit.store.store import Store


class DueCustomers:
    """Queue of customers by due time.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: of the kit.
        name: of the queue.
        kept_ms: how long it lasts after the last entry.
    """

    def __init__(self, store: Store, name: str, *, kept_ms: int) -> None:
        self._store = store
        self._key = store.keys.hooks(name)
        self._kept_ms = kept_ms

    async def put(self, customer: str, due_ms: int) -> None:
        """Set when a customer is due; it replaces an earlier instant."""
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.zadd(self._key, {customer: due_ms})
        pipe.pexpire(self._key, self._kept_ms)
        await admin.ask(pipe.execute())

    async def put_in(self, customer: str, in_ms: int) -> None:
        """Set that a customer is due in a while, by the clock of the store."""
        await self.put(customer, await self._store.clock_ms(HOOKS_SHARD) + in_ms)

    async def remove(self, customer: str) -> None:
        """Remove a customer."""
        admin = await self._store.admin()
        await admin.ask(admin.client.zrem(self._key, customer))

    async def due(self) -> list[str]:
        """List the due customers, by the clock of the store."""
        admin, now_ms = await self._store.admin(), await self._store.clock_ms(HOOKS_SHARD)
        found: list[bytes] = await admin.ask(admin.client.zrangebyscore(self._key, "-inf", now_ms))
        return [member.decode() for member in found]

    async def handle_due(self, handle: Callable[[str], Awaitable[None]], what: str) -> None:
        """Handle each due customer. One whose data cannot be read holds up no other: it is due in an hour.

        Args:
            handle: makes the change of a customer, and sets when it is due next, or removes it.
            what: the change, for the log.
        """

        async def postpone(customer: str, error: Exception) -> None:
            await self.put_in(customer, HOUR_MS)
            (await self._store.admin()).warn_once(
                f"{what} of customer {customer!r} cannot be made; it is tried again every hour: {error!r}"
            )

        for customer in await self.due():
            async with skip_unreadable(customer, postpone):
                await handle(customer)


def due_prices(store: Store) -> DueCustomers:
    """Queue of customers by when the price of an override starts or ends at Stripe.

    The nightly sync finds a customer whose entry was lost.
    """
    return DueCustomers(store, "prices", kept_ms=400 * DAY_MS)
