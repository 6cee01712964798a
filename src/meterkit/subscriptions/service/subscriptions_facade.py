"""``kit.subscriptions``: start, change and end the subscriptions of customers at Stripe."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meterkit.catalog.addons import with_addons
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import MeterkitError, NoSubscriptionError, StripeError, SubscriptionError
from meterkit.store.input_checks import check_customer
from meterkit.store.task_lease import RepeatedTask
from meterkit.subscriptions.billing_currency import check_currency
from meterkit.subscriptions.change_rules import (
    check_addons,
    check_seats,
    check_seats_sold,
    check_sold,
    merge_addons,
    paid_seats,
)
from meterkit.subscriptions.service.accepted_changes import AcceptedChanges
from meterkit.subscriptions.service.change_lease import ANSWER_S, hold_change_lease
from meterkit.subscriptions.service.checkout import SubscriptionStarter
from meterkit.subscriptions.service.override_repricer import OverrideRepricer
from meterkit.subscriptions.service.payment_pages import checkout_options, open_portal, refuse_missing
from meterkit.subscriptions.service.results import (
    NewSubscription,
    Portal,
    SubscriptionChange,
    invoice_of,
    subscription_of,
)
from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger
from meterkit.subscriptions.stripe_objects import (
    is_missing_customer,
    is_unknown_at_stripe,
    unknown_customer_error,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.billing import CheckoutOptions
    from meterkit.customers.drift_records import Drift
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.service.results import Checkout, Invoice, Preview, Subscription
    from meterkit.subscriptions.service.stripe_customers import ContactSource
    from meterkit.subscriptions.service.stripe_import import Imported, ImportProgress
    from meterkit.subscriptions.service.subscription_repair import Repair


class Subscriptions:
    """Starts, changes and ends the subscriptions of customers.

    Stripe has the subscription; meterkit stores what it has fetched of it. Each change is made at Stripe
    once, however often it is requested, and holds for the next decision of every process when the call
    returns. A customer who is not linked to a Stripe customer gets one.

    Each method raises :class:`~meterkit.errors.CustomerError` for an id that is not allowed,
    :class:`~meterkit.errors.StoreError` if the store does not answer, and all but :meth:`get` and
    :meth:`preview` :class:`~meterkit.errors.SettingsError` if no Stripe key is set,
    :class:`~meterkit.errors.StripeError` if Stripe refuses and
    :class:`~meterkit.errors.StripeUnavailableError` if it does not answer. After the last one, ask again:
    no step is done twice.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        fetch: fetches a customer's subscription from Stripe into the store.
        deliver: delivers a customer's usage, and waits until Stripe has counted it.
        cut: does so before prices change, and holds usage while the block runs.
        contact: provides the contact of a new Stripe customer.
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
        self._states = CustomerStates(store)
        self._api = api
        self._fetch = fetch
        self._starter = SubscriptionStarter(store, api, contact)
        self._changer = SubscriptionChanger(store, api, fetch=fetch, deliver=deliver, cut=cut)
        self._cut = cut
        self._accepted_changes = AcceptedChanges(store, self._apply_accepted)
        self._repricer = OverrideRepricer(store, self._changer)
        self.store_override = self._repricer.override

    @property
    def tasks(self) -> Mapping[str, RepeatedTask]:
        """Tasks beside an event loop, by name: they make accepted and due changes."""
        changes, prices = self._accepted_changes, self._repricer
        return {
            "changes": RepeatedTask(changes.run, changes.run_once),
            "own prices": RepeatedTask(prices.run, prices.settle_due),
        }

    async def get(self, customer: str) -> Subscription | None:
        """The customer's subscription as last fetched, an ended one too; None if none is known."""
        customer = check_customer(customer)
        _, state = await self._states.read(customer)
        return subscription_of(customer, state, self._catalog, self._store.now_ms())

    async def sync(self, customer: str) -> Subscription | None:
        """Fetch the customer's subscription from Stripe now; None: it has none of these plans."""
        customer = check_customer(customer)
        await self._fetch(customer)
        return await self.get(customer)

    async def create(
        self,
        customer: str,
        plan: str,
        seats: int = 1,
        *,
        addons: Mapping[str, int] | None = None,
        currency: str | None = None,
    ) -> NewSubscription:
        """Start a subscription; the customer's browser confirms its payment with the client secret.

        Until then it is ``incomplete``, or on trial if the plan has a ``trial`` and this is the customer's
        first subscription; Stripe counts trials in whole days. If nothing is due at once and the plan
        requires a payment method, it is ``incomplete`` until one is saved, for 23 hours at most. A repeated
        call before that returns the same one; one of another plan, other seats or add-ons is ended.
        https://docs.stripe.com/billing/subscriptions/overview

        Args:
            customer: the customer's id.
            plan: the key of a plan that costs something, or names a ``stripe_price``.
            seats: in all; those beyond what the plan includes cost its ``seat_price``.
            addons: quantity of each add-on, by key.
            currency: one of the plans file; None: the customer's, otherwise the first one.

        Raises:
            UnknownPlanError: the plans file has no such plan, or it cannot be subscribed to.
            CurrencyError: the customer is billed in another currency, or was.
            SubscriptionExistsError: one is active; change that.
            SubscriptionBusyError: another call for this customer has not ended in time.
            QuantityError: ``seats`` is not an integer from 1 to 1,000,000.
            UnknownAddonError: the plan does not list an add-on, or Stripe lacks its price.
            AddonLimitError: a quantity is below 0, or above ``max``, which an add-on must have in a trial.
            PaymentMethodMissingError: a plan that requires a payment method would begin with a trial and
                add-ons, and none is saved.
            SubscriptionError: the plan sells no seats beyond those that it includes.
            MeterkitError: ``currency`` is not one of the plans file.
        """
        customer = check_customer(customer)
        wanted, paid = self._check_request(plan, seats, addons)
        asked = check_currency(currency, self._catalog)
        async with hold_change_lease(self._store, customer):
            secret = await self._starter.create(customer, wanted, paid, asked)
        made = await self._fetch_known(customer)
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
        addons: Mapping[str, int] | None = None,
        success_url: str,
        cancel_url: str,
        currency: str | None = None,
        options: CheckoutOptions | None = None,
    ) -> Checkout:
        """Open a Stripe page where the customer subscribes and pays; a webhook reports the outcome.

        Args:
            customer: the customer's id.
            plan: the key of a plan that costs something, or names a ``stripe_price``.
            seats: in all; those beyond what the plan includes cost its ``seat_price``.
            addons: quantity of each add-on, by key.
            success_url: Stripe redirects the customer here afterwards.
            cancel_url: Stripe redirects a customer who goes back here.
            currency: as of :meth:`create`.
            options: sent to Stripe unchanged, over ``billing.checkout`` of the plans file, such as
                ``allow_promotion_codes`` (https://docs.stripe.com/api/checkout/sessions/create).

        Raises:
            UnknownPlanError, UnknownAddonError, AddonLimitError, CurrencyError, SubscriptionExistsError,
                SubscriptionBusyError, QuantityError, SubscriptionError: as of :meth:`create`.
            MeterkitError: ``options`` has a parameter that meterkit sets itself, or that cannot be sent; or
                ``currency`` is not one of the plans file.
        """
        customer = check_customer(customer)
        wanted, paid = self._check_request(plan, seats, addons)
        asked = check_currency(currency, self._catalog)
        urls = {"success_url": success_url, "cancel_url": cancel_url}
        given = checkout_options(self._catalog.billing.checkout, options)
        if "currency" in given and len(self._catalog.currencies) > 1:
            raise MeterkitError("options: found currency, which meterkit sets itself; give currency= instead")
        async with hold_change_lease(self._store, customer):
            return await self._starter.checkout(customer, wanted, paid, {**given, **urls}, asked)

    async def portal(self, customer: str, *, return_url: str) -> Portal:
        """Open a Stripe page where the customer manages payment methods and invoices.

        Raises:
            NoSubscriptionError: the customer is not linked to a Stripe customer, or Stripe has deleted it.
            StripeError: Stripe does not know the Stripe customer, refuses otherwise, or does not answer.
        """
        linked = await self._read_link(customer)
        if linked is None:
            raise NoSubscriptionError(customer, f"customer {customer!r} has no Stripe customer, so no portal")
        asked: dict[str, Parameter] = {"customer": linked, "return_url": return_url}
        async with refuse_missing(self._api(), customer, linked):
            made = await open_portal(self._api(), asked, now_ms=self._store.now_ms())
        return Portal(id=made["id"], url=made["url"])

    async def preview(
        self,
        customer: str,
        *,
        plan: str | None = None,
        seats: int | None = None,
        addons: Mapping[str, int] | None = None,
    ) -> Preview:
        """Preview the cost of another plan, other seats or add-ons, and the gauges above their limits.

        Changes nothing. Each of several changes takes effect at its own time, as if it were requested by
        itself: the plan, then the seats, then the add-ons. Stripe previews it by the customer's own items,
        discounts and taxes. If Stripe refuses, the description says that the cost is an estimate: by the
        prices of these items, and for what they lack by the plans file.

        Raises:
            NoSubscriptionError: no subscription is active.
            StripeError: Stripe refuses, or does not answer.
            UnknownPlanError, QuantityError, UnknownAddonError, AddonLimitError, SubscriptionError: an
                argument cannot be used.
        """
        return await self._changer.preview(check_customer(customer), plan, seats, addons)

    async def change_plan(self, customer: str, plan: str) -> SubscriptionChange:
        """Change the plan of the subscription.

        An upgrade takes effect now and is invoiced at once; if the payment fails, nothing changes. If the
        customer must authenticate the card (3-D Secure), nothing changes either, and the result has the
        client secret of a SetupIntent: confirm it in the customer's browser, then ask again. A downgrade
        takes effect when the period ends. ``rank`` decides which it is, and ``billing.changes`` of the plans
        file when each takes effect. Two plans that bill one meter with ``report: usage`` change when the
        period ends: the tiers of a price would begin again. The current plan cancels a scheduled one;
        add-ons that are scheduled stay so.

        Add-ons that the new plan lists stay. The others end with the change: ``ended_addons``.

        Raises:
            NoSubscriptionError: no subscription is active.
            UnknownPlanError: the plans file has no such plan, or it cannot be subscribed to.
            InvoiceOpenError: an invoice must be paid first.
            PaymentMethodMissingError, PaymentAuthenticationError: the customer needs a payment method, or
                another one.
            SubscriptionError: the subscription is ending, or another request has changed it meanwhile.
        """
        customer = check_customer(customer)
        wanted = check_sold(plan, self._catalog)
        change = partial(self._change_now, customer, wanted)
        made = await self._accepted_changes.run_or_accept(customer, wanted.key, change)
        return await self._describe_accepted(customer, wanted) if made is None else made

    async def retry_accepted(self) -> None:
        """Make accepted and due changes once; a background task does so every two seconds."""
        await self._accepted_changes.run_once()
        await self._repricer.settle_due()

    async def set_seats(self, customer: str, seats: int) -> SubscriptionChange:
        """Change the total number of seats now; the next invoice charges or credits the difference.

        A scheduled change stays scheduled, with the new seats if its plan sells them.

        Raises:
            NoSubscriptionError: no subscription is active.
            SeatsInUseError: more seats are in use.
            InvoiceOpenError: an invoice has to be paid first.
            QuantityError: ``seats`` is not an integer from 1 to 1,000,000.
            SubscriptionError: the plan sells no such seats, or another request has changed it meanwhile.
        """
        customer = check_customer(customer)
        async with (
            self._lease(customer),
            self._changer.set_seats(customer, check_seats(seats)) as cost,
        ):
            return SubscriptionChange(subscription=await self._fetch_known(customer), proration=cost)

    async def set_addons(self, customer: str, addons: Mapping[str, int]) -> SubscriptionChange:
        """Change quantities of add-ons; those left out stay, 0 gives one up.

        More take effect as an upgrade does: now, invoiced at once; if the payment fails, nothing changes. If
        the customer must authenticate the card (3-D Secure), the result has the client secret of a
        SetupIntent, as of :meth:`change_plan`. Fewer take effect as a downgrade does, when the period ends:
        until then they are the ``pending_change``, and the present quantity takes it back. One that the plan
        does not list any more can be given up, which is credited at once.

        Args:
            customer: the customer's id.
            addons: new quantity of each, by key.

        Raises:
            NoSubscriptionError: no subscription is active.
            UnknownAddonError: the plan does not list an add-on, or Stripe lacks its price.
            AddonLimitError: a quantity is below 0, or above ``max``, which an add-on must have in a trial.
            QuantityError: a quantity is no integer.
            InvoiceOpenError: an invoice must be paid first.
            PaymentMethodMissingError, PaymentAuthenticationError: the customer needs a payment method, or
                another one.
            SubscriptionError: the subscription is ending, or another request has changed it meanwhile.
        """
        customer = check_customer(customer)
        async with self._lease(customer):
            cost, secret = await self._changer.set_addons(customer, addons)
        known = await self._fetch_known(customer)
        return SubscriptionChange(subscription=known, proration=cost, client_secret=secret)

    async def cancel(
        self, customer: str, *, immediately: bool = False, give_back: bool = False
    ) -> Subscription:
        """End the subscription with its period, or now; a scheduled change is canceled.

        An immediate end first delivers and bills the usage until now.

        Args:
            customer: the customer's id.
            immediately: end it now.
            give_back: credit the paid rest of the period to the customer's balance at Stripe; nothing is
                refunded. If an invoice of the period is not paid, nothing is credited, and a warning is
                logged. Usage beyond the part that stays paid reduces the next subscription's.

        Raises:
            NoSubscriptionError: no subscription is active.
        """
        customer = check_customer(customer)
        await self._accepted_changes.drop(customer)
        await self._changer.cancel(customer, immediately=immediately, give_back=give_back)
        return await self._fetch_known(customer)

    async def resume(self, customer: str) -> Subscription:
        """Resume an ending subscription, or one whose trial has ended in a pause; any other stays as it is.

        After such a pause a paid period begins at once.

        Raises:
            NoSubscriptionError: no subscription is active; one that has ended is created again.
            PaymentMethodMissingError: after such a pause no payment method is saved.
        """
        customer = check_customer(customer)
        await self._changer.resume(customer)
        return await self._fetch_known(customer)

    async def invoices(self, customer: str) -> list[Invoice]:
        """List the customer's last hundred invoices at Stripe, the newest first."""
        linked = await self._read_link(customer)
        if linked is None:
            return []
        try:
            found = await self._api().get("/v1/invoices", {"customer": linked, "limit": 100})
        except StripeError as error:
            if is_missing_customer(error) and await is_unknown_at_stripe(self._api(), linked):
                raise unknown_customer_error(error, customer, linked) from error
            raise
        return [invoice_of(invoice) for invoice in found["data"]]

    async def check(self) -> dict[str, tuple[Drift, ...]]:
        """Compare the subscriptions at Stripe with the plans file; return the differences by customer.

        Compares all linked customers, as the nightly sync does, and fetches subscriptions that have changed
        at Stripe.
        """
        # Few apps need this: it is imported on first use.
        module: Any = import_module("meterkit.subscriptions.service.subscription_repair")
        found: dict[str, tuple[Drift, ...]] = await module.DriftChecker(
            self._store, self._api, fetch=self._fetch
        ).run()
        return found

    async def repair(self, customer: str, *, dry_run: bool = False) -> Repair:
        """Give the customer's subscription exactly the items of its plan.

        Before a metered item is switched or removed, the customer's usage is delivered. The next invoice
        credits what was paid for a removed item or quantity. Usage that is not billed as ``billing.usage`` of
        the plans file has it is moved at the end of the period, as by :meth:`move_usage`.

        Args:
            customer: the customer's id.
            dry_run: change nothing, and return what would be repaired.

        Raises:
            NoSubscriptionError: no subscription is active.
            SubscriptionError: an operator must decide: the customer has two live subscriptions, or pays a
                price, in a currency or an interval, that no plan has; or the subscription is not paid for, or
                has a scheduled change.
        """
        module: Any = import_module("meterkit.subscriptions.service.subscription_repair")
        repairer = module.SubscriptionRepairer(
            self._store, self._api, fetch=self._fetch, cut=self._cut, mover=self._make_mover()
        )
        repaired: Repair = await repairer.run(check_customer(customer), dry_run=dry_run)
        return repaired

    async def move_usage(self, customer: str, *, dry_run: bool = False) -> datetime | None:
        """Bill the customer's usage as the plans file's ``billing.usage`` has it, from the next period on.

        A schedule at Stripe removes the metered items when the period ends (``lines``), or adds them
        (``meters``). Usage until then is billed as before. Repeat an interrupted call: nothing is done twice.

        Args:
            customer: the customer's id.
            dry_run: change nothing, and return what would be done.

        Returns:
            When the move takes effect; None: the usage is moved already, or the move was scheduled before.

        Raises:
            NoSubscriptionError: no subscription is active.
            InvoiceOpenError: an invoice has to be paid first.
            SubscriptionError: the subscription is ending, has a metered item that the plans file does not
                have, or Stripe lacks a metered price.
        """
        moved_at: datetime | None = await self._make_mover().move(check_customer(customer), dry_run=dry_run)
        return moved_at

    def _make_mover(self) -> Any:
        # Few apps need this: it is imported on first use.
        module: Any = import_module("meterkit.subscriptions.service.subscription_repair")
        return module.UsageMover(self._store, self._changer)

    async def import_from_stripe(
        self,
        *,
        id_from: str = "metadata.meterkit_customer",
        ids: Mapping[str, str] | None = None,
        dry_run: bool = False,
        progress: Callable[[ImportProgress], object] | None = None,
    ) -> Imported:
        """Link the customers of a Stripe account, and put each on the plan of its subscription.

        A subscription belongs to a plan by its base price. Customers that do not match are reported and not
        changed. Repeat an interrupted run: it does no step twice.

        Args:
            id_from: source of the app's own ids: ``metadata.KEY`` of a live subscription or of the customer,
                or ``email``.
            ids: the app's own ids by Stripe customer (``cus_…``); they override those at Stripe.
            dry_run: change nothing, and return what would be done.
            progress: called after each step.

        Raises:
            MeterkitError: ``id_from`` cannot be read.
        """
        module: Any = import_module("meterkit.subscriptions.service.stripe_import")
        report: Callable[[ImportProgress], object] = progress or (lambda _: None)
        imported: Imported = await module.StripeImporter(self._store, self._api, fetch=self._fetch).run(
            id_from, ids or {}, dry_run=dry_run, progress=report
        )
        return imported

    @property
    def _catalog(self) -> Catalog:
        return self._store.catalog

    @property
    def _seat_meter(self) -> str | None:
        return seat_meter(self._catalog.meters)

    def _check_request(self, plan: str, seats: int, addons: Mapping[str, int] | None) -> tuple[Plan, int]:
        """Check a requested plan, its seats and add-ons.

        Returns:
            The plan with its add-ons, and the seats that cost its seat price.
        """
        sold = check_sold(plan, self._catalog)
        bought = merge_addons((), check_addons(addons, sold, self._catalog))
        wanted = with_addons(sold, bought, self._catalog)
        check_seats_sold(wanted, self._seat_meter, check_seats(seats))
        return wanted, paid_seats(wanted, self._seat_meter, seats)

    async def _change_now(self, customer: str, wanted: Plan, started: asyncio.Event) -> SubscriptionChange:
        async with self._lease(customer):
            made, secret = await self._changer.change_plan(customer, wanted, started)
            known = await self._fetch_known(customer)
            await self._accepted_changes.drop(customer)  # Otherwise a waiting retry could undo this one.
        return SubscriptionChange(
            subscription=known,
            proration=made.proration,
            client_secret=secret,
            ended_addons=made.ended_addons,
        )

    async def _describe_accepted(self, customer: str, wanted: Plan) -> SubscriptionChange:
        """Describe a change that Stripe has not confirmed yet, with its estimated cost."""
        made = await self._changer.estimate(customer, wanted)
        known = await self.get(customer)
        if known is None:
            raise NoSubscriptionError(customer)
        return SubscriptionChange(
            subscription=known, proration=made.proration, confirmed=False, ended_addons=made.ended_addons
        )

    async def _apply_accepted(self, customer: str, plan: str) -> None:
        """Make an accepted change, unless a later request has replaced it. Idempotent."""
        async with self._lease(customer):
            if not await self._accepted_changes.is_pending(customer, plan):
                return
            _, secret = await self._changer.change_plan(
                customer, check_sold(plan, self._catalog), asyncio.Event()
            )
            await self._fetch(customer)
        if secret is not None:
            raise SubscriptionError("the customer must confirm the payment: ask for the plan again")

    def _lease(self, customer: str) -> AbstractAsyncContextManager[None]:
        """Hold the lease of a customer, so that no other request of any process changes it."""
        return hold_change_lease(self._store, customer, within_s=ANSWER_S - 1)

    async def _read_link(self, customer: str) -> str | None:
        _, state = await self._states.read(check_customer(customer))
        return state.stripe_customer

    async def _fetch_known(self, customer: str) -> Subscription:
        """Fetch the subscription after a change."""
        found = await self.sync(customer)
        if found is None:
            raise NoSubscriptionError(customer)
        return found
