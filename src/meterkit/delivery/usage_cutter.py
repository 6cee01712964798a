"""Delivery of one customer on demand: all usage until now, and the cut before prices change.

Stripe does not document whether an event's timestamp or its arrival decides its price. So usage is counted
before prices change, and later usage is stamped behind the change.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.customers.billed_usage import read_negative_units
from meterkit.customers.late_usage_on_price_change import (
    hold_usage,
    miss_rebuilt,
    next_minute_ms,
    release_usage,
)
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import is_billed_by_lines
from meterkit.delivery.late_usage_withdrawal import report_late
from meterkit.delivery.summaries import wait_until_counted
from meterkit.errors import StoreError, StripeError, StripeUnavailableError
from meterkit.outbox.invoice_item_queue import InvoiceItemQueue
from meterkit.outbox.operator_commands import Intents
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import PriceCut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.flusher import Flusher
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_logger = logging.getLogger("meterkit.delivery")
_PAUSE_FIRST_S: Final = 0.2
_PAUSE_MAX_S: Final = 2.0
_HELD_MS: Final = 90_000
"""Duration of a hold: longer than all tries of one request to Stripe, so that a change is made by then, or
not."""
_COUNTING_S: Final = 20.0
_PAUSE_S: Final = 0.3


async def deliver_customer(
    store: Store, flusher: AbstractAsyncContextManager[Flusher], customer: str, *, timeout_s: float
) -> bool:
    """Deliver a customer's usage until now; whether all of it was delivered (logged if not).

    The customer's usage is due at once. Due usage of other customers is delivered, too.

    Args:
        store: counts the usage.
        flusher: delivers it.
        customer: the customer's id.
        timeout_s: time limit in real seconds.

    Raises:
        StoreError: the store does not answer.
    """
    deadline, pause_s = monotonic() + timeout_s, _PAUSE_FIRST_S
    dirty = store.keys.customer(customer).dirty
    async with flusher as running:
        left = await count_undelivered_units(store, customer)
        while left:
            await store.ask("zadd", dirty, {customer: store.now_ms()}, xx=True)
            await running.flush()
            left = await count_undelivered_units(store, customer)
            if left and monotonic() >= deadline:
                _logger.error(
                    "%d units that customer %r has used are not delivered within %d s: they are not on the"
                    " invoice that ends the subscription",
                    left,
                    customer,
                    timeout_s,
                )
                return False
            if left:
                await anyio.sleep(min(pause_s, max(0.0, deadline - monotonic())))
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
    return True


async def count_undelivered_units(store: Store, customer: str) -> int:
    """Count a customer's units that are to be delivered and are not delivered yet.

    Raises:
        StoreError: the store does not answer.
    """
    usage = await store.usage(customer)
    # Negative events are subtracted there, and wait for delivery, too.
    back = sum(
        2 * (units.queued + units.leased) for units in (await read_negative_units(store, usage)).values()
    )
    items = await InvoiceItemQueue(store, await store.admin()).listed(customer)
    return (
        back
        + sum(item.units for item, _ in items)
        + sum(meter["pending"] + meter["queued"] + meter["leased"] for meter in usage["meters"].values())
    )


@dataclass(eq=False)
class UsageCutter:
    """Cuts a customer's usage at an instant at which prices change.

    Args:
        store: counts the usage.
        flusher: delivers it.
        api: the way to Stripe.
    """

    store: Store
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]]
    api: Callable[[], StripeApi]

    @asynccontextmanager
    async def cut(self, customer: str, labels: Mapping[str, str]) -> AsyncGenerator[None]:
        """Deliver a customer's usage, wait until Stripe has counted it, then run the block.

        Usage recorded meanwhile stays pending. After the block, its timestamp is the next whole minute or
        later. If the outcome of the block is unknown, usage stays pending until the hold expires.

        Args:
            customer: the customer's id.
            labels: of the prices that end (see :mod:`meterkit.decisions.price_segments`).

        Raises:
            StripeUnavailableError: Stripe does not take the usage, or has not counted it in time; nothing has
                changed.
            StripeError: Stripe refuses.
            StoreError: the store does not answer.
        """
        _, state = await CustomerStates(self.store).read(customer)
        by_lines = is_billed_by_lines(state, self.store.catalog, self.store.now_ms())
        if state.stripe_customer is None or by_lines:  # The change of the state ends the prices of lines.
            yield
            return
        is_changing = False
        try:
            await miss_rebuilt(self.store, customer, state, labels)
            await self._deliver_all(customer, labels)
            await self._wait_until_counted(customer, state.stripe_customer)
            await hold_usage(self.store, customer, till_ms=self.store.now_ms() + _HELD_MS)
            is_changing = True
            yield
        except BaseException as error:
            is_refused = isinstance(error, StripeError) and not isinstance(error, StripeUnavailableError)
            if is_refused or not is_changing:
                with anyio.CancelScope(shield=True), suppress(StoreError):  # The hold expires by itself.
                    await self._release_held(customer)
            raise
        await self._release_held(customer)

    async def _deliver_all(self, customer: str, labels: Mapping[str, str]) -> None:
        """Seal and deliver pending usage, and hold usage recorded from now on."""
        store = self.store
        outbox = Outbox(store, await store.admin())
        async with self.flusher() as running:
            is_sealed, tries = False, await self._retry_now(customer)
            while True:
                till_ms = store.now_ms() + _HELD_MS
                if is_sealed:
                    await hold_usage(store, customer, till_ms=till_ms)
                else:
                    seal_result = await outbox.cut(customer, PriceCut(till_ms=till_ms, labels=labels))
                    report_late(seal_result.late, await outbox.meters())
                    if why := seal_result.unreadable.get(customer):
                        raise StoreError(f"usage of customer {customer!r} cannot be sealed: {why}")
                    is_sealed = not seal_result.waiting_lines
                await running.flush()
                meters = (await store.usage(customer))["meters"].values()
                if is_sealed and not any(meter["queued"] or meter["leased"] for meter in meters):
                    return
                await self._check_tries(customer, tries)
                await anyio.sleep(_PAUSE_S)

    async def _wait_until_counted(self, customer: str, stripe_customer: str) -> None:
        left = await wait_until_counted(
            self.store, self.api(), customer, stripe_customer, timeout_s=_COUNTING_S
        )
        if left:
            raise StripeUnavailableError(f"Stripe has not counted {left} units that it has accepted")

    async def _retry_now(self, customer: str) -> dict[str, int]:
        """Make the customer's queued intents due now; return the attempts of each."""
        waiting = await Intents(self.store).list(state="queued", customer=customer)
        if waiting:
            store, admin = self.store, await self.store.admin()
            outbox = store.keys.shard(store.keys.customer(customer).shard, "outbox")
            due = dict.fromkeys((intent.identifier for intent in waiting), store.now_ms())
            await admin.ask(admin.client.zadd(outbox, due, xx=True))
        return {intent.identifier: intent.attempts for intent in waiting}

    async def _check_tries(self, customer: str, before: Mapping[str, int]) -> None:
        """Raise StripeUnavailableError if Stripe did not accept an intent that was just sent."""
        for intent in await Intents(self.store).list(state="queued", customer=customer):
            if intent.attempts > before.get(intent.identifier, 0):
                raise StripeUnavailableError(
                    f"usage of customer {customer!r} cannot be delivered now: {intent.why or 'no response'}"
                )

    async def _release_held(self, customer: str) -> None:
        """Release held usage, stamped after this instant by Stripe's clock and by the store's."""
        now_ms = max(self.store.now_ms(), 1000 * (self.api().server_time_s or 0))
        await release_usage(self.store, customer, changed_ms=next_minute_ms(now_ms))
