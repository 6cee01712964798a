"""Brings a subscription at Stripe to a plan with its seats: at once, once that is paid, or when it renews."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.seats import seat_meter
from meterkit.errors import StripeError, SubscriptionError
from meterkit.subscriptions.at_stripe.items import PlanPrices, changes_metered, next_items, updates
from meterkit.subscriptions.at_stripe.plan_prices import prices_of
from meterkit.subscriptions.rules.changes import paid_seats
from meterkit.subscriptions.service.paying import remedy

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.at_stripe.live import LiveSubscription
    from meterkit.subscriptions.rules.costs import Terms

__all__ = ["Applying"]


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
        """Bring the items to what they are to be, now, if that is paid; take back what is scheduled then.

        Returns:
            None: it is done. Else nothing has changed, and this is the client secret of a SetupIntent with
            which the customer authenticates the card before the caller asks again.

        Raises:
            SubscriptionError: the customer needs a payment method, or another one.
        """
        params: dict[str, Parameter] = {
            "items": await self._updates(live, target),
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
            "off_session": True,  # The customer's browser is not asked: what was set up counts.
        }
        if ends_trial:
            params["trial_end"] = "now"
        try:
            if params["items"]:
                await live.update(params)
        except StripeError as error:
            if error.is_replayed:
                raise
            return await remedy(self._store, live, params, error)
        await live.release()
        return None

    async def changes_metered(self, live: LiveSubscription, target: Terms) -> bool:
        """Whether the items that a plan and its seats need differ in metered ones from those there are."""
        return changes_metered(live.items, await self._updates(live, target))

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
