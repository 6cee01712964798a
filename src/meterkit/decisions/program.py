"""What a route asks of a plan, worked out once: the arguments of the scripts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from meterkit.decisions.gauges import GaugeLimit, gauge_policy, with_gauges
from meterkit.decisions.keys import concurrency_field, credit_hold_field, meter_field, rate_field, route_name
from meterkit.decisions.policies import (
    CEILING,
    CONCURRENCY,
    GAUGE,
    ceiling_of,
    keep_ms_of,
    policies_of,
    rate_numbers,
    route_policies,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Meter, Rate, Route
    from meterkit.decisions.decision import Policy
    from meterkit.decisions.grants import Prepaid

_COUNTS: Final = 3  # how many rates, ceilings with concurrency limits, recorded meters: the first numbers
_TOKEN_METERS: Final = (
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
    "total_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The demand on one meter.

    Attributes:
        needed: the quantity that must be left, or the demand is refused.
        taken: the quantity that is counted if it is not.
    """

    needed: int
    taken: int

    @classmethod
    def of(cls, quantity: int) -> Self:
        """Ask for a quantity, which is counted; of none, that something is left."""
        return cls(needed=max(1, quantity), taken=quantity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One policy as the decision script weighs it.

    Attributes:
        kind: see :mod:`meterkit.decisions.policies`.
        window: ms; for a bucket the denominator of its refill per ms.
        limit: units per window, burst, included + beyond, or requests in flight.
        refill: for a bucket the numerator of its refill per ms, else 0.
        capped: for a ceiling, whether overage is billed up to it.
    """

    policy: Policy
    kind: int
    window: int
    limit: int
    refill: int
    needed: int
    capped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """What one route, or one call, asks of one set of entitlements.

    Attributes:
        measures: in the order of the script's policies.
        numbers: the decision script's terms from the sixth on.
        fields: what the decision script reads of the counters.
        held: meter to the quantity that an allowed decision holds.
        concurrency: meters of whose concurrency an allowed decision holds one.
        settled: meter to the quantity that is recorded when the request ends as billed.
        holds: whether an allowed decision holds anything.
        settles: whether the end of the request must be settled with the store.
        further: what else the script looks at, as JSON: grants and credits, gauges; empty: nothing.
        gauges: whether it looks at gauges.
        asked: the places of quantities among the numbers: place, meter, and the least value.
        rates: the fields of the rates that count what is taken.
        rate_terms: of each rate its field and its numbers: kind, window, limit, refill, needed, taken.
        costs: each held meter whose cost depends on the model, to what a unit is held at (micro-credits).
    """

    measures: tuple[Measure, ...]
    keep_ms: int
    numbers: tuple[int, ...]
    fields: tuple[str, ...]
    held: Mapping[str, int]
    concurrency: tuple[str, ...]
    settled: Mapping[str, int]
    holds: bool
    settles: bool
    further: str
    gauges: bool
    rates: frozenset[str]
    asked: tuple[tuple[int, str, int], ...]
    rate_terms: tuple[tuple[str, int, int, int, int, int, int], ...]
    costs: Mapping[str, int]

    def behind_terms(self, mode: str) -> tuple[str, ...]:
        """The arguments after a decision's terms: the mode, further flags, the fields."""
        return (mode, *((self.further,) if self.further else ()), *self.fields)


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
    costs: Mapping[str, int] | None = None,
) -> Program:
    """Work out what a set of demands asks of a set of entitlements.

    Args:
        entitlements: one for every meter of the catalog.
        catalog: what is sold.
        demands: meter to what is asked of it.
        billed_always: whatever the outcome, what is taken is recorded, by the decision where it can be.
        rates_only: leave ceilings and concurrency aside (routes that are ``always`` served).
        in_flight: whether it is a request, which concurrency limits count.
        prepaid: the grants and credits behind the ceilings, for those who may have some.
        route: whose own rates hold too; None: off the request.
        keeps: whether gauges above their limits keep those of before.
        costs: what a unit costs of the meters whose cost depends on the model; None: the most.
    """
    rates = [] if route is None else list(_route_rates_asked(route))
    rated = [rate for name in demands for rate in entitlements[name].rates]
    recorded, settled = _taken(entitlements, catalog, demands, billed_always=billed_always)
    gauges = tuple(_gauges_asked(entitlements, catalog, demands, keeps=keeps))
    asked = _counters_asked(entitlements, catalog, demands, in_flight=in_flight and not rates_only)
    rates, ceilings, concurrency = rates + asked[0], [] if rates_only else asked[1], asked[2]
    counted = (*rates, *ceilings, *concurrency)
    parts = (*counted, *(part for part, _ in gauges))
    measures = tuple(part.measure for part in parts)
    fields = (*(part.field for part in counted), *map(meter_field, recorded))
    capped = [measure.policy.meter for measure in measures if measure.kind == CEILING]
    held, behind = {name: demands[name].taken for name in capped if demands[name].taken}, ""
    if prepaid is not None and not rates_only:
        costs = prepaid.all_costs(costs)
        backed, fields, behind = _backed(demands, entitlements, prepaid, capped, fields, costs)
        held.update(backed)
    limits = {part.measure.policy.meter: limit for part, limit in gauges}
    held.update({name: demands[name].taken for name in limits})
    return Program(
        measures=measures,
        keep_ms=keep_ms_of((*rated, *(() if route is None else route.rates))),
        numbers=(
            *(len(rates), len(counted) - len(rates), len(recorded)),
            *(number for part in parts for number in part.numbers),
            *recorded.values(),
        ),
        fields=(*fields, *map(meter_field, limits)),
        held=held,
        concurrency=tuple(measure.policy.meter for measure in measures if measure.kind == CONCURRENCY),
        settled=settled,
        holds=bool(held or concurrency),
        settles=bool(held or concurrency or settled),
        further=with_gauges(behind, limits, first=len(fields) + 2),
        gauges=bool(gauges),
        rates=frozenset(part.field for part in rates),
        asked=tuple(_asked(parts)),
        rate_terms=tuple(map(_rate_terms, rates)),
        costs={name: cost for name, cost in (costs or {}).items() if name in held and behind},
    )


def _counters_asked(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    in_flight: bool,
) -> tuple[list[_Part], list[_Part], list[_Part]]:
    """What demands on counters come to: rates, ceilings, concurrency limits."""
    rates, ceilings, concurrency = list[_Part](), list[_Part](), list[_Part]()
    for name, demand in demands.items():
        entitlement, meter = entitlements[name], catalog.meters[name]
        if meter.kind == "counter":
            policies = policies_of(entitlement, meter)
            rates += _rates_asked(entitlement, policies, demand)
            ceilings += _ceiling_asked(entitlement, policies, demand)
            concurrency += _concurrency_asked(entitlement, policies) if in_flight else ()
    return rates, ceilings, concurrency


def _taken(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    billed_always: bool,
) -> tuple[dict[str, int], dict[str, int]]:
    """What the decision itself records, and what is recorded at the end; of gauges nothing ever is."""
    recorded: dict[str, int] = {}
    settled: dict[str, int] = {}
    for name, demand in demands.items():
        meter = catalog.meters[name]
        if demand.taken and meter.kind == "counter":
            by_decision = billed_always and meter.stripe is None and entitlements[name].included is None
            (recorded if by_decision else settled)[name] = demand.taken
    return recorded, settled


@dataclass(frozen=True, slots=True)
class _Part:
    """One policy that the decision script weighs.

    Attributes:
        field: what it reads of the counters for it.
        numbers: its terms of it.
        measure: how it weighs it.
    """

    field: str
    numbers: tuple[int, ...]
    measure: Measure


def _rate_terms(part: _Part) -> tuple[str, int, int, int, int, int, int]:
    measure = part.measure
    terms = measure.kind, measure.window, measure.limit, measure.refill, measure.needed
    return part.field, *terms, part.numbers[-1]


def _asked(parts: Iterable[_Part]) -> Iterator[tuple[int, str, int]]:
    """The places of quantities among the numbers of a program's parts, with their meters.

    Of concurrency, one is asked whatever the quantity.
    """
    place = _COUNTS
    for part in parts:
        place += len(part.numbers)
        meter = part.measure.policy.meter
        if part.measure.kind != CONCURRENCY:
            yield from ((place - 2, meter, 1), (place - 1, meter, 0))


def _route_rates_asked(route: Route) -> Iterator[_Part]:
    """A route's own rates; each request takes one unit of each."""
    for rate, policy in zip(route.rates, route_policies(route), strict=True):
        field = rate_field(route_name(route), rate.window_ms, rate.algorithm)
        yield _rate_asked(field, rate, policy, Demand.of(1))


def _rates_asked(entitlement: Entitlement, policies: Sequence[Policy], demand: Demand) -> Iterator[_Part]:
    """A meter's rates, in the file's order, in which their policies come first."""
    for rate, policy in zip(entitlement.rates, policies, strict=False):
        yield _rate_asked(rate_field(policy.meter, rate.window_ms, rate.algorithm), rate, policy, demand)


def _rate_asked(field: str, rate: Rate, policy: Policy, demand: Demand) -> _Part:
    kind, window, limit, refill = rate_numbers(rate, policy.meter)
    return _Part(
        field,
        (kind, window, limit, refill, demand.needed, demand.taken),
        Measure(policy=policy, kind=kind, window=window, limit=limit, refill=refill, needed=demand.needed),
    )


def _ceiling_asked(entitlement: Entitlement, policies: Iterable[Policy], demand: Demand) -> Iterator[_Part]:
    """What a period admits of a meter, where that has an end."""
    included, ceiling = entitlement.included, ceiling_of(entitlement)
    if included is None or ceiling is None:
        return
    beyond = ceiling - included if entitlement.overage.mode == "bill" else -1
    policy = next(policy for policy in policies if policy.kind == "period")
    yield _Part(
        meter_field(policy.meter),
        (included, beyond, demand.needed, demand.taken),
        Measure(
            policy=policy,
            kind=CEILING,
            window=0,
            limit=ceiling,
            refill=0,
            needed=demand.needed,
            capped=beyond >= 0,
        ),
    )


def _concurrency_asked(entitlement: Entitlement, policies: Iterable[Policy]) -> Iterator[_Part]:
    """How many requests may be in flight at once, where that is limited; this one is one of them."""
    limit = entitlement.concurrency
    if limit is None:
        return
    policy = next(policy for policy in policies if policy.kind == "concurrency")
    measure = Measure(policy=policy, kind=CONCURRENCY, window=0, limit=limit, refill=0, needed=1)
    # A ceiling of what is held at once: nothing is ever recorded of it.
    yield _Part(concurrency_field(policy.meter), (limit, -1, 1, 1), measure)


def _gauges_asked(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    keeps: bool,
) -> Iterator[tuple[_Part, GaugeLimit]]:
    """By how much gauges are to grow, those that are limited; the script has their limits apart."""
    for name, demand in demands.items():
        meter, limit = catalog.meters[name], GaugeLimit.of(entitlements[name], keeps=keeps)
        if meter.kind != "gauge" or limit is None or not (demand.needed or demand.taken):
            continue
        measure = Measure(
            policy=gauge_policy(meter, limit),
            kind=GAUGE,
            window=0,
            limit=limit.most,
            refill=0,
            needed=demand.needed,
        )
        yield _Part(meter_field(name), (demand.needed, demand.taken), measure), limit


def _backed(
    demands: Mapping[str, Demand],
    entitlements: Mapping[str, Entitlement],
    prepaid: Prepaid,
    capped: Sequence[str],
    fields: tuple[str, ...],
    costs: Mapping[str, int],
) -> tuple[dict[str, int], tuple[str, ...], str]:
    """What grants and credits stand behind.

    Args:
        demands: meter to what is asked of it.
        entitlements: one for every meter of the catalog.
        prepaid: the grants and credits.
        capped: the requested meters with a ceiling.
        fields: what the decision script reads of the counters.
        costs: what a unit costs of the meters whose cost depends on the model.

    Returns:
        The holds of meters without a ceiling that are paid with a credit; the fields, with those of the
        meters that share a credit with requested ones; the terms of grants and credits.
    """
    unbounded = {
        name: demand.taken
        for name, demand in demands.items()
        if name not in capped and name in prepaid.paid_with and entitlements[name].included is not None
    }
    sharing = [
        name for name in prepaid.sharing((*capped, *unbounded)) if entitlements[name].included is not None
    ]
    fields += tuple(meter_field(name) for name in sharing if name not in capped)
    priced = [name for name in sharing if name in prepaid.by_model]
    fields += tuple(map(credit_hold_field, priced))
    places = {name: fields.index(meter_field(name)) + 2 for name in sharing}
    held_places = {name: fields.index(credit_hold_field(name)) + 2 for name in priced}
    behind = ""
    if capped or sharing:
        behind = prepaid.behind(capped, unbounded, places, held_places, costs, entitlements)
    return {name: taken for name, taken in unbounded.items() if taken}, fields, behind


def reported_parts(entitlement: Entitlement, meter: Meter) -> tuple[int, int]:
    """Which classes of units go to Stripe under a meter's event: included, overage (0 or 1 each)."""
    stripe = meter.stripe
    if stripe is None or stripe.report == "none":
        return 0, 0
    return int(stripe.report == "usage"), int(entitlement.overage.mode == "bill")


def demands_of(route: Route, catalog: Catalog) -> dict[str, Demand]:
    """What a route asks of each meter before the app runs."""
    demands = {name: Demand.of(taken) for name, taken in route.consume.items()}
    demands.update({name: Demand.of(growth) for name, growth in route.grow.items() if growth})
    if route.usage != "none":
        # What the response will cost is not known yet: something must be left.
        for name, meter in catalog.meters.items():
            if meter.charges is not None or (name in _TOKEN_METERS and meter.kind == "counter"):
                demands.setdefault(name, Demand(needed=1, taken=0))
    return demands
