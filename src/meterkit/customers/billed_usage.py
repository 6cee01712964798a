"""Usage as Stripe bills it: priced closed periods, negative meter events, units on no invoice."""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.customers.history import HISTORY_BOUND, plan_until, read_history
from meterkit.customers.sorted_customers import customers_with_counts
from meterkit.customers.states import CustomerStates
from meterkit.decisions.compiled_decision import has_flat_price
from meterkit.decisions.customer_state import entitlements_on
from meterkit.decisions.free_usage import is_usage_free_of
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.decisions.price_segments import (
    NO_PRICE,
    is_split,
    overage_cents,
    segments_of,
    sent_label,
    sent_segments,
    shown_label,
    unit_cents,
)
from meterkit.store.customer_usage import count_reported
from meterkit.store.unreadable_data import read_each, refuse_unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from meterkit.catalog import Entitlement, Meter
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrice
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.store import Store

_CUSTOMERS_AT_ONCE: Final = 100
_ENDED_PRICE: Final = re.compile(r"(\d+)\|(....)y")


async def usage_of_all(
    store: Store, *, at_ms: int | None = None, skipped: list[str] | None = None
) -> AsyncGenerator[Sequence[CustomerUsage]]:
    """Read the usage of all customers in this period, or in that of another instant, in pages sorted by id.

    Customers without usage are left out. Each page shows the moment at which it was read. Those whose stored
    data cannot be read are logged, and added to ``skipped``.

    Raises:
        StoreError: the store does not answer.
        MeterkitError: the temporary folder has no room for the ids.
    """

    async def skip(customer: str, error: Exception) -> None:
        await store.log_unreadable("usage", customer, error)
        if skipped is not None:
            skipped.append(customer)

    async with customers_with_counts(store) as customers:
        async for names in customers.names(_CUSTOMERS_AT_ONCE):
            page = await read_each(names, partial(read_priced_usage, store, at_ms=at_ms), skip)
            yield [found for found in page if _has_usage(found)]


async def read_priced_usage(
    store: Store, customers: Sequence[str], *, at_ms: int | None = None
) -> Sequence[CustomerUsage]:
    """Read the usage of customers as ``kit.usage`` shows it: with the cost of overage in ended periods, too.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: what is stored of a customer cannot be read.
    """
    found = await store.usage_of_many(customers, at_ms=at_ms)
    return found if at_ms is None else [await _with_costs(store, usage) for usage in found]


async def _with_costs(store: Store, usage: CustomerUsage) -> CustomerUsage:
    """Add the cost of overage of each meter to the usage of an ended period."""
    if to_ms(usage["period"]["end"]) > store.now_ms():
        return usage
    with refuse_unreadable("usage", usage["customer"]):
        _, state = await CustomerStates(store).read(usage["customer"])
        cents = await _price_ended(store, usage, state)
    counted, rows = usage["meters"], [name for name in cents if name.partition(":")[0] != name]
    of_rows = {name: [row for row in rows if row.partition(":")[0] == name] for name in cents}
    costs = {
        name: [cents[name], *(cents[row] for row in of_rows[name] if counted[row]["overage"])]
        for name in cents
    }
    whole = {name: None if None in found else sum(filter(None, found)) for name, found in costs.items()}
    meters: dict[str, MeterUsage] = {
        name: {**counts, "overage_cents": whole.get(name)} for name, counts in counted.items()
    }
    return {**usage, "meters": meters}


def _has_usage(found: CustomerUsage) -> bool:
    return any(meter["used"] or meter["late"] for meter in found["meters"].values())


UnitsByPrice = Counter[Fraction]
"""Units by the price of one, in minor units of the currency."""


async def price_usage(
    store: Store, usage: CustomerUsage, state: CustomerState, meters: Iterable[str], late: Mapping[str, int]
) -> Mapping[str, UnitsByPrice]:
    """Sum the units of each meter that Stripe has in an ended period, by the price of a unit.

    A meter is left out if the price of a unit is not known.

    Args:
        store: counts the usage.
        usage: of a customer in the period. All of it is delivered.
        state: the customer's.
        meters: by name.
        late: by meter, units that Stripe has counted and no invoice has.

    Raises:
        StoreError: the store does not answer.
    """
    recorded = await _read_recorded_at(store, usage, state, meters)
    found: dict[str, UnitsByPrice] = {}
    for name, at in recorded.items():
        has_parts = is_split(name, store.catalog.meters)
        priced = _price_meter(usage["meters"][name], at, late=late[name], has_parts=has_parts)
        if priced is not None and at.is_flat:
            found[name] = priced
    return found


async def sum_overage(store: Store, usage: CustomerUsage, state: CustomerState) -> int:
    """Sum the cost of overage in an ended period, in minor units, rounded as its invoice lines are.

    Meters without a price in the plans file are left out.

    Args:
        store: counts the usage.
        usage: of a customer in the period.
        state: the customer's.

    Raises:
        StoreError: the store does not answer.
    """
    return sum(filter(None, (await _price_ended(store, usage, state)).values()))


class OverageCost(NamedTuple):
    """Overage of a meter in a period, by the counters.

    Attributes:
        units: without late units that were recorded twice; for a derived meter or its source, ``sent``.
        cents: their cost in minor units; None: no price is known.
        sent: units that Stripe gets under the meter's event, overage or not.
    """

    units: int
    cents: int | None
    sent: int


async def price_overage(
    store: Store, usage: CustomerUsage, state: CustomerState
) -> Mapping[str, OverageCost]:
    """Price the overage of each meter in an open or ended period, as the usage page and summary sum it up.

    Meters of prices by model are apart from their source.

    Args:
        store: counts the usage.
        usage: of a customer in the period.
        state: the customer's.

    Raises:
        StoreError: the store does not answer.
    """
    is_open = to_ms(usage["period"]["end"]) > store.now_ms()
    cents = _price_open(usage) if is_open else await _price_ended(store, usage, state)
    stranded = await _read_units(store, usage, "t")
    units = _count_overage(usage, store.catalog.meters, stranded)
    return {
        name: OverageCost(units[name], cents.get(name), count_reported(counts) - stranded[name])
        for name, counts in usage["meters"].items()
    }


def _count_overage(
    usage: CustomerUsage, meters: Mapping[str, Meter], stranded: Mapping[str, int]
) -> dict[str, int]:
    """Count units of overage by meter; ``stranded``: late units, which the counters have twice."""
    of_rows = Counter[str]()
    for name, counts in usage["meters"].items():
        if (source := name.partition(":")[0]) != name:
            of_rows[source] += counts["overage"]
    found: dict[str, int] = {}
    for name, counts in usage["meters"].items():
        meter = meters.get(name)
        twice = 0 if name in of_rows else stranded[name]
        if meter is not None and meter.is_row and meter.stripe is None:
            twice = stranded.get(name.partition(":")[0], 0)  # Units under the source's event.
        is_part = meter is not None and is_split(name, meters)
        units = count_reported(counts) if is_part else counts["overage"] - of_rows[name]
        found[name] = max(0, units - twice)
    return found


async def _price_ended(store: Store, usage: CustomerUsage, state: CustomerState) -> Mapping[str, int | None]:
    """Price the overage of each meter in an ended period; None: no price is known."""
    period = usage["period"]
    if is_usage_free_of(state, to_ms(period["start"]), to_ms(period["end"])):
        return dict.fromkeys(usage["meters"], 0)
    recorded = await _read_recorded_at(store, usage, state, usage["meters"])
    found: dict[str, int | None] = {}
    for name, at in recorded.items():
        counts = usage["meters"][name]
        if is_split(name, store.catalog.meters):
            sent = count_reported(counts) - at.stranded
            segments = sent_segments(at.marks, at.items, label=at.sent_label, sent=sent)
        else:
            overage = counts["overage"] - at.stranded
            segments = segments_of(at.marks, label=at.label, sealed=0, overage=overage)
        # A price that is not known matters only where something was recorded at it.
        found[name] = overage_cents([one for one in segments if one.overage] or segments[-1:])
    return found


def _price_open(usage: CustomerUsage) -> Mapping[str, int | None]:
    """Price the overage of each meter in an open period; None: no price is known."""
    cents = {name: counts["overage_cents"] for name, counts in usage["meters"].items()}
    found = dict(cents)
    for row, of_row in cents.items():
        whole = found.get(source := row.partition(":")[0])
        if source != row and whole is not None:
            found[source] = whole - (of_row or 0)
    return found


class _RecordedAt(NamedTuple):
    """Prices at which a meter was recorded in an ended period.

    Attributes:
        marks: of the price segments that ended within the period.
        label: of the last segment's price.
        sent_label: price of units sent under the meter's event: its own price, or that of its source.
        stranded: units made late by a price change of others: they are recorded twice.
        items: late units that invoice items bill, by price.
        is_flat: whether Stripe gets only overage, at a flat price.
    """

    marks: str
    label: str
    sent_label: str
    stranded: int
    items: str = ""
    is_flat: bool = True


async def _read_recorded_at(
    store: Store, usage: CustomerUsage, state: CustomerState, meters: Iterable[str]
) -> dict[str, _RecordedAt]:
    """Read segments and labels of each meter."""
    catalog, period = store.catalog.in_currency(state.currency), usage["period"]
    ended = plan_until(await read_history(store, usage["customer"]), period["end"]) or usage["plan"]
    plan, last_ms = catalog.find_plan(ended), to_ms(period["end"]) - 1
    names = [name for name in meters if name in catalog.meters]
    given: Mapping[str, Entitlement] = {}
    if plan is not None:
        given = entitlements_on(plan, state, catalog, last_ms)
    own = prices_by_meter(state.prices_on(ended, last_ms), catalog)
    totals = await read_totals(store, usage, names, "stnY")
    replaced = await _read_replaced_labels(store, usage)
    found: dict[str, _RecordedAt] = {}
    for name, (marks, stranded, items, latest) in totals.items():
        meter, entitlement = catalog.meters[name], given.get(name)
        label = NO_PRICE if entitlement is None else shown_label(entitlement, meter)
        sent = label if entitlement is None else sent_label(name, given, catalog.meters)
        known = latest or replaced.get(name) or _label_of_item(usage["meters"][name], label, own.get(name))
        found[name] = _RecordedAt(
            marks=marks,
            label=known or label,
            sent_label=known or sent,
            stranded=int(stranded or 0),
            items=items,
            is_flat=has_flat_price(entitlement, meter),
        )
    return found


def _label_of_item(counts: MeterUsage, label: str, own: ItemPrice | None) -> str:
    """Price label of a subscription's item, where the plans file has no price any more; empty: none counts.

    If Stripe got all of the overage, the plan billed it then.
    """
    is_billed = 0 < counts["overage"] <= count_reported(counts)
    is_lost = unit_cents(label) is None and own is not None and own.is_exact
    return own.label if is_billed and is_lost and own is not None else ""


async def _read_replaced_labels(store: Store, usage: CustomerUsage) -> Mapping[str, str]:
    """Read by meter the price label at the end of a period, where an override or the like replaced it since.

    The first price that ended in a later period was active then; see ``store_price_labels.lua``.
    """
    admin, start_ms = await store.admin(), to_ms(usage["period"]["start"])
    totals = store.keys.customer(usage["customer"]).totals
    kept: Mapping[bytes, bytes] = await admin.ask(admin.client.hgetall(totals))
    names = {meter_token(name): name for name in usage["meters"]}
    ended = ((_ENDED_PRICE.fullmatch(field.decode()), label.decode()) for field, label in kept.items())
    later = [(int(of[1]), of[2], label) for of, label in ended if of is not None and int(of[1]) > start_ms]
    # Of several of a meter, the first one is stored last.
    return {names[token]: label for _, token, label in sorted(later, reverse=True) if token in names}


def _price_meter(counts: MeterUsage, at: _RecordedAt, *, late: int, has_parts: bool) -> UnitsByPrice | None:
    """Sum the units of a meter by price; None: the price of a unit is not known."""
    delivered, priced = counts["delivered"] + late, UnitsByPrice()
    label = at.sent_label if has_parts else at.label
    segments = segments_of(at.marks, label=label, sealed=delivered, overage=counts["overage"])
    # Stranded units may have been recorded twice, and were sealed once at most; those of items never were.
    # With prices by model, and of derived meters, overage has other units than those that were sealed.
    is_sealed = bool(at.stranded or at.items) or has_parts
    units = [
        (one.unit_cents, one.sealed if is_sealed or one.is_by_model else one.overage) for one in segments
    ]
    for price, quantity in units:
        if price is not None:
            priced[price] += quantity
    priced = +priced
    if len(priced) == 1 and all(price is not None for price, quantity in units if quantity):
        return UnitsByPrice(dict.fromkeys(priced, delivered))
    return priced if priced.total() == delivered else None


# Letters of the totals of negative events; see count_field.lua.
_STATES = "DQLK"


class NegativeUnits(NamedTuple):
    """Units of negative events of a meter, by state.

    In the usage they are subtracted from the units of the same state, so a sum of 0 there may be on its way.
    """

    delivered: int
    queued: int
    leased: int
    parked: int

    @property
    def left(self) -> int:
        """Units of negative events that Stripe does not have, by our books."""
        return self.queued + self.leased + self.parked


async def read_negative_units(store: Store, usage: CustomerUsage) -> Mapping[str, NegativeUnits]:
    """Read the units of negative events by meter, in the period of a usage.

    Raises:
        StoreError: the store does not answer.
    """
    totals = await read_totals(store, usage, [*usage["meters"]], _STATES)
    return {name: NegativeUnits(*(int(units or 0) for units in found)) for name, found in totals.items()}


_KEPT_MS: Final = 400 * 86_400_000


class UninvoicedUnits(NamedTuple):
    """Units of a meter that Stripe has counted and no invoice has.

    Attributes:
        meter: its name.
        quantity: units that are late now.
        known: units of the same period that were late before.
        price: of a unit, as a suffix for a quantity; empty: not known.
    """

    meter: str
    quantity: int
    known: int
    price: str


async def read_uninvoiced(store: Store, usage: CustomerUsage) -> Mapping[str, int]:
    """Read by meter the units that Stripe has counted and no invoice has, in the period of a usage.

    Raises:
        StoreError: the store does not answer.
    """
    return await _read_units(store, usage, "b")


async def _read_units(store: Store, usage: CustomerUsage, letter: str) -> Mapping[str, int]:
    """Read one number of each meter of a usage in its period."""
    totals = await read_totals(store, usage, [*usage["meters"]], letter)
    return {name: int(units or 0) for name, (units,) in totals.items()}


async def read_totals(
    store: Store, usage: CustomerUsage, meters: Sequence[str], letters: str
) -> Mapping[str, Sequence[str]]:
    """Read totals of meters in the period of a usage, by meter; missing ones are empty.

    Args:
        store: has the totals.
        usage: of a customer in the period.
        meters: by name.
        letters: of the totals; see count_field.lua.

    Raises:
        StoreError: the store does not answer.
    """
    if not meters:
        return {}
    admin, start_ms = await store.admin(), to_ms(usage["period"]["start"])
    fields = [f"{start_ms}|{meter_token(name)}{letter}" for name in meters for letter in letters]
    found = await admin.ask(admin.client.hmget(store.keys.customer(usage["customer"]).totals, fields))
    texts = iter([(text or b"").decode() for text in found])
    return {name: [next(texts) for _ in letters] for name in meters}


async def record_uninvoiced(store: Store, usage: CustomerUsage, late: Iterable[UninvoicedUnits]) -> None:
    """Count units as late, and enter them into the customer's ledger.

    Raises:
        StoreError: the store does not answer.
    """
    keys, start_ms = store.keys.customer(usage["customer"]), to_ms(usage["period"]["start"])
    admin = (await store.admin()).for_delivery()
    if not await admin.ask(admin.client.exists(keys.state)):
        return  # The customer was deleted meanwhile.
    pipe = admin.client.pipeline(transaction=True)
    for one in late:
        pipe.hset(keys.totals, f"{start_ms}|{meter_token(one.meter)}b", str(one.known + one.quantity))
        words = f"{start_ms} {one.quantity} of {one.meter}{one.price}"
        entry = ("late", str(store.now_ms()), words, "not billed", "clock")
        pipe.rpush(keys.history, json.dumps(entry))
    pipe.pexpire(keys.totals, _KEPT_MS)
    pipe.ltrim(keys.history, -HISTORY_BOUND, -1)
    await admin.ask(pipe.execute())
