"""What settlements of the same meters have in common, so that it is worked out once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.models import SPEND
from meterkit.decisions.audit_terms import paid_price
from meterkit.decisions.keys import rate_field
from meterkit.decisions.policies import TOKEN_BUCKET, billed_most, rate_numbers
from meterkit.decisions.program import reported_parts
from meterkit.decisions.spending import counted_as_spent, price_of
from meterkit.store.hold import audited_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.decisions.audit_terms import PaidPrice
    from meterkit.store.hold import Correction, Held, Used
    from meterkit.store.views import CustomerView

THRESHOLD_NUMBERS: Final = 4
# Under whose event Stripe gets what is reported of a meter: its own; that of a derived one behind it; and for
# such a one: what the meter before it reports, or its overage.
OWN_EVENT, _SENT_ON, _TAKES_OVER, _PRICED = 0, 1, 2, 3
NO_CAP: Final = -1


class Entry(NamedTuple):
    """One meter of a settlement.

    ``quantity_of`` names the meter whose quantity it is: its own, or for a derived meter its source's.
    ``terms`` are the included quantity (-1: no limit), the cap (-1: none), whether included units and overage
    are sent, and under whose event.
    """

    meter: str
    quantity_of: str
    terms: tuple[int, int, int, int, int]


class Rated(NamedTuple):
    """One rate of a settlement; ``source`` is set for the rates of derived meters only."""

    field: str
    meter: str
    source: str | None
    terms: tuple[int, int, int]
    is_corrected: bool

    def unleaked(self, quantity: int, passed_ms: int) -> int:
        """What a bucket still has of a quantity that long ago; a window goes by when that was."""
        kind, window, refill = self.terms
        if kind != TOKEN_BUCKET:
            return quantity
        return max(0, quantity - max(0, passed_ms) * refill // window)


class Shape(NamedTuple):
    """What settlements of the same meters have in common, packed as far as it can be.

    Attributes:
        head: the request up to the producer's key, where there is no event.
        names: the keys behind that, without the one of an event id.
        audit: those of the audit log; empty: there is none.
        fields: the fields that are read, ``width`` of them.
        priced: how many meters have a price among ``spending``.
        has_more: whether the keys of grants and of notices are among the names.
        spending: what units cost, for the script; empty: nothing.
        paying: what grants and credits pay, as JSON; empty: nothing.
        prices: what units cost that are paid for, for the audit log.
    """

    head: bytes
    names: bytes
    audit: bytes
    fields: bytes
    width: int
    has_more: bool
    counts: tuple[int, int, int, int]
    priced: int
    entries: tuple[Entry, ...]
    rates: tuple[Rated, ...]
    thresholds: tuple[int, ...]
    spending: tuple[int, ...]
    paying: str
    prices: Mapping[str, PaidPrice]


def thresholds_of(view: CustomerView, entries: Sequence[Entry]) -> tuple[int, ...]:
    """Of each threshold of what is included: its meter's place, the quantity, the percentage, all of it."""
    found: list[int] = []
    for place, entry in enumerate(entries, start=2):  # From 2, behind the head.
        entitlement = view.entitlements[entry.meter]
        for quantity, percent in () if view.anonymous else entitlement.thresholds:
            found += (place, quantity, percent, entitlement.included or 0)
    return tuple(found)


def add_spend(view: CustomerView, entries: list[Entry], rates: list[Rated]) -> tuple[int, ...]:
    """Have what is spent counted, where units cost something: by what; the terms for the script."""
    meters, catalog = [entry.meter for entry in entries], view.cache.catalog
    if not any(price_of(meter, view.entitlements, catalog) for meter in meters):
        return ()
    given = view.entitlements[SPEND]
    included = -1 if given.included is None else given.included
    entries.append(Entry(SPEND, SPEND, (included, NO_CAP, 0, 0, OWN_EVENT)))  # The script knows the quantity.
    for rate in given.rates:
        field = rate_field(SPEND, rate.window_ms, rate.algorithm)
        kind, window, _, refill = rate_numbers(rate, SPEND)
        rates.append(Rated(field, SPEND, None, (kind, window, refill), is_corrected=False))
    return counted_as_spent(meters, len(given.rates), view.entitlements, catalog)


def entries_of(
    view: CustomerView, held: Held, used: Used, derived: Mapping[str, tuple[str, ...]]
) -> Iterator[Entry]:
    """The recorded quantities: each meter, and the derived meters that its dimensions match."""
    meters = view.cache.catalog.meters
    # The hold of a derived meter is given back where it is recorded: each field is written once.
    behind = {other for found in derived.values() for other in found}
    for name in dict.fromkeys((*held.quantities, *used.recorded)):
        if name in behind:
            continue
        found = derived.get(name, ())
        reported_as = next((other for other in found if meters[other].stripe is not None), name)
        for meter in (name, *found):
            entitlement, parts = view.entitlements[meter], (0, 0)
            if meter == name and not view.anonymous:
                parts = reported_parts(entitlement, meters[reported_as])
            event, cap = OWN_EVENT, billed_most(entitlement)
            if reported_as != name and meter in {name, reported_as}:
                event = _SENT_ON if meter == name else _TAKES_OVER
            if meters[meter].is_row and meter != name:
                event, cap = _PRICED, None  # Its units are within the cap of its source.
                parts = (0, 0) if view.anonymous else reported_parts(entitlement, meters[meter])
            included = -1 if entitlement.included is None else entitlement.included
            yield Entry(meter, name, (included, NO_CAP if cap is None else cap, parts[0], parts[1], event))


def rates_of(
    view: CustomerView, used: Used, correction: Correction, derived: Mapping[str, tuple[str, ...]]
) -> Iterator[Rated]:
    """Rates count all that was used; those that counted a reservation before, what it differs by."""
    counted: dict[str, str | None] = dict.fromkeys(used.rated)
    counted.update({other: source for source, found in derived.items() for other in found})
    for meter in (*counted, *(meter for meter in correction.reserved if meter not in counted)):
        for rate in view.entitlements[meter].rates:
            field = rate_field(meter, rate.window_ms, rate.algorithm)
            kind, window, _, refill = rate_numbers(rate, meter)
            is_corrected = meter in correction.reserved and field in correction.rates
            if is_corrected or meter in counted:
                yield Rated(field, meter, counted.get(meter), (kind, window, refill), is_corrected)


def rows_of(
    view: CustomerView, used: Used, derived: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The meters derived from each recorded one with prices by model: first the row of its price."""
    found, model = dict[str, tuple[str, ...]](), used.dimensions.get("model")
    for meter, quantity in used.recorded.items():
        if quantity and (rows := view.entitlements[meter].overage.rows) is not None:
            found[meter] = rows.of(model), *derived.get(meter, ())
    return found


def prices_of(view: CustomerView, entries: Iterable[Entry]) -> Mapping[str, PaidPrice]:
    """What units cost that are paid for, for the audit log, by meter."""
    if audited_by(view) is None:
        return {}
    catalog = view.cache.catalog
    found = {entry.meter: paid_price(entry.meter, view.entitlements, catalog) for entry in entries}
    return {meter: price for meter, price in found.items() if price is not None}
