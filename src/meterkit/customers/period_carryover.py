"""Usage carried across a plan change: of cut periods, without a limit, before a subscription."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from meterkit.decisions.keys import HEAD_FIELD, meter_field, meter_token
from meterkit.decisions.packed import CounterHead, MeterCounts
from meterkit.decisions.plan_shares import cut_of, spend_before_subscription, uncut_period
from meterkit.decisions.stored_grants import StoredGrant
from meterkit.terms.cuts import INCLUDED, spent_of
from meterkit.terms.rows import PLAN, SOLD, SUBSCRIPTION, USED, in_force, last_row

if TYPE_CHECKING:
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store
    from meterkit.terms.cuts import Cut


async def read_cut(store: Store, customer: str, state: CustomerState, last_ms: int, cut_ms: int) -> Cut:
    """Compute what a customer has used in a period beyond the part of it until an instant.

    Args:
        store: where usage is counted.
        customer: the customer's id.
        state: as it was when the period was cut short.
        last_ms: an instant of the period.
        cut_ms: when it was cut short.

    Raises:
        StoreError: the store does not answer.
        ValueError: a counter is damaged.
    """
    start_ms, end_ms = uncut_period(state, store.catalog, last_ms)
    used = await _read_usage(store, customer, start_ms, end_ms)
    return cut_of(state, store.catalog, last_ms, cut_ms, used)


async def read_spent(store: Store, customer: str, state: CustomerState, began_ms: int | None) -> Cut | None:
    """Compute what a customer has used in a month without a subscription, where one begins or ends.

    Counters go on where nothing was used in between: they have that use themselves.

    Args:
        store: where usage is counted.
        customer: the customer's id.
        state: as it was before.
        began_ms: when a subscription began; None: it has ended.

    Raises:
        StoreError: the store does not answer.
        ValueError: a counter is damaged.
    """
    admin, keys, meters = await store.admin(), store.keys.customer(customer), [*store.catalog.meters]
    asked = [HEAD_FIELD, *map(meter_field, meters)]
    packed, *counts = await admin.ask(admin.client.hmget(keys.counters, asked))
    head, spent = CounterHead.read(packed), spent_of(state.terms)
    if began_ms is None:
        if spent is None or (head.begins_ms, head.ends_ms) != (spent.cut_ms, spent.end_ms):
            return None
        return spent._replace(units=spent.before)
    _, end_ms = uncut_period(state, store.catalog, began_ms)
    used = {
        f"{INCLUDED}{name}": MeterCounts.read(count).included
        for name, count in zip(meters, counts, strict=True)
    }
    if head.ends_ms != end_ms or not any(used.values()):
        used = {}
    month = spend_before_subscription(state, store.catalog, began_ms, used, head.begins_ms)
    return month if month.units else None


async def _read_usage(store: Store, customer: str, start_ms: int, end_ms: int) -> Counter[str]:
    """Included units and recurring grants that were used in a period, by target."""
    admin, keys, meters = await store.admin(), store.keys.customer(customer), [*store.catalog.meters]
    pipe = admin.client.pipeline(transaction=True)
    pipe.hmget(keys.counters, [HEAD_FIELD, *map(meter_field, meters)])
    pipe.hmget(keys.totals, [f"{start_ms}|{meter_token(name)}i" for name in meters])
    pipe.hgetall(keys.grants)
    (head, *counts), closed, grants = await admin.ask(pipe.execute())
    is_open = start_ms <= CounterHead.read(head).begins_ms < end_ms
    used = Counter[str]()
    for name, packed, over in zip(meters, counts, closed, strict=True):
        now = MeterCounts.read(packed).included if is_open else 0
        used[f"{INCLUDED}{name}"] = now + int(over or 0)
    for name, text in grants.items():
        if name.startswith(b"p "):
            grant = StoredGrant.parse(name.decode(), text.decode())
            used[grant.target] += grant.used if start_ms <= grant.effective_ms < end_ms else 0
    return used


async def with_unlimited_use(
    store: Store, customer: str, before: CustomerState, after: CustomerState
) -> CustomerState:
    """The state after a change of plan, with what the plan before included of meters without a limit.

    Units that are settled within the same millisecond count against the new plan.

    Args:
        store: where usage is counted.
        customer: the customer's id.
        before: the state until now.
        after: the state from now on.

    Raises:
        StoreError: the store does not answer.
        ValueError: a counter is damaged.
    """
    change = last_row(after.terms, SOLD)
    if change is None or change[:2] in {row[:2] for row in before.terms}:
        return after
    had, has = (in_force(after.terms, at_ms) for at_ms in (change.since_ms - 1, change.since_ms))
    is_priced = has[SUBSCRIPTION] is not None and had[SUBSCRIPTION] == has[SUBSCRIPTION]
    before_plan, plan = (store.catalog.find_plan(facts[PLAN]) for facts in (had, has))
    if not is_priced or before_plan is None or plan is None:
        return after
    old, new = before_plan.entitlements, plan.entitlements
    meters = [name for name in old if old[name].included is None and new[name].included is not None]
    if not meters:
        return after
    admin, keys = await store.admin(), store.keys.customer(customer)
    head, *counts = await admin.ask(
        admin.client.hmget(keys.counters, [HEAD_FIELD, *map(meter_field, meters)])
    )
    if store.now_ms() >= CounterHead.read(head).ends_ms:
        return after
    used = tuple(
        (meter, units)
        for meter, packed in zip(meters, counts, strict=True)
        if (units := MeterCounts.read(packed).included)
    )
    known = change._replace(facts=(*change.facts, (USED, used)))
    return replace(after, terms=tuple(known if row is change else row for row in after.terms))
