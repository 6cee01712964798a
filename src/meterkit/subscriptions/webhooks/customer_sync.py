"""Sync one Stripe customer: find its customer, fetch its subscriptions, store its state, log drift.

API calls wait for such a sync. Each invoice of a top-up is an entry of its own in the queue: one that cannot
be granted delays no other, and no sync of its Stripe customer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.history import known_subscriptions, read_history
from meterkit.customers.links import StripeLinker
from meterkit.customers.states import CustomerStates
from meterkit.decisions.subscription import ENDED
from meterkit.errors import CustomerError, StripeError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY
from meterkit.store.customer_notices import publish_notice
from meterkit.subscriptions.billing_currency import has_live_subscription, read_billed_currency
from meterkit.subscriptions.drift_comparison import LIVE, DriftLog
from meterkit.subscriptions.invoice_payments import is_unpaid
from meterkit.subscriptions.metered_prices import PriceFactsReader
from meterkit.subscriptions.monthly_amount import COUPONS
from meterkit.subscriptions.payment_method_gate import PaymentMethodGate
from meterkit.subscriptions.stripe_objects import (
    id_in,
    is_missing_customer,
    is_unknown_at_stripe,
    part_of,
    text_in,
    unknown_customer_error,
)
from meterkit.subscriptions.subscription_reading import (
    choose_subscription,
    has_begun,
    is_sold_here,
    plan_of,
    read_subscription,
)
from meterkit.subscriptions.subscription_updates import list_subscriptions, with_unlisted_parts
from meterkit.subscriptions.webhooks.stripe_events import CHANGE
from meterkit.subscriptions.webhooks.subscription_writer import SubscriptionWriter, UnlinkedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.top_up_payments import TopUpPayments
    from meterkit.subscriptions.webhooks.stripe_events import EventNote
    from meterkit.subscriptions.webhooks.subscription_writer import EndUsage
    from meterkit.subscriptions.webhooks.sync_queue import SyncEntry, SyncQueue

_logger = logging.getLogger("meterkit.subscriptions")
_EXPAND: Final = ("data.latest_invoice", "data.schedule", f"data.{COUPONS}")
_EVENT: Final = "evt_"
NIGHTLY: Final = "reconcile"
"""The cause of a sync by the nightly check."""
LINK: Final = "link"
"""Kind of a note that names a checkout session."""
INVOICE: Final = "in_"
PAYMENT: Final = "pi_"
_PAYER_DOUBT: Final = ", if the customer confirms the payment (on a Payment Link the payer wrote that id)"


class LostError(Exception):
    """Another worker has leased the entry meanwhile: nothing is stored."""


@dataclass(eq=False)
class CustomerSyncer:
    """Processes entries of the sync queue.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        queue: the sync queue.
        take_refusals: handles the event of this id: Stripe does not count usage that it has accepted.
        top_ups: grants paid top-ups.
        top_up_if_low: buys an automatic top-up for a customer with a low balance.
        end_usage: makes usage of a customer's periods late, whose invoices are final.
    """

    store: Store
    api: Callable[[], StripeApi]
    queue: SyncQueue
    take_refusals: Callable[[str], Awaitable[None]]
    top_ups: TopUpPayments
    top_up_if_low: Callable[[str], Awaitable[None]]
    end_usage: EndUsage

    def __post_init__(self) -> None:
        self._states = CustomerStates(self.store)
        self._drift_log = DriftLog(self.store, self.api)
        self._links = StripeLinker(self.store)
        self._linker = CustomerLinker(self.store, self.api)
        self._top_up_syncer = TopUpSyncer(self.store, self.queue, self.top_ups)
        self._gate = PaymentMethodGate(self.api)
        self._lacking = Throttle(HOUR_S)
        self._facts = PriceFactsReader(self.api)
        self._writer = SubscriptionWriter(self.store, self.api, self.end_usage)

    async def sync(self, entry: SyncEntry) -> None:
        """Fetch a Stripe customer's subscriptions, store the chosen one, and send events.

        Raises:
            CustomerError: the Stripe customer cannot be linked to the customer that Stripe names.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
            LostError: another worker has leased the entry meanwhile.
        """
        linked, catalog = entry.stripe_customer, self.store.catalog
        if linked.startswith(_EVENT):
            await self.take_refusals(linked)
            return
        if linked.startswith((INVOICE, PAYMENT)):
            await self._top_up_syncer.sync(entry)
            return
        customer = await self._links.find_owner(linked)
        if customer is None and await self._links.is_retired(linked):
            return  # Its customer was deleted here.
        listed = await self._list_subscriptions(linked, customer)
        known = await self._read_known(customer)
        found, can_pay = await self._gate.apply(linked, listed, catalog, known)
        found = await self._gate.end_abandoned(found, self.store.now_ms() / 1000)
        chosen = choose_subscription(found, catalog, None if known is None else known.id)
        if customer is None:
            ordered = [*([] if chosen is None else [chosen]), *found]
            sessions = [note.data["session"] for note in entry.notes if note.kind == LINK]
            customer = await self._linker.link(linked, ordered, sessions, cause=entry.cause)
            if customer is None:
                return
        currency = await self._read_currency(customer, linked, found, chosen)
        write = partial(self._store_shown, entry, customer, found, can_pay=can_pay, currency=currency)
        try:
            if (ended := _just_ended(known, found, chosen)) is not None:
                await write(ended)
            subscription, known = await write(chosen)
        except UnlinkedError:
            return  # The subscriptions belong to no customer here: store and report nothing.
        if entry.cause == NIGHTLY or _needs_drift_check(subscription) or _needs_drift_check(known):
            await self._drift_log.compare(customer, found, chosen)
        if entry.cause == NIGHTLY:
            await self.top_up_if_low(customer)
        others = {str(one["id"]) for one in listed if not is_sold_here(one, catalog)}  # Of other products.
        if others and entry.notes:
            _, state = await self._states.read(customer)
            others -= known_subscriptions(state, await read_history(self.store, customer)) or set()
        for note in entry.notes:
            is_ours = note.kind not in {LINK, CHANGE} and note.data.get("subscription") not in others
            if is_ours and await self._is_current(note, listed):
                await publish_notice(self.store, customer, note.kind, {**note.data, "id": note.name})

    async def _is_current(self, note: EventNote, found: Sequence[Mapping[str, Any]]) -> bool:
        """Whether an event still holds at Stripe: it may be delivered hours after what it reports."""
        if note.kind == "payment.failed":
            invoice = await self.api().find(f"/v1/invoices/{note.data['invoice']}")
            return invoice is not None and is_unpaid(invoice)
        if note.kind == "trial.ending":
            trial = (note.data["subscription"], "trialing", note.data["trial_end_ms"] // 1000)
            return trial in [(one["id"], one["status"], one.get("trial_end")) for one in found]
        return True

    async def _store_shown(
        self,
        entry: SyncEntry,
        customer: str,
        found: Sequence[Mapping[str, Any]],
        shown: Mapping[str, Any] | None,
        *,
        can_pay: bool,
        currency: str | None,
    ) -> tuple[SubscriptionState | None, SubscriptionState | None]:
        """Store a subscription, or that there is none; return it, and the one that was known."""
        subscription = None
        if shown is not None:
            facts = await self._facts.fetch(shown)
            subscription = read_subscription(
                shown, self.store.catalog, has_payment_method=can_pay, facts=facts
            )
            self._facts.log_inexact(subscription.id, subscription.prices)
        # Only the worker with the lease stores a response: no other has fetched a newer one.
        if not await self.queue.renew(entry):
            raise LostError
        known = await self._writer.write(
            customer,
            entry.stripe_customer,
            subscription,
            found,
            entry.cause,
            currency=currency,
            events={note.data["event"]: note.data["at_ms"] for note in entry.notes if note.kind == CHANGE},
        )
        return subscription, known

    async def _read_currency(
        self,
        customer: str,
        linked: str,
        found: Sequence[Mapping[str, Any]],
        chosen: Mapping[str, Any] | None,
    ) -> str | None:
        """The currency that Stripe bills a customer in; empty: none yet; None: it was not asked.

        Only a plans file of several currencies needs that of a customer without a live subscription.
        """
        currencies, shown = self.store.catalog.currencies, dict[str, Any]()
        if len(currencies) > 1 and not has_live_subscription(found):
            shown = await self.api().find(f"/v1/customers/{linked}") or {"deleted": True}
            if shown.get("deleted") is True:
                return None
        currency = await read_billed_currency(self.api(), self.store.catalog, found, shown, chosen)
        if len(currencies) > 1 and currency not in {"", *currencies} and self._lacking.is_due(customer):
            _logger.warning(
                "customer %r is billed in %s at Stripe, which the plans file lacks: usage without a price of"
                " the customer's own is not billed, and nothing can be sold; add %s to `currency`",
                customer,
                currency.upper(),
                currency,
            )
        return currency if currency or shown else None

    async def _list_subscriptions(self, linked: str, customer: str | None) -> list[dict[str, Any]]:
        """List all subscriptions of a Stripe customer, ended ones too; none of a deleted one.

        Raises:
            StripeError: Stripe has never had one that is linked here: the key is of another account, or of
                its sandbox.
        """
        try:
            found = await list_subscriptions(self.api(), linked, _EXPAND)
        except StripeError as error:
            if not is_missing_customer(error):
                raise
            if customer is not None and await is_unknown_at_stripe(self.api(), linked):
                raise unknown_customer_error(error, customer, linked) from error
            return []
        return [await with_unlisted_parts(self.api(), one) for one in found]

    async def _read_known(self, customer: str | None) -> SubscriptionState | None:
        if customer is None:
            return None
        _, state = await self._states.read(customer)
        return state.subscription


def _just_ended(
    known: SubscriptionState | None, found: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The known subscription, if it has just ended and the one chosen now has not begun; otherwise None.

    One that has not begun has no period: stored alone, it would end the known one where the month began.
    """
    if known is None or not known.has_begun or known.status in ENDED:
        return None
    if chosen is None or has_begun(chosen):
        return None
    return next((one for one in found if one["id"] == known.id and one["status"] in ENDED), None)


def _needs_drift_check(subscription: SubscriptionState | None) -> bool:
    """Whether a subscription has no plan, or a price that cannot be computed exactly."""
    if subscription is None:
        return False
    return subscription.plan is None or not all(price.is_exact for price in subscription.prices)


class TopUpSyncer:
    """Processes entries of the sync queue that name an invoice, or a payment intent.

    Args:
        store: of the kit.
        queue: the sync queue.
        top_ups: grants and reclaims top-ups.
    """

    def __init__(self, store: Store, queue: SyncQueue, top_ups: TopUpPayments) -> None:
        self._store = store
        self._queue = queue
        self._top_ups = top_ups

    async def sync(self, entry: SyncEntry) -> None:
        """Settle an invoice and send its events; of a payment intent, queue its invoices.

        Raises:
            CustomerError: the top-up is of a customer who is not linked to the invoice's Stripe customer.
            MeterkitError: it cannot be granted; the error says why.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        name = entry.stripe_customer
        if name.startswith(PAYMENT):
            for invoice in await self._top_ups.list_invoices(name):
                await self._queue.request(invoice, entry.cause)
            return
        found = await self._top_ups.fetch_invoice(name)
        is_reported = any(note.kind == "payment.succeeded" for note in entry.notes)
        customer = await self._top_ups.settle_invoice(found, is_reported=is_reported)
        if customer is None:
            return
        for note in entry.notes:
            if note.kind != "payment.failed" or is_unpaid(found):
                await publish_notice(self._store, customer, note.kind, {**note.data, "id": note.name})


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
    return text_in(part_of(found, "metadata"), CUSTOMER_KEY)
