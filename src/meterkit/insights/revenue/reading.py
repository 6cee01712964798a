"""What each customer brought at an instant, and used in periods that ended, from what is stored of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.customer_ids import pages_set_up
from meterkit.customers.history import states_and_histories
from meterkit.customers.usage import overage_charge
from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.grants import MICRO
from meterkit.decisions.keys import HEAD_FIELD
from meterkit.decisions.packed import CounterHead
from meterkit.decisions.periods import to_ms
from meterkit.insights.revenue.figures import Paying, Used

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.history import HistoryEntry
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_PAGE: Final = 500


async def paying_at(store: Store, at_ms: int) -> list[Paying]:
    """Who brought something at an instant that is not ahead, by name.

    Raises:
        StoreError: the store does not answer.
    """
    found: list[Paying] = []
    async for page in pages_set_up((await store.admin()).for_delivery(), store.keys, _PAGE):
        kept = zip(page, await states_and_histories(store, page), strict=True)
        paying = (paying_of(who, state, ledger, store.catalog, at_ms) for who, (state, ledger) in kept)
        found += [one for one in paying if one is not None]
    return sorted(found)


async def used_in(store: Store, since_ms: int, until_ms: int) -> list[Used]:
    """What linked customers used beyond what is included, in their periods that ended in a span, by name.

    Raises:
        StoreError: the store does not answer.
    """
    admin = (await store.admin()).for_delivery()
    found: list[Used] = []
    async for page in pages_set_up(admin, store.keys, _PAGE):
        for customer, state, begins_ms in await _whose_period_ended(store, admin, page, since_ms, until_ms):
            charged = await _charged(store, customer, state, begins_ms, since_ms, until_ms)
            amount = round(charged * MICRO)
            if amount:
                found.append(Used(customer, store.catalog.currency, amount))
    return sorted(found)


async def _whose_period_ended(
    store: Store, admin: Admin, customers: Sequence[str], since_ms: int, until_ms: int
) -> list[tuple[str, CustomerState, int]]:
    """Linked customers whose period now began after the span's beginning, or is over; and when it began."""
    pipe = admin.client.pipeline(transaction=False)
    for customer in customers:
        keys = store.keys.customer(customer)
        pipe.hget(keys.state, "data")
        pipe.hget(keys.counters, HEAD_FIELD)
    replies: list[Any] = await admin.ask(pipe.execute())
    found: list[tuple[str, CustomerState, int]] = []
    for customer, data, packed in zip(customers, replies[::2], replies[1::2], strict=True):
        state, head = CustomerState.parse(data or b""), CounterHead.read(packed)
        is_asked = packed is not None and state.stripe_customer is not None
        if is_asked and (head.begins_ms >= since_ms or head.ends_ms <= until_ms):
            found.append((customer, state, head.begins_ms))
    return found


async def _charged(
    store: Store, customer: str, state: CustomerState, begins_ms: int, since_ms: int, until_ms: int
) -> int:
    """What all periods of a customer cost that ended in a span, in minor units."""
    admin = (await store.admin()).for_delivery()
    totals: Any = await admin.ask(admin.client.hgetall(store.keys.customer(customer).totals))
    ends = {int(name[:-2]): int(end) for name, end in totals.items() if name.endswith(b"|e")}
    total = 0
    for start_ms in sorted(
        {begins_ms, *(start for start, end in ends.items() if since_ms < end <= until_ms)}
    ):
        usage = await store.usage(customer, at_ms=start_ms)
        if since_ms < to_ms(usage["period"]["end"]) <= until_ms:
            total += await overage_charge(store, usage, state)
    return total


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
