"""Parts of a settlement: quantities, rate corrections, audit lines, and the shape of equal ones. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

from meterkit.catalog.models import QUANTITY_MAX, SPEND
from meterkit.decisions.compiled_decision import reported_parts
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field
from meterkit.decisions.limit_policies import FIXED_WINDOW, TOKEN_BUCKET, billed_most, rate_numbers
from meterkit.decisions.packed import UNCOMPARED
from meterkit.decisions.price_segments import paid_price
from meterkit.decisions.spending import counted_as_spent, price_of
from meterkit.decisions.subjects import SubjectHold, subject_budget, subject_member
from meterkit.store.script_arguments import PackedSubjects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from fractions import Fraction

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.decisions.price_segments import PaidPrice
    from meterkit.redis.scripts import Script
    from meterkit.store.script_arguments import Subjects
    from meterkit.store.views import CustomerView, PreparedDecision

_Quantity = TypeVar("_Quantity")

_NOTHING: Final[dict[str, int]] = {}
_NO_SUBJECTS: Final[dict[str, SubjectHold]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}
_NOTHING_CHARGED: Final[dict[str, Fraction]] = {}
_NOTHING_COST: Final[dict[str, Fraction | int]] = {}


class UsedQuantities(NamedTuple):
    """Quantities that are counted together.

    Attributes:
        recorded: meter to the recorded quantity.
        rated: meter to the total quantity that its rates count.
        dimensions: model and provider, for meters derived from others (``where:``).
        measured: meter to the quantity that the dimensions apply to; None: the rated one.
        charged: meter to its exact charge; whole units are added to the recorded ones.
        costs: meter to the provider's price in micro-units of US dollars: exact, then whole units.
        version: of the price table behind the costs.
        units: counters of model calls by the price table's unit, for the audit log.
        unpriced: model without a price to its number of calls; empty: unknown name.
    """

    recorded: Mapping[str, int] = _NOTHING
    rated: Mapping[str, int] = _NOTHING
    dimensions: Mapping[str, str] = _NO_DIMENSIONS
    measured: Mapping[str, int] | None = None
    charged: Mapping[str, Fraction] = _NOTHING_CHARGED
    costs: Mapping[str, Fraction | int] = _NOTHING_COST
    version: str = ""
    units: Mapping[str, int] = _NOTHING
    unpriced: Mapping[str, int] = _NOTHING

    @classmethod
    def of(cls, quantities: Mapping[str, int], **dimensions: str) -> Self:
        """Record and rate the same quantities."""
        return cls(quantities, quantities, dimensions)

    def given(self) -> dict[str, int]:
        """Quantities by meter, as stored in the mark of an event id.

        A charge is repeated where the quantities are that it is for: it is named only where there are none.
        """
        return {**self.rated, **self.recorded} or dict.fromkeys(self.charged, UNCOMPARED)

    def only(self, meters: Collection[str]) -> Self:
        """The part for these meters."""

        def of_these(quantities: Mapping[str, _Quantity]) -> dict[str, _Quantity]:
            return {meter: quantity for meter, quantity in quantities.items() if meter in meters}

        return self._replace(
            recorded=of_these(self.recorded),
            rated=of_these(self.rated),
            measured=None if self.measured is None else of_these(self.measured),
            costs=of_these(self.costs),
            unpriced=_NOTHING,
            units=_NOTHING,  # They are in the audit rows of the other meters.
        )


NOTHING_USED: Final = UsedQuantities()


def find_used_meters(parts: Iterable[UsedQuantities]) -> set[str]:
    """Meters with a used quantity or a charge above 0."""
    used = [name for part in parts for name, quantity in part.rated.items() if quantity]
    return {*used, *(name for part in parts for name, amount in part.charged.items() if amount > 0)}


def add_quantities(quantities: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Sums of quantities by meter; at most 10^15 - 1 each."""
    total = dict(quantities)
    for meter, quantity in more.items():
        total[meter] = min(total.get(meter, 0) + quantity, QUANTITY_MAX)
    return total


class HeldQuantities(NamedTuple):
    """Hold of an allowed decision.

    Attributes:
        quantities: by meter.
        concurrency: meters with a held permit of their concurrency limit.
        slot: the five minutes that the hold was added to.
        costs: meter to the cost of a held unit, where it depends on the model (micro-credits).
        subjects: holds of the customer's subjects, by kind.
    """

    quantities: Mapping[str, int] = _NOTHING
    concurrency: tuple[str, ...] = ()
    slot: int = 0
    costs: Mapping[str, int] = _NOTHING
    subjects: Mapping[str, SubjectHold] = _NO_SUBJECTS

    @classmethod
    def of(cls, decision: PreparedDecision, slot: int) -> Self:
        """Hold of a decision that allows."""
        return cls(
            decision.held, decision.program.concurrency, slot, decision.program.costs, decision.subjects
        )


class RateCorrection(NamedTuple):
    """Reserved quantities that rates counted at the decision, to be replaced by the true ones.

    Attributes:
        reserved: meter to the counted quantity.
        rates: fields of the rates.
        at_ms: time of the decision.
    """

    reserved: Mapping[str, int] = _NOTHING
    rates: frozenset[str] = frozenset()
    at_ms: int = 0


class RepeatMark(NamedTuple):
    """End of a request with an idempotency key.

    Attributes:
        digest: of the key.
        billed: whether the key is stored from now on.
    """

    digest: str
    billed: bool

    @classmethod
    def of(cls, decision: PreparedDecision, *, billed: bool) -> Self | None:
        """Mark of a decided request; None: it has no key, or is a repeat."""
        return cls(decision.digest, billed) if decision.digest else None


_NAME_MAX: Final = 300  # Bytes; a model's name comes from outside.
_AUDITED: Final = ("model", "provider")


def audit_script(view: CustomerView) -> Script | None:
    """Script that settles and writes audit entries; None: no audit log, or an anonymous customer."""
    return None if view.anonymous else view.cache.settle_audited


def audit_keys(view: CustomerView) -> Sequence[str]:
    """Keys of the audit log for the settle script; empty: there is none."""
    return () if audit_script(view) is None else (view.cache.keys.audit(view.shard),)


def format_audit_lines(
    used: UsedQuantities, occurred_ms: int | None, priced: str, subjects: str = "", event_id: str = ""
) -> bytes:
    """Lines for the audit log: time if not now (ms), model, provider, prices, subjects, event id, units.

    The last two are JSON. A reader ignores lines that it does not know, and lines may be missing at the end.
    """
    lines = [b"" if occurred_ms is None else b"%d" % occurred_ms]
    names = (used.dimensions.get(name, "").replace("\n", " ") for name in _AUDITED)
    lines += [*(name.encode("utf-8", "replace")[:_NAME_MAX] for name in names), priced.encode()]
    rest = [subjects, json.dumps(event_id) if event_id else "", json.dumps(used.units) if used.units else ""]
    while rest and not rest[-1]:
        rest.pop()
    lines += [text.encode() for text in rest]
    return b"\n".join(lines) if any(lines) else b""


@lru_cache(maxsize=16)
def placeholder_of(_slot: int) -> dict[bool, Any]:
    """Placeholder for the settlements of a decision that one request in a slot used. It stays empty."""
    return {}


def mark_used_in_slot(decision: PreparedDecision, slot: int) -> bool:
    """Mark a decision as used in a slot; whether it was used there before."""
    kept = decision.settlements
    if not kept:
        decision.settlements = placeholder_of(slot)
    return kept is placeholder_of(slot)


THRESHOLD_NUMBERS: Final = 4
# Event that reports a meter's units to Stripe: its own, or that of the derived meter behind it. A derived one
# reports the units of the meter before it, or its overage.
OWN_EVENT, _REPORTED_BY_DERIVED, _REPORTS_FOR_SOURCE, _PRICE_ROW = 0, 1, 2, 3
NO_CAP: Final = -1


class MeterEntry(NamedTuple):
    """One meter of a settlement.

    ``quantity_of`` names the meter with its quantity: itself, or the source of a derived meter. ``terms`` are
    the included quantity (-1: no limit), the cap (-1: none), whether included units and overage are sent, and
    the event.
    """

    meter: str
    quantity_of: str
    terms: tuple[int, int, int, int, int]


class RateEntry(NamedTuple):
    """One rate of a settlement; only rates of derived meters have a ``source``."""

    field: str
    meter: str
    source: str | None
    terms: tuple[int, int, int]
    is_corrected: bool

    def unleaked(self, quantity: int, passed_ms: int) -> int:
        """Part of a quantity that a token bucket has not refilled since; a window keeps all of it."""
        kind, window, refill = self.terms
        if kind != TOKEN_BUCKET:
            return quantity
        return max(0, quantity - max(0, passed_ms) * refill // window)


class SettlementShape(NamedTuple):
    """Common part of the settlements of the same meters, packed as far as possible.

    Attributes:
        head: the request up to the producer's key, without an event.
        names: the keys behind that, without the one of an event id.
        audit: keys of the audit log; empty: there is none.
        fields: the fields that the script reads, ``width`` of them.
        priced: number of meters with a price in ``spending``.
        has_more: whether the keys of grants and of notices are among the names.
        spending: unit costs for the script; empty: none.
        paying: payments by grants and credits, and prices to follow, as JSON; empty: none.
        prices: unit prices of paid units, for the audit log.
    """

    head: bytes
    names: bytes
    audit: bytes
    fields: bytes
    width: int
    has_more: bool
    counts: tuple[int, int, int, int]
    priced: int
    entries: tuple[MeterEntry, ...]
    rates: tuple[RateEntry, ...]
    thresholds: tuple[int, ...]
    spending: tuple[int, ...]
    paying: str
    prices: Mapping[str, PaidPrice]


def pack_thresholds(view: CustomerView, entries: Sequence[MeterEntry]) -> tuple[int, ...]:
    """Four numbers for each threshold: its meter's place, quantity, percentage, included quantity."""
    found: list[int] = []
    for place, entry in enumerate(entries, start=2):  # From 2, behind the head.
        entitlement = view.entitlements[entry.meter]
        for quantity, percent in () if view.anonymous else entitlement.thresholds:
            found += (place, quantity, percent, entitlement.included or 0)
    return tuple(found)


def add_spend(view: CustomerView, entries: list[MeterEntry], rates: list[RateEntry]) -> tuple[int, ...]:
    """Add the spend meter and its rates if any unit has a price; return the terms for the script."""
    meters, catalog = [entry.meter for entry in entries], view.catalog
    if not any(price_of(meter, view.entitlements, catalog) for meter in meters):
        return ()
    given = view.entitlements[SPEND]
    included = -1 if given.included is None else given.included
    entries.append(
        MeterEntry(SPEND, SPEND, (included, NO_CAP, 0, 0, OWN_EVENT))
    )  # The script knows the quantity.
    for rate in given.rates:
        field = rate_field(SPEND, rate.window_ms, rate.algorithm)
        kind, window, _, refill = rate_numbers(rate, SPEND)
        rates.append(RateEntry(field, SPEND, None, (kind, window, refill), is_corrected=False))
    return counted_as_spent(meters, len(given.rates), view.entitlements, catalog)


def build_entries(
    view: CustomerView, held: HeldQuantities, used: UsedQuantities, derived: Mapping[str, tuple[str, ...]]
) -> Iterator[MeterEntry]:
    """Entry of each recorded meter, and of the derived meters that its dimensions match."""
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
                event = _REPORTED_BY_DERIVED if meter == name else _REPORTS_FOR_SOURCE
            if meters[meter].is_row and meter != name:
                event, cap = _PRICE_ROW, None  # Its units are within the cap of its source.
                parts = (0, 0) if view.anonymous else reported_parts(entitlement, meters[meter])
            included = -1 if entitlement.included is None else entitlement.included
            yield MeterEntry(
                meter, name, (included, NO_CAP if cap is None else cap, parts[0], parts[1], event)
            )


def build_rates(
    view: CustomerView,
    used: UsedQuantities,
    correction: RateCorrection,
    derived: Mapping[str, tuple[str, ...]],
) -> Iterator[RateEntry]:
    """Entry of each rate that counts used quantities or corrects a reservation."""
    counted: dict[str, str | None] = dict.fromkeys(used.rated)
    counted.update({other: source for source, found in derived.items() for other in found})
    for meter in (*counted, *(meter for meter in correction.reserved if meter not in counted)):
        for rate in view.entitlements[meter].rates:
            field = rate_field(meter, rate.window_ms, rate.algorithm)
            kind, window, _, refill = rate_numbers(rate, meter)
            is_corrected = meter in correction.reserved and field in correction.rates
            if is_corrected or meter in counted:
                yield RateEntry(field, meter, counted.get(meter), (kind, window, refill), is_corrected)


def find_price_rows(
    view: CustomerView, used: UsedQuantities, derived: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Derived meters of each recorded meter with prices by model: its price row first."""
    found, model = dict[str, tuple[str, ...]](), used.dimensions.get("model")
    for meter, quantity in used.recorded.items():
        if quantity and (rows := view.entitlements[meter].overage.rows) is not None:
            found[meter] = rows.of(model), *derived.get(meter, ())
    return found


def find_paid_prices(view: CustomerView, entries: Iterable[MeterEntry]) -> Mapping[str, PaidPrice]:
    """Prices of paid units by meter, for the audit log."""
    if audit_script(view) is None:
        return {}
    catalog = view.catalog
    found = {
        entry.meter: paid_price(entry.meter, view.entitlements, catalog, is_trial=view.is_trial)
        for entry in entries
    }
    return {meter: price for meter, price in found.items() if price is not None}


_NO_SUBJECT_HOLD: Final = SubjectHold()


def pack_subject_settlement(
    subjects: Subjects,
    catalog: Catalog,
    held: HeldQuantities,
    used: UsedQuantities,
    correction: RateCorrection,
    spent: Mapping[str, int],
    *,
    rated_ms: int,
    passed_ms: int,
) -> PackedSubjects:
    """Pack the subjects of a settlement.

    Args:
        subjects: subjects of the customer.
        catalog: the plans file.
        held: released hold.
        used: recorded and rated quantities.
        correction: earlier counts of rates.
        spent: spend in micro-units, by kind.
        rated_ms: past time at which rates count the usage; 0: now.
        passed_ms: time since then.
    """
    words, numbers, kinds = list[str](), list[int](), list[str]()
    for kind, subject in subjects.given:
        hold = held.subjects.get(kind, _NO_SUBJECT_HOLD)
        if kind not in subjects.limits and hold is _NO_SUBJECT_HOLD:
            continue
        meters = _subject_meters(subjects, kind, hold, used, spent)
        rates = list(
            _subject_rates(subjects, kind, hold, used, correction, rated_ms=rated_ms, passed_ms=passed_ms)
        )
        spans = _budget_spans(subjects, catalog, kind, spent, rated_ms)
        if meters or rates or spans:
            kinds.append(kind)
            words += (subject_member(kind, subject), *meters, *(field for field, _ in (*rates, *spans)))
            numbers += (len(meters), len(rates) + len(spans), len(spans))
            numbers += (number for pair in meters.values() for number in pair)
            numbers += (number for _, terms in (*rates, *spans) for number in terms)
    return PackedSubjects.of(subjects.keys_of(kinds), words, numbers)


def _subject_meters(
    subjects: Subjects, kind: str, hold: SubjectHold, used: UsedQuantities, spent: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Recorded and released quantity by field, of every counter: pages show the usage of each."""
    recorded: Mapping[str, int] = used.recorded if kind in subjects.limits else {}
    found = {
        meter_field(name): (recorded.get(name, 0), hold.quantities.get(name, 0))
        for name in dict.fromkeys((*recorded, *hold.quantities))
    }
    found |= {concurrency_field(name): (0, 1) for name in hold.concurrency}
    if hold.spent or spent.get(kind):
        found[meter_field(SPEND)] = (spent.get(kind, 0), hold.spent)
    return found


def _subject_rates(
    subjects: Subjects,
    kind: str,
    hold: SubjectHold,
    used: UsedQuantities,
    correction: RateCorrection,
    *,
    rated_ms: int,
    passed_ms: int,
) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Quantity each rate must still count; for reserved rates, the difference."""
    limits: Mapping[str, Entitlement] = subjects.limits[kind].limits if kind in subjects.limits else {}
    for meter, given in limits.items():
        for rate in given.rates:
            field = rate_field(meter, rate.window_ms, rate.algorithm)
            number, window, _, refill = rate_numbers(rate, meter)
            terms, quantity = (number, window, refill), used.rated.get(meter, 0)
            if meter in correction.reserved and field in hold.rates:
                yield field, (*terms, quantity - correction.reserved[meter], correction.at_ms)
            elif quantity and rated_ms:
                leaked = max(0, passed_ms) * refill // window
                yield field, (*terms, max(0, quantity - leaked), rated_ms)
            elif quantity:
                yield field, (*terms, quantity, 0)


def _budget_spans(
    subjects: Subjects, catalog: Catalog, kind: str, spent: Mapping[str, int], rated_ms: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Day or hour of a budget that counts the spend."""
    budget = subject_budget(subjects.limits[kind], catalog) if kind in subjects.limits else None
    if budget is None or not budget.window_ms or not spent.get(kind):
        return []
    return [(budget.field, (FIXED_WINDOW, budget.window_ms, 0, spent[kind], rated_ms))]
