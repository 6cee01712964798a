"""Before usage is sent that has waited, its customer is looked at: others may have changed the price."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.subscription import ENDED
from meterkit.errors import MeterkitError, StoreError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from meterkit.store.store import Store

__all__ = ["WAITED_MS", "FirstLook"]

WAITED_MS: Final = 120_000
"""What has waited for so long is looked at first; otherwise webhooks are faster."""

_AT_ONCE: Final = 8
_PATIENCE_S: Final = 10.0
_REMEMBERED_MOST: Final = 10_000


class FirstLook:
    """Looks at customers whose subscriptions have metered prices, each at most once in two minutes.

    A change of prices that is found so makes what was recorded before it late.

    Args:
        store: where customers are.
        look: fetches a customer's subscription from Stripe into the store; None: nobody is looked at.
    """

    def __init__(self, store: Store, look: Callable[[str], Awaitable[object]] | None) -> None:
        self._store = store
        self._look = look
        self._seen_ms: dict[str, int] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def unseen(self, customers: Collection[str]) -> set[str]:
        """Look at customers; those that could not be looked at, as Stripe or the store does not answer.

        What Stripe refuses to show holds up nobody.

        Raises:
            StoreError: the store does not answer.
        """
        now_ms = self._store.now_ms()
        asked = [name for name in customers if self._seen_ms.get(name, 0) + WAITED_MS <= now_ms]
        if self._look is None or not asked:
            return set()
        keys, admin = self._store.keys, (await self._store.admin()).for_delivery()
        pipe = admin.client.pipeline(transaction=False)
        for name in asked:
            pipe.hget(keys.customer(name).state, "data")
        states: list[bytes | None] = await admin.ask(pipe.execute())
        sold = [name for name, data in zip(asked, states, strict=True) if _is_sold(data, now_ms)]
        looks = (self._look_at(name, self._look) for name in sold)
        failed = await asyncio.gather(*looks, return_exceptions=True)
        unseen = {
            name
            for name, error in zip(sold, failed, strict=True)
            if isinstance(error, StripeUnavailableError | StoreError | TimeoutError)
        }
        if len(self._seen_ms) > _REMEMBERED_MOST:
            self._seen_ms.clear()
        self._seen_ms |= dict.fromkeys(set(asked) - unseen, now_ms)
        return unseen

    async def _look_at(self, customer: str, look: Callable[[str], Awaitable[object]]) -> None:
        async with self._at_once, asyncio.timeout(_PATIENCE_S):
            await look(customer)


def _is_sold(data: bytes | None, now_ms: int) -> bool:
    """Whether a customer's subscription has metered prices, which others may change."""
    try:
        subscription = CustomerState.parse(data or b"").subscription
    except (ValueError, TypeError, AttributeError, MeterkitError):
        return False  # It is told where its usage is sealed.
    return (
        subscription is not None
        and bool(subscription.metered)
        and subscription.status_at(now_ms) not in ENDED
    )
