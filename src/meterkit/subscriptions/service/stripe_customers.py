"""Finds, makes or replaces the Stripe customer of a customer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StripeError
from meterkit.store.customers import Customers
from meterkit.store.links import Links
from meterkit.subscriptions.at_stripe.once import key_of, persistently
from meterkit.subscriptions.at_stripe.parts import CUSTOMER
from meterkit.subscriptions.service.contact import contact_params

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.service.contact import ContactSource

__all__ = ["StripeCustomers"]

_PATH: Final = "/v1/customers"
_REPLAYS_MAX: Final = 16


class StripeCustomers:
    """Finds and makes Stripe customers.

    Args:
        store: where links are kept.
        api: the way to Stripe.
        contact: gives what a Stripe customer is made with.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], contact: ContactSource | None) -> None:
        self._customers = Customers(store)
        self._links = Links(store)
        self._api = api
        self._contact = contact

    async def of(self, customer: str) -> str:
        """The Stripe customer that a customer is linked to.

        Where there is none, or Stripe has deleted it, a new one is made and linked. Usage that was not sent
        to the deleted one is delivered to the new one.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        linked = (await self._customers.get(customer)).stripe_customer
        if linked is not None:
            if not await self._is_deleted(linked):
                return linked
            await self._links.retire(customer, linked)  # Late events of it bring nothing back.
            await self._customers.unlink(customer)
            await self._links.retire(customer, linked, done=True)
        made = await self._make(customer, ended=linked or "")
        await self._customers.link(customer, made)
        return made

    async def _make(self, customer: str, *, ended: str) -> str:
        """Make a Stripe customer, once. A replayed answer may name one that has been deleted since."""
        contact = await contact_params(self._contact, customer)
        params: dict[str, Parameter] = {**contact, "metadata": {CUSTOMER: customer}}
        for _ in range(_REPLAYS_MAX):

            async def attempt(again: int, ended: str = ended) -> dict[str, Any]:
                key = key_of("customer", params, ended, again)
                return await self._api().post(_PATH, params, idempotency_key=key)

            made = str((await persistently(attempt))["id"])
            if not await self._links.is_retired(made) and not await self._is_deleted(made):
                return made
            ended = made
        raise StripeError(f"Stripe has deleted {_REPLAYS_MAX} customers of {customer!r}; try again tomorrow")

    async def _is_deleted(self, linked: str) -> bool:
        return (await self._api().get(f"{_PATH}/{linked}")).get("deleted") is True
