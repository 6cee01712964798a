"""Log of drifts: how a customer's subscriptions differ from the plans file and the customer's overrides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.drifts import Drifts
from meterkit.customers.states import States
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.errors import StripeError
from meterkit.subscriptions.drift import drift_of_customer, plan_in
from meterkit.subscriptions.due_customers import due_prices
from meterkit.subscriptions.item_changes import items_of, prices_in
from meterkit.subscriptions.item_price_reading import PriceFactsReader
from meterkit.subscriptions.override_prices import compared_prices, gives_price
from meterkit.subscriptions.stripe_objects import is_override_price
from meterkit.subscriptions.stripe_prices import PriceBook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.customers.drifts import Drift, DriftKind
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_logger = logging.getLogger("meterkit.subscriptions")
_LASTS_MS: Final = 3_600_000
_FRESH_MS: Final = 60_000
_OF_PRICES: Final[frozenset[DriftKind]] = frozenset({"other_price", "other_item", "missing_meter"})
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
        self._facts = PriceFactsReader(api)
        self._drifts = Drifts(store)
        self._states = States(store)
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
        _, state = await self._states.read(customer)
        given = overrides_at(state.overrides, self._store.now_ms()).meters
        try:
            drifts = await self._compared(found, chosen, given)
        except StripeError:
            return
        if any(drift.kind in _OF_PRICES for drift in drifts) and _has_override_price(chosen, given):
            await due_prices(self._store).put(customer, self._store.now_ms())
        new = await self._drifts.put(customer, drifts)
        if new:
            self._tell(customer, new[0])

    async def _compared(
        self,
        found: Sequence[Mapping[str, Any]],
        chosen: Mapping[str, Any] | None,
        given: Mapping[str, Mapping[str, object]],
    ) -> tuple[Drift, ...]:
        catalog = self._store.catalog
        plan = None if chosen is None else plan_in(items_of(chosen), catalog)
        if chosen is None or plan is None:
            return drift_of_customer(found, chosen, catalog, None)
        facts = await self._facts.facts_of(chosen)
        drifts: tuple[Drift, ...] = ()
        for within_ms in (_LASTS_MS, _FRESH_MS):  # A price may be younger than the book.
            prices = await self._book.of(plan, within_ms=within_ms)
            if prices is not None:
                prices = compared_prices(prices, catalog, given, prices_in(chosen))
            drifts = drift_of_customer(found, chosen, catalog, prices, facts)
            if not drifts:
                break
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
            drift.subscription,
            customer,
            drift.message,
            more,
        )


def _has_override_price(chosen: Mapping[str, Any] | None, given: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether an override gives a price now, or one that has ended is still on an item."""
    items = () if chosen is None else prices_in(chosen)
    return any(gives_price(given, name) for name in given) or any(map(is_override_price, items))
