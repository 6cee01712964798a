"""A customer's subscription, fetched from Stripe into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import with_subscription
from meterkit.store.state_changes import States
from meterkit.subscriptions.reading import in_force, read_subscription

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["fetch_subscription"]

_EXPAND: Final = ("data.latest_invoice", "data.schedule")


async def fetch_subscription(store: Store, api: Callable[[], StripeApi], customer: str) -> None:
    """Store what Stripe has of a customer's subscription; nothing is done for one who is not linked.

    Raises:
        StoreError: the store does not answer.
        StripeError: Stripe refuses, or does not answer.
    """
    states = States(store)
    _, state = await states.read(customer)
    linked, known = state.stripe_customer, state.subscription
    if linked is None:
        return
    asked = {"customer": linked, "status": "all", "expand": _EXPAND}
    found = await api().list("/v1/subscriptions", asked)
    chosen = in_force(found, store.catalog, None if known is None else known.id)
    subscription = None if chosen is None else read_subscription(chosen, store.catalog)
    await states.change(customer, lambda state: with_subscription(state, subscription))
