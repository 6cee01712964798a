"""At which prices the usage of a closed period was recorded."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from meterkit.catalog import override
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.decisions.price_segments import label_of, overage_price, segments_of
from meterkit.store.history import history_of, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.store import Store

__all__ = ["Priced", "overage_charge", "priced_usage"]

Priced = Counter[Fraction]
"""Units by what one costs, in minor units of the currency."""


async def priced_usage(
    store: Store, usage: CustomerUsage, state: CustomerState, meters: Iterable[str], late: Mapping[str, int]
) -> Mapping[str, Priced]:
    """What Stripe has of each meter in a period that is over, by the prices that it was recorded at.

    A meter whose prices are not known to the unit is left out.

    Args:
        store: where it is counted.
        usage: of a customer in the period. All of it is delivered.
        state: the customer's.
        meters: their names.
        late: by meter, how much Stripe has counted and no invoice has.

    Raises:
        StoreError: the store does not answer.
    """
    recorded = await _recorded_at(store, usage, state, meters)
    found: dict[str, Priced] = {}
    for name, at in recorded.items():
        priced = _priced(usage["meters"][name], at, late=late[name])
        stripe = store.catalog.meters[name].stripe
        if priced is not None and stripe is not None and stripe.report == "overage":
            found[name] = priced
    return found


async def overage_charge(store: Store, usage: CustomerUsage, state: CustomerState) -> Fraction:
    """What the overage of a period that is over costs, in minor units, by the prices it was recorded at.

    Meters without a price in the plans file are left out.

    Args:
        store: where it is counted.
        usage: of a customer in the period.
        state: the customer's.

    Raises:
        StoreError: the store does not answer.
    """
    used = [name for name, counts in usage["meters"].items() if counts["overage"]]
    recorded = await _recorded_at(store, usage, state, used) if used else {}
    total = Fraction(0)
    for name, at in recorded.items():
        overage = usage["meters"][name]["overage"] - at.stranded
        total += overage_price(segments_of(at.marks, label=at.label, sealed=0, overage=overage)) or 0
    return total


class _RecordedAt(NamedTuple):
    """At which prices a meter was recorded in a period that is over.

    Attributes:
        marks: of the segments that ended before it did.
        label: of the last one's price.
        stranded: units that others made late: they are recorded twice.
    """

    marks: str
    label: str
    stranded: int


async def _recorded_at(
    store: Store, usage: CustomerUsage, state: CustomerState, meters: Iterable[str]
) -> dict[str, _RecordedAt]:
    """The same of each meter that the plans file has; of none, where it lacks the plan that was in force."""
    catalog, period = store.catalog, usage["period"]
    ended = until(await history_of(store, usage["customer"]), "plan", period["end"]) or usage["plan"]
    plan = catalog.plans.get(ended)
    names = [name for name in meters if name in catalog.meters]
    if plan is None or not names:
        return {}
    start_ms, last_ms = to_ms(period["start"]), to_ms(period["end"]) - 1
    given = override(catalog, plan, overrides_at(state.overrides, last_ms).meters)
    fields = [f"{start_ms}|{meter_token(name)}{kind}" for name in names for kind in "st"]
    admin, totals = await store.admin(), store.keys.customer(usage["customer"]).totals
    kept = iter(await admin.ask(admin.client.hmget(totals, fields)))
    return {
        name: _RecordedAt((next(kept) or b"").decode(), label_of(given[name]), int(next(kept) or 0))
        for name in names
    }


def _priced(counts: MeterUsage, at: _RecordedAt, *, late: int) -> Priced | None:
    """The same of one meter; None: it is not known."""
    delivered, priced = counts["delivered"] + late, Priced()
    segments = segments_of(at.marks, label=at.label, sealed=delivered, overage=counts["overage"])
    # Stranded units may have been recorded twice, and were sealed once at most.
    units = [(one.unit_cents, one.sealed if at.stranded else one.overage) for one in segments]
    for price, quantity in units:
        if price is not None:
            priced[price] += quantity
    priced = +priced
    if len(priced) == 1 and all(price is not None for price, quantity in units if quantity):
        return Priced(dict.fromkeys(priced, delivered))
    return priced if priced.total() == delivered else None
