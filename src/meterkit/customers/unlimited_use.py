"""Use of a plan without a limit, kept for the next plan of the same period that has one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meterkit.decisions.keys import HEAD_FIELD, meter_field
from meterkit.decisions.packed import CounterHead, MeterCounts

if TYPE_CHECKING:
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store


async def with_unlimited_use(
    store: Store, customer: str, before: CustomerState, after: CustomerState, plan: str
) -> CustomerState:
    """The state after a change of plan, with what the plan before included of meters without a limit.

    Units that are settled within the same millisecond count against the new plan.

    Args:
        store: where usage is counted.
        customer: the customer's id.
        before: the state until now.
        after: the state from now on.
        plan: the key of the plan from now on.

    Raises:
        StoreError: the store does not answer.
        ValueError: a counter is damaged.
    """
    if after.plan_changes[-1:] in ((), before.plan_changes[-1:]) or not after.plan_changes[-1].is_priced:
        return after
    plans, last = store.catalog.plans, after.plan_changes[-1]
    if last.plan not in plans or plan not in plans:
        return after
    old, new = plans[last.plan].entitlements, plans[plan].entitlements
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
    return replace(after, plan_changes=(*after.plan_changes[:-1], last._replace(used=used)))
