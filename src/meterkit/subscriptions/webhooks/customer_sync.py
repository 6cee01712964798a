"""Sync one Stripe customer: find its customer, fetch its subscriptions, store its state, log drifts."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.value_parsers import DAY_MS
from meterkit.customers.states import States
from meterkit.customers.stranding import Switch, hold_usage, let_go_of_usage, next_minute_ms, strand_usage
from meterkit.decisions.customer_state import with_subscription
from meterkit.decisions.subscription import switched_by_others
from meterkit.errors import StripeError
from meterkit.outbox.closes import note_renewal
from meterkit.store.messages import tell
from meterkit.subscriptions.item_price_reading import PriceFactsReader
from meterkit.subscriptions.live_subscription import whole, with_item_coupons
from meterkit.subscriptions.monthly_amount import COUPONS
from meterkit.subscriptions.payment_gate import PaymentGate
from meterkit.subscriptions.stripe_objects import part_of
from meterkit.subscriptions.subscription_reading import (
    in_force,
    metered_of,
    read_subscription,
)
from meterkit.subscriptions.webhooks.customer_linker import LINK, CustomerLinker
from meterkit.subscriptions.webhooks.drift_log import Drifting
from meterkit.subscriptions.webhooks.plan_change_time import plan_changed_ms
from meterkit.subscriptions.webhooks.stripe_events import TOPS_UP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.top_up_payments import TopUpPayments
    from meterkit.subscriptions.webhooks.hint_scripts import Entry
    from meterkit.subscriptions.webhooks.queue import HookQueue


_EXPAND: Final = ("data.latest_invoice", "data.schedule", f"data.{COUPONS}")
_GONE: Final = "resource_missing"
_HELD_MS: Final = 60_000
_EVENT: Final = "evt_"
_PAYMENT: Final = "pi_"
_UPDATED: Final = "customer.subscription.updated"
_OF_THE_KEY: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
NIGHTLY: Final = "reconcile"
"""The cause of a look that nothing has asked for but the night."""


class LostError(Exception):
    """Another worker has the entry by now: nothing is stored."""


class _UnlinkedError(Exception):
    """The customer was unlinked or deleted meanwhile."""


@dataclass(eq=False)
class Looker:
    """Does what an entry of the queue asks for.

    Args:
        store: where customers are.
        api: the way to Stripe.
        queue: where entries are.
        refused: does what an event asks for that tells of usage which Stripe does not count; given its id.
        top_ups: grants what customers have paid for.
        low: buys a top-up by itself for a customer whose balance is low.
    """

    store: Store
    api: Callable[[], StripeApi]
    queue: HookQueue
    refused: Callable[[str], Awaitable[None]]
    top_ups: TopUpPayments
    low: Callable[[str], Awaitable[None]]

    def __post_init__(self) -> None:
        self._states = States(self.store)
        self._drifting = Drifting(self.store, self.api)
        self._linking = CustomerLinker(self.store, self.api)
        self._gate = PaymentGate(self.api)
        self._facts = PriceFactsReader(self.api)

    async def look(self, entry: Entry) -> None:
        """Fetch a Stripe customer's subscriptions, store the one that counts, and send events.

        Raises:
            CustomerError: it cannot be linked to whom Stripe names.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
            LostError: another worker has the entry by now.
            ValueError: what Stripe shows cannot be read.
        """
        linked, catalog = entry.stripe_customer, self.store.catalog
        if linked.startswith(_EVENT):
            await self.refused(linked)
            return
        if linked.startswith(_PAYMENT):
            await self.top_ups.take_back(linked, self._linking.owner)
            return
        customer = await self._linking.owner(linked)
        if customer is None and await self._linking.is_retired(linked):
            return  # Its customer was deleted here.
        found = await self._subscriptions(linked, is_known=customer is not None)
        known = await self._known(customer)
        found, can_pay = await self._gate.apply(linked, found, catalog, known)
        found = await self._gate.end_abandoned(found, self.store.now_ms() / 1000)
        chosen = in_force(found, catalog, None if known is None else known.id)
        if customer is None:
            ordered = [*([] if chosen is None else [chosen]), *found]
            sessions = [note.data["session"] for note in entry.notes if note.kind == LINK]
            customer = await self._linking.link(linked, ordered, sessions)
            if customer is None:
                return
        subscription = None
        if chosen is not None:
            facts = await self._facts.facts_of(chosen)
            subscription = read_subscription(chosen, catalog, has_payment_method=can_pay, facts=facts)
            self._facts.log_inexact(subscription.id, subscription.prices)
        # Only the worker with the entry stores what it fetched: no other has fetched anything newer.
        if not await self.queue.keep(entry):
            raise LostError
        try:
            known = await self._store_subscription(customer, linked, subscription, entry.cause)
        except _UnlinkedError:
            return  # The subscriptions belong to no customer here: store and report nothing.
        await note_renewal(self.store, customer, subscription, known=known)
        if entry.cause == NIGHTLY or (subscription is not None and subscription.plan is None):
            await self._drifting.look(customer, found, chosen)
        if entry.cause == NIGHTLY:
            await self.low(customer)
        for note in entry.notes:
            if note.data.get(TOPS_UP):
                is_paid = note.kind == "payment.succeeded"
                await self.top_ups.settle(customer, note.data["invoice"], is_paid=is_paid)
            if note.kind != LINK:
                await tell(self.store, customer, note.kind, {**note.data, "id": note.name})

    async def _store_subscription(
        self, customer: str, linked: str, subscription: SubscriptionState | None, cause: str
    ) -> SubscriptionState | None:
        """Store what was fetched; return what was known. Usage that missed a change of prices is late."""
        store, having = self.store, _having(linked, subscription, self.store.catalog)
        rev, before = await self._states.read(customer)
        changed_ms = await plan_changed_ms(store, self.api(), before.subscription, subscription, cause)
        switched = switched_by_others(before.subscription, subscription, store.now_ms())
        if subscription is None or not switched:
            await self._states.change(customer, having, cause=cause, changed_ms=changed_ms)
            return before.subscription
        after = having(before)
        found = await self.api().list("/v1/billing/meters")
        events = {meter["event_name"] for meter in found if meter["id"] in switched}
        priced_ms = await self._when(subscription.id, subscription.metered)
        change = Switch(rev=rev, events=events, changed_ms=priced_ms, cause=cause)
        # Sealed now, usage could be stamped before the change.
        await hold_usage(store, customer, till_ms=store.now_ms() + _HELD_MS)
        # If the process dies after this, the next one finds the same change again, and late usage already.
        await strand_usage(store, customer, before, after, change)
        await self._states.change(customer, having, cause=cause, changed_ms=changed_ms)
        await let_go_of_usage(store, customer, changed_ms=next_minute_ms(store.now_ms()))
        return before.subscription

    async def _when(self, subscription: str, metered: str) -> int:
        """Since when a subscription has its metered prices, at the latest: Stripe's events of a day tell."""
        changed_ms = now_ms = self.store.now_ms()
        asked: dict[str, Parameter] = {"type": _UPDATED, "created": {"gte": (now_ms - DAY_MS) // 1000}}
        try:
            async for page in self.api().pages("/v1/events", asked):
                for event in page:
                    shown = part_of(part_of(event, "data"), "object")
                    if shown.get("id") != subscription:
                        continue
                    if metered_of(shown) != metered:
                        return changed_ms
                    changed_ms = min(changed_ms, int(event["created"]) * 1000)
        except StripeError as error:
            if error.status not in _OF_THE_KEY:
                raise
        return changed_ms

    async def _subscriptions(self, linked: str, *, is_known: bool) -> list[dict[str, Any]]:
        """All subscriptions that a Stripe customer has, and had; none of one that is deleted.

        Raises:
            StripeError: Stripe has never had one that is linked here: the key is of another account, or of
                its sandbox.
        """
        asked = {"customer": linked, "status": "all", "expand": _EXPAND}
        try:
            found = await self.api().list("/v1/subscriptions", asked)
        except StripeError as error:
            is_gone = error.code == _GONE and error.param == "customer"
            if is_gone and not (is_known and await self._is_strange(linked)):
                return []
            raise
        return [await with_item_coupons(self.api(), await whole(self.api(), one)) for one in found]

    async def _is_strange(self, linked: str) -> bool:
        """Whether Stripe does not even know that there was such a customer: of a deleted one it does."""
        try:
            await self.api().get(f"/v1/customers/{linked}")
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return True
            raise
        return False

    async def _known(self, customer: str | None) -> SubscriptionState | None:
        if customer is None:
            return None
        _, state = await self._states.read(customer)
        return state.subscription


def _having(
    linked: str, subscription: SubscriptionState | None, catalog: Catalog
) -> Callable[[CustomerState], CustomerState]:
    def change(state: CustomerState) -> CustomerState:
        if state.stripe_customer != linked:
            raise _UnlinkedError
        return with_subscription(state, subscription, catalog.plans)

    return change
