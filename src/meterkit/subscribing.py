"""A kit's subscriptions: what reaches Stripe, what is known here and what delivers usage, put together."""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.customers import Customers
from meterkit.customers.states import States
from meterkit.delivery.background import flusher_for
from meterkit.delivery.on_demand import Cutter, deliver_customer, undelivered
from meterkit.delivery.reconciling import Reconciler
from meterkit.delivery.summaries import until_counted
from meterkit.insights.audit.journal import journal_of
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.service.customer_hooks import CustomerHooks
from meterkit.subscriptions.service.service import Subscriptions
from meterkit.subscriptions.webhooks.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.flusher import Flusher
    from meterkit.settings import Settings
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.stripe_customers import ContactSource

__all__ = ["StripeAccess", "customers_of", "reconciler_of", "subscriptions_of", "webhooks_of"]

_logger = logging.getLogger("meterkit.subscriptions")

_ROUNDS: Final = 2
_DELIVERY_S: Final = 80.0
"""More than the minute after which usage can be sealed that was sealed often in this one."""
_COUNTING_S: Final = 20.0


class StripeAccess:
    """The way to Stripe, made when it is first needed: an app without a Stripe key needs none.

    Args:
        settings: the key and the address.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: StripeApi | None = None

    def api(self) -> StripeApi:
        """The way to Stripe.

        Raises:
            SettingsError: no Stripe key is set.
        """
        if self._made is None:
            self._made = StripeApi(self._settings)
        return self._made

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._made is not None:
            await self._made.close()


def reconciler_of(store: Store, settings: Settings, access: StripeAccess) -> Reconciler:
    """Compares a kit's books with Stripe's."""
    return Reconciler(store, access.api, journal_of(settings))


def webhooks_of(store: Store, settings: Settings, access: StripeAccess) -> Webhooks:
    """What takes Stripe's events for a kit."""

    async def refused(event_id: str) -> None:
        module: Any = import_module("meterkit.delivery.error_reports")  # Stripe seldom refuses.
        await module.take_refusals(store, access.api(), event_id, journal_of(settings))

    return Webhooks(store, settings, access.api, refused)


def customers_of(
    store: Store, settings: Settings, access: StripeAccess, webhooks: Webhooks, subscriptions: Subscriptions
) -> Customers:
    """The customers of a kit; a link and a deletion look at Stripe."""
    hooks = CustomerHooks(
        store,
        access.api if settings.stripe_api_key is not None else None,
        fetch=webhooks.fetch,
        end=partial(subscriptions.cancel, immediately=True),
        later=webhooks.look_later,
    )
    return Customers(store, hooks)


def subscriptions_of(
    store: Store,
    settings: Settings,
    access: StripeAccess,
    fetch: Callable[[str], Awaitable[object]],
    contact: ContactSource | None = None,
) -> Subscriptions:
    """The subscriptions of a kit.

    Args:
        store: where its customers are kept.
        settings: of the kit.
        access: to Stripe.
        fetch: fetches a customer's subscription from Stripe into the store.
        contact: gives what a Stripe customer is made with.
    """
    flusher = partial(flusher_for, store, settings, fetch, journal_of(settings))
    deliver = partial(_deliver, store, flusher, access)
    cutter = Cutter(store, flusher, access.api)
    return Subscriptions(store, access.api, fetch=fetch, deliver=deliver, cut=cutter.cut, contact=contact)


async def _deliver(
    store: Store,
    flusher: Callable[[], AbstractAsyncContextManager[Flusher]],
    access: StripeAccess,
    customer: str,
) -> None:
    """Deliver what a customer has used, and wait until an invoice of now has it.

    Usage recorded while it waits is delivered too, once; then the undelivered rest is logged.
    """
    left = 0
    for _ in range(_ROUNDS):
        has_all = await deliver_customer(store, flusher(), customer, timeout_s=_DELIVERY_S)
        _, state = await States(store).read(customer)
        if state.stripe_customer is None:
            return
        counting = until_counted(store, access.api(), customer, state.stripe_customer, timeout_s=_COUNTING_S)
        if uncounted := await counting:
            _logger.error(
                "%d units that customer %r has used are delivered, and Stripe has not counted them in time:"
                " they are not on the invoice that ends the subscription",
                *(uncounted, customer),
            )
        if uncounted or not has_all or not (left := await undelivered(store, customer)):
            return
    _logger.error(
        "customer %r has used %d units while its subscription was ended: they are not on the last invoice",
        *(customer, left),
    )
