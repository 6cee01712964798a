"""What belongs to a link and a deletion at Stripe: the subscription is read, or ended."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meterkit.customers.states import States
from meterkit.decisions.subscription import ENDED
from meterkit.errors import CustomerError, NoSubscriptionError, StripeError
from meterkit.subscriptions.at_stripe.pages import close_pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_SUBSCRIPTIONS_MAX: Final = 8


class CustomerHooks:
    """Implements :class:`meterkit.customers.customers.AtStripe`.

    Args:
        store: where customers are kept.
        api: the way to Stripe; None: the kit has no Stripe key, so it goes by what the store has.
        fetch: fetches a customer's subscription from Stripe into the store.
        end: ends a customer's subscription now.
        later: has a Stripe customer looked at in the background.
    """

    def __init__(
        self,
        store: Store,
        api: Callable[[], StripeApi] | None,
        *,
        fetch: Callable[[str], Awaitable[object]],
        end: Callable[[str], Awaitable[object]],
        later: Callable[[str], Awaitable[object]],
    ) -> None:
        self._store = store
        self._states = States(store)
        self._api = api
        self._fetch = fetch
        self._end = end
        self._later = later

    async def linked(self, customer: str, *, now: bool) -> None:
        """Read the subscription of a customer who was linked."""
        _, state = await self._states.read(customer)
        if self._api is None or state.stripe_customer is None or not self._sells():
            return
        if not now:
            await self._later(state.stripe_customer)
            return
        try:
            await self._fetch(customer)
        except (StripeError, ValueError, TimeoutError) as error:
            message = (
                f"customer {customer!r} is linked to Stripe customer {state.stripe_customer}, but its"
                f" subscription could not be read; that is tried again in the background: {error}"
            )
            if not isinstance(error, StripeError):
                raise StripeError(message) from error
            raise type(error)(
                message,
                status=error.status,
                type=error.type,
                code=error.code,
                param=error.param,
                request_id=error.request_id,
            ) from error

    async def leaving(self, customer: str, *, cancel: bool) -> None:
        """See that Stripe goes on charging nothing for a customer who is to be deleted."""
        _, state = await self._states.read(customer)
        has_sold = self._sells() or state.subscription is not None
        api = self._api if has_sold and state.stripe_customer is not None else None
        if api is not None:
            await self._fetch(customer)
        for _ in range(_SUBSCRIPTIONS_MAX):
            known = await self._in_force(customer)
            if known is None:
                break
            if not cancel:
                raise CustomerError(
                    f"customer {customer!r} has subscription {known.id}, which is {known.status}, and Stripe"
                    " would go on charging for it; end it first, or delete with cancel=True (--cancel), which"
                    " ends it now"
                )
            with suppress(NoSubscriptionError):  # It has ended meanwhile.
                await self._end(customer)
        if api is not None and state.stripe_customer is not None:
            await close_pages(api(), state.stripe_customer)  # Else a subscription could begin there.

    async def _in_force(self, customer: str) -> SubscriptionState | None:
        _, state = await self._states.read(customer)
        known = state.subscription
        return None if known is None or known.status_at(self._store.now_ms()) in ENDED else known

    def _sells(self) -> bool:
        """Whether there is a plan whose subscriptions Stripe has: else there is nothing to read."""
        return any(plan.price.stripe_price is not None for plan in self._store.catalog.plans.values())
