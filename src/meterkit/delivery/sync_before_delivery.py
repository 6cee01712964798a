"""Sync a customer before its waiting usage is sent: another party may have changed the price."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meterkit.cancellation import start_task
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.subscription import ENDED
from meterkit.errors import MeterkitError, StoreError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from meterkit.store.store import Store

WAITED_MS: Final = 120_000
"""Usage that waited for this time needs a sync first; for younger usage, webhooks are faster."""

_AT_ONCE: Final = 8
_PATIENCE_S: Final = 10.0
_REMEMBERED_MOST: Final = 10_000


class SyncBeforeDelivery:
    """Syncs customers with metered subscriptions, each at most once in two minutes.

    If such a sync finds changed prices, usage recorded before the change is late.

    Args:
        store: has the customers' states.
        sync: fetches a customer's subscription from Stripe into the store; None: no customer is synced.
    """

    def __init__(self, store: Store, sync: Callable[[str], Awaitable[object]] | None) -> None:
        self._store = store
        self._sync = sync
        self._seen_ms: dict[str, int] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def without_recent_sync(self, customers: Iterable[str]) -> list[str]:
        """Customers without a recent sync; none if syncs are off."""
        if self._sync is None:
            return []
        since_ms = self._store.now_ms() - WAITED_MS
        return [customer for customer in customers if self._seen_ms.get(customer, 0) <= since_ms]

    async def sync_customers(self, customers: Collection[str]) -> set[str]:
        """Sync customers; return those that failed because Stripe or the store does not answer.

        A customer that Stripe refuses to show holds up no other.

        Raises:
            StoreError: the store does not answer.
        """
        now_ms, keys = self._store.now_ms(), self._store.keys
        admin = (await self._store.admin()).for_delivery()
        states = await admin.ask_each(("hget", keys.customer(name).state, "data") for name in customers)
        sold = [
            name for name, data in zip(customers, states, strict=True) if _has_metered_prices(data, now_ms)
        ]
        failed = await asyncio.gather(
            *(start_task(self._sync_one(name)) for name in sold), return_exceptions=True
        )
        unseen = {
            name
            for name, error in zip(sold, failed, strict=True)
            if isinstance(error, StripeUnavailableError | StoreError | TimeoutError)
        }
        if len(self._seen_ms) > _REMEMBERED_MOST:
            self._seen_ms.clear()
        self._seen_ms |= dict.fromkeys(set(customers) - unseen, now_ms)
        return unseen

    async def _sync_one(self, customer: str) -> None:
        if self._sync is not None:
            async with self._at_once, asyncio.timeout(_PATIENCE_S):
                await self._sync(customer)


def _has_metered_prices(data: bytes | Exception | None, now_ms: int) -> bool:
    """Whether a customer's subscription has metered prices, which others may change."""
    if isinstance(data, Exception):
        return False
    try:
        subscription = CustomerState.parse(data or b"").subscription
    except (ValueError, TypeError, AttributeError, MeterkitError):
        return False  # Sealing reports it.
    return (
        subscription is not None
        and bool(subscription.metered)
        and subscription.status_at(now_ms) not in ENDED
    )
