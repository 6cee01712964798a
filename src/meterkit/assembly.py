"""Composition root of a kit: makes its parts and connects them.

Imported with the first kit, since it loads most of meterkit: ``from meterkit import MeterKit`` stays fast.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.asgi.gauges import Gauges
from meterkit.catalog.credit_values import find_top_ups
from meterkit.customers.customers import Customers
from meterkit.customers.grants import Grants
from meterkit.customers.states import CustomerStates, make_scheduled_transitions
from meterkit.delivery.correction_credits import CreditIssuer
from meterkit.delivery.flush_report import replay_spools
from meterkit.delivery.flusher_setup import delivery_tasks, flusher_for
from meterkit.delivery.reconciler import Reconciler
from meterkit.delivery.summaries import wait_until_counted
from meterkit.delivery.usage_cutter import UsageCutter, count_undelivered_units, deliver_customer
from meterkit.insights.audit.async_database import open_audit_database
from meterkit.insights.background_tasks import audit_root_reader, insights_tasks
from meterkit.insights.revenue.revenue import Revenue
from meterkit.insights.statement.statements import Statements
from meterkit.notify.event_dispatcher import EventDispatcher, Handlers
from meterkit.notify.events import OF_SUBSCRIPTIONS
from meterkit.notify.messages import Messages
from meterkit.outbox.operator_commands import Intents
from meterkit.storage.service import ObjectStorage
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.price_sync import StripeAccount
from meterkit.subscriptions.service.stripe_customers import CustomerHooks, fetch_contact
from meterkit.subscriptions.service.subscriptions_facade import Subscriptions
from meterkit.subscriptions.service.top_ups import AutoTopUps, Credits
from meterkit.subscriptions.top_up_payments import TopUpPayments
from meterkit.subscriptions.webhooks.subscription_writer import FLUSH
from meterkit.subscriptions.webhooks.webhook_endpoint import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.flusher import Flusher
    from meterkit.notify.events import CreditsLow
    from meterkit.settings import Settings
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.stripe_customers import ContactSource

__all__ = ["Parts", "StripeAccess"]

_logger = logging.getLogger("meterkit.subscriptions")

_ROUNDS: Final = 2
_DELIVERY_S: Final = 80.0
"""More than the minute after which usage can be sealed that was sealed often in this one."""
_COUNTING_S: Final = 20.0
_HANDLERS_S: Final = 5.0


class StripeAccess:
    """Stripe client, made when it is first needed: an app without a Stripe key needs none.

    Args:
        settings: the key and the address.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: StripeApi | None = None

    def api(self) -> StripeApi:
        """Return the Stripe client.

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


class Parts:
    """Parts of one kit; each is an attribute of the kit under the same name.

    Args:
        store: of the kit.
        settings: of the kit.
        contact: gives the contact data of a customer.

    Attributes:
        stripe_api: returns the Stripe client; None: no Stripe key is set.
    """

    def __init__(self, store: Store, settings: Settings, contact: ContactSource | None) -> None:
        self.store = store
        self.settings = settings
        self._stripe = stripe = StripeAccess(settings)
        self._journal = journal = open_audit_database(settings)
        self.grants = Grants(store)
        self.gauges = Gauges(store)
        self.outbox = Intents(store)
        self.revenue = Revenue(store, settings)
        self.storage = ObjectStorage(store, settings.reveal(settings.storage_endpoint))
        self.reconcile = Reconciler(store, stripe.api, journal).reconcile
        self.statement = Statements(store, settings, stripe.api)
        self.stripe_api = None if settings.stripe_api_key is None else stripe.api
        self.correct = CreditIssuer(store, self.stripe_api).correct
        self.stripe = StripeAccount(lambda: store.catalog, stripe.api)
        top_ups = TopUpPayments(store, stripe.api)
        self.credits = Credits(store, stripe.api, top_ups, contact)
        self._auto_top_ups = AutoTopUps(store, self.credits)
        self.webhooks = Webhooks(
            store,
            settings,
            stripe.api,
            take_refusals=self._take_refusals,
            top_ups=top_ups,
            top_up_if_low=self._auto_top_ups.buy_if_low,
            end_usage=self._end_usage,
        )
        self.subscriptions = Subscriptions(
            store,
            stripe.api,
            fetch=self.webhooks.fetch,
            deliver=self._deliver,
            cut=UsageCutter(store, self.flusher, stripe.api).cut,
            contact=contact,
        )
        hooks = CustomerHooks(
            store,
            self.stripe_api,
            fetch=self.webhooks.fetch,
            end=partial(self.subscriptions.cancel, immediately=True),
            sync_later=self.webhooks.sync_later,
            override=self.subscriptions.store_override,
        )
        self.customers = Customers(store, hooks)
        self.handlers = Handlers()
        reach = None if contact is None else partial(fetch_contact, contact)
        self.notify = Messages(store, settings, reach, journal, self.handlers.events)
        self._dispatcher = EventDispatcher(store, self.handlers)
        # Not in the group of the app's handlers: an event goes to one process of a group.
        self.handlers.add_internal("top-ups", "credits.low", self._top_up, is_wanted=self._tops_up)

    def _tops_up(self) -> bool:
        """Whether this process handles webhooks, and the plans file has automatic top-ups."""
        sold = find_top_ups(self.store.catalog.credits)
        return self.webhooks.is_worker and sold is not None and sold[1].auto is not None

    async def _top_up(self, event: CreditsLow) -> None:
        await self._auto_top_ups.on_low(event.customer, event.credit, event.id)

    def flusher(self) -> AbstractAsyncContextManager[Flusher]:
        """Make a flusher with its own connections."""
        look = partial(self.webhooks.fetch, cause=FLUSH)
        return flusher_for(self.store, self.settings, look, self._journal)

    async def flush(self, *, everything: bool, timeout_s: float) -> FlushReport:
        """Flush once; without a Stripe key a flush of everything replays the spools, and delivers nothing.

        Raises:
            SettingsError: no Stripe key is set, and only what is due is to be delivered.
            StoreError: the store does not answer.
        """
        if everything and self.settings.stripe_api_key is None:
            return await replay_spools(self.store)
        async with self.flusher() as flusher:
            return await flusher.flush(everything=everything, timeout_s=timeout_s)

    def tasks(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """List the background tasks of each event loop, by name.

        Raises:
            MeterkitError: a package of an extra is missing.
            SettingsError: the plans file needs a setting.
        """
        found: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"events": self._dispatcher.run}
        found |= {**self.notify.tasks(), **insights_tasks(self.store, self.settings)}
        if self.settings.delivers:
            root = audit_root_reader(self.store, self.settings)
            found |= delivery_tasks(self.store, self.settings, self.flusher, self._stripe.api, root)
            found |= {**self.webhooks.tasks, **self.subscriptions.tasks}
        wants = self._wants_transitions
        found["scheduled transitions"] = partial(make_scheduled_transitions, self.store, is_wanted=wants)
        return found

    async def finish(self) -> None:
        """Wait until running handlers have ended, within a bound."""
        await self._dispatcher.finish(timeout_s=_HANDLERS_S)

    async def close(self) -> None:
        """Close the connections of the running event loop to Stripe."""
        await self._stripe.close()

    def _wants_transitions(self) -> bool:
        wanted = {*self.handlers.events, *self.notify.events}
        return self.settings.delivers or not wanted.isdisjoint(OF_SUBSCRIPTIONS)

    async def _take_refusals(self, event_id: str) -> None:
        module: Any = import_module("meterkit.delivery.error_reports")  # Stripe seldom refuses.
        await module.park_refused(self.store, self._stripe.api(), event_id, self._journal)

    async def _end_usage(self, customer: str, ended: Mapping[int, int]) -> None:
        module: Any = import_module("meterkit.delivery.late_usage_withdrawal")  # Only workers pay for it.
        await module.end_usage(self.store, customer, ended)

    async def _deliver(self, customer: str) -> None:
        """Deliver a customer's usage, and wait until Stripe has counted it for the next invoice.

        Usage recorded meanwhile is delivered too, once; then the undelivered rest is logged.
        """
        left = 0
        for _ in range(_ROUNDS):
            has_all = await deliver_customer(self.store, self.flusher(), customer, timeout_s=_DELIVERY_S)
            _, state = await CustomerStates(self.store).read(customer)
            if state.stripe_customer is None:
                return
            counting = wait_until_counted(
                self.store, self._stripe.api(), customer, state.stripe_customer, timeout_s=_COUNTING_S
            )
            if uncounted := await counting:
                _logger.error(
                    "%d units that customer %r has used are delivered, and Stripe has not counted them in"
                    " time: they are not on the invoice that ends the subscription",
                    uncounted,
                    customer,
                )
            if uncounted or not has_all or not (left := await count_undelivered_units(self.store, customer)):
                return
        _logger.error(
            "customer %r has used %d units while its subscription was ended: they are not on the last"
            " invoice",
            customer,
            left,
        )
