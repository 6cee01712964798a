"""What each customer brought at an instant, from what is stored of it and from its ledger."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.periods import to_ms
from meterkit.insights.revenue.figures import Paying
from meterkit.store.customers import customers_set_up
from meterkit.store.history import entry_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog import Catalog
    from meterkit.redis.admin import Admin
    from meterkit.store.history import HistoryEntry
    from meterkit.store.store import Store

__all__ = ["paying_at", "paying_of"]

_PAGE: Final = 500


async def paying_at(store: Store, at_ms: int) -> list[Paying]:
    """Who brought something at an instant that is not ahead, by name.

    Raises:
        StoreError: the store does not answer.
    """
    admin = (await store.admin()).for_delivery()
    found: list[Paying] = []
    page: list[str] = []
    async with aclosing(customers_set_up(admin, store.keys)) as customers:
        async for customer in customers:
            page.append(customer)
            if len(page) == _PAGE:
                found += await _paying(store, admin, page, at_ms)
                page.clear()
    return sorted(found + await _paying(store, admin, page, at_ms))


async def _paying(store: Store, admin: Admin, customers: Sequence[str], at_ms: int) -> list[Paying]:
    pipe = admin.client.pipeline(transaction=False)
    for customer in customers:
        keys = store.keys.customer(customer)
        pipe.hget(keys.state, "data")
        pipe.lrange(keys.history, 0, -1)
    replies: list[Any] = await admin.ask(pipe.execute()) if customers else []
    found = (
        paying_of(customer, CustomerState.parse(data or b""), map(entry_of, ledger), store.catalog, at_ms)
        for customer, data, ledger in zip(customers, replies[::2], replies[1::2], strict=True)
    )
    return [one for one in found if one is not None]


def paying_of(
    customer: str, state: CustomerState, ledger: Iterable[HistoryEntry], catalog: Catalog, at_ms: int
) -> Paying | None:
    """What a customer brought at an instant; None: nothing.

    Args:
        customer: its id.
        state: as it is now.
        ledger: what has changed, the oldest first.
        catalog: what is sold.
        at_ms: the instant.
    """
    later: dict[str, str] = {}
    for entry in ledger:
        if to_ms(entry.at) >= at_ms:
            later.setdefault(entry.kind, entry.before or "")
    if "mrr" in later:
        amount, _, currency = later["mrr"].partition(" ")
        mrr = int(amount or 0)
    else:
        subscription = state.subscription
        mrr = 0 if subscription is None else subscription.mrr_at(at_ms)
        currency = "" if subscription is None else subscription.currency
    if not mrr:
        return None
    plan = later.get("plan") or effective_plan(state, catalog, at_ms).plan.key
    return Paying(customer, plan, currency, mrr)
