"""The Stripe customer of a customer: found, made or replaced, with the contact that the app gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from anyio import to_thread

from meterkit.customers.customers import Customers
from meterkit.customers.links import Links
from meterkit.errors import MeterkitError, StripeError
from meterkit.subscriptions.at_stripe.idempotency import key_of, persistently
from meterkit.subscriptions.at_stripe.objects import CUSTOMER

if TYPE_CHECKING:
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter


@dataclass(frozen=True, slots=True)
class Contact:
    """How Stripe reaches a customer: where receipts, invoices and reminders go.

    Attributes:
        email: the address.
        name: of the person or company; it is on invoices.
        locale: the language of invoices and e-mails, such as ``de`` or ``pt-BR``.
    """

    email: str
    name: str | None = None
    locale: str | None = None


ContactSource: TypeAlias = Callable[[str], Contact | Awaitable[Contact | None] | None]
"""Gives the contact of a customer; None: there is none. A function that is not async runs in a thread."""


async def contact_of(source: ContactSource, customer: str) -> Contact | None:
    """The contact of a customer; None: there is none.

    Raises:
        MeterkitError: the app's function gives something else than a Contact or None.
    """
    found = source(customer) if iscoroutinefunction(source) else await to_thread.run_sync(source, customer)
    if isawaitable(found):
        found = await found
    if found is not None and not isinstance(found, Contact):
        kind = type(found).__name__
        raise MeterkitError(
            f"contact: the function gave a value of type {kind}; allowed are Contact and None"
        )
    return found


async def contact_params(source: ContactSource | None, customer: str) -> dict[str, Parameter]:
    """The contact as parameters of a Stripe customer; raises as :func:`contact_of` does."""
    found = None if source is None else await contact_of(source, customer)
    if found is None:
        return {}
    locales = None if found.locale is None else [found.locale]
    return {"email": found.email, "name": found.name, "preferred_locales": locales}


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
