"""Brings one subscription at Stripe to exactly the items of its plan."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import NoSubscriptionError, SubscriptionError
from meterkit.store.drifts import Drifts
from meterkit.store.state_changes import States
from meterkit.subscriptions.at_stripe.drift import LIVE, drift_of_customer, paid_in, plan_in
from meterkit.subscriptions.at_stripe.items import items_of, updates
from meterkit.subscriptions.at_stripe.live import LiveSubscription, whole
from meterkit.subscriptions.at_stripe.once import persistently
from meterkit.subscriptions.at_stripe.plan_prices import prices_of
from meterkit.subscriptions.at_stripe.reading import in_force
from meterkit.subscriptions.service.alone import alone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from meterkit.decisions.drift import Drift, DriftKind
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.at_stripe.items import Item, PlanPrices

__all__ = ["Repair", "Repairing"]

_EXPAND: Final = ("data.latest_invoice",)
_PAID: Final = frozenset({"active", "trialing"})
_UNDECIDED: Final[frozenset[DriftKind]] = frozenset(
    {"two_subscriptions", "unknown_price", "currency", "interval"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The outcome of a repair.

    Attributes:
        customer: whose subscription.
        subscription: ``sub_…``.
        mended: the differences that were mended; with ``dry_run`` those that would be.
        left: the differences that stay: a person has to decide.
        dry_run: whether nothing was changed.
    """

    customer: str
    subscription: str
    mended: tuple[Drift, ...]
    left: tuple[Drift, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """A customer's subscription beside the plans file."""

    subscription: str
    status: str
    prices: PlanPrices | None
    drifts: tuple[Drift, ...]


class Repairing:
    """Repairs subscriptions.

    Args:
        store: where customers are kept.
        api: the way to Stripe.
        fetch: fetches a customer's subscription from Stripe into the store.
        cut: has what a customer has used delivered and counted, and holds back what is used while the block
            runs; see :class:`meterkit.delivery.cutting.Cutter`.
    """

    def __init__(
        self,
        store: Store,
        api: Callable[[], StripeApi],
        *,
        fetch: Callable[[str], Awaitable[object]],
        cut: Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[None]],
    ) -> None:
        self._store = store
        self._api = api
        self._fetch = fetch
        self._cut = cut
        self._drifts = Drifts(store)

    async def run(self, customer: str, *, dry_run: bool) -> Repair:
        """Mend what can be mended; what each raises says :meth:`meterkit.Subscriptions.repair`."""
        if dry_run:
            before = await self._compared(customer)
            _refuse(customer, before)
            return _repair(customer, before, before.drifts, dry_run=True)
        async with alone(self._store, customer):
            await self._fetch(customer)
            before = await self._compared(customer)
            _refuse(customer, before)
            if any(drift.can_repair for drift in before.drifts):
                await persistently(lambda again: self._attempt(customer, before, again))
                await self._fetch(customer)
        after = await self._compared(customer)
        await self._drifts.put(customer, after.drifts)
        return _repair(customer, before, after.drifts, dry_run=False)

    async def _attempt(self, customer: str, before: _Compared, again: int) -> None:
        live = await LiveSubscription.fetch(self._api(), before.subscription, again)
        if live is None or before.prices is None:
            raise NoSubscriptionError(customer)
        if live.schedule is not None or live.found.get("pending_update"):
            raise SubscriptionError(
                f"the subscription {live.id} of customer {customer!r} is to change already: repair it after"
                f" that, or take it back with `meterkit subscriptions change {customer} {before.prices.plan}`"
            )
        await live.make_flexible()
        catalog, items = self._store.catalog, {item.id: item for item in live.items}
        paid = paid_in(live.items, catalog.plans[before.prices.plan], catalog)
        changes = updates(live.items, catalog, before.prices, paid)
        metered = [change for change in changes if (item := items.get(str(change.get("id")))) and item.meter]
        twice = [change for change in metered if _is_twice(change, items, before.prices)]
        rest = [change for change in changes if change not in twice]
        # Usage until now is billed by the items that it was used under.
        async with self._cut(customer, {}) if metered else nullcontext():
            if twice:  # The item that stays bills the whole period.
                await live.update({"items": twice, "proration_behavior": "none"})
            if rest:
                await live.update({"items": rest, "proration_behavior": "create_prorations"})

    async def _compared(self, customer: str) -> _Compared:
        _, state = await States(self._store).read(customer)
        if state.stripe_customer is None:
            raise NoSubscriptionError(customer)
        asked = {"customer": state.stripe_customer, "status": "all", "expand": _EXPAND}
        listed = await self._api().list("/v1/subscriptions", asked)
        found = [await whole(self._api(), one) for one in listed]
        catalog = self._store.catalog
        chosen = in_force(found, catalog, None if state.subscription is None else state.subscription.id)
        counts = chosen or next((one for one in found if one.get("status") in LIVE), None)
        if counts is None:
            raise NoSubscriptionError(customer)
        plan = plan_in(items_of(counts), catalog)
        prices = None if plan is None else await prices_of(self._api(), catalog, plan)
        return _Compared(
            subscription=str(counts["id"]),
            status=str(counts["status"]),
            prices=prices,
            drifts=drift_of_customer(found, chosen, catalog, prices),
        )


def _is_twice(change: Mapping[str, Any], items: Mapping[str, Item], prices: PlanPrices) -> bool:
    """Whether a change removes an item whose usage another item bills too."""
    return change.get("deleted") is True and items[change["id"]].meter in prices.metered.values()


def _refuse(customer: str, found: _Compared) -> None:
    """Raise SubscriptionError where a person has to decide, or where the customer owes."""
    for drift in found.drifts:
        if drift.kind in _UNDECIDED:
            raise SubscriptionError(
                f"a person has to decide about the subscription {drift.subscription} of customer"
                f" {customer!r}: {drift.message}"
            )
    if found.status not in _PAID and any(drift.can_repair for drift in found.drifts):
        raise SubscriptionError(
            f"the subscription {found.subscription} of customer {customer!r} is {found.status}:"
            " it has to be paid for first"
        )


def _repair(customer: str, before: _Compared, now: Sequence[Drift], *, dry_run: bool) -> Repair:
    left: Sequence[Drift] = [drift for drift in now if not (dry_run and drift.can_repair)]
    return Repair(
        customer=customer,
        subscription=before.subscription,
        mended=tuple(drift for drift in before.drifts if drift not in left),
        left=tuple(left),
        dry_run=dry_run,
    )
