"""Lease per customer: one call of any process changes a subscription at a time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from meterkit.errors import SubscriptionBusyError
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

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
