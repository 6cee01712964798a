"""Brings a subscription at Stripe to a plan with its seats: at once, once that is paid, or when it renews."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.seats import seat_meter
from meterkit.errors import StripeError, SubscriptionError
from meterkit.subscriptions.at_stripe.items import PlanPrices, are_of, next_items, updates
from meterkit.subscriptions.at_stripe.plan_prices import prices_of
from meterkit.subscriptions.rules.changes import paid_seats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.at_stripe.live import LiveSubscription
    from meterkit.subscriptions.rules.costs import Terms

__all__ = ["Applying"]

_NEEDS_CUSTOMER: Final = "subscription_payment_intent_requires_action"


class Applying:
    """Has subscriptions consist of what a plan with its seats consists of.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, or does not answer.

    Args:
        store: whose plans file is meant.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api

    async def update(self, live: LiveSubscription, target: Terms) -> None:
        """Bring the items to what they are to be, now; the difference is on the next invoice."""
        items = await self._updates(live, target)
        if items:
            await live.update({"items": items, "proration_behavior": "create_prorations"})

    async def upgrade(self, live: LiveSubscription, target: Terms, *, ends_trial: bool) -> str | None:
        """Bring the items to what they are to be once that is paid; what is scheduled is taken back then.

        The client secret, where the customer has to confirm the payment first.
        """
        params: dict[str, Parameter] = {
            "items": await self._updates(live, target),
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
        }
        if ends_trial:
            params["trial_end"] = "now"
        try:
            if params["items"]:
                await live.update(params)
        except StripeError as error:
            if error.code != _NEEDS_CUSTOMER or error.is_replayed or live.schedule is not None:
                raise
            return await self._await_customer(live, params, error)
        await live.release()
        return None

    async def is_awaited(self, live: LiveSubscription, target: Terms) -> bool:
        """Whether just this waits for the customer to confirm it."""
        return live.awaited is not None and are_of(live.awaited, await self._items(live, target))

    async def arrange(
        self, live: LiveSubscription, known: SubscriptionState, later: Terms, *, now: Terms | None = None
    ) -> None:
        """Have the items be what they are to be later when the period ends, and now what is given.

        Raises:
            SubscriptionError: it is to end.
        """
        if live.is_ending:
            raise SubscriptionError(f"the subscription {live.id} is to end: resume it before it is changed")
        await live.arrange(
            await self._items(live, later),
            now=None if now is None else await self._items(live, now),
            change_s=known.end_ms // 1000,
            interval=later.plan.price.interval,
        )

    @staticmethod
    async def _await_customer(
        live: LiveSubscription, params: Mapping[str, Parameter], refused: StripeError
    ) -> str | None:
        """Have an upgrade wait until its customer has confirmed the payment; the client secret of that."""
        try:
            return await live.update_once_paid(params)
        except StripeError as error:
            if error.type == "invalid_request_error":  # Not every change can wait at Stripe.
                raise refused from error
            raise

    async def _updates(self, live: LiveSubscription, target: Terms) -> list[dict[str, Parameter]]:
        """What brings the items to what they are to be; empty where nothing is to be done."""
        return updates(live.items, self._store.catalog, *await self._priced(target))

    async def _items(self, live: LiveSubscription, target: Terms) -> list[dict[str, Parameter]]:
        """The items as they are to be."""
        return next_items(live.items, self._store.catalog, *await self._priced(target))

    async def _priced(self, target: Terms) -> tuple[PlanPrices, int]:
        """The prices of a plan, and how many seats cost its seat price."""
        catalog = self._store.catalog
        paid = paid_seats(target.plan, seat_meter(catalog.meters), target.seats)
        return await prices_of(self._api(), catalog, target.plan), paid
