"""Policies of a plan and a route, and the terms by which the decision script checks demands on them. Pure.

The first step of compiling a decision; :mod:`meterkit.decisions.compiled_decision` packs the terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Final, Self

from meterkit.catalog.models import QUANTITY_MAX, ROUTE
from meterkit.decisions.decision import Policy
from meterkit.decisions.gauges import GaugeLimit, gauge_policy
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field, route_name
from meterkit.decisions.spending import EXACT_MAX, UNCAPPED, SpendingTerms
from meterkit.errors import PlansError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Meter, Rate, Route

SLIDING_WINDOW: Final = 1
FIXED_WINDOW: Final = 2
TOKEN_BUCKET: Final = 3
CEILING: Final = 4
"""Ceiling of a billing period: included, and overage up to a cap."""
CONCURRENCY: Final = 5
GAUGE: Final = 6
"""Limit of a gauge's level; the script gets gauges separately."""
SPENT: Final = 7
"""Budget; the script computes the spend that counts against it."""

_KINDS: Final = {"sliding-window": SLIDING_WINDOW, "fixed-window": FIXED_WINDOW, "token-bucket": TOKEN_BUCKET}
_QUARTER_HOUR_MS: Final = 900_000
EXACT_WINDOW_MS_MAX: Final = 90_000_000  # 25 hours: longer windows move in whole seconds, see constants.lua.
_BUCKET_WAIT_MS_MAX: Final = 34_560_000_000  # 400 days: the longest that a bucket owes.


def keep_ms_of(rates: Iterable[Rate]) -> int:
    """TTL of rate counters: two windows, or until a full bucket is empty, and a quarter of an hour."""
    spans = (max(2 * rate.window_ms, -(-rate.burst * rate.window_ms // rate.limit)) for rate in rates)
    return max(spans, default=0) + _QUARTER_HOUR_MS


def rate_numbers(rate: Rate, meter: str) -> tuple[int, int, int, int]:
    """A rate as the scripts take it: kind, window, limit, refill.

    A bucket's refill of ``limit / window_ms`` per ms is reduced to lowest terms, so that no product in the
    script passes 2^53; where that does not suffice it is rounded down, by less than one part in a million.

    Raises:
        PlansError: a bucket so large and so slow that its refill cannot be counted exactly.
    """
    kind = _KINDS[rate.algorithm]
    if kind != TOKEN_BUCKET:
        return kind, rate.window_ms, rate.limit, 0
    shared = gcd(rate.limit, rate.window_ms)
    refill, window = rate.limit // shared, rate.window_ms // shared
    if (rate.burst + 2) * window > EXACT_MAX:
        most = EXACT_MAX // (rate.burst + 2)
        refill, window = refill * most // window, most
        if refill < 10**6:
            message = (
                f"a burst of {rate.burst} at {rate.limit} per {rate.window} cannot be counted exactly; "
                "make the burst smaller or the rate faster"
            )
            raise PlansError([Problem("plans", 0, 0, f"meters.{meter}.rate", message)])
    return kind, window, rate.burst, refill


CONCURRENT_REQUESTS: Final = "concurrent-requests"


def period_policy(meter: str) -> str:
    """Name of the policy of a meter's ceiling."""
    return f"{meter}-period"


def policies_of(entitlement: Entitlement, meter: Meter) -> tuple[Policy, ...]:
    """The policies of one meter: its rates in the file's order, its period, its concurrency.

    A gauge has no period: its level is never reset.
    """
    unit = None if meter.unit == "request" else meter.unit
    policies = [_rate_policy(rate, meter.name, meter.name, unit) for rate in entitlement.rates]
    ceiling = None if meter.kind == "gauge" else ceiling_of(entitlement)
    if ceiling is not None:
        policies.append(
            Policy(
                name=period_policy(meter.name),
                meter=meter.name,
                kind="period",
                quota=ceiling,
                quota_unit=unit,
            )
        )
    if entitlement.concurrency is not None:
        policies.append(
            Policy(
                name=f"{meter.name}-concurrency",
                meter=meter.name,
                kind="concurrency",
                quota=entitlement.concurrency,
                quota_unit=CONCURRENT_REQUESTS,
            )
        )
    return tuple(policies)


def route_policies(route: Route) -> tuple[Policy, ...]:
    """Policies of a route's own rates, in requests; they are the same for every plan."""
    return tuple(_rate_policy(rate, ROUTE, "", None) for rate in route.rates)


def ceiling_of(entitlement: Entitlement) -> int | None:
    """The most that a period admits without grants and credits, in units; None: no ceiling."""
    if entitlement.included is None:
        return None
    if entitlement.overage.mode == "deny":
        return entitlement.included
    if entitlement.overage.cap is None:
        return None
    return min(entitlement.included + entitlement.overage.cap, QUANTITY_MAX)


def billed_most(entitlement: Entitlement) -> int | None:
    """The most overage that a period bills: the cap; None: no cap, or the plan does not bill overage."""
    overage = entitlement.overage
    return overage.cap if overage.mode == "bill" else None


def _rate_policy(rate: Rate, name: str, meter: str, unit: str | None) -> Policy:
    return Policy(
        name=f"{name}-{rate.window}",
        meter=meter,
        kind="rate",
        quota=rate.limit,
        window_s=-(-rate.window_ms // 1000),
        quota_unit=unit,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The demand on one meter.

    Attributes:
        needed: quantity that must be left, or the demand is refused.
        taken: quantity that is counted if it is not refused.
    """

    needed: int
    taken: int

    @classmethod
    def of(cls, quantity: int, spare: int = 0) -> Self:
        """Demand that counts a quantity and needs ``spare`` more; a demand of 0 needs 1."""
        return cls(needed=max(1, quantity + spare), taken=quantity)


ASK_ONLY: Final = Demand(needed=1, taken=0)
"""The demand on a meter by an unknown quantity: something must be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMeasure:
    """Limit of one policy as the decision script checks it.

    Attributes:
        kind: see :mod:`meterkit.decisions.limit_policies`.
        window: ms; for a bucket the denominator of its refill per ms.
        limit: units per window, burst, included + beyond, requests in flight, or minor units of a budget.
        refill: for a bucket the numerator of its refill per ms; for a budget micro-units in a minor unit;
            else 0.
        capped: for a ceiling, whether overage is billed up to it.
    """

    policy: Policy
    kind: int
    limit: int
    needed: int
    window: int = 0
    refill: int = 0
    capped: bool = False


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """Terms of one policy for the decision script.

    Attributes:
        field: counter field that the script reads.
        numbers: arguments of the script for it.
        measure: its limit.
    """

    field: str
    numbers: tuple[int, ...]
    measure: PolicyMeasure


def counter_terms(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    spending: SpendingTerms,
    *,
    in_flight: bool,
) -> tuple[list[PolicyTerms], list[PolicyTerms], list[PolicyTerms]]:
    """Terms of demands on counters: rates, ceilings, concurrency limits.

    Under a budget, a priced meter has a ceiling even without a cap: its held quantity counts as spend.
    """
    rates, ceilings, concurrency = list[PolicyTerms](), list[PolicyTerms](), list[PolicyTerms]()
    for name, demand in demands.items():
        entitlement, meter = entitlements[name], catalog.meters[name]
        if meter.kind == "counter":
            policies = policies_of(entitlement, meter)
            rates += _rate_terms_of_meter(entitlement, policies, demand)
            ceilings += _ceiling_terms(entitlement, policies, demand)
            if name in spending.prices and ceiling_of(entitlement) is None:
                ceilings.append(_uncapped_terms(entitlement, demand))
            concurrency += _concurrency_terms(entitlement, policies) if in_flight else ()
    return rates, ceilings, concurrency


def route_rate_terms(route: Route) -> Iterator[PolicyTerms]:
    """Terms of a route's own rates; a request takes one unit of each."""
    for rate, policy in zip(route.rates, route_policies(route), strict=True):
        field = rate_field(route_name(route), rate.window_ms, rate.algorithm)
        yield _new_rate_terms(field, rate, policy, Demand.of(1))


def _rate_terms_of_meter(
    entitlement: Entitlement, policies: Sequence[Policy], demand: Demand
) -> Iterator[PolicyTerms]:
    """Terms of a meter's rates, in the file's order; their policies come first."""
    for rate, policy in zip(entitlement.rates, policies, strict=False):
        yield _new_rate_terms(rate_field(policy.meter, rate.window_ms, rate.algorithm), rate, policy, demand)


def _new_rate_terms(field: str, rate: Rate, policy: Policy, demand: Demand) -> PolicyTerms:
    kind, window, limit, refill = rate_numbers(rate, policy.meter)
    return PolicyTerms(
        field,
        (kind, window, limit, refill, demand.needed, demand.taken),
        PolicyMeasure(
            policy=policy, kind=kind, window=window, limit=limit, refill=refill, needed=demand.needed
        ),
    )


def _ceiling_terms(
    entitlement: Entitlement, policies: Iterable[Policy], demand: Demand
) -> Iterator[PolicyTerms]:
    """Terms of a meter's ceiling in a period, if it has one."""
    included, ceiling = entitlement.included, ceiling_of(entitlement)
    if included is None or ceiling is None:
        return
    beyond = ceiling - included if entitlement.overage.mode == "bill" else -1
    policy = next(policy for policy in policies if policy.kind == "period")
    yield PolicyTerms(
        meter_field(policy.meter),
        (included, beyond, demand.needed, demand.taken),
        PolicyMeasure(policy=policy, kind=CEILING, limit=ceiling, needed=demand.needed, capped=beyond >= 0),
    )


def _uncapped_terms(entitlement: Entitlement, demand: Demand) -> PolicyTerms:
    """Terms of a meter that is billed without a cap."""
    policy = Policy(name=entitlement.meter, meter=entitlement.meter, kind="uncapped", quota=UNCAPPED)
    measure = PolicyMeasure(policy=policy, kind=CEILING, limit=UNCAPPED, needed=demand.needed, capped=True)
    numbers = (entitlement.included or 0, UNCAPPED, demand.needed, demand.taken)
    return PolicyTerms(meter_field(policy.meter), numbers, measure)


def budget_terms(spending: SpendingTerms) -> Iterator[PolicyTerms]:
    """Terms of the budgets that a demand spends; the script computes the spend."""
    for budget in spending.budgets:
        measure = PolicyMeasure(
            policy=budget.policy,
            kind=SPENT,
            window=budget.window_ms,
            limit=budget.policy.quota,
            refill=budget.unit,
            needed=0,
        )
        yield PolicyTerms(budget.field, (), measure)


def _concurrency_terms(entitlement: Entitlement, policies: Iterable[Policy]) -> Iterator[PolicyTerms]:
    """Terms of a meter's concurrency limit, if it has one; the request takes one place."""
    limit = entitlement.concurrency
    if limit is None:
        return
    policy = next(policy for policy in policies if policy.kind == "concurrency")
    measure = PolicyMeasure(policy=policy, kind=CONCURRENCY, limit=limit, needed=1)
    # A ceiling on held units: none is ever recorded.
    yield PolicyTerms(concurrency_field(policy.meter), (limit, -1, 1, 1), measure)


def gauge_terms(
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    demands: Mapping[str, Demand],
    *,
    keeps: bool,
) -> Iterator[tuple[PolicyTerms, GaugeLimit]]:
    """Terms of limited gauges that are to grow; the script gets their limits separately."""
    for name, demand in demands.items():
        meter, limit = catalog.meters[name], GaugeLimit.of(entitlements[name], keeps=keeps)
        if meter.kind != "gauge" or limit is None or not (demand.needed or demand.taken):
            continue
        measure = PolicyMeasure(
            policy=gauge_policy(meter, limit), kind=GAUGE, limit=limit.most, needed=demand.needed
        )
        yield PolicyTerms(meter_field(name), (demand.needed, demand.taken), measure), limit


def bucket_wait_ms(measure: PolicyMeasure, owed: int, rest: int, needed: int) -> int:
    """Wait until a bucket has ``needed`` (ms)."""
    excess = owed * measure.window + rest - (measure.limit - needed) * measure.window
    return min(-(-excess // measure.refill), _BUCKET_WAIT_MS_MAX)


def sliding_wait_ms(measure: PolicyMeasure, counted: int, previous: int, needed: int, now_ms: int) -> int:
    """Wait until a sliding window has ``needed`` left (ms)."""
    limit, window = measure.limit, measure.window
    rest_ms = window - now_ms % window
    if counted + needed <= limit:
        return rest_ms - _most_left(previous, limit - counted - needed, window)
    return rest_ms + window - _most_left(counted, limit - needed, window)


def weighted_count(previous: int, left_ms: int, window_ms: int) -> int:
    """The part of the previous window's count that still counts, rounded up."""
    if window_ms > EXACT_WINDOW_MS_MAX:
        left_ms, window_ms = -(-left_ms // 1000), window_ms // 1000
    return -(-previous * left_ms // window_ms)


def _most_left(previous: int, room: int, window_ms: int) -> int:
    """The longest rest of a window at which no more than ``room`` of the previous count still counts (ms)."""
    if previous <= room:
        return window_ms
    if window_ms > EXACT_WINDOW_MS_MAX:
        return room * (window_ms // 1000) // previous * 1000
    return room * window_ms // previous
