"""``kit.subscriptions``: begin, change and end the subscriptions of customers at Stripe."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.states import States
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import NoSubscriptionError, StripeUnavailableError, SubscriptionError
from meterkit.store.input_checks import check_customer
from meterkit.subscriptions.change_rules import check_seats, check_seats_sold, check_sold, paid_seats
from meterkit.subscriptions.service.override_repricer import OverrideRepricer
from meterkit.subscriptions.service.payment_pages import no_portal_of_deleted, open_portal, options_of
from meterkit.subscriptions.service.pending_changes import AcceptedChanges, alone
from meterkit.subscriptions.service.results import (
    NewSubscription,
    Portal,
    SubscriptionChange,
    invoice_of,
    subscription_of,
)
from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger
from meterkit.subscriptions.service.subscription_starter import SubscriptionStarter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.billing import CheckoutOptions
    from meterkit.customers.drifts import Drift
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.service.results import Checkout, Invoice, Preview, Subscription
    from meterkit.subscriptions.service.stripe_customers import ContactSource
    from meterkit.subscriptions.service.stripe_import import Imported, ImportProgress
    from meterkit.subscriptions.service.subscription_repair import Repair

_ANSWER_S: Final = 9.0
"""A client gets its answer within 10 s: the rest is for the state, and for the way back."""


class Subscriptions:
    """Begins, changes and ends the subscriptions of customers.

    Stripe has the subscription; what is known of it here was fetched from there. Each change is done there
    once, however often it is requested, and binds the very next decision of every process when the call
    returns. A customer who is not linked to a Stripe customer gets one.

    Each method raises :class:`~meterkit.errors.CustomerError` for an id that is not allowed,
    :class:`~meterkit.errors.StoreError` where the store does not answer, and all but :meth:`get` and
    :meth:`preview` :class:`~meterkit.errors.SettingsError` where no Stripe key is set,
    :class:`~meterkit.errors.StripeError` where Stripe refuses and
    :class:`~meterkit.errors.StripeUnavailableError` where it does not answer. After the last one, ask again:
    no step is done twice.

    Args:
        store: where customers are kept.
        api: the way to Stripe; made when it is first asked for.
        fetch: fetches a customer's subscription from Stripe into the store.
        deliver: delivers what a customer has used, and waits until Stripe has it.
        cut: does so before prices change, and holds back what is used while the block runs.
        contact: gives what a Stripe customer is made with.
    """

    def __init__(
        self,
        store: Store,
        api: Callable[[], StripeApi],
        *,
        fetch: Callable[[str], Awaitable[object]],
        deliver: Callable[[str], Awaitable[object]],
        cut: Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[None]],
        contact: ContactSource | None = None,
    ) -> None:
        self._store = store
        self._states = States(store)
        self._api = api
        self._fetch = fetch
        self._beginning = SubscriptionStarter(store, api, contact)
        self._changing = SubscriptionChanger(store, api, fetch=fetch, deliver=deliver, cut=cut)
        self._cut = cut
        self._unconfirmed = AcceptedChanges(store, self._apply)
        self._repricing = OverrideRepricer(store, self._changing)
        self.store_override = self._repricing.override

    @property
    def tasks(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Tasks beside an event loop, by name: they make changes that were accepted, or are due."""
        return {"changes": self._unconfirmed.run, "own prices": self._repricing.run}

    async def get(self, customer: str) -> Subscription | None:
        """The customer's subscription as it was last fetched, an ended one too; None: none is known."""
        _, state = await self._states.read(check_customer(customer))
        return subscription_of(customer, state, self._catalog, self._store.now_ms())

    async def sync(self, customer: str) -> Subscription | None:
        """Fetch the customer's subscription from Stripe now; None: it has none of these plans."""
        await self._fetch(check_customer(customer))
        return await self.get(customer)

    async def create(self, customer: str, plan: str, seats: int = 1) -> NewSubscription:
        """Begin a subscription; the customer's browser confirms its payment with the client secret.

        Until then it is ``incomplete``, or on trial where the plan has a ``trial`` and this is the customer's
        first subscription; Stripe counts trials in whole days. Where nothing is due at once and the plan
        requires a payment method, it is ``incomplete`` until one is saved, for 23 hours at most. Asked again
        before that, the same one is given; one of another plan or other seats gives way.
        https://docs.stripe.com/billing/subscriptions/overview

        Args:
            customer: the customer's id.
            plan: the key of a plan that costs something, or names a ``stripe_price``.
            seats: in all; those beyond what the plan includes cost its ``seat_price``.

        Raises:
            UnknownPlanError: the plans file has no such plan, or it cannot be subscribed to.
            SubscriptionExistsError: one is in force; change that.
            SubscriptionBusyError: another call for this customer has not ended in time.
            QuantityError: ``seats`` is not an integer from 1 to 1,000,000.
            SubscriptionError: the plan sells no seats beyond those that it includes.
        """
        wanted, paid = self._asked(plan, seats)
        async with alone(self._store, check_customer(customer)):
            secret = await self._beginning.create(customer, wanted, paid)
        made = await self._known(customer)
        _, state = await self._states.read(customer)
        known = state.subscription
        awaits = made.status == "incomplete" and known is not None and known.awaits_payment_method
        return NewSubscription(
            subscription=made, client_secret=secret, missing="payment_method" if awaits else None
        )

    async def checkout(
        self,
        customer: str,
        plan: str,
        *,
        seats: int = 1,
        success_url: str,
        cancel_url: str,
        options: CheckoutOptions | None = None,
    ) -> Checkout:
        """A page at Stripe where the customer subscribes and pays; Stripe tells what came of it.

        Args:
            customer: the customer's id.
            plan: the key of a plan that costs something, or names a ``stripe_price``.
            seats: in all; those beyond what the plan includes cost its ``seat_price``.
            success_url: where Stripe sends the customer afterwards.
            cancel_url: where Stripe sends a customer who goes back.
            options: go to Stripe as they are, laid over ``billing.checkout`` of the plans file, such as
                ``allow_promotion_codes`` (https://docs.stripe.com/api/checkout/sessions/create).

        Raises:
            UnknownPlanError, SubscriptionExistsError, SubscriptionBusyError, QuantityError,
                SubscriptionError: as of :meth:`create`.
            MeterkitError: ``options`` has something that meterkit sets itself, or that Stripe cannot be sent.
        """
        wanted, paid = self._asked(plan, seats)
        urls = {"success_url": success_url, "cancel_url": cancel_url}
        given = options_of(self._catalog.billing.checkout, options)
        async with alone(self._store, check_customer(customer)):
            return await self._beginning.checkout(customer, wanted, paid, {**given, **urls})

    async def portal(self, customer: str, *, return_url: str) -> Portal:
        """A page at Stripe where the customer manages means of payment, invoices and what else it allows.

        Raises:
            NoSubscriptionError: the customer is not linked to a Stripe customer, or Stripe has deleted it.
        """
        linked = await self._linked(customer)
        if linked is None:
            raise NoSubscriptionError(customer, f"customer {customer!r} has no Stripe customer, so no portal")
        asked: dict[str, Parameter] = {"customer": linked, "return_url": return_url}
        with no_portal_of_deleted(customer, linked):
            made = await open_portal(self._api(), asked, now_ms=self._store.now_ms())
        return Portal(id=made["id"], url=made["url"])

    async def preview(self, customer: str, *, plan: str | None = None, seats: int | None = None) -> Preview:
        """What another plan, or other seats, would cost, and what would be above their limits.

        Changes nothing. Stripe previews it by the customer's own items, discounts and taxes. If Stripe
        refuses, the description says that the cost is estimated by the prices of the plans file.

        Raises:
            NoSubscriptionError: no subscription is in force.
            StripeError: Stripe refuses, or does not answer.
            UnknownPlanError, QuantityError, SubscriptionError: an argument cannot be used.
        """
        return await self._changing.preview(check_customer(customer), plan, seats)

    async def change_plan(self, customer: str, plan: str) -> SubscriptionChange:
        """Put the subscription on another plan.

        An upgrade takes effect now and is invoiced at once; where the payment fails nothing changes. Where
        the customer has to authenticate the card (3-D Secure), nothing changes either, and the change has the
        client secret of a SetupIntent: confirm it in the customer's browser, then ask again. A
        downgrade takes effect when the period ends. ``rank`` says which it is, and ``billing.changes`` of the
        plans file when each takes effect. Two plans that bill one meter with ``report: usage`` change when
        the period ends: the tiers of a price would begin again. The plan that is in force takes back what is
        scheduled.

        Raises:
            NoSubscriptionError: no subscription is in force.
            UnknownPlanError: the plans file has no such plan, or it cannot be subscribed to.
            InvoiceOpenError: an invoice has to be paid first.
            PaymentMethodMissingError, PaymentAuthenticationError: the customer needs a payment method, or
                another one.
            SubscriptionError: the subscription is to end, or another request has changed it meanwhile.
        """
        wanted, begun = check_sold(plan, self._catalog), asyncio.Event()
        try:
            async with asyncio.timeout(_ANSWER_S), self._alone(check_customer(customer)):
                cost, secret = await self._changing.change_plan(customer, wanted, begun)
                known = await self._known(customer)
        except TimeoutError:
            if not begun.is_set():
                raise StripeUnavailableError("Stripe does not answer; nothing has changed") from None
            return await self._accepted(customer, wanted)
        await self._unconfirmed.forget(customer)
        return SubscriptionChange(subscription=known, proration=cost, client_secret=secret)

    async def retry_accepted(self) -> None:
        """Make changes that were accepted, or are due, once; runs by itself every two seconds."""
        await self._unconfirmed.turn()
        await self._repricing.settle_due()

    async def set_seats(self, customer: str, seats: int) -> SubscriptionChange:
        """Have another number of seats, in all, now; what they cost or give back is on the next invoice.

        A scheduled change stays scheduled, with the new seats if its plan sells them.

        Raises:
            NoSubscriptionError: no subscription is in force.
            SeatsInUseError: more seats are in use.
            InvoiceOpenError: an invoice has to be paid first.
            QuantityError: ``seats`` is not an integer from 1 to 1,000,000.
            SubscriptionError: the plan sells no such seats, or another request has changed it meanwhile.
        """
        async with self._alone(check_customer(customer)):
            cost = await self._changing.set_seats(customer, check_seats(seats))
        return SubscriptionChange(subscription=await self._known(customer), proration=cost)

    async def cancel(
        self, customer: str, *, immediately: bool = False, give_back: bool = False
    ) -> Subscription:
        """End the subscription with its period, or now. What is scheduled for it is taken back.

        Now: what was used until now is delivered first and billed.

        Args:
            customer: the customer's id.
            immediately: end it now.
            give_back: credit what was paid for the rest of the period to the customer's balance at Stripe;
                nothing is refunded. If an invoice of the period is not paid, nothing is credited, and a
                warning is logged. What was used beyond the part that stays paid, the next subscription lacks.

        Raises:
            NoSubscriptionError: no subscription is in force.
        """
        await self._unconfirmed.forget(check_customer(customer))
        await self._changing.cancel(check_customer(customer), immediately=immediately, give_back=give_back)
        return await self._known(customer)

    async def resume(self, customer: str) -> Subscription:
        """Have a subscription that is to end go on. One that is not to end stays as it is.

        Raises:
            NoSubscriptionError: no subscription is in force; one that has ended is begun anew.
        """
        await self._changing.resume(check_customer(customer))
        return await self._known(customer)

    async def invoices(self, customer: str) -> list[Invoice]:
        """The customer's invoices at Stripe, the youngest first; the last hundred."""
        linked = await self._linked(customer)
        if linked is None:
            return []
        found = await self._api().get("/v1/invoices", {"customer": linked, "limit": 100})
        return [invoice_of(invoice) for invoice in found["data"]]

    async def check(self) -> dict[str, tuple[Drift, ...]]:
        """How the subscriptions at Stripe differ from the plans file, by customer; empty: they do not.

        Looks at the subscriptions of all linked customers, as the look of each night does. What is stored of
        one that has changed at Stripe is fetched anew.
        """
        # Few apps need this: it is imported on first use.
        checking: Any = import_module("meterkit.subscriptions.service.subscription_repair")
        found: dict[str, tuple[Drift, ...]] = await checking.DriftChecker(
            self._store, self._api, fetch=self._fetch
        ).run()
        return found

    async def repair(self, customer: str, *, dry_run: bool = False) -> Repair:
        """Bring the customer's subscription to exactly the items of its plan.

        Before a metered item is switched or removed, what the customer has used is delivered. What was paid
        for an item that goes, or for a quantity, is credited on the next invoice.

        Args:
            customer: the customer's id.
            dry_run: change nothing, and say what would be mended.

        Raises:
            NoSubscriptionError: no subscription is in force.
            SubscriptionError: a person has to decide: the customer has two live subscriptions, or pays a
                price, in a currency or an interval, that no plan has; or the subscription is not paid for, or
                is to change already.
        """
        repairing: Any = import_module("meterkit.subscriptions.service.subscription_repair")
        repairs = repairing.SubscriptionRepairer(self._store, self._api, fetch=self._fetch, cut=self._cut)
        repaired: Repair = await repairs.run(check_customer(customer), dry_run=dry_run)
        return repaired

    async def import_from_stripe(
        self,
        *,
        id_from: str = "metadata.meterkit_customer",
        ids: Mapping[str, str] | None = None,
        dry_run: bool = False,
        progress: Callable[[ImportProgress], object] | None = None,
    ) -> Imported:
        """Link the customers that the account at Stripe has, and put each on the plan of its subscription.

        A subscription belongs to a plan by its base price. Who does not fit is named and left alone. A run
        that was stopped is repeated: what is done is not done again.

        Args:
            id_from: where Stripe has the app's own ids: ``metadata.KEY`` of a live subscription or of the
                customer, or ``email``.
            ids: the app's own ids by Stripe customer (``cus_…``); they win over what Stripe has.
            dry_run: change nothing, and say what would be done.
            progress: called after each step.

        Raises:
            MeterkitError: ``id_from`` cannot be read.
        """
        importing: Any = import_module("meterkit.subscriptions.service.stripe_import")
        tell: Callable[[ImportProgress], object] = progress or (lambda _: None)
        imported: Imported = await importing.StripeImporter(self._store, self._api, fetch=self._fetch).run(
            id_from, ids or {}, dry_run=dry_run, progress=tell
        )
        return imported

    @property
    def _catalog(self) -> Catalog:
        return self._store.catalog

    @property
    def _seat_meter(self) -> str | None:
        return seat_meter(self._catalog.meters)

    def _asked(self, plan: str, seats: int) -> tuple[Plan, int]:
        """A plan that is sold, and how many seats cost its seat price."""
        wanted = check_sold(plan, self._catalog)
        check_seats_sold(wanted, self._seat_meter, check_seats(seats))
        return wanted, paid_seats(wanted, self._seat_meter, seats)

    async def _accepted(self, customer: str, wanted: Plan) -> SubscriptionChange:
        """Have a change tried in the background that is not confirmed yet."""
        await self._unconfirmed.put(customer, wanted.key)
        cost = await self._changing.estimate(customer, wanted)
        known = await self.get(customer)
        if known is None:
            raise NoSubscriptionError(customer)
        return SubscriptionChange(subscription=known, proration=cost, confirmed=False)

    async def _apply(self, customer: str, plan: str) -> None:
        """Make a change that was accepted before; safe to repeat."""
        async with self._alone(customer):
            _, secret = await self._changing.change_plan(
                customer, check_sold(plan, self._catalog), asyncio.Event()
            )
            await self._fetch(customer)
        if secret is not None:
            raise SubscriptionError("the customer has to confirm the payment: ask for the plan again")

    def _alone(self, customer: str) -> AbstractAsyncContextManager[None]:
        """Change a subscription while no other request does, in any process."""
        return alone(self._store, customer, within_s=_ANSWER_S - 1)

    async def _linked(self, customer: str) -> str | None:
        _, state = await self._states.read(check_customer(customer))
        return state.stripe_customer

    async def _known(self, customer: str) -> Subscription:
        """The subscription after a change of it."""
        found = await self.sync(customer)
        if found is None:
            raise NoSubscriptionError(customer)
        return found
