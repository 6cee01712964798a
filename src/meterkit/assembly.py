"""Composition root of a kit: makes its parts and connects them.

Each part is made, and its module imported, when it is first used: a process that only meters loads neither
delivery nor subscriptions. ``MeterKit`` imports this module with the first kit.
"""

from __future__ import annotations

import logging
from functools import partial
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.credit_values import find_top_ups
from meterkit.insights.audit.async_database import open_audit_database
from meterkit.notify.event_handlers import Handlers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.asgi.gauges import Gauges
    from meterkit.customers.customers import Customers
    from meterkit.customers.grants import Grants
    from meterkit.delivery.correction_credits import CreditIssuer
    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.flusher import Flusher
    from meterkit.delivery.reconciler import Reconciler
    from meterkit.insights.revenue.revenue import Revenue
    from meterkit.insights.statement.statements import Statements
    from meterkit.notify.event_dispatcher import EventDispatcher
    from meterkit.notify.events import CreditsLow
    from meterkit.notify.messages import Messages
    from meterkit.outbox.operator_commands import Intents
    from meterkit.settings import Settings
    from meterkit.storage.service import ObjectStorage
    from meterkit.store.store import Store
    from meterkit.store.task_lease import RepeatedTask
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.price_sync import StripeAccount
    from meterkit.subscriptions.service.stripe_customers import Contact, ContactSource
    from meterkit.subscriptions.service.subscriptions_facade import Subscriptions
    from meterkit.subscriptions.service.top_ups import AutoTopUps, Credits
    from meterkit.subscriptions.top_up_payments import TopUpPayments
    from meterkit.subscriptions.webhooks.webhook_endpoint import Webhooks

__all__ = ["Parts", "StripeAccess"]

_logger = logging.getLogger("meterkit.subscriptions")

_ROUNDS: Final = 2
_DELIVERY_S: Final = 80.0
"""More than the minute after which usage can be sealed that was sealed often in this one."""
_COUNTING_S: Final = 20.0
_HANDLERS_S: Final = 5.0


if TYPE_CHECKING:
    LazyPart = property  # To type checkers it is one.
else:

    class LazyPart:
        """Property that is made at its first use, once: a thread waits while another one makes it."""

        def __init__(self, make: Callable[[Parts], object]) -> None:
            self._make = make
            self._name = make.__name__
            self.__doc__ = make.__doc__

        def __get__(self, parts: Parts | None, owner: type) -> object:
            if parts is None:
                return self
            made = vars(parts)
            if self._name not in made:
                with made["_making"]:
                    if self._name not in made:
                        made[self._name] = self._make(parts)
            return made[self._name]

        def __set__(self, parts: Parts, value: object) -> None:
            raise AttributeError(f"{self._name}: a part of a kit cannot be replaced")


class StripeAccess:
    """Stripe client, made when it is first needed: an app without a Stripe key needs none.

    Args:
        settings: the key and the address.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: StripeApi | None = None
        self._making = Lock()

    def api(self) -> StripeApi:
        """Return the Stripe client.

        Raises:
            SettingsError: no Stripe key is set.
        """
        with self._making:
            if self._made is None:
                from meterkit.stripe.api import StripeApi

                self._made = StripeApi(self._settings)
            return self._made

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._made is not None:
            await self._made.close()


class Parts:
    """Parts of a kit; :class:`meterkit.MeterKit` has its methods.

    Args:
        store: of the kit.
        settings: of the kit.
        contact: gives the contact data of a customer.

    Attributes:
        store: the same.
        settings: the same.
    """

    def __init__(self, store: Store, settings: Settings, contact: ContactSource | None) -> None:
        self._making = RLock()  # Held while a part is made; reentrant, because parts need parts.
        self.store = store
        self.settings = settings
        self._contact = contact
        self._stripe = StripeAccess(settings)
        self._journal = open_audit_database(settings)
        self._stripe_api = None if settings.stripe_api_key is None else self._stripe.api
        self._handlers = Handlers()
        # Not in the group of the app's handlers: an event goes to one process of a group.
        self._handlers.add_internal("top-ups", "credits.low", self._top_up, is_wanted=self._tops_up)

    @LazyPart
    def grants(self) -> Grants:
        """Grants: units that a customer gets beside the plan."""
        from meterkit.customers.grants import Grants

        return Grants(self.store)

    @LazyPart
    def gauges(self) -> Gauges:
        """Levels of ``gauge`` meters."""
        from meterkit.asgi.gauges import Gauges

        return Gauges(self.store)

    @LazyPart
    def outbox(self) -> Intents:
        """Usage sealed for Stripe: list, redrive, park, drop."""
        from meterkit.outbox.operator_commands import Intents

        return Intents(self.store)

    @LazyPart
    def revenue(self) -> Revenue:
        """Figures of revenue."""
        from meterkit.insights.revenue.revenue import Revenue

        return Revenue(self.store, self.settings)

    @LazyPart
    def storage(self) -> ObjectStorage:
        """Stored objects: count them, presign uploads."""
        from meterkit.storage.service import ObjectStorage

        return ObjectStorage(self.store, self.settings.reveal(self.settings.storage_endpoint))

    @LazyPart
    def reconcile(self) -> Reconciler:
        """Comparison of meterkit's books with Stripe's: ``await kit.reconcile()``."""
        from meterkit.delivery.reconciler import Reconciler

        return Reconciler(self.store, self._stripe.api, self._journal)

    @LazyPart
    def statement(self) -> Statements:
        """Statements: ``await kit.statement("ada")``."""
        from meterkit.insights.statement.statements import Statements

        return Statements(self.store, self.settings, self._stripe.api)

    @LazyPart
    def correct(self) -> CreditIssuer:
        """Corrections: ``await kit.correct("ada", {"images": 1}, …)``."""
        from meterkit.delivery.correction_credits import CreditIssuer

        return CreditIssuer(self.store, self._stripe_api)

    @LazyPart
    def stripe(self) -> StripeAccount:
        """Products, prices and meters at Stripe: compare, create."""
        from meterkit.subscriptions.price_sync import StripeAccount

        return StripeAccount(lambda: self.store.catalog, self._stripe.api)

    @LazyPart
    def credits(self) -> Credits:
        """Balances in money, and their top-ups."""
        from meterkit.subscriptions.service.top_ups import Credits

        return Credits(self.store, self._stripe.api, self._top_ups, self._contact)

    @LazyPart
    def webhooks(self) -> Webhooks:
        """Stripe's events: receive, process, list failed ones."""
        from meterkit.subscriptions.webhooks.webhook_endpoint import Webhooks

        return Webhooks(
            self.store,
            self.settings,
            self._stripe.api,
            take_refusals=self._take_refusals,
            top_ups=self._top_ups,
            top_up_if_low=self._auto_top_ups.buy_if_low,
            end_usage=self._end_usage,
        )

    @LazyPart
    def subscriptions(self) -> Subscriptions:
        """Subscriptions: start, change and end them."""
        from meterkit.delivery.usage_cutter import UsageCutter
        from meterkit.subscriptions.service.subscriptions_facade import Subscriptions

        return Subscriptions(
            self.store,
            self._stripe.api,
            fetch=self.webhooks.fetch,
            deliver=self._deliver,
            cut=UsageCutter(self.store, self.flusher, self._stripe.api).cut,
            contact=self._contact,
        )

    @LazyPart
    def customers(self) -> Customers:
        """Customers: state, links to Stripe, plans, overrides, history."""
        from meterkit.customers.customers import Customers
        from meterkit.subscriptions.service.stripe_customers import CustomerHooks

        hooks = CustomerHooks(
            self.store,
            self._stripe_api,
            fetch=self.webhooks.fetch,
            end=partial(self.subscriptions.cancel, immediately=True),
            sync_later=self.webhooks.sync_later,
            override=self.subscriptions.store_override,
        )
        return Customers(self.store, hooks)

    @LazyPart
    def notify(self) -> Messages:
        """Messages by webhook and e-mail: list, resend, preview."""
        from meterkit.notify.messages import Messages

        return Messages(self.store, self.settings, self.contact, self._journal, self._handlers.events)

    @LazyPart
    def contact(self) -> Callable[[str], Awaitable[Contact | None]] | None:
        """The app's function for contacts, async; None: the kit was made without."""
        if self._contact is None:
            return None
        from meterkit.subscriptions.service.stripe_customers import fetch_contact

        return partial(fetch_contact, self._contact)

    @LazyPart
    def _dispatcher(self) -> EventDispatcher:
        from meterkit.notify.event_dispatcher import EventDispatcher

        return EventDispatcher(self.store, self._handlers)

    @LazyPart
    def _top_ups(self) -> TopUpPayments:
        from meterkit.subscriptions.top_up_payments import TopUpPayments

        return TopUpPayments(self.store, self._stripe.api)

    @LazyPart
    def _auto_top_ups(self) -> AutoTopUps:
        from meterkit.subscriptions.service.top_ups import AutoTopUps

        return AutoTopUps(self.store, self.credits)

    def _tops_up(self) -> bool:
        """Whether this process handles webhooks, and the plans file has automatic top-ups."""
        sold = find_top_ups(self.store.catalog.credits)
        return sold is not None and sold[1].auto is not None and self.webhooks.is_worker

    async def _top_up(self, event: CreditsLow) -> None:
        await self._auto_top_ups.on_low(event.customer, event.credit, event.id)

    def flusher(self) -> AbstractAsyncContextManager[Flusher]:
        """Make a flusher for your own worker: it keeps its connections to Stripe from flush to flush.

        Raises:
            SettingsError: no Stripe key is set.
        """
        from meterkit.delivery.flusher_setup import flusher_for
        from meterkit.subscriptions.webhooks.subscription_writer import FLUSH

        look = partial(self.webhooks.fetch, cause=FLUSH)
        return flusher_for(self.store, self.settings, look, self._journal)

    async def flush(self, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport:
        """Deliver to Stripe what is due, once.

        Args:
            everything: send the spools of processes that are gone, seal what is still open, try at once what
                waits for a retry, and wait for what may not be sent yet; as ``meterkit flush --all`` does.
                It ends earlier if Stripe refuses all that is left until an operator acts, for example because
                of a wrong key or a missing meter. Without a Stripe key it only sends the spools.
            timeout_s: with ``everything``, how long to wait without progress.

        Raises:
            SettingsError: no Stripe key is set; ``everything`` needs none.
            StoreError: the store does not answer.
        """
        if everything and self.settings.stripe_api_key is None:
            from meterkit.delivery.flush_report import replay_spools

            return await replay_spools(self.store)
        from meterkit.delivery.delivery_pass import deliver_once

        async with self.flusher() as flusher:
            flush = partial(flusher.flush, everything=everything, timeout_s=timeout_s)
            return await deliver_once(self._delivery_tasks, flush)

    def delivery_tasks(self) -> Mapping[str, RepeatedTask]:
        """All that a process which delivers repeats, by name, in the order in which a single pass does it.

        Raises:
            SettingsError: usage cannot be sent by these settings.
        """
        return self._delivery_tasks

    @LazyPart
    def _delivery_tasks(self) -> Mapping[str, RepeatedTask]:
        from meterkit.customers.states import make_scheduled_transitions, sweep_scheduled_transitions
        from meterkit.delivery.flusher_setup import delivery_tasks
        from meterkit.insights.audit_tasks import audit_root_reader, audit_tasks
        from meterkit.store.task_lease import RepeatedTask

        root = audit_root_reader(self.store, self.settings)
        clock = RepeatedTask(
            partial(make_scheduled_transitions, self.store), partial(sweep_scheduled_transitions, self.store)
        )
        return {
            **self.webhooks.tasks,
            "scheduled transitions": clock,
            **self.subscriptions.tasks,
            **delivery_tasks(self.store, self.settings, self.flusher, self._stripe.api, root),
            **audit_tasks(self.store, self.settings),
        }

    def _list_tasks(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """List the background tasks of each event loop, by name; let the store wake the event dispatcher.

        Raises:
            MeterkitError: a package of an extra is missing.
            SettingsError: the plans file needs a setting.
        """
        from meterkit.customers.states import make_scheduled_transitions

        self.store.on_notice = self._dispatcher.on_notice
        found: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"events": self._dispatcher.run}
        found |= self.notify.tasks()
        if self.settings.audit_url is not None:
            from meterkit.insights.audit_tasks import insights_tasks

            found |= insights_tasks(self.store, self.settings)
        if self.settings.delivers:
            return found | {name: task.run for name, task in self._delivery_tasks.items()}
        wants = self._wants_transitions
        found["scheduled transitions"] = partial(make_scheduled_transitions, self.store, is_wanted=wants)
        return found

    async def _finish(self) -> None:
        """Wait until running handlers have ended, within a bound."""
        await self._dispatcher.finish(timeout_s=_HANDLERS_S)

    async def _close(self) -> None:
        """Close the connections of the running event loop to Stripe."""
        await self._stripe.close()

    def _wants_transitions(self) -> bool:
        from meterkit.notify.events import OF_SUBSCRIPTIONS

        wanted = {*self._handlers.events, *self.notify.events}
        return not wanted.isdisjoint(OF_SUBSCRIPTIONS)

    async def _take_refusals(self, event_id: str) -> None:
        from meterkit.delivery.error_reports import park_refused

        await park_refused(self.store, self._stripe.api(), event_id, self._journal)

    async def _end_usage(self, customer: str, ended: Mapping[int, int]) -> None:
        from meterkit.delivery.late_usage_withdrawal import end_usage

        await end_usage(self.store, customer, ended)

    async def _deliver(self, customer: str) -> None:
        """Deliver a customer's usage, and wait until Stripe has counted it for the next invoice.

        Usage recorded meanwhile is delivered too, once; then the undelivered rest is logged.
        """
        from meterkit.customers.states import CustomerStates
        from meterkit.decisions.customer_state import is_billed_by_lines
        from meterkit.delivery.summaries import wait_until_counted
        from meterkit.delivery.usage_cutter import count_undelivered_units, deliver_customer

        left = 0
        _, state = await CustomerStates(self.store).read(customer)
        if is_billed_by_lines(state, self.store.catalog, self.store.now_ms()):
            return  # Its lines are written once the period has ended.
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
