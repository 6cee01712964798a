"""Import the customers and subscriptions of a Stripe account."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from meterkit.customers.links import StripeLinker, claim_owner
from meterkit.customers.states import CustomerStates, read_states
from meterkit.decisions.customer_state import CustomerState, effective_plan, with_subscription
from meterkit.decisions.subscription import ENDED
from meterkit.errors import CustomerError
from meterkit.store.concurrent_calls import run_together
from meterkit.store.unreadable_data import skip_unreadable
from meterkit.subscriptions.billing_currency import may_be_of_top_ups
from meterkit.subscriptions.metered_prices import PriceFactsReader
from meterkit.subscriptions.monthly_amount import COUPONS
from meterkit.subscriptions.plan_prices import PriceBook
from meterkit.subscriptions.service.import_matching import IdSource, ListedCustomer, Misfit, match_customers
from meterkit.subscriptions.stripe_objects import id_in, part_of
from meterkit.subscriptions.subscription_updates import with_all_items, with_unlisted_parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.service.import_matching import MisfitKind, Newcomer

_T = TypeVar("_T")
Step = Literal["customers", "subscriptions", "links"]

_CAUSE: Final = "import"
_EXPAND: Final = ("data.latest_invoice", "data.schedule", f"data.{COUPONS}")
_CHANGES: Final = tuple(
    f"customer.subscription.{change}" for change in ("created", "updated", "deleted", "paused", "resumed")
)
_OVERLAP_S: Final = 900
_PAGE: Final = 500
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """Progress of an import.

    Attributes:
        step: the present one: read ``customers``, then ``subscriptions``, then make ``links``.
        done: number so far.
        total: number in all; None if it is unknown.
    """

    step: Step
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCustomer:
    """A customer that an import linked, or found linked.

    Attributes:
        stripe_customer: ``cus_…``.
        customer: the app's own id.
        plan: the active plan after the import; with ``dry_run`` the plan that would be.
        subscription: its live subscription at Stripe; None: it has none.
    """

    stripe_customer: str
    customer: str
    plan: str
    subscription: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The result of an import.

    Attributes:
        linked: customers that were linked, with their subscriptions; with ``dry_run`` those that would be.
        known: customers that were linked before.
        skipped: customers at Stripe without a live subscription, and without an id, with a shared one, or
            deleted here.
        misfits: customers that do not match, with the reason.
        customers: linked customers with their plans, sorted by Stripe customer.
        dry_run: whether nothing was changed.
    """

    linked: int
    known: int
    skipped: int
    misfits: tuple[Misfit, ...]
    customers: tuple[ImportedCustomer, ...]
    dry_run: bool


@dataclass(slots=True)
class _Tally:
    linked: int = 0
    known: int = 0
    skipped: int = 0
    misfits: list[Misfit] = field(default_factory=list[Misfit])
    imported: dict[str, str] = field(default_factory=dict[str, str])
    customers: list[ImportedCustomer] = field(default_factory=list[ImportedCustomer])


class StripeImporter:
    """Imports a Stripe account.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        fetch: fetches a customer's subscription from Stripe into the store.
    """

    def __init__(
        self, store: Store, api: Callable[[], StripeApi], *, fetch: Callable[[str], Awaitable[object]]
    ) -> None:
        self._store = store
        self._api = api
        self._fetch = fetch
        self._book = PriceBook(store, api)
        self._facts = PriceFactsReader(api)
        self._states = CustomerStates(store)
        self._links = StripeLinker(store)

    async def run(
        self,
        id_from: str,
        given: Mapping[str, str],
        *,
        dry_run: bool,
        progress: Callable[[ImportProgress], object],
    ) -> Imported:
        """Link all matching customers, store their subscriptions, and report the others.

        Reads two lists from Stripe, a hundred objects a call, and the prices of each plan; one by one only
        customers whose lists leave something open. Idempotent: repeat an interrupted run.
        """
        ids = IdSource.parse(id_from)
        accounts = await self._list_customers(ids, progress)
        unlisted = await self._find_unlisted(given, accounts, ids)
        accounts |= unlisted
        began_s = (self._api().server_time_s or self._store.now_ms() // 1000) - _OVERLAP_S
        tally = _Tally()
        tally.misfits += await self._list_subscriptions(accounts, unlisted, ids, progress)
        owners, unreadable = await self._read_owners(accounts)
        readable = [account for linked, account in accounts.items() if linked not in unreadable]
        found = match_customers(readable, self._store.catalog, given=given, owners=owners)
        tally.misfits += [*found.misfits, *_missing_misfits(given, accounts)]
        tally.misfits += [_unreadable_misfit(*one) for one in unreadable.items()]
        for number, batch in enumerate(_batches(found.newcomers)):
            await self._import_batch(batch, tally, given, dry_run=dry_run)
            done = min((number + 1) * _PAGE, len(found.newcomers))
            progress(ImportProgress(step="links", done=done, total=len(found.newcomers)))
        if tally.imported:
            await self._catch_up(began_s, tally.imported)
        return Imported(
            linked=tally.linked,
            known=tally.known,
            skipped=found.skipped + tally.skipped,
            misfits=tuple(sorted(tally.misfits, key=lambda one: (one.stripe_customer, one.kind))),
            customers=tuple(sorted(tally.customers, key=lambda one: one.stripe_customer)),
            dry_run=dry_run,
        )

    async def _list_customers(
        self, ids: IdSource, progress: Callable[[ImportProgress], object]
    ) -> dict[str, ListedCustomer]:
        accounts: dict[str, ListedCustomer] = {}
        async for page in self._api().pages("/v1/customers"):
            accounts |= {found["id"]: ListedCustomer.of(found, ids) for found in page}
            progress(ImportProgress(step="customers", done=len(accounts)))
        return accounts

    async def _find_unlisted(
        self, given: Iterable[str], listed: Mapping[str, ListedCustomer], ids: IdSource
    ) -> dict[str, ListedCustomer]:
        """Find named customers whom the list lacks: it leaves out those of test clocks."""
        unlisted: dict[str, ListedCustomer] = {}
        for linked in given:
            # Other texts are no ids, and could be another path.
            may_exist = linked not in listed and linked.isidentifier()
            found = await self._api().find(f"/v1/customers/{linked}") if may_exist else None
            if found is not None and not found.get("deleted"):
                unlisted[linked] = ListedCustomer.of(found, ids)
        return unlisted

    async def _list_subscriptions(
        self,
        accounts: Mapping[str, ListedCustomer],
        unlisted: Iterable[str],
        ids: IdSource,
        progress: Callable[[ImportProgress], object],
    ) -> list[Misfit]:
        """Add subscriptions to their accounts; return those of customers created meanwhile."""
        done, late = 0, list[Misfit]()
        prices = {currency: await self._book.all(currency) for currency in self._store.catalog.currencies}
        asked: dict[str, Any] = {"status": "all", "expand": _EXPAND}
        for query in (asked, *({**asked, "customer": linked} for linked in unlisted)):
            async for page in self._api().pages("/v1/subscriptions", query):
                for found in page:
                    account = accounts.get(id_in(found, "customer"))
                    if account is not None:
                        whole = await with_all_items(self._api(), found)
                        shown = await with_unlisted_parts(self._api(), whole)
                        facts = await self._facts.fetch(shown)
                        account.add(shown, self._store.catalog, ids, prices, facts)
                    elif found.get("status") not in {"canceled", "incomplete", "incomplete_expired"}:
                        late.append(_too_new_misfit(found))
                done += len(page)
                progress(ImportProgress(step="subscriptions", done=done))
        return late

    async def _read_owners(self, accounts: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Read the customers that Stripe customers are linked to, and those whose state cannot be read."""
        claims: dict[str, str] = {}
        admin, keys = await self._store.admin(), self._store.keys
        for batch in _batches(list(accounts)):
            found: list[bytes | None] = await admin.ask_all(("get", keys.link(linked)) for linked in batch)
            owners = (claim_owner((claim or b"").decode()) for claim in found)
            claims |= {linked: owner for linked, owner in zip(batch, owners, strict=True) if owner}
        states = await self._read_states(claims.values())
        unreadable = {linked: owner for linked, owner in claims.items() if owner not in states}
        # A claim without a link has no owner.
        return {
            linked: owner
            for linked, owner in claims.items()
            if linked not in unreadable and states[owner].stripe_customer == linked
        }, unreadable

    async def _read_states(self, customers: Iterable[str]) -> dict[str, CustomerState]:
        """Read the states of customers, without those that cannot be read."""
        states: dict[str, CustomerState] = {}
        admin, keys = await self._store.admin(), self._store.keys
        for batch in _batches(list(customers)):
            states |= await read_states(admin, keys, batch)
        return states

    async def _import_batch(
        self, batch: Sequence[Newcomer], tally: _Tally, given: Mapping[str, str], *, dry_run: bool
    ) -> None:
        states = await self._read_states(newcomer.customer for newcomer in batch)

        async def import_one(newcomer: Newcomer) -> None:
            async def skip(customer: str, _: Exception) -> None:
                tally.misfits.append(_unreadable_misfit(newcomer.stripe_customer, customer))

            async with skip_unreadable(newcomer.customer, skip):
                state = states[newcomer.customer]  # Without those that cannot be read.
                await self._import_one(newcomer, state, tally, given, dry_run=dry_run)

        imports = [partial(import_one, newcomer) for newcomer in batch]
        await run_together(imports, at_once=_AT_ONCE)

    async def _import_one(
        self,
        newcomer: Newcomer,
        state: CustomerState,
        tally: _Tally,
        given: Mapping[str, str],
        *,
        dry_run: bool,
    ) -> None:
        customer, linked = newcomer.customer, newcomer.stripe_customer
        is_linked = state.stripe_customer == linked
        if state.stripe_customer not in {None, linked}:
            message = (
                f"customer {customer!r:.80} is linked to Stripe customer {state.stripe_customer} already"
            )
            tally.misfits.append(_misfit_of(newcomer, "linked_elsewhere", message))
            return
        if not is_linked and linked not in given and await self._links.is_retired(linked):
            _skip_deleted(newcomer, tally)
            return
        if not dry_run:
            try:
                if not is_linked:
                    await self._links.make(customer, linked, cause=_CAUSE)
                    tally.imported[linked] = customer  # Its first subscription may be newer than the lists.
            except CustomerError as error:
                tally.misfits.append(_misfit_of(newcomer, "linked_elsewhere", str(error)))
                return
            if newcomer.subscription is not None and newcomer.subscription != state.subscription:
                await self._store_subscription(newcomer, state)
                tally.imported[linked] = customer
            elif newcomer.subscription is None and len(self._store.catalog.currencies) > 1:
                await self._store_currency(newcomer, state)
        tally.misfits += await self._check_payment_method(newcomer, state, dry_run=dry_run)
        tally.customers.append(self._imported_customer(newcomer, state))
        tally.linked += not is_linked
        tally.known += is_linked
        tally.misfits += [
            _misfit_of(newcomer, drift.kind, drift.message, subscription=drift.subscription, linked=True)
            for drift in newcomer.drift
        ]

    def _imported_customer(self, newcomer: Newcomer, before: CustomerState) -> ImportedCustomer:
        found = newcomer.subscription
        state = before if found is None else with_subscription(before, found)
        state = replace(state, currency=newcomer.currency)
        return ImportedCustomer(
            stripe_customer=newcomer.stripe_customer,
            customer=newcomer.customer,
            plan=effective_plan(state, self._store.catalog, self._store.now_ms()).plan.key,
            subscription=None if found is None else found.id,
        )

    async def _check_payment_method(
        self, newcomer: Newcomer, before: CustomerState, *, dry_run: bool
    ) -> list[Misfit]:
        """Report a subscription that is not active because its plan requires a payment method."""
        found, known = newcomer.subscription, before.subscription
        if found is None or found.status != "incomplete" or not found.awaits_payment_method:
            return []
        if known is not None and known.id == found.id and known.has_begun:
            return []  # It was active before, so it stays.
        if not dry_run:
            # The lists do not show payment methods that are saved and not the default.
            await self._fetch(newcomer.customer)
            _, state = await self._states.read(newcomer.customer)
            if state.subscription is None or not state.subscription.awaits_payment_method:
                return []
        message = (
            f"plan {found.plan!r} requires a payment method, and none is saved at Stripe: the plan is in"
            " force once one is; `payment_method: optional` in the plan asks for none"
        )
        return [_misfit_of(newcomer, "no_payment_method", message, linked=True)]

    async def _store_subscription(self, newcomer: Newcomer, state: CustomerState) -> None:
        """Store the subscription of a customer without a stored one; for others fetch it again."""
        if state.subscription is not None:
            await self._fetch(newcomer.customer)  # The listed one may be older than the stored one.
            return

        def change(now: CustomerState) -> CustomerState:
            if now.stripe_customer != newcomer.stripe_customer or now.subscription is not None:
                return now
            return replace(with_subscription(now, newcomer.subscription), currency=newcomer.currency)

        await self._states.change(newcomer.customer, change, cause=_CAUSE)

    async def _store_currency(self, newcomer: Newcomer, state: CustomerState) -> None:
        """Store the currency of a customer without a subscription; that of top-ups alone is not its own."""
        if state.currency == newcomer.currency:
            return
        if may_be_of_top_ups(newcomer.currency, self._store.catalog):
            await self._fetch(newcomer.customer)  # The list does not show what was bought.
            return

        def change(now: CustomerState) -> CustomerState:
            is_its = now.stripe_customer == newcomer.stripe_customer
            return replace(now, currency=newcomer.currency) if is_its else now

        await self._states.change(newcomer.customer, change, cause=_CAUSE)

    async def _catch_up(self, began_s: int, imported: Mapping[str, str]) -> None:
        """Fetch the subscriptions that have changed at Stripe since the lists were read."""
        changed: set[str] = set()
        asked: dict[str, Any] = {"types": _CHANGES, "created": {"gte": began_s}}
        async for page in self._api().pages("/v1/events", asked):
            changed |= {id_in(part_of(part_of(event, "data"), "object"), "customer") for event in page}
        for linked in sorted(changed & imported.keys()):
            await self._fetch(imported[linked])


def _batches(found: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (found[start : start + _PAGE] for start in range(0, len(found), _PAGE))


def _skip_deleted(newcomer: Newcomer, tally: _Tally) -> None:
    """Leave out a customer that was deleted here; report one that Stripe still charges."""
    if newcomer.subscription is None or newcomer.subscription.status in ENDED:
        tally.skipped += 1
        return
    message = "its customer was deleted here: end the subscription, or name the customer in a line of --csv"
    tally.misfits.append(_misfit_of(newcomer, "deleted", message))


def _too_new_misfit(found: Mapping[str, Any]) -> Misfit:
    return Misfit(
        stripe_customer=id_in(found, "customer"),
        customer=None,
        subscription=str(found["id"]),
        kind="too_new",
        message="it was created at Stripe while customers were listed; run the import again",
    )


def _unreadable_misfit(stripe_customer: str, customer: str) -> Misfit:
    return Misfit(
        stripe_customer=stripe_customer,
        customer=customer,
        subscription=None,
        kind="unreadable",
        message=f"the stored data of customer {customer!r:.80} cannot be read; the others are imported",
    )


def _missing_misfits(given: Mapping[str, str], accounts: Mapping[str, ListedCustomer]) -> list[Misfit]:
    return [
        Misfit(
            stripe_customer=linked,
            customer=customer,
            subscription=None,
            kind="no_such_customer",
            message="Stripe has no such customer",
        )
        for linked, customer in given.items()
        if linked not in accounts
    ]


def _misfit_of(
    newcomer: Newcomer,
    kind: MisfitKind,
    message: str,
    *,
    subscription: str | None = None,
    linked: bool = False,
) -> Misfit:
    own = None if newcomer.subscription is None else newcomer.subscription.id
    return Misfit(
        stripe_customer=newcomer.stripe_customer,
        customer=newcomer.customer,
        subscription=own if subscription is None else subscription,
        kind=kind,
        message=message,
        linked=linked,
    )
