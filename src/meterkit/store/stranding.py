"""Make pending usage late after others have changed metered prices at Stripe (see strand.lua)."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from meterkit.catalog import override
from meterkit.decisions.keys import meter_token
from meterkit.decisions.price_segments import ended_labels
from meterkit.decisions.program import reported_parts
from meterkit.store.final_invoices import price_in_words, root_meter
from meterkit.store.held_usage import next_minute_ms

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.catalog import Catalog, Entitlement, Meter, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store

__all__ = ["strand_usage"]

_logger = logging.getLogger("meterkit.store")


async def strand_usage(
    store: Store,
    customer: str,
    before: CustomerState,
    after: CustomerState,
    *,
    events: Collection[str],
    cause: str,
) -> None:
    """Make usage late that is pending of some meters, and log how much at which price.

    With ``billing.late_usage: next_period`` it is billed at the new price, if the new plan bills the meter.

    Args:
        store: where it is counted.
        customer: whose.
        before: the customer's state before the change.
        after: the state after it.
        events: event names of the meters whose prices have changed.
        cause: of the change, for the customer's ledger.

    Raises:
        StoreError: the store does not answer, or the customer's counters are damaged.
    """
    catalog, now_ms = store.catalog, store.now_ms()
    old, new = (_plan(state, catalog, now_ms) for state in (before, after))
    meters = {
        meter_token(name): _terms(meter, old, new, after, catalog)
        for name, meter in catalog.meters.items()
        if meter.stripe is not None and meter.stripe.event_name in events
    }
    asked = {
        "meters": meters,
        "labels": {} if old is None or new is None else ended_labels(old, new, after, catalog),
        "changed": str(next_minute_ms(now_ms)),
        "cause": cause,
    }
    keys, admin = store.keys.customer(customer), (await store.admin()).for_delivery()
    names = [keys.counters, keys.totals, keys.history]
    reply: list[Any] = await admin.run(store.scripts["strand"], names, json.dumps(asked))
    for token, value in zip(reply[2::2], reply[3::2], strict=True):
        _, name, price = meters[token.decode()]
        _logger.error(
            "%s units of %s that customer %r used%s were not delivered when the price changed at Stripe: they"
            " are late",
            *(value.decode(), name, customer, price),
        )


def _plan(state: CustomerState, catalog: Catalog, now_ms: int) -> Plan | None:
    subscription = state.subscription
    return None if subscription is None else catalog.plans.get(subscription.plan_at(now_ms) or "")


def _terms(
    meter: Meter, old: Plan | None, new: Plan | None, state: CustomerState, catalog: Catalog
) -> tuple[str, str, str]:
    """The class that late usage is recorded in again (empty: none), the name, the price that ends."""
    was, is_now = (_given(meter, plan, state, catalog) for plan in (old, new))
    included, overage = (0, 0) if is_now is None else reported_parts(is_now, meter)
    is_billed = catalog.billing.late_usage == "next_period"
    kind = "overage" if overage else "included" if included else ""
    return kind if is_billed else "", meter.name, price_in_words(was, catalog.currency)


def _given(meter: Meter, plan: Plan | None, state: CustomerState, catalog: Catalog) -> Entitlement | None:
    if plan is None:
        return None
    return override(catalog, plan, state.overrides)[root_meter(meter.name, catalog)]
