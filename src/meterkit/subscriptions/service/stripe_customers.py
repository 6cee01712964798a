"""Find, create or replace the Stripe customer of a customer; hooks of linking and deletion; used trials."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anyio import to_thread

from meterkit.cancellation import keep_cancellation
from meterkit.catalog.meters import is_sold
from meterkit.customers.customers import Customers
from meterkit.customers.links import StripeLinker
from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import DAY_MS
from meterkit.decisions.subscription import ENDED
from meterkit.errors import CustomerError, MeterkitError, NoSubscriptionError, StripeError
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY
from meterkit.stripe.idempotency_keys import key_of
from meterkit.subscriptions.service.payment_pages import close_payments
from meterkit.subscriptions.stripe_objects import (
    is_missing_customer,
    is_unknown_at_stripe,
    same_error,
    unknown_customer_error,
)
from meterkit.subscriptions.subscription_reading import plan_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_KEPT_MS: Final = 400 * DAY_MS
_PLACE: Final = "tried"
_PAGE: Final = 1_000
_SCHEDULES: Final = "/v1/subscription_schedules"
_EXPAND: Final = ("data.phases.items.price",)


@dataclass(frozen=True, slots=True)
class Contact:
    """Contact of a customer: receives receipts, invoices and reminders.

    Attributes:
        email: the address.
        name: of the person or company; it is on invoices.
        locale: the language of invoices and e-mails, such as ``de`` or ``pt-BR``.
    """

    email: str
    name: str | None = None
    locale: str | None = None


ContactSource: TypeAlias = Callable[[str], Contact | Awaitable[Contact | None] | None]
"""Returns the contact of a customer; None: there is none. A synchronous function runs in a thread."""


async def fetch_contact(source: ContactSource, customer: str) -> Contact | None:
    """Call the app's function for the contact of a customer; None if there is none.

    Raises:
        MeterkitError: the function returns something other than a Contact or None.
    """
    is_async = iscoroutinefunction(source)
    found: Any = source(customer) if is_async else await to_thread.run_sync(source, customer)
    if isawaitable(found):
        found = await keep_cancellation(found)
    if found is not None and not isinstance(found, Contact):
        kind = type(found).__name__
        raise MeterkitError(
            f"contact: the function gave a value of type {kind}; allowed are Contact and None"
        )
    return found


async def contact_params(source: ContactSource | None, customer: str) -> dict[str, Parameter]:
    """Return the contact as parameters of a Stripe customer; raises as :func:`fetch_contact` does."""
    found = None if source is None else await fetch_contact(source, customer)
    if found is None:
        return {}
    locales = None if found.locale is None else [found.locale]
    return {"email": found.email, "name": found.name, "preferred_locales": locales}


_PATH: Final = "/v1/customers"
_REPLAYS_MAX: Final = 16


class StripeCustomers:
    """Finds and creates Stripe customers.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        contact: provides the contact of a new Stripe customer.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], contact: ContactSource | None) -> None:
        self._store = store
        self._customers = Customers(store)
        self._links = StripeLinker(store)
        self._api = api
        self._contact = contact

    async def find_or_create(self, customer: str) -> str:
        """Return the id of the Stripe customer of a customer; see :meth:`fetch_or_create`."""
        return str((await self.fetch_or_create(customer))["id"])

    async def fetch_or_create(self, customer: str) -> Mapping[str, Any]:
        """Return the Stripe customer of a customer, as Stripe shows it.

        If there is none, or Stripe has deleted it, create and link a new one. Usage that was not sent to the
        deleted one is delivered to the new one.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        linked = (await self._customers.get(customer)).stripe_customer
        if linked is not None:
            try:
                shown = await self._fetch(linked)
            except StripeError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                raise unknown_customer_error(error, customer, linked) from error
            if shown.get("deleted") is not True:
                return shown
            _, state = await CustomerStates(self._store).read(customer)
            await remember_trial(self._store, customer, state.subscription)
            await self._links.retire(customer, linked)  # Late events of it link nothing.
            await self._customers.unlink(customer)
            await self._links.retire(customer, linked, done=True)
        made = await self._create_customer(customer, ended=linked or "")
        await self._links.make(customer, str(made["id"]), cause="api")
        return made

    async def _create_customer(self, customer: str, *, ended: str) -> Mapping[str, Any]:
        """Create a Stripe customer once. A replayed response may name one that has been deleted since."""
        contact = await contact_params(self._contact, customer)
        params: dict[str, Parameter] = {**contact, "metadata": {CUSTOMER_KEY: customer}}
        for _ in range(_REPLAYS_MAX):
            key = key_of("customer", params, ended)
            made = str((await self._api().post(_PATH, params, idempotency_key=key))["id"])
            if not await self._links.is_retired(made):
                shown = await self._fetch(made)
                if shown.get("deleted") is not True:
                    return shown
            ended = made
        raise StripeError(f"Stripe has deleted {_REPLAYS_MAX} customers of {customer!r}; try again tomorrow")

    async def _fetch(self, linked: str) -> Mapping[str, Any]:
        return await self._api().get(f"{_PATH}/{linked}")


_SUBSCRIPTIONS_MAX: Final = 8


@dataclass(eq=False)
class CustomerHooks:
    """Hooks of linking, deletion and overrides: implements :class:`meterkit.customers.links.StripeHooks`.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use; None: the kit has no Stripe key.
        fetch: fetches a customer's subscription from Stripe into the store.
        end: ends a customer's subscription now.
        sync_later: queues the sync of a Stripe customer.
        override: stores an override once Stripe has its prices.
    """

    store: Store
    api: Callable[[], StripeApi] | None
    fetch: Callable[[str], Awaitable[object]]
    end: Callable[[str], Awaitable[object]]
    sync_later: Callable[[str], Awaitable[object]]
    override: Callable[[str, Collection[str], Callable[[CustomerState], CustomerState]], Awaitable[None]]

    async def refuse_unknown_stripe_customer(self, customer: str, stripe_customer: str) -> None:
        """Refuse a link to a Stripe customer that does not exist.

        Raises:
            CustomerError: Stripe has no such customer, or has deleted it.
            StripeError: Stripe refuses, or does not answer.
        """
        if self.api is None:
            return
        why = "Stripe has deleted this customer"
        try:
            found = await self.api().get(f"{_PATH}/{stripe_customer}")
        except StripeError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise same_error(
                    error,
                    f"customer {customer!r} is not linked: Stripe does not say whether it has"
                    f" {stripe_customer}; try again, or link without checking (force=True, --force): {error}",
                ) from error
            why = "Stripe has no such customer in the account and mode of the key"
        else:
            if found.get("deleted") is not True:
                return
        raise CustomerError(
            f"customer {customer!r} is not linked to Stripe customer {stripe_customer}: {why}; correct the"
            " id, or link without asking Stripe (force=True, --force)"
        )

    async def sync_linked_customer(self, customer: str, *, now: bool, is_known: bool) -> None:
        """Fetch the subscription of a linked customer if customers can subscribe to a plan."""
        _, state = await CustomerStates(self.store).read(customer)
        if self.api is None or state.stripe_customer is None or not self._sells_plans():
            return
        if now and not is_known:
            with suppress(StripeError):  # In an outage the fetch fails, too, and is queued.
                if await is_unknown_at_stripe(self.api(), state.stripe_customer):
                    return
        if not now:
            await self.sync_later(state.stripe_customer)
            return
        try:
            await self.fetch(customer)
        except (StripeError, ValueError, TimeoutError) as error:
            message = (
                f"customer {customer!r} is linked to Stripe customer {state.stripe_customer}, but its"
                f" subscription could not be read; that is retried in the background: {error}"
            )
            if not isinstance(error, StripeError):
                raise StripeError(message) from error
            raise same_error(error, message) from error

    async def prepare_deletion(self, customer: str, *, cancel: bool) -> None:
        """End, or refuse to leave, what Stripe would charge a customer that is being deleted."""
        _, state = await CustomerStates(self.store).read(customer)
        if self.api is None or state.stripe_customer is None:
            await self._end_subscriptions(customer, cancel=cancel)
        else:
            await self._fetch_and_end_subscriptions(customer, cancel=cancel)
            await self._end_planned(customer, self.api(), state.stripe_customer, cancel=cancel)
            await close_payments(self.api(), state.stripe_customer)
            # A page may have been paid after the first look, before it was closed; a schedule may have begun.
            await self._fetch_and_end_subscriptions(customer, cancel=cancel)
        _, state = await CustomerStates(self.store).read(customer)
        await remember_trial(self.store, customer, state.subscription)

    async def _fetch_and_end_subscriptions(self, customer: str, *, cancel: bool) -> None:
        await self.fetch(customer)
        await self._end_subscriptions(customer, cancel=cancel)

    async def _end_subscriptions(self, customer: str, *, cancel: bool) -> None:
        """End all active subscriptions of a customer; without ``cancel``, refuse the first."""
        for _ in range(_SUBSCRIPTIONS_MAX):
            known = await self._in_force(customer)
            if known is None:
                return
            if not cancel:
                raise CustomerError(
                    f"customer {customer!r} has subscription {known.id}, which is {known.status}, and Stripe"
                    " would go on charging for it; end it first, or delete with cancel=True (--cancel), which"
                    " ends it now"
                )
            with suppress(NoSubscriptionError):  # It has ended meanwhile.
                await self.end(customer)

    async def _end_planned(self, customer: str, api: StripeApi, linked: str, *, cancel: bool) -> None:
        """End all subscriptions to plans that begin later; without ``cancel``, refuse the first."""
        try:
            planned = await api.list(_SCHEDULES, {"customer": linked, "scheduled": True, "expand": _EXPAND})
        except StripeError as error:
            if not is_missing_customer(error):
                raise
            return  # Stripe has deleted it: nothing begins.
        for schedule in planned:
            phases = cast("list[Mapping[str, Any]]", schedule["phases"])
            if not any(plan_of(phase, self.store.catalog) for phase in phases):
                continue
            if not cancel:
                raise CustomerError(
                    f"customer {customer!r} has subscription schedule {schedule['id']}, which has not"
                    " started, and Stripe would charge for it then; cancel it first, or delete with"
                    " cancel=True (--cancel), which cancels it"
                )
            await api.post(f"{_SCHEDULES}/{schedule['id']}/cancel")

    async def store_override(
        self, customer: str, meters: Collection[str], change: Callable[[CustomerState], CustomerState]
    ) -> None:
        """Store an override; if it changes a price, only once Stripe has that price."""
        await self.override(customer, meters, change)

    async def _in_force(self, customer: str) -> SubscriptionState | None:
        _, state = await CustomerStates(self.store).read(customer)
        known = state.subscription
        return None if known is None or known.status_at(self.store.now_ms()) in ENDED else known

    def _sells_plans(self) -> bool:
        """Whether customers can subscribe to a plan; otherwise there are no subscriptions to fetch."""
        return any(map(is_sold, self.store.catalog.plans.values()))


async def remember_trial(store: Store, customer: str, subscription: SubscriptionState | None) -> None:
    """Keep a digest of the customer for 400 days if its subscription was ever paid for, or on trial.

    Raises:
        StoreError: the store does not answer.
    """
    # After a trial without the required card, it is shown as one that never began.
    if subscription is None or not (subscription.has_begun or subscription.trial_end_ms):
        return
    shard = store.keys.customer(customer).shard
    admin, now_ms = await store.admin(), await store.clock_ms(shard)
    key = store.keys.shard(shard, _PLACE)
    pipe = admin.client.pipeline(transaction=False)
    pipe.zadd(key, {_digest(customer): now_ms + _KEPT_MS})
    pipe.pexpire(key, _KEPT_MS)
    pipe.zrangebyscore(key, "-inf", now_ms, start=0, num=_PAGE)
    *_, over = await admin.ask(pipe.execute())
    if over:
        await admin.ask(admin.client.zrem(key, *over))


async def has_used_trial(store: Store, customer: str) -> bool:
    """Whether the customer had a subscription before it was forgotten.

    Raises:
        StoreError: the store does not answer.
    """
    admin, shard = await store.admin(), store.keys.customer(customer).shard
    key = store.keys.shard(shard, _PLACE)
    until_ms: float | None = await admin.ask(admin.client.zscore(key, _digest(customer)))
    return until_ms is not None and until_ms > await store.clock_ms(shard)


def _digest(customer: str) -> str:
    return blake2b(customer.encode(), digest_size=16).hexdigest()
