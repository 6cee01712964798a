"""Changes of plan that Stripe does not confirm in time: accepted, and retried in the background."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING, Final, TypeVar

from meterkit.customers.states import CustomerStates
from meterkit.errors import MeterkitError, StoreError, StripeUnavailableError, SubscriptionBusyError
from meterkit.subscriptions.service.change_lease import ANSWER_S, DueCustomers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.subscriptions")
_jitter = SystemRandom().uniform
_EVERY_S: Final = 2.0
_AGAIN_MS: Final = 5_000
_GIVEN_UP_MS: Final = 900_000
_TIMEOUT_S: Final = 50.0
_KEPT_MS: Final = 86_400_000
_Made = TypeVar("_Made")


class AcceptedChanges:
    """Accepted changes of plan: in the customers' states, and in a queue of retries.

    Args:
        store: of the kit.
        apply: changes the plan of a customer; idempotent.
    """

    def __init__(self, store: Store, apply: Callable[[str, str], Awaitable[object]]) -> None:
        self._states = CustomerStates(store)
        self._apply = apply
        self._due = DueCustomers(store, "changes", kept_ms=_KEPT_MS)

    async def put(self, customer: str, plan: str) -> None:
        """Accept a change; it replaces a pending one.

        Raises:
            StoreError: the store does not answer.
        """
        now_ms = await self._states.clock_ms(customer)
        await self._due.put_in(customer, _AGAIN_MS)
        await self._states.change(
            customer, lambda state: replace(state, asked_plan=plan, asked_ms=now_ms), cause="api"
        )

    async def run_or_accept(
        self, customer: str, plan: str, change: Callable[[asyncio.Event], Awaitable[_Made]]
    ) -> _Made | None:
        """Make a change now; if Stripe does not confirm it in time, accept it for retries in the background.

        Args:
            customer: the customer's id.
            plan: the key of the wanted plan.
            change: makes the change, and drops a pending one while no other call can change the customer;
                sets the event before it does anything that another call can finish.

        Returns:
            The result of ``change``; None: the change is accepted, and not confirmed yet.

        Raises:
            StripeUnavailableError: Stripe does not answer, and nothing has changed.
        """
        started = asyncio.Event()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await change(started)
        except TimeoutError:
            if not started.is_set():
                raise StripeUnavailableError("Stripe does not answer; nothing has changed") from None
            await self.put(customer, plan)
            return None

    async def is_pending(self, customer: str, plan: str) -> bool:
        """Whether a change to this plan still waits, and no later one has replaced it. Raises StoreError."""
        _, state = await self._states.read(customer)
        return state.asked_plan == plan

    async def drop(self, customer: str, plan: str | None = None) -> None:
        """Drop the pending change, or only one to this plan. Raises StoreError."""

        def change(state: CustomerState) -> CustomerState:
            return _without_asked_plan(state) if plan in {None, state.asked_plan} else state

        left = await self._states.change(customer, change, cause="api")
        if left.asked_plan is None:
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
        await self._due.handle_due(self._retry, "the accepted change of plan")

    async def _retry(self, customer: str) -> None:
        # First, so that other processes, and this one after a crash, do not retry it meanwhile, and a state
        # that cannot be read delays no other customer's change.
        await self._due.put_in(customer, int(1000 * _TIMEOUT_S))
        _, state = await self._states.read(customer)
        plan = state.asked_plan
        if plan is None:
            await self.drop(customer)
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._apply(customer, plan)
        except (StripeUnavailableError, SubscriptionBusyError, TimeoutError) as error:
            if await self._states.clock_ms(customer) < state.asked_ms + _GIVEN_UP_MS:
                await self._due.put_in(customer, _AGAIN_MS)
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
        await self.drop(customer, plan)


def _without_asked_plan(state: CustomerState) -> CustomerState:
    return replace(state, asked_plan=None, asked_ms=0) if state.asked_plan is not None else state
