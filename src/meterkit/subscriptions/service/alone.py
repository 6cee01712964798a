"""A lease per customer, so that one call at a time begins or changes a subscription: two could begin two."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from meterkit.errors import SubscriptionBusyError
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

__all__ = ["WAIT_S", "alone"]

_LEASE_MS: Final = 60_000
WAIT_S: Final = 9.0
"""A client gets its answer within 10 s."""


@asynccontextmanager
async def alone(store: Store, customer: str, *, within_s: float | None = None) -> AsyncGenerator[None]:
    """Hold the customer's lease while the block runs; wait for another holder first.

    A process that is killed meanwhile keeps the lease for a minute.

    Args:
        store: where the lease is.
        customer: whose.
        within_s: how long to wait, in real seconds; None: :data:`WAIT_S`.

    Raises:
        SubscriptionBusyError: another call has the lease for longer than a client waits.
        StoreError: the store does not answer.
    """
    lease = TaskLease(store, store.keys.beginning(customer), lasts_ms=_LEASE_MS)
    async with lease.held(within_s=WAIT_S if within_s is None else within_s) as is_held:
        if not is_held:
            raise SubscriptionBusyError(customer, retry_after_s=await lease.left_s())
        yield
