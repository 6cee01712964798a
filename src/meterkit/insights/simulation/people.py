"""Who had which plan in a period, and what that plan asks and gives under one plans file and another."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog import override
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.customer_state import NOBODY, CustomerState, effective_plan
from meterkit.decisions.periods import to_ms
from meterkit.insights.simulation.terms import terms_of
from meterkit.store.customers import customers_set_up
from meterkit.store.history import entry_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.insights.simulation.terms import Terms
    from meterkit.store.history import HistoryEntry
    from meterkit.store.store import Store

__all__ = ["Offers", "Tenure", "tenures"]

_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """What a customer had in a period.

    Attributes:
        start_ms, end_ms: the period's first instant, and the first after it.
        plan: the key of the plan that was in force when the period ended, or is by now.
        is_changed: whether another one was before that, in the same period.
        is_granted: whether the app ever granted the customer something.
        is_unpaid: whether nothing is paid for the period, as it is a trial, or a pause that voids invoices.
        seats: that the subscription paid for.
        overrides: meter to an entitlement in the notation of the plans file, laid over the plan's.
    """

    start_ms: int
    end_ms: int
    plan: str
    is_changed: bool
    is_granted: bool
    is_unpaid: bool
    seats: int
    overrides: Mapping[str, Mapping[str, object]]

    def on(self, plan: str) -> Tenure:
        """The same on another plan, as it is sold."""
        return replace(self, plan=plan, overrides={})


class Offers:
    """The terms of a plans file, made once for all customers who have the same.

    Args:
        catalog: what is sold.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[str, int, str], Terms] = {}

    def to(self, tenure: Tenure) -> Terms:
        """What a customer gets and pays; the default plan stands in for one that the file lacks."""
        catalog, overrides = self._catalog, tenure.overrides
        key = (tenure.plan, tenure.seats, json.dumps(overrides, sort_keys=True) if overrides else "")
        if key not in self._known:
            plan = catalog.plans.get(tenure.plan, catalog.plans[catalog.default_plan])
            self._known[key] = terms_of(catalog, plan, override(catalog, plan, overrides), tenure.seats)
        return self._known[key]


async def tenures(
    store: Store, at_ms: int, started: Mapping[str, int], *, customer: str | None = None
) -> dict[str, Tenure]:
    """What each customer had in the period of an instant, by name.

    Args:
        store: where customers are kept.
        at_ms: the instant.
        started: customers with usage, and when the period of it began; if that period had ended by the
            instant, it is another one.
        customer: the only one to look at; None: all. Without a state and usage it is left out.

    Raises:
        StoreError: the store does not answer.
    """
    names = {customer} if customer is not None else set(started)
    if customer is None:
        names.update([name async for name in customers_set_up(await store.admin(), store.keys)])
    ordered = sorted(names)
    found: dict[str, Tenure] = {}
    for first in range(0, len(ordered), _PAGE):
        page = ordered[first : first + _PAGE]
        for name, (state, ledger) in zip(page, await _read(store, page), strict=True):
            if state is NOBODY and name not in started:
                continue  # Nothing is known of this customer: the name may be a typo.
            found[name] = _tenure(state, ledger, store.catalog, at_ms, started.get(name), store.now_ms())
    return found


async def _read(
    store: Store, customers: Iterable[str]
) -> Sequence[tuple[CustomerState, Sequence[HistoryEntry]]]:
    admin = (await store.admin()).for_delivery()
    pipe = admin.client.pipeline(transaction=False)
    for customer in customers:
        keys = store.keys.customer(customer)
        pipe.hget(keys.state, "data")
        pipe.lrange(keys.history, 0, -1)
    replies: list[Any] = await admin.ask(pipe.execute())
    return [
        (CustomerState.parse(data) if data else NOBODY, [entry_of(line) for line in ledger])
        for data, ledger in zip(replies[::2], replies[1::2], strict=True)
    ]


def _tenure(
    state: CustomerState,
    ledger: Collection[HistoryEntry],
    catalog: Catalog,
    at_ms: int,
    started_ms: int | None,
    now_ms: int,
) -> Tenure:
    start_ms = at_ms if started_ms is None else started_ms
    bounds = effective_plan(state, catalog, start_ms).bounds
    if bounds.end_ms <= at_ms:
        bounds = effective_plan(state, catalog, at_ms).bounds
        start_ms = bounds.start_ms
    elif started_ms is None:
        start_ms = bounds.start_ms
    last_ms = min(bounds.end_ms - 1, now_ms)
    given = effective_plan(state, catalog, last_ms)
    changes = [entry for entry in ledger if entry.kind == "plan"]
    later = next((entry.before for entry in changes if to_ms(entry.at) > last_ms), None)
    return Tenure(
        start_ms=start_ms,
        end_ms=bounds.end_ms,
        plan=later or given.missing_plan or given.plan.key,
        is_changed=any(start_ms < to_ms(entry.at) <= last_ms for entry in changes),
        is_granted=state.granted,
        is_unpaid=state.subscription is not None and _is_unpaid(state.subscription, start_ms),
        seats=given.seats,
        overrides=overrides_at(state.overrides, last_ms).meters,
    )


def _is_unpaid(subscription: SubscriptionState, start_ms: int) -> bool:
    """Whether nothing is paid for a period: what is used in a trial or a pause costs nothing."""
    is_trial = subscription.trial_end_ms is not None and start_ms < subscription.trial_end_ms
    return is_trial or subscription.is_unpaid_at(start_ms)
