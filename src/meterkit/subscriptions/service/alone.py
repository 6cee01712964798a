"""One begins a subscription for a customer at a time: two at once, of different plans, would begin two."""

from __future__ import annotations

from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Final

from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

__all__ = ["alone"]

_LEASE_MS: Final = 60_000


@asynccontextmanager
async def alone(store: Store, customer: str) -> AsyncGenerator[None]:
    """Wait until nobody else begins a subscription for a customer, in any process, and keep others waiting.

    Who dies meanwhile, or needs longer, keeps them waiting for a minute.

    Raises:
        StoreError: the store does not answer.
    """
    lease = TaskLease(store, store.keys.beginning(customer), lasts_ms=_LEASE_MS)
    async with lease.held(within_s=inf):
        yield
