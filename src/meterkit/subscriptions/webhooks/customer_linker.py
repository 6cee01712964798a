"""Link a Stripe customer to the app's customer that Stripe names in metadata or a checkout session."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.links import StripeLinker
from meterkit.errors import CustomerError
from meterkit.subscriptions.drift_comparison import LIVE
from meterkit.subscriptions.stripe_objects import CUSTOMER, id_in, part_of, text_in
from meterkit.subscriptions.subscription_reading import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_PAYER_DOUBT: Final = ", if the customer confirms the payment (on a Payment Link the payer wrote that id)"


class CustomerLinker:
    """Links Stripe customers to the customers that Stripe names.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._links = StripeLinker(store)
        self._api = api

    async def link(
        self,
        stripe_customer: str,
        found: Sequence[Mapping[str, Any]],
        sessions: Iterable[str],
        *,
        cause: str,
    ) -> str | None:
        """Link a Stripe customer to the customer that Stripe names; None if Stripe names none.

        Args:
            stripe_customer: ``cus_…``, which has no link.
            found: its subscriptions as Stripe shows them, the chosen one first.
            sessions: its checkout sessions.
            cause: for the history.

        Raises:
            CustomerError: the id at Stripe is not allowed, or is linked to another Stripe customer.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        by_key = next((name for one in found if (name := _customer_named_in(one))), "")
        by_key = by_key or _customer_named_in(await self._fetch(f"/v1/customers/{stripe_customer}"))
        named = by_key
        for session in sessions:
            named = named or await self._read_reference(session, stripe_customer)
        if not named:
            return None
        try:
            await self._links.make(named, stripe_customer, cause=cause)
        except CustomerError as error:
            message = f"Stripe says that Stripe customer {stripe_customer} is customer {named!r:.80}: {error}"
            unused = self._describe_unused(found, named, stripe_customer, is_by_payer=not by_key)
            raise CustomerError(f"{message}{unused}") from error
        return named

    def _describe_unused(
        self, found: Iterable[Mapping[str, Any]], named: str, stripe_customer: str, *, is_by_payer: bool
    ) -> str:
        """Describe a live subscription that has no effect, and its cure; empty if there is none."""
        for one in found:
            plan = plan_of(one, self._store.catalog)
            if plan is not None and one.get("status") in LIVE:
                doubt = _PAYER_DOUBT if is_by_payer else ""
                return (
                    f"; its subscription {one['id']} of plan {plan.key!r} is {one['status']} without effect:"
                    f" cancel and refund it at Stripe, or use it{doubt}: `meterkit customers unlink"
                    f" {quote(named)}`, then `meterkit webhooks redrive {stripe_customer}`"
                )
        return ""

    async def _read_reference(self, session: str, stripe_customer: str) -> str:
        """Read the customer that a checkout session of the Stripe customer names."""
        shown = await self._fetch(f"/v1/checkout/sessions/{session}")
        is_its = id_in(shown, "customer") == stripe_customer
        return text_in(shown, "client_reference_id") if is_its else ""

    async def _fetch(self, path: str) -> dict[str, Any]:
        """Fetch an object; empty if Stripe no longer has it."""
        return await self._api().find(path) or {}


def _customer_named_in(found: Mapping[str, Any]) -> str:
    return text_in(part_of(found, "metadata"), CUSTOMER)
