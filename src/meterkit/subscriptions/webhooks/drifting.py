"""Compares a subscription that was fetched with the plans file, and logs each difference once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StripeError
from meterkit.store.drifts import Drifts
from meterkit.subscriptions.at_stripe.drift import drift_of_customer, plan_in
from meterkit.subscriptions.at_stripe.items import items_of
from meterkit.subscriptions.at_stripe.price_book import PriceBook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.decisions.drift import Drift
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["Drifting"]

_logger = logging.getLogger("meterkit.subscriptions")

_FRESH_MS: Final = 60_000
_TOLD_MS: Final = 3_600_000


class Drifting:
    """Notes how the subscriptions of customers differ from the plans file.

    Args:
        store: where it is noted.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._book = PriceBook(store, api)
        self._drifts = Drifts(store)
        self._told_ms = 0
        self._untold = 0

    async def look(
        self, customer: str, found: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None
    ) -> None:
        """Note what differs of a customer's subscriptions, and log what was not noted before.

        Where Stripe does not show prices now, what was noted before stays.

        Args:
            customer: whose they are.
            found: all subscriptions of the Stripe customer, with ``latest_invoice`` expanded.
            chosen: the one that counts; None: there is none.

        Raises:
            StoreError: the store does not answer.
        """
        try:
            drifts = await self._compared(found, chosen)
        except StripeError:
            return
        new = await self._drifts.put(customer, drifts)
        if new:
            self._tell(customer, new[0])

    async def _compared(
        self, found: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None
    ) -> tuple[Drift, ...]:
        catalog = self._store.catalog
        plan = None if chosen is None else plan_in(items_of(chosen), catalog)
        if plan is None:
            return drift_of_customer(found, chosen, catalog, None)
        drifts = drift_of_customer(found, chosen, catalog, await self._book.of(plan))
        if drifts:  # A price may be younger than the book.
            fresh = await self._book.of(plan, within_ms=_FRESH_MS)
            drifts = drift_of_customer(found, chosen, catalog, fresh)
        return drifts

    def _tell(self, customer: str, drift: Drift) -> None:
        """Log a difference; of many within an hour, which have one cause most of the time, the first."""
        now_ms = self._store.now_ms()
        if self._told_ms <= now_ms < self._told_ms + _TOLD_MS:
            self._untold += 1
            return
        more = f"; so do those of {self._untold} customers since the last line" if self._untold else ""
        self._told_ms, self._untold = now_ms, 0
        _logger.warning(
            "subscription %s of customer %r differs from the plans file: %s%s;"
            " `meterkit subscriptions check` lists all",
            *(drift.subscription, customer, drift.message, more),
        )
