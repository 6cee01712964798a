"""Compiled decisions: demands on a plan as arguments of the scripts, and their binding to a request. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

from meterkit.catalog.model_prices import may_overlap
from meterkit.catalog.routes import additions_of
from meterkit.decisions.gauges import add_gauge_terms
from meterkit.decisions.keys import credit_hold_field, meter_field
from meterkit.decisions.limit_policies import (
    ASK_ONLY,
    CEILING,
    CONCURRENCY,
    GAUGE,
    SPENT,
    Demand,
    PolicyMeasure,
    PolicyTerms,
    budget_terms,
    counter_terms,
    gauge_terms,
    keep_ms_of,
    route_rate_terms,
)
from meterkit.decisions.spending import UNCAPPED, SpendingTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Meter, Route
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.subjects import SubjectDemand

_T = TypeVar("_T")
_NO_ROWS: Final[dict[str, str]] = {}
REPLY_NUMBERS: Final = 5
"""Numbers of the decision script's reply before the rests."""
_COUNTS: Final = 4  # how many rates, ceilings with concurrency limits, recorded meters, subjects: the first


class ModelPricing(NamedTuple):
    """Costs and prices by the model of a request.

    Attributes:
        costs: cost of a unit, by meter whose cost depends on the model; None: the highest ones.
        rows: meter with prices by model, to the meter that counts the model's price; empty if the model is
            not known, or the plan has neither a budget nor subjects.
    """

    costs: Mapping[str, int] | None = None
    rows: Mapping[str, str] = _NO_ROWS

    @classmethod
    def of(
        cls,
        costs: Mapping[str, int] | None,
        meters: Iterable[str],
        models: Sequence[str],
        entitlements: Mapping[str, Entitlement],
        *,
        holds_rows: bool,
    ) -> ModelPricing:
        """Pricing of some meters at the dearest of the models; without a known one, at the highest price."""
        if not models or not holds_rows:
            return cls(costs)
        found = {name: entitlements[name].overage.rows for name in meters}
        chosen = {name: rows.of_models(models) for name, rows in found.items() if rows is not None}
        return cls(costs, {name: _dearest_row(rows, entitlements) for name, rows in chosen.items()})

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Cache key."""
        return (*(self.costs or {}).items(), *self.rows.items())

    def add_price_rows(self, by_meter: Mapping[str, _T]) -> dict[str, _T]:
        """Quantities or demands by meter, with the same ones of the meters that count their prices."""
        return {**by_meter, **{row: by_meter[name] for name, row in self.rows.items()}}


UNKNOWN_MODEL: Final = ModelPricing()


def model_terms_to_hold(
    models: Sequence[str | None],
    prepaid: Prepaid | None,
    meters: Iterable[str],
    entitlements: Mapping[str, Entitlement],
    *,
    holds_rows: bool,
) -> ModelPricing:
    """Pricing at which quantities are held; without a model, the highest."""
    known = () if None in models or "" in models else cast("Sequence[str]", models)
    costs = None if prepaid is None else prepaid.held_costs(known)
    return ModelPricing.of(costs, meters, known, entitlements, holds_rows=holds_rows)


def _dearest_row(rows: Iterable[str], entitlements: Mapping[str, Entitlement]) -> str:
    """The row whose units cost most; of the same price, the first one by name."""
    return max(sorted(rows), key=lambda row: entitlements[row].overage.unit_price)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Compiled decision: demands of one route, or one call, on one set of entitlements.

    Attributes:
        measures: in the order of the script's policies.
        numbers: the decision script's terms from the sixth on.
        fields: counter fields that the decision script reads.
        held: meter to the quantity that an allowed decision holds.
        concurrency: meters of whose concurrency an allowed decision holds one.
        settled: meter to the quantity that is recorded when the request ends as billed.
        holds: whether an allowed decision holds anything.
        settles: whether the end of the request must be settled with the store.
        extra_terms: further terms of the script, as JSON: grants and credits, gauges; may be empty.
        gauges: whether it checks gauges.
        quantity_places: positions of quantities among the numbers: position, meter, least value.
        rates: fields of the rates that count what is taken.
        rate_terms: field of each rate, and its numbers: kind, window, limit, refill, needed, taken.
        costs: held meter whose cost depends on the model, to the cost of a held unit (micro-credits).
        subjects: demands on the customer's subjects; their measures follow the customer's.
        ceilings: place of each ceiling's remainder in the decision script's reply, and name of its policy.
    """

    measures: tuple[PolicyMeasure, ...]
    keep_ms: int
    numbers: tuple[int, ...]
    fields: tuple[str, ...]
    held: Mapping[str, int]
    concurrency: tuple[str, ...]
    settled: Mapping[str, int]
    holds: bool
    settles: bool
    extra_terms: str
    gauges: bool
    rates: frozenset[str]
    quantity_places: tuple[tuple[int, str, int], ...]
    rate_terms: tuple[tuple[str, int, int, int, int, int, int], ...]
    costs: Mapping[str, int]
    subjects: tuple[SubjectDemand, ...] = ()
    ceilings: tuple[tuple[int, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the ceilings."""
        reported = (measure for measure in self.measures[len(self.rate_terms) :] if measure.kind != GAUGE)
        ceilings = (
            (place, measure.policy.name)
            for place, measure in enumerate(reported, start=REPLY_NUMBERS)
            if measure.kind == CEILING and measure.limit != UNCAPPED
        )
        object.__setattr__(self, "ceilings", tuple(ceilings))

    def with_subjects(self, asked: tuple[SubjectDemand, ...]) -> Program:
        """Program with demands on subjects; the end of the request counts their units."""
        numbers = (*self.numbers[: _COUNTS - 1], len(asked), *self.numbers[_COUNTS:])
        held = any(one.hold.quantities or one.hold.concurrency or one.hold.spent for one in asked)
        return replace(
            self,
            measures=(*self.measures, *(measure for one in asked for measure in one.measures)),
            numbers=numbers,
            subjects=asked,
            holds=self.holds or held,
            settles=True,
        )

    def trailing_arguments(self, mode: str) -> tuple[str, ...]:
        """The arguments after a decision's terms: the mode, further flags, the fields."""
        return (mode, *((self.extra_terms,) if self.extra_terms else ()), *self.fields)


def compile_program(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    billed_always: bool = False,
    rates_only: bool = False,
    in_flight: bool = True,
    prepaid: Prepaid | None = None,
    route: Route | None = None,
    keeps: bool = False,
    at: ModelPricing = UNKNOWN_MODEL,
) -> Program:
    """Compile a set of demands on a set of entitlements.

    Args:
        entitlements: one for every meter of the catalog.
        catalog: what is sold.
        demands: by meter.
        billed_always: record what is taken whatever the outcome, in the decision itself if possible.
        rates_only: leave ceilings and concurrency aside (routes that are ``always`` served).
        in_flight: whether it is a request, which concurrency limits count.
        prepaid: grants and credits of a customer who may have some.
        route: route whose own rates apply; None: not a request.
        keeps: whether gauges above their limits keep the former limits.
        at: costs and prices by the request's model.
    """
    rates = [] if route is None else list(route_rate_terms(route))
    rated = [rate for name in demands for rate in entitlements[name].rates]
    recorded, settled = _split_recorded(entitlements, catalog, demands, billed_always=billed_always)
    gauges = tuple(gauge_terms(entitlements, catalog, demands, keeps=keeps))
    spending = SpendingTerms.of(() if rates_only else demands, entitlements, catalog)
    asked = counter_terms(entitlements, catalog, demands, spending, in_flight=in_flight and not rates_only)
    rates, ceilings, concurrency = rates + asked[0], [] if rates_only else asked[1], asked[2]
    counted = (*rates, *ceilings, *concurrency)
    parts = (*counted, *budget_terms(spending), *(part for part, _ in gauges))
    measures = tuple(part.measure for part in parts)
    fields = (*(part.field for part in counted), *map(meter_field, recorded))
    capped = [measure.policy.meter for measure in measures if measure.kind == CEILING]
    limits = {part.measure.policy.meter: limit for part, limit in gauges}
    held = {name: demands[name].taken for name in (*capped, *limits) if name in limits or demands[name].taken}
    costs, behind, sharing = at.costs or {}, "", tuple[str, ...]()
    if prepaid is not None and not rates_only:
        costs = prepaid.all_costs(at.costs)
        unbounded = _find_unbounded(demands, entitlements, prepaid, capped)
        sharing = prepaid.meters_sharing_credit((*capped, *unbounded, *spending.prices), entitlements)
        fields, behind = _add_backing(unbounded, entitlements, prepaid, capped, fields, costs, sharing)
        held.update({name: taken for name, taken in unbounded.items() if taken})
    fields, behind = spending.add_to(fields, behind, capped, sharing, entitlements, catalog, at.rows)
    return Program(
        measures=measures,
        keep_ms=keep_ms_of((*rated, *(() if route is None else route.rates))),
        numbers=(
            *(len(rates), len(counted) - len(rates), len(recorded), 0),
            *(number for part in parts for number in part.numbers),
            *recorded.values(),
        ),
        fields=(*fields, *map(meter_field, limits)),
        held=held,
        concurrency=tuple(measure.policy.meter for measure in measures if measure.kind == CONCURRENCY),
        settled=settled,
        holds=bool(held or concurrency),
        settles=bool(held or concurrency or settled),
        extra_terms=add_gauge_terms(behind, limits, first=len(fields) + 2),
        gauges=bool(gauges),
        rates=frozenset(part.field for part in rates),
        quantity_places=tuple(_find_quantity_places(parts)),
        rate_terms=tuple(map(_bind_rate_terms, rates)),
        costs={name: cost for name, cost in costs.items() if name in held and behind},
    )


def _split_recorded(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    billed_always: bool,
) -> tuple[dict[str, int], dict[str, int]]:
    """Quantities that the decision records, and those recorded at the end; gauges are never recorded."""
    recorded: dict[str, int] = {}
    settled: dict[str, int] = {}
    for name, demand in demands.items():
        meter = catalog.meters[name]
        if demand.taken and meter.kind == "counter" and not meter.is_row:
            by_decision = billed_always and meter.stripe is None and entitlements[name].included is None
            (recorded if by_decision else settled)[name] = demand.taken
    return recorded, settled


def _bind_rate_terms(part: PolicyTerms) -> tuple[str, int, int, int, int, int, int]:
    measure = part.measure
    terms = measure.kind, measure.window, measure.limit, measure.refill, measure.needed
    return part.field, *terms, part.numbers[-1]


def _find_quantity_places(parts: Iterable[PolicyTerms]) -> Iterator[tuple[int, str, int]]:
    """Positions of quantities among a program's numbers, with their meters.

    Concurrency takes one place, whatever the quantity.
    """
    place = _COUNTS
    for part in parts:
        place += len(part.numbers)
        meter = part.measure.policy.meter
        if part.measure.kind not in {CONCURRENCY, SPENT}:
            yield from ((place - 2, meter, 1), (place - 1, meter, 0))


def _find_unbounded(
    demands: Mapping[str, Demand],
    entitlements: Mapping[str, Entitlement],
    prepaid: Prepaid,
    capped: Sequence[str],
) -> dict[str, int]:
    """The requested meters without a ceiling that are paid with a credit, and what is taken of each."""
    return {
        name: demand.taken
        for name, demand in demands.items()
        if demand.taken
        and name not in capped
        and name in prepaid.paid_with
        and entitlements[name].included is not None
    }


def _add_backing(
    unbounded: Mapping[str, int],
    entitlements: Mapping[str, Entitlement],
    prepaid: Prepaid,
    capped: Sequence[str],
    fields: tuple[str, ...],
    costs: Mapping[str, int],
    sharing: Sequence[str],
) -> tuple[tuple[str, ...], str]:
    """Add the fields and terms of the grants and credits that back requested meters.

    Args:
        unbounded: requested meters without a ceiling that are paid with a credit.
        entitlements: one for every meter of the catalog.
        prepaid: the grants and credits.
        capped: the requested meters with a ceiling.
        fields: counter fields that the decision script reads.
        costs: cost of a unit, by meter whose cost depends on the model.
        sharing: meters that share a credit with requested or priced ones.

    Returns:
        The fields, with those of the meters that share a credit; the terms of grants and credits.
    """
    fields += tuple(meter_field(name) for name in sharing if name not in capped)
    priced = [name for name in sharing if name in prepaid.by_model]
    fields += tuple(map(credit_hold_field, priced))
    if not capped and not sharing:
        return fields, ""
    places = {name: fields.index(meter_field(name)) + 2 for name in sharing}
    held_places = {name: fields.index(credit_hold_field(name)) + 2 for name in priced}
    return fields, prepaid.backing_terms(capped, unbounded, places, held_places, costs, entitlements)


def reported_parts(entitlement: Entitlement, meter: Meter) -> tuple[int, int]:
    """Classes of units that go to Stripe under a meter's event: included, overage (0 or 1 each)."""
    if meter.stripe is None or meter.stripe.report == "none":
        return 0, 0
    return int(sends_included(entitlement, meter)), int(entitlement.overage.mode == "bill")


def sends_included(entitlement: Entitlement | None, meter: Meter) -> bool:
    """Whether included units go to Stripe under a meter's event, by the customer's price or the file."""
    if entitlement is not None and entitlement.meter == meter.name and entitlement.sends_included is not None:
        return entitlement.sends_included
    return meter.stripe is not None and meter.stripe.report == "usage"


def has_flat_price(entitlement: Entitlement | None, meter: Meter) -> bool:
    """Whether Stripe certainly gets overage alone under a meter's event, by the file and by the price."""
    is_overage = meter.stripe is not None and meter.stripe.report == "overage"
    return is_overage and not sends_included(entitlement, meter)


def demands_of(
    route: Route, catalog: Catalog, models: Sequence[str] = (), free: Collection[str] = ()
) -> dict[str, Demand]:
    """Demands of a route on each meter before the app runs.

    A meter that the request adds an unknown quantity to needs something left.

    Args:
        route: the route.
        catalog: what is sold.
        models: that the request names; none: any may answer it.
        free: money meters that the request certainly adds nothing to.
    """
    demands = {name: Demand.of(taken) for name, taken in route.consume.items()}
    demands.update({name: Demand.of(growth) for name, growth in route.grow.items() if growth})
    for name, key in additions_of(route, catalog.meters, models).items():
        charges = catalog.meters[name].charges
        is_free = name in free or (charges is not None and charges.is_free)
        if key != "per_message" and not is_free:  # Each message asks for these itself.
            demands.setdefault(name, ASK_ONLY)
    return demands


class BoundProgram:
    """Program bound to the quantities of one request.

    Args:
        program: compiled for one of each quantity that is bound.
        consumed: bound meter, to the quantity that is demanded in addition.

    Attributes:
        recorded: meter to the quantity recorded in addition to the true ones.
        is_exact: whether its numbers are complete: every held meter has a limit.
    """

    __slots__ = ("_consumed", "_program", "is_exact", "recorded")

    def __init__(self, program: Program, consumed: Mapping[str, int]) -> None:
        self._program = program
        self._consumed = consumed
        extra = {meter: consumed.get(meter, taken) for meter, taken in program.settled.items()}
        self.recorded = {meter: quantity for meter, quantity in extra.items() if quantity}
        own = program.measures[: len(program.measures) - sum(len(one.measures) for one in program.subjects)]
        limited = {measure.policy.meter for measure in own if measure.kind in {CEILING, GAUGE}}
        self.is_exact = all(meter in limited for meter in program.held if meter in consumed)

    def numbers(self, quantities: Mapping[str, int]) -> list[int]:
        """Numbers of the program with bound quantities."""
        numbers = list(self._program.numbers)
        for place, meter, least in self._program.quantity_places:
            if meter in quantities:
                numbers[place] = max(least, quantities[meter] + self._consumed[meter])
        return numbers

    def held(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """Hold of each meter with bound quantities."""
        return {
            meter: quantities[meter] + self._consumed[meter] if meter in quantities else taken
            for meter, taken in self._program.held.items()
        }


def add_derived(
    meters: Mapping[str, Meter], quantities: Mapping[str, int], models: Sequence[str]
) -> dict[str, int]:
    """Quantities, and those of the meters derived from them that match one of some models."""
    found = dict(quantities)
    for name, model in product(quantities, models):
        for derived in derived_from(meters, name, {"model": model}, may_overlap):
            found[derived.name] = quantities[name]
    return found


def derived_from(
    meters: Mapping[str, Meter],
    source: str,
    dimensions: Mapping[str, str],
    matches: Callable[[str, str], bool] = fnmatchcase,
) -> tuple[Meter, ...]:
    """The meters that are derived from another and match some dimensions, each followed by its own parts."""
    if not dimensions:
        return ()
    found: list[Meter] = []
    for meter in meters.values():
        if meter.source == source and not meter.is_row and _matches_dimensions(meter, dimensions, matches):
            found += (meter, *derived_from(meters, meter.name, dimensions, matches))
    return tuple(found)


def _matches_dimensions(
    derived: Meter, dimensions: Mapping[str, str], matches: Callable[[str, str], bool]
) -> bool:
    return all(
        dimensions.get(name) and matches(dimensions[name], pattern) for name, pattern in derived.where.items()
    )
