"""Match the customers of a Stripe account to the app's own ids and plans, for an import. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.customers.drift_records import DriftKind
from meterkit.decisions.customer_state import INITIAL_STATE
from meterkit.errors import CustomerError, MeterkitError, StripeError
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY
from meterkit.store.input_checks import check_customer
from meterkit.subscriptions.drift_comparison import LIVE, compare_subscription, plan_in
from meterkit.subscriptions.item_changes import items_of
from meterkit.subscriptions.payment_method_gate import hold_back, needs_payment_method
from meterkit.subscriptions.stripe_objects import has_payment_method, part_of, text_in
from meterkit.subscriptions.subscription_reading import (
    choose_subscription,
    is_sold_here,
    keep_shown_line_terms,
    read_subscription,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.drift_records import Drift
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.subscriptions.item_changes import PlanPrices
    from meterkit.subscriptions.metered_prices import PriceFacts


MisfitKind = Literal[
    "no_id",
    "two_ids",
    "id_not_allowed",
    "two_customers",
    "linked_elsewhere",
    "deleted",
    "no_such_customer",
    "unreadable",
    "too_new",
    "no_payment_method",
    DriftKind,
]
_BLOCKING_KINDS: Final[frozenset[DriftKind]] = frozenset(
    {"two_plans", "unknown_price", "currency", "interval"}
)
"""Differences that leave it uncertain which plan a customer pays for."""
_EMAIL: Final = "email"
_METADATA: Final = "metadata."


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A customer at Stripe that does not match, with the reason.

    Attributes:
        stripe_customer: ``cus_…``.
        customer: the app's own id, if it is known.
        subscription: ``sub_…``, if it concerns one.
        kind: the reason.
        message: the reason in words.
        linked: whether the customer is linked nevertheless, or would be without ``dry_run``.
    """

    stripe_customer: str
    customer: str | None
    subscription: str | None
    kind: MisfitKind
    message: str
    linked: bool = False


@dataclass(frozen=True, slots=True)
class IdSource:
    """Source of the app's own ids at Stripe.

    Attributes:
        key: metadata key of a subscription or a customer; None: the customer's e-mail address.
    """

    key: str | None = CUSTOMER_KEY

    @classmethod
    def parse(cls, text: str) -> IdSource:
        """Parse ``metadata.KEY`` or ``email``.

        Raises:
            MeterkitError: it is neither.
        """
        key = text.removeprefix(_METADATA)
        if text != _EMAIL and (not key or key == text):
            raise MeterkitError(f"id_from: found {text!r:.80}; allowed are metadata.KEY and {_EMAIL}")
        return cls(None if text == _EMAIL else key)

    def of_customer(self, found: Mapping[str, Any]) -> str:
        """The id in a Stripe customer; empty if there is none."""
        return text_in(found, _EMAIL) if self.key is None else text_in(part_of(found, "metadata"), self.key)

    def of_subscription(self, found: Mapping[str, Any]) -> str:
        """The id in a subscription; empty if there is none."""
        return "" if self.key is None else text_in(part_of(found, "metadata"), self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ListedSubscription:
    """A subscription of a listed customer.

    Attributes:
        slim: the fields that decide which one is chosen.
        named: the app's own id that it names.
        state: as it is stored; None: it has no plan.
        drift: its differences from the plans file.
        fault: the error if it cannot be read.
    """

    slim: Mapping[str, Any]
    named: str = ""
    state: SubscriptionState | None = None
    drift: tuple[Drift, ...] = ()
    fault: str = ""

    @property
    def id(self) -> str:
        return str(self.slim["id"])

    @property
    def is_live(self) -> bool:
        return self.slim.get("status") in LIVE


@dataclass(slots=True, kw_only=True)
class ListedCustomer:
    """A customer in Stripe's list.

    Attributes:
        stripe_customer: ``cus_…``.
        named: the app's own id that it names; empty: none.
        has_payment_method: whether it has a default one.
        currency: that Stripe bills it in; empty: none yet.
        subscriptions: its subscriptions.
    """

    stripe_customer: str
    named: str
    has_payment_method: bool
    currency: str
    subscriptions: list[_ListedSubscription] = field(default_factory=list[_ListedSubscription])

    @classmethod
    def of(cls, found: Mapping[str, Any], ids: IdSource) -> ListedCustomer:
        """Read a customer as Stripe shows it."""
        return cls(
            stripe_customer=text_in(found, "id"),
            named=ids.of_customer(found),
            has_payment_method=has_payment_method(found),
            currency=text_in(found, "currency"),
        )

    def add(
        self,
        found: Mapping[str, Any],
        catalog: Catalog,
        ids: IdSource,
        prices: Mapping[str, Mapping[str, PlanPrices | None]],
        facts: PriceFacts,
    ) -> None:
        """Add one of its subscriptions, with ``latest_invoice`` and ``schedule`` expanded.

        Args:
            found: the subscription as Stripe shows it.
            catalog: the plans file.
            ids: source of the app's own ids.
            prices: at Stripe, by currency, of each sold plan.
            facts: about the prices of its items.
        """
        items = items_of(found)
        if found.get("status") in LIVE:
            self.currency = text_in(found, "currency") or self.currency
        slim = {name: found.get(name) for name in ("id", "status", "created", "ended_at")}
        slim["items"] = {"data": [{"price": {"id": item.price, "lookup_key": item.key}} for item in items]}
        is_live = found.get("status") in LIVE
        named, plan = ids.of_subscription(found) if is_live else "", plan_in(items, catalog)
        of_currency = prices.get(text_in(found, "currency")) or {}
        drift = (
            compare_subscription(found, catalog, of_currency.get(plan.key) if plan else None)
            if is_live
            else ()
        )
        if not is_sold_here(found, catalog):
            self.subscriptions.append(_ListedSubscription(slim=slim, named=named, drift=drift))
            return
        if needs_payment_method(found, catalog, None) and not self.has_payment_method:
            found = hold_back(found)
        try:
            state = read_subscription(found, catalog, has_payment_method=self.has_payment_method, facts=facts)
        except StripeError as error:
            self.subscriptions.append(_ListedSubscription(slim=slim, named=named, fault=str(error)))
            return
        kept = keep_shown_line_terms(state, INITIAL_STATE, found, catalog)
        self.subscriptions.append(_ListedSubscription(slim=slim, named=named, state=kept, drift=drift))

    @property
    def live(self) -> list[_ListedSubscription]:
        """Its live subscriptions."""
        return [one for one in self.subscriptions if one.is_live]

    def names(self) -> set[str]:
        """All ids in it and its live subscriptions."""
        return {self.named, *(one.named for one in self.live)} - {""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A matched customer.

    Attributes:
        stripe_customer: ``cus_…``.
        customer: the app's own id.
        currency: that Stripe bills it in; empty: none yet.
        subscription: the chosen one, as it is stored; None: none has a plan.
        drift: its differences from the plans file.
    """

    stripe_customer: str
    customer: str
    currency: str
    subscription: SubscriptionState | None
    drift: tuple[Drift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """Matched customers, misfits, and the number of ignored customers.

    Attributes:
        skipped: customers without a live subscription, and without an id or with a shared one.
    """

    newcomers: Sequence[Newcomer]
    misfits: Sequence[Misfit]
    skipped: int


def match_customers(
    accounts: Iterable[ListedCustomer],
    catalog: Catalog,
    *,
    given: Mapping[str, str],
    owners: Mapping[str, str],
) -> MatchResult:
    """Match Stripe's customers to the app's ids.

    Args:
        accounts: all customers at Stripe.
        catalog: the plans file.
        given: the app's own ids by Stripe customer; they override those at Stripe.
        owners: the customers that Stripe customers are linked to.
    """
    misfits, skipped = list[Misfit](), 0
    by_id: defaultdict[str, list[ListedCustomer]] = defaultdict(list)
    for account in accounts:
        linked = account.stripe_customer
        names = {given[linked]} if linked in given else account.names()
        if not names and linked in owners:
            names = {owners[linked]}
        fault = _find_id_fault(account, names, owners.get(linked))
        if fault is not None:
            misfits.append(fault)
        elif names:
            by_id[names.pop()].append(account)
        else:
            skipped += 1
    newcomers: list[Newcomer] = []
    for customer, same in by_id.items():
        chosen, others = _choose_account(same, owners)
        matched = [] if chosen is None else [_match_account(chosen, customer, catalog)]
        newcomers += [one for one in matched if isinstance(one, Newcomer)]
        misfits += [one for one in matched if isinstance(one, Misfit)]
        misfits += [_conflict_of(one, customer, chosen, same) for one in others]
        skipped += len(same) - len(matched) - len(others)
    return MatchResult(newcomers=newcomers, misfits=misfits, skipped=skipped)


def _find_id_fault(account: ListedCustomer, names: set[str], owner: str | None) -> Misfit | None:
    """Find a problem with the id of an account."""
    shown = ", ".join(sorted(f"{name!r:.80}" for name in names))
    if not names:
        if not account.live:
            return None
        return _make_misfit(
            account, None, "no_id", "it has a subscription, but nothing names its customer here"
        )
    if len(names) > 1:
        return _make_misfit(
            account, None, "two_ids", f"it and its subscriptions name several customers: {shown}"
        )
    (name,) = names
    try:
        check_customer(name)
    except CustomerError as error:
        return _make_misfit(account, None, "id_not_allowed", str(error))
    if owner not in {None, name}:
        return _make_misfit(
            account, name, "linked_elsewhere", f"it is linked to customer {owner!r:.80} already"
        )
    return None


def _choose_account(
    same: Sequence[ListedCustomer], owners: Mapping[str, str]
) -> tuple[ListedCustomer | None, Sequence[ListedCustomer]]:
    """Choose among Stripe customers of one id; return the chosen one, and those an operator must decide.

    The linked one is chosen, otherwise the only one with a live subscription. Of several without any, none
    is: none of them pays.
    """
    linked = [account for account in same if account.stripe_customer in owners]
    live = [account for account in same if account.live]
    certain = linked or live or (same if len(same) == 1 else [])
    if len(certain) != 1:
        return None, certain
    return certain[0], [account for account in live if account is not certain[0]]


def _conflict_of(
    account: ListedCustomer, customer: str, chosen: ListedCustomer | None, same: Iterable[ListedCustomer]
) -> Misfit:
    if chosen is not None:
        message = f"customer {customer!r:.80} is linked to Stripe customer {chosen.stripe_customer} already"
        return _make_misfit(account, customer, "linked_elsewhere", message)
    others = sorted(one.stripe_customer for one in same if one is not account)
    message = f"customer {customer!r:.80} has other Stripe customers: {', '.join(others)}"
    return _make_misfit(account, customer, "two_customers", message)


def _match_account(account: ListedCustomer, customer: str, catalog: Catalog) -> Newcomer | Misfit:
    live = account.live
    faulty = next((one for one in account.subscriptions if one.fault), None)
    if faulty is not None:
        return _make_misfit(account, customer, "unreadable", faulty.fault, faulty.id)
    sold = [one for one in live if one.state is not None]
    if len(sold) > 1:
        names = ", ".join(sorted(one.id for one in sold))
        message = f"it has several live subscriptions of the plans: {names}; each would bill all usage"
        return _make_misfit(account, customer, "two_subscriptions", message)
    for drift in (drift for one in sold or live for drift in one.drift):
        if drift.kind in _BLOCKING_KINDS:
            return _make_misfit(account, customer, drift.kind, drift.message, drift.subscription)
    slim = choose_subscription([one.slim for one in account.subscriptions], catalog)
    chosen = next((one for one in account.subscriptions if slim is not None and one.id == slim["id"]), None)
    return Newcomer(
        stripe_customer=account.stripe_customer,
        customer=customer,
        currency=account.currency,
        subscription=None if chosen is None else chosen.state,
        drift=() if chosen is None else chosen.drift,
    )


def _make_misfit(
    account: ListedCustomer,
    customer: str | None,
    kind: MisfitKind,
    message: str,
    subscription: str | None = None,
) -> Misfit:
    live = account.live
    only = live[0].id if len(live) == 1 else None
    return Misfit(
        stripe_customer=account.stripe_customer,
        customer=customer,
        subscription=subscription or only,
        kind=kind,
        message=message,
    )
