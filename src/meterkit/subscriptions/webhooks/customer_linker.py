"""Find the customer that Stripe names for a Stripe customer, and link them once."""

from __future__ import annotations

from http import HTTPStatus
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.customers import Customers
from meterkit.customers.links import Links, owner_of
from meterkit.customers.states import States
from meterkit.errors import CustomerError, StripeError
from meterkit.subscriptions.drift import LIVE
from meterkit.subscriptions.stripe_objects import CUSTOMER, id_in, part_of, text_in
from meterkit.subscriptions.subscription_reading import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi


LINK: Final = "link"
"""The kind of a note that names a checkout session."""
_PAYERS_WORD: Final = ", if the customer confirms the payment (on a Payment Link the payer wrote that id)"


class CustomerLinker:
    """Finds the customer of a Stripe customer, and links them if they are not linked yet.

    Args:
        store: where links are.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._states = States(store)
        self._customers = Customers(store)
        self._links = Links(store)
        self._api = api

    async def owner(self, stripe_customer: str) -> str | None:
        """The customer that it is linked to; None: to none.

        Raises:
            StoreError: the store does not answer.
        """
        admin = await self._store.admin()
        claim: bytes | None = await admin.ask(admin.client.get(self._store.keys.link(stripe_customer)))
        customer = owner_of((claim or b"").decode())
        if not customer:
            return None
        # A claim without a link has no owner yet.
        _, state = await self._states.read(customer)
        return customer if state.stripe_customer == stripe_customer else None

    async def is_retired(self, stripe_customer: str) -> bool:
        """Whether its customer was deleted here: no event links it again. Raises StoreError."""
        return await self._links.is_retired(stripe_customer)

    async def link(
        self, stripe_customer: str, found: Sequence[Mapping[str, Any]], sessions: Iterable[str]
    ) -> str | None:
        """Link it to the customer that Stripe names; None: Stripe names none, so it is not ours.

        Args:
            stripe_customer: ``cus_…``, which has no link.
            found: its subscriptions as Stripe shows them, that in force first.
            sessions: the checkout sessions that it came from.

        Raises:
            CustomerError: the id that Stripe has is not allowed, or is linked to another Stripe customer.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        by_key = next(filter(None, (_named(one) for one in found)), "") or await self._named_customer(
            stripe_customer
        )
        named = by_key
        for session in sessions:
            named = named or await self._named_by(session, stripe_customer)
        if not named:
            return None
        try:
            await self._customers.link(named, stripe_customer)
        except CustomerError as error:
            message = f"Stripe says that Stripe customer {stripe_customer} is customer {named!r:.80}: {error}"
            unused = self._unused_subscription(found, named, stripe_customer, is_payers_word=not by_key)
            raise CustomerError(f"{message}{unused}") from error
        return named

    def _unused_subscription(
        self, found: Iterable[Mapping[str, Any]], named: str, stripe_customer: str, *, is_payers_word: bool
    ) -> str:
        """Sentence about a live subscription that has no effect, and its cure; empty if there is none."""
        for one in found:
            plan = plan_of(one, self._store.catalog)
            if plan is not None and one.get("status") in LIVE:
                doubt = _PAYERS_WORD if is_payers_word else ""
                return (
                    f"; its subscription {one['id']} of plan {plan.key!r} is {one['status']} without effect:"
                    f" cancel and refund it at Stripe, or use it{doubt}: `meterkit customers unlink"
                    f" {quote(named)}`, then `meterkit webhooks redrive {stripe_customer}`"
                )
        return ""

    async def _named_customer(self, stripe_customer: str) -> str:
        return _named(await self._found(f"/v1/customers/{stripe_customer}"))

    async def _named_by(self, session: str, stripe_customer: str) -> str:
        made = await self._found(f"/v1/checkout/sessions/{session}")
        is_its = id_in(made, "customer") == stripe_customer
        return text_in(made, "client_reference_id") if is_its else ""

    async def _found(self, path: str) -> dict[str, Any]:
        """An object; an empty one where Stripe has it no more."""
        try:
            return await self._api().get(path)
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return {}
            raise


def _named(found: Mapping[str, Any]) -> str:
    return text_in(part_of(found, "metadata"), CUSTOMER)
