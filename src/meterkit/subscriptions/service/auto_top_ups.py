"""Automatic top-ups: bought with the saved card when the balance is low, one at a time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meterkit.catalog.model_prices import sold_in
from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.errors import PaymentMethodMissingError
from meterkit.store.messages import tell
from meterkit.subscriptions.auto_state import step
from meterkit.throttle import HOUR_S, Throttle

if TYPE_CHECKING:
    from meterkit.catalog.model_prices import AutoTopUp
    from meterkit.store.store import Store
    from meterkit.subscriptions.auto_state import Step
    from meterkit.subscriptions.service.credits import Credits, TopUp

_logger = logging.getLogger("meterkit.subscriptions")


class AutoTopUps:
    """Buys top-ups for customers who have bought one before.

    Args:
        store: where customers are kept.
        credits_: sells them.
    """

    def __init__(self, store: Store, credits_: Credits) -> None:
        self._store = store
        self._credits = credits_
        self._throttle = Throttle(24 * HOUR_S)

    async def on_low(self, customer: str, credit: str, event: str) -> None:
        """Buy one because a balance has become low.

        Args:
            customer: the customer's id.
            credit: whose balance it is.
            event: the id of the event that says so; the same event buys once.

        Raises:
            StripeError: Stripe refuses, or does not answer; call it again.
            StoreError: the store does not answer.
        """
        await self._buy(customer, credit, f"low {event}")

    async def look(self, customer: str) -> None:
        """Buy one if the balance is low: it may have been when a month, or a declined card, forbade it."""
        sold = sold_in(self._store.catalog.credits)
        if (
            sold is not None
            and sold[1].auto is not None
            and await self._is_low(customer, sold[0], sold[1].auto)
        ):
            await self._buy(customer, sold[0], f"night {from_ms(self._store.now_ms()):%Y-%m-%d}")

    async def _is_low(self, customer: str, credit: str, auto: AutoTopUp) -> bool:
        usage = await self._store.usage(customer)
        return usage["balance_micros"].get(credit, 0) < auto.below_cents * (MICRO // 100)

    async def _buy(self, customer: str, credit: str, event: str) -> None:
        sold = self._store.catalog.credits.get(credit)
        auto = None if sold is None or sold.top_up is None else sold.top_up.auto
        if auto is None:
            return
        month, most = f"{from_ms(self._store.now_ms()):%Y-%m}", auto.at_most
        begun = await step(self._store, customer, credit, "begin", event=event, month=month, most=most)
        if begun is None:
            return
        event = begun[1]
        # The same purchase, however often it is begun.
        key = f"auto {credit} {' '.join(begun)}"
        ended: Step = "none"
        try:
            bought = await self._credits.charge(customer, auto.amount_cents, key, event=event)
        except PaymentMethodMissingError:
            if self._throttle.is_due((customer, "no card")):
                _logger.warning("customer %r has no saved card for an automatic top-up", customer)
        else:
            ended = "paid" if bought.status == "paid" else "failed"
            if ended == "failed":
                await self._tell_failed(customer, credit, bought)
        await step(self._store, customer, credit, ended, event=event)
        if ended == "paid" and await self._is_low(customer, credit, auto):
            # The first top-ups repay a debt. The script bounds how many there are.
            first, _, number = event.partition("+")
            await self._buy(customer, credit, f"{first}+{int(number or 1) + 1}")

    async def _tell_failed(self, customer: str, credit: str, bought: TopUp) -> None:
        reason = bought.declined or "no reason given"
        if self._throttle.is_due((customer, reason)):
            message = "customer %r: an automatic top-up of %s was declined (%s): the next follows a paid one"
            _logger.warning(message, customer, credit, reason)
        told = {
            "id": f"top_up.failed/{bought.invoice}",
            "at_ms": self._store.now_ms(),
            "invoice": bought.invoice,
            "credit": credit,
            "amount_cents": bought.amount_cents,
            "declined": bought.declined or "",
            "url": bought.url or "",
        }
        await tell(self._store, customer, "top_up.failed", told)
