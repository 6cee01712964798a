"""What a route asks of a plan, worked out once: the arguments of the scripts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Final, Self

from meterkit.errors import PlansError, Problem
from meterkit.store.keys import meter_token, rate_token
from meterkit.store.policies import ceiling_of, policies_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Meter, Rate, Route
    from meterkit.store.decision import Decision, Policy
    from meterkit.store.purse import Purse

__all__ = [
    "Blank",
    "Demand",
    "Measure",
    "Open",
    "Program",
    "check_tokens",
    "compile_program",
    "compile_reserving",
    "demands_of",
    "rate_numbers",
    "reported_parts",
]

_KINDS: Final = {"sliding-window": 1, "fixed-window": 2, "token-bucket": 3}
_CEILING: Final = 4
_EXACT: Final = 9 * 10**15  # below 2^53: what a Lua number counts exactly
_QUARTER_HOUR_MS: Final = 900_000
_TOKEN_METERS: Final = (
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
    "total_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of one meter.

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


class Open(int):
    """A quantity that is not known yet when a program is compiled; its places in the numbers are.

    Attributes:
        meter: of which meter.
        least: the least that it is asked as.
    """

    meter: str
    least: int

    def __new__(cls, meter: str, *, least: int) -> Self:
        """A stand-in for a quantity of a meter; counts as 1 meanwhile."""
        self = super().__new__(cls, 1)
        self.meter, self.least = meter, least
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One policy as the decision script weighs it.

    Attributes:
        kind: 1 sliding window, 2 fixed window, 3 token bucket, 4 ceiling, 5 concurrency.
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
        flights: meters whose concurrency an allowed decision holds one of.
        settled: meter to the quantity that is recorded when the request ends as billed.
        holds: whether an allowed decision holds anything.
        settles: whether the end of the request must be told to the store.
        room: what the script reads of grants and credits, as JSON; empty: it need not look at them.
        rates: the tokens of the rates that count what is taken.
    """

    measures: tuple[Measure, ...]
    keep_ms: int
    numbers: tuple[int, ...]
    fields: tuple[str, ...]
    held: Mapping[str, int]
    flights: tuple[str, ...]
    settled: Mapping[str, int]
    holds: bool
    settles: bool
    room: str
    rates: frozenset[str]


class Blank:
    """A program whose reserved quantities are filled in for each decision.

    Args:
        program: compiled with :class:`Open` quantities of the reserved meters.
        consumed: a reserved meter to what its route consumes of it besides.
        preset: the refusal that follows from the state alone, or None.
        head: the packed request up to the terms.
        tail: the packed request behind them.

    Attributes:
        besides: meter to what is recorded besides the true quantities.
        is_exact: whether the numbers are all that the quantities change.
    """

    __slots__ = (
        *("_consumed", "_numbers", "_places", "besides", "head", "is_exact", "preset", "program", "tail"),
    )

    def __init__(
        self, program: Program, consumed: Mapping[str, int], preset: Decision | None, head: bytes, tail: bytes
    ) -> None:
        self.program = program
        self.preset = preset
        self.head = head
        self.tail = tail
        self.besides = {
            meter: consumed.get(meter, taken)
            for meter, taken in program.settled.items()
            if consumed.get(meter, taken)
        }
        # What is held of a meter without a ceiling stands beside the numbers.
        ceilings = {measure.policy.meter for measure in program.measures if measure.kind == _CEILING}
        self.is_exact = all(meter in ceilings for meter in program.held if meter in consumed)
        self._consumed = consumed
        self._numbers = program.numbers
        self._places = [
            (place, number.meter, number.least)
            for place, number in enumerate(program.numbers)
            if isinstance(number, Open)
        ]

    def numbers(self, reserved: Mapping[str, int]) -> list[int]:
        """The program's numbers, where so much is reserved."""
        numbers = list(self._numbers)
        for place, meter, least in self._places:
            numbers[place] = max(least, reserved[meter] + self._consumed[meter])
        return numbers

    def quantities(self, held: Mapping[str, int], reserved: Mapping[str, int]) -> dict[str, int]:
        """What is held of each meter, where so much is reserved."""
        return {
            meter: reserved[meter] + self._consumed[meter] if meter in reserved else taken
            for meter, taken in held.items()
        }


def compile_program(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    billed_always: bool = False,
    rates_only: bool = False,
    in_flight: bool = True,
    purse: Purse | None = None,
) -> Program:
    """Work out what a set of demands asks of a set of entitlements.

    Args:
        entitlements: one for every meter of the catalog.
        catalog: what is sold.
        demands: meter to what is asked of it.
        billed_always: whatever the outcome, what is taken is recorded. A meter without ceiling and Stripe
            event is then recorded by the decision itself.
        rates_only: leave ceilings and concurrency aside (routes that are ``always`` served).
        in_flight: whether it is a request, which concurrency limits count.
        purse: the grants and credits behind the ceilings, for those who may have some.
    """
    rates: list[Measure] = []
    ceilings: list[Measure] = []
    flights: list[Measure] = []
    held: dict[str, int] = {}
    settled: dict[str, int] = {}
    rate_part: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    ceiling_part: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    flight_part: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    record_part: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    for name, demand in demands.items():
        entitlement, meter, token = entitlements[name], catalog.meters[name], meter_token(name)
        told = {policy.kind: policy for policy in policies_of(entitlement, meter)}
        named = {policy.name: policy for policy in policies_of(entitlement, meter)}
        for rate in entitlement.rates:
            kind, window, limit, refill = rate_numbers(rate, name)
            field = rate_token(name, rate.window_ms, rate.algorithm)
            policy = named[f"{name}-{rate.window}"]
            rates.append(_measure(policy, kind, window, limit, refill, demand.needed))
            rate_part.append(
                (
                    (f"{field}a", f"{field}b", f"{field}d"),
                    (kind, window, limit, refill, demand.needed, demand.taken),
                )
            )
        ceiling = None if rates_only else ceiling_of(entitlement)
        if ceiling is not None and entitlement.included is not None:
            beyond = ceiling - entitlement.included if entitlement.overage.mode == "bill" else -1
            ceilings.append(
                _measure(told["period"], _CEILING, 0, ceiling, 0, demand.needed, capped=beyond >= 0)
            )
            ceiling_part.append(
                (
                    (f"{token}i", f"{token}o", f"{token}h", f"{token}H"),
                    (entitlement.included, beyond, demand.needed, demand.taken),
                )
            )
            if demand.taken:
                held[name] = demand.taken
        if entitlement.concurrency is not None and in_flight and not rates_only:
            flights.append(_measure(told["concurrency"], 5, 0, entitlement.concurrency, 0, 1))
            flight_part.append(((f"{token}n", f"{token}N"), (entitlement.concurrency,)))
        if not demand.taken:
            continue
        if billed_always and ceiling is None and meter.stripe is None and entitlement.included is None:
            record_part.append(((f"{token}i",), (demand.taken,)))
        else:
            settled[name] = demand.taken
    parts = (*rate_part, *ceiling_part, *flight_part, *record_part)
    fields = ("r", "t", "e", "x", *(field for fields, _ in parts for field in fields))
    room = ""
    if purse is not None and not rates_only:
        asked = [measure.policy.meter for measure in ceilings]
        unbounded = {
            name: demand.taken
            for name, demand in demands.items()
            if name not in asked and name in purse.paid_with and entitlements[name].included is not None
        }
        tokens = {
            name: meter_token(name)
            for name in purse.sharing((*asked, *unbounded))
            if entitlements[name].included is not None
        }
        fields += tuple(
            f"{token}{part}" for name, token in tokens.items() if name not in asked for part in "ihH"
        )
        held.update({name: taken for name, taken in unbounded.items() if taken})
        if asked or tokens:
            room = purse.room(asked, unbounded, fields, tokens, entitlements)
    spans = [_span_ms(rate) for name in demands for rate in entitlements[name].rates]
    return Program(
        measures=(*rates, *ceilings, *flights),
        keep_ms=max(spans, default=0) + _QUARTER_HOUR_MS,
        numbers=(
            *(len(part) for part in (rate_part, ceiling_part, flight_part, record_part)),
            *(number for _, numbers in parts for number in numbers),
        ),
        fields=fields,
        held=held,
        flights=tuple(measure.policy.meter for measure in flights),
        settled=settled,
        holds=bool(held or flights),
        settles=bool(held or flights or settled),
        room=room,
        rates=frozenset(fields[0][:-1] for fields, _ in rate_part),
    )


def reported_parts(entitlement: Entitlement, meter: Meter) -> tuple[int, int]:
    """Which classes of units go to Stripe under a meter's event: included, overage (0 or 1 each)."""
    stripe = meter.stripe
    if stripe is None or stripe.report == "none":
        return 0, 0
    return int(stripe.report == "usage"), int(entitlement.overage.mode == "bill")


def rate_numbers(rate: Rate, meter: str) -> tuple[int, int, int, int]:
    """A rate as the scripts take it: kind, window, limit, refill.

    A bucket's refill of ``limit / window_ms`` per ms is reduced to lowest terms, so that no product in the
    script passes 2^53; where that does not suffice it is rounded down, by less than one part in a million.

    Raises:
        PlansError: a bucket so large and so slow that its refill cannot be counted exactly.
    """
    kind = _KINDS[rate.algorithm]
    if kind != _KINDS["token-bucket"]:
        return kind, rate.window_ms, rate.limit, 0
    shared = gcd(rate.limit, rate.window_ms)
    refill, window = rate.limit // shared, rate.window_ms // shared
    if (rate.burst + 2) * window > _EXACT:
        most = _EXACT // (rate.burst + 2)
        refill, window = refill * most // window, most
        if refill < 10**6:
            message = (
                f"a burst of {rate.burst} at {rate.limit} per {rate.window} cannot be counted exactly; "
                "make the burst smaller or the rate faster"
            )
            raise PlansError([Problem("plans", 0, 0, f"meters.{meter}.rate", message)])
    return kind, window, rate.burst, refill


def _span_ms(rate: Rate) -> int:
    """How long what was counted may matter: two windows, or until a full bucket has run empty."""
    return max(2 * rate.window_ms, -(-rate.burst * rate.window_ms // rate.limit))


def _measure(
    policy: Policy, kind: int, window: int, limit: int, refill: int, needed: int, *, capped: bool = False
) -> Measure:
    return Measure(
        policy=policy, kind=kind, window=window, limit=limit, refill=refill, needed=needed, capped=capped
    )


def compile_reserving(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    route: Route,
    reserved: Mapping[str, int],
    purse: Purse | None,
) -> Program:
    """What a route asks that reserves such quantities, to the unit."""
    demands = demands_of(route, catalog)
    for name, quantity in reserved.items():
        demands[name] = Demand.of(quantity + (demands[name].taken if name in demands else 0))
    return compile_program(entitlements, catalog, demands, rates_only=route.always, purse=purse)


def demands_of(route: Route, catalog: Catalog) -> dict[str, Demand]:
    """What a route asks of each meter before the app runs."""
    demands = {name: Demand.of(taken) for name, taken in route.consume.items()}
    if route.usage != "none":
        # What the response will cost is not known yet: something must be left.
        for name in _TOKEN_METERS:
            if name in catalog.meters:
                demands.setdefault(name, Demand(needed=1, taken=0))
    return demands


def check_tokens(catalog: Catalog) -> None:
    """Refuse two names that would share a field of the counters: their digests have 24 bits."""
    tokens: dict[str, str] = {}
    for name in catalog.meters:
        found = {meter_token(name): f"the meter {name}"}
        for plan in catalog.plans.values():
            for rate in plan.entitlements[name].rates:
                found[rate_token(name, rate.window_ms, rate.algorithm)] = (
                    f"the {rate.algorithm} rate of {name} per {rate.window_ms} ms"
                )
        for token, what in found.items():
            if tokens.setdefault(token, what) != what:
                message = f"{what} and {tokens[token]} would be counted as one; rename one of the meters"
                raise PlansError([Problem(catalog.source, 0, 0, f"meters.{name}", message)])
