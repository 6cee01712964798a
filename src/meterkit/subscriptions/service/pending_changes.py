"""Queues of customers with due changes, the retry queue of accepted changes, and a lease per customer."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from meterkit.catalog.value_parsers import DAY_MS
from meterkit.customers.states import CustomerStates
from meterkit.errors import MeterkitError, StoreError, StripeUnavailableError, SubscriptionBusyError
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store


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
        pipe = admin.client.pipeline(transaction=False)
        pipe.zadd(self._key, {customer: due_ms})
        pipe.pexpire(self._key, self._kept_ms)
        await admin.ask(pipe.execute())

    async def remove(self, customer: str) -> None:
        """Remove a customer."""
        admin = await self._store.admin()
        await admin.ask(admin.client.zrem(self._key, customer))

    async def due(self) -> list[str]:
        """List the due customers."""
        admin = await self._store.admin()
        found: list[bytes] = await admin.ask(
            admin.client.zrangebyscore(self._key, "-inf", self._store.now_ms())
        )
        return [member.decode() for member in found]


def due_prices(store: Store) -> DueCustomers:
    """Queue of customers by when the price of an override starts or ends at Stripe.

    The nightly sync finds a customer whose entry was lost.
    """
    return DueCustomers(store, "prices", kept_ms=400 * DAY_MS)


_LEASE_MS: Final = 60_000
WAIT_S: Final = 9.0
"""A client gets its answer within 10 s."""


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


_logger = logging.getLogger("meterkit.subscriptions")
_jitter = SystemRandom().uniform
_EVERY_S: Final = 2.0
_AGAIN_MS: Final = 5_000
_GIVEN_UP_MS: Final = 900_000
_TIMEOUT_S: Final = 50.0
_KEPT_MS: Final = 86_400_000


class AcceptedChanges:
    """Accepted changes of plan: stored in the customers' states, retried in the background by any process.

    Args:
        store: of the kit.
        apply: changes the plan of a customer; idempotent.
    """

    def __init__(self, store: Store, apply: Callable[[str, str], Awaitable[object]]) -> None:
        self._store = store
        self._states = CustomerStates(store)
        self._apply = apply
        self._due = DueCustomers(store, "changes", kept_ms=_KEPT_MS)

    async def put(self, customer: str, plan: str) -> None:
        """Accept a change; it replaces a pending one.

        Raises:
            StoreError: the store does not answer.
        """
        now_ms = self._store.now_ms()
        await self._due.put(customer, now_ms + _AGAIN_MS)
        await self._states.change(
            customer, lambda state: replace(state, asked_plan=plan, asked_ms=now_ms), cause="api"
        )

    async def drop(self, customer: str) -> None:
        """Drop the pending change, if any. Raises StoreError."""
        await self._states.change(customer, _without_asked_plan, cause="api")
        await self._due.remove(customer)

    async def run(self) -> None:
        """Retry due changes every two seconds, until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await asyncio.sleep(_EVERY_S * _jitter(0.8, 1.2))
            await self.run_once()

    async def run_once(self) -> None:
        """Retry due changes once.

        Raises:
            StoreError: the store does not answer.
        """
        for customer in await self._due.due():
            await self._retry(customer)

    async def _retry(self, customer: str) -> None:
        _, state = await self._states.read(customer)
        plan = state.asked_plan
        if plan is None:
            await self.drop(customer)
            return
        # Before the try: other processes, and this one after a crash, leave it hold_change_lease meanwhile.
        await self._due.put(customer, self._store.now_ms() + int(1000 * _TIMEOUT_S))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._apply(customer, plan)
        except (StripeUnavailableError, TimeoutError) as error:
            if self._store.now_ms() < state.asked_ms + _GIVEN_UP_MS:
                await self._due.put(customer, self._store.now_ms() + _AGAIN_MS)
                return
            why = str(error) or "Stripe did not confirm it in time"
        except StoreError:
            raise
        except MeterkitError as error:
            why = str(error)
        else:
            why = ""
        if why:
            _logger.error(
                "customer %r asked for plan %r and keeps the previous plan: %s", customer, plan, why
            )
        await self.drop(customer)


def _without_asked_plan(state: CustomerState) -> CustomerState:
    return replace(state, asked_plan=None, asked_ms=0) if state.asked_plan is not None else state
