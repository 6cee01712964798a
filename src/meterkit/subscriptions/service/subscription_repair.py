"""Compare subscriptions at Stripe with the plans file, and repair one of them."""

from __future__ import annotations

from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.drift_records import Drift, DriftRecords
from meterkit.customers.history import read_history, read_states_and_histories
from meterkit.customers.states import CustomerStates, list_states
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.customer_state import CustomerState, entitlements_on
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import ended_labels
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.transitions import TERM_TEXTS, TermsInForce
from meterkit.errors import NoSubscriptionError, StripeError, StripeUnavailableError, SubscriptionError
from meterkit.outbox.meters_or_lines import must_move, with_new_models
from meterkit.store.unreadable_data import read_each
from meterkit.stripe.request import UNKNOWN_CUSTOMER
from meterkit.subscriptions.drift_comparison import (
    LIVE,
    allowed_addons_in,
    catalog_of_customer,
    catalog_of_subscription,
    compare_customer,
    compare_usage,
    paid_seats_in,
    plan_in,
)
from meterkit.subscriptions.invoice_payments import refuse_unpaid_credit
from meterkit.subscriptions.item_changes import (
    CREATE_PRORATIONS,
    items_of,
    prices_in,
    trial_settings_change,
    updates,
)
from meterkit.subscriptions.metered_prices import NO_FACTS, PriceFactsReader
from meterkit.subscriptions.override_prices import compared_prices, customer_prices
from meterkit.subscriptions.plan_prices import PriceBook, prices_of
from meterkit.subscriptions.service.change_costs import InvoicePreviewer
from meterkit.subscriptions.service.change_lease import hold_change_lease
from meterkit.subscriptions.service.terms_writer import TermsWriter
from meterkit.subscriptions.stripe_objects import id_in, is_missing_customer
from meterkit.subscriptions.subscription_reading import choose_subscription, read_subscription
from meterkit.subscriptions.subscription_updates import LiveSubscription, list_subscriptions, with_all_items

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from meterkit.catalog import Catalog, Plan
    from meterkit.customers.drift_records import DriftKind
    from meterkit.customers.history import HistoryEntry
    from meterkit.customers.states import StoredState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.decisions.transitions import Kind
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem, PlanPrices
    from meterkit.subscriptions.metered_prices import PriceFacts
    from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger

_PAGE: Final = 500
_EXPAND: Final = ("data.latest_invoice",)


class DriftChecker:
    """Compares the subscriptions of all linked customers with the plans file.

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

    async def run(self) -> dict[str, tuple[Drift, ...]]:
        """Compare one list of all subscriptions with the prices of each plan; return the drift by customer.

        A subscription whose stored state is outdated is fetched again. A state that contradicts its ledger is
        drift: something other than meterkit has changed one of them.
        """
        customers = await self._read_linked()
        faults = await self._find_ledger_faults(customers)
        found: dict[str, list[dict[str, Any]]] = {linked: [] for linked in customers}
        async for page in self._api().pages("/v1/subscriptions", {"status": "all", "expand": _EXPAND}):
            for one in page:
                linked = id_in(one, "customer")
                if linked in found:
                    found[linked].append(await with_all_items(self._api(), one))
                    found[linked] = self._without_former(found[linked], customers[linked][1].subscription)
        prices = await self._book.all()
        drifts: dict[str, tuple[Drift, ...]] = {}
        for linked, (customer, state) in customers.items():
            try:
                drift = await self._check_one(customer, state, found[linked], prices)
            except StripeError as error:
                if isinstance(error, StripeUnavailableError) or error.status not in {None, *UNKNOWN_CUSTOMER}:
                    raise
                subscription = "" if state.subscription is None else state.subscription.id
                message = f"Stripe refuses to show it: {error}" if error.status else str(error)
                drift = (Drift(subscription=subscription, kind="not_compared", message=message),)
            if drift := (*drift, *faults.get(customer, ())):
                drifts[customer] = drift
        await DriftRecords(self._store).replace(drifts)
        return dict(sorted(drifts.items()))

    async def _check_one(
        self,
        customer: str,
        state: CustomerState,
        found: list[dict[str, Any]],
        prices: Mapping[str, PlanPrices | None],
    ) -> tuple[Drift, ...]:
        """Compare the listed subscriptions of a customer; fetch the stored one again if it is outdated."""
        known = state.subscription
        if known is not None and not found and state.stripe_customer is not None:
            found = await self._list_subscriptions(state.stripe_customer)
        chosen = choose_subscription(found, self._store.catalog, None if known is None else known.id)
        if self._is_outdated(known, chosen):
            await self._fetch(customer)
        facts = NO_FACTS if chosen is None else await self._facts.fetch(chosen)
        _, now = await CustomerStates(self._store).read(customer)
        return await self._compare_one(found, chosen, prices, now, facts)

    async def _list_subscriptions(self, linked: str) -> list[dict[str, Any]]:
        """List a Stripe customer's subscriptions: the list of all leaves out customers of test clocks."""
        try:
            return await list_subscriptions(self._api(), linked, _EXPAND)
        except StripeError as error:
            if not is_missing_customer(error):
                raise
            return []

    async def _read_linked(self) -> dict[str, tuple[str, CustomerState]]:
        """Read each linked Stripe customer: its customer and the stored state."""
        admin, keys = await self._store.admin(), self._store.keys
        linked: dict[str, tuple[str, CustomerState]] = {}
        async with aclosing(list_states(admin, keys, _PAGE)) as states:
            async for customer, state in states:
                if state.stripe_customer is not None:
                    linked[state.stripe_customer] = customer, state
        return linked

    async def _find_ledger_faults(
        self, customers: Mapping[str, tuple[str, CustomerState]]
    ) -> dict[str, tuple[Drift, ...]]:
        """Contradictions between states and ledgers, by customer."""
        found: dict[str, tuple[Drift, ...]] = {}
        states = CustomerStates(self._store)
        subscriptions = {
            customer: "" if state.subscription is None else state.subscription.id
            for customer, state in customers.values()
        }

        def drifts_of(customer: str, faults: Sequence[str]) -> tuple[Drift, ...]:
            subscription = subscriptions[customer]
            return tuple(Drift(subscription=subscription, kind="ledger", message=words) for words in faults)

        async def read(customers: Sequence[str]) -> list[tuple[str, StoredState, list[HistoryEntry]]]:
            kept = (await read_states_and_histories(self._store, customers)).values()
            ledgers = [ledger for _, ledger in kept]
            return list(zip(customers, await states.find_many(customers), ledgers, strict=True))

        async def name(customer: str, error: Exception) -> None:
            found[customer] = drifts_of(customer, [f"its ledger cannot be read: {error!r:.200}"])

        names = list(subscriptions)
        for start in range(0, len(names), _PAGE):
            for customer, one, ledger in await read_each(names[start : start + _PAGE], read, name):
                if not ledger_faults(ledger, one, self._store.catalog):
                    continue
                entries = await read_history(self._store, customer)
                if await states.find(customer) == one:  # Otherwise it has changed between the two reads.
                    faults = ledger_faults(entries, one, self._store.catalog)
                    found[customer] = drifts_of(customer, faults)
        return found

    def _without_former(
        self, found: Sequence[dict[str, Any]], known: SubscriptionState | None
    ) -> list[dict[str, Any]]:
        """Drop all ended subscriptions of a customer but the one that can be chosen: there may be many."""
        ended = [one for one in found if one.get("status") in ENDED]
        last = choose_subscription(ended, self._store.catalog, None if known is None else known.id)
        return [one for one in found if one.get("status") not in ENDED or one is last]

    def _is_outdated(self, known: SubscriptionState | None, chosen: Mapping[str, Any] | None) -> bool:
        """Whether the stored subscription differs from the one at Stripe."""
        if chosen is None:
            return known is not None
        try:
            read = read_subscription(chosen, self._store.catalog)
        except StripeError:
            return True
        if known is None or (read.metered and not known.prices):
            return True
        now = (read.id, read.status, read.plan, read.seats, read.addons, read.metered)
        then = (known.id, known.status, known.plan, known.seats, known.addons, known.metered)
        return then != now

    async def _compare_one(
        self,
        found: Sequence[Mapping[str, Any]],
        chosen: Mapping[str, Any] | None,
        prices: Mapping[str, PlanPrices | None],
        state: CustomerState,
        facts: PriceFacts,
    ) -> tuple[Drift, ...]:
        by_file, now_ms = self._store.catalog, self._store.now_ms()
        catalog = catalog_of_customer(state, by_file, now_ms)
        shown = chosen or next((one for one in found if one.get("status") in LIVE), None)
        plan = None if shown is None else plan_in(items_of(shown), catalog)
        of_plan = prices.get(plan.key) if plan else None
        own = catalog if shown is None else catalog_of_subscription(shown, catalog)
        if plan is not None and own is not by_file:
            of_plan = await self._book.of(plan, catalog=own)
        if shown is not None and of_plan is not None:
            given = overrides_at(state.overrides, now_ms).meters
            of_plan = compared_prices(of_plan, own, given, prices_in(shown))
        drifts = compare_customer(found, chosen, catalog, of_plan, facts)
        return (*drifts, *compare_usage(chosen, state, by_file))


_PAID: Final = frozenset({"active", "trialing"})
_USAGE: Final = "usage"
_NEW_MODELS: Final = "new_models"
_OF_USAGE: Final = frozenset({_USAGE, _NEW_MODELS})
_UNDECIDED: Final[Mapping[DriftKind, str]] = {
    "two_subscriptions": "end one at Stripe",
    "unknown_price": "put the plan back that sold it, give it to a plan as its `stripe_price`, or move the"
    " subscription to a price of the file at Stripe",
    "currency": "add the currency to the plans file: Stripe changes no subscription's currency",
    "interval": "correct the plans file, or move the subscription to a price of the file at Stripe",
}
"""Differences that only an operator can end, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The outcome of a repair.

    Attributes:
        customer: whose subscription.
        subscription: ``sub_…``.
        mended: the repaired differences; with ``dry_run`` those that would be.
        left: the remaining differences: an operator must decide.
        dry_run: whether nothing was changed.
    """

    customer: str
    subscription: str
    mended: tuple[Drift, ...]
    left: tuple[Drift, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """A customer's subscription compared with the plans file."""

    subscription: str
    status: str
    prices: PlanPrices | None
    drifts: tuple[Drift, ...]


@dataclass(eq=False)
class SubscriptionRepairer:
    """Repairs subscriptions.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        fetch: fetches a customer's subscription from Stripe into the store.
        cut: delivers a customer's usage before prices change, and holds usage while the block runs; see
            :class:`meterkit.delivery.usage_cutter.UsageCutter`.
        mover: moves usage between metered prices and invoice lines.
    """

    store: Store
    api: Callable[[], StripeApi]
    fetch: Callable[[str], Awaitable[object]]
    cut: Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[None]]
    mover: UsageMover

    async def run(self, customer: str, *, dry_run: bool) -> Repair:
        """Repair a subscription; :meth:`meterkit.Subscriptions.repair` lists the errors."""
        if dry_run:
            before = await self._compare_customer(customer)
            _refuse_undecided(customer, before)
            return _repair_result(customer, before, before.drifts, dry_run=True)
        async with hold_change_lease(self.store, customer):
            await self.fetch(customer)
            before = await self._compare_customer(customer)
            _refuse_undecided(customer, before)
            if any(drift.can_repair and drift.kind not in _OF_USAGE for drift in before.drifts):
                await self._change_items(customer, before)
                await self.fetch(customer)
            if any(drift.kind == _NEW_MODELS for drift in before.drifts):
                add_models = partial(with_new_models, catalog=self.store.catalog)
                await CustomerStates(self.store).change(customer, add_models)
                await self.fetch(customer)
            if any(drift.kind == _USAGE for drift in before.drifts):
                await self.mover.move_leased(customer)
        after = await self._compare_customer(customer)
        await DriftRecords(self.store).put(customer, after.drifts)
        return _repair_result(customer, before, after.drifts, dry_run=False)

    async def _change_items(self, customer: str, before: _Comparison) -> None:
        live = await LiveSubscription.fetch(self.api(), before.subscription)
        if live is None or before.prices is None:
            raise NoSubscriptionError(customer)
        _, state = await CustomerStates(self.store).read(customer)
        if live.schedule is not None or live.found.get("pending_update"):
            raise SubscriptionError(
                f"the subscription {live.id} of customer {customer!r} has a scheduled change: repair it"
                f" after that, or cancel the change with `meterkit subscriptions change {customer}"
                f" {before.prices.plan}`"
            )
        catalog = catalog_of_customer(state, self.store.catalog, self.store.now_ms())
        catalog = catalog_of_subscription(live.found, catalog)
        items = {item.id: item for item in live.items}
        plan, given = (
            catalog.plans[before.prices.plan],
            overrides_at(state.overrides, self.store.now_ms()).meters,
        )
        prices = await customer_prices(self.api(), catalog, plan, given, live.prices)
        paid, bought = (
            paid_seats_in(live.items, plan, catalog),
            allowed_addons_in(live.items, plan, catalog),
        )
        changes = updates(live.items, catalog, prices, paid, bought)
        metered = [change for change in changes if (item := items.get(str(change.get("id")))) and item.meter]
        twice = [change for change in metered if _is_twice(change, items, prices)]
        rest = [change for change in changes if change not in twice]
        await self._refuse_unpaid_credit(live, [one for one in rest if "id" in one and one not in metered])
        await live.make_flexible()
        # Usage until now is billed by the present items.
        ended = await self._ended_labels(customer, plan)
        async with self.cut(customer, ended) if metered or ended else nullcontext():
            if twice:  # The remaining item bills the whole period.
                await live.update({"items": twice, "proration_behavior": "none"})
            if rest:
                await live.update({"items": rest, "proration_behavior": CREATE_PRORATIONS})
            if metered or ended:  # Usage held by the cut has the new prices.
                await self.fetch(customer)
        if settings := trial_settings_change(live.found, plan):
            await live.update(settings)

    async def _refuse_unpaid_credit(
        self, live: LiveSubscription, changes: Sequence[Mapping[str, Parameter]]
    ) -> None:
        """Raise SubscriptionError if changes of present items without usage credit what is not paid."""
        if changes:
            cost = await InvoicePreviewer(live).preview(
                changes, None, period_end_s=0, is_invoiced=False, ends_trial=False
            )
            await refuse_unpaid_credit(self.api(), live.found, cost.charge_cents - cost.credit_cents)

    async def _ended_labels(self, customer: str, plan: Plan) -> dict[str, str]:
        """Labels of the prices that end when a subscription gets those of the plans file."""
        _, state = await CustomerStates(self.store).read(customer)
        catalog, now_ms = self.store.catalog, self.store.now_ms()
        given = entitlements_on(plan, state, catalog, now_ms)
        then = entitlements_on(plan, state, catalog, now_ms, own_prices=False)
        return ended_labels(given, then, catalog)

    async def _compare_customer(self, customer: str) -> _Comparison:
        _, state = await CustomerStates(self.store).read(customer)
        if state.stripe_customer is None:
            raise NoSubscriptionError(customer)
        found = await list_subscriptions(self.api(), state.stripe_customer, _EXPAND)
        catalog = catalog_of_customer(state, self.store.catalog, self.store.now_ms())
        chosen = choose_subscription(
            found, catalog, None if state.subscription is None else state.subscription.id
        )
        shown = chosen or next((one for one in found if one.get("status") in LIVE), None)
        if shown is None:
            raise NoSubscriptionError(customer)
        plan, own = plan_in(items_of(shown), catalog), catalog_of_subscription(shown, catalog)
        given = overrides_at(state.overrides, self.store.now_ms()).meters
        prices = None if plan is None else await prices_of(self.api(), own, plan)
        if prices is not None:
            prices = compared_prices(prices, own, given, prices_in(shown))
        facts = await PriceFactsReader(self.api).fetch(shown)
        drifts = compare_customer(found, chosen, catalog, prices, facts)
        return _Comparison(
            subscription=str(shown["id"]),
            status=str(shown["status"]),
            prices=prices,
            drifts=(*drifts, *compare_usage(chosen, state, self.store.catalog)),
        )


def _is_twice(change: Mapping[str, Any], items: Mapping[str, LiveItem], prices: PlanPrices) -> bool:
    """Whether a change removes an item whose usage another item also bills."""
    return change.get("deleted") is True and items[change["id"]].meter in prices.metered.values()


def _refuse_undecided(customer: str, found: _Comparison) -> None:
    """Raise SubscriptionError if an operator must decide, or the customer owes."""
    for drift in found.drifts:
        if drift.kind in _UNDECIDED:
            raise SubscriptionError(
                f"an operator must decide about the subscription {drift.subscription} of customer"
                f" {customer!r}: {drift.message}: {_UNDECIDED[drift.kind]}"
            )
    if found.status not in _PAID and any(drift.can_repair for drift in found.drifts):
        raise SubscriptionError(
            f"the subscription {found.subscription} of customer {customer!r} is {found.status}:"
            " it must be paid for first"
        )


def _repair_result(customer: str, before: _Comparison, now: Sequence[Drift], *, dry_run: bool) -> Repair:
    left: Sequence[Drift] = [drift for drift in now if not (dry_run and drift.can_repair)]
    return Repair(
        customer=customer,
        subscription=before.subscription,
        mended=tuple(drift for drift in before.drifts if drift not in left),
        left=tuple(left),
        dry_run=dry_run,
    )


_WATCHED: Final[tuple[Kind, ...]] = ("plan", "status", "seats")


def ledger_faults(entries: Sequence[HistoryEntry], found: StoredState, catalog: Catalog) -> list[str]:
    """Contradictions within a customer's ledger, and between ledger and state; empty: none.

    Each entry begins with the value at which the one before it ends. The state has the value of the last one.

    Args:
        entries: of the ledger, oldest first.
        found: the stored customer.
        catalog: the plans file.
    """
    if found.force is None:
        return []
    faults: list[str] = []
    for kind in _WATCHED:
        words = TERM_TEXTS[kind](found.force)
        own = [entry for entry in entries if entry.kind == kind]
        for last, entry in pairwise(own):
            if (last.after or "") != (entry.before or ""):
                faults.append(
                    f"its ledger has {kind} {last.after!r} since {last.at:%Y-%m-%d %H:%M}, and the entry of"
                    f" {entry.at:%Y-%m-%d %H:%M} begins with {entry.before!r}"
                )
        if own and (own[-1].after or "") != words:
            faults.append(f"its ledger ends with {kind} {own[-1].after!r}, and {words!r} is active")
    return faults + _state_faults(found, found.force, catalog)


def _state_faults(found: StoredState, force: TermsInForce, catalog: Catalog) -> list[str]:
    """Status, seats or a plan of the state without a ledger entry.

    A plan that changes with the plans file, such as the default plan, gets its entry at the next sync.
    """
    state, now = found.state, TermsInForce.of(found.state, catalog, force.at_ms, force)
    named = {state.plan, None if state.subscription is None else state.subscription.plan}
    is_by_file = now.plan not in named or catalog.find_plan(force.plan) is None or now.access != force.access
    return [
        f"its state has {kind} {TERM_TEXTS[kind](now)!r}, and its ledger {TERM_TEXTS[kind](force)!r}"
        for kind in _WATCHED
        if TERM_TEXTS[kind](now) != TERM_TEXTS[kind](force) and not (kind == "plan" and is_by_file)
    ]


@dataclass(eq=False)
class UsageMover:
    """Moves usage to the way that the plans file has, by a schedule at Stripe.

    The period that is open keeps its way: its metered items bill it, or its invoice lines.

    Args:
        store: of the kit.
        changer: fetches subscriptions.
    """

    store: Store
    changer: SubscriptionChanger

    async def move(self, customer: str, *, dry_run: bool) -> datetime | None:
        """Move a customer's usage at the end of its period. Idempotent.

        Returns:
            When the move takes effect; None: the usage is moved already, or the move was scheduled before.
        """
        if dry_run:
            _, state = await CustomerStates(self.store).read(customer)
            known = state.subscription
            if known is None or known.status in ENDED:
                raise NoSubscriptionError(customer)
            return from_ms(known.end_ms) if must_move(state, self.store.catalog) else None
        async with hold_change_lease(self.store, customer):
            return await self.move_leased(customer)

    async def move_leased(self, customer: str) -> datetime | None:
        """Move a customer's usage while the caller holds the lease of its changes."""
        moved_at = await self._schedule_move(customer)
        await self.changer.fetch(customer)
        return moved_at

    async def _schedule_move(self, customer: str) -> datetime | None:
        live, known, _ = await self.changer.fetch_payable(customer)
        _, state = await CustomerStates(self.store).read(customer)
        if not must_move(state, self.store.catalog):
            return None
        writer = TermsWriter(self.store, self.changer.api, state)
        by_lines = self.store.catalog.billing.is_by_lines
        await writer.move_usage(live, known, by_lines=by_lines)
        return from_ms(known.end_ms)
