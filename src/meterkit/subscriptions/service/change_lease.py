"""Lease per customer: one call of any process changes a subscription at a time; queues of due changes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import DAY_MS, HOUR_MS
from meterkit.errors import SubscriptionBusyError
from meterkit.store.task_lease import TaskLease
from meterkit.store.unreadable_data import skip_unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from meterkit.store.store import Store

_LEASE_MS: Final = 60_000
WAIT_S: Final = 9.0
"""Longest wait for the lease: a client gets its answer within 10 s."""
ANSWER_S: Final = 9.0
"""Longest wait for a change; the rest of the 10 s is for the state and the way back."""


@asynccontextmanager
async def hold_change_lease(
    store: Store, customer: str, *, within_s: float | None = None
) -> AsyncGenerator[None]:
    """Hold the customer's lease while the block runs; first wait for another holder.

    If the process is killed meanwhile, the lease lasts for a minute.

    Args:
        store: of the kit.
        customer: the customer's id.
        within_s: how long to wait, in real seconds; None: :data:`WAIT_S`.

    Raises:
        SubscriptionBusyError: another call holds the lease for longer than a client waits.
        StoreError: the store does not answer.
    """
    lease = TaskLease(store, store.keys.beginning(customer), lasts_ms=_LEASE_MS)
    async with lease.held(within_s=WAIT_S if within_s is None else within_s) as is_held:
        if not is_held:
            raise SubscriptionBusyError(customer, retry_after_s=await lease.left_s())
        yield


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
        await admin.ask_all([("zadd", self._key, {customer: due_ms}), ("pexpire", self._key, self._kept_ms)])

    async def put_in(self, customer: str, in_ms: int) -> None:
        """Set that a customer is due in a while, by the clock of the store."""
        await self.put(customer, await self._store.clock_ms(HOOKS_SHARD) + in_ms)

    async def remove(self, customer: str) -> None:
        """Remove a customer."""
        await self._store.ask("zrem", self._key, customer)

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
