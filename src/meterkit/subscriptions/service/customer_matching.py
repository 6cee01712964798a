"""The customers that an account at Stripe has already: those that fit, and those that do not. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.customers.drifts import DriftKind
from meterkit.errors import CustomerError, MeterkitError
from meterkit.store.input_checks import check_customer
from meterkit.subscriptions.drift import LIVE, compare_subscription, plan_in
from meterkit.subscriptions.item_changes import items_of
from meterkit.subscriptions.payment_gate import held_back, needs_payment_method
from meterkit.subscriptions.stripe_objects import CUSTOMER, has_payment_method, part_of, text_in
from meterkit.subscriptions.subscription_reading import (
    in_force,
    is_sold_here,
    read_subscription,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.drifts import Drift
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.subscriptions.item_changes import PlanPrices
    from meterkit.subscriptions.price_reading import PriceFacts


MisfitKind = Literal[
    "no_id",
    "two_ids",
    "id_not_allowed",
    "two_customers",
    "linked_elsewhere",
    "no_such_customer",
    "unreadable",
    "too_new",
    "no_payment_method",
    DriftKind,
]
_KEEPS_OUT: Final[frozenset[DriftKind]] = frozenset({"two_plans", "unknown_price", "currency", "interval"})
"""Differences with which it is not certain which plan a customer pays for."""
_EMAIL: Final = "email"
_METADATA: Final = "metadata."


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A customer at Stripe that does not fit, and why.

    Attributes:
        stripe_customer: ``cus_…``.
        customer: the app's own id, as far as it is known.
        subscription: ``sub_…``, where it is about one.
        kind: why it does not fit.
        message: the same in words.
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
    """Where Stripe has the app's own ids.

    Attributes:
        key: of the metadata of a subscription or a customer; None: the customer's e-mail address.
    """

    key: str | None = CUSTOMER

    @classmethod
    def parse(cls, text: str) -> IdSource:
        """``metadata.KEY`` or ``email``.

        Raises:
            MeterkitError: it is neither.
        """
        key = text.removeprefix(_METADATA)
        if text != _EMAIL and (not key or key == text):
            raise MeterkitError(f"id_from: found {text!r:.80}; allowed are metadata.KEY and {_EMAIL}")
        return cls(None if text == _EMAIL else key)

    def of_customer(self, found: Mapping[str, Any]) -> str:
        """The id that a Stripe customer names; empty: none."""
        return text_in(found, _EMAIL) if self.key is None else text_in(part_of(found, "metadata"), self.key)

    def of_subscription(self, found: Mapping[str, Any]) -> str:
        """The id that a subscription names; empty: none."""
        return "" if self.key is None else text_in(part_of(found, "metadata"), self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ListedSubscription:
    """The stored part of a subscription.

    Attributes:
        slim: as much of it as decides which one counts.
        named: the app's own id that it names.
        state: as it is stored; None: it is not of a plan.
        drift: how it differs from the plans file.
        fault: why it cannot be read.
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
    """A customer at Stripe.

    Attributes:
        stripe_customer: ``cus_…``.
        named: the app's own id that it names; empty: none.
        has_payment_method: whether it has a default one.
        seen: its subscriptions.
    """

    stripe_customer: str
    named: str
    has_payment_method: bool
    seen: list[_ListedSubscription] = field(default_factory=list[_ListedSubscription])

    @classmethod
    def of(cls, found: Mapping[str, Any], ids: IdSource) -> ListedCustomer:
        """A customer as Stripe shows it."""
        return cls(
            stripe_customer=text_in(found, "id"),
            named=ids.of_customer(found),
            has_payment_method=has_payment_method(found),
        )

    def add(
        self,
        found: Mapping[str, Any],
        catalog: Catalog,
        ids: IdSource,
        prices: Mapping[str, PlanPrices | None],
        facts: PriceFacts,
    ) -> None:
        """Take note of one of its subscriptions, with ``latest_invoice`` and ``schedule`` expanded.

        Args:
            found: the subscription as Stripe shows it.
            catalog: what is sold.
            ids: where the app's own ids are.
            prices: at Stripe, of each plan that is sold.
            facts: what Stripe says of the prices of its metered items.
        """
        items = items_of(found)
        slim = {name: found.get(name) for name in ("id", "status", "created")}
        slim["items"] = {"data": [{"price": {"id": item.price, "lookup_key": item.key}} for item in items]}
        is_live = found.get("status") in LIVE
        named, plan = ids.of_subscription(found) if is_live else "", plan_in(items, catalog)
        drift = (
            compare_subscription(found, catalog, prices.get(plan.key) if plan else None) if is_live else ()
        )
        if not is_sold_here(found, catalog):
            self.seen.append(_ListedSubscription(slim=slim, named=named, drift=drift))
            return
        if needs_payment_method(found, catalog, None) and not self.has_payment_method:
            found = held_back(found)
        try:
            state = read_subscription(found, catalog, has_payment_method=self.has_payment_method, facts=facts)
        except ValueError as error:
            self.seen.append(_ListedSubscription(slim=slim, named=named, fault=str(error)))
            return
        self.seen.append(_ListedSubscription(slim=slim, named=named, state=state, drift=drift))

    @property
    def live(self) -> list[_ListedSubscription]:
        """Its live subscriptions."""
        return [seen for seen in self.seen if seen.is_live]

    def names(self) -> set[str]:
        """The ids that it and its live subscriptions name."""
        return {self.named, *(seen.named for seen in self.live)} - {""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A customer who fits.

    Attributes:
        stripe_customer: ``cus_…``.
        customer: the app's own id.
        subscription: what is stored of the one that counts; None: there is none of a plan.
        drift: what of it differs from the plans file.
    """

    stripe_customer: str
    customer: str
    subscription: SubscriptionState | None
    drift: tuple[Drift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """Customers that fit, those that do not, and how many are ignored.

    Attributes:
        skipped: have no live subscription, and no id or one that another Stripe customer has too.
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
    """Tell those who fit from those who do not.

    Args:
        accounts: all customers at Stripe.
        catalog: what is sold.
        given: the app's own ids by Stripe customer, as a file has them: they win over what Stripe has.
        owners: the customers that Stripe customers are linked to already.
    """
    misfits, skipped = list[Misfit](), 0
    by_id: defaultdict[str, list[ListedCustomer]] = defaultdict(list)
    for account in accounts:
        linked = account.stripe_customer
        names = {given[linked]} if linked in given else account.names()
        if not names and linked in owners:
            names = {owners[linked]}
        fault = _fault(account, names, owners.get(linked))
        if fault is not None:
            misfits.append(fault)
        elif names:
            by_id[names.pop()].append(account)
        else:
            skipped += 1
    newcomers: list[Newcomer] = []
    for customer, same in by_id.items():
        chosen, others = _chosen(same, owners)
        judged = [] if chosen is None else [_judged(chosen, customer, catalog)]
        newcomers += [one for one in judged if isinstance(one, Newcomer)]
        misfits += [one for one in judged if isinstance(one, Misfit)]
        misfits += [_further(one, customer, chosen, same) for one in others]
        skipped += len(same) - len(judged) - len(others)
    return MatchResult(newcomers=newcomers, misfits=misfits, skipped=skipped)


def _fault(account: ListedCustomer, names: set[str], owner: str | None) -> Misfit | None:
    """The problem with the id of an account."""
    shown = ", ".join(sorted(f"{name!r:.80}" for name in names))
    if not names:
        if not account.live:
            return None
        return _misfit(account, None, "no_id", "it has a subscription, but nothing names its customer here")
    if len(names) > 1:
        return _misfit(account, None, "two_ids", f"it and its subscriptions name several customers: {shown}")
    (name,) = names
    try:
        check_customer(name)
    except CustomerError as error:
        return _misfit(account, None, "id_not_allowed", str(error))
    if owner not in {None, name}:
        return _misfit(account, name, "linked_elsewhere", f"it is linked to customer {owner!r:.80} already")
    return None


def _chosen(
    same: Sequence[ListedCustomer], owners: Mapping[str, str]
) -> tuple[ListedCustomer | None, Sequence[ListedCustomer]]:
    """Of several Stripe customers of one id the one that counts, and those about which a person is to decide.

    The one that is linked counts, else the only one with a live subscription. Of several without any, none
    does: none of them pays.
    """
    linked = [account for account in same if account.stripe_customer in owners]
    live = [account for account in same if account.live]
    certain = linked or live or (same if len(same) == 1 else [])
    if len(certain) != 1:
        return None, certain
    return certain[0], [account for account in live if account is not certain[0]]


def _further(
    account: ListedCustomer, customer: str, chosen: ListedCustomer | None, same: Iterable[ListedCustomer]
) -> Misfit:
    if chosen is not None:
        message = f"customer {customer!r:.80} is linked to Stripe customer {chosen.stripe_customer} already"
        return _misfit(account, customer, "linked_elsewhere", message)
    others = sorted(one.stripe_customer for one in same if one is not account)
    message = f"customer {customer!r:.80} has further Stripe customers: {', '.join(others)}"
    return _misfit(account, customer, "two_customers", message)


def _judged(account: ListedCustomer, customer: str, catalog: Catalog) -> Newcomer | Misfit:
    live = account.live
    faulty = next((seen for seen in account.seen if seen.fault), None)
    if faulty is not None:
        return _misfit(account, customer, "unreadable", faulty.fault, faulty.id)
    sold = [seen for seen in live if seen.state is not None]
    if len(sold) > 1:
        names = ", ".join(sorted(seen.id for seen in sold))
        message = f"it has several live subscriptions of the plans: {names}; each would bill all usage"
        return _misfit(account, customer, "two_subscriptions", message)
    for drift in _drifts(sold or live):
        if drift.kind in _KEEPS_OUT:
            return _misfit(account, customer, drift.kind, drift.message, drift.subscription)
    slim = in_force([seen.slim for seen in account.seen], catalog)
    counts = next((seen for seen in account.seen if slim is not None and seen.id == slim["id"]), None)
    return Newcomer(
        stripe_customer=account.stripe_customer,
        customer=customer,
        subscription=None if counts is None else counts.state,
        drift=() if counts is None else counts.drift,
    )


def _drifts(seen: Iterable[_ListedSubscription]) -> Iterator[Drift]:
    return (drift for one in seen for drift in one.drift)


def _misfit(
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
